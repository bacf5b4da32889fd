"""What is refused, and how it says so. Nothing here is modified; every error names the argument, what it is and what it must be."""

from typing import Any

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_linear_mse(input: Any, weight: Any, target: Any, bias: Any, reduction: Any) -> None:
    """Raise what stock would for arguments that linear_mse cannot take; the common case is one cheap test."""
    try:
        shape = input.shape
        outputs, features = weight.shape
        if (
            shape[-1] == features
            and target.shape == (*shape[:-1], outputs)
            and input.dtype is weight.dtype
            and input.dtype in DTYPES
            and target.dtype in DTYPES
            and reduction in REDUCTIONS
            and input.layout is weight.layout is target.layout is torch.strided
            and input.device == weight.device == target.device
            and (
                bias is None
                or (
                    bias.shape == (outputs,)
                    and bias.dtype is input.dtype
                    and bias.device == input.device
                    and bias.layout is torch.strided
                )
            )
        ):
            return
    except (AttributeError, TypeError, ValueError, IndexError):
        pass
    _explain_refusal(input, weight, target, bias, reduction)


def _explain_refusal(input: Any, weight: Any, target: Any, bias: Any, reduction: Any) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a valid value for reduction: it must be one of 'mean', 'sum', 'none'")
    tensors = {"input": input, "weight": weight, "target": target} | ({} if bias is None else {"bias": bias})
    check_tensors(tensors)
    if input.dim() < 1:
        raise RuntimeError("input is a 0-d tensor, it must have shape (..., in_features)")
    if weight.dim() != 2:
        hint = "; for a single output pass weight.unsqueeze(0), or use gdcore.matmul_mse" if weight.dim() == 1 else ""
        raise RuntimeError(
            f"weight has shape {tuple(weight.shape)}, it must be (out_features, in_features){hint}; input has shape {tuple(input.shape)}"
        )
    if input.shape[-1] != weight.shape[1]:
        raise RuntimeError(
            f"input of shape {tuple(input.shape)} and weight of shape {tuple(weight.shape)} cannot be multiplied: "
            f"input's last dimension is {input.shape[-1]}, it must be weight's in_features, {weight.shape[1]}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise RuntimeError(
            f"bias has shape {tuple(bias.shape)}, it must be {(weight.shape[0],)}: one value for each row of weight {tuple(weight.shape)}"
        )
    _check_target(target, (*input.shape[:-1], weight.shape[0]), "input @ weight.T")


def check_matmul_mse(x: Any, a: Any, y: Any, reduction: Any) -> None:
    """The same for matmul_mse(x, a, y): x (..., K), a (K,) or (K, M), y (...) or (..., M)."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a valid value for reduction: it must be one of 'mean', 'sum', 'none'")
    check_tensors({"x": x, "a": a, "y": y})
    if a.dim() not in (1, 2):
        raise RuntimeError(f"a has shape {tuple(a.shape)}, it must be (in_features,) or (in_features, out_features)")
    if x.dim() < 1 or x.shape[-1] != a.shape[0]:
        raise RuntimeError(
            f"x of shape {tuple(x.shape)} and a of shape {tuple(a.shape)} cannot be multiplied: x's last dimension must be {a.shape[0]}"
        )
    _check_target(y, (*x.shape[:-1], *a.shape[1:]), "x @ a", name="y")


def check_tensors(tensors: dict[str, Any]) -> None:
    """Types, layouts, dtypes and devices of the named tensors; the last (target) and any other floating dtype may differ."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, not {type(tensor).__name__}")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise NotImplementedError(
                f"{name} has layout {tensor.layout}, it must be a dense (torch.strided) tensor: try {name}.to_dense()"
            )
        if tensor.dtype not in DTYPES:
            raise NotImplementedError(
                f"not implemented for {tensor.dtype}: {name} must have dtype float64, float32, float16 or bfloat16"
            )
    (first_name, first), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.device != first.device:
            raise RuntimeError(
                f"expected all tensors to be on the same device, but {first_name} is on {first.device} and {name} is on {tensor.device}"
            )
        if name not in ("target", "y") and tensor.dtype is not first.dtype:
            raise RuntimeError(f"{name} has dtype {tensor.dtype}, it must have {first_name}'s dtype, {first.dtype}")


def _check_target(target: Tensor, expected: tuple[int, ...], product: str, name: str = "target") -> None:
    if tuple(target.shape) != tuple(expected):
        raise ValueError(
            f"{name} has shape {tuple(target.shape)}, it must have the shape of {product}, {tuple(expected)}; it is not broadcast, "
            f"since a silently broadcast {name} gives a wrong loss"
        )
