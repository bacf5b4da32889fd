"""One pass for a few outputs: both products on the tensor cores, from one copy of a row tile.

    E = X Wᵀ + b − Y,    loss = s_l Σ E²,    dW = s_g EᵀX,    db = s_g Σₙ E          K <= 256, M <= 16, any strides

X and Y are read once, W and b once a program: N (K + M) elements in, N M out if the residual is stored. 4 N K M FLOPs,
which is up to 32 a byte for 2-byte elements: too many for multiplications and row sums, few for tensor cores, so
bandwidth counts here too. float64 and IEEE float32 have no fast matrix unit for this and are bound by arithmetic.

A tile is [BLOCK_N, BLOCK_K] with all of K, so that S = X_t Wᵀ is complete after one product and dW += EᵀX_t can use the
same tile. M is padded to 16, the least that a matrix instruction takes; padded outputs are kept out of E. W stays on
chip, dW [16, BLOCK_K] in registers. The grid is persistent; a program takes tiles p, p + programs, ..., with the loads
of the next ones in flight.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import dot
from .configs import Config, accumulator_dtype
from .launch import launch
from .one_pass_vector import stride_units
from .reduce import add_rows
from .tape import empty


@triton.jit(do_not_specialize=["n_rows", "stride_wm", "stride_wk", "stride_b"])
def one_pass_dot_kernel(
    input_ptr,  # (N, K)
    weight_ptr,  # (M, K)
    target_ptr,  # (N, M)
    bias_ptr,  # (M,), read if HAS_BIAS
    residual_ptr,  # (N, M), written if STORE_RESIDUAL
    sums_ptr,  # (programs, LENGTH): one row for each program
    n_rows,
    stride_xn,  # in units of UNIT_XN elements
    stride_xk,  # in units of UNIT_XK elements
    stride_wm,
    stride_wk,
    stride_yn,
    stride_ym,
    stride_b,
    stride_en,
    stride_em,
    loss_scale: tl.float64,
    grad_scale: tl.float64,
    K: tl.constexpr,
    M: tl.constexpr,
    UNIT_XN: tl.constexpr,
    UNIT_XK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_GRADS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    LENGTH: tl.constexpr = 1 + M + M * K if WANT_GRADS else 1
    rows = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    outputs = tl.arange(0, BLOCK_M)
    mask_k = columns < K
    mask_m = outputs < M
    offsets_w = columns[:, None] * tl.cast(stride_wk, tl.int64) + outputs[None, :] * tl.cast(stride_wm, tl.int64)
    weight = tl.load(weight_ptr + offsets_w, mask=mask_k[:, None] & mask_m[None, :], other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + outputs * stride_b, mask=mask_m, other=0.0).to(dtype)

    # Offsets inside a tile are 64 bits too: X may be a transpose, with N elements from one k to the next.
    step_x = tl.cast(stride_xn, tl.int64) * UNIT_XN
    offsets_x = rows[:, None] * step_x + columns[None, :] * (tl.cast(stride_xk, tl.int64) * UNIT_XK)
    offsets_y = rows[:, None] * tl.cast(stride_yn, tl.int64) + outputs[None, :] * tl.cast(stride_ym, tl.int64)
    offsets_e = rows[:, None] * tl.cast(stride_en, tl.int64) + outputs[None, :] * tl.cast(stride_em, tl.int64)
    squares = tl.zeros((BLOCK_N, BLOCK_M), dtype=dtype)
    errors = tl.zeros((BLOCK_N, BLOCK_M), dtype=dtype)
    grad_weight = tl.zeros((BLOCK_M, BLOCK_K), dtype=dtype)
    n_tiles = (n_rows - 1) // BLOCK_N + 1
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * BLOCK_N
        mask_n = rows < n_rows - first
        mask_e = mask_n[:, None] & mask_m[None, :]
        x = tl.load(input_ptr + first * step_x + offsets_x, mask=mask_n[:, None] & mask_k[None, :], other=0.0)
        y = tl.load(target_ptr + first * stride_yn + offsets_y, mask=mask_e, other=0.0).to(dtype)
        e = dot(x, weight, tl.zeros((BLOCK_N, BLOCK_M), dtype=dtype), INPUT_PRECISION)
        if HAS_BIAS:
            e += bias[None, :]
        e = tl.where(mask_e, e - y, 0.0)
        if STORE_RESIDUAL:
            tl.store(residual_ptr + first * stride_en + offsets_e, e, mask=mask_e)
        squares += e * e
        if WANT_GRADS:
            errors += e
            grad_weight = dot(tl.trans(e.to(x.dtype)), x, grad_weight, INPUT_PRECISION)

    sums_ptr += tl.program_id(0) * LENGTH
    tl.store(sums_ptr, tl.sum(tl.sum(squares, axis=1), axis=0) * loss_scale)
    if WANT_GRADS:
        tl.store(sums_ptr + 1 + outputs, tl.sum(errors, axis=0) * grad_scale, mask=mask_m)
        offsets = outputs[:, None] * K + columns[None, :]
        mask = mask_m[:, None] & mask_k[None, :]
        tl.store(sums_ptr + 1 + M + offsets, grad_weight * grad_scale, mask=mask)


def dot_arguments(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    sums: Tensor,  # (programs, LENGTH), written
    *,
    config: Config,
    loss_scale: float,
    grad_scale: float,
    want_grads: bool,
    input_precision: str = "ieee",
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the kernel is launched with: its run-time arguments in order, the others by name."""
    n_rows, k = input.shape
    m = weight.shape[0]
    stride_xn, stride_xk = input.stride()
    unit_xn, unit_xk = stride_units(input)
    written = target if residual is None else residual
    return (
        input,
        weight,
        target,
        input if bias is None else bias,
        written,
        sums,
        n_rows,
        stride_xn // unit_xn,
        stride_xk // unit_xk,
        weight.stride(0),
        weight.stride(1),
        target.stride(0),
        target.stride(1),
        0 if bias is None else bias.stride(0),
        written.stride(0),
        written.stride(1),
        loss_scale,
        grad_scale,
    ), {
        "K": k,
        "M": m,
        "UNIT_XN": unit_xn,
        "UNIT_XK": unit_xk,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_M": config.block_m,
        "HAS_BIAS": bias is not None,
        "WANT_GRADS": want_grads,
        "STORE_RESIDUAL": residual is not None,
        "INPUT_PRECISION": input_precision,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }


def one_pass_dot(
    input: Tensor,  # (N, K)
    weight: Tensor,  # (M, K)
    target: Tensor,  # (N, M)
    bias: Tensor | None,  # (M,)
    *,
    config: Config,
    programs: int,
    loss_scale: float,
    grad_scale: float,
    want_grads: bool,
    residual: Tensor | None,  # (N, M), written
    input_precision: str = "ieee",
) -> Tensor:
    """Loss, bias gradient and weight gradient from one read of X and Y; for K <= 256, M <= 16, any strides.

    Parameters
    ----------
    input, weight, target, bias
        float64, float32, float16 or bfloat16, any strides.
    config : Config
        `block_n` rows a tile, `block_k` >= max(K, 16) columns, `block_m` = 16.
    programs : int
        Size of the persistent grid. With 1, the result is written by the one launch.
    loss_scale, grad_scale : float
        What the sum of squares and the two gradients are multiplied by.
    want_grads : bool
        If False, only the loss is computed.
    residual : Tensor or None
        If given, receives E, unscaled, in its own dtype; any strides. The only argument that is written.
    input_precision : {"ieee", "tf32"}
        Of the float32 products.

    Returns
    -------
    Tensor, shape (1 + M + M K,), or (1,) without gradients
        [loss, grad_bias, grad_weight], float32 (float64 for float64). Bitwise reproducible for one `programs`.
    """
    m, k = weight.shape
    length = 1 + m + m * k if want_grads else 1
    shape = length if programs == 1 else (programs, length)
    sums = empty(shape, dtype=accumulator_dtype(input.dtype), device=input.device)
    arguments, options = dot_arguments(
        input,
        weight,
        target,
        bias,
        residual,
        sums,
        config=config,
        loss_scale=loss_scale,
        grad_scale=grad_scale,
        want_grads=want_grads,
        input_precision=input_precision,
    )
    # A persistent grid: program p takes tiles p, p + programs, ...
    launch(one_pass_dot_kernel, (programs,), *arguments, **options)
    return sums if programs == 1 else add_rows(sums)
