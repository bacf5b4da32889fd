"""Weight and bias updated in the epilogue of the product that makes their gradients, which are never stored.

dW = scale · Eᵀ X,   db = scale · Σₙ Eₙ,   W, b ← one SGD update (step.py) by dW, db

    E (N, M)   X (N, K)   W (M, K), and its momentum   ->   W, b and their momenta, in place

FLOPs   2 N M K (+ N M for db).
Bytes   as backward_weight.py, with W (and v) read and written in place of dW: 2 M K numbers, 4 with momentum; and with
        the rows split in S > 1 parts the 2 S M K numbers of the workspace, which the kernel that adds them steps from.
Tiling  as backward_weight.py. A tile of W belongs to one program, and nobody reads W here, so it may be written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backward_weight import backward_weight_kernel, product_over_rows
from .configs import SUM_BLOCK, Config, accumulator_dtype
from .launch import launch
from .step import Step, numbers_of, update_at
from .tiles import accumulator, grouped_tile, wrapped


@triton.jit(do_not_specialize=["nesterov"])
def backward_weight_step_kernel(
    residual_ptr,  # (N, M)
    input_ptr,  # (N, K)
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
    stride_residual_n,
    stride_residual_m,
    stride_input_n,
    stride_input_k,
    stride_weight_m,
    stride_weight_k,
    stride_bias,
    EVEN_N: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tile_m, tile_k = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_K))
    offsets_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offsets_k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    rows = tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
    residual_ptrs = residual_ptr + rows * stride_residual_n + wrapped(offsets_m, M)[None, :] * stride_residual_m
    input_ptrs = input_ptr + rows * stride_input_n + wrapped(offsets_k, K)[None, :] * stride_input_k
    numbers = numbers_of(lr_ptr, lr, mu, undamped, decay, nesterov, ACCUMULATOR)
    factor = tl.full((), scale, ACCUMULATOR)
    mask_m = offsets_m < M
    if bias_ptr is not None and tile_k == 0:  # a loop of its own, as in backward_weight.py
        product, sums = product_over_rows(
            residual_ptrs, input_ptrs, residual_ptrs, stride_residual_n, stride_input_n, 0, 0, N,
            True, False, EVEN_N, INPUT_PRECISION, ACCUMULATOR, BLOCK_N, BLOCK_K, BLOCK_M,
        )  # fmt: skip
        grad_bias = tl.sum(sums, axis=0) * factor
        update_at(bias_ptr, bias_momentum_ptr, offsets_m.to(tl.int64) * stride_bias, grad_bias, mask_m, numbers)
    else:
        product, _ = product_over_rows(
            residual_ptrs, input_ptrs, residual_ptrs, stride_residual_n, stride_input_n, 0, 0, N,
            False, False, EVEN_N, INPUT_PRECISION, ACCUMULATOR, BLOCK_N, BLOCK_K, BLOCK_M,
        )  # fmt: skip
    offsets_w = offsets_m.to(tl.int64)[:, None] * stride_weight_m + offsets_k.to(tl.int64)[None, :] * stride_weight_k
    mask = mask_m[:, None] & (offsets_k < K)[None, :]
    update_at(weight_ptr, momentum_ptr, offsets_w, product * factor, mask, numbers)


@triton.jit(do_not_specialize=["parts", "nesterov"])
def add_parts_step_kernel(
    workspace_ptr,  # (parts, M K + M)
    weight_ptr,  # as in backward_weight_step_kernel
    bias_ptr,
    momentum_ptr,
    bias_momentum_ptr,
    lr_ptr,
    scale: tl.float64,
    lr: tl.float64,
    mu: tl.float64,
    undamped: tl.float64,
    decay: tl.float64,
    nesterov,
    parts,
    K,
    M,
    stride_weight_m,
    stride_weight_k,
    stride_bias,
    BLOCK: tl.constexpr,
):
    """Few rows of many numbers: one step a row, in order."""
    dtype: tl.constexpr = workspace_ptr.dtype.element_ty
    weight_size = tl.cast(M, tl.int64) * K
    size = weight_size + M
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    workspace_ptrs = workspace_ptr + offsets
    acc = tl.zeros((BLOCK,), dtype)
    for _ in range(parts):
        acc += tl.load(workspace_ptrs, mask=offsets < size, other=0.0)
        workspace_ptrs += size
    acc *= tl.full((), scale, dtype)
    numbers = numbers_of(lr_ptr, lr, mu, undamped, decay, nesterov, dtype)
    offsets_w = offsets // K * stride_weight_m + offsets % K * stride_weight_k
    update_at(weight_ptr, momentum_ptr, offsets_w, acc, offsets < weight_size, numbers)
    if bias_ptr is not None:
        mask = (offsets >= weight_size) & (offsets < size)
        update_at(bias_ptr, bias_momentum_ptr, (offsets - weight_size) * stride_bias, acc, mask, numbers)


def backward_weight_step(
    residual: Tensor,  # (N, M)
    input: Tensor,  # (N, K)
    step: Step,  # its tensors are written
    *,
    scale: float,
    config: Config,
    split: int,
    input_precision: str,
) -> None:
    """Update weight and bias by scale · residualᵀ @ input, and scale times the column sums.

    Parameters
    ----------
    residual
        E, unscaled; rounded to the input's dtype as it enters the product, unrounded in the column sums. Any strides.
    scale
        Applied once, after the last addition, in the accumulator's precision; negative to ascend.
    config, split, input_precision
        As for backward_weight.
    """
    n, m = residual.shape
    k = input.shape[1]
    strides = *step.weight.stride(), 0 if step.bias is None else step.bias.stride(0)
    tiles = -(-m // config.block_m) * -(-k // config.block_k)
    blocks = -(-n // config.block_n)
    common = {
        "EVEN_N": n % config.block_n == 0,
        "INPUT_PRECISION": input_precision,
        "ACCUMULATOR": accumulator(input.dtype),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_M": config.block_m,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }
    if split == 1:
        launch(
            backward_weight_step_kernel,
            (tiles,),  # a program for every tile of W
            residual,
            input,
            step.weight,
            step.bias,
            *step.tensors(),
            scale,
            *step.numbers(),
            n,
            k,
            m,
            *residual.stride(),
            *input.stride(),
            *strides,
            **common,
        )
        return
    workspace = torch.empty((split, m * k + m), dtype=accumulator_dtype(input.dtype), device=input.device)
    launch(
        backward_weight_kernel,
        (tiles, split),  # a program for every tile of dW and every part of the rows
        residual,
        input,
        residual,  # stands for the upstream gradient, which a workspace never reads
        workspace,
        workspace,
        scale,
        n,
        k,
        m,
        -(-blocks // split) * config.block_n,
        *residual.stride(),
        *input.stride(),
        0,
        0,
        WANT_BIAS=step.bias is not None,
        MATRIX_GRAD_OUTPUT=False,
        WORKSPACE=True,
        **common,
    )
    launch(
        add_parts_step_kernel,
        (-(-(m * k + m) // SUM_BLOCK),),  # one program a block of gradients
        workspace,
        step.weight,
        step.bias,
        *step.tensors(),
        scale,
        *step.numbers(),
        split,
        k,
        m,
        *strides,
        BLOCK=SUM_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
