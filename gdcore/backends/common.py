"""What the backends' passes and steps on CUDA share."""

import contextlib

import torch
from torch import Tensor


def wide_product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """a @ b in the accumulator's dtype: of half-precision operands it is never rounded to their type."""
    if a.dtype is wide:
        return a @ b
    return torch.mm(a, b, out_dtype=wide) if a.is_cuda else a.to(wide) @ b.to(wide)


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a dtype; asking first costs a tenth of what .to() costs where there is nothing to do."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """The tensor's device as the current one, where it is not: Triton launches on the current device."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
