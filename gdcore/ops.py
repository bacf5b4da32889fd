"""linear_mse as torch.library operators, for torch.compile; eager calls take the autograd.Function, which costs less.

The operators' outputs must have shapes that follow from their arguments alone, so the forward always returns the weight and
bias gradients that are wanted (for a scalar loss), whatever the plan; what is not wanted is an empty tensor. Where N x M is
large it also returns the input's gradient in place of the residual. With a wanted target gradient, and in float16, where the
gradient for grad_output = 1 may underflow, the residual is kept at any size.
"""

import torch
from torch import Tensor

from .autograd import run_backward, run_forward
from .backends import Forward, Wanted, backend_for, load
from .explanation import plan_of
from .plan import accumulator_dtype

_LARGE_RESIDUAL = 1 << 26  # numbers


def _split(input: Tensor, weight: Tensor, target: Tensor, reduction: str, wanted: Wanted) -> tuple[bool, Wanted]:
    """Whether the residual is an output, and which gradients the forward operator returns."""
    if reduction == "none":
        return any(wanted), Wanted(False, False, False, False)
    early_input = (
        wanted.input
        and not wanted.target
        and input.dtype is not torch.float16
        and weight.shape[0] >= weight.shape[1]
        and target.numel() >= _LARGE_RESIDUAL
    )
    return wanted.target or (wanted.input and not early_input), Wanted(early_input, wanted.weight, False, wanted.bias)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, residual, and the gradients of weight, bias and input for grad_output = 1."""
    wanted = Wanted(want_input, want_weight, want_target, want_bias)
    stores_residual, early = _split(input, weight, target, reduction, wanted)
    name = _backend_name(input, target)
    backend = load(name)
    plan = None
    if name != "reference":
        whole = stores_residual
        plan = plan_of(name, input, weight, target, bias, reduction, wanted, keep_residual=whole, may_be_stock=False)
    saved = run_forward(backend, input, weight, target, bias, reduction, wanted, plan)
    d_input, d_weight, d_bias = saved.grad_input, saved.grad_weight, saved.grad_bias
    missing = Wanted(
        early.input and d_input is None, early.weight and d_weight is None, False, early.bias and d_bias is None
    )
    if any(missing):
        one = saved.loss.new_ones((), dtype=accumulator_dtype(input.dtype))
        rest = saved._replace(grad_weight=None, grad_bias=None)
        made = run_backward(backend, one, input, weight, target, rest, reduction, missing, plan)
        d_input, d_weight, d_bias = (
            new if old is None else old for new, old in zip((made[0], made[1], made[3]), (d_input, d_weight, d_bias), strict=True)
        )  # fmt: skip
    wide = accumulator_dtype(input.dtype)
    shared = plan is None or not plan.all_in_forward  # parts of one tensor, which outputs of an operator must not be
    nothing = input.new_empty(0, dtype=wide)
    return (
        saved.loss.reshape(target.shape).clone() if reduction == "none" else saved.loss.clone(),
        saved.residual.reshape(target.shape).to(saved.loss.dtype) if stores_residual else nothing.clone(),
        d_weight.to(wide, copy=shared) if early.weight else nothing.clone(),
        d_bias.to(wide, copy=shared) if early.bias else nothing.clone(),
        d_input.view(input.shape) if early.input else nothing.clone(),
    )


@linear_mse.register_fake
def _(input, weight, target, bias, reduction, want_input, want_weight, want_target, want_bias):
    wanted = Wanted(want_input, want_weight, want_target, want_bias)
    stores_residual, early = _split(input, weight, target, reduction, wanted)
    wide, loss_dtype = accumulator_dtype(input.dtype), torch.promote_types(input.dtype, target.dtype)
    return (
        target.new_empty(target.shape if reduction == "none" else (), dtype=loss_dtype),
        target.new_empty(target.shape if stores_residual else (0,), dtype=loss_dtype if stores_residual else wide),
        weight.new_empty(weight.shape if early.weight else (0,), dtype=wide),
        weight.new_empty((weight.shape[0],) if early.bias else (0,), dtype=wide),
        input.new_empty(input.shape if early.input else (0,), dtype=input.dtype if early.input else wide),
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
    plan = None
    if name != "reference":
        plan = plan_of(name, input, weight, target, None, reduction, wanted, keep_residual=True, may_be_stock=False)
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
    _, residual, d_weight, d_bias, d_input = output
    ctx.mark_non_differentiable(residual, d_weight, d_bias, d_input)
    ctx.save_for_backward(input, weight, target, residual, d_weight, d_bias, d_input)
    ctx.reduction, ctx.wanted = reduction, Wanted(*wanted)


def _gradients(ctx, grad_output, *_):
    input, weight, target, residual, d_weight, d_bias, d_input = ctx.saved_tensors
    stores_residual, early = _split(input, weight, target, ctx.reduction, ctx.wanted)
    late = Wanted(*(w and not e for w, e in zip(ctx.wanted, early, strict=True)))
    late_input = d_target = None
    if stores_residual:
        gradients = linear_mse_backward(grad_output, input, weight, target, residual, ctx.reduction, *late)
        late_input, late_weight, d_target, late_bias = (g if w else None for g, w in zip(gradients, late, strict=True))
    input_gradient = late_input
    if early.input:  # a grad_output without dimensions would be rounded to the gradient's type first
        input_gradient = (d_input * grad_output.reshape([1] * input.dim())).to(input.dtype)
    weight_gradient = (
        (d_weight * grad_output).to(weight.dtype) if early.weight else late_weight if late.weight else None
    )
    bias_gradient = (d_bias * grad_output).to(weight.dtype) if early.bias else late_bias if late.bias else None
    return input_gradient, weight_gradient, d_target, bias_gradient, None, None, None, None, None


linear_mse.register_autograd(_gradients, setup_context=_remember)
