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
        # Stock keeps the weight only for the input's gradient and the input only for the weight's, so a change between
        # the passes is an error only then. The double backward needs all, and checks their versions itself.
        ctx.save_for_backward(input if wanted.weight else None, weight if wanted.input else None, target, *saved[1:])
        ctx.unsaved = tuple((t, None if t is None or t.is_inference() else t._version) for t in (input, weight, bias))
        ctx.reduction, ctx.wanted, ctx.plan, ctx.backend = reduction, wanted, plan, backend
        # .data: autograd forbids in-place changes of a view that was made in here, and users write loss /= steps.
        return (saved.loss.view(target.shape) if reduction == "none" else saved.loss).data

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[override]
        _, _, target, residual, grad_weight, grad_bias = ctx.saved_tensors
        input, weight, bias = (tensor for tensor, _ in ctx.unsaved)
        wanted = ctx.wanted
        if torch.is_grad_enabled():
            if any(t is not None and version is not None and t._version != version for t, version in ctx.unsaved):
                raise RuntimeError(
                    "input, weight or bias has been modified by an inplace operation since the forward pass, so this "
                    "backward pass cannot record a graph (create_graph=True)"
                )
            gradients = differentiable_gradients(grad_output, input, weight, target, bias, ctx.reduction, wanted)
        else:
            saved = Forward(None, residual, grad_weight, grad_bias)  # type: ignore[arg-type]
            gradients = run_backward(
                ctx.backend, grad_output, input, weight, target, saved, ctx.reduction, wanted, ctx.plan
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
