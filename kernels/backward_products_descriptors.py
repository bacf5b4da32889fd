"""Both backward products in one launch, for Hopper and newer: the operands by tensor descriptors.

As backward_products.py, which see. The copy engine swizzles each tile for the tensor cores, which read Eᵀ, W and X across
their rows from shared memory as they lie: nothing is transposed. What lies outside is filled with zeros in both operands
of a product, so the loops have no masks. E has two descriptors, one for each product's tile of it.

The gradients are stored by the threads: the workspace's parts do not start at multiples of 16 bytes, dX has any strides.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backward_products import Launch, store_tile, task
from .common import dot
from .configs import Config
from .launch import launch
from .tiles import descriptor, grouped_tile

# Of the loop that also sums E: with four, a third tile in each does not fit in shared memory.
SUM_STAGES = tl.constexpr(3)


@triton.jit
def weight_product(
    residual_desc,
    input_desc,
    start_m,
    start_k,
    first,
    last,
    WANT_SUMS: tl.constexpr,  # of the columns of the residual
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Product over rows first .. last, and (STEP, ROWS) sums, their columns still to be added up."""
    product = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
    sums = tl.zeros((STEP, ROWS), ACCUMULATOR)
    STAGES: tl.constexpr = SUM_STAGES if WANT_SUMS else None
    for start_n in tl.range(first, last, STEP, num_stages=STAGES):
        residual = residual_desc.load([start_n, start_m])
        inputs = input_desc.load([start_n, start_k])
        if WANT_SUMS:
            # E once more: buffers.py says why. The index of a grid's third axis is 0, but the compiler does not know.
            sums += residual_desc.load([start_n + tl.program_id(2), start_m]).to(ACCUMULATOR)
        product = dot(residual.to(inputs.dtype).T, inputs, product, INPUT_PRECISION)
    return product, sums


@triton.jit
def backward_products_descriptors_kernel(
    residual_rows_desc,  # (N, M), in blocks of ROWS × STEP
    residual_steps_desc,  # (N, M), STEP × ROWS
    input_desc,  # (N, K), STEP × COLUMNS
    weight_desc,  # (M, K), STEP × COLUMNS
    grad_output_ptr,  # ()
    input_grad_ptr,  # (N, K)
    weight_grad_ptr,  # (M, K), or the workspace: (parts, M K + M), a part's dW and then its db
    bias_grad_ptr,  # (M,), or the same workspace
    scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    K,
    M,
    parts,
    rows_per_part,
    stride_input_grad_n,
    stride_input_grad_k,
    WANT_BIAS: tl.constexpr,
    WORKSPACE: tl.constexpr,  # store a part's plain sums: add_parts_kernel does the rest
    WEIGHT_FIRST: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PARTS: tl.constexpr,  # column blocks in which a tile is stored
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    tiles_n = (N - 1) // ROWS + 1
    tiles_k = (K - 1) // COLUMNS + 1
    tiles_m = (M - 1) // ROWS + 1
    factor = tl.full((), scale, ACCUMULATOR) * tl.load(grad_output_ptr).to(ACCUMULATOR)
    for number in range(tl.program_id(0), (tiles_n + parts * tiles_m) * tiles_k, tl.num_programs(0)):
        of_weight, tile = task(number, tiles_n * tiles_k, parts * tiles_m * tiles_k, WEIGHT_FIRST)
        if of_weight:
            part = tile // (tiles_m * tiles_k)
            tile_m, tile_k = grouped_tile(tile % (tiles_m * tiles_k), tiles_m, tiles_k)
            start_m, start_k = tile_m * ROWS, tile_k * COLUMNS
            first = part * rows_per_part
            last = tl.minimum(first + rows_per_part, N)
            out_ptr, bias_out_ptr, weight_factor = weight_grad_ptr, bias_grad_ptr, factor
            if WORKSPACE:
                matrix_elements = tl.cast(M, tl.int64) * K
                out_ptr += part * (matrix_elements + M)
                bias_out_ptr += part * (matrix_elements + M) + matrix_elements
                weight_factor = tl.full((), 1.0, ACCUMULATOR)
            if WANT_BIAS and tile_k == 0:  # a loop of its own, as in backward_weight.py
                product, sums = weight_product(
                    residual_steps_desc, input_desc, start_m, start_k, first, last,
                    True, INPUT_PRECISION, ACCUMULATOR, ROWS, COLUMNS, STEP,
                )  # fmt: skip
                offsets_m = start_m + tl.arange(0, ROWS)
                tl.store(bias_out_ptr + offsets_m, tl.sum(sums, axis=0) * weight_factor, mask=offsets_m < M)
            else:
                product, _ = weight_product(
                    residual_steps_desc, input_desc, start_m, start_k, first, last,
                    False, INPUT_PRECISION, ACCUMULATOR, ROWS, COLUMNS, STEP,
                )  # fmt: skip
            store_tile(product * weight_factor, out_ptr, start_m, start_k, M, K, K, 1, PARTS)
        else:
            tile_n, tile_k = grouped_tile(tile, tiles_n, tiles_k)
            start_n, start_k = tile_n * ROWS, tile_k * COLUMNS
            product = tl.zeros((ROWS, COLUMNS), ACCUMULATOR)
            for start_m in range(0, M, STEP):
                residual = residual_rows_desc.load([start_n, start_m])
                weights = weight_desc.load([start_m, start_k])
                product = dot(residual.to(weights.dtype), weights, product, INPUT_PRECISION)
            store_tile(
                product * factor, input_grad_ptr, start_n, start_k, N, K, stride_input_grad_n, stride_input_grad_k,
                PARTS,
            )  # fmt: skip


def backward_products_descriptors(
    residual: Tensor,  # (N, M)
    input: Tensor,  # (N, K)
    weight: Tensor,  # (M, K)
    grad_output: Tensor,  # ()
    *,
    scale: float,
    config: Config,
    split: int,
    input_precision: str,
    want_bias: bool,
    out_input: Tensor,  # (N, K)
    out_dtype: torch.dtype,
    programs: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As backward_products(), for a GPU that has tensor descriptors.

    descriptors_fit(residual, input, weight) of tiles.py must hold.
    """
    rows, columns, step = config.block_n, config.block_k, config.block_m
    work = Launch(residual, input, config, split, want_bias, out_dtype, programs)
    launch(
        backward_products_descriptors_kernel,
        (work.programs,),
        descriptor(residual, rows, step),
        descriptor(residual, step, rows),
        descriptor(input, step, columns),
        descriptor(weight, step, columns),
        grad_output,
        out_input,
        *work.outputs,
        scale,
        *work.sizes,
        *out_input.stride(),
        INPUT_PRECISION=input_precision,
        **work.constants,
    )
    return work.gradients(grad_output, scale)
