"""Where rows come from: memory, a memory-mapped file, batches that somebody else makes; and their way to a GPU."""

import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import shuffle
from .spec import Spec, as_tensor, check_data

Pair = tuple[Tensor, Tensor]  # x (rows, K), y (rows, M)


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

    def blocks(self) -> Iterator[Pair]:
        """All rows, some at a time, in order."""
        rows = max(1, self.block_bytes * len(self.x) // max(self.nbytes, 1))
        for pair in zip(self.x.split(rows), self.y.split(rows), strict=True):
            yield pair
            self.release()

    def passes(self) -> Iterator[Iterator[Pair]]:
        """A pass over all rows for each step."""
        while True:
            yield self.blocks()

    def batches(self, spec: Spec) -> Iterator[Pair]:
        """A mini-batch for each step, gathered."""
        for rows, _ in shuffle.batches(spec.seed, spec.n, spec.batch_size, spec.steps, 1, torch.device("cpu")):
            for part in rows.to(self.x.device).split(spec.batch_size):
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


def batches_of(iterable: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
    """The (x, y) of each batch, from the beginning again when they end; ends where the iterable cannot be iterated twice."""
    while True:
        count = 0
        for count, batch in enumerate(iterable, 1):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise TypeError(f"x must give batches (x, y), but batch {count - 1} is {_what(batch)}")
            x, y = (as_tensor(name, part) for name, part in zip("xy", batch, strict=True))
            check_data(x, y)
            yield x, y
        if not count:
            return


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


def on_device(pairs: Iterable[Pair], device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    """The pairs in one dtype on a device. To CUDA through two pinned buffers: one is copied while the other is filled."""
    if device.type != "cuda":
        for x, y in pairs:
            yield x.to(device, dtype), y.to(device, dtype)
        return
    copies = torch.cuda.Stream(device)
    slots: list[tuple[dict, torch.cuda.Event]] = [({}, torch.cuda.Event()) for _ in range(2)]
    for i, pair in enumerate(pairs):
        if pair[0].device == device:
            yield pair[0].to(dtype), pair[1].to(dtype)
            continue
        buffers, copied = slots[i % 2]
        copied.synchronize()  # only now may the host overwrite what was on its way
        sent = []
        with torch.cuda.stream(copies):
            for name, tensor in zip("xy", pair, strict=True):
                if tensor.device.type == "cpu" and not tensor.is_pinned():
                    tensor = _pinned(buffers, name, tensor)
                sent.append(tensor.to(device, non_blocking=True).to(dtype))
            copied.record(copies)
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in sent:
            tensor.record_stream(current)
        yield sent[0], sent[1]


def _pinned(buffers: dict, name: str, tensor: Tensor) -> Tensor:
    """A copy of the tensor in a pinned buffer, which grows to the largest batch."""
    numel = tensor.numel()
    if name not in buffers or buffers[name].numel() < numel or buffers[name].dtype is not tensor.dtype:
        buffers[name] = torch.empty(numel, dtype=tensor.dtype, pin_memory=True)
    return buffers[name][:numel].view(tensor.shape).copy_(tensor)
