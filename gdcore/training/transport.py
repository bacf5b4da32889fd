"""The way of rows to where they are computed with."""

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .table import Pair


def on_device(pairs: Iterable[Pair], device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    """The pairs in one dtype on a device. To CUDA through two pinned buffers: one is copied while the other is filled.

    All rows pass through these buffers, pinned ones too: whoever made a batch may reuse its memory once it has been taken.
    A copy waits for the work on the pair before the last, so no more than a few pairs are on the device.
    """
    if device.type != "cuda":
        for x, y in pairs:
            yield x.to(device, dtype), y.to(device, dtype)
        return
    copies = _copy_stream(device)
    slots: list[tuple[dict, torch.cuda.Event, torch.cuda.Event]] = [
        ({}, torch.cuda.Event(), torch.cuda.Event()) for _ in range(2)
    ]
    for i, pair in enumerate(pairs):
        if pair[0].device == device:
            yield pair[0].to(dtype), pair[1].to(dtype)
            continue
        buffers, copied, used = slots[i % 2]
        copied.synchronize()  # only now may the host overwrite what was on its way
        sent = []
        with torch.cuda.stream(copies):
            copies.wait_event(used)
            for name, tensor in zip("xy", pair, strict=True):
                source = _pinned(buffers, name, tensor) if tensor.device.type == "cpu" else tensor
                sent.append(source.to(device, non_blocking=True).to(dtype))
            copied.record(copies)
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in sent:
            tensor.record_stream(current)
        yield sent[0], sent[1]
        used.record(current)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all passes: the allocator keeps what was freed for the stream that it was allocated on."""
    return torch.cuda.Stream(device)


def _pinned(buffers: dict, name: str, tensor: Tensor) -> Tensor:
    """A copy of the tensor in a pinned buffer, which grows to the largest batch."""
    numel = tensor.numel()
    if name not in buffers or buffers[name].numel() < numel or buffers[name].dtype is not tensor.dtype:
        buffers[name] = torch.empty(numel, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return buffers[name][:numel].view(tensor.shape).copy_(tensor)
