"""A whole training run in one call."""

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .. import autocast, devices
from ..backends import backend_for
from . import group
from .cpu import CacheRun
from .engine import Engine
from .gram import GramRun, largest_stable_lr
from .plan import BATCHES, FILE, MEMORY, RunPlan, plan_run
from .progress import shown
from .result import FitResult
from .spec import Spec, check_numbers, is_batches, run_dtype, starting_point
from .steps import Exhausted, StepRun, SumsRun
from .table import Pair, Table, alike, batches_of, on_device

_AHEAD = 2  # chunks of steps that the host is ahead of a GPU

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
        launch. "grid": in the registers of many programs, which meet at a barrier in every step. "steps": a fused call a
        step, captured in a CUDA graph. "stream": rows come in blocks or batches. "gram": full-batch steps from sums of
        products, one pass over the data and K² M a step after that; see Notes. "auto" takes the first that can, never
        "gram". The result's `plan` says which, and why.
    progress : bool
        Show a progress bar on stderr.
    suggest_lr : bool
        Also find the largest stable learning rate, 2 (1 + momentum) / λmax of the loss's second derivative, from one more
        pass over the data and K³ work.
    device : optional
        Where to compute; default: where x is. Rows that do not fit are streamed there.

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
    "gram" accumulates in float64, centred and anchored at the start (see training/gram.py): losses are right to about
    1e-16 · first loss / loss.
    """
    if torch.compiler.is_compiling():  # a compiled caller leaves the graph here
        return _uncompiled_fit(
            x, y, lr=lr, steps=steps, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay, init=init,
            intercept=intercept, seed=seed, record_trajectory=record_trajectory, method=method, progress=progress,
            suggest_lr=suggest_lr, device=device,
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
    with torch.no_grad(), autocast.off_everywhere():
        if is_batches(x):
            if y is not None or batch_size is not None or suggest_lr:
                raise ValueError(
                    "with an iterable of batches there is no y, no batch_size and no suggest_lr: its batches are the updates"
                )
            engine, plan, single = _from_batches(x, numbers, init, method, device)
            suggested = None
        else:
            if y is None:
                raise TypeError("y is missing: without it x must be an iterable of batches (x, y)")
            table = Table(x, y)
            engine, plan, start = _from_table(table, numbers, init, method, device)
            suggested = largest_stable_lr(table.blocks(), start.to(table.x.device), engine.spec) if suggest_lr else None
            single = table.single
        interrupted = _drive(engine, progress)
        return _result(engine, plan, single, interrupted, suggested)


_uncompiled_fit = _disable_dynamo(fit)  # torch.compiler.disable, which imports the compiler, on first use


def _from_table(table: Table, numbers: dict, init: Any, method: str, device: Any) -> tuple[Engine, RunPlan, Tensor]:
    """The run of data that can be read as often as wanted."""
    home = table.x.device
    device = home if device is None else torch.device(device)
    if numbers["batch_size"] and numbers["batch_size"] > (rows := group.least(len(table.x), device)):
        raise ValueError(
            f"batch_size is {numbers['batch_size']}, it must be at most the number of rows, {rows}"
            + " in one of the processes" * group.is_shared()
        )
    dtype, k = run_dtype(table.x, table.y), table.x.shape[1]
    target = table.y[:, 0] if table.single else table.y
    start = group.same_start_(starting_point(init, numbers["intercept"], target, k, dtype, device))
    spec = Spec(n=len(table.x), k=k, m=table.y.shape[1], dtype=dtype, **numbers)
    table.block_bytes = 32 << 20 if device.type == "cuda" else 4 << 20  # a copy worth its launch, or half a cache
    x, y = table.x, table.y
    source = FILE if table.maps else MEMORY
    if source == MEMORY and device != home and method in ("auto", "resident", "grid", "steps") and _fits(table, device):
        x, y = x.to(device), y.to(device)
    elif device != home and source == MEMORY:
        source = f"memory of {home}"
    backend = backend_for(device)
    plan = _plan(
        spec, device, backend, method=method, source=source, dtypes=(x.dtype, y.dtype), shared=group.is_shared()
    )
    if plan.method == "gram":
        return GramRun(spec, start, on_device(table.blocks(), device, torch.float64)), plan, start
    if plan.method in ("resident", "grid"):
        if backend == "cpu":
            return CacheRun(spec, start, x, y), plan, start
        from .triton import ChipRun

        return ChipRun(spec, start, x, y, plan), plan, start
    plain = (
        x.dtype is y.dtype is dtype
    )  # in half precision the parameters are wider than the data: it is widened in blocks
    if plan.method == "steps" and plain and not spec.batch_size and not group.is_shared():
        if device.type == "cuda" and backend == "triton":
            from .triton import GraphRun

            return GraphRun(spec, start, x, y, backend), plan, start
        return StepRun(spec, start, itertools.repeat((x, y)), backend), plan, start
    if plan.method == "steps":
        table.x, table.y = x, y
    if spec.batch_size:
        return _over_batches(spec, start, table.batches(spec), backend), plan, start
    passes = (on_device(blocks, device, dtype) for blocks in table.passes())
    return SumsRun(spec, start, passes, backend), plan, start


def _from_batches(
    batches: Iterable, numbers: dict, init: Any, method: str, device: Any
) -> tuple[Engine, RunPlan, bool]:
    """The run of batches that somebody else makes."""
    found = batches_of(batches)
    first = next(found, None)
    if first is None:
        raise ValueError("the iterable of batches is empty")
    x, y = first
    device = x.device if device is None else torch.device(device)
    dtype, k = run_dtype(x, y), x.shape[1]
    start = group.same_start_(starting_point(init, numbers["intercept"], y, k, dtype, device))
    spec = Spec(n=0, k=k, m=1 if y.dim() == 1 else y.shape[1], dtype=dtype, **numbers)
    backend = backend_for(device)
    plan = _plan(spec, device, backend, method=method, source=BATCHES, shared=group.is_shared())
    pairs = alike(itertools.chain([first], found), k, y)
    return _over_batches(spec, start, pairs, backend), plan, y.dim() == 1


def _plan(spec: Spec, device: torch.device, backend: str, **options: Any) -> RunPlan:
    return plan_run(spec, devices.describe(device, interpreted=backend == "triton"), backend, **options)


def _over_batches(spec: Spec, start: Tensor, batches: Iterator[Pair], backend: str) -> Engine:
    """A run with a batch for each step."""
    moved = on_device(batches, start.device, spec.dtype)
    if group.is_shared():
        return SumsRun(spec, start, ([pair] for pair in moved), backend)
    return StepRun(spec, start, moved, backend)


def _fits(table: Table, device: torch.device) -> bool:
    """Whether the data may be copied to the device: it leaves half of what is free there."""
    return device.type != "cuda" or 2 * table.nbytes <= torch.cuda.mem_get_info(device)[0]


def _drive(engine: Engine, wanted: bool) -> bool:
    """Take all steps; whether a KeyboardInterrupt ended them early."""
    steps = engine.spec.steps
    under_way: list[torch.cuda.Event] = []
    with shown(wanted, steps) as tell:
        try:
            while engine.done < steps:
                engine.advance(min(engine.chunk, steps - engine.done))
                if engine.losses.is_cuda:
                    under_way.append(torch.cuda.current_stream(engine.losses.device).record_event())
                if len(under_way) > _AHEAD:  # or the whole run is enqueued at once, and neither shown nor interrupted
                    under_way.pop(0).synchronize()
                tell(engine.done)
        except KeyboardInterrupt:
            return True
        except Exhausted:
            warnings.warn(
                f"the batches ended after {engine.done} of {steps} steps, and cannot be iterated again: what has been "
                "learnt until then is returned",
                stacklevel=3,
            )
    return False


def _result(engine: Engine, plan: RunPlan, single: bool, interrupted: bool, suggested: float | None) -> FitResult:
    k = engine.spec.k
    parameters, trajectory = engine.parameters_at(engine.done), engine.trajectory
    if single:
        parameters, trajectory = parameters[:, 0], None if trajectory is None else trajectory[..., 0]
    return FitResult(
        coef=parameters[:k].clone(),
        intercept=parameters[k].clone() if engine.spec.intercept else None,
        losses=engine.finished_losses(),
        trajectory=trajectory,
        plan=plan,
        interrupted=interrupted,
        suggested_lr=suggested,
    )
