"""The autograd.Function around a backend's forward and backward pass."""

import torch
from torch import Tensor

from . import autocast
from .backends import Forward, Wanted, reference
from .plan import Plan

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class LinearMSE(torch.autograd.Function):
    """Loss of input (..., K), weight (M, K), target (..., M), bias (M,); gradients are computed as early as the plan says."""

    @staticmethod
    def forward(ctx, input, weight, target, bias, reduction, wanted, plan, backend):  # type: ignore[override]
        saved = run_forward(backend, input, weight, target, bias, reduction, wanted, plan)
        # Stock keeps the weight only for the input's gradient, so a weight that changes between the passes is an error
        # only then. The double backward needs it always, and checks its version itself.
        ctx.save_for_backward(input, weight if wanted.input else None, target, *saved[1:])
        ctx.unsaved = (weight, weight._version, bias, None if bias is None else bias._version)
        ctx.reduction, ctx.wanted, ctx.plan, ctx.backend = reduction, wanted, plan, backend
        return saved.loss.view(target.shape) if reduction == "none" else saved.loss

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[override]
        input, _, target, residual, grad_weight, grad_bias = ctx.saved_tensors
        weight, weight_version, bias, bias_version = ctx.unsaved
        if torch.is_grad_enabled():
            if weight._version != weight_version or (bias is not None and bias._version != bias_version):
                raise RuntimeError(
                    "weight or bias has been modified by an inplace operation since the forward pass, so this "
                    "backward pass cannot record a graph (create_graph=True)"
                )
            gradients = differentiable_gradients(grad_output, input, weight, target, bias, ctx.reduction, ctx.wanted)
        else:
            saved = Forward(None, residual, grad_weight, grad_bias)  # type: ignore[arg-type]
            gradients = run_backward(
                ctx.backend, grad_output, input, weight, target, saved, ctx.reduction, ctx.wanted, ctx.plan
            )
        return *gradients, None, None, None, None


def run_forward(backend, input, weight, target, bias, reduction: str, wanted: Wanted, plan: Plan | None) -> Forward:
    """A backend's forward pass on tensors of any leading dimensions."""
    with autocast.off(input):
        return backend.forward(_rows(input), weight, _rows(target), bias, reduction, wanted, plan)


def run_backward(
    backend,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    saved: Forward,
    reduction: str,
    wanted: Wanted,
    plan: Plan | None,
) -> Gradients:
    """A backend's backward pass; gradients have the shapes of what they belong to."""
    upstream = _rows(grad_output) if reduction == "none" else grad_output
    with autocast.off(input):
        d_input, d_weight, d_target, d_bias = backend.backward(
            upstream, _rows(input), weight, _rows(target), saved, reduction, wanted, plan
        )
    return (
        None if d_input is None else d_input.view(input.shape),
        d_weight,
        None if d_target is None else d_target.view(target.shape),
        d_bias,
    )


def differentiable_gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    wanted: Wanted,
) -> Gradients:
    """The same gradients from differentiable operations, for create_graph=True."""
    everything = Wanted(True, True, True, True)
    saved = run_forward(reference, input, weight, target, bias, "none", everything, None)
    return run_backward(reference, grad_output, input, weight, target, saved, reduction, wanted, None)


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])
