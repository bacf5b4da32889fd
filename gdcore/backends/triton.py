"""The Triton kernels behind the backends' interface: which kernel runs is the plan's choice, how it is launched is kernels/'s."""

import torch
from torch import Tensor

from ..kernels.backward_input import backward_input
from ..kernels.backward_target import backward_target
from ..kernels.backward_weight import backward_weight
from ..kernels.forward import forward as tiled_forward
from ..kernels.loss import loss as loss_of
from ..kernels.one_pass_dot import one_pass_dot
from ..kernels.one_pass_rows import one_pass_rows
from ..kernels.one_pass_vector import one_pass_vector
from ..plan import Plan, accumulator_dtype
from . import Forward, Wanted
from .common import in_dtype, on_device_of, wide_product
from .triton_step import new_counter, step

__all__ = ["backward", "forward", "new_counter", "step"]

_ONE_PASS = {"one_pass_rows": one_pass_rows, "one_pass_vector": one_pass_vector, "one_pass_dot": one_pass_dot}


def forward(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str, wanted: Wanted, plan: Plan
) -> Forward:
    n, m = target.shape
    loss_dtype = torch.promote_types(input.dtype, target.dtype)
    residual = input.new_empty(n, m, dtype=loss_dtype) if plan.store_residual else None
    loss_scale = 1 / (n * m) if reduction == "mean" else 1.0
    with on_device_of(input):
        if plan.path in _ONE_PASS:
            sums = _ONE_PASS[plan.path](
                input,
                weight,
                target,
                bias,
                config=plan.config,
                programs=plan.programs,
                loss_scale=loss_scale,
                grad_scale=2 * loss_scale,
                want_grads=wanted.weight or wanted.bias,
                residual=residual,
                input_precision=plan.input_precision,
            )
            loss = in_dtype(sums[0], loss_dtype)
            if not (wanted.weight or wanted.bias):
                return Forward(loss, residual)
            return Forward(
                loss,
                residual,
                sums.as_strided((m, plan.k), (plan.k, 1), 1 + m) if wanted.weight else None,
                sums[1 : 1 + m] if wanted.bias else None,
            )
        if plan.path == "library":
            residual = torch.addmm(target if bias is None else target - bias, input, weight.t(), beta=-1)
            return Forward(
                loss_of(residual, loss_scale=loss_scale).to(loss_dtype), residual if plan.store_residual else None
            )
        squares = input.new_empty(n, m, dtype=loss_dtype) if reduction == "none" else None
        loss = tiled_forward(
            input,
            weight,
            target,
            bias,
            config=plan.config,
            loss_scale=loss_scale,
            residual=residual,
            squares=squares,
            input_precision=plan.input_precision,
        )
        return Forward(squares if loss is None else loss.to(loss_dtype), residual)


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
    n, m = target.shape
    scale = 2 / (n * m) if reduction == "mean" else 2.0
    d_input = d_weight = d_target = d_bias = None
    if saved.grad_weight is not None:
        d_weight = in_dtype(saved.grad_weight * grad_output, weight.dtype)
    if saved.grad_bias is not None:
        d_bias = in_dtype(saved.grad_bias * grad_output, weight.dtype)
    missing_weight, missing_bias = wanted.weight and d_weight is None, wanted.bias and d_bias is None
    products = _library_gradients if plan.path == "library" else _tiled_gradients
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


def _tiled_gradients(grad_output, scale, input, weight, residual, want_input, want_weight, want_bias, plan: Plan):
    """dX, dW and db by the tiled kernels. The sums of E come with dW, so db alone costs that product too."""
    d_input = d_weight = d_bias = None
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


_CHUNK_BYTES = 256 << 20  # of a wide temporary


def _library_gradients(grad_output, scale, input, weight, residual, want_input, want_weight, want_bias, plan: Plan):
    """dX, dW and db by the library's products, kept wide until c and grad_output have been applied."""
    d_input = d_weight = d_bias = None
    wide = accumulator_dtype(input.dtype)
    upstream = grad_output.to(wide) * scale
    if want_input:
        d_input = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        rows = max(1, _CHUNK_BYTES // (wide.itemsize * plan.k))
        for out, e in zip(d_input.split(rows), residual.split(rows), strict=True):
            torch.mul(wide_product(e, weight, wide), upstream, out=out)
    if want_weight:
        d_weight = wide_product(residual.t(), input, wide).mul_(upstream).to(weight.dtype)
    if want_bias:
        d_bias = residual.sum(0, dtype=wide).mul_(upstream).to(weight.dtype)
    return d_input, d_weight, d_bias
