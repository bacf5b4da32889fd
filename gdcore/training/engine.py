"""What every way to compute a run has in common: the record of it, and that it can be interrupted between any two steps.

An update never overwrites the parameters that it starts from: they are kept until the next update has begun (in the
trajectory, or in one of two places that take turns). So whenever a KeyboardInterrupt comes, `done` steps are whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .spec import Spec


class Engine(ABC):
    """A run in progress. Subclasses say how steps are computed."""

    chunk = 1  # steps between two looks at whether the run is over, interrupted, or to be shown

    def __init__(self, spec: Spec, start: Tensor, *, in_turn: bool = True) -> None:
        """`in_turn`: whether parameters are kept in two places that take turns, where there is no trajectory to keep them."""
        self.spec = spec
        self.done = 0
        self.losses = torch.empty(spec.steps, dtype=start.dtype, device=start.device)
        self._count = spec.steps + 1 if spec.record else 2
        if spec.record or in_turn:
            self._places = start.new_empty(self._count, *start.shape)
            self._places[0] = start

    def parameters_at(self, step: int) -> Tensor:
        """The place of the parameters before a step, (R, M)."""
        return self._places[step % self._count]

    def result(self) -> Tensor:
        """The parameters after the last step, contiguous, in memory of their own."""
        return self.parameters_at(self.done).clone(memory_format=torch.contiguous_format)

    @property
    def trajectory(self) -> Tensor | None:
        """Parameters before each step that has been taken, and after the last."""
        return self._places[: self.done + 1] if self.spec.record else None

    @abstractmethod
    def advance(self, count: int) -> None:
        """Take so many steps, at most `chunk`; `done` counts those that are whole."""

    def finished_losses(self) -> Tensor:
        """The losses of the steps that are done."""
        return self.losses if self.done == self.spec.steps else self.losses[: self.done]
