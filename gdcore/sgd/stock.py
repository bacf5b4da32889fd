"""PyTorch's own SGD functions, for what no other stepper takes: sparse and complex tensors, other devices, differentiable
steps, a parameter that stands twice in a group."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from .members import HALF, Member
from .rounding import round_stochastically


class Stepper:
    """Parameters that stock steps, on any device."""

    def __init__(self, owner: Any, device: torch.device, members: list[Member], inherited: "Stepper | None") -> None:
        self.owner, self.members = owner, members

    def check(self) -> None:
        for member in self.members:
            grad = member.param.grad
            if grad is not None and grad.is_sparse and member.group["weight_decay"] != 0:
                raise RuntimeError(f"weight_decay is not possible with the sparse gradient of {member}")

    def ready(self) -> None:
        pass

    def squared_norm(self, grad_scale: Tensor | None) -> Tensor:
        total = 0.0
        for _, grad in self._present():
            values = grad.coalesce().values() if grad.is_sparse else grad
            total = total + torch.linalg.vector_norm(values).double().square()
        total = torch.as_tensor(total, dtype=torch.float64)
        return total if grad_scale is None else total / grad_scale.to(total.device).double().square()

    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None, norm: Tensor | None) -> None:
        with torch.set_grad_enabled(self.owner.defaults["differentiable"]):
            if found_inf is None or found_inf.item() == 0:
                for member, grad in self._present():
                    self._step(member, self._scaled(grad, grad_scale, norm))
            if self.owner.zeroes_grads:
                for _, grad in self._present():
                    grad.zero_()

    def not_started(self) -> list[Tensor]:
        return []

    def _present(self) -> list[tuple[Member, Tensor]]:
        return [(member, member.param.grad) for member in self.members if member.param.grad is not None]

    def _scaled(self, grad: Tensor, grad_scale: Tensor | None, norm: Tensor | None) -> Tensor:
        if grad_scale is not None:
            grad = grad / grad_scale.to(grad.device)
        if norm is not None:
            grad = grad * (self.owner.max_norm / (norm.to(grad.device) + 1e-6)).clamp(max=1.0).to(grad.dtype)
        return grad

    def _step(self, member: Member, grad: Tensor) -> None:
        owner, group, param = self.owner, member.group, member.param
        state = owner.state.own(param) if group["momentum"] != 0 or owner.master_weights else {}
        target = param
        wide = param.dtype in HALF and (owner.master_weights or owner.stochastic_rounding)
        if wide:
            target = param.float()
            if owner.master_weights:
                master = state.get("master_weight")
                if master is not None:  # it follows where something else has written the parameter
                    target = torch.where(master.to(param.dtype) == param, master, target)
                state["master_weight"] = target
            grad = grad.float()
        momentum = group["momentum"] != 0
        buffers = [state.get("momentum_buffer") if momentum else None]
        sgd(
            [target],
            [grad],
            buffers,
            has_sparse_grad=grad.is_sparse,
            foreach=group["foreach"],
            fused=False,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if momentum:
            state["momentum_buffer"] = buffers[0]
        if wide:
            param.copy_(
                round_stochastically(target, param.dtype, owner.generator) if owner.stochastic_rounding else target
            )
