"""The library path: the library's products, which nothing beats where arithmetic is the limit, and one fused pass.

Forward    P = X Wᵀ in the accumulator's dtype; then E = P + b − Y, its squares' sum, and E stored in P's own memory (beside
           it in half precision): 4 N M numbers, where the stock composition moves 5 and 3 more for its gradient.
Backward   c E in one pass, and the products write the gradients themselves; where W and dW are so much smaller than E that it
           takes less, c enters there: in W before dX's product, and in dW before it is rounded. Of float16, where c E
           and c W may underflow, dW and dX are made wide first, or dX by the tiled kernel, which applies c to its sums.
           It is the epilogue path's too, whose E comes from our own product, stored from its accumulators.

As many launches as stock has, or fewer, and less traffic: where the products are all the time, it is never behind.
"""

import torch
from torch import Tensor

from .. import cost, workspace
from ..cost import Asked
from ..kernels.backward_input import backward_input
from ..kernels.backward_target import backward_target
from ..kernels.column_sums import column_sums
from ..kernels.configs import column_sums_wins
from ..kernels.reduce import add_rows
from ..kernels.residual import residual_of
from ..plan import Plan, accumulator_dtype
from . import Forward, Wanted
from .common import in_dtype, wide_product


def forward(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str, plan: Plan) -> Forward:
    n, m = target.shape
    wide = accumulator_dtype(input.dtype)
    loss_dtype = torch.promote_types(input.dtype, target.dtype)
    loss_scale = 1 / (n * m) if reduction == "mean" else 1.0
    squares = input.new_empty(n, m, dtype=loss_dtype) if reduction == "none" else None
    narrow = input.dtype is not wide
    residual = input.new_empty(n, m, dtype=loss_dtype) if plan.store_residual and narrow else None
    rows = max(1, workspace.WIDE_BYTES // (wide.itemsize * m)) if narrow else n  # E itself is what a whole P becomes
    partials = []
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        product = wide_product(input[part], weight.t(), wide)
        if not narrow:
            residual = product if plan.store_residual else None
        partials.append(
            residual_of(
                product,
                target[part],
                bias,
                loss_scale=loss_scale,
                residual=None if residual is None else residual if not narrow else residual[part],
                squares=None if squares is None else squares[part],
            )
        )
    if squares is not None:
        return Forward(squares, residual)
    sums = partials[0] if len(partials) == 1 else torch.cat(partials)
    loss = sums if len(sums) == 1 else add_rows(sums)
    return Forward(in_dtype(loss.view(()), loss_dtype), residual)


def gradients(
    grad_output: Tensor,
    scale: float,
    input: Tensor,
    weight: Tensor,
    residual: Tensor,
    want_input: bool,
    want_weight: bool,
    want_bias: bool,
    plan: Plan,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dX, dW and db; E is left as it is, so that a second backward pass can follow."""
    d_input = d_weight = d_bias = None
    wide = accumulator_dtype(input.dtype)
    reduction = "none" if grad_output.dim() == 2 else "mean"
    wanted = Wanted(want_input, want_weight, False, want_bias)
    if cost.scales_residual(plan, Asked(residual.dtype, wanted, reduction, True, want_bias)):
        scaled = torch.empty_like(residual, dtype=input.dtype)
        _times(residual, grad_output, scale, scaled)
        d_input = scaled @ weight if want_input else None
        d_weight = scaled.t() @ input if want_weight else None
        if want_bias and reduction == "mean" and column_sums_wins(*residual.shape, residual.itemsize):
            d_bias = column_sums(residual, grad_output, scale=scale, out_dtype=weight.dtype)
        elif want_bias:
            d_bias = scaled.sum(0)
        return d_input, d_weight, d_bias
    if want_input and plan.input_config is not None and input.dtype is torch.float16:
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
    elif want_input and input.dtype is torch.float16:
        product = wide_product(residual, weight, wide)
        d_input = _times(product, grad_output, scale, torch.empty_like(product, dtype=input.dtype))
        del product  # N K numbers in float32, before dW's are made
    elif want_input:
        d_input = residual @ _times(weight, grad_output, scale, torch.empty_like(weight))
    if want_weight:
        product = wide_product(residual.t(), input, wide)
        d_weight = _times(product, grad_output, scale, torch.empty_like(product, dtype=weight.dtype))
    if want_bias:
        d_bias = bias_gradient(residual, grad_output, scale, weight.dtype)
    return d_input, d_weight, d_bias


def bias_gradient(residual: Tensor, grad_output: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """scale · grad_output · Σₙ E, rounded once. PyTorch's sum of a tall E takes half as much memory as E, or more."""
    if column_sums_wins(*residual.shape, residual.itemsize):
        return column_sums(residual, grad_output, scale=scale, out_dtype=dtype)
    sums = residual.sum(0, dtype=accumulator_dtype(residual.dtype))
    if grad_output is not None:
        return _times(sums.view(1, -1), grad_output, scale, sums.new_empty(1, len(sums), dtype=dtype)).view(-1)
    return in_dtype(sums if scale == 1 else sums.mul_(scale), dtype)


def _times(values: Tensor, grad_output: Tensor, scale: float, out: Tensor) -> Tensor:
    """scale · grad_output ∘ values, in the accumulator's precision, rounded once: the target's kernel with the sign turned."""
    backward_target(values, grad_output, scale=-scale, out=out)
    return out
