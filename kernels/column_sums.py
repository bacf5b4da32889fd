"""The bias's gradient from a stored residual: db = scale · grad_output · Σₙ E, in one read of it.

    E (N, M)   grad_output 0-d   ->   db (M,)

FLOPs   N M.   Bytes   E once, and a row of partial sums for each part of the rows, a megabyte of them at most: PyTorch's
        own sum takes memory for half as many float32 numbers as a narrow E has, or for as many bfloat16 ones.
Tiling  parts of N x blocks of columns: a program owns a block of columns and every so many-th tile of rows. Few rows are
        one part, and one launch.
Order   each lane adds every so many-th row, the lanes are added by a tree, the parts by add_rows: bitwise repeatable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import narrow
from .configs import accumulator_dtype, column_sums_grid
from .launch import launch
from .reduce import add_rows
from .tiles import accumulator


@triton.jit
def column_sums_kernel(
    residual_ptr,  # (N, M)
    grad_output_ptr,  # ()
    out_ptr,  # (parts, M)
    scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    M,
    stride_n,
    stride_m,
    HAS_GRAD_OUTPUT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    part = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = columns < M
    # From a strided start, so that rows are counted in 64 bits.
    step = tl.num_programs(0).to(tl.int64) * BLOCK_N
    first = part.to(tl.int64) * BLOCK_N
    rows = first + tl.arange(0, BLOCK_N)
    residual_ptrs = residual_ptr + rows[:, None] * stride_n + columns.to(tl.int64)[None, :] * stride_m
    acc = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
    for start in range(first, N, step):
        mask = (tl.arange(0, BLOCK_N) < N - start)[:, None] & mask_m[None, :]
        acc += tl.load(residual_ptrs, mask=mask, other=0.0).to(ACCUMULATOR)
        residual_ptrs += step * stride_n
    factor = tl.full((), scale, ACCUMULATOR)
    if HAS_GRAD_OUTPUT:
        factor *= tl.load(grad_output_ptr).to(ACCUMULATOR)
    sums = narrow(tl.sum(acc, axis=0) * factor, out_ptr.dtype.element_ty)
    tl.store(out_ptr + part.to(tl.int64) * M + columns, sums, mask=mask_m)


def column_sums(
    residual: Tensor,  # (N, M)
    grad_output: Tensor | None = None,  # 0-d
    *,
    scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """scale · grad_output · Σₙ E of each column.

    Parameters
    ----------
    residual
        Of any floating dtype and any strides, N and M >= 1. Not modified.
    grad_output
        Of any floating dtype; None for 1.
    scale
        Applied in the accumulator's precision.
    out_dtype
        To which the sums are rounded once; the accumulator's if None.

    Returns
    -------
    Tensor, shape (M,)
        Bitwise repeatable.
    """
    n, m = residual.shape
    block_n, block_m, parts = column_sums_grid(n, m)
    wide = accumulator_dtype(residual.dtype)
    out_dtype = wide if out_dtype is None else out_dtype
    out = torch.empty((parts, m), dtype=out_dtype if parts == 1 else wide, device=residual.device)
    launch(
        column_sums_kernel,
        (parts, -(-m // block_m)),
        residual,
        residual if grad_output is None else grad_output,  # for an absent one: never read
        out,
        scale,
        n,
        m,
        *residual.stride(),
        HAS_GRAD_OUTPUT=grad_output is not None,
        ACCUMULATOR=accumulator(wide),
        BLOCK_N=block_n,
        BLOCK_M=block_m,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return out.view(m) if parts == 1 else add_rows(out, out_dtype=out_dtype)
