"""Loss from a stored residual, in one read: loss = loss_scale · Σ E².

    E (N, M)   ->   loss 0-d

FLOPs   2 N M.   Bytes   E once, and one number a program.
Tiling  a fixed number of programs, each over its own tiles of E; a tile is as wide as a row, up to ELEMENTWISE_TILE
        numbers, and dense tensors are read as one long row, so that every load is a whole vector.
Order   every program writes one partial sum, and these are added in a fixed order: bitwise repeatable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import LOSS_PROGRAMS, accumulator_dtype, elementwise_tile
from .launch import launch
from .reduce import add_rows
from .tiles import accumulator, as_long_rows, blocks_of


@triton.jit
def squares_kernel(
    residual_ptr,  # (N, M)
    partials_ptr,  # (programs,)
    loss_scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    M,
    stride_n,
    stride_m,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    program = tl.program_id(0)
    tiles_m = blocks_of(M, BLOCK_M)
    acc = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
    for tile in range(program, blocks_of(N, BLOCK_N) * tiles_m, tl.num_programs(0)):
        offsets_n = (tile // tiles_m).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        offsets_m = (tile % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (offsets_n < N)[:, None] & (offsets_m < M)[None, :]
        residual_ptrs = residual_ptr + offsets_n[:, None] * stride_n + offsets_m[None, :] * stride_m
        residual = tl.load(residual_ptrs, mask=mask, other=0.0).to(ACCUMULATOR)
        acc += residual * residual
    tl.store(partials_ptr + program, tl.sum(acc) * tl.full((), loss_scale, ACCUMULATOR))


def loss(
    residual: Tensor,  # (N, M)
    *,
    loss_scale: float,
) -> Tensor:
    """Loss of a stored residual: loss_scale · Σ E², in one read of it.

    Parameters
    ----------
    residual
        E, unscaled, of any floating dtype and any strides.
    loss_scale
        1 / (N M) for the mean, 1 for the sum; applied in the accumulator's precision.

    Returns
    -------
    The loss, 0-d, float32 (float64 if the residual is). Bitwise repeatable.
    """
    n, m, (strides,) = as_long_rows(residual)
    block_n, block_m = elementwise_tile(m)
    programs = min(-(-n // block_n) * -(-m // block_m), LOSS_PROGRAMS)
    partials = torch.empty((programs, 1), dtype=accumulator_dtype(residual.dtype), device=residual.device)
    launch(
        squares_kernel,
        (programs,),  # at most LOSS_PROGRAMS programs, each over every so many-th tile
        residual,
        partials,
        loss_scale,
        n,
        m,
        *strides,
        ACCUMULATOR=accumulator(partials.dtype),
        BLOCK_N=block_n,
        BLOCK_M=block_m,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return add_rows(partials).view(())
