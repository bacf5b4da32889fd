"""Which engine takes the steps of a run: the plan's choice, and what it needs."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import devices
from ..backends import backend_for
from . import group
from .cpu import CacheRun
from .engine import Engine
from .gram import GramRun
from .plan import BATCHES, FILE, MEMORY, RunPlan, plan_run
from .spec import Spec, run_dtype, starting_point
from .steps import StepRun, SumsRun
from .table import Pair, Table, alike
from .transport import on_device


def where(device: torch.device | str | None, home: torch.device) -> torch.device:
    """The device that is meant, with its number."""
    device = home if device is None else torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which it is the current device: Triton launches, and graphs are captured, on that one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def for_table(table: Table, numbers: dict, init: Any, method: str, device: torch.device) -> tuple[Engine, RunPlan]:
    """For data that can be read as often as wanted."""
    home = table.x.device
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
    source = FILE if table.maps else MEMORY
    if source == MEMORY and device != home:
        if method in ("auto", "resident", "grid", "steps") and _fits(table, device):
            table.x, table.y = table.x.to(device), table.y.to(device)
        else:
            source = f"memory of {home}"
    x, y, shared = table.x, table.y, group.is_shared()
    backend = backend_for(device)
    plan = _plan(spec, device, backend, method=method, source=source, dtypes=(x.dtype, y.dtype), shared=shared)
    if plan.method == "gram":
        return GramRun(spec, start, on_device(table.blocks(2), device, torch.float64)), plan
    if plan.method in ("resident", "grid"):
        if backend == "cpu":
            return CacheRun(spec, start, x, y), plan
        from .triton import ChipRun

        return ChipRun(spec, start, x, y, plan), plan
    if spec.batch_size:
        return _over_batches(spec, start, table.batches(spec), backend), plan
    # Parameters are wider than half-precision data. Kernels take both; elsewhere rows are widened in blocks.
    together = x.dtype is y.dtype and (x.dtype is dtype or backend == "triton")
    if plan.method == "steps" and together and not shared:
        if device.type == "cuda" and backend == "triton":
            from .triton import GraphRun

            return GraphRun(spec, start, x, y, backend), plan
        return StepRun(spec, start, itertools.repeat((x, y)), backend), plan
    passes = (on_device(blocks, device, dtype) for blocks in table.passes())
    return SumsRun(spec, start, passes, backend), plan


def for_batches(
    first: tuple[Tensor, Tensor],
    rest: Iterator[tuple[Tensor, Tensor]],
    numbers: dict,
    init: Any,
    method: str,
    device: torch.device,
) -> tuple[Engine, RunPlan]:
    """For batches that somebody else makes."""
    x, y = first
    dtype, k = run_dtype(x, y), x.shape[1]
    start = group.same_start_(starting_point(init, numbers["intercept"], y, k, dtype, device))
    spec = Spec(n=0, k=k, m=1 if y.dim() == 1 else y.shape[1], dtype=dtype, **numbers)
    backend = backend_for(device)
    plan = _plan(spec, device, backend, method=method, source=BATCHES, shared=group.is_shared())
    return _over_batches(spec, start, alike(itertools.chain([first], rest), k, y), backend), plan


def _plan(spec: Spec, device: torch.device, backend: str, **options: Any) -> RunPlan:
    return plan_run(spec, devices.describe(device, interpreted=backend == "triton"), backend, **options)


def _over_batches(spec: Spec, start: Tensor, batches: Iterator[Pair], backend: str) -> Engine:
    """A batch for each step."""
    moved = on_device(batches, start.device, spec.dtype)
    if group.is_shared():
        return SumsRun(spec, start, ([pair] for pair in moved), backend)
    return StepRun(spec, start, moved, backend)


def _fits(table: Table, device: torch.device) -> bool:
    """Whether the data may be copied to the device: it leaves half of what is free there."""
    return device.type != "cuda" or 2 * table.nbytes <= torch.cuda.mem_get_info(device)[0]
