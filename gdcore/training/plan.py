"""How a run is computed, and why: a pure function of numbers, so it can be tested and read without a GPU."""

import dataclasses
import functools

import torch

from ..backends import Wanted
from ..devices import Device
from ..kernels.configs import Config, accumulator_dtype
from ..plan import plan_for, update_in_words
from .spec import Spec

MEMORY, FILE, BATCHES = "memory", "a memory-mapped file", "an iterable of batches"
_CACHE_NUMBERS = 1 << 20  # of the rows of a step, which a CPU keeps twice
_GRAM_BYTES = 8 << 20  # of one of the few temporaries
LAUNCH_SECONDS = 2e-6  # from one launch of a CUDA graph to the next


@dataclasses.dataclass(frozen=True, slots=True)
class RunPlan:
    """A decision and its predicted cost. Bytes, FLOPs and times are predictions of the whole run, not measurements."""

    method: str  # resident, grid, steps, gram, stream
    why: str
    backend: str
    device: Device
    spec: Spec
    step_path: str = ""  # of each step, where steps are calls of their own
    config: Config | None = None
    programs: int = 0  # of a kernel that does the run
    bytes_read: int = 0  # from memory; what stays on the chip is read once
    bytes_written: int = 0
    flops: int = 0
    workspace_bytes: int = 0  # beside data, parameters, losses and trajectory
    predicted_step_seconds: float | None = None  # of a GPU

    @property
    def path(self) -> str:
        """The method, by the name that `gdcore.plan.Plan` has for such a decision."""
        return self.method

    def __str__(self) -> str:
        spec = self.spec
        rows = (
            f"mini-batches of {spec.batch_size}"
            if spec.batch_size
            else "full batch"
            if spec.n
            else "batches as they come"
        )
        moves = f"{self.bytes_read:,} bytes read, {self.bytes_written:,} written, {self.flops:,} FLOPs (predicted)"
        lines = [
            f"fit: x {spec.n or '?'} x {spec.k}, {spec.m} output{'s' * (spec.m != 1)}, {rows}, {spec.steps} steps in "
            f"{str(spec.dtype).removeprefix('torch.')}",
            f"method     {self.method} on {self.device.name}"
            + f", each step by {self.step_path}" * bool(self.step_path),
            f"why        {self.why}",
            f"moves      {moves if spec.n else 'what the batches hold, once'}",
        ]
        if self.config is not None:
            lines.append(
                f"tile       {self.config.block_n} rows x {self.config.block_k} features, {self.config.num_warps} warps, "
                f"{self.programs} program{'s' * (self.programs != 1)}"
            )
        if self.predicted_step_seconds is not None:
            lines.append(f"a step     {self.predicted_step_seconds * 1e6:.3g} µs (predicted)")
        return "\n".join(lines)


@functools.lru_cache(maxsize=1024)  # a short run takes less time than its plan
def plan_run(
    spec: Spec,
    device: Device,
    backend: str,
    *,
    method: str = "auto",
    source: str = MEMORY,
    dtypes: tuple[torch.dtype, torch.dtype] | None = None,
    shared: bool = False,
) -> RunPlan:
    """The plan of a run.

    Parameters
    ----------
    spec : Spec
    device : Device
        From gdcore.devices.
    backend : {"cpu", "triton", "reference"}
    method : str
        "auto", or what was asked for.
    source : str
        MEMORY, FILE or BATCHES: where the rows come from.
    dtypes : (torch.dtype, torch.dtype), optional
        Of x and of y; default: what is calculated in.
    shared : bool
        Whether other processes hold rows too.

    Raises
    ------
    ValueError
        If the method that was asked for cannot do this run.
    """
    plan = RunPlan(method, "", backend, device, spec)
    dtypes = dtypes or (spec.dtype, spec.dtype)
    if method == "gram":
        if spec.batch_size or source == BATCHES:
            raise ValueError(
                "method='gram' is for full batches: it needs sums over all rows, so no batch_size and no iterable"
            )
        return _with_cost(
            dataclasses.replace(plan, why="asked for: sums of products from one pass over the data, then K² M a step"),
            dtypes,
        )
    found, reasons = None, []
    if source != MEMORY:
        found = dataclasses.replace(plan, method="stream", why=f"the rows come from {source}")
        reasons.append(f"the rows come from {source}, which takes method='stream'")
    elif method == "stream":
        found = dataclasses.replace(plan, why="asked for: the rows pass by in blocks")
    elif shared:
        found = dataclasses.replace(plan, method="steps", why="the processes add their sums in every step")
        reasons.append("several processes share the run, which takes method='steps' or 'gram'")
    else:
        if method in ("auto", "resident", "grid"):
            if backend == "cpu":
                found, reasons = _in_cache(plan, method)
            elif backend == "triton":
                found, reasons = _on_chip(plan, method, dtypes[0])
        if found is None and method in ("auto", "steps"):
            why = "; ".join(reasons) or ("asked for" if method == "steps" else "plain PyTorch, a step at a time")
            found = dataclasses.replace(plan, method="steps", why=why)
    if found is None or method not in ("auto", found.method):
        why = "; ".join(reasons) or f"the {backend} backend has no such kernel"
        raise ValueError(f"method={method!r} cannot do this run: {why}")
    return _with_cost(found, dtypes)


def _in_cache(plan: RunPlan, method: str) -> tuple[RunPlan | None, list[str]]:
    """On a CPU."""
    spec = plan.spec
    if method == "grid":
        return None, ["a grid of programs is for GPUs"]
    rows = spec.batch_size or spec.n
    if rows * (spec.parameter_rows + spec.m) <= _CACHE_NUMBERS:
        why = "mini-batches fit in the cache" if spec.batch_size else "the data fits in the cache"
        return dataclasses.replace(plan, method="resident", why=why + ": four library calls a step, nothing else"), []
    return None, ["the rows of a step do not fit in the cache twice: each is read where it lies"]


def _on_chip(plan: RunPlan, method: str, dtype: torch.dtype) -> tuple[RunPlan | None, list[str]]:
    """On a GPU: in one program's registers, or in those of many."""
    from ..kernels import run_configs

    spec, device, reasons = plan.spec, plan.device, []
    dtype = dtype if accumulator_dtype(dtype) is spec.dtype else spec.dtype  # of a float64 target all is float64
    shape = (spec.k, spec.m, dtype, device.architecture)
    if method != "grid":
        if spec.batch_size:
            config = run_configs.batches_config(spec.batch_size, *shape)
            why = "a mini-batch fits in one program, which gathers its rows: all steps in one launch, no barrier"
        else:
            config = run_configs.resident_config(spec.n, *shape)
            why = "the data fits in the registers of one program: all steps in one launch, no barrier"
        if config is not None:
            return dataclasses.replace(plan, method="resident", why=why, config=config, programs=1), []
        reasons.append("the rows of a step do not fit in one program's registers")
    if method != "resident":
        if spec.batch_size:
            reasons.append("mini-batches do not stay on the chip")
        elif device.name == "interpreter":
            reasons.append("the interpreter runs programs one after another, so they cannot meet at a barrier")
        elif (found := run_configs.grid_config(spec.n, *shape, device.sms)) is not None:
            config, programs = found
            why = (
                "the data fits in the registers of all multiprocessors: all steps in one cooperative launch, which meet at a "
                "barrier"
            )
            return dataclasses.replace(plan, method="grid", why=why, config=config, programs=programs), []
        else:
            reasons.append("the data does not fit in the registers of all multiprocessors: one fused launch a step")
    return None, reasons


def _with_cost(plan: RunPlan, dtypes: tuple[torch.dtype, torch.dtype]) -> RunPlan:
    spec = plan.spec
    rows = spec.batch_size or spec.n
    data = spec.n * (spec.k * dtypes[0].itemsize + spec.m * dtypes[1].itemsize)
    batch = rows * (spec.k * dtypes[0].itemsize + spec.m * dtypes[1].itemsize)
    size = spec.dtype.itemsize
    parameters = spec.parameter_rows * spec.m * size
    written = spec.steps * size + (spec.steps + 1) * parameters * spec.record + parameters
    read, flops = batch * spec.steps, 4 * rows * spec.k * spec.m * spec.steps
    seconds, path, workspace = None, "", 0
    if plan.method == "gram":
        workspace = 16 * (spec.k + spec.m) ** 2 + 32 * parameters // size * gram_chunk(spec)
        read, flops = data, 2 * spec.n * (spec.k + spec.m) ** 2 + 2 * spec.k**2 * spec.m * spec.steps
    elif plan.method in ("resident", "grid"):
        if not spec.batch_size:
            read = data
        if plan.device.kind == "cpu":  # targets, residual, and the rows once, or twice for a single output
            copies = 2 if spec.m == 1 and not spec.batch_size else 1
            workspace = rows * size * (2 * spec.m + copies * spec.parameter_rows)
        if plan.device.kind == "cuda":
            made = _compiled(plan, dtypes[0])
            seconds = made and made["predicted_step_seconds"]
    elif plan.backend == "reference":
        path = "stock PyTorch"
    elif rows:
        whole = plan.method == "steps" and not spec.batch_size
        dtype, target = dtypes if whole else (spec.dtype, spec.dtype)  # other rows are widened on their way
        wanted = Wanted(weight=True, bias=spec.intercept)
        step = plan_for(
            rows,
            spec.k,
            spec.m,
            dtype=dtype,
            target_dtype=target,
            wanted=wanted,
            device=plan.device,
            has_bias=spec.intercept,
        )
        path, read, flops = step.path, step.bytes_read * spec.steps, step.flops * spec.steps
        if plan.backend == "triton":
            path += f" ({update_in_words(step)})"
        workspace = step.workspace_bytes
        if step.floor_seconds is not None and whole:  # the others wait for the host, too
            seconds = step.floor_seconds + LAUNCH_SECONDS
    return dataclasses.replace(
        plan,
        bytes_read=read,
        bytes_written=written,
        flops=flops,
        workspace_bytes=workspace,
        predicted_step_seconds=seconds,
        step_path=path,
    )


def gram_chunk(spec: Spec) -> int:
    """Steps whose losses method "gram" works out together."""
    return max(1, min(256, spec.steps, _GRAM_BYTES // (8 * spec.parameter_rows * spec.m)))


def _compiled(plan: RunPlan, dtype: torch.dtype) -> dict | None:
    """Of the variant nearest to the kernel that does the run."""
    from ..kernels import resources

    spec = plan.spec
    kind, rows = ("batches", spec.batch_size) if spec.batch_size else (plan.method, spec.n)
    return resources.nearest_run(kind, plan.device.architecture, dtype, rows, spec.k, spec.m)
