"""The streaming CPU path: rows in cache-sized blocks, one worker a core, loss and gradients in one read of the data.

A block's residual lives in a buffer that stays in cache: E = X Wᵀ − (Y − b) by one `addmm`, its square by `dot`, EᵀX added
to the worker's own gradient, the block's rows of dX = c E W and dY = −c E written. Nothing of size N x M is made beside dY;
only where rows of E are short, and dX is all that needs them, they are kept, which costs less than to scale dX once more.
Workers own contiguous ranges of rows and their sums are added in order, so a run repeats bitwise for a given number of
threads.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from .. import plan as planning
from ..update import Update, apply_
from . import Forward, Wanted, early

_T = TypeVar("_T")
_DOT_LENGTH = 1 << 15  # a float32 dot product loses digits beyond this many terms

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _after_fork() -> None:
    """A forked child has the pools but not their threads, and perhaps a lock that nobody will release."""
    global _pools_lock
    _pools.clear()
    _pools_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _use_one_core() -> None:
    torch.get_num_threads()  # a thread's first question sets its count to everyone's; only then can it be its own
    torch.set_num_threads(1)


def _pool(workers: int) -> ThreadPoolExecutor:
    """A pool whose threads run torch on one core each."""
    with _pools_lock:
        if workers not in _pools:
            everyone_is_here = threading.Barrier(workers)
            pool = ThreadPoolExecutor(workers, "gdcore", initializer=_use_one_core)
            list(pool.map(lambda _: everyone_is_here.wait(), range(workers)))
            torch.set_num_threads(workers)  # the initializers also set what threads started later would take
            _pools[workers] = pool
        return _pools[workers]


def _over_rows(job: Callable[[int, int, int], _T], rows: int, plan: planning.Plan) -> list[_T]:
    """job(start, stop, block) over equal ranges of rows, one a worker; results in order. One worker is the caller."""
    inference = torch.is_inference_mode_enabled()
    if plan.workers == 1:
        return [_quietly(job, inference, 0, rows, plan.block_rows)]
    span = -(-rows // plan.workers)
    pool = _pool(plan.workers)
    starts = range(0, rows, span)
    futures = [pool.submit(_quietly, job, inference, i, min(i + span, rows), plan.block_rows) for i in starts]
    return [future.result() for future in futures]


def _quietly(job: Callable[[int, int, int], _T], inference: bool, start: int, stop: int, block: int) -> _T:
    """The job without recording: grad mode and inference mode belong to a thread."""
    with torch.inference_mode() if inference else torch.no_grad():
        return job(start, stop, block)


class _Widener:
    """Row blocks of a tensor in a given dtype: the rows themselves, or a copy in one reused buffer."""

    def __init__(self, tensor: Tensor, dtype: torch.dtype, block: int) -> None:
        self.tensor = tensor
        self.buffer = None if tensor.dtype is dtype else torch.empty(block, tensor.shape[1], dtype=dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        rows = self.tensor[start:stop]
        return rows if self.buffer is None else self.buffer[: stop - start].copy_(rows)


def _sum_of_squares(residual: Tensor) -> float:
    flat = residual.view(-1)
    if flat.numel() <= _DOT_LENGTH:
        return torch.dot(flat, flat).item()
    return sum(torch.dot(part, part).item() for part in flat.split(_DOT_LENGTH))


def _added(parts: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """The workers' gradients, added in their order into the first one's."""
    total = list(parts[0])
    for part in parts[1:]:
        for sum_, more in zip(total, part, strict=True):
            if sum_ is not None:
                sum_.add_(more)
    return total


def forward(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    wanted: Wanted,
    plan: planning.Plan,
) -> Forward:
    n, m = target.shape
    k = weight.shape[1]
    dtype, loss_dtype = planning.accumulator_dtype(input.dtype), torch.promote_types(input.dtype, target.dtype)
    weight_t, bias = weight.to(dtype).t(), None if bias is None else bias.to(dtype)
    residual = torch.empty(n, m, dtype=loss_dtype) if plan.store_residual else None
    squares = torch.empty(n, m, dtype=loss_dtype) if reduction == "none" else None
    want_weight, want_bias = plan.grad_in_forward and wanted.weight, plan.grad_in_forward and wanted.bias
    grad_input = torch.empty(n, k, dtype=input.dtype) if plan.all_in_forward and wanted.input else None
    grad_target = torch.empty(n, m, dtype=target.dtype) if plan.all_in_forward and wanted.target else None
    input_powers = None if grad_input is None else early.powers_for(grad_input, dtype)
    target_powers = None if grad_target is None else early.powers_for(grad_target, dtype)
    scale = 1 / (n * m) if reduction == "mean" else 1.0
    columns = plan.block_columns or m
    spans = [slice(left, min(left + columns, m)) for left in range(0, m, columns)]

    def stream(start: int, stop: int, block: int) -> tuple[float, Tensor | None, Tensor | None]:
        total = 0.0
        grad_weight = torch.zeros(m, k, dtype=dtype) if want_weight else None
        grad_bias = torch.zeros(m, dtype=dtype) if want_bias else None
        block = min(block, stop - start)
        buffer = torch.empty(block * columns, dtype=dtype)
        x_rows = _Widener(input, dtype, block)
        products = None if grad_input is None or grad_input.dtype is dtype else torch.empty(block, k, dtype=dtype)
        whole = buffer.view(block, m) if columns == m else None
        sums = grad_weight, grad_bias  # sliced once: a block of few outputs takes little longer than its slices
        pieces = [(s, weight_t[:, s], *(None if t is None else t[s] for t in (bias, *sums))) for s in spans]
        for first in range(start, stop, block):
            last = min(first + block, stop)
            rows, x = slice(first, last), x_rows.rows(first, last)
            for outputs, w, offset, into_weight, into_bias in pieces:
                if whole is not None:
                    y, e = target[rows], whole[: last - first]
                else:
                    y = target[rows, outputs]
                    e = buffer[: y.numel()].view(y.shape)
                if offset is None:
                    e.copy_(y)
                else:
                    torch.sub(y, offset, out=e)
                e.addmm_(x, w, beta=-1)
                if squares is None:
                    total += _sum_of_squares(e)
                else:
                    torch.mul(e, e, out=squares[rows]) if loss_dtype is dtype else squares[rows].copy_(e * e)
                if residual is not None:
                    residual[rows] = e
                if into_weight is not None:
                    into_weight.addmm_(e.t(), x)
                if into_bias is not None:
                    into_bias.add_(e.sum(0))
                if grad_target is not None:
                    early.put(grad_target[rows, outputs], e, -2 * scale, _part(target_powers, rows))
                if grad_input is not None:
                    part, factor = (grad_input[rows], 2 * scale) if products is None else (products[: last - first], 1)
                    torch.addmm(part, e, w.t(), beta=1 if outputs.start else 0, alpha=factor, out=part)
            if products is not None:
                early.put(grad_input[rows], products[: last - first], 2 * scale, _part(input_powers, rows))
        return total, grad_weight, grad_bias

    parts = _over_rows(stream, n, plan)
    if squares is not None:
        return Forward(squares, residual)
    loss = torch.tensor(sum(total for total, _, _ in parts) * scale, dtype=loss_dtype)
    grad_weight, grad_bias = _added([gradients for _, *gradients in parts])
    for gradient in (grad_weight, grad_bias):
        if gradient is not None:
            gradient.mul_(2 * scale)
    return Forward(loss, residual, grad_weight, grad_bias, grad_input, grad_target, input_powers, target_powers)


def _part(powers: Tensor | None, rows: slice) -> Tensor | None:
    return None if powers is None else powers[rows]


def backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    saved: Forward,
    reduction: str,
    wanted: Wanted,
    plan: planning.Plan,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    if plan.all_in_forward:
        return early.given_away(saved, grad_output, weight.dtype)
    n, m = target.shape
    scale = 2 / (n * m) if reduction == "mean" else 2.0
    grad_weight = grad_bias = None
    if saved.grad_weight is not None:
        grad_weight = (saved.grad_weight * grad_output).to(weight.dtype)
    if saved.grad_bias is not None:
        grad_bias = (saved.grad_bias * grad_output).to(weight.dtype)
    missing = Wanted(
        wanted.input, wanted.weight and grad_weight is None, wanted.target, wanted.bias and grad_bias is None
    )
    if not any(missing):
        return None, grad_weight, None, grad_bias

    dtype = planning.accumulator_dtype(input.dtype)
    wide_weight = weight.to(dtype) if wanted.input else None
    grad_input = torch.empty(n, weight.shape[1], dtype=input.dtype) if wanted.input else None
    grad_target = torch.empty(n, m, dtype=target.dtype) if wanted.target else None
    upstream = scale * grad_output.item() if grad_output.dim() == 0 else None

    def stream(start: int, stop: int, block: int) -> tuple[Tensor | None, Tensor | None]:
        part_weight = torch.zeros_like(weight, dtype=dtype) if missing.weight else None
        part_bias = torch.zeros(m, dtype=dtype) if missing.bias else None
        block = min(block, stop - start)
        buffer = torch.empty(block, m, dtype=dtype)
        x_rows = _Widener(input, dtype, block) if missing.weight else None
        for first in range(start, stop, block):
            last = min(first + block, stop)
            g = buffer[: last - first]
            if upstream is not None:
                torch.mul(saved.residual[first:last].to(dtype), upstream, out=g)
            else:
                torch.mul(saved.residual[first:last].to(dtype), grad_output[first:last].to(dtype), out=g).mul_(scale)
            if grad_input is not None:
                if grad_input.dtype is dtype:
                    torch.mm(g, wide_weight, out=grad_input[first:last])
                else:
                    grad_input[first:last] = g @ wide_weight
            if part_weight is not None:
                part_weight.addmm_(g.t(), x_rows.rows(first, last))
            if part_bias is not None:
                part_bias.add_(g.sum(0))
            if grad_target is not None:
                grad_target[first:last] = g.neg_()
        return part_weight, part_bias

    parts = _over_rows(stream, n, plan)
    part_weight, part_bias = _added(parts)
    if part_weight is not None:
        grad_weight = part_weight.to(weight.dtype)
    if part_bias is not None:
        grad_bias = part_bias.to(weight.dtype)
    return grad_input, grad_weight, grad_target, grad_bias


def step(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    update: Update,
    momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    plan: planning.Plan,
) -> Tensor:
    """Loss before one update of weight and bias, in place: gradients from one read of the data, or a few plain calls."""
    if plan.path == "stock" and weight.dtype is input.dtype and input.numel() + target.numel() <= SMALL_NUMBERS:
        return small_step(input, weight, target, bias, *update, momentum_buffer, bias_momentum_buffer)
    operand = weight if weight.dtype is input.dtype else weight.to(input.dtype)
    offset = bias if bias is None or bias.dtype is input.dtype else bias.to(input.dtype)
    wanted = Wanted(weight=True, bias=bias is not None)
    saved = forward(input, operand, target, offset, "mean", wanted, plan)
    apply_(update, weight, saved.grad_weight, momentum_buffer)
    if bias is not None:
        apply_(update, bias, saved.grad_bias, bias_momentum_buffer)
    return saved.loss


SMALL_NUMBERS = 1 << 22  # of input and target: beyond, cache-sized blocks are faster than whole passes


def small_step(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
) -> Tensor:
    """The fewest calls that make stock's roundings, to the last bit of weight and bias, where the calls are all the cost.

    All tensors have one dtype. Scaled before the product and not after it, as autograd does: near zero, where a parameter
    changes its sign, two right results have few digits in common.
    """
    count = target.numel()
    residual = _linear(input, weight, bias).sub_(target)
    flat = residual.view(-1)
    squares = flat.dot(flat) if count <= _DOT_LENGTH else sum(part.dot(part) for part in flat.split(_DOT_LENGTH))
    loss = squares.mul_(_as_tensor(1 / count, residual.dtype))
    residual.mul_(_as_tensor((-2 if maximize else 2) / count, residual.dtype))
    grad_weight = residual.t().mm(input)
    grad_bias = None if bias is None else residual.sum(0)
    if momentum or weight_decay:
        update = Update(lr, momentum, dampening, weight_decay, nesterov)
        apply_(update, weight, grad_weight, momentum_buffer)
        if bias is not None:
            apply_(update, bias, grad_bias, bias_momentum_buffer)
    else:
        weight.sub_(grad_weight, alpha=lr)
        if bias is not None:
            bias.sub_(grad_bias, alpha=lr)
    return loss


_linear = torch._C._nn.linear


@functools.lru_cache(maxsize=64)
def _as_tensor(number: float, dtype: torch.dtype) -> Tensor:
    """PyTorch makes a tensor of every number that it multiplies by, which takes as long as a small product."""
    with torch.inference_mode(False):
        return torch.tensor(number, dtype=dtype, device="cpu")
