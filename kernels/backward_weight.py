"""Gradients of weight and bias as a tiled product over the rows.

dW = scale · (grad_output ∘ E)ᵀ X,   db = scale · Σₙ (grad_output ∘ E)ₙ

    E (N, M)   X (N, K)   grad_output 0-d or (N, M)   ->   dW (M, K), db (M,)

FLOPs   2 N M K (+ N M for db).
Bytes   E (and a grad_output matrix) once per tile column (⌈K / BLOCK_K⌉ times, mostly from L2), X once per tile row
        (⌈M / BLOCK_M⌉ times), dW written once; with the rows split in S > 1 parts also 2 S M K numbers of workspace.
Tiling  BLOCK_M × BLOCK_K of dW in registers, N in steps of BLOCK_N. M × K has few tiles when N is large, so the rows
        are cut into contiguous parts to fill the GPU: each part writes its own tile of a workspace, and a second kernel
        adds the parts in order. No atomics: bitwise repeatable. db costs no pass of its own: the programs of the first
        tile column add up their tiles of E, before these are rounded for the product; half types and TF32, which are
        not, they load once more for it (buffers.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import dot
from .configs import SUM_BLOCK, Config, accumulator_dtype
from .launch import launch
from .tiles import accumulator, grouped_tile, wrapped


@triton.jit
def product_over_rows(
    residual_ptrs,  # (BLOCK_N, BLOCK_M)
    input_ptrs,  # (BLOCK_N, BLOCK_K)
    grad_ptrs,  # (BLOCK_N, BLOCK_M)
    stride_residual_n,
    stride_input_n,
    stride_grad_n,
    first,
    last,
    WANT_SUMS: tl.constexpr,  # of the columns of the residual
    MATRIX_GRAD_OUTPUT: tl.constexpr,
    EVEN_N: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Product over rows first .. last, and (BLOCK_N, BLOCK_M) sums, their columns still to be added up."""
    offsets_n = tl.arange(0, BLOCK_N)[:, None]
    step = tl.full((), BLOCK_N, tl.int64)
    product = tl.zeros((BLOCK_M, BLOCK_K), ACCUMULATOR)
    sums = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
    # Whether matrix instructions may read E where its copy puts it; what else they multiply has been in registers.
    MULTIPLIED_AS_LOADED: tl.constexpr = (
        residual_ptrs.dtype.element_ty == input_ptrs.dtype.element_ty
        and not MATRIX_GRAD_OUTPUT
        and (input_ptrs.dtype.element_ty.primitive_bitwidth == 16 or INPUT_PRECISION != "ieee")
    )
    for start_n in range(first, last, BLOCK_N):
        if EVEN_N:
            residual = tl.load(residual_ptrs)
            inputs = tl.load(input_ptrs)
        else:
            residual = tl.load(residual_ptrs, mask=offsets_n < last - start_n, other=0.0)
            inputs = tl.load(input_ptrs, mask=offsets_n < last - start_n, other=0.0)
        summed = residual
        if WANT_SUMS and MULTIPLIED_AS_LOADED:
            # E once more, for the sums: buffers.py says why. Another eviction policy keeps the two loads from being made one.
            if EVEN_N:
                summed = tl.load(residual_ptrs, eviction_policy="evict_last")
            else:
                mask = offsets_n < last - start_n
                summed = tl.load(residual_ptrs, mask=mask, other=0.0, eviction_policy="evict_last")
        if MATRIX_GRAD_OUTPUT:
            if EVEN_N:
                grad_output = tl.load(grad_ptrs)
            else:
                grad_output = tl.load(grad_ptrs, mask=offsets_n < last - start_n, other=0.0)
            residual = residual.to(ACCUMULATOR) * grad_output.to(ACCUMULATOR)
            grad_ptrs += step * stride_grad_n
            summed = residual
        if WANT_SUMS:
            sums += summed.to(ACCUMULATOR)
        product = dot(tl.trans(residual.to(inputs.dtype)), inputs, product, INPUT_PRECISION)
        residual_ptrs += step * stride_residual_n
        input_ptrs += step * stride_input_n
    return product, sums


@triton.jit
def backward_weight_kernel(
    residual_ptr,  # (N, M)
    input_ptr,  # (N, K)
    grad_output_ptr,  # () or (N, M)
    weight_grad_ptr,  # (M, K), or the workspace: (parts, M K + M), a part's dW and then its db
    bias_grad_ptr,  # (M,), or the same workspace
    scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    K,
    M,
    rows_per_part,
    stride_residual_n,
    stride_residual_m,
    stride_input_n,
    stride_input_k,
    stride_grad_n,
    stride_grad_m,
    WANT_BIAS: tl.constexpr,
    MATRIX_GRAD_OUTPUT: tl.constexpr,
    WORKSPACE: tl.constexpr,  # store this part's plain sums: add_parts_kernel does the rest
    EVEN_N: tl.constexpr,  # every step has BLOCK_N rows: the loop needs no mask
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    part = tl.program_id(1)
    tile_m, tile_k = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_K))
    offsets_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offsets_k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, N)

    rows = (first + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    columns = wrapped(offsets_m, M)[None, :]
    residual_ptrs = residual_ptr + rows * stride_residual_n + columns * stride_residual_m
    input_ptrs = input_ptr + rows * stride_input_n + wrapped(offsets_k, K)[None, :] * stride_input_k
    grad_ptrs = residual_ptrs
    if MATRIX_GRAD_OUTPUT:
        grad_ptrs = grad_output_ptr + rows * stride_grad_n + columns * stride_grad_m
    factor = tl.full((), 1.0, ACCUMULATOR)
    if WORKSPACE:
        matrix_elements = tl.cast(M, tl.int64) * K
        weight_grad_ptr += part * (matrix_elements + M)
        bias_grad_ptr += part * (matrix_elements + M) + matrix_elements
    else:
        factor = tl.full((), scale, ACCUMULATOR)
        if not MATRIX_GRAD_OUTPUT:
            factor *= tl.load(grad_output_ptr).to(ACCUMULATOR)

    mask_m = offsets_m < M
    if WANT_BIAS and tile_k == 0:
        # A loop of its own: in a common one every program would load E into registers as well, and a branch in the loop
        # can make the assembler put a wait behind each of Hopper's matrix instructions.
        weight_grad, sums = product_over_rows(
            residual_ptrs, input_ptrs, grad_ptrs, stride_residual_n, stride_input_n, stride_grad_n, first, last,
            True, MATRIX_GRAD_OUTPUT, EVEN_N, INPUT_PRECISION, ACCUMULATOR, BLOCK_N, BLOCK_K, BLOCK_M,
        )  # fmt: skip
        tl.store(bias_grad_ptr + offsets_m, tl.sum(sums, axis=0) * factor, mask=mask_m)
    else:
        weight_grad, _ = product_over_rows(
            residual_ptrs, input_ptrs, grad_ptrs, stride_residual_n, stride_input_n, stride_grad_n, first, last,
            False, MATRIX_GRAD_OUTPUT, EVEN_N, INPUT_PRECISION, ACCUMULATOR, BLOCK_N, BLOCK_K, BLOCK_M,
        )  # fmt: skip
    weight_grad_ptrs = weight_grad_ptr + offsets_m.to(tl.int64)[:, None] * K + offsets_k[None, :]
    tl.store(weight_grad_ptrs, weight_grad * factor, mask=mask_m[:, None] & (offsets_k < K)[None, :])


@triton.jit(do_not_specialize=["parts"])
def add_parts_kernel(
    workspace_ptr,  # (parts, weight_size + bias_size)
    grad_output_ptr,  # ()
    weight_grad_ptr,  # (weight_size,)
    bias_grad_ptr,  # (bias_size,)
    scale: tl.float64,
    parts,
    weight_size,
    size,  # weight_size + bias_size, or weight_size if no bias is wanted
    stride_part,
    MATRIX_GRAD_OUTPUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Few rows of many numbers: one step a row, in order. (reduce.py adds many rows of few.)"""
    ACCUMULATOR: tl.constexpr = workspace_ptr.dtype.element_ty
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    workspace_ptrs = workspace_ptr + offsets
    acc = tl.zeros((BLOCK,), ACCUMULATOR)
    for _ in range(parts):
        acc += tl.load(workspace_ptrs, mask=offsets < size, other=0.0)
        workspace_ptrs += stride_part
    factor = tl.full((), scale, ACCUMULATOR)
    if not MATRIX_GRAD_OUTPUT:
        factor *= tl.load(grad_output_ptr).to(ACCUMULATOR)
    acc *= factor
    tl.store(weight_grad_ptr + offsets, acc, mask=offsets < weight_size)
    tl.store(bias_grad_ptr + offsets - weight_size, acc, mask=(offsets >= weight_size) & (offsets < size))


def backward_weight(
    residual: Tensor,  # (N, M)
    input: Tensor,  # (N, K)
    grad_output: Tensor,  # () or (N, M)
    *,
    scale: float,
    config: Config,
    split: int,
    input_precision: str,
    want_bias: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight and bias: scale · (grad_output ∘ residual)ᵀ @ input, and scale times the column sums.

    Parameters
    ----------
    residual
        E, unscaled; rounded to the input's dtype as it enters the product, unrounded in the column sums. Any strides.
    grad_output
        One number, read on the device and applied after the product, or a matrix of any strides, applied before it.
    scale
        Applied once, after the last addition, in the accumulator's precision.
    config
        block_m × block_k is the tile, block_n the step of the reduction.
    split
        Parts that the rows are cut into. More than one: partial sums go through a workspace of split · (M K + M)
        numbers in the accumulator's precision.
    input_precision
        "ieee" or "tf32", for float32.

    Returns
    -------
    (M, K) and (M,), or None without want_bias, of out_dtype, contiguous. Bitwise repeatable for one config and split.
    """
    n, m = residual.shape
    k = input.shape[1]
    device = input.device
    weight_grad = torch.empty((m, k), dtype=out_dtype, device=device)
    bias_grad = torch.empty(m, dtype=out_dtype, device=device) if want_bias else None
    bias_out = weight_grad if bias_grad is None else bias_grad  # never written without want_bias
    matrix = grad_output.dim() == 2
    workspace = None
    if split > 1:
        workspace = torch.empty((split, m * k + m), dtype=accumulator_dtype(input.dtype), device=device)
    blocks = -(-n // config.block_n)
    tiles = -(-m // config.block_m) * -(-k // config.block_k)
    launch(
        backward_weight_kernel,
        (tiles, split),  # a program for every tile of dW and every part of the rows
        residual,
        input,
        grad_output,
        weight_grad if workspace is None else workspace,
        bias_out if workspace is None else workspace,
        scale,
        n,
        k,
        m,
        -(-blocks // split) * config.block_n,
        *residual.stride(),
        *input.stride(),
        *(grad_output.stride() if matrix else (0, 0)),
        WANT_BIAS=want_bias,
        MATRIX_GRAD_OUTPUT=matrix,
        WORKSPACE=workspace is not None,
        EVEN_N=n % config.block_n == 0,
        INPUT_PRECISION=input_precision,
        ACCUMULATOR=accumulator(input.dtype),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_M=config.block_m,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
    if workspace is not None:
        size = m * k + (m if want_bias else 0)
        launch(
            add_parts_kernel,
            (-(-size // SUM_BLOCK),),  # one program a block of gradients
            workspace,
            grad_output,
            weight_grad,
            bias_out,
            scale,
            split,
            m * k,
            size,
            m * k + m,
            MATRIX_GRAD_OUTPUT=matrix,
            BLOCK=SUM_BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return weight_grad, bias_grad
