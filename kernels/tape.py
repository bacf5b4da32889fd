"""The launches of a call on tape, to be made again for other tensors of the same kind.

What lies between a call and its launches is Python: arguments are worked out from shapes and strides, and come out as the last
time. A tape holds them, with a place for each tensor that was given to the call or made on the way, and nothing of the
tensors themselves. That the new ones are like the old ones, down to the alignment of their addresses, is the caller's care.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_thread = threading.local()


class Tape:
    """What was launched while it ran."""

    def __init__(self) -> None:
        self.made: list[Tensor] = []
        self.launches: list[tuple[Callable[..., None], tuple]] = []

    def replay(self, given: Sequence[Tensor]) -> "Replay | None":
        """The launches, for other tensors in place of those given.

        None if one reads what is neither given nor made there, or if a tensor was given twice: as what, cannot be told.
        """
        tensors = [*given, *self.made]
        if len(set(map(id, tensors))) < len(tensors):
            return None
        steps = []
        for start, args in self.launches:
            places = [(i, _place(arg, tensors)) for i, arg in enumerate(args) if _is_memory(arg)]
            if any(place is None for _, place in places):
                return None
            steps.append((start, [None if _is_memory(arg) else arg for arg in args], places))
        return Replay([(t.shape, t.dtype) for t in self.made], steps)


class Replay:
    """Called with tensors like those that were given, it makes the launches and returns what was made on the way."""

    def __init__(self, made: list[tuple[torch.Size, torch.dtype]], steps: list[tuple]) -> None:
        self.made, self.steps = made, steps

    def __call__(self, *given: Tensor) -> list[Tensor]:
        device = given[0].device
        made = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self.made]
        tensors = (*given, *made)
        for start, args, places in self.steps:
            args = args.copy()
            for i, place in places:
                args[i] = tensors[place]
            start(*args)
        return made


def recorded(call: Callable[[], Any]) -> tuple[Any, Tape]:
    """What the call returns, and a tape of what this thread launches meanwhile."""
    before, tape = getattr(_thread, "tape", None), Tape()
    try:  # no context manager, which Ctrl-C can leave entered
        _thread.tape = tape
        return call(), tape
    finally:
        _thread.tape = before


def note(start: Callable[..., None], args: tuple) -> None:
    """A launch: `start(*args)` makes it again."""
    tape = getattr(_thread, "tape", None)
    if tape is not None:
        tape.launches.append((start, args))


def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.empty, for memory that a launch fills."""
    made = torch.empty(shape, dtype=dtype, device=device)
    tape = getattr(_thread, "tape", None)
    if tape is not None:
        tape.made.append(made)
    return made


def _is_memory(arg: Any) -> bool:
    """Whether it has an address: a tensor, or a descriptor of one."""
    return isinstance(arg, Tensor) or hasattr(arg, "base")


def _place(arg: Any, tensors: list[Tensor]) -> int | None:
    return next((place for place, tensor in enumerate(tensors) if tensor is arg), None)
