"""What a run returns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import RunPlan


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a run has learnt. Tensors are float32 (float64 for float64 data), on the device that computed.

    Attributes
    ----------
    coef : Tensor (K,) or (K, M)
        Coefficients after the last update; (K,) for a target (N,).
    intercept : Tensor () or (M,), or None
        None where none was fitted.
    losses : Tensor (steps,)
        The mean squared error of each step's rows, before its update; shorter than `steps` if the run was interrupted.
    trajectory : Tensor (steps + 1, R) or (steps + 1, R, M), or None
        Parameters before each update and at the end: R = K coefficients, followed by the intercept if one was fitted.
    plan : RunPlan
        How the run was computed, and why; `print(result.plan)` tells it in words.
    interrupted : bool
        Whether a KeyboardInterrupt ended the run early.
    suggested_lr : float or None
        Where ``suggest_lr=True`` asked for it: the learning rate below which full-batch descent converges.
    """

    coef: Tensor
    intercept: Tensor | None
    losses: Tensor
    trajectory: Tensor | None
    plan: RunPlan
    interrupted: bool = False
    suggested_lr: float | None = None

    @property
    def diverged_at(self) -> int | None:
        """The first step (counted from 0) whose loss is not finite; the number of steps where only the last update left the
        range; None if all is finite. Reads the losses, so on CUDA it waits for the run."""
        lost = (~torch.isfinite(self.losses)).nonzero()
        if len(lost):
            return int(lost[0])
        last = [self.coef] if self.intercept is None else [self.coef, self.intercept]
        return None if all(torch.isfinite(t).all() for t in last) else len(self.losses)
