"""Gradients that the forward pass has made, for grad_output = 1, in the memory that the user gets as `.grad`.

Nothing of size N x M is then kept for the backward pass, which scales them where they lie and gives them away.

A gradient already has its factor c, applied in the accumulator's precision before the one rounding; where grad_output is a
power of two, as without a factor or with a GradScaler, scaling is exact and there is no second rounding. float32, float64
and bfloat16 have the range for that. float16 has not: c E W may be less than its least number (2⁻²⁴) where
grad_output c E W is not. So each row of a float16 gradient is kept times a power of two that brings its largest number to
between 2¹⁴ and 2¹⁵, and these powers, one float32 a row, are taken back in the backward pass: no overflow, and no
underflow before a number is 2³⁸ times smaller than the largest of its row.
"""

import torch
from torch import Tensor

from . import Forward

_BLOCK = 1 << 18  # numbers of a half-precision gradient that a CPU widens at a time
_TOP = 15  # float16 ends just below 2¹⁶


def powers_for(gradient: Tensor, wide: torch.dtype) -> Tensor | None:
    """Room for the powers of a gradient's rows, (N, 1), where its type needs them."""
    if gradient.dtype is not torch.float16:
        return None
    return torch.empty(gradient.shape[0], 1, dtype=wide, device=gradient.device)


def put(
    out: Tensor,  # (rows, K)
    values: Tensor,  # (rows, K)
    scale: float,
    powers: Tensor | None,  # (rows, 1)
) -> None:
    """out = scale · values, rounded once; rows of float16 as the powers say, which are written."""
    if powers is None:
        torch.mul(values, scale, out=out)
        return
    largest = torch.linalg.vector_norm(values, float("inf"), dim=1, keepdim=True, dtype=powers.dtype).mul_(abs(scale))
    power = (largest / torch.frexp(largest).mantissa).clamp_(min=2.0**-100)  # exact: a power of two above the largest
    power.nan_to_num_(nan=2.0**_TOP)  # 0, Inf and NaN have no such power, and stay what they are
    torch.mul(power, 2.0**-_TOP, out=powers)
    torch.mul(values, scale / powers, out=out)


def given_away(
    saved: Forward, grad_output: Tensor, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight (in its dtype), target and bias for this grad_output, in the saved ones' own memory.

    Whoever calls owns `saved`, and has it no more afterwards.
    """
    if not grad_output.is_cuda and grad_output.item() == 1:  # known without waiting, and true of most losses
        grad_output = None
    return (
        _scaled(saved.grad_input, grad_output, saved.input_powers),
        _narrowed(saved.grad_weight, grad_output, dtype),
        _scaled(saved.grad_target, grad_output, saved.target_powers),
        _narrowed(saved.grad_bias, grad_output, dtype),
    )


def _scaled(gradient: Tensor | None, grad_output: Tensor | None, powers: Tensor | None) -> Tensor | None:
    """The gradient times grad_output and its rows' powers, in place: in float32 at least, and rounded once."""
    if gradient is None or (grad_output is None and powers is None):
        return gradient
    wide = torch.promote_types(gradient.dtype, torch.float32)
    # In two dimensions: a tensor without would be rounded to the gradient's type first.
    factor = None if grad_output is None else grad_output.to(wide).view(1, 1)
    if powers is not None:
        factor = powers if factor is None else powers.mul_(factor)
    if gradient.is_cuda or gradient.dtype is wide:
        return torch.mul(gradient, factor, out=gradient)
    rows = max(1, _BLOCK // gradient.shape[1])  # a CPU would widen all of it at once
    factors = factor.expand(gradient.shape[0], 1).split(rows)
    for part, by in zip(gradient.split(rows), factors, strict=True):
        torch.mul(part, by, out=part)
    return gradient


def _narrowed(gradient: Tensor | None, grad_output: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A sum in the accumulator's dtype, times grad_output: in place, or in the parameter's narrower dtype, rounded once."""
    if gradient is None:
        return None
    if gradient.dtype is dtype:
        return gradient if grad_output is None else gradient.mul_(grad_output.to(dtype))
    if grad_output is None:
        return gradient.to(dtype)
    out = torch.empty_like(gradient, dtype=dtype)
    if gradient.is_cuda or gradient.dim() < 2:
        return torch.mul(gradient, grad_output.to(gradient.dtype), out=out)
    rows = max(1, _BLOCK // gradient.shape[1])
    for part, narrow in zip(gradient.split(rows), out.split(rows), strict=True):
        torch.mul(part, grad_output.to(gradient.dtype), out=narrow)
    return out
