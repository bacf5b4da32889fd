"""What autocast does to the stock pair linear + mse_loss, done before the fused call, inside which nothing is cast."""

import contextlib
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_NOTHING_TO_DO = contextlib.nullcontext()


_KINDS = frozenset(kind for kind in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(kind))


def is_on(tensor: Tensor) -> bool:
    if not torch._C._is_any_autocast_enabled():  # one question where it is off, as it nearly always is
        return False
    kind = tensor.device.type
    return kind in _KINDS and torch.is_autocast_enabled(kind)


def cast(input: Any, weight: Any, target: Any, bias: Any) -> tuple[Any, Any, Any, Any]:
    """The product in autocast's dtype, the loss in float32 at least; arguments that are no tensors pass, to be refused later."""
    if isinstance(input, Tensor) and is_on(input):
        lower = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = (_cast(t, lower) for t in (input, weight, bias))
        if isinstance(target, Tensor) and target.dtype in _HALF:
            target = target.float()
    return input, weight, target, bias


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    eligible = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.to(dtype) if eligible else tensor


def off_everywhere() -> contextlib.AbstractContextManager:
    """A context without autocast on any device."""
    stack = contextlib.ExitStack()
    for kind in _KINDS:
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def off(tensor: Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False) if is_on(tensor) else _NOTHING_TO_DO
