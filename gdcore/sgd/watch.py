"""What a stepper asks in every step, to know whether what it has built still holds.

The host's time for a step is these questions, so each is one call for each tensor, or one for all. Gradients: type, dtype,
device, shape and strides, and the address. Parameters: the address, since memory may have been replaced (`p.data = ...`), and
the strides. State, once somebody has had a chance to replace it (state.py): the same, and that it is the same tensor.
"""

import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..guards import guards_of
from .members import STATE, Member, local

_address = Tensor.data_ptr
_equal_addresses = getattr(torch._C, "_tensors_data_ptrs_at_indices_equal", None)  # PyTorch with CUDA has it


class Watch:
    """The gradients of some parameters as they are now, and whether anything else has changed.

    `before` is the watch that this one replaces: what a gradient that is missing now was like is known from it.
    """

    def __init__(self, owner: Any, members: list[Member], before: "Watch | None" = None) -> None:
        self.owner, self.members = owner, members
        self.params = [member.param for member in members]
        self.inner = [local(param) for param in self.params]
        self.wrapped = any(inner is not param for inner, param in zip(self.inner, self.params, strict=True))
        self.grads = self._grads_now()
        known = before.facts if before is not None else [None] * len(members)
        self.facts = [
            facts_of(grad) if grad is not None else fact if fact is not None and fact[2] == inner.shape else None
            for grad, fact, inner in zip(self.grads, known, self.inner, strict=True)
        ]
        self.addresses = _addresses(self.grads)
        self._expect(self.grads)
        self._same_memory = _same_memory(self.inner)
        self._matrices = [inner for inner in self.inner if inner.dim() > 1]
        self._same_strides = _likeness(self._matrices)
        self._watch_state()

    def holds(self) -> bool:
        """Look at everything again; False where more has changed than the gradients' addresses and presence.

        A gradient that is there for the first time is for the stepper to notice: its entry in `facts` is None.
        """
        grads = self.grads = self._grads_now()
        if self.wrapped:
            with torch.no_grad():
                if not all(map(operator.is_, map(local, self.params), self.inner)):
                    return False
        if not self._are_alike(grads):
            return False
        if self.missing:
            self.addresses = _addresses(grads)
        elif _equal_addresses is None or not _equal_addresses(grads, self.addresses, self._numbers):
            self.addresses = list(map(_address, grads))
        return self._same_memory(self.inner) and self._same_strides(*self._matrices) and self._state_holds()

    def moved(self) -> bool:
        """Whether a parameter lies elsewhere than when this was made."""
        with torch.no_grad():
            return not self._same_memory([local(param) for param in self.params])

    def release(self) -> None:
        """Let go of the gradients: zero_grad shall free their memory."""
        self.grads = []

    def _grads_now(self) -> list[Tensor | None]:
        grads = [param.grad for param in self.params]
        if self.wrapped:
            with torch.no_grad():
                grads = [None if grad is None else local(grad) for grad in grads]
        return grads

    def _expect(self, grads: list[Tensor | None]) -> None:
        """Take these gradients' presence and likeness as what comes next."""
        self._absent = [grad is None for grad in grads]
        self.missing = sum(self._absent)
        self._numbers = list(range(len(grads)))
        self._like_before = _likeness([grad for grad in grads if grad is not None])

    def _are_alike(self, grads: list[Tensor | None]) -> bool:
        if not self.missing:
            if self._like_before(*grads):
                return True
        elif [grad is None for grad in grads] == self._absent:
            return self._like_before(*[grad for grad in grads if grad is not None])
        for grad, fact in zip(grads, self.facts, strict=True):
            if grad is not None and (facts_of(grad) != fact if fact is not None else grad.layout is not torch.strided):
                return False
        self._expect(grads)
        return True

    def _watch_state(self) -> None:
        state = self.owner.state
        self._entries = state.entries()
        self._places = [
            (entry, name)
            for member, fact in zip(self.members, self.facts, strict=True)
            for entry in [state.peek(member.param)]
            for name in STATE
            if fact is not None and entry.get(name) is not None
        ]
        tensors = [entry[name] for entry, name in self._places]
        self._known = [
            weakref.ref(tensor) for tensor in tensors
        ]  # not the tensors: they may be taken away to free memory
        inner = [local(tensor) for tensor in tensors]
        self._same_state, self._state_alike = _same_memory(inner), _likeness(inner)

    def _state_holds(self) -> bool:
        state = self.owner.state
        if not state.exposed:
            return True
        entries = state.entries()
        if len(entries) != len(self._entries) or not all(map(operator.is_, entries, self._entries)):
            return False
        tensors = [entry.get(name) for entry, name in self._places]
        if not all(known() is tensor is not None for tensor, known in zip(tensors, self._known, strict=True)):
            return False
        if self.wrapped:
            with torch.no_grad():
                tensors = [local(tensor) for tensor in tensors]
        return self._same_state(tensors) and self._state_alike(*tensors)


def facts_of(tensor: Tensor) -> tuple[Any, ...]:
    """dtype, device, shape and strides."""
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.dtype, tensor.device, tensor.shape, strides


def _addresses(grads: list[Tensor | None]) -> list[int]:
    return [0 if grad is None else grad.data_ptr() for grad in grads]


def _likeness(tensors: list[Tensor]) -> Callable[..., bool]:
    """A check that tensors have the types, dtypes, devices, shapes and strides of these.

    One call for all, where PyTorch has it; else it takes longer.
    """
    if (check := guards_of(tensors)) is not None:
        return check
    facts = [facts_of(tensor) for tensor in tensors]
    return lambda *now: all(tensor is not None for tensor in now) and [facts_of(tensor) for tensor in now] == facts


def _same_memory(tensors: list[Tensor]) -> Callable[[list[Tensor]], bool]:
    """A check that tensors lie where these do."""
    addresses, numbers = list(map(_address, tensors)), list(range(len(tensors)))
    if _equal_addresses is not None:
        return lambda now: _equal_addresses(now, addresses, numbers)
    return lambda now: list(map(_address, now)) == addresses
