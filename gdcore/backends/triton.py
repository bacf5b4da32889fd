"""The Triton kernels behind the backends' interface: which kernel runs is the plan's choice, how it is launched is kernels/'s."""

import torch
from torch import Tensor

from ..kernels import configs
from ..kernels.backward_input import backward_input
from ..kernels.backward_products import backward_products
from ..kernels.backward_products_descriptors import backward_products_descriptors
from ..kernels.backward_target import backward_target
from ..kernels.backward_weight import backward_weight
from ..kernels.one_pass_dot import one_pass_dot
from ..kernels.one_pass_rows import one_pass_rows
from ..kernels.one_pass_tall import one_pass_tall
from ..kernels.one_pass_vector import one_pass_vector
from ..kernels.tiles import descriptors_fit
from ..plan import Plan
from . import Forward, Wanted, early, triton_chunked, triton_library, triton_tiled
from .common import in_dtype, on_device_of
from .triton_step import new_counter, step
from .triton_tall import launch_of

__all__ = ["backward", "forward", "new_counter", "step"]

ONE_PASS = {
    "one_pass_rows": one_pass_rows,
    "one_pass_vector": one_pass_vector,
    "one_pass_dot": one_pass_dot,
    "one_pass_tall": one_pass_tall,
}


def forward(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str, wanted: Wanted, plan: Plan
) -> Forward:
    if plan.path == "chunked":
        with on_device_of(input):
            return triton_chunked.forward(input, weight, target, bias, reduction, wanted, plan)
    if plan.path == "library":
        with on_device_of(input):
            return triton_library.forward(input, weight, target, bias, reduction, plan)
    n, m = target.shape
    loss_dtype = torch.promote_types(input.dtype, target.dtype)
    residual = input.new_empty(n, m, dtype=loss_dtype) if plan.store_residual else None
    loss_scale = 1 / (n * m) if reduction == "mean" else 1.0
    with on_device_of(input):
        if plan.path in ONE_PASS:
            config, programs = launch_of(plan, input, target)
            sums = ONE_PASS[plan.path](
                input,
                weight,
                target,
                bias,
                config=config,
                programs=programs,
                loss_scale=loss_scale,
                grad_scale=2 * loss_scale,
                want_grads=wanted.weight or wanted.bias,
                residual=residual,
                input_precision=plan.input_precision,
            )
            return from_sums(sums, residual, loss_dtype, wanted, plan)
        squares = input.new_empty(n, m, dtype=loss_dtype) if reduction == "none" else None
        loss = triton_tiled.forward(
            input, weight, target, bias, plan, loss_scale=loss_scale, residual=residual, squares=squares
        )
        return Forward(squares if loss is None else loss.to(loss_dtype), residual)


def from_sums(sums: Tensor, residual: Tensor | None, loss_dtype: torch.dtype, wanted: Wanted, plan: Plan) -> Forward:
    """What a one-pass kernel's sums are: loss, db, dW, one after another."""
    m, k = plan.m, plan.k
    return Forward(
        in_dtype(sums[0], loss_dtype),
        residual,
        sums.as_strided((m, k), (k, 1), 1 + m) if wanted.weight else None,
        sums[1 : 1 + m] if wanted.bias else None,
    )


def backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    saved: Forward,
    reduction: str,
    wanted: Wanted,
    plan: Plan,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    if plan.all_in_forward:
        return early.given_away(saved, grad_output, weight.dtype)
    n, m = target.shape
    scale = 2 / (n * m) if reduction == "mean" else 2.0
    d_input = d_weight = d_target = d_bias = None
    if saved.grad_weight is not None:
        d_weight = _times(saved.grad_weight, grad_output, weight.dtype)
    if saved.grad_bias is not None:
        d_bias = _times(saved.grad_bias, grad_output, weight.dtype)
    missing_weight, missing_bias = wanted.weight and d_weight is None, wanted.bias and d_bias is None
    by_library = plan.path in ("library", "epilogue") or (wanted.input and plan.input_config is None)
    products = triton_library.gradients if by_library else _tiled_gradients
    with on_device_of(input):
        if missing_weight or missing_bias or wanted.input:
            d_input, late_weight, late_bias = products(
                grad_output, scale, input, weight, saved.residual, wanted.input, missing_weight, missing_bias, plan
            )
            d_weight = late_weight if missing_weight else d_weight
            d_bias = late_bias if missing_bias else d_bias
        if wanted.target:
            d_target = torch.empty(n, m, dtype=target.dtype, device=target.device)
            backward_target(saved.residual, grad_output, scale=scale, out=d_target)
    return d_input, d_weight, d_target, d_bias


def _times(gradient: Tensor, grad_output: Tensor, dtype: torch.dtype) -> Tensor:
    """Their product, rounded to the parameter's type in the same launch."""
    if gradient.dtype is dtype:  # to bring a place for it costs the host as much again as the product
        return gradient * grad_output
    return torch.mul(gradient, grad_output, out=torch.empty(gradient.shape, dtype=dtype, device=gradient.device))


def _tiled_gradients(grad_output, scale, input, weight, residual, want_input, want_weight, want_bias, plan: Plan):
    """dX, dW and db by the tiled kernels. The sums of E come with dW, so db alone costs that product too."""
    d_input = d_weight = d_bias = None
    if plan.products_config is not None and want_input and (want_weight or want_bias):
        on_descriptors = plan.device.architecture >= 90 and configs.product_offered(
            "backward_products_descriptors",
            plan.device.architecture,
            plan.dtype,
            input_precision=plan.input_precision,
            wide=residual.dtype is not input.dtype,
        )
        if on_descriptors:
            weight = triton_tiled.by_rows(weight)
        if not on_descriptors or descriptors_fit(residual, input, weight):
            d_input = torch.empty(input.shape, dtype=input.dtype, device=input.device)
            d_weight, d_bias = (backward_products_descriptors if on_descriptors else backward_products)(
                residual,
                input,
                weight,
                grad_output,
                scale=scale,
                config=plan.products_config,
                split=plan.products_split,
                input_precision=plan.input_precision,
                want_bias=want_bias,
                out_input=d_input,
                out_dtype=weight.dtype,
            )
            return d_input, d_weight, d_bias
    if want_input:
        d_input = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        backward_input(
            residual,
            weight,
            grad_output,
            scale=scale,
            config=plan.input_config,
            input_precision=plan.input_precision,
            out=d_input,
        )
    if want_weight or want_bias:
        d_weight, d_bias = backward_weight(
            residual,
            input,
            grad_output,
            scale=scale,
            config=plan.weight_config,
            split=plan.split,
            input_precision=plan.input_precision,
            want_bias=want_bias,
            out_dtype=weight.dtype,
        )
    return d_input, d_weight, d_bias
