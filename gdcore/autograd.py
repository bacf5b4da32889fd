"""The autograd.Function around a backend's forward and backward pass.

Where the plan makes all gradients in the forward pass, the first backward pass scales them in place and gives them away: no
copy of what may be large, and no one else holds what becomes `.grad`. A later backward pass over a graph that was kept
computes them anew, from tensors that must then be as they were. Such gradients are no saved tensors: hooks for those see
the arguments alone.
"""

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
        ctx.early = saved._replace(loss=None) if plan.all_in_forward else None
        kept = (None, None, None) if plan.all_in_forward else (saved.residual, saved.grad_weight, saved.grad_bias)
        # Stock keeps the weight only for the input's gradient and the input only for the weight's, so a change between
        # the passes is an error only then. The double backward needs all, and checks their versions itself.
        ctx.save_for_backward(input if wanted.weight else None, weight if wanted.input else None, target, *kept)
        ctx.unsaved = _versioned(input), _versioned(weight), _versioned(bias)
        ctx.reduction, ctx.wanted, ctx.plan, ctx.backend = reduction, wanted, plan, backend
        # .data: autograd forbids in-place changes of a view that was made in here, and users write loss /= steps.
        return (saved.loss.view(target.shape) if reduction == "none" else saved.loss).data

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[override]
        _, _, target, residual, grad_weight, grad_bias = ctx.saved_tensors
        input, weight, bias = (tensor for tensor, _ in ctx.unsaved)
        wanted = ctx.wanted
        if torch.is_grad_enabled() or _is_batched(grad_output):
            _check_unchanged(ctx.unsaved, "this backward pass cannot begin with it (create_graph or is_grads_batched)")
            gradients = differentiable_gradients(grad_output, input, weight, target, bias, ctx.reduction, wanted)
        else:
            saved = Forward(None, residual, grad_weight, grad_bias)  # type: ignore[arg-type]
            if ctx.plan.all_in_forward:
                saved, ctx.early = ctx.early, None
                if saved is None:
                    _check_unchanged(ctx.unsaved, "this second backward pass cannot compute the gradients anew")
                    saved = run_forward(ctx.backend, input, weight, target, bias, ctx.reduction, wanted, ctx.plan)
            gradients = run_backward(
                ctx.backend, grad_output, input, weight, target, saved, ctx.reduction, wanted, ctx.plan
            )
        return *gradients, None, None, None, None


def _versioned(tensor: Tensor | None) -> tuple[Tensor | None, int | None]:
    return tensor, None if tensor is None or tensor.is_inference() else tensor._version


def _is_batched(grad_output: Tensor) -> bool:
    """By autograd.grad(is_grads_batched=True), or by torch.func.vmap around it."""
    return torch._C._functorch.is_legacy_batchedtensor(grad_output) or torch._C._functorch.is_batchedtensor(grad_output)


def _check_unchanged(tensors: tuple[tuple[Tensor | None, int | None], ...], what: str) -> None:
    """Autograd's own check covers only what stock saves."""
    if any(t is not None and version is not None and t._version != version for t, version in tensors):
        raise RuntimeError(
            f"input, weight or bias has been modified by an inplace operation since the forward pass, so {what}"
        )


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
