"""Runs over several processes: each holds rows of its own, and all take the same steps."""

import contextlib
import contextvars
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

_alone = contextvars.ContextVar("gdcore_alone", default=False)


@contextlib.contextmanager
def alone(wanted: bool) -> Iterator[None]:
    """Inside, this process computes by itself, if it is wanted so."""
    token = _alone.set(wanted)
    try:
        yield
    finally:
        _alone.reset(token)


def is_shared() -> bool:
    """Whether other processes take part."""
    return not _alone.get() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; the tensor itself where there is only one."""
    if is_shared():
        dist.all_reduce(tensor)
    return tensor


def least(number: int, device: torch.device) -> int:
    """The least of all processes' numbers, so that one that must refuse does not leave the others waiting."""
    if not is_shared():
        return number
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return int(found)


def same_start_(start: Tensor) -> Tensor:
    """The first process's parameters, for all."""
    if is_shared():
        dist.broadcast(start, src=0)
    return start
