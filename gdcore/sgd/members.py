"""A parameter in its group, and what must hold of its gradient and its state before anything is modified."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .state import State

STATE = ("momentum_buffer", "master_weight")
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


def local(tensor: Tensor | None) -> Tensor | None:
    """This process's part of a DTensor, which shares its memory; anything else as it is."""
    if not hasattr(tensor, "to_local"):
        return tensor
    inner = tensor._local_tensor  # the same object each time, where to_local makes a view of a Parameter's
    return inner if type(inner) in PLAIN else tensor.to_local()


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


def flat_order(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...] | None:
    """Two tensors of one shape with equal results hold their elements in the same order without gaps; None for gaps."""
    strides = tuple(step for step, size in zip(stride, shape, strict=True) if size > 1)
    sizes = [size for size in shape if size > 1]
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
    """Raise unless a stepper on this device can take the parameter with its gradient and its state."""
    with torch.no_grad():
        if local(member.param).device != device or not is_plain(member.param):
            raise MovedError
        if member.param.grad is None:
            return
        check_shapes(member, state)
        for name, tensor in _together(member, state):
            inner = local(tensor)
            if inner.layout is not torch.strided or inner.dtype not in FLOATS or type(inner) not in PLAIN:
                raise ElsewhereError(member.param)
            if name != "gradient" and _overlaps(inner):
                raise ElsewhereError(member.param)


def check_shapes(member: Member, state: State) -> None:
    """Raise unless gradient and state have the parameter's shape and device."""
    param = member.param
    for name, tensor in _together(member, state):
        if tensor.shape != param.shape:
            raise RuntimeError(
                f"the {name} of {member} has shape {tuple(tensor.shape)}: it must be {tuple(param.shape)}"
            )
        if tensor.device != param.device:
            raise RuntimeError(f"the {name} of {member} is on {tensor.device}: it must be on {param.device}")


def check_clearable(member: Member) -> None:
    """Raise unless the gradient can be set to zero in place."""
    grad = local(member.param.grad)
    if grad is not None and grad.layout is torch.strided and _overlaps(grad):
        raise RuntimeError(
            f"zero_grad=True cannot clear the gradient of {member}: its strides {grad.stride()} put several elements in "
            "one place"
        )


def _together(member: Member, state: State) -> list[tuple[str, Tensor]]:
    there = {"gradient": member.param.grad, **state.peek(member.param)}
    names = ("gradient", *STATE)
    return [(name, there[name]) for name in names if there.get(name) is not None]


def state_tensors(member: Member, state: State) -> list[Tensor]:
    """What a step reads and writes beside parameter and gradient."""
    return [local(tensor) for name, tensor in _together(member, state) if name != "gradient"]


def check_group(group: dict[str, Any]) -> None:
    """Raise unless every hyperparameter is a number."""
    for name in ("lr", "weight_decay", "momentum", "dampening"):
        value = group[name]
        if type(value) in (float, int):
            continue
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise RuntimeError(f"{name} is a tensor of {value.numel()} elements: it must have one")
        elif not hasattr(value, "__float__"):
            raise TypeError(f"{name} is {value!r}: it must be a number or a tensor of one element")


def overlapping(params: list[Tensor]) -> set[int]:
    """The ids of dense parameters that share memory with another, or stand there twice: a step must take them in turn."""
    spans = []
    for param in params:
        inner = local(param)
        if inner.layout is torch.strided and inner.numel():
            start = inner.data_ptr()
            reach = sum(stride * (size - 1) for stride, size in zip(inner.stride(), inner.shape, strict=True)) + 1
            spans.append((str(inner.device), start, start + reach * inner.element_size(), id(param)))
    found: set[int] = set()
    farthest = ("", 0, 0, 0)
    for span in sorted(spans):
        same_device = span[0] == farthest[0]
        if same_device and span[1] < farthest[2]:
            found |= {span[3], farthest[3]}
        if not same_device or span[2] > farthest[2]:
            farthest = span
    return found
