"""Gradient of the target, elementwise: dY = −scale · grad_output ∘ E.

    E (N, M)   grad_output 0-d or (N, M)   ->   dY (N, M)

FLOPs   2 N M.   Bytes   E (and a grad_output matrix) once, dY written once.
Tiling  a tile is as wide as a row, up to ELEMENTWISE_TILE numbers; dense tensors are read as one long row, so that
        every access is a whole vector. The product is formed in the accumulator's precision and rounded once.
"""

import triton
import triton.language as tl
from torch import Tensor

from .configs import elementwise_tile
from .launch import launch
from .tiles import accumulator, as_long_rows, blocks_of


@triton.jit
def backward_target_kernel(
    residual_ptr,  # (N, M)
    grad_output_ptr,  # () or (N, M)
    out_ptr,  # (N, M)
    scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    M,
    stride_residual_n,
    stride_residual_m,
    stride_out_n,
    stride_out_m,
    stride_grad_n,
    stride_grad_m,
    MATRIX_GRAD_OUTPUT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tile = tl.program_id(0)
    tiles_m = blocks_of(M, BLOCK_M)
    offsets_n = (tile // tiles_m).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets_m = (tile % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = (offsets_n < N)[:, None] & (offsets_m < M)[None, :]
    residual_ptrs = residual_ptr + offsets_n[:, None] * stride_residual_n + offsets_m[None, :] * stride_residual_m
    out = tl.load(residual_ptrs, mask=mask, other=0.0).to(ACCUMULATOR)
    factor = -tl.full((), scale, ACCUMULATOR)
    if MATRIX_GRAD_OUTPUT:
        grad_ptrs = grad_output_ptr + offsets_n[:, None] * stride_grad_n + offsets_m[None, :] * stride_grad_m
        out *= tl.load(grad_ptrs, mask=mask, other=0.0).to(ACCUMULATOR)
    else:
        factor *= tl.load(grad_output_ptr).to(ACCUMULATOR)
    out_ptrs = out_ptr + offsets_n[:, None] * stride_out_n + offsets_m[None, :] * stride_out_m
    tl.store(out_ptrs, out * factor, mask=mask)


def backward_target(
    residual: Tensor,  # (N, M)
    grad_output: Tensor,  # () or (N, M)
    *,
    scale: float,
    out: Tensor,  # (N, M)
) -> None:
    """Write −scale · grad_output ∘ residual into out.

    Parameters
    ----------
    residual
        E, unscaled, any strides.
    grad_output
        One number, read on the device, or a matrix of any strides.
    scale
        Applied in the accumulator's precision, never in half.
    out
        Overwritten. Any strides, any floating dtype.
    """
    matrix = grad_output.dim() == 2
    n, m, strides = as_long_rows(residual, out, *([grad_output] if matrix else []))
    if not matrix:
        strides = [*strides, (0, 0)]
    block_n, block_m = elementwise_tile(m)
    launch(
        backward_target_kernel,
        (-(-n // block_n) * -(-m // block_m),),  # one program a tile
        residual,
        grad_output,
        out,
        scale,
        n,
        m,
        *strides[0],
        *strides[1],
        *strides[2],
        MATRIX_GRAD_OUTPUT=matrix,
        ACCUMULATOR=accumulator(residual.dtype),
        BLOCK_N=block_n,
        BLOCK_M=block_m,
        num_warps=8,
        enable_fp_fusion=True,
    )
