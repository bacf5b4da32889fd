"""The tiled kernels, on tensor descriptors where these tensors allow it: what linear_mse and a whole step share."""

from torch import Tensor

from ..kernels.backward_weight_step import backward_weight_step
from ..kernels.backward_weight_step_descriptors import backward_weight_step_descriptors
from ..kernels.configs import Config, epilogue_config, product_config, product_offered
from ..kernels.forward import forward as by_pointers
from ..kernels.forward_descriptors import forward_descriptors
from ..kernels.step import Step
from ..kernels.tiles import descriptors_fit, rows_aligned
from ..plan import Plan


def forward(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    plan: Plan,
    *,
    loss_scale: float,
    residual: Tensor | None,
    squares: Tensor | None,
) -> Tensor | None:
    """The loss, or None with `squares`; these and `residual` are written."""
    arguments = {
        "loss_scale": loss_scale,
        "residual": residual,
        "squares": squares,
        "input_precision": plan.input_precision,
    }
    if plan.forward_config is not None:
        weight = by_rows(weight)
    matrices = (input, weight, target, residual, squares)
    if plan.forward_config is None or not descriptors_fit(*(t for t in matrices if t is not None)):
        return by_pointers(input, weight, target, bias, config=plan.config, **arguments)
    programs = plan.device.sms
    return forward_descriptors(input, weight, target, bias, config=plan.forward_config, programs=programs, **arguments)


def by_rows(weight: Tensor) -> Tensor:
    """The weight as descriptors take it: matmul_mse's is a transpose, and M K numbers are little beside such a product."""
    return weight if weight.stride(1) == 1 else weight.contiguous()


def update(residual: Tensor, input: Tensor, step: Step, plan: Plan, *, scale: float) -> None:
    """Steps weight and bias by scale · Eᵀ X and scale · Σ E, where the product ends or where its parts are added."""
    precision = plan.input_precision
    if plan.split > 1:
        backward_weight_step(
            residual,
            input,
            step,
            scale=scale,
            config=plan.weight_config,
            split=plan.split,
            input_precision=precision,
        )
        return
    stepped = (step.weight,) if step.momentum_buffer is None else (step.weight, step.momentum_buffer)
    aligned = rows_aligned(residual, input, *stepped)
    config = _on_descriptors(residual, input, plan) if aligned else None
    if config is not None:
        backward_weight_step_descriptors(residual, input, step, scale=scale, config=config, input_precision=precision)
        return
    config = epilogue_config(plan.weight_config, input.dtype, precision, aligned)
    backward_weight_step(residual, input, step, scale=scale, config=config, split=1, input_precision=precision)


def _on_descriptors(residual: Tensor, input: Tensor, plan: Plan) -> Config | None:
    """The configuration of the product on descriptors that steps, or None where it does not serve."""
    family, architecture = "backward_weight_step_descriptors", plan.device.architecture
    options = {"input_precision": plan.input_precision, "wide": residual.dtype is not input.dtype}
    if not product_offered(family, architecture, input.dtype, **options) or not descriptors_fit(residual, input):
        return None
    return product_config(family, architecture, input.dtype, plan.n, plan.k, plan.m, **options)
