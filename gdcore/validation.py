"""What is refused, and how it says so. Nothing here is modified; every error names the argument, what it is and what it must be."""

import math
from typing import Any

import torch
from torch import Tensor

from .overlap import overlaps_itself, sharing
from .update import Update

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


def check_update(update: Update) -> None:
    """Raise what torch.optim.SGD would for hyperparameters, and for those that are not finite numbers; see check_rate for tensors."""
    lr, momentum, dampening, weight_decay, nesterov, _ = update
    if (
        (type(lr) is float or isinstance(lr, Tensor))
        and type(momentum) is type(dampening) is type(weight_decay) is float
        and (type(lr) is not float or 0 <= lr < math.inf)
        and 0 <= momentum < math.inf
        and 0 <= dampening < math.inf
        and 0 <= weight_decay < math.inf
        and not nesterov
    ):
        return  # nearly always
    numbers = update._asdict()
    for name in ("nesterov", "maximize"):
        del numbers[name]
    if isinstance(update.lr, Tensor):
        del numbers["lr"]
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        what = "learning rate" if name == "lr" else f"{name} value"
        if not math.isfinite(value) or (value < 0 and name != "dampening"):
            least = "" if name == "dampening" else " and not negative"
            raise ValueError(f"Invalid {what}: {name} is {value}, it must be finite{least}")
    if update.nesterov and (not update.momentum or update.dampening):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")


def check_rate(lr: Any, weight: Tensor) -> None:
    """Raise for a learning rate that is a tensor and cannot be read beside weight. Only on the CPU its value is looked at."""
    if not isinstance(lr, Tensor):
        return
    if lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element: lr has shape {tuple(lr.shape)}")
    if lr.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(f"lr has dtype {lr.dtype}, it must be float32 or float64")
    if lr.device != weight.device:
        raise RuntimeError(
            f"expected all tensors to be on the same device, but weight is on {weight.device} and lr is on {lr.device}"
        )
    if lr.is_cpu and not torch.compiler.is_compiling() and has_memory(lr) and not 0 <= (value := lr.item()) < math.inf:
        raise ValueError(f"Invalid learning rate: lr is {value}, it must be finite and not negative")


def check_buffer(name: str, buffer: Any, of: str, tensor: Tensor) -> None:
    """Raise for a momentum buffer that does not belong to the tensor."""
    if buffer is None:
        raise ValueError(f"{name} is None: with momentum it must be a tensor of {of}'s shape, {tuple(tensor.shape)}")
    if not isinstance(buffer, Tensor):
        raise TypeError(f"{name} must be a Tensor, not {type(buffer).__name__}")
    if buffer.shape != tensor.shape:
        raise ValueError(f"{name} has shape {tuple(buffer.shape)}, it must have {of}'s shape, {tuple(tensor.shape)}")
    if buffer.layout is not torch.strided:
        raise NotImplementedError(f"{name} has layout {buffer.layout}, it must be a dense (torch.strided) tensor")
    if buffer.dtype is not tensor.dtype and (buffer.dtype is not torch.float32 or tensor.dtype.itemsize != 2):
        wide = ", or float32" if tensor.dtype.itemsize == 2 else ""
        raise RuntimeError(f"{name} has dtype {buffer.dtype}, it must have {of}'s dtype, {tensor.dtype}{wide}")
    if buffer.device != tensor.device:
        raise RuntimeError(
            f"expected all tensors to be on the same device, but {of} is on {tensor.device} and {name} is on {buffer.device}"
        )


def check_written(written: dict[str, Tensor]) -> None:
    """Raise where tensors that are to be updated in place cannot be: one that overlaps itself, or two that overlap."""
    if torch.compiler.is_compiling():
        return
    for name, tensor in written.items():
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{name} was made in inference mode: inplace update to inference tensor outside InferenceMode is not "
                "allowed, make a clone to get a normal tensor"
            )
        if has_memory(tensor) and overlaps_itself(tensor):
            raise RuntimeError(
                f"{name} of shape {tuple(tensor.shape)} and strides {tensor.stride()} has more than one element in a "
                f"single memory location, and is written to: make it {name}.clone() first"
            )
    real = {name: tensor for name, tensor in written.items() if has_memory(tensor)}
    if len(real) > 1 and (pair := sharing([*real.values()])):
        name, other = ([*real][place] for place in pair)
        raise ValueError(f"{name} and {other} share memory, and both are updated: they must be separate tensors")


def has_memory(tensor: Tensor) -> bool:
    """Whether the tensor's addresses mean something."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type in ("cpu", "cuda")
        and not torch._C._are_functorch_transforms_active()
    )
