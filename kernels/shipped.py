"""Every kernel configuration that ships, as variants that can be compiled and checked with no GPU.

The one-pass kernels are specialised to K and M, so a selection stands for them: every family, element size and regime
of the configuration table, with the flags that take most registers.
"""

import math

import torch

from .compiled import Variant
from .configs import Config, accumulator_dtype, one_pass_config, rows_group, vector_part, vector_registers
from .one_pass_dot import one_pass_dot_kernel
from .one_pass_rows import SUMS_AT_ONCE, one_pass_rows_kernel, vector_for
from .one_pass_vector import one_pass_vector_kernel
from .reduce import SUM_WARPS, add_rows_kernel, reduce_tile
from .shipped_products import product_variants
from .shipped_runs import run_variants
from .shipped_sgd import sgd_variants
from .shipped_step import step_variants
from .shipped_tall import tall_variants

SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

# (dtype, K, M, residual stored)
ROWS = (
    (torch.float64, 2, 1, False),
    (torch.float64, 15, 2, False),
    (torch.float32, 1, 1, False),
    (torch.float32, 2, 1, False),
    (torch.float32, 2, 1, True),
    (torch.float32, 3, 1, False),
    (torch.float32, 5, 1, False),
    (torch.float32, 8, 4, True),
    (torch.float32, 15, 2, True),
    (torch.float32, 16, 1, False),
    (torch.float16, 5, 1, False),
    (torch.bfloat16, 2, 1, False),
    (torch.bfloat16, 3, 1, True),
    (torch.bfloat16, 16, 1, False),
)
VECTOR = (
    (torch.float64, 64, 1, False),
    (torch.float64, 256, 4, True),
    (torch.float32, 3, 1, False),
    (torch.float32, 64, 1, False),
    (torch.float32, 100, 1, False),
    (torch.float32, 256, 1, False),
    (torch.float32, 256, 4, True),
    (torch.float32, 100, 2, True),
    (torch.float16, 96, 2, False),
    (torch.bfloat16, 64, 1, False),
    (torch.bfloat16, 256, 4, True),
    # Rows that do not begin at multiples of 16 bytes.
    (torch.float64, 37, 3, False),
    (torch.float64, 255, 4, True),
    (torch.float32, 37, 3, False),
    (torch.float32, 63, 1, True),
    (torch.float32, 255, 1, False),
    (torch.float32, 255, 4, True),
    (torch.float16, 100, 2, False),
    (torch.bfloat16, 65, 3, True),
    (torch.bfloat16, 101, 2, False),
    (torch.bfloat16, 255, 4, False),
)
# (dtype, K, residual stored, input precision), all with M = 16
DOT = (
    (torch.float64, 16, False, "ieee"),
    (torch.float64, 256, True, "ieee"),
    (torch.float32, 16, False, "ieee"),
    (torch.float32, 32, True, "ieee"),
    (torch.float32, 100, False, "ieee"),
    (torch.float32, 256, True, "ieee"),
    (torch.float32, 256, True, "tf32"),
    (torch.float16, 100, False, "ieee"),
    (torch.bfloat16, 16, False, "ieee"),
    (torch.bfloat16, 32, True, "ieee"),
    (torch.bfloat16, 256, True, "ieee"),
)


def pointers(dtype: torch.dtype) -> dict[str, str]:
    """The pointer arguments that the three kernels share, for inputs and residual of one dtype."""
    names = ("input_ptr", "weight_ptr", "target_ptr", "bias_ptr", "residual_ptr")
    return {**dict.fromkeys(names, "*" + SHORT[dtype]), "sums_ptr": "*" + SHORT[accumulator_dtype(dtype)]}


def title(family: str, dtype: torch.dtype, k: int, m: int, store_residual: bool, precision: str = "ieee") -> str:
    """The variant's name."""
    ending = (" tf32" if precision == "tf32" else "") + (" with residual" if store_residual else "")
    return f"one_pass_{family} {str(dtype).removeprefix('torch.')} K={k} M={m}{ending}"


def rows_variant(arch: int, dtype: torch.dtype, k: int, m: int, store_residual: bool) -> Variant:
    """one_pass_rows as launched for contiguous tensors with 16-byte aligned storage."""
    config = one_pass_config("rows", arch, dtype, k, m)
    rows, vector_x = rows_group(k, dtype.itemsize)
    integers = dict.fromkeys(("n_rows", "stride_wm", "stride_wk", "stride_b"), "i32")
    return Variant(
        name=title("rows", dtype, k, m, store_residual),
        kernel=one_pass_rows_kernel,
        arguments={**pointers(dtype), **integers, "loss_scale": "fp64", "grad_scale": "fp64"},
        constants={
            "K": k,
            "M": m,
            "ROWS": rows,
            "LANES": config.block_n,
            "VECTOR_X": vector_x,
            "VECTOR_Y": vector_for(rows * m, dtype.itemsize),
            "VECTOR_E": vector_for(rows * m, dtype.itemsize),
            "HAS_BIAS": True,
            "WANT_GRADS": True,
            "STORE_RESIDUAL": store_residual,
            "SUMS_AT_ONCE": SUMS_AT_ONCE,
        },
        config=config,
        vector_loads=vector_x * dtype.itemsize == 16,
        divisible_by_16=tuple(pointers(dtype)),
    )


def tile_variant(
    family: str, arch: int, dtype: torch.dtype, k: int, m: int, store_residual: bool, precision: str = "ieee"
) -> Variant:
    """one_pass_vector or one_pass_dot as launched for contiguous tensors with 16-byte aligned storage."""
    config = one_pass_config(family, arch, dtype, k, m)
    integers = ["n_rows", "stride_wm", "stride_wk", "stride_b"]
    constants = {
        "K": k,
        "M": m,
        "stride_xn": 1,
        "stride_xk": 1,
        "stride_ym": 1,
        "stride_em": 1,
        "UNIT_XN": k,
        "UNIT_XK": 1,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "HAS_BIAS": True,
        "WANT_GRADS": True,
        "STORE_RESIDUAL": store_residual,
    }
    if m == 1:
        constants |= {"stride_yn": 1, "stride_en": 1}
    else:
        integers += ["stride_yn", "stride_en"]
    if family == "vector":
        constants |= {"NUM_STAGES": config.num_stages, "ROWS": vector_part(config, k, dtype)}
    else:
        constants |= {"BLOCK_M": config.block_m, "INPUT_PRECISION": precision}
    return Variant(
        name=title(family, dtype, k, m, store_residual, precision),
        kernel=one_pass_vector_kernel if family == "vector" else one_pass_dot_kernel,
        arguments={
            **pointers(dtype),
            **dict.fromkeys(integers, "i32"),
            "loss_scale": "fp64",
            "grad_scale": "fp64",
        },
        constants=constants,
        config=config,
        tensor_cores=family == "dot" and (dtype.itemsize == 2 or precision == "tf32"),
        vector_loads=k * dtype.itemsize % 16 == 0,
        most_registers=vector_registers(config, k, dtype) if family == "vector" else None,
        divisible_by_16=tuple(pointers(dtype)),
    )


def reduce_variant(dtype: torch.dtype, columns: int) -> Variant:
    """The second stage of the ordered sums."""
    block_n, block_m = reduce_tile(columns)
    return Variant(
        name=f"add_rows {str(dtype).removeprefix('torch.')} {columns} columns",
        kernel=add_rows_kernel,
        arguments={
            "partials_ptr": "*" + SHORT[dtype],
            "out_ptr": "*" + SHORT[dtype],
            "n_rows": "i32",
            "stride": "i32",
            "n_columns": "i32",
        },
        constants={"LEAD": 1, "LOSSES": 1, "UNIT": math.gcd(columns, 4), "BLOCK_N": block_n, "BLOCK_M": block_m},
        config=Config(block_n=block_n, block_m=block_m, num_warps=SUM_WARPS),
        divisible_by_16=("partials_ptr", "out_ptr"),
    )


def variants(arch: int) -> list[Variant]:
    """Everything that ships for an architecture: one-pass kernels, products, the optimizer's kernels, whole steps."""
    one_pass = [rows_variant(arch, *shape) for shape in ROWS]
    one_pass += [tile_variant("vector", arch, *shape) for shape in VECTOR]
    one_pass += [tile_variant("dot", arch, dtype, k, 16, stored, precision) for dtype, k, stored, precision in DOT]
    one_pass += [reduce_variant(torch.float32, 4), reduce_variant(torch.float64, 4112)]
    one_pass += tall_variants(arch)
    return one_pass + product_variants(arch) + run_variants(arch) + sgd_variants() + step_variants(arch)
