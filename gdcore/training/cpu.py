"""Small data on a CPU: four library calls a step, on data that stays in the cache.

A column of ones joins X where an intercept is fitted, so that one product forms the residual and one the whole gradient:

    E = A W − Y,    loss = E·E,    G = AᵀE,    W ← W − lr c G        A = [X, 1]  (N, R)

No autograd, no temporary: everything is written to where it was last time. At 100 rows a step is what four calls of a
library cost. Mini-batches are gathered many at a time.

A lies in memory by columns, and so do E and Y where there are several outputs: with few columns the library's products
are much faster that way round (1,437 x 64 x 10: a quarter of the time). Only a single output is predicted from A by
rows, so then both are kept.
The update is not folded into the product, W ← W − lr c AᵀE in one call, though it could: then the sum over the rows is made
in W's own digits (digits, 400 steps: coefficients 1e-5 off instead of 1e-7).
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import shuffle
from .engine import Engine
from .spec import Spec

_DOT_LENGTH = 1 << 15  # a float32 dot product loses digits beyond this many terms
_UNIT_BYTES, _UNIT_BATCHES = 2 << 20, 64  # that are gathered at a time
_ORDER_NUMBERS = 1 << 18  # rows whose order is drawn at a time


class _Batch(NamedTuple):
    a: Tensor  # (N, R)
    a_t: Tensor  # (R, N)
    y: Tensor  # (N, 1), or (M, N) where there are several outputs
    e: Tensor  # like y, written
    flat: Tensor  # e as one row
    squares: Tensor | None  # where a dot product would lose digits
    scale: float  # 2 / (N M)


class CacheRun(Engine):
    """The run of a data set, or of mini-batches of it, in library calls."""

    chunk = 1024

    def __init__(self, spec: Spec, start: Tensor, x: Tensor, y: Tensor) -> None:
        super().__init__(spec, start)
        if spec.m > 1:  # each (R, M), by columns
            places = torch.empty_like(self._places.mT, memory_format=torch.contiguous_format)
            self._places = places.mT.copy_(self._places)
        self._grad = torch.empty_like(self._places[0])
        self._momentum = torch.zeros_like(self._grad)
        self._batches = self._mini_batches(x, y) if spec.batch_size else self._full_batches(x, y)

    def _full_batches(self, x: Tensor, y: Tensor) -> Iterator[_Batch]:
        a, targets = self._room(x, self.spec.n)
        a[:, : self.spec.k] = x
        targets.copy_(y)
        return itertools.repeat(self._batch(a, a.t().contiguous(), targets))  # by columns too, if it is not already

    def _mini_batches(self, x: Tensor, y: Tensor) -> Iterator[_Batch]:
        spec = self.spec
        row_bytes = spec.dtype.itemsize * (spec.parameter_rows + spec.m)
        together = max(1, min(_UNIT_BATCHES, _UNIT_BYTES // (row_bytes * spec.batch_size)))
        a, targets = self._room(x, together * spec.batch_size)

        @functools.cache  # gathered to the same places again and again
        def batch(first: int, size: int) -> _Batch:
            part = a[first : first + size]
            return self._batch(part, part.t(), targets[first : first + size])

        for rows, sizes in shuffle.batches(spec.seed, spec.n, spec.batch_size, spec.steps, _ORDER_NUMBERS, x.device):
            used = 0
            for i in range(0, len(sizes), together):
                unit = sizes[i : i + together]
                count = sum(unit)
                part = rows[used : used + count]
                used += count
                a[:count, : spec.k] = x.index_select(0, part)
                targets[:count] = y.index_select(0, part)
                for last, size in zip(itertools.accumulate(unit), unit, strict=True):
                    yield batch(last - size, size)

    def _room(self, like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Room for so many rows of A, ones at first, and of Y: by columns, but of a single output A by rows."""
        spec = self.spec
        if spec.m == 1:
            a = like.new_ones(rows, spec.parameter_rows, dtype=spec.dtype)
            return a, like.new_empty(rows, 1, dtype=spec.dtype)
        a = like.new_ones(spec.parameter_rows, rows, dtype=spec.dtype)
        return a.t(), like.new_empty(spec.m, rows, dtype=spec.dtype).t()

    def _batch(self, a: Tensor, a_t: Tensor, y: Tensor) -> _Batch:
        y = y if self.spec.m == 1 else y.t()
        e = torch.empty_like(y, memory_format=torch.contiguous_format)
        flat = e.view(-1)
        squares = torch.empty_like(flat) if flat.numel() > _DOT_LENGTH else None
        return _Batch(a, a_t, y, e, flat, squares, 2 / flat.numel())

    def advance(self, count: int) -> None:
        first, alone = self.done, self.spec.m == 1
        losses = self.losses[first : first + count].unbind()
        for step, loss, batch in zip(range(first, first + count), losses, self._batches, strict=False):
            w, after = self.parameters_at(step), self.parameters_at(step + 1)
            if alone:
                torch.addmm(batch.y, batch.a, w, beta=-1, out=batch.e)
            else:
                torch.addmm(batch.y, w.t(), batch.a_t, beta=-1, out=batch.e)
            if batch.squares is None:
                torch.dot(batch.flat, batch.flat, out=loss)
            else:
                torch.sum(torch.mul(batch.flat, batch.flat, out=batch.squares), 0, out=loss)
            self._update(batch, w, after)
            self.done = step + 1

    def _update(self, batch: _Batch, w: Tensor, after: Tensor) -> None:
        spec = self.spec
        grad = self._grad
        if spec.m == 1:
            torch.mm(batch.a_t, batch.e, out=grad)
        else:
            torch.mm(batch.e, batch.a, out=grad.t())
        if spec.momentum:
            grad = self._momentum.mul_(spec.momentum).add_(grad, alpha=batch.scale)
            if spec.weight_decay:
                grad.add_(w, alpha=spec.weight_decay)
            torch.add(w, grad, alpha=-spec.lr, out=after)
        elif spec.weight_decay:
            torch.mul(w, 1 - spec.lr * spec.weight_decay, out=after).add_(grad, alpha=-spec.lr * batch.scale)
        else:
            torch.add(w, grad, alpha=-spec.lr * batch.scale, out=after)

    def finished_losses(self) -> Tensor:
        """Sums of squares become means."""
        spec = self.spec
        losses = super().finished_losses()
        counts = torch.full_like(losses, spec.batch_size or spec.n)
        if spec.batch_size and spec.n % spec.batch_size:
            counts[spec.updates_per_epoch - 1 :: spec.updates_per_epoch] = spec.n % spec.batch_size
        return losses / (counts * spec.m)
