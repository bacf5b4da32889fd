"""What a stepper asks in every step, to know whether what it has built still holds.

Each question is one call for each tensor, and none builds anything: the host's time for a step is these calls. A
parameter's memory may have been replaced (`p.data = ...`), so its address is asked for too; a momentum buffer's only once
somebody has had a chance to (state.py). Not asked for: a new order or type of a parameter's elements at the same address,
without a gradient that shows it.
"""

import operator
from typing import Any

import torch
from torch import Tensor

from .members import Member, local

_address = Tensor.data_ptr
_is_contiguous = Tensor.is_contiguous


class Watch:
    """The gradients of some parameters as they are now, and whether anything else has changed."""

    def __init__(self, owner: Any, members: list[Member], needs_master: list[bool]) -> None:
        self.owner = owner
        self.params = [member.param for member in members]
        self.inner = [local(param) for param in self.params]
        self.wrapped = any(inner is not param for inner, param in zip(self.inner, self.params, strict=True))
        self.grads: list[Tensor | None] = [None if p.grad is None else local(p.grad) for p in self.params]
        self.addresses = [0 if grad is None else grad.data_ptr() for grad in self.grads]
        self.missing = sum(grad is None for grad in self.grads)
        self._contiguous = [grad is None or grad.is_contiguous() for grad in self.grads]
        self._strides = [
            (i, grad.stride()) for i, grad in enumerate(self.grads) if grad is not None and not grad.is_contiguous()
        ]
        self._param_addresses = list(map(_address, self.inner))
        self._entries = owner.state.entries()
        states = [owner.state.peek(param) if param.grad is not None else {} for param in self.params]
        self._with_momentum = [
            state
            for state, member in zip(states, members, strict=True)
            if member.group["momentum"] != 0 and state.get("momentum_buffer") is not None
        ]
        self._with_master = [
            state
            for state, needed in zip(states, needs_master, strict=True)
            if needed and state.get("master_weight") is not None
        ]
        self._state_addresses = list(map(_address, self._state_tensors()))

    def holds(self) -> bool:
        """Look at everything again; False where more has changed than the gradients' addresses and presence.

        A gradient that is there for the first time is for the stepper to notice, from `addresses`.
        """
        grads = [param.grad for param in self.params]
        if self.wrapped:
            with torch.no_grad():
                grads = [None if grad is None else local(grad) for grad in grads]
        self.missing = 0
        try:
            self.addresses = list(map(_address, grads))
            contiguous = list(map(_is_contiguous, grads))
        except TypeError:  # None has neither
            if any(grad is not None and grad.layout is not torch.strided for grad in grads):
                return False
            self.missing = sum(grad is None for grad in grads)
            self.addresses = [0 if grad is None else grad.data_ptr() for grad in grads]
            pairs = zip(grads, self._contiguous, strict=True)
            contiguous = [known if grad is None else grad.is_contiguous() for grad, known in pairs]
        except RuntimeError:  # nor has a sparse tensor
            return False
        self.grads = grads
        return (
            contiguous == self._contiguous
            and list(map(_address, self.inner)) == self._param_addresses
            and (not self._strides or self._strides_hold())
            and self._state_holds()
        )

    def _strides_hold(self) -> bool:
        grads = self.grads
        return all(grads[i] is None or grads[i].stride() == stride for i, stride in self._strides)

    def _state_holds(self) -> bool:
        state = self.owner.state
        if not state.exposed:
            return True
        entries = state.entries()
        if len(entries) != len(self._entries) or not all(map(operator.is_, entries, self._entries)):
            return False
        try:
            return list(map(_address, self._state_tensors())) == self._state_addresses
        except (KeyError, TypeError, AttributeError):  # something has gone
            return False

    def _state_tensors(self) -> list[Tensor]:
        tensors = [entry["momentum_buffer"] for entry in self._with_momentum]
        if self._with_master:
            tensors += [entry["master_weight"] for entry in self._with_master]
        if self.wrapped:
            with torch.no_grad():
                tensors = [local(tensor) for tensor in tensors]
        return tensors
