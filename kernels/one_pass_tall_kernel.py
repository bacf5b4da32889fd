"""The device code of one_pass_tall: both products of a row tile from one copy of it; see one_pass_tall.py for the why."""

import triton
import triton.language as tl

from .common import INTERPRET, dot, narrow


@triton.jit
def formed_here(values, PTX: tl.constexpr):
    """The values, through an instruction that the compilers neither look through nor move across a matrix product.

    Triton else plans the copies of Y for what Eᵀ is used as, one number at a time and so not asynchronously; and what
    starts an accumulator may sink between matrix instructions, which then are waited for one by one.
    """
    if PTX and not INTERPRET and values.dtype == tl.float32:
        values = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [values], tl.float32, is_pure=False, pack=1)
    return values


@triton.jit(do_not_specialize=["n_rows", "stride_wm", "stride_wk", "stride_b"])
def one_pass_tall_kernel(
    input_ptr,  # (N, K)
    weight_ptr,  # (M, K)
    target_ptr,  # (N, M)
    bias_ptr,  # (M,), read if HAS_BIAS
    residual_ptr,  # (N, M), written if STORE_RESIDUAL
    sums_ptr,  # (parts, STRIDE): LEAD columns, with a loss of each block, then db, then dW
    n_rows,
    stride_xn,  # in units of UNIT_XN elements
    stride_xk,  # in units of UNIT_XK elements
    stride_wm,  # in units of UNIT_WM elements
    stride_wk,
    stride_yn,  # in units of UNIT_YN elements
    stride_ym,
    stride_b,
    stride_en,  # in units of UNIT_EN elements
    stride_em,
    loss_scale: tl.float64,
    grad_scale: tl.float64,
    K: tl.constexpr,
    M: tl.constexpr,
    UNIT_XN: tl.constexpr,
    UNIT_XK: tl.constexpr,
    UNIT_WM: tl.constexpr,
    UNIT_YN: tl.constexpr,
    UNIT_EN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LEAD: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_GRADS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    PTX: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    block = tl.program_id(0) % BLOCKS
    part = tl.program_id(0) // BLOCKS
    parts = tl.num_programs(0) // BLOCKS
    rows = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    outputs = block * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_k = columns < K
    mask_m = outputs < M
    mask_w = mask_m[:, None] & mask_k[None, :]
    step_w = tl.cast(stride_wm, tl.int64) * UNIT_WM
    offsets_w = outputs[:, None] * step_w + columns[None, :] * tl.cast(stride_wk, tl.int64)
    if K == BLOCK_K and M % BLOCK_M == 0:
        weight = tl.load(weight_ptr + offsets_w)
    else:
        weight = tl.load(weight_ptr + offsets_w, mask=mask_w, other=0.0)
    bias = tl.zeros((BLOCK_M,), dtype=dtype)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + outputs * tl.cast(stride_b, tl.int64), mask=mask_m, other=0.0).to(dtype)

    # Offsets inside a tile are 64 bits too: X may be a transpose, with N elements from one k to the next.
    step_x = tl.cast(stride_xn, tl.int64) * UNIT_XN
    step_y = tl.cast(stride_yn, tl.int64) * UNIT_YN
    step_e = tl.cast(stride_en, tl.int64) * UNIT_EN
    offsets_x = rows[:, None] * step_x + columns[None, :] * (tl.cast(stride_xk, tl.int64) * UNIT_XK)
    offsets_y = rows[:, None] * step_y + outputs[None, :] * tl.cast(stride_ym, tl.int64)
    offsets_e = rows[None, :] * step_e + outputs[:, None] * tl.cast(stride_em, tl.int64)
    squares = tl.zeros((BLOCK_M,), dtype=dtype)
    errors = tl.zeros((BLOCK_M,), dtype=dtype)
    grad_weight = tl.zeros((BLOCK_M, BLOCK_K), dtype=dtype)
    for start_n in tl.range(part * BLOCK_N, n_rows, parts * BLOCK_N, num_stages=NUM_STAGES):
        first = tl.cast(start_n, tl.int64)
        mask_n = rows < n_rows - start_n
        x_ptrs = input_ptr + first * step_x + offsets_x
        y_ptrs = target_ptr + first * step_y + offsets_y
        if K == BLOCK_K:
            x = tl.load(x_ptrs, mask=mask_n[:, None], other=0.0)
        else:
            x = tl.load(x_ptrs, mask=mask_n[:, None] & mask_k[None, :], other=0.0)
        if M % BLOCK_M == 0:
            y = tl.load(y_ptrs, mask=mask_n[:, None], other=0.0)
        else:
            y = tl.load(y_ptrs, mask=mask_n[:, None] & mask_m[None, :], other=0.0)
        start = bias[:, None] - tl.trans(y).to(dtype)
        e = dot(weight, tl.trans(x), formed_here(start, PTX), INPUT_PRECISION)
        e = tl.where(mask_n[None, :], e, 0.0)
        if STORE_RESIDUAL:
            stored = narrow(e, residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + first * step_e + offsets_e, stored, mask=mask_m[:, None] & mask_n[None, :])
        squares += tl.sum(e * e, axis=1)
        if WANT_GRADS:
            errors += tl.sum(e, axis=1)
            grad_weight = dot(narrow(e, x.dtype), x, grad_weight, INPUT_PRECISION)

    sums_ptr += part.to(tl.int64) * STRIDE
    loss = tl.sum(tl.where(mask_m, squares, 0.0), axis=0)  # a padded output has an E where X is infinite
    tl.store(sums_ptr + block, loss * tl.full((), loss_scale, dtype))
    if WANT_GRADS:
        scale = tl.full((), grad_scale, dtype)
        tl.store(sums_ptr + LEAD + outputs, errors * scale, mask=mask_m)
        grad_ptrs = sums_ptr + LEAD + M + outputs[:, None] * K + columns[None, :]
        if K == BLOCK_K and M % BLOCK_M == 0:
            tl.store(grad_ptrs, grad_weight * scale)
        else:
            tl.store(grad_ptrs, grad_weight * scale, mask=mask_w)
