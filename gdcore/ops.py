"""linear_mse as torch.library operators, for torch.compile; eager calls take the autograd.Function, which costs less.

The operators' outputs must have shapes that follow from their arguments alone, so the forward always returns the weight and
bias gradients that are wanted (for a scalar loss), whatever the plan; what is not wanted is an empty tensor.
"""

import torch
from torch import Tensor

from .autograd import run_backward, run_forward
from .backends import Forward, Wanted, backend_for, load
from .explanation import plan_of
from .plan import accumulator_dtype


def _split(reduction: str, wanted: Wanted) -> tuple[bool, Wanted]:
    """Whether the residual is an output, and which gradients the forward operator returns."""
    scalar = reduction != "none"
    early = Wanted(False, scalar and wanted.weight, False, scalar and wanted.bias)
    return wanted.input or wanted.target or (any(wanted) and not scalar), early


@torch.library.custom_op("gdcore::linear_mse", mutates_args=())
def linear_mse(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    want_input: bool,
    want_weight: bool,
    want_target: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, residual, and the gradients of weight and bias for grad_output = 1."""
    wanted = Wanted(want_input, want_weight, want_target, want_bias)
    stores_residual, early = _split(reduction, wanted)
    name = _backend_name(input, target)
    backend = load(name)
    plan = plan_of(name, input, weight, target, bias, reduction, wanted) if name != "reference" else None
    saved = run_forward(backend, input, weight, target, bias, reduction, wanted, plan)
    d_weight, d_bias = saved.grad_weight, saved.grad_bias
    if any(early) and d_weight is None and d_bias is None:
        one = saved.loss.new_ones((), dtype=accumulator_dtype(input.dtype))
        _, d_weight, _, d_bias = run_backward(backend, one, input, weight, target, saved, reduction, early, plan)
    wide = accumulator_dtype(input.dtype)
    nothing = input.new_empty(0, dtype=wide)
    return (
        saved.loss.reshape(target.shape).clone() if reduction == "none" else saved.loss.clone(),
        saved.residual.reshape(target.shape).to(saved.loss.dtype) if stores_residual else nothing.clone(),
        d_weight.to(wide, copy=True) if early.weight else nothing.clone(),
        d_bias.to(wide, copy=True) if early.bias else nothing.clone(),
    )


@linear_mse.register_fake
def _(input, weight, target, bias, reduction, want_input, want_weight, want_target, want_bias):
    stores_residual, early = _split(reduction, Wanted(want_input, want_weight, want_target, want_bias))
    wide, loss_dtype = accumulator_dtype(input.dtype), torch.promote_types(input.dtype, target.dtype)
    return (
        target.new_empty(target.shape if reduction == "none" else (), dtype=loss_dtype),
        target.new_empty(target.shape if stores_residual else (0,), dtype=loss_dtype if stores_residual else wide),
        weight.new_empty(weight.shape if early.weight else (0,), dtype=wide),
        weight.new_empty((weight.shape[0],) if early.bias else (0,), dtype=wide),
    )


@torch.library.custom_op("gdcore::linear_mse_backward", mutates_args=())
def linear_mse_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    residual: Tensor,
    reduction: str,
    want_input: bool,
    want_weight: bool,
    want_target: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients that need the residual: input's, target's, and all of them for reduction="none"."""
    wanted = Wanted(want_input, want_weight, want_target, want_bias)
    name = _backend_name(input, target)
    rows = residual.reshape(-1, residual.shape[-1])
    plan = plan_of(name, input, weight, target, None, reduction, wanted) if name != "reference" else None
    saved = Forward(None, rows)  # type: ignore[arg-type]
    gradients = run_backward(load(name), grad_output, input, weight, target, saved, reduction, wanted, plan)
    return tuple(input.new_empty(0) if gradient is None else gradient for gradient in gradients)  # type: ignore[return-value]


@linear_mse_backward.register_fake
def _(grad_output, input, weight, target, residual, reduction, want_input, want_weight, want_target, want_bias):
    return (
        input.new_empty(input.shape if want_input else (0,)),
        weight.new_empty(weight.shape) if want_weight else input.new_empty(0),
        target.new_empty(target.shape) if want_target else input.new_empty(0),
        weight.new_empty((weight.shape[0],)) if want_bias else input.new_empty(0),
    )


def _backend_name(input: Tensor, target: Tensor) -> str:
    return backend_for(input.device) if input.numel() and target.numel() else "reference"


def _remember(ctx, inputs, output) -> None:
    input, weight, target, _, reduction, *wanted = inputs
    _, residual, d_weight, d_bias = output
    ctx.mark_non_differentiable(residual, d_weight, d_bias)
    ctx.save_for_backward(input, weight, target, residual, d_weight, d_bias)
    ctx.reduction, ctx.wanted = reduction, Wanted(*wanted)


def _gradients(ctx, grad_output, *_):
    input, weight, target, residual, d_weight, d_bias = ctx.saved_tensors
    stores_residual, early = _split(ctx.reduction, ctx.wanted)
    late = Wanted(*(w and not e for w, e in zip(ctx.wanted, early, strict=True)))
    d_input = d_target = None
    if stores_residual:
        gradients = linear_mse_backward(grad_output, input, weight, target, residual, ctx.reduction, *late)
        d_input, late_weight, d_target, late_bias = (g if w else None for g, w in zip(gradients, late, strict=True))
    weight_gradient = (
        (d_weight * grad_output).to(weight.dtype) if early.weight else late_weight if late.weight else None
    )
    bias_gradient = (d_bias * grad_output).to(weight.dtype) if early.bias else late_bias if late.bias else None
    return d_input, weight_gradient, d_target, bias_gradient, None, None, None, None, None


linear_mse.register_autograd(_gradients, setup_context=_remember)
