"""A parameter in its group, and what must hold of its gradient and its state before anything is modified."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .state import State

HALF = (torch.float16, torch.bfloat16)
PLAIN = (Tensor, torch.nn.Parameter)
FLOATS = (torch.float64, torch.float32, *HALF)


class Member(NamedTuple):
    """A parameter, and where it stands in the optimizer."""

    param: Tensor
    group: dict[str, Any]
    index: int  # in the optimizer, as in state_dict

    def __str__(self) -> str:
        names = self.group.get("param_names")
        name = (
            names[[p is self.param for p in self.group["params"]].index(True)] if names else f"parameter {self.index}"
        )
        return f"{name} ({tuple(self.param.shape)}, {self.param.dtype})"


class ElsewhereError(Exception):
    """A parameter that this stepper cannot take, but stock can: its gradient is sparse, for instance."""

    def __init__(self, param: Tensor) -> None:
        self.param = param


class MovedError(Exception):
    """A parameter is not what its stepper was made for: on another device, of another size."""


def local(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor, which shares its memory; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def is_plain(param: Tensor) -> bool:
    """Whether a parameter is dense, floating-point, and of elements that can be written one by one."""
    inner = local(param)
    return type(inner) in PLAIN and inner.layout is torch.strided and inner.dtype in FLOATS and not _overlaps(inner)


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may share an address."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return tensor.numel() > 0
            reach += stride * (size - 1)
    return False


def flat_order(tensor: Tensor) -> tuple[int, ...] | None:
    """Two tensors of one shape with equal results hold their elements in the same order without gaps; None for gaps."""
    strides = tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    sizes = [size for size in tensor.shape if size > 1]
    expected = 1
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if stride != expected:
            return None
        expected *= size
    return strides


def wants_master(owner: Any, param: Tensor) -> bool:
    """Whether the optimizer keeps a float32 copy of this parameter."""
    return owner.master_weights and param.dtype in HALF


def check_member(member: Member, state: State, device: torch.device) -> None:
    """Raise unless the parameter is on the device, and its gradient and state, where it has them, can be used with it."""
    param, grad = member.param, member.param.grad
    with torch.no_grad():
        if local(param).device != device or not is_plain(param):
            raise MovedError
    if grad is None:
        return
    there = {"gradient": grad, **state.peek(param)}
    for name in ("gradient", "momentum_buffer", "master_weight"):
        tensor = there.get(name)
        if tensor is None:
            continue
        if tensor.shape != param.shape:
            raise RuntimeError(
                f"the {name} of {member} has shape {tuple(tensor.shape)}: it must be {tuple(param.shape)}"
            )
        if tensor.device != param.device:
            raise RuntimeError(f"the {name} of {member} is on {tensor.device}: it must be on {param.device}")
        with torch.no_grad():
            inner = local(tensor)
        if inner.layout is not torch.strided or inner.dtype not in FLOATS or type(inner) not in PLAIN:
            raise ElsewhereError(param)
        if name != "gradient" and _overlaps(inner):
            raise ElsewhereError(param)
