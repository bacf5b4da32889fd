"""A whole training run in one call."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .. import autocast
from . import group
from .choice import current, for_batches, for_table, where
from .drive import drive
from .engine import Engine
from .gram import largest_stable_lr
from .plan import RunPlan
from .result import FitResult
from .spec import check_numbers, is_batches
from .table import Table, batches_of
from .transport import on_device

__all__ = ["FitResult", "RunPlan", "fit"]


def fit(
    x: Tensor | np.ndarray | Iterable,
    y: Tensor | np.ndarray | None = None,
    *,
    lr: float,
    steps: int,
    batch_size: int | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    init: Any = None,
    intercept: bool = False,
    seed: int = 0,
    record_trajectory: bool = False,
    method: str = "auto",
    progress: bool = False,
    suggest_lr: bool = False,
    device: torch.device | str | None = None,
    distributed: bool | None = None,
) -> FitResult:
    """Linear regression by gradient descent: the whole loop of predict, loss, backward, update in one call.

    Parameters
    ----------
    x : Tensor or numpy array (N, K), or iterable of batches
        float64, float32, float16 or bfloat16, any strides. A ``numpy.memmap`` is read block by block. A DataLoader, or any
        iterable of (x, y), gives the rows of one update at a time and starts again when it ends.
    y : Tensor or numpy array (N,) or (N, M)
        (N,) gives coefficients (K,), (N, M) gives (K, M). Not given with an iterable.
    lr : float
        Learning rate, finite, not negative. A tensor of one element is read once.
    steps : int
        Updates, at least 1.
    batch_size : int, optional
        Rows of an update, at most N; the last of an epoch may have fewer. Each epoch visits all rows in a fresh random
        order, a function of `seed` alone and the same on every device. None: all rows.
    momentum, weight_decay : float
        As torch.optim.SGD's. The decay applies to the intercept too, as it does to all parameters of a group there.
    init : array-like (K,) or (K, M), or a pair (coef, intercept); optional
        Where to start; default zeros. It is copied.
    intercept : bool
        Whether to fit one for each output.
    seed : int
        Of the order of the rows.
    record_trajectory : bool
        Whether to keep the parameters before each update.
    method : {"auto", "resident", "grid", "steps", "gram", "stream"}
        "resident": everything stays on the chip, in one program's registers or in the CPU's cache, all steps in one
        launch (of a long run some, so that it can be interrupted). "grid": in the registers of many programs, which meet
        at a barrier in every step. "steps": a fused call a step, of long runs captured in a CUDA graph.
        "stream": rows come in blocks or batches. "gram": full-batch steps from sums of products, one pass over the data
        and K² M a step after that; see Notes. "auto" takes the first that can, never "gram". The result's `plan` says
        which, and why.
    progress : bool
        Show a progress bar on stderr.
    suggest_lr : bool
        Also find the largest stable learning rate, 2 (1 + momentum) / λmax of the loss's second derivative, from one more
        pass over the data and K³ work.
    device : optional
        Where to compute; default: where x is. Rows that do not fit are streamed there.
    distributed : bool, optional
        False: this process computes by itself. Default: all processes of torch.distributed's default group take part, if
        it is initialised; then all must call, as for any collective operation.

    Returns
    -------
    FitResult
        coef, intercept, losses (steps,), trajectory, plan; diverged_at, interrupted, suggested_lr. float32, or float64 for
        float64 data: parameters are kept so through the run, whatever type the data has.

    Raises
    ------
    ValueError
        Shapes that do not belong together; empty data; lr, momentum, weight_decay that are negative or not finite;
        steps < 1; batch_size < 1 or > N; an unknown method, or one that cannot do this run.
    TypeError
        Arguments of another type.
    NotImplementedError, RuntimeError
        Data of dtypes, layouts or devices that linear_mse refuses too.

    Notes
    -----
    With E = X W + b − Y: L = mean(E²), g = 2/(N M) XᵀE + wd W, v ← μ v + g, W ← W − lr v. No gradient is ever stored, and
    no argument is modified. Runs that diverge are results: losses go to inf as they do in the plain loop, and `diverged_at`
    says where; NaN in the data counts as divergence in step 0. A KeyboardInterrupt ends the run and returns what has been
    learnt. Results repeat bitwise on one device. With torch.distributed initialised each process passes rows of its own,
    sums are added over all of them, and all get the same result.

    Bytes moved: "resident" and "grid" read N (K + M) numbers once for the whole run, "gram" too; the others once a step.
    On CUDA, "steps" on half-precision rows whose products tensor cores make read the parameters rounded to the rows' type,
    as under autocast; rows of few features and outputs are multiplied in float32.
    "gram" accumulates in float64, centred and anchored at the start (see training/gram.py): losses are right to about
    1e-16 · first loss / loss.
    """
    if torch.compiler.is_compiling():  # a compiled caller leaves the graph here
        return _uncompiled_fit(
            x, y, lr=lr, steps=steps, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay, init=init,
            intercept=intercept, seed=seed, record_trajectory=record_trajectory, method=method, progress=progress,
            suggest_lr=suggest_lr, device=device, distributed=distributed,
        )  # fmt: skip
    lr = check_numbers(lr, steps, batch_size, momentum, weight_decay, seed, method)
    numbers = {
        "steps": int(steps),
        "lr": lr,
        "momentum": float(momentum),
        "weight_decay": float(weight_decay),
        "batch_size": None if batch_size is None else int(batch_size),
        "intercept": bool(intercept),
        "seed": int(seed),
        "record": bool(record_trajectory),
    }
    records = torch.is_grad_enabled()
    with torch.no_grad(), autocast.off_everywhere(), group.alone(distributed is False):
        if is_batches(x):
            if y is not None or batch_size is not None or suggest_lr:
                raise ValueError(
                    "with an iterable of batches there is no y, no batch_size and no suggest_lr: its batches are the updates"
                )
            batches = batches_of(x, records)
            first = next(batches, None)
            if first is None:
                raise ValueError("the iterable of batches is empty")
            place, single = where(device, first[0].device), first[1].dim() == 1
            with current(place):
                engine, plan = for_batches(first, batches, numbers, init, method, place)
                return _result(engine, plan, single, drive(engine, progress), None)
        if y is None:
            raise TypeError("y is missing: without it x must be an iterable of batches (x, y)")
        table = Table(x, y)
        place = where(device, table.x.device)
        with current(place):
            engine, plan = for_table(table, numbers, init, method, place)
            suggested = None
            if suggest_lr:
                rows = on_device(table.blocks(2), place, torch.float64)
                suggested = largest_stable_lr(rows, engine.parameters_at(0), engine.spec)
            return _result(engine, plan, table.single, drive(engine, progress), suggested)


_uncompiled_fit = _disable_dynamo(fit)  # torch.compiler.disable, which imports the compiler, on first use


def _result(engine: Engine, plan: RunPlan, single: bool, interrupted: bool, suggested: float | None) -> FitResult:
    k = engine.spec.k
    parameters, trajectory = engine.result(), engine.trajectory
    if single:
        parameters, trajectory = parameters[:, 0], None if trajectory is None else trajectory[..., 0]
    return FitResult(
        coef=parameters[:k] if engine.spec.intercept else parameters,
        intercept=parameters[k] if engine.spec.intercept else None,
        losses=engine.finished_losses(),
        trajectory=trajectory,
        plan=plan,
        interrupted=interrupted,
        suggested_lr=suggested,
    )
