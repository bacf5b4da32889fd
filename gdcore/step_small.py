"""The lesson's step: small float32 or float64 tensors on a CPU, where recognising the case is a large part of the cost.

PyTorch's compiler guards compare the kinds of several tensors in one call. The first step of its kind is looked at in
Python; the next ones are compared with it. Where another version of PyTorch has no such guards, every step is looked at.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .backends import cpu, stock_may_win
from .functional import _are_small_and_plain
from .guards import guards_of

# (bias, momentum) -> a check that tensors are like the last ones, whether any requires a gradient, and where the written lie
_known: dict[tuple[bool, bool], tuple[Callable[..., bool], bool, list[int]]] = {}


def small_step(
    input: Any, weight: Any, target: Any, bias: Any, lr: Any, options: tuple, buffers: tuple
) -> Tensor | None:
    """The loss, if this is a step for `cpu.small_step` with nothing wrong about it, which then is made; else None."""
    if type(lr) is not float or not 0 <= lr < math.inf or torch.compiler.is_compiling():
        return None
    momentum = False
    written = (weight,) if bias is None else (weight, bias)
    if options != _PLAIN_OPTIONS:
        if not _are_right_options(*options):
            return None
        momentum = bool(options[0])
    if momentum:
        written += buffers[: len(written)]
    else:
        buffers = (None, None)
    kind = bias is not None, momentum
    known = _known.get(kind)
    if known is None or not known[0](input, target, *written):
        if not _are_right(input, weight, target, bias, written):
            return None
        known = _remember(kind, (input, target, *written), [])
    if torch._C._len_torch_dispatch_stack() or not stock_may_win():
        return None
    if len(written) > 1:
        addresses = [tensor.data_ptr() for tensor in written]
        if addresses != known[2]:
            if not _are_apart(written):
                return None
            _remember(kind, (input, target, *written), addresses)
    if not (known[1] and torch.is_grad_enabled()):
        return cpu.small_step(input, weight, target, bias, lr, *options, *buffers)
    torch._C._set_grad_enabled(False)  # its context manager would cost as much as one of the few operations
    try:
        return cpu.small_step(input, weight, target, bias, lr, *options, *buffers)
    finally:
        torch._C._set_grad_enabled(True)


_PLAIN_OPTIONS = (0.0, 0.0, 0.0, False, False)


def _are_right_options(momentum: Any, dampening: Any, weight_decay: Any, nesterov: Any, maximize: Any) -> bool:
    numbers = (momentum, dampening, weight_decay)
    return all(type(n) is float and 0 <= n < math.inf for n in numbers) and not (
        nesterov and (not momentum or dampening)
    )


def _are_right(input: Any, weight: Any, target: Any, bias: Any, written: Sequence[Any]) -> bool:
    """Everything about the tensors that the call depends on, but where they lie."""
    if not _are_small_and_plain(input, weight, target, bias) or torch._C._are_functorch_transforms_active():
        return False
    rows, outputs = input.shape, weight.shape
    parameters = (outputs,) if bias is None else (outputs, outputs[:1])
    return (
        len(rows) == len(outputs) == 2
        and rows[1] == outputs[1]
        and target.shape == (rows[0], outputs[0])
        and input.numel() > 0
        and target.numel() > 0
        and input.numel() + target.numel() <= cpu.SMALL_NUMBERS
        and all(
            type(tensor) in (Tensor, torch.nn.Parameter)
            and tensor.dtype is input.dtype
            and tensor.is_cpu
            and tensor.layout is torch.strided
            and tensor.shape == shape
            and tensor.is_contiguous()
            and not tensor.is_inference()
            for tensor, shape in zip(written, parameters * 2, strict=False)
        )
    )


def _remember(kind: tuple[bool, bool], tensors: tuple[Tensor, ...], addresses: list[int]) -> tuple:
    """What the next step of this kind is compared with."""
    records = any(tensor.requires_grad for tensor in tensors)
    found = guards_of(tensors), records, addresses
    if found[0] is not None:
        _known[kind] = found
    return found


def _are_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether contiguous tensors lie in separate memory."""
    spans = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in tensors)
    return all(start + size <= after for (start, size), (after, _) in pairwise(spans))
