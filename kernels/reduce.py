"""The second stage of every two-stage sum: out[j] = sum over i of partials[i, j], always in the same order.

Each program of a first kernel leaves one row of partial sums; this kernel adds the rows. A program owns BLOCK_M columns
and steps through the rows BLOCK_N at a time, so each lane adds every BLOCK_N-th row in ascending order; the lanes are
then added by a tree. No atomics: the result is bitwise the same from run to run, and its error grows with
rows / BLOCK_N + log2(BLOCK_N) instead of with the number of rows.

Moves rows * columns elements in and columns elements out, one addition for each element read. Of the skinny kernels there
are at most a few thousand rows, in L2 from the kernel before: the launch is what it costs, and a trip to L2 for each round,
of which there are few. one_pass_tall leaves few rows of
up to a quarter of a million columns, tens of MB, which take hundreds of programs and 16-byte loads: its rows begin with
`lead` columns, so that what follows is aligned, and the first sum is that of `losses` of them.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import narrow
from .launch import launch
from .tape import empty

ELEMENTS_PER_TILE = 8192  # 32 for each thread: a round is a trip to L2, whatever it brings
MAX_COLUMNS = 32  # 128 bytes of float32: one cache line for each row
WIDE_ELEMENTS = 4096  # of one_pass_tall's rows: 64 bytes in flight for each thread
WIDE_COLUMNS = 1024
SUM_WARPS = 8
WIDE_PROGRAMS = 256  # or more, where there are columns enough
WIDE_ALIGNMENT = 4  # of a row's start, in elements: 16 bytes of float32


@triton.jit(do_not_specialize=["n_rows", "stride", "n_columns"])
def add_rows_kernel(
    partials_ptr,  # (n_rows, n_columns)
    out_ptr,  # (n_columns - LEAD + 1,)
    n_rows,
    stride,  # of a row, in units of UNIT elements
    n_columns,
    LEAD: tl.constexpr,
    LOSSES: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    dtype: tl.constexpr = partials_ptr.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    sums = add_columns(partials_ptr, n_rows, stride, columns, UNIT, dtype, BLOCK_N, BLOCK_M)
    if LEAD > 1:
        first = tl.sum(tl.where(columns < LOSSES, sums, 0.0), axis=0)
        tl.store(out_ptr, first, mask=tl.program_id(0) == 0)
        tl.store(out_ptr + columns - (LEAD - 1), sums, mask=(columns >= LEAD) & (columns < n_columns))
    else:
        tl.store(out_ptr + columns, narrow(sums, out_ptr.dtype.element_ty), mask=columns < n_columns)


@triton.jit
def add_columns(
    partials_ptr,
    n_rows,
    stride,  # in units of UNIT elements
    columns,  # [BLOCK_M]
    UNIT: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """These columns' sums over all rows. Padding up to the stride is read too, so that whole vectors are."""
    step = tl.cast(stride, tl.int64) * UNIT
    rows = tl.arange(0, BLOCK_N)
    mask_columns = columns < stride * UNIT
    offsets = rows[:, None] * step + columns[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=DTYPE)
    for start in range(0, n_rows, BLOCK_N):
        mask = (rows < n_rows - start)[:, None] & mask_columns[None, :]
        # Past L1, which may hold older lines where the rows were written in the same launch.
        total += tl.load(partials_ptr + start * step + offsets, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


def reduce_tile(n_columns: int) -> tuple[int, int]:
    """(BLOCK_N, BLOCK_M) for a workspace of so many columns."""
    block_m = min(1 << (n_columns - 1).bit_length(), MAX_COLUMNS)
    return ELEMENTS_PER_TILE // block_m, block_m


def wide_tile(n_rows: int, n_columns: int) -> tuple[int, int]:
    """(BLOCK_N, BLOCK_M) for one_pass_tall's workspace: WIDE_PROGRAMS or more, unless they would read less than a line."""
    block_m = MAX_COLUMNS
    while block_m < WIDE_COLUMNS and n_columns >= 2 * block_m * WIDE_PROGRAMS:
        block_m *= 2
    return min(WIDE_ELEMENTS // block_m, 1 << (n_rows - 1).bit_length()), block_m


def add_rows(
    partials: Tensor,
    *,
    columns: int | None = None,
    lead: int = 1,
    losses: int = 1,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Sum a contiguous workspace over its rows.

    Parameters
    ----------
    partials : Tensor, shape (rows, at least columns)
        float32 or float64, contiguous, rows >= 1. Not modified.
    columns : int, optional
        Those after them are padding.
    lead, losses : int
        Of the first `lead` columns, the first `losses`, MAX_COLUMNS at most, are added up to one sum; the others are
        padding.
    out_dtype : torch.dtype, optional
        To which the sums are rounded, where `lead` is 1; that of `partials` if None.

    Returns
    -------
    Tensor, shape (columns - lead + 1,)
        Bitwise reproducible.
    """
    n_rows, stride = partials.shape
    n_columns = stride if columns is None else columns
    if lead == 1:
        block_n, block_m = reduce_tile(n_columns)
    else:
        block_n, block_m = wide_tile(n_rows, n_columns)
    unit = math.gcd(stride, WIDE_ALIGNMENT)
    out = empty((n_columns - lead + 1,), dtype=out_dtype or partials.dtype, device=partials.device)
    # One program for each block of columns.
    launch(
        add_rows_kernel,
        (-(-n_columns // block_m),),
        partials,
        out,
        n_rows,
        stride // unit,
        n_columns,
        LEAD=lead,
        LOSSES=losses,
        UNIT=unit,
        BLOCK_N=block_n,
        BLOCK_M=block_m,
        num_warps=SUM_WARPS,
        enable_fp_fusion=True,
    )
    return out
