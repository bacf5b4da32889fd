"""Where rows come from: memory, a memory-mapped file, batches that somebody else makes."""

import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import shuffle
from .spec import Spec, as_tensor, check_data

Pair = tuple[Tensor, Tensor]  # x (rows, K), y (rows, M)
_ORDER_NUMBERS = 1 << 16  # rows whose order is drawn at a time


class Table:
    """x (N, K) and y (N, M) in memory or in files. Pages of a file are given back after use, so a pass holds a block of them."""

    block_bytes = 4 << 20  # read at a time in a pass over all rows

    def __init__(self, x: Any, y: Any) -> None:
        self.x, target = as_tensor("x", x), as_tensor("y", y)
        check_data(self.x, target)
        self.single = target.dim() == 1
        self.y = target.unsqueeze(1) if self.single else target
        self.maps = [found for found in (_map_of(x), _map_of(y)) if found is not None]

    @property
    def nbytes(self) -> int:
        return self.x.numel() * self.x.itemsize + self.y.numel() * self.y.itemsize

    def release(self) -> None:
        for found in self.maps:
            found.madvise(mmap.MADV_DONTNEED)

    def blocks(self, parts: int = 1) -> Iterator[Pair]:
        """All rows, some at a time, in order; in blocks a `parts`th of the usual, where they will be widened."""
        rows = max(1, self.block_bytes * len(self.x) // max(parts * self.nbytes, 1))
        for pair in zip(self.x.split(rows), self.y.split(rows), strict=True):
            yield pair
            self.release()

    def passes(self) -> Iterator[Iterator[Pair]]:
        """A pass over all rows for each step."""
        while True:
            yield self.blocks()

    def batches(self, spec: Spec) -> Iterator[Pair]:
        """A mini-batch for each step, gathered."""
        for rows, sizes in shuffle.batches(
            spec.seed, spec.n, spec.batch_size, spec.steps, _ORDER_NUMBERS, self.x.device
        ):
            for part in rows.split(sizes):
                yield self.x.index_select(0, part), self.y.index_select(0, part)
                self.release()


def _map_of(data: Any) -> mmap.mmap | None:
    """The mapped file under an array, if its pages can be dropped: a private, copied-on-write map would lose what was written."""
    while isinstance(data, np.ndarray):
        if isinstance(data, np.memmap) and data.mode != "c":
            found = getattr(data, "_mmap", None)
            return found if hasattr(mmap, "MADV_DONTNEED") else None
        data = data.base
    return None


def batches_of(iterable: Iterable, records: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The (x, y) of each batch, from the beginning again when they end; ends where the iterable cannot be iterated twice.

    `records`: whether autograd does so where the iterable comes from; it makes its batches as it would there.
    """
    while True:
        count = 0
        for count, batch in enumerate(_recording(iterable, records), 1):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise TypeError(f"x must give batches (x, y), but batch {count - 1} is {_what(batch)}")
            x, y = (as_tensor(name, part) for name, part in zip("xy", batch, strict=True))
            check_data(x, y)
            yield x, y
        if not count:
            return


def _recording(iterable: Iterable, records: bool) -> Iterator:
    iterator = iter(iterable)
    while True:
        with torch.set_grad_enabled(records):
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch


_END = object()


def _what(batch: Any) -> str:
    return f"{len(batch)} things" if isinstance(batch, (tuple, list)) else f"of type {type(batch).__name__}"


def alike(batches: Iterable[tuple[Tensor, Tensor]], k: int, y: Tensor) -> Iterator[Pair]:
    """The batches with targets of two dimensions; raises for one that is not like the first."""
    for i, (x, target) in enumerate(batches):
        if x.shape[1] != k or target.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"batch {i} has x {tuple(x.shape)} and y {tuple(target.shape)}, but the first one had {k} features and "
                f"targets (rows, *{tuple(y.shape[1:])})"
            )
        yield x, target.unsqueeze(1) if target.dim() == 1 else target
