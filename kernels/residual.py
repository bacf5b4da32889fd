"""Residual and loss from a product that the library has made, in one pass: E = P + b − Y, loss = loss_scale · Σ E².

    P (N, M)   Y (N, M)   b (M,)   ->   E (N, M)   loss 0-d, or E² (N, M)

FLOPs   3 N M.   Bytes   P, Y and b once, E (and E²) written once if wanted, and one number a program.
Tiling  a fixed number of programs, each over its own tiles; a tile is as wide as a row, up to ELEMENTWISE_TILE numbers,
        and without a bias dense tensors are read as one long row, so that every access is a whole vector.
Order   every program writes one partial sum, and these are added in a fixed order: bitwise repeatable. P is the product in
        the accumulator's dtype: neither E nor the loss comes from a rounded prediction. E may lie in P's own memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import narrow
from .configs import LOSS_PROGRAMS, accumulator_dtype, elementwise_tile
from .launch import launch
from .tiles import accumulator, as_long_rows, blocks_of


@triton.jit
def residual_kernel(
    product_ptr,  # (N, M)
    target_ptr,  # (N, M)
    bias_ptr,  # (M,)
    residual_ptr,  # (N, M)
    squares_ptr,  # (N, M)
    partials_ptr,  # (programs,)
    loss_scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    M,
    stride_product_n,
    stride_product_m,
    stride_target_n,
    stride_target_m,
    stride_residual_n,
    stride_residual_m,
    stride_squares_n,
    stride_squares_m,
    stride_bias,
    HAS_BIAS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    STORE_SQUARES: tl.constexpr,  # in place of the loss
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    program = tl.program_id(0)
    tiles_m = blocks_of(M, BLOCK_M)
    acc = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
    for tile in range(program, blocks_of(N, BLOCK_N) * tiles_m, tl.num_programs(0)):
        offsets_n = ((tile // tiles_m).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
        offsets_m = ((tile % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[None, :]
        mask = (offsets_n < N) & (offsets_m < M)
        product_ptrs = product_ptr + offsets_n * stride_product_n + offsets_m * stride_product_m
        target_ptrs = target_ptr + offsets_n * stride_target_n + offsets_m * stride_target_m
        residual = tl.load(product_ptrs, mask=mask, other=0.0).to(ACCUMULATOR)
        if HAS_BIAS:
            residual += tl.load(bias_ptr + offsets_m * stride_bias, mask=offsets_m < M, other=0.0).to(ACCUMULATOR)
        residual -= tl.load(target_ptrs, mask=mask, other=0.0).to(ACCUMULATOR)
        residual = tl.where(mask, residual, 0.0)  # where there is no row, the bias is left
        if STORE_RESIDUAL:
            residual_ptrs = residual_ptr + offsets_n * stride_residual_n + offsets_m * stride_residual_m
            tl.store(residual_ptrs, narrow(residual, residual_ptr.dtype.element_ty), mask=mask)
        if STORE_SQUARES:
            squares_ptrs = squares_ptr + offsets_n * stride_squares_n + offsets_m * stride_squares_m
            tl.store(squares_ptrs, narrow(residual * residual, squares_ptr.dtype.element_ty), mask=mask)
        else:
            acc += residual * residual
    if not STORE_SQUARES:
        tl.store(partials_ptr + program, tl.sum(acc) * tl.full((), loss_scale, ACCUMULATOR))


def residual_of(
    product: Tensor,  # (N, M)
    target: Tensor,  # (N, M)
    bias: Tensor | None,  # (M,)
    *,
    loss_scale: float,
    residual: Tensor | None,  # (N, M)
    squares: Tensor | None,  # (N, M)
) -> Tensor | None:
    """E = product + bias − target, and what becomes of its squares, in one pass.

    Parameters
    ----------
    product
        X Wᵀ in the accumulator's dtype, any strides.
    target, bias
        Any strides, of any floating dtype not wider than the product's.
    loss_scale
        1 / (N M) for the mean, 1 for the sum; applied in the accumulator's precision.
    residual
        Written with E, unscaled, in its own dtype, if given. It may be `product` itself.
    squares
        Written with E², from the unrounded E, if given; then there is no loss.

    Returns
    -------
    Partial sums of the loss, (programs, 1), for add_rows, float32 (float64 for float64); None if squares are given. They
    are returned unadded so that parts of the rows can be added all at once. Bitwise repeatable.
    """
    none = product  # stands for an absent tensor: never read
    bias_, residual_, squares_ = (none if t is None else t for t in (bias, residual, squares))
    tensors = (product, target, residual_, squares_)
    if bias is None:
        n, m, strides = as_long_rows(*tensors)
    else:
        (n, m), strides = product.shape, [t.stride() for t in tensors]
    block_n, block_m = elementwise_tile(m)
    programs = min(-(-n // block_n) * -(-m // block_m), LOSS_PROGRAMS)
    partials = none
    if squares is None:
        partials = torch.empty((programs, 1), dtype=accumulator_dtype(product.dtype), device=product.device)
    launch(
        residual_kernel,
        (programs,),  # at most LOSS_PROGRAMS programs, each over every so many-th tile
        product,
        target,
        bias_,
        residual_,
        squares_,
        partials,
        loss_scale,
        n,
        m,
        *strides[0],
        *strides[1],
        *strides[2],
        *strides[3],
        bias_.stride(0),
        HAS_BIAS=bias is not None,
        STORE_RESIDUAL=residual is not None,
        STORE_SQUARES=squares is not None,
        ACCUMULATOR=accumulator(product.dtype),
        BLOCK_N=block_n,
        BLOCK_M=block_m,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return None if squares is not None else partials
