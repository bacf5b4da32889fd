"""Forward as forward.py has it, for Hopper and newer: operands by tensor descriptors, programs that stay.

    X (N, K)   W (M, K)   b (M,)   Y (N, M)   ->   loss, and on demand E (N, M) or E² (N, M)

FLOPs, bytes and tiling as in forward.py. What a descriptor changes: one thread asks for a whole tile, the copy engine
swizzles it for the tensor cores and fills with zeros what lies outside; no thread computes an address, and there are no
masks in the loop. That leaves registers for tiles twice as large, 128 × 256: 85 FLOPs for each byte from L2 instead of 64.

Persist A program takes tile after tile, and the two loops are flattened into one: while it finishes a tile, the copies
        for the first steps of the next are under way.
Finish  Y comes, and E leaves, in PARTS column blocks, each through its own small piece of shared memory; all columns at
        once would take the memory of two pipeline stages. Y is asked for when its tile begins, but only as far as L2:
        registers and shared memory are full, and from there it is near.
Order   one partial loss a tile, whichever program computes it; these are added in a fixed order: bitwise repeatable.

8 bits  X and W may be float8_e4m3fn with one scale for both together, applied to the accumulator. Experimental: Hopper's
        tensor cores keep about 14 bits of such sums.

Tried, compiled for sm_90. Accumulator started at -Y: all of Y's tile at once takes more shared memory than there is beside
three stages, and the compiler gives up the pipeline, with a wait behind every step. A warp of its own for the copies
(warp_specialize): takes descriptors made on the device, which need a global allocator, and waits for each step before it
issues the next, where this loop keeps one step under way.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import INTERPRET, dot, narrow
from .configs import Config, accumulator_dtype, epilogue_parts
from .launch import launch
from .reduce import add_rows
from .tiles import accumulator, descriptor, grouped_tile, halves

LINE_BYTES = tl.constexpr(128)  # of L2


@triton.jit
def prefetch_rows(target_ptr, start_n, start_m, N, M, stride_n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Ask for a tile of a row-major matrix, a line at a time, as far as L2. Lines outside are the nearest inside."""
    LINE: tl.constexpr = LINE_BYTES * 8 // target_ptr.dtype.element_ty.primitive_bitwidth
    if not INTERPRET and COLUMNS >= LINE:
        rows = tl.minimum(tl.arange(0, ROWS), N - 1 - start_n).to(tl.int64) + start_n
        columns = tl.minimum(tl.arange(0, COLUMNS // LINE) * LINE, M - 1 - start_m).to(tl.int64) + start_m
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [target_ptr + rows[:, None] * stride_n + columns[None, :]],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def finish(
    product,  # (BLOCK_N, columns)
    target_desc,
    residual_desc,  # None if E is not wanted
    squares_desc,  # None if E² is not wanted
    bias_ptr,  # None without bias
    stride_bias,
    start_n,
    start_m,
    N,
    M,
    PARTS: tl.constexpr,
):
    """E in the columns from start_m on, and what is wanted of it stored; its rows' sums of squares."""
    ROWS: tl.constexpr = product.shape[0]
    COLUMNS: tl.constexpr = product.shape[1]
    if PARTS > 1:
        left, right = halves(product)
        sums = finish(
            left, target_desc, residual_desc, squares_desc, bias_ptr, stride_bias, start_n, start_m, N, M, PARTS // 2
        )
        start_m += COLUMNS // 2
        sums += finish(
            right, target_desc, residual_desc, squares_desc, bias_ptr, stride_bias, start_n, start_m, N, M, PARTS // 2
        )
    else:
        residual = product - target_desc.load([start_n, start_m]).to(product.dtype)
        inside_m = tl.arange(0, COLUMNS) < M - start_m
        if bias_ptr is not None:
            offsets_m = tl.cast(start_m, tl.int64) + tl.arange(0, COLUMNS)
            bias = tl.load(bias_ptr + offsets_m * stride_bias, mask=inside_m, other=0.0)
            residual += bias.to(product.dtype)[None, :]
        if residual_desc is not None:
            residual_desc.store([start_n, start_m], narrow(residual, residual_desc.dtype))
        if squares_desc is not None:
            squares_desc.store([start_n, start_m], narrow(residual * residual, squares_desc.dtype))
        # Outside there is the bias, or NaN where 0 met an infinite factor: these count as exactly 0.
        inside = (tl.arange(0, ROWS) < N - start_n)[:, None] & inside_m[None, :]
        residual = tl.where(inside, residual, 0.0)
        sums = tl.sum(residual * residual, axis=1)
    return sums


@triton.jit
def forward_descriptors_kernel(
    input_desc,  # (N, K), in blocks of BLOCK_N × BLOCK_K
    weight_desc,  # (M, K), BLOCK_M × BLOCK_K
    target_desc,  # (N, M), BLOCK_N × BLOCK_M / PARTS, as the two that follow
    residual_desc,  # (N, M) or None
    squares_desc,  # (N, M) or None
    target_ptr,  # (N, M), of the same memory
    bias_ptr,  # (M,) or None
    partials_ptr,  # (tiles,), None with squares
    operand_scale_ptr,  # (), None for operands wider than 8 bits
    loss_scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    K,
    M,
    stride_target_n,
    stride_bias,
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tiles_n = (N - 1) // BLOCK_N + 1
    tiles_m = (M - 1) // BLOCK_M + 1
    for tile in tl.range(tl.program_id(0), tiles_n * tiles_m, tl.num_programs(0), flatten=True):
        tile_n, tile_m = grouped_tile(tile, tiles_n, tiles_m)
        start_n = tile_n * BLOCK_N
        start_m = tile_m * BLOCK_M
        prefetch_rows(target_ptr, start_n, start_m, N, M, stride_target_n, BLOCK_N, BLOCK_M)
        product = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
        for start_k in range(0, K, BLOCK_K):
            inputs = input_desc.load([start_n, start_k])
            weights = weight_desc.load([start_m, start_k])
            product = dot(inputs, weights.T, product, INPUT_PRECISION)
        if operand_scale_ptr is not None:
            product *= tl.load(operand_scale_ptr)
        sums = finish(
            product, target_desc, residual_desc, squares_desc, bias_ptr, stride_bias, start_n, start_m, N, M, PARTS
        )
        if partials_ptr is not None:
            tl.store(partials_ptr + tile, tl.sum(sums) * tl.full((), loss_scale, ACCUMULATOR))


def forward_descriptors(
    input: Tensor,  # (N, K)
    weight: Tensor,  # (M, K)
    target: Tensor,  # (N, M)
    bias: Tensor | None,  # (M,)
    *,
    config: Config,
    loss_scale: float,
    residual: Tensor | None,  # (N, M)
    squares: Tensor | None,  # (N, M)
    input_precision: str,
    programs: int | None = None,
    operand_scale: Tensor | None = None,  # ()
) -> Tensor | None:
    """Loss, residual and squared residual of a linear layer, as forward() has them, for a GPU that has tensor descriptors.

    Parameters
    ----------
    input, weight, target, residual, squares
        descriptors_fit(...) of tiles.py must hold for all that are given. Dtypes as for forward().
    bias, loss_scale, input_precision
        As for forward(); input_precision may also be "tf32x3".
    config
        block_n × block_m is the tile, block_k the step of the reduction.
    programs
        How many programs share the tiles, at best as many as the GPU runs at a time; None: one for each tile.
    operand_scale
        For input and weight of float8_e4m3fn: the product of their scales, float32, read on the device.

    Returns
    -------
    The loss, 0-d, float32 (float64 if the input is), or None if squares are given. Bitwise repeatable, whatever programs is.
    """
    n, k = input.shape
    m = weight.shape[0]
    tiles = -(-n // config.block_n) * -(-m // config.block_m)
    partials = None
    if squares is None:
        partials = torch.empty((tiles, 1), dtype=accumulator_dtype(input.dtype), device=input.device)
    moved = sum(t.dtype.itemsize for t in (target, residual, squares) if t is not None)
    parts = epilogue_parts(config.block_n, config.block_m, moved)
    launch(
        forward_descriptors_kernel,
        (tiles if programs is None else min(tiles, programs),),
        descriptor(input, config.block_n, config.block_k),
        descriptor(weight, config.block_m, config.block_k),
        descriptor(target, config.block_n, config.block_m // parts),
        descriptor(residual, config.block_n, config.block_m // parts),
        descriptor(squares, config.block_n, config.block_m // parts),
        target,
        bias,
        partials,
        operand_scale,
        loss_scale,
        n,
        k,
        m,
        target.stride(0),
        0 if bias is None else bias.stride(0),
        INPUT_PRECISION=input_precision,
        ACCUMULATOR=accumulator(input.dtype),
        PARTS=parts,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_M=config.block_m,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
    return None if partials is None else add_rows(partials).view(())
