"""One SGD update of weight and bias from gradients that are never stored: they come as partial sums, and leave as an update.

    g ← Σᵢ partials[i] + λ w
    v ← μ v + (1 − τ) g
    w ← w − lr (g + μ v if nesterov, else v, else g)        without momentum there is no v

For each number of the weight: the partial sums in, w (and v) in and out; about 8 FLOPs. All is computed in the
accumulator's dtype and rounded once, when w and v are stored. A gradient to ascend comes with its sign changed.

This file has the update as a device function, and the second launch behind a one-pass kernel whose partial sums are too
many for one program: as reduce.py adds them, a program for each block of columns, and then steps what belongs to those.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .common import narrow
from .launch import launch
from .reduce import SUM_WARPS, WIDE_ALIGNMENT, add_columns, reduce_tile, wide_tile


@triton.jit
def numbers_of(lr_ptr, lr, mu, undamped, decay, nesterov, DTYPE: tl.constexpr):
    """The hyperparameters in the accumulator's dtype, as update_at takes them; lr_ptr is None where lr is a number."""
    if lr_ptr is not None:
        rate = tl.load(lr_ptr).to(DTYPE)
    else:
        rate = tl.full((), lr, DTYPE)  # not a cast, which of the interpreter's Python floats makes float32 first
    return rate, tl.full((), mu, DTYPE), tl.full((), undamped, DTYPE), tl.full((), decay, DTYPE), nesterov


@triton.jit
def update_at(
    param_ptr,
    momentum_ptr,  # None without momentum
    offsets,  # in both
    grad,  # in the accumulator's dtype
    mask,
    numbers,  # of numbers_of
):
    """Load, step and store the numbers at these offsets."""
    lr, mu, undamped, decay, nesterov = numbers
    w = tl.load(param_ptr + offsets, mask=mask, other=0.0).to(grad.dtype)
    g = tl.where(decay != 0, grad + decay * w, grad)  # not 0 * w, which of an infinite w is NaN
    if momentum_ptr is not None:
        v = mu * tl.load(momentum_ptr + offsets, mask=mask, other=0.0).to(grad.dtype) + undamped * g
        tl.store(momentum_ptr + offsets, narrow(v, momentum_ptr.dtype.element_ty), mask=mask)
        g = tl.where(nesterov != 0, g + mu * v, v)
    tl.store(param_ptr + offsets, narrow(w - lr * g, param_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_and_step(
    partials_ptr,  # (n_partials, LEAD + M + M K): loss, bias gradient, weight gradient
    n_partials,
    stride,  # of a row of them, in units of UNIT elements
    first,  # column
    loss_ptr,  # ()
    weight_ptr,  # (M, K)
    bias_ptr,  # (M,), None without bias
    momentum_ptr,  # (M, K), of weight's strides, or None
    bias_momentum_ptr,  # (M,), of bias's stride, or None
    stride_wm,
    stride_wk,
    stride_b,
    K,
    M,
    numbers,
    LEAD: tl.constexpr,  # columns for the loss, as reduce.py has them
    LOSSES: tl.constexpr,
    UNIT: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Add BLOCK_M columns of the partial sums over all programs, in a fixed order, and step what they are gradients of."""
    columns = first + tl.arange(0, BLOCK_M)
    sums = add_columns(partials_ptr, n_partials, stride, columns, UNIT, DTYPE, BLOCK_N, BLOCK_M)
    if LEAD > 1:
        loss = tl.sum(tl.where(columns < LOSSES, sums, 0.0), axis=0)
        tl.store(loss_ptr, narrow(loss, loss_ptr.dtype.element_ty), mask=first == 0)
    else:
        tl.store(loss_ptr + columns * 0, narrow(sums, loss_ptr.dtype.element_ty), mask=columns == 0)
    outputs = (columns - LEAD).to(tl.int64)
    if bias_ptr is not None:
        mask_bias = (outputs >= 0) & (outputs < M)
        update_at(bias_ptr, bias_momentum_ptr, outputs * stride_b, sums, mask_bias, numbers)
    places = columns - LEAD - M  # of at most M K, which 32 bits hold: 64 would divide by a routine
    offsets_w = (places // K).to(tl.int64) * stride_wm + (places % K).to(tl.int64) * stride_wk
    update_at(weight_ptr, momentum_ptr, offsets_w, sums, (places >= 0) & (places < M * K), numbers)


@triton.jit(do_not_specialize=["n_partials", "stride", "stride_wm", "stride_wk", "stride_b", "K", "M", "nesterov"])
def add_rows_step_kernel(
    partials_ptr,  # (n_partials, at least LEAD + M + M K)
    n_partials,
    stride,
    loss_ptr,
    weight_ptr,
    bias_ptr,
    momentum_ptr,
    bias_momentum_ptr,
    lr_ptr,
    stride_wm,
    stride_wk,
    stride_b,
    K,
    M,
    lr: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    mu: tl.float64,
    undamped: tl.float64,
    decay: tl.float64,
    nesterov,
    LEAD: tl.constexpr,
    LOSSES: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    dtype: tl.constexpr = partials_ptr.dtype.element_ty
    numbers = numbers_of(lr_ptr, lr, mu, undamped, decay, nesterov, dtype)
    add_and_step(
        partials_ptr, n_partials, stride, tl.program_id(0) * BLOCK_M, loss_ptr, weight_ptr, bias_ptr, momentum_ptr,
        bias_momentum_ptr, tl.cast(stride_wm, tl.int64), tl.cast(stride_wk, tl.int64), tl.cast(stride_b, tl.int64), K, M,
        numbers, LEAD, LOSSES, UNIT, dtype, BLOCK_N, BLOCK_M,
    )  # fmt: skip


class Step(NamedTuple):
    """What a launch updates in place, and how."""

    weight: Tensor  # (M, K), any strides
    bias: Tensor | None  # (M,)
    momentum_buffer: Tensor | None  # (M, K), of weight's strides; None without momentum
    bias_momentum_buffer: Tensor | None  # (M,), of bias's stride
    lr: float | Tensor  # a tensor of one float32 or float64, read on the device
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """momentum_ptr, bias_momentum_ptr and lr_ptr of every kernel that steps."""
        return self.momentum_buffer, self.bias_momentum_buffer, self.lr if isinstance(self.lr, Tensor) else None

    def numbers(self) -> tuple[float, float, float, float, int]:
        """lr, mu, undamped, decay and nesterov of every kernel that steps."""
        lr = 0.0 if isinstance(self.lr, Tensor) else self.lr
        return lr, self.momentum, 1 - self.dampening, self.weight_decay, int(self.nesterov)


def add_rows_step(
    partials: Tensor,  # (rows, at least lead + M + M K), contiguous
    loss: Tensor,  # (), written
    step: Step,
    *,
    lead: int = 1,
    losses: int = 1,
) -> None:
    """Sum a one-pass kernel's workspace over its rows: into the loss, and into an update of weight and bias.

    Parameters
    ----------
    partials
        float32 or float64: loss, gradient of the bias (also where there is none), gradient of the weight. Not modified.
    loss
        In any floating dtype.
    step
        Its tensors are written.
    lead, losses
        Of the first `lead` columns, the first `losses` add up to the loss, as in reduce.py's add_rows.
    """
    n_partials, stride = partials.shape
    m, k = step.weight.shape
    length = lead + m + m * k
    if lead == 1:
        block_n, block_m = reduce_tile(length)
    else:
        block_n, block_m = wide_tile(n_partials, length)
    unit = math.gcd(stride, WIDE_ALIGNMENT)
    # One program for each block of columns.
    launch(
        add_rows_step_kernel,
        (-(-length // block_m),),
        partials,
        n_partials,
        stride // unit,
        loss,
        step.weight,
        step.bias,
        *step.tensors(),
        *step.weight.stride(),
        0 if step.bias is None else step.bias.stride(0),
        k,
        m,
        *step.numbers(),
        LEAD=lead,
        LOSSES=losses,
        UNIT=unit,
        BLOCK_N=block_n,
        BLOCK_M=block_m,
        num_warps=SUM_WARPS,
        enable_fp_fusion=True,
    )
