"""Wide heads: rows in chunks, E of a chunk in one buffer that the next chunk writes over, all gradients in the forward pass.

For every chunk of rows: E = X Wᵀ + b − Y, loss += Σ E², dW += Eᵀ X, db += Σₙ E, its rows of dX = c E W and of dY = −c E.
Nothing of size N x M is made beside dY, and the backward pass only scales (early.py). Products are the library's; E comes
from its product and one fused pass, or from the tiled kernel where that is predicted to be faster.

Memory   inputs + gradients + one chunk of E. Half-precision types also take the sums dW and db in float32; with a bias
         WIDE_ROWS of X Wᵀ in float32; float16 a chunk of dX in float32 and one number a row; and a wanted dY of a wider
         target a chunk of E in its type.
Time     the products of the unchunked path; dW is read and written once a chunk.
Order    of rows: bitwise repeatable for a given number of rows in a chunk.
"""

import functools

import torch
from torch import Tensor

from ..chunks import WIDE_ROWS, row_ranges
from ..kernels.backward_input import backward_input
from ..kernels.backward_weight import backward_weight
from ..kernels.column_sums import column_sums
from ..kernels.forward import forward as tiled_forward
from ..kernels.loss import loss as loss_of
from ..kernels.reduce import add_rows
from ..kernels.residual import residual_of
from ..plan import Plan, accumulator_dtype
from ..update import Update, apply_
from . import Forward, Wanted, early
from .common import in_dtype, wide_product

_BLOCK_BYTES = 256 << 20  # of the sums that a product is added to in a second step, where the library has no first


def forward(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str, wanted: Wanted, plan: Plan
) -> Forward:
    n, m = target.shape
    k = weight.shape[1]
    wide, loss_dtype = accumulator_dtype(input.dtype), torch.promote_types(input.dtype, target.dtype)
    loss_scale = 1 / (n * m) if reduction == "mean" else 1.0
    scale = 2 * loss_scale
    ranges = row_ranges(n, plan.chunk_rows)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=input.device)

    losses = empty(len(ranges), dtype=wide)
    grad_input = empty(n, k, dtype=input.dtype) if wanted.input else None
    grad_weight = empty(m, k, dtype=wide) if wanted.weight else None
    grad_target = empty(n, m, dtype=target.dtype) if wanted.target else None
    grad_bias = empty(m, dtype=wide).zero_() if wanted.bias else None
    input_powers = None if grad_input is None else early.powers_for(grad_input, wide)
    target_powers = None if grad_target is None else early.powers_for(grad_target, wide)
    residual = empty(plan.chunk_rows, m, dtype=loss_dtype if wanted.target else input.dtype)
    narrow = None if residual.dtype is input.dtype else torch.empty_like(residual, dtype=input.dtype)
    products = None if input_powers is None else empty(plan.chunk_rows, k, dtype=wide)
    one = None if plan.weight_config is None else torch.ones((), dtype=wide, device=input.device)

    for number, (first, last) in enumerate(ranges):
        rows = slice(first, last)
        x, e = input[rows], residual[: last - first]
        losses[number] = _residual(x, weight, target[rows], bias, e, loss_scale, plan)
        if grad_target is not None:
            early.put(grad_target[rows], e, -scale, None if target_powers is None else target_powers[rows])
        if grad_bias is not None:
            grad_bias.add_(column_sums(e))
        if narrow is not None and (wanted.input or wanted.weight):
            e = narrow[: last - first].copy_(e)
        if one is not None:
            _by_kernels(grad_input, grad_weight, rows, x, weight, e, one, scale, plan)
            continue
        if grad_weight is not None:
            _add_product(grad_weight, e.t(), x, is_first=first == 0)
        if products is not None:
            product = _product_into(products[: last - first], e, weight)
            early.put(grad_input[rows], product, scale, input_powers[rows])
        elif grad_input is not None:
            part = grad_input[rows]
            torch.addmm(part, e, weight, beta=0, alpha=scale, out=part)  # c enters before the one rounding
    for gradient in (grad_weight if one is None else None, grad_bias):
        if gradient is not None:
            gradient.mul_(scale)
    loss = losses.sum().to(loss_dtype)
    return Forward(loss, None, grad_weight, grad_bias, grad_input, grad_target, input_powers, target_powers)


def step(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    update: Update,
    momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    plan: Plan,
) -> Tensor:
    """Loss before the update, which comes after the last chunk: until then every chunk reads the weights as they were."""
    operand = in_dtype(weight, input.dtype)
    offset = None if bias is None else in_dtype(bias, input.dtype)
    wanted = Wanted(weight=True, bias=bias is not None)
    saved = forward(input, operand, target, offset, "mean", wanted, plan)
    apply_(update, weight, saved.grad_weight, momentum_buffer)
    if bias is not None:
        apply_(update, bias, saved.grad_bias, bias_momentum_buffer)
    return in_dtype(saved.loss, torch.promote_types(saved.loss.dtype, weight.dtype))


def _residual(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, out: Tensor, loss_scale: float, plan: Plan
) -> Tensor:
    """Writes a chunk's E and returns its part of the loss."""
    if plan.config is not None:
        return tiled_forward(
            x,
            weight,
            target,
            bias,
            config=plan.config,
            loss_scale=loss_scale,
            residual=out,
            squares=None,
            input_precision=plan.input_precision,
        )
    wide = accumulator_dtype(x.dtype)
    if out.dtype is not wide and out.dtype is target.dtype and bias is None:
        out.copy_(
            target
        )  # half precision: the library rounds once, what it adds is no wider, and nothing is made in float32
        out.addmm_(x, weight.t(), beta=-1)
        return loss_of(out, loss_scale=loss_scale)
    partials = []
    rows = len(out) if out.dtype is wide else min(len(out), WIDE_ROWS)
    buffer = out if out.dtype is wide else torch.empty(rows, len(weight), dtype=wide, device=x.device)
    for first, last in row_ranges(len(out), rows):
        product = _product_into(buffer[: last - first], x[first:last], weight.t())
        part = residual_of(
            product, target[first:last], bias, loss_scale=loss_scale, residual=out[first:last], squares=None
        )
        partials.append(part)
    return add_rows(torch.cat(partials)).view(())


def _by_kernels(
    grad_input: Tensor | None, grad_weight: Tensor | None, rows: slice, x: Tensor, weight: Tensor, e: Tensor, one: Tensor,
    scale: float, plan: Plan,
) -> None:  # fmt: skip
    """A chunk's dX and its part of dW from the tiled kernels: in a precision that the library's products do not have."""
    if grad_input is not None:
        backward_input(
            e,
            weight,
            one,
            scale=scale,
            config=plan.input_config,
            input_precision=plan.input_precision,
            out=grad_input[rows],
        )
    if grad_weight is not None:
        product, _ = backward_weight(
            e,
            x,
            one,
            scale=scale,
            config=plan.weight_config,
            split=plan.split,
            input_precision=plan.input_precision,
            want_bias=False,
            out_dtype=grad_weight.dtype,
        )
        grad_weight.copy_(product) if rows.start == 0 else grad_weight.add_(product)


def _add_product(sums: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """sums += a @ b, or = where it is the first, in the dtype of the sums."""
    if a.dtype is sums.dtype:
        torch.addmm(sums, a, b, beta=0 if is_first else 1, out=sums)
    elif is_first:
        _product_into(sums, a, b)
    elif a.is_cuda and _adds_wide(a.device, a.dtype):
        torch.ops.aten.addmm.dtype_out(sums, a, b, sums.dtype, out=sums)
    else:
        rows = max(1, _BLOCK_BYTES // (sums.itemsize * sums.shape[1]))
        for part, of_a in zip(sums.split(rows), a.split(rows), strict=True):
            part.add_(wide_product(of_a, b, sums.dtype))


def _product_into(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out = a @ b, in the dtype of out, which half-precision products are never rounded below."""
    if a.dtype is out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


@functools.cache
def _adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the library adds a half-precision product to float32 sums, which it came to later than to making them."""
    a, sums = (torch.zeros(16, 16, dtype=of, device=device) for of in (dtype, torch.float32))
    try:
        torch.ops.aten.addmm.dtype_out(sums, a, a, torch.float32, out=sums)
    except (AttributeError, RuntimeError):
        return False
    return True
