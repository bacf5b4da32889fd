"""What ships of one_pass_tall: rows of its table as launched for dense tensors, and the launch behind it (see shipped.py)."""

import torch

from .compiled import Variant
from .configs import Config, accumulator_dtype, one_pass_config, tall_aligned
from .one_pass_tall import workspace_columns
from .one_pass_tall_kernel import one_pass_tall_kernel
from .reduce import SUM_WARPS, add_rows_kernel, wide_tile
from .step import add_rows_step_kernel

SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16

# (dtype, K, M, residual stored, input precision): each kind of operands where the tile changes, padded and in full, aligned
# and not. Rows of the table that are missing have no larger tile than one of these has: see tests/kernels/test_table.py.
TALL = (
    (BF16, 16, 512, False, "ieee"),
    (BF16, 32, 512, True, "ieee"),
    (BF16, 64, 512, True, "ieee"),
    (BF16, 128, 256, False, "ieee"),
    (BF16, 256, 512, False, "ieee"),
    (BF16, 248, 232, True, "ieee"),
    (BF16, 256, 64, True, "ieee"),
    (F16, 504, 32, True, "ieee"),
    (BF16, 15, 257, True, "ieee"),
    (BF16, 63, 257, True, "ieee"),
    (BF16, 127, 257, True, "ieee"),
    (BF16, 255, 257, True, "ieee"),
    (BF16, 511, 31, True, "ieee"),
    (F32, 60, 500, True, "tf32"),
    (F32, 128, 256, False, "tf32"),
    (F32, 256, 256, True, "tf32"),
    (F32, 63, 257, True, "tf32"),
    (F32, 127, 257, True, "tf32"),
    (F32, 255, 257, True, "tf32"),
    (F32, 64, 256, True, "tf32x3"),
    (F32, 63, 257, True, "tf32x3"),
    (F32, 16, 256, True, "ieee"),
    (F32, 32, 256, True, "ieee"),
    (F32, 64, 256, False, "ieee"),
    (F32, 124, 256, True, "ieee"),
    (F64, 128, 64, True, "ieee"),
)
# (parts of the rows, K, M) of the second launch
FINISH = ((33, 256, 256),)
STEP_FLOATS = dict.fromkeys(("lr", "mu", "undamped", "decay"), "fp64") | {"nesterov": "i32"}


def tall_variant(arch: int, dtype: torch.dtype, k: int, m: int, stored: bool, precision: str) -> Variant:
    """one_pass_tall as launched for contiguous tensors with 16-byte aligned storage."""
    config = one_pass_config("tall", arch, dtype, k, m, precision)
    aligned = tall_aligned(k, m, dtype)
    names = ("input_ptr", "weight_ptr", "target_ptr", "bias_ptr", "residual_ptr")
    pointers = {**dict.fromkeys(names, "*" + SHORT[dtype]), "sums_ptr": "*" + SHORT[accumulator_dtype(dtype)]}
    _, lead, _, stride = workspace_columns(k, m, config.block_m, True)
    units = dict.fromkeys((f"stride_{name}" for name in ("xn", "xk", "wm", "wk", "yn", "ym", "en", "em")), 1)
    ending = (f" {precision}" if precision != "ieee" else "") + " with residual" * stored
    return Variant(
        name=f"{'' if aligned else 'unaligned '}one_pass_tall {str(dtype).removeprefix('torch.')} K={k} M={m}{ending}",
        kernel=one_pass_tall_kernel,
        arguments={**pointers, "n_rows": "i32", "stride_b": "i32", "loss_scale": "fp64", "grad_scale": "fp64"},
        constants={
            **units,
            "K": k,
            "M": m,
            "UNIT_XN": k,
            "UNIT_XK": 1,
            "UNIT_WM": k,
            "UNIT_YN": m,
            "UNIT_EN": m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "BLOCK_M": config.block_m,
            "LEAD": lead,
            "STRIDE": stride,
            "HAS_BIAS": True,
            "WANT_GRADS": True,
            "STORE_RESIDUAL": stored,
            "INPUT_PRECISION": precision,
            "PTX": arch < 100,
            "NUM_STAGES": config.num_stages,
        },
        config=config,
        tensor_cores=dtype.itemsize == 2 or precision != "ieee",
        vector_loads=aligned,
        divisible_by_16=tuple(pointers),
    )


def finish_variant(parts: int, k: int, m: int, block_m: int = 64, step: bool = False) -> Variant:
    """The launch that adds the parts' sums, and the one that updates with them."""
    columns, lead, losses, _ = workspace_columns(k, m, block_m, True)
    tile_n, tile_m = wide_tile(parts, columns)
    config = Config(block_n=tile_n, block_m=tile_m, num_warps=SUM_WARPS)
    constants = {"LEAD": lead, "LOSSES": losses, "UNIT": 4, "BLOCK_N": tile_n, "BLOCK_M": tile_m}
    if not step:
        pointers = dict.fromkeys(("partials_ptr", "out_ptr"), "*fp32")
        arguments = {**pointers, **dict.fromkeys(("n_rows", "stride", "n_columns"), "i32")}
        name, kernel = f"tall add_rows float32 {parts} parts K={k} M={m}", add_rows_kernel
    else:
        written = ("loss_ptr", "weight_ptr", "bias_ptr", "momentum_ptr", "bias_momentum_ptr")
        pointers = {"partials_ptr": "*fp32", **dict.fromkeys(written, "*bf16")}
        sizes = ("n_partials", "stride", "stride_wm", "stride_wk", "stride_b", "K", "M")
        arguments = {**pointers, **dict.fromkeys(sizes, "i32"), **STEP_FLOATS}
        constants["lr_ptr"] = None
        name, kernel = f"tall step add_rows float32 {parts} parts K={k} M={m} with momentum", add_rows_step_kernel
    return Variant(
        name=name,
        kernel=kernel,
        arguments=arguments,
        constants=constants,
        config=config,
        vector_loads=True,
        divisible_by_16=tuple(pointers),
    )


def tall_variants(arch: int) -> list[Variant]:
    """Every selected row of the table, and the second launches."""
    found = [tall_variant(arch, *shape) for shape in TALL]
    return found + [finish_variant(*shape, step=step) for shape in FINISH for step in (False, True)]
