"""The kernels of whole runs in sizes that are common, and at their limits, as variants to compile and check (see shipped.py)."""

import torch

from .compiled import Variant
from .configs import MULTIPROCESSORS, Config, accumulator_dtype
from .run_batches import run_batches_kernel
from .run_configs import batches_config, grid_config, may_fuse, power_of_2, resident_config
from .run_grid import run_grid_kernel, sums_length
from .run_resident import run_resident_kernel

SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16

# (dtype, N, K, M, momentum, trajectory)
RESIDENT = (
    (F32, 100, 2, 1, False, False),
    (F32, 100, 2, 1, True, True),
    (F32, 1024, 16, 1, True, False),
    (F32, 512, 64, 1, True, True),
    (F32, 300, 5, 3, True, True),
    (F64, 442, 10, 1, True, True),
    (BF16, 100, 2, 1, True, False),
    (BF16, 512, 64, 1, True, True),
)
# (dtype, rows of a batch, K, M, momentum, trajectory)
BATCHES = (
    (F32, 64, 2, 1, False, False),
    (F32, 64, 64, 10, False, False),
    (F32, 256, 16, 1, True, False),
    (F64, 64, 16, 1, True, True),
    (BF16, 64, 64, 1, True, False),
)
# as RESIDENT
GRID = (
    (F32, 100_000, 16, 1, True, False),
    (F32, 1_000_000, 2, 1, True, False),
    (F32, 20_000, 5, 3, True, True),
    (BF16, 100_000, 16, 1, True, False),
)


def run_variant(
    kind: str,
    dtype: torch.dtype,
    n: int,
    k: int,
    m: int,
    momentum: bool,
    record: bool,
    config: Config,
    programs: int = 1,
) -> Variant:
    """One kernel as launched for contiguous tensors with 16-byte aligned storage, with an intercept."""
    state = "*" + SHORT[accumulator_dtype(dtype)]
    pointers = dict.fromkeys(("input_ptr", "target_ptr"), "*" + SHORT[dtype])
    pointers |= dict.fromkeys(("state_in_ptr", "state_out_ptr", "losses_ptr", "trajectory_ptr"), state)
    numbers = {"n_rows": "i32", "steps": "i32"} | dict.fromkeys(("lr", "momentum", "weight_decay"), "fp64")
    constants = {
        "K": k,
        "M": m,
        "stride_ym": 1,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "HAS_INTERCEPT": True,
        "HAS_MOMENTUM": momentum,
        "RECORD": record,
    }
    if m == 1:
        constants["stride_yn"] = 1
    else:
        numbers["stride_yn"] = "i32"
    if kind == "resident":
        constants["WHOLE"] = n == config.block_n
    elif kind == "batches":
        pointers["order_ptr"] = "*i64"
        numbers |= {"first_step": "i32", "batch_size": "i32"}
        constants |= {"stride_xn": 1, "stride_xk": 1, "UNIT_XN": k, "UNIT_XK": 1}
    else:
        pointers |= {"workspace_ptr": state, "counter_ptr": "*i64"}
        numbers["rows_each"] = "i32"
        constants |= {"BLOCK_P": power_of_2(programs), "LENGTH": sums_length(m, config.block_k)}
    ending = (" momentum" if momentum else "") + (" trajectory" if record else "")
    return Variant(
        name=f"run_{kind} {str(dtype).removeprefix('torch.')} N={n} K={k} M={m}{ending}",
        kernel={"resident": run_resident_kernel, "batches": run_batches_kernel, "grid": run_grid_kernel}[kind],
        arguments={**pointers, **numbers},
        constants=constants,
        config=config,
        vector_loads=kind != "batches" and k * dtype.itemsize % 16 == 0,
        divisible_by_16=tuple(pointers),
        fp_fusion=may_fuse(config, k, dtype),
    )


def run_variants(arch: int) -> list[Variant]:
    """Every selected size of the three kernels, in the configuration that the library takes."""
    found = []
    for dtype, n, k, m, momentum, record in RESIDENT:
        if config := resident_config(n, k, m, dtype, arch):  # on 100, 512 x 64 does not fit
            found.append(run_variant("resident", dtype, n, k, m, momentum, record, config))
    for dtype, rows, k, m, momentum, record in BATCHES:
        config = batches_config(rows, k, m, dtype, arch)
        found.append(run_variant("batches", dtype, rows, k, m, momentum, record, config))
    for dtype, n, k, m, momentum, record in GRID:
        if fits := grid_config(n, k, m, dtype, arch, MULTIPROCESSORS[arch]):  # on 80, a million rows do not
            found.append(run_variant("grid", dtype, n, k, m, momentum, record, *fits))
    return found
