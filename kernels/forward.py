"""Forward as one tiled product: E = X Wᵀ + b − Y in the accumulator, then loss = loss_scale · Σ E².

    X (N, K)   W (M, K)   b (M,)   Y (N, M)   ->   loss, and on demand E (N, M) or E² (N, M)

FLOPs   2 N K M + 3 N M.
Bytes   X once per tile column (⌈M / BLOCK_M⌉ times, mostly from L2: tiles are walked in groups), W once per tile row,
        Y once, E written once if wanted. The prediction X Wᵀ + b is never written: stock writes it, reads it in the
        loss, and reads it again in the loss's backward, 3 N M numbers that this kernel does not move.
Tiling  the output is cut into BLOCK_N × BLOCK_M, as large as the accumulator fits in registers, because the traffic of
        X and W falls with it. Y and b enter after the loop, in the accumulator's precision: the residual is never
        formed from a rounded prediction.
Order   every tile writes one partial loss, and these are added in a fixed order: bitwise repeatable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import dot
from .configs import Config, accumulator_dtype
from .launch import launch
from .reduce import add_rows
from .tiles import accumulator, grouped_tile, wrapped


@triton.jit
def forward_kernel(
    input_ptr,  # (N, K)
    weight_ptr,  # (M, K)
    target_ptr,  # (N, M)
    bias_ptr,  # (M,)
    residual_ptr,  # (N, M)
    squares_ptr,  # (N, M)
    partials_ptr,  # (tiles,)
    loss_scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    K,
    M,
    stride_input_n,
    stride_input_k,
    stride_weight_m,
    stride_weight_k,
    stride_target_n,
    stride_target_m,
    stride_bias,
    stride_residual_n,
    stride_residual_m,
    stride_squares_n,
    stride_squares_m,
    HAS_BIAS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    STORE_SQUARES: tl.constexpr,  # in place of the loss
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K: the loop needs no mask
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tile = tl.program_id(0)
    tile_n, tile_m = grouped_tile(tile, (N - 1) // BLOCK_N + 1, tl.cdiv(M, BLOCK_M))
    offsets_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offsets_k = tl.arange(0, BLOCK_K)

    rows = wrapped(offsets_n, N)[:, None]
    columns = wrapped(offsets_m, M)[None, :]
    features = offsets_k.to(tl.int64)
    input_ptrs = input_ptr + rows * stride_input_n + features[None, :] * stride_input_k
    weight_ptrs = weight_ptr + columns * stride_weight_m + features[:, None] * stride_weight_k
    step = tl.full((), BLOCK_K, tl.int64)  # a transposed operand's step passes 2³¹
    residual = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
    for start_k in range(0, K, BLOCK_K):
        if EVEN_K:
            inputs = tl.load(input_ptrs)
            weights = tl.load(weight_ptrs)
        else:
            inputs = tl.load(input_ptrs, mask=offsets_k[None, :] < K - start_k, other=0.0)
            weights = tl.load(weight_ptrs, mask=offsets_k[:, None] < K - start_k, other=0.0)
        residual = dot(inputs, weights, residual, INPUT_PRECISION)
        input_ptrs += step * stride_input_k
        weight_ptrs += step * stride_weight_k

    offsets_n = offsets_n.to(tl.int64)
    offsets_m = offsets_m.to(tl.int64)
    mask_m = offsets_m < M
    mask = (offsets_n < N)[:, None] & mask_m[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offsets_m * stride_bias, mask=mask_m, other=0.0)
        residual += bias.to(ACCUMULATOR)[None, :]
    target_ptrs = target_ptr + offsets_n[:, None] * stride_target_n + offsets_m[None, :] * stride_target_m
    residual -= tl.load(target_ptrs, mask=mask, other=0.0).to(ACCUMULATOR)
    if STORE_RESIDUAL:
        residual_ptrs = residual_ptr + offsets_n[:, None] * stride_residual_n + offsets_m[None, :] * stride_residual_m
        tl.store(residual_ptrs, residual, mask=mask)
    if STORE_SQUARES:
        squares_ptrs = squares_ptr + offsets_n[:, None] * stride_squares_n + offsets_m[None, :] * stride_squares_m
        tl.store(squares_ptrs, residual * residual, mask=mask)
    else:
        # Wrapped rows and columns hold other rows' residuals: they count as exactly 0, also where those are NaN.
        residual = tl.where(mask, residual, 0.0)
        partial = tl.sum(residual * residual) * tl.full((), loss_scale, ACCUMULATOR)
        tl.store(partials_ptr + tile, partial)


def forward(
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
) -> Tensor | None:
    """Loss, residual and squared residual of a linear layer, from one tiled product.

    Parameters
    ----------
    input, weight, bias
        Of one dtype: float64, float32, float16 or bfloat16. Any strides.
    target
        Any strides, of any floating dtype not wider than the accumulator.
    config
        block_n × block_m is the tile, block_k the step of the reduction.
    residual
        Written with E, unscaled, in its own dtype, if given.
    squares
        Written with E², from the unrounded E, if given; then there is no loss.
    input_precision
        "ieee" or "tf32", for float32.

    Returns
    -------
    The loss, 0-d, float32 (float64 if the input is), or None if squares are given. Bitwise repeatable.
    """
    n, k = input.shape
    m = weight.shape[0]
    none = input  # stands for an absent tensor: never read
    bias_, residual_, squares_ = (none if t is None else t for t in (bias, residual, squares))
    tiles = -(-n // config.block_n) * -(-m // config.block_m)
    partials = none
    if squares is None:
        partials = torch.empty((tiles, 1), dtype=accumulator_dtype(input.dtype), device=input.device)
    launch(
        forward_kernel,
        (tiles,),  # one program a tile of the output
        input,
        weight,
        target,
        bias_,
        residual_,
        squares_,
        partials,
        loss_scale,
        n,
        k,
        m,
        *input.stride(),
        *weight.stride(),
        *target.stride(),
        bias_.stride(0),
        *residual_.stride(),
        *squares_.stride(),
        HAS_BIAS=bias is not None,
        STORE_RESIDUAL=residual is not None,
        STORE_SQUARES=squares is not None,
        EVEN_K=k % config.block_k == 0,
        INPUT_PRECISION=input_precision,
        ACCUMULATOR=accumulator(input.dtype),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_M=config.block_m,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
    return None if squares is not None else add_rows(partials).view(())
