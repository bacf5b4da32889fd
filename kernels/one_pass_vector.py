"""One pass for few outputs: each output is a matrix-vector product, done with multiplications and row sums.

    E = X Wᵀ + b − Y,    loss = s_l Σ E²,    dW = s_g EᵀX,    db = s_g Σₙ E          K <= 256, M <= 4, any strides

X and Y are read once, W and b once a program: N (K + M) elements in, N M out if the residual is stored, about 4 N K M
FLOPs: at M <= 4 at most 4 FLOPs a byte, far from what tensor cores need to pay.

A tile is BLOCK_N whole rows of X, in blocks [BLOCK_N, BLOCK_K] of what one warp loads at once (512 bytes of a row) or the
next power of two of a smaller K. It stays in registers for both products: e = Σₖ x w needs all of a row, dW = Σₙ e x then
uses the same registers. A row lies in one warp, so the sum over k is a few shuffles, no exchange between warps. dW is
accumulated elementwise, a tile for each output, and summed over rows once at the end. The grid is persistent; a program
takes tiles p, p + programs, ... Whole tiles are read without a mask over rows, the last, partial one with it.

Rows that do not begin at multiples of 16 bytes can only be read by narrow loads, 4 bytes for K = 37 in float32. Then a warp
asks for four rows at a time, 8 lanes each, and BLOCK_K is what those load at once: a row costs a quarter of the shuffles,
and few lanes are padding. (One row a warp, in the tiles above, would even be shared by two warps.) A tile is several parts
of ROWS rows, one for each group of lanes, all of them loaded ahead and added to the same sums: bytes in flight without
copies to shared memory, which of 4 bytes are slow and of 2 there are none.
"""

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .configs import Config, accumulator_dtype, vector_part, vector_registers
from .launch import launch
from .reduce import add_rows
from .tape import empty


@triton.jit
def add_tile(
    sums,  # loss [BLOCK_N]; then, if WANT_GRADS, M times db [BLOCK_N] and M BLOCKS times dW [BLOCK_N, BLOCK_K]
    weight,  # M BLOCKS vectors [BLOCK_K]
    bias,  # M scalars
    input_ptrs,  # [BLOCK_N, BLOCK_K], of block 0
    target_ptrs,  # [BLOCK_N], of output 0
    residual_ptrs,
    columns,  # [BLOCK_K], of block 0
    step_xk,
    step_ym,
    step_em,
    mask_n,
    K: tl.constexpr,
    M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCKS: tl.constexpr,
    MASK_N: tl.constexpr,
    WANT_GRADS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
):
    """The sums after one more tile."""
    dtype: tl.constexpr = sums[0].dtype
    x = ()
    for c in tl.static_range(BLOCKS):
        ptrs = input_ptrs + c * BLOCK_K * step_xk
        if MASK_N:
            mask = mask_n[:, None] & (c * BLOCK_K + columns < K)[None, :]
            x += (tl.load(ptrs, mask=mask, other=0.0).to(dtype),)
        elif (c + 1) * BLOCK_K > K:
            x += (tl.load(ptrs, mask=(c * BLOCK_K + columns < K)[None, :], other=0.0).to(dtype),)
        else:
            x += (tl.load(ptrs).to(dtype),)
    loss = sums[0]
    grad_bias = ()
    grad_weight = ()
    for m in tl.static_range(M):
        if MASK_N:
            y = tl.load(target_ptrs + m * step_ym, mask=mask_n, other=0.0).to(dtype)
        else:
            y = tl.load(target_ptrs + m * step_ym).to(dtype)
        products = x[0] * weight[m * BLOCKS][None, :]
        for c in tl.static_range(1, BLOCKS):
            products += x[c] * weight[m * BLOCKS + c][None, :]
        e = tl.sum(products, axis=1) + bias[m] - y
        if MASK_N:
            e = tl.where(mask_n, e, 0.0)
        if STORE_RESIDUAL:
            tl.store(residual_ptrs + m * step_em, e, mask=mask_n if MASK_N else None)
        loss += e * e
        if WANT_GRADS:
            grad_bias += (sums[1 + m] + e,)
            for c in tl.static_range(BLOCKS):
                grad_weight += (sums[1 + M + m * BLOCKS + c] + x[c] * e[:, None],)
    new = (loss,)
    new += grad_bias
    new += grad_weight
    return new


@triton.jit(do_not_specialize=["n_rows", "stride_wm", "stride_wk", "stride_b"])
def one_pass_vector_kernel(
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
    ROWS: tl.constexpr,  # of a part
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_GRADS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    LENGTH: tl.constexpr = 1 + M + M * K if WANT_GRADS else 1
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_K)
    # Strides are 64 bits, inside a tile too: X may be a transpose, with N elements from one k to the next.
    step_wm = tl.cast(stride_wm, tl.int64)
    step_wk = tl.cast(stride_wk, tl.int64)
    step_ym = tl.cast(stride_ym, tl.int64)
    step_em = tl.cast(stride_em, tl.int64)
    weight = ()
    bias = ()
    sums = (tl.zeros((ROWS,), dtype=dtype),)
    for m in tl.static_range(M):
        for c in tl.static_range(BLOCKS):
            k = c * BLOCK_K + columns
            weight += (tl.load(weight_ptr + m * step_wm + k * step_wk, mask=k < K, other=0.0).to(dtype),)
        if HAS_BIAS:
            bias += (tl.load(bias_ptr + m * stride_b).to(dtype),)
        else:
            bias += (0.0,)
        if WANT_GRADS:
            sums += (tl.zeros((ROWS,), dtype=dtype),)
    if WANT_GRADS:
        for _ in tl.static_range(M * BLOCKS):
            sums += (tl.zeros((ROWS, BLOCK_K), dtype=dtype),)

    step_xn = tl.cast(stride_xn, tl.int64) * UNIT_XN
    step_xk = tl.cast(stride_xk, tl.int64) * UNIT_XK
    offsets_x = rows[:, None] * step_xn + columns[None, :] * step_xk
    offsets_y = rows * tl.cast(stride_yn, tl.int64)
    offsets_e = rows * tl.cast(stride_en, tl.int64)

    n_tiles = n_rows // BLOCK_N
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        for r in tl.static_range(0, BLOCK_N, ROWS):
            first = tl.cast(tile, tl.int64) * BLOCK_N + r
            sums = add_tile(
                sums, weight, bias,
                input_ptr + first * step_xn + offsets_x,
                target_ptr + first * stride_yn + offsets_y,
                residual_ptr + first * stride_en + offsets_e,
                columns, step_xk, step_ym, step_em, rows, K, M, BLOCK_K, BLOCKS, False, WANT_GRADS, STORE_RESIDUAL,
            )  # fmt: skip

    # The partial tile goes to the program whose turn it is, part by part.
    mine = (tl.program_id(0) == n_tiles % tl.num_programs(0)) & (n_tiles * BLOCK_N < n_rows)
    rounds = mine.to(tl.int32)
    if BLOCK_N > ROWS:
        rounds *= tl.cdiv(n_rows - n_tiles * BLOCK_N, ROWS).to(tl.int32)
    for i in range(rounds):
        first = tl.cast(n_tiles, tl.int64) * BLOCK_N
        if BLOCK_N > ROWS:
            first += i * ROWS
        sums = add_tile(
            sums, weight, bias,
            input_ptr + first * step_xn + offsets_x,
            target_ptr + first * stride_yn + offsets_y,
            residual_ptr + first * stride_en + offsets_e,
            columns, step_xk, step_ym, step_em, rows < n_rows - first,
            K, M, BLOCK_K, BLOCKS, True, WANT_GRADS, STORE_RESIDUAL,
        )  # fmt: skip

    sums_ptr += tl.program_id(0) * LENGTH
    tl.store(sums_ptr, tl.sum(sums[0], axis=0) * loss_scale)
    if WANT_GRADS:
        for m in tl.static_range(M):
            tl.store(sums_ptr + 1 + m, tl.sum(sums[1 + m], axis=0) * grad_scale)
            for c in tl.static_range(BLOCKS):
                k = c * BLOCK_K + columns
                grad_weight = tl.sum(sums[1 + M + m * BLOCKS + c], axis=0) * grad_scale
                tl.store(sums_ptr + 1 + M + m * K + k, grad_weight, mask=k < K)


def stride_units(input: Tensor) -> tuple[int, int]:
    """Factors of X's strides that the compiler gets to know: K if the rows are packed, else what lets it align vectors.

    The rest of each stride stays a run-time number, so that another N or another view seldom means another compilation.
    """
    stride_n, stride_k = input.stride()
    return input.shape[1] if stride_n == input.shape[1] else math.gcd(stride_n, 16), math.gcd(stride_k, 16)


def vector_arguments(
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
        "ROWS": vector_part(config, k, input.dtype),
        "BLOCK_K": config.block_k,
        "HAS_BIAS": bias is not None,
        "WANT_GRADS": want_grads,
        "STORE_RESIDUAL": residual is not None,
        "NUM_STAGES": config.num_stages,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "maxnreg": vector_registers(config, k, input.dtype),
        "enable_fp_fusion": True,
    }


def one_pass_vector(
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
    """Loss, bias gradient and weight gradient from one read of X and Y; for K <= 256, M <= 4, any strides.

    Parameters
    ----------
    input, weight, target, bias
        float64, float32, float16 or bfloat16, any strides.
    config : Config
        `block_n` rows a tile, in blocks of `block_k` columns.
    programs : int
        Size of the persistent grid. With 1, the result is written by the one launch.
    loss_scale, grad_scale : float
        What the sum of squares and the two gradients are multiplied by.
    want_grads : bool
        If False, only the loss is computed.
    residual : Tensor or None
        If given, receives E, unscaled, in its own dtype; any strides. The only argument that is written.
    input_precision : str
        Unused: there is no tensor-core product here.

    Returns
    -------
    Tensor, shape (1 + M + M K,), or (1,) without gradients
        [loss, grad_bias, grad_weight], float32 (float64 for float64). Bitwise reproducible for one `programs`.
    """
    m, k = weight.shape
    length = 1 + m + m * k if want_grads else 1
    shape = length if programs == 1 else (programs, length)
    sums = empty(shape, dtype=accumulator_dtype(input.dtype), device=input.device)
    arguments, options = vector_arguments(
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
    launch(one_pass_vector_kernel, (programs,), *arguments, **options)
    return sums if programs == 1 else add_rows(sums)
