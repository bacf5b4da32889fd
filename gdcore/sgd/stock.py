"""PyTorch's own SGD functions, for what no other stepper takes: sparse and complex tensors, other devices, differentiable
steps, a parameter that stands twice in a group."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from .members import HALF, Member, check_clearable, check_group, check_shapes, wants_master
from .rounding import round_stochastically


class Stepper:
    """Parameters that stock steps, on any device."""

    def __init__(self, owner: Any, device: torch.device, members: list[Member], inherited: "Stepper | None") -> None:
        self.owner, self.device, self.members = owner, device, members

    def check(self) -> None:
        for member in self.members:
            check_group(member.group)
            grad = member.param.grad
            if grad is None:
                continue
            check_shapes(member, self.owner.state)
            if self.owner.zeroes_grads:
                check_clearable(member)
            if grad.is_sparse and member.group["weight_decay"] != 0:
                raise RuntimeError(f"weight_decay is not possible with the sparse gradient of {member}")

    def ready(self) -> None:
        pass

    def squared_norm(self, grad_scale: Tensor | None) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for _, grad in self._present():
            values = grad.coalesce().values() if grad.is_sparse else grad
            wide = torch.float32 if values.dtype in HALF else None
            total = total + torch.linalg.vector_norm(values, dtype=wide).double().square()
        return total if grad_scale is None else total / _scalar(grad_scale, total).double().square()

    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None, norm: Tensor | None) -> None:
        with torch.set_grad_enabled(self.owner.defaults["differentiable"]):
            if found_inf is None or found_inf.item() == 0:
                for group in {id(member.group): member.group for member in self.members}.values():
                    self._step_group(group, [m for m, _ in self._present() if m.group is group], grad_scale, norm)
            if self.owner.zeroes_grads:
                for _, grad in self._present():
                    grad.zero_()

    def not_started(self) -> list[Tensor]:
        return []

    def _present(self) -> list[tuple[Member, Tensor]]:
        return [(member, member.param.grad) for member in self.members if member.param.grad is not None]

    def _scaled(self, grad: Tensor, grad_scale: Tensor | None, norm: Tensor | None) -> Tensor:
        if grad_scale is None and norm is None:
            return grad
        scaled = grad.float() if grad.dtype in HALF else grad  # a scale of 65,536 is no float16
        if grad_scale is not None:
            scaled = scaled / _scalar(grad_scale, grad)
        if norm is not None:
            scaled = scaled * (self.owner.max_norm / (_scalar(norm, grad) + 1e-6)).clamp(max=1.0).to(scaled.dtype)
        return scaled.to(grad.dtype)

    def _step_group(
        self, group: dict[str, Any], members: list[Member], grad_scale: Tensor | None, norm: Tensor | None
    ) -> None:
        """One call of PyTorch's function for all, so that a parameter that stands twice is stepped as there."""
        owner, momentum = self.owner, group["momentum"] != 0
        targets, grads, buffers = [], [], []
        for member in members:
            param, target = member.param, member.param
            grad = param.grad.float() if _is_widened(owner, param) else param.grad
            grad = self._scaled(grad, grad_scale, norm)
            state = owner.state.own(param) if momentum or wants_master(owner, param) else {}
            if _is_widened(owner, param):
                target = param.float()
                master = state.get("master_weight")
                if master is not None:  # it follows where something else has written the parameter
                    target = torch.where(master.to(param.dtype) == param, master, target)
            if isinstance(group["weight_decay"], Tensor) and grad is param.grad:
                grad = grad.clone()  # which PyTorch would add to in place
            targets.append(target)
            grads.append(grad)
            buffers.append(state.get("momentum_buffer") if momentum else None)
        sgd(
            targets,
            grads,
            buffers,
            has_sparse_grad=any(grad.is_sparse for grad in grads),
            foreach=False if group["nesterov"] else group["foreach"],  # whose Nesterov adds to the gradients in place
            fused=False,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        for member, target, buffer in zip(members, targets, buffers, strict=True):
            param = member.param
            if momentum:
                keep = _is_widened(owner, param) and not owner.master_weights
                owner.state.own(param)["momentum_buffer"] = buffer.to(param.dtype) if keep else buffer
            if wants_master(owner, param):
                owner.state.own(param)["master_weight"] = target
            if _is_widened(owner, param):
                narrow = owner.stochastic_rounding
                param.copy_(round_stochastically(target, param.dtype, owner.generator) if narrow else target)


def _scalar(value: Tensor, like: Tensor) -> Tensor:
    """A tensor of one number without dimensions, where another tensor is."""
    return value.detach().reshape(()).to(like.device)


def _is_widened(owner: Any, param: Tensor) -> bool:
    return param.dtype in HALF and (owner.master_weights or owner.stochastic_rounding)
