"""Gradient of the input as a tiled product: dX = scale · (grad_output ∘ E) W.

    E (N, M)   W (M, K)   grad_output 0-d or (N, M)   ->   dX (N, K)

FLOPs   2 N M K.
Bytes   E (and a grad_output matrix) once per tile column (⌈K / BLOCK_K⌉ times, mostly from L2), W once per tile row,
        dX written once.
Tiling  BLOCK_N × BLOCK_K of dX in registers, M in steps of BLOCK_M. scale, and a grad_output that is one number, are
        applied to the accumulator in its own precision: E stays unscaled, so that nothing underflows in half
        precision. A grad_output matrix is multiplied with E as both are loaded, before the product rounds them.
"""

import triton
import triton.language as tl
from torch import Tensor

from .common import dot
from .configs import Config
from .launch import launch
from .tiles import accumulator, grouped_tile, wrapped


@triton.jit
def product_over_outputs(
    residual_ptrs,  # (BLOCK_N, BLOCK_M)
    weight_ptrs,  # (BLOCK_M, BLOCK_K)
    grad_ptrs,  # (BLOCK_N, BLOCK_M)
    stride_residual_m,
    stride_weight_m,
    stride_grad_m,
    M,
    MATRIX_GRAD_OUTPUT: tl.constexpr,
    EVEN_M: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Product over all M outputs."""
    offsets_m = tl.arange(0, BLOCK_M)
    step = tl.full((), BLOCK_M, tl.int64)
    acc = tl.zeros((BLOCK_N, BLOCK_K), ACCUMULATOR)
    for start_m in range(0, M, BLOCK_M):
        if EVEN_M:
            residual = tl.load(residual_ptrs)
            weight = tl.load(weight_ptrs)
        else:
            residual = tl.load(residual_ptrs, mask=offsets_m[None, :] < M - start_m, other=0.0)
            weight = tl.load(weight_ptrs, mask=offsets_m[:, None] < M - start_m, other=0.0)
        if MATRIX_GRAD_OUTPUT:
            if EVEN_M:
                grad_output = tl.load(grad_ptrs)
            else:
                grad_output = tl.load(grad_ptrs, mask=offsets_m[None, :] < M - start_m, other=0.0)
            residual = residual.to(ACCUMULATOR) * grad_output.to(ACCUMULATOR)
            grad_ptrs += step * stride_grad_m
        acc = dot(residual.to(weight.dtype), weight, acc, INPUT_PRECISION)
        residual_ptrs += step * stride_residual_m
        weight_ptrs += step * stride_weight_m

    return acc


@triton.jit
def backward_input_kernel(
    residual_ptr,  # (N, M)
    weight_ptr,  # (M, K)
    grad_output_ptr,  # () or (N, M)
    out_ptr,  # (N, K)
    scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    K,
    M,
    stride_residual_n,
    stride_residual_m,
    stride_weight_m,
    stride_weight_k,
    stride_grad_n,
    stride_grad_m,
    stride_out_n,
    stride_out_k,
    MATRIX_GRAD_OUTPUT: tl.constexpr,
    EVEN_M: tl.constexpr,  # M is a multiple of BLOCK_M: the loop needs no mask
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tile_n, tile_k = grouped_tile(tl.program_id(0), (N - 1) // BLOCK_N + 1, tl.cdiv(K, BLOCK_K))
    offsets_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets_k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    offsets_m = tl.arange(0, BLOCK_M)

    rows = wrapped(offsets_n, N)[:, None]
    columns = offsets_m.to(tl.int64)
    residual_ptrs = residual_ptr + rows * stride_residual_n + columns[None, :] * stride_residual_m
    weight_ptrs = weight_ptr + columns[:, None] * stride_weight_m + wrapped(offsets_k, K)[None, :] * stride_weight_k
    grad_ptrs = residual_ptrs
    if MATRIX_GRAD_OUTPUT:
        grad_ptrs = grad_output_ptr + rows * stride_grad_n + columns[None, :] * stride_grad_m
    acc = product_over_outputs(
        residual_ptrs, weight_ptrs, grad_ptrs, stride_residual_m, stride_weight_m, stride_grad_m, M,
        MATRIX_GRAD_OUTPUT, EVEN_M, INPUT_PRECISION, ACCUMULATOR, BLOCK_N, BLOCK_K, BLOCK_M,
    )  # fmt: skip
    factor = tl.full((), scale, ACCUMULATOR)
    if not MATRIX_GRAD_OUTPUT:
        factor *= tl.load(grad_output_ptr).to(ACCUMULATOR)
    offsets_n = offsets_n.to(tl.int64)
    offsets_k = offsets_k.to(tl.int64)
    mask = (offsets_n < N)[:, None] & (offsets_k < K)[None, :]
    out_ptrs = out_ptr + offsets_n[:, None] * stride_out_n + offsets_k[None, :] * stride_out_k
    tl.store(out_ptrs, acc * factor, mask=mask)


def backward_input(
    residual: Tensor,  # (N, M)
    weight: Tensor,  # (M, K)
    grad_output: Tensor,  # () or (N, M)
    *,
    scale: float,
    config: Config,
    input_precision: str,
    out: Tensor,  # (N, K)
) -> None:
    """Write scale · (grad_output ∘ residual) @ weight into out.

    Parameters
    ----------
    residual
        E, unscaled; rounded to the weight's dtype as it enters the product. Any strides.
    grad_output
        One number, read on the device and applied after the product, or a matrix of any strides, applied before it.
    scale
        Applied after the product, in the accumulator's precision.
    config
        block_n × block_k is the tile, block_m the step of the reduction.
    input_precision
        "ieee" or "tf32", for float32.
    out
        Overwritten. Any strides.
    """
    n, m = residual.shape
    k = weight.shape[1]
    matrix = grad_output.dim() == 2
    launch(
        backward_input_kernel,
        (-(-n // config.block_n) * -(-k // config.block_k),),  # one program a tile of the output
        residual,
        weight,
        grad_output,
        out,
        scale,
        n,
        k,
        m,
        *residual.stride(),
        *weight.stride(),
        *(grad_output.stride() if matrix else (0, 0)),
        *out.stride(),
        MATRIX_GRAD_OUTPUT=matrix,
        EVEN_M=m % config.block_m == 0,
        INPUT_PRECISION=input_precision,
        ACCUMULATOR=accumulator(weight.dtype),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_M=config.block_m,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
