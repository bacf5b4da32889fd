"""Compile candidates without running them, on all cores, and drop those whose compiled code already says that they lose."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
import triton.language as tl

from gdcore.devices import Device
from gdcore.kernels.compiled import CHIPS, Chip, Variant, compile_variant, occupancy
from gdcore.kernels.configs import MULTIPROCESSORS, Config, default_split, rows_per_tile, vector_part, vector_registers
from gdcore.kernels.one_pass_tall import workspace_columns
from gdcore.kernels.shipped import rows_variant, tile_variant
from gdcore.kernels.shipped_products import EVEN, FLAGS, product_variants
from gdcore.kernels.shipped_tall import tall_variant
from gdcore.tuned_format import PRODUCTS, RESOURCES, Entry

from .candidates import Job

FLOOR = 0.5  # of the default's loads in flight (of its occupancy, for a product): with less a kernel waits for memory
MATRIX_INSTRUCTIONS = {"HMMA", "HGMMA", "QGMMA", "UTCHMMA", "DMMA"}
OTHER_TYPES = {
    torch.float16: {"*bf16": "*fp16"},
    torch.float64: {"*fp32": "*fp64"},
}  # than those of the shipped variants
LENGTHS = {"N": "n", "K": "k", "M": "m"}
ROW_STRIDES = {  # of dense operands: the length of a row
    "stride_input_n": "k",
    "stride_weight_m": "k",
    "stride_out_n": "k",
    "stride_target_n": "m",
    "stride_residual_n": "m",
    "stride_squares_n": "k",  # never read: the launch hands X in its place
}

Figures = dict[str, Any]  # of kernels.compiled.Resources, or {"error": message}


def variant(job: Job, config: Config, arch: int) -> Variant:
    """A candidate's kernel as it is launched on contiguous tensors with a bias, of these sizes."""
    if job.family in PRODUCTS:
        return _product_variant(job, config, arch)
    family, residual = job.family.removeprefix("one_pass_"), job.wanted.input or job.wanted.target
    if family == "tall":
        like = tall_variant(arch, job.dtype, job.k, job.m, residual, job.input_precision)
        _, lead, _, stride = workspace_columns(job.k, job.m, config.block_m, True)
        blocks = {"BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "BLOCK_M": config.block_m}
        blocks |= {"LEAD": lead, "STRIDE": stride, "NUM_STAGES": config.num_stages}
    elif family == "rows":
        like = rows_variant(arch, job.dtype, job.k, job.m, residual)
        blocks = {"LANES": config.block_n}
    else:
        like = tile_variant(family, arch, job.dtype, job.k, job.m, residual, job.input_precision)
        blocks = {"BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
        if family == "vector":
            blocks |= {"NUM_STAGES": config.num_stages, "ROWS": vector_part(config, job.k, job.dtype)}
            like = dataclasses.replace(like, most_registers=vector_registers(config, job.k, job.dtype))
        else:
            blocks["BLOCK_M"] = config.block_m
    return dataclasses.replace(like, name=str(job), config=config, constants={**like.constants, **blocks})


def _product_variant(job: Job, config: Config, arch: int) -> Variant:
    kind = "half" if job.dtype.itemsize == 2 else "tf32" if job.input_precision == "tf32" else "float32"
    like = next(v for v in product_variants(arch) if v.name == f"{job.family} {kind}")
    types = OTHER_TYPES.get(job.dtype, {})
    arguments = {name: types.get(kind_of, kind_of) for name, kind_of in like.arguments.items()}
    parts = default_split(job.n, job.k, job.m, config, MULTIPROCESSORS[arch])
    even = EVEN[job.family]
    length = getattr(job, LENGTHS[even.removeprefix("EVEN_")])
    block = getattr(config, "block_" + even.removeprefix("EVEN_").lower())
    constants = {
        **like.constants,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_M": config.block_m,
        "ACCUMULATOR": tl.float64 if job.dtype is torch.float64 else tl.float32,
        even: length % block == 0,
    }
    if "WORKSPACE" in FLAGS[job.family]:
        constants["WORKSPACE"] = parts > 1
    value = {**LENGTHS, **ROW_STRIDES}
    aligned = tuple(a for a in like.divisible_by_16 if a not in value or getattr(job, value[a]) % 16 == 0)
    return dataclasses.replace(
        like, name=str(job), config=config, arguments=arguments, constants=constants, divisible_by_16=aligned
    )


def chip_of(device: Device) -> Chip:
    """What a multiprocessor of this device shares out: asked of the GPU where it is there, else known by architecture."""
    if not torch.cuda.is_available() or torch.cuda.get_device_name() != device.name:
        return CHIPS[device.architecture]
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return dataclasses.replace(
        CHIPS[device.architecture],
        shared_bytes=properties.shared_memory_per_multiprocessor,
        max_shared_bytes=properties.shared_memory_per_block_optin,
        max_warps=properties.max_threads_per_multi_processor // 32,
        registers=properties.regs_per_multiprocessor,
    )


def figures(job: Job, config: Config, arch: int, chip: Chip) -> Figures:
    """Registers, shared memory, occupancy, instructions of one candidate, or {"error": ...}; may run in a worker process."""
    try:
        made = dataclasses.asdict(compile_variant(variant(job, config, arch), arch))
    except Exception as error:  # a compiler may raise anything
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}
    shared = occupancy(chip, made["registers"], made["shared_bytes"], config.num_warps)
    return {**made, **dict(zip(("programs_per_sm", "occupancy", "limited_by"), shared, strict=True))}


class Compiler:
    """Worker processes that outlive a job: each takes seconds to start. With one worker everything is compiled here."""

    def __init__(self, device: Device, workers: int | None = None) -> None:
        self.arch, self.chip = device.architecture, chip_of(device)
        self.workers = workers or os.cpu_count() or 1
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def __call__(self, job: Job, configs: Sequence[Config]) -> Iterator[Figures]:
        """Figures of each candidate, in order."""
        if self.workers == 1:
            return (figures(job, config, self.arch, self.chip) for config in configs)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would inherit the GPU's context
            self._pool = concurrent.futures.ProcessPoolExecutor(self.workers, context, initializer=_leave_interrupts)
        tasks = [self._pool.submit(figures, job, config, self.arch, self.chip) for config in configs]
        return (task.result() for task in tasks)


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the parent alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def why_dropped(job: Job, config: Config, made: Figures, default: Config, shipped: Figures, chip: Chip) -> str | None:
    """Why a candidate cannot win, from its compiled code beside the shipped one's; None where it may."""
    if "error" in made:
        return f"does not compile: {made['error']}"
    if made["stack_bytes"] or {"LDL", "STL"} & made["instructions"].keys():
        return "spills registers"
    if made["shared_bytes"] > chip.max_shared_bytes:
        return f"needs {made['shared_bytes']:,} B of shared memory, there are {chip.max_shared_bytes:,}"
    if made["programs_per_sm"] < 1:
        return "does not fit on a multiprocessor"
    if "error" in shipped:
        return None
    if MATRIX_INSTRUCTIONS & shipped["instructions"].keys() and not MATRIX_INSTRUCTIONS & made["instructions"].keys():
        return "has no matrix instructions"
    if job.family in PRODUCTS:
        if made["occupancy"] < FLOOR * shipped["occupancy"]:
            return f"occupancy {made['occupancy']:.0%}, the default's is {shipped['occupancy']:.0%}"
        return None
    ours, theirs = in_flight(job, config, made), in_flight(job, default, shipped)
    if ours < FLOOR * theirs:
        return f"{ours / 1e3:.0f} kB of loads in flight, the default has {theirs / 1e3:.0f}"
    return None


def in_flight(job: Job, config: Config, made: Figures) -> int:
    """Bytes of X and Y that a multiprocessor has asked for and not yet got, in all its programs of a one-pass kernel."""
    rows = rows_per_tile(job.family.removeprefix("one_pass_"), config, job.k, job.dtype)
    tiles = made["programs_per_sm"] * max(config.num_stages - 1, 1)
    return tiles * rows * (job.k + job.m) * job.dtype.itemsize


def entry_of(job: Job, config: Config, made: Figures) -> Entry:
    """A candidate as the table would hold it."""
    return Entry(config, **{name: made[name] for name in RESOURCES}, variant=str(job))
