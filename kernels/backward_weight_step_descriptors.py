"""Weight and bias updated in the epilogue of the product that makes their gradients, for Hopper and newer.

As backward_weight_step.py without parts, which see; E and X come by tensor descriptors (backward_products_descriptors.py).
The update takes a tile in PARTS column blocks: weight, momentum and their addresses fill registers beside the accumulator.
"""

import triton
import triton.language as tl
from torch import Tensor

from .backward_products_descriptors import weight_product
from .configs import Config, epilogue_parts
from .launch import launch
from .step import Step, numbers_of, update_at
from .tiles import accumulator, descriptor, grouped_tile, halves


@triton.jit
def update_tile(
    grad,
    weight_ptr,
    momentum_ptr,
    start_m,
    start_k,
    K,
    M,
    stride_weight_m,
    stride_weight_k,
    numbers,
    PARTS: tl.constexpr,
):
    """update_at in PARTS column blocks, one after another."""
    ROWS: tl.constexpr = grad.shape[0]
    COLUMNS: tl.constexpr = grad.shape[1]
    if PARTS > 1:
        left, right = halves(grad)
        update_tile(
            left,
            weight_ptr,
            momentum_ptr,
            start_m,
            start_k,
            K,
            M,
            stride_weight_m,
            stride_weight_k,
            numbers,
            PARTS // 2,
        )
        start_k += COLUMNS // 2
        update_tile(
            right,
            weight_ptr,
            momentum_ptr,
            start_m,
            start_k,
            K,
            M,
            stride_weight_m,
            stride_weight_k,
            numbers,
            PARTS // 2,
        )
    else:
        within_m, within_k = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
        offsets_m = (tl.cast(start_m, tl.int64) + within_m)[:, None] * stride_weight_m
        offsets_k = (tl.cast(start_k, tl.int64) + within_k)[None, :] * stride_weight_k
        mask = (within_m < M - start_m)[:, None] & (within_k < K - start_k)[None, :]
        update_at(weight_ptr, momentum_ptr, offsets_m + offsets_k, grad, mask, numbers)


@triton.jit(do_not_specialize=["nesterov"])
def backward_weight_step_descriptors_kernel(
    residual_desc,  # (N, M), in blocks of BLOCK_N × BLOCK_M
    input_desc,  # (N, K), BLOCK_N × BLOCK_K
    weight_ptr,  # (M, K), read and written, as all that follow
    bias_ptr,  # (M,), None without bias
    momentum_ptr,  # (M, K), of weight's strides; None without momentum
    bias_momentum_ptr,  # (M,), of bias's stride
    lr_ptr,  # (1,), None where lr is a number
    scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    lr: tl.float64,
    mu: tl.float64,
    undamped: tl.float64,
    decay: tl.float64,
    nesterov,
    N,
    K,
    M,
    stride_weight_m,
    stride_weight_k,
    stride_bias,
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    numbers = numbers_of(lr_ptr, lr, mu, undamped, decay, nesterov, ACCUMULATOR)
    factor = tl.full((), scale, ACCUMULATOR)
    tiles_m, tiles_k = tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_K)
    for tile in range(tl.program_id(0), tiles_m * tiles_k, tl.num_programs(0)):
        tile_m, tile_k = grouped_tile(tile, tiles_m, tiles_k)
        start_m, start_k = tile_m * BLOCK_M, tile_k * BLOCK_K
        if bias_ptr is not None and tile_k == 0:  # a loop of its own, as in backward_weight.py
            product, sums = weight_product(
                residual_desc, input_desc, start_m, start_k, 0, N,
                True, INPUT_PRECISION, ACCUMULATOR, BLOCK_M, BLOCK_K, BLOCK_N,
            )  # fmt: skip
            offsets_m = start_m + tl.arange(0, BLOCK_M)
            offsets_b = offsets_m.to(tl.int64) * stride_bias
            update_at(bias_ptr, bias_momentum_ptr, offsets_b, tl.sum(sums, axis=0) * factor, offsets_m < M, numbers)
        else:
            product, _ = weight_product(
                residual_desc, input_desc, start_m, start_k, 0, N,
                False, INPUT_PRECISION, ACCUMULATOR, BLOCK_M, BLOCK_K, BLOCK_N,
            )  # fmt: skip
        update_tile(
            product * factor, weight_ptr, momentum_ptr, start_m, start_k, K, M, stride_weight_m, stride_weight_k, numbers,
            PARTS,
        )  # fmt: skip


def backward_weight_step_descriptors(
    residual: Tensor,  # (N, M)
    input: Tensor,  # (N, K)
    step: Step,  # its tensors are written
    *,
    scale: float,
    config: Config,
    input_precision: str,
) -> None:
    """As backward_weight_step() with split 1, for a GPU that has tensor descriptors.

    descriptors_fit(residual, input) of tiles.py must hold. config: block_m × block_k is the tile, block_n the step of the
    reduction; it is large as it is, since the update comes in parts (no epilogue_config).
    """
    (n, m), k = residual.shape, input.shape[1]
    moved = step.weight.dtype.itemsize * (1 if step.momentum_buffer is None else 2)
    launch(
        backward_weight_step_descriptors_kernel,
        (-(-m // config.block_m) * -(-k // config.block_k),),  # one a tile of W
        descriptor(residual, config.block_n, config.block_m),
        descriptor(input, config.block_n, config.block_k),
        step.weight,
        step.bias,
        *step.tensors(),
        scale,
        *step.numbers(),
        n,
        k,
        m,
        *step.weight.stride(),
        0 if step.bias is None else step.bias.stride(0),
        INPUT_PRECISION=input_precision,
        ACCUMULATOR=accumulator(input.dtype),
        PARTS=epilogue_parts(config.block_m, config.block_k, 4 * moved),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_M=config.block_m,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
