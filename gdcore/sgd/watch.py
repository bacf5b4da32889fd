"""What a stepper asks in every step, to know whether what it has built still holds.

The host's time for a step is these questions, so each is one call for each tensor, or one for all, and none builds anything.
Gradients: dtype, shape, strides, device, address. Parameters: the address, since memory may have been replaced
(`p.data = ...`), and the strides of those that a transposition would leave in shape. State: once somebody has had a chance
to replace it (state.py), its addresses.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .members import Member, local, state_tensors

_address = Tensor.data_ptr


class Watch:
    """The gradients of some parameters as they are now, and whether anything else has changed."""

    def __init__(self, owner: Any, members: list[Member]) -> None:
        self.owner, self.members = owner, members
        self.params = [member.param for member in members]
        self.inner = [local(param) for param in self.params]
        self.wrapped = any(inner is not param for inner, param in zip(self.inner, self.params, strict=True))
        self.grads: list[Tensor | None] = [None if p.grad is None else local(p.grad) for p in self.params]
        self.missing = sum(grad is None for grad in self.grads)
        self.addresses = [0 if grad is None else grad.data_ptr() for grad in self.grads]
        self._facts = [None if grad is None else _facts(grad) for grad in self.grads]
        self._as_before = _guard(self.grads) if not self.missing else None
        self._param_addresses = list(map(_address, self.inner))
        self._squares = [(param, param.stride()) for param in self.inner if _has_equal_sizes(param)]
        self._entries = owner.state.entries()
        self._state_addresses = list(map(_address, self._state_tensors()))

    def holds(self) -> bool:
        """Look at everything again; False where more has changed than the gradients' addresses and presence.

        A gradient that is there for the first time is for the stepper to notice, from `addresses` and `missing`.
        """
        grads = [param.grad for param in self.params]
        if self.wrapped:
            with torch.no_grad():
                grads = [None if grad is None else local(grad) for grad in grads]
                inner = [local(param) for param in self.params]
            if not all(map(operator.is_, inner, self.inner)):
                return False
        self.grads = grads
        if self._as_before is not None and self._as_before(*grads):
            self.missing, self.addresses = 0, list(map(_address, grads))
        else:  # slower, but some may be missing
            for grad, facts in zip(grads, self._facts, strict=True):
                if grad is not None and facts is not None and _facts(grad) != facts:
                    return False
            self.missing = sum(grad is None for grad in grads)
            self.addresses = [
                0 if grad is None or grad.layout is not torch.strided else grad.data_ptr() for grad in grads
            ]
        return (
            list(map(_address, self.inner)) == self._param_addresses
            and (not self._squares or all(inner.stride() == stride for inner, stride in self._squares))
            and self._state_holds()
        )

    def moved(self) -> bool:
        """Whether a parameter lies elsewhere than when this was made."""
        with torch.no_grad():
            return [local(param).data_ptr() for param in self.params] != self._param_addresses

    def _state_holds(self) -> bool:
        state = self.owner.state
        if not state.exposed:
            return True
        entries = state.entries()
        if len(entries) != len(self._entries) or not all(map(operator.is_, entries, self._entries)):
            return False
        return list(map(_address, self._state_tensors())) == self._state_addresses

    def _state_tensors(self) -> list[Tensor]:
        present = [m for m, grad in zip(self.members, self.grads, strict=True) if grad is not None]
        with torch.no_grad():
            return [tensor for member in present for tensor in state_tensors(member, self.owner.state)]


def _has_equal_sizes(tensor: Tensor) -> bool:
    """Whether two dimensions can change places and leave the shape as it is."""
    sizes = [size for size in tensor.shape if size > 1]
    return len(set(sizes)) < len(sizes)


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return (tensor.layout,)
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _guard(tensors: list[Tensor]) -> Callable[..., bool] | None:
    """A check that tensors are like these in type, dtype, device, shape and strides: PyTorch's own, in one call for all."""
    try:
        from torch._C._dynamo.guards import TensorGuards

        sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
        guards = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        return guards.check if tensors and guards.check(*tensors) else None
    except (ImportError, TypeError, RuntimeError):  # another version of PyTorch: the slower questions say the same
        return None
