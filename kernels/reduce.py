"""The second stage of every two-stage sum: out[j] = sum over i of partials[i, j], always in the same order.

Each program of a first kernel leaves one row of partial sums; this kernel adds the rows. A program owns BLOCK_M columns
and steps through the rows BLOCK_N at a time, so each lane adds every BLOCK_N-th row in ascending order; the lanes are
then added by a tree. No atomics: the result is bitwise the same from run to run, and its error grows with
rows / BLOCK_N + log2(BLOCK_N) instead of with the number of rows.

Moves rows * columns elements in and columns elements out, one addition for each element read. At most a few thousand
rows, in L2 from the kernel before: the launch is what it costs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS_PER_TILE = 1024
MAX_COLUMNS = 32  # 128 bytes of float32: one cache line for each row


@triton.jit(do_not_specialize=["n_rows", "n_columns"])
def add_rows_kernel(
    partials_ptr,  # (n_rows, n_columns), contiguous
    out_ptr,  # (n_columns,)
    n_rows,
    n_columns,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.arange(0, BLOCK_N)
    mask_columns = columns < n_columns
    offsets = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=out_ptr.dtype.element_ty)
    for start in range(0, n_rows, BLOCK_N):
        mask = (rows < n_rows - start)[:, None] & mask_columns[None, :]
        total += tl.load(partials_ptr + tl.cast(start, tl.int64) * n_columns + offsets, mask=mask, other=0.0)
    tl.store(out_ptr + columns, tl.sum(total, axis=0), mask=mask_columns)


def reduce_tile(n_columns: int) -> tuple[int, int]:
    """(BLOCK_N, BLOCK_M) for a workspace of so many columns."""
    block_m = min(1 << (n_columns - 1).bit_length(), MAX_COLUMNS)
    return ELEMENTS_PER_TILE // block_m, block_m


def add_rows(partials: Tensor) -> Tensor:
    """Sum a contiguous workspace over its rows.

    Parameters
    ----------
    partials : Tensor, shape (rows, columns)
        float32 or float64, contiguous, rows >= 1. Not modified.

    Returns
    -------
    Tensor, shape (columns,)
        In the dtype of `partials`. Bitwise reproducible.
    """
    n_rows, n_columns = partials.shape
    block_n, block_m = reduce_tile(n_columns)
    out = torch.empty(n_columns, dtype=partials.dtype, device=partials.device)
    # One program for each block of columns.
    add_rows_kernel[(-(-n_columns // block_m),)](
        partials, out, n_rows, n_columns, BLOCK_N=block_n, BLOCK_M=block_m, num_warps=4, enable_fp_fusion=True
    )
    return out
