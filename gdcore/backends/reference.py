"""Plain PyTorch: the standard path, the fallback for what the kernels do not cover, and the oracle of tests and benchmark."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plan import accumulator_dtype
from ..update import Update, apply_
from . import Forward, Wanted


def linear_mse(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """The stock composition that gdcore.linear_mse replaces."""
    return mse_loss(F.linear(input, weight, bias), target, reduction)


def matmul_mse(x: Tensor, a: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """The stock composition that gdcore.matmul_mse replaces."""
    return mse_loss(x @ a, y, reduction)


def mse_loss(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """F.mse_loss, whose backward pass on CUDA refuses two dtypes; on the CPU it widens as this does."""
    if prediction.dtype is not target.dtype:
        dtype = torch.promote_types(prediction.dtype, target.dtype)
        prediction, target = prediction.to(dtype), target.to(dtype)
    return F.mse_loss(prediction, target, reduction=reduction)


def forward(input, weight, target, bias, reduction: str, wanted: Wanted, plan=None) -> Forward:
    """The interface of backends, in plain operations and accumulator precision: for devices without a path of their own."""
    residual = _residual(input, weight, target, bias)
    loss_dtype = torch.promote_types(input.dtype, target.dtype)
    squares = residual.square()
    loss = {"none": lambda: squares, "sum": squares.sum, "mean": squares.mean}[reduction]()
    return Forward(loss.to(loss_dtype), residual if any(wanted) else None)


def backward(grad_output, input, weight, target, saved: Forward, reduction: str, wanted: Wanted, plan=None):
    """Gradients from the stored residual."""
    scale = 2 / max(target.numel(), 1) if reduction == "mean" else 2.0
    scaled = saved.residual * (grad_output.to(saved.residual.dtype) * scale)
    x, w = input.to(scaled.dtype), weight.to(scaled.dtype)
    return (
        (scaled @ w).to(input.dtype) if wanted.input else None,
        (scaled.t() @ x).to(weight.dtype) if wanted.weight else None,
        scaled.neg().to(target.dtype) if wanted.target else None,
        scaled.sum(0).to(weight.dtype) if wanted.bias else None,
    )


def step(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    update: Update,
    momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    plan=None,
) -> Tensor:
    """Loss before one update of weight and bias, in place, from gradients in accumulator precision."""
    operands = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
    residual = _residual(input, operands[0], target, operands[1])
    loss = residual.square().mean().to(torch.promote_types(input.dtype, target.dtype))
    scaled = residual * (2 / max(target.numel(), 1))
    grad_weight, grad_bias = scaled.t() @ input.to(scaled.dtype), scaled.sum(0)
    apply_(update, weight, grad_weight, momentum_buffer)
    if bias is not None:
        apply_(update, bias, grad_bias, bias_momentum_buffer)
    return loss


def _residual(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
    dtype = accumulator_dtype(torch.promote_types(input.dtype, target.dtype))
    prediction = F.linear(input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return prediction - target.to(dtype)


def oracle(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    reduction: str = "mean",
    grad_output: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and all gradients in float64, by name; grad_output defaults to ones."""
    named = {"input": input, "weight": weight, "target": target, "bias": bias}
    leaves = {name: t.detach().double().requires_grad_() for name, t in named.items() if t is not None}
    loss = linear_mse(leaves["input"], leaves["weight"], leaves["target"], leaves.get("bias"), reduction)
    upstream = torch.ones_like(loss) if grad_output is None else grad_output.double()
    gradients = torch.autograd.grad(loss, list(leaves.values()), upstream)
    return loss.detach(), dict(zip(leaves, gradients, strict=True))


def relative_error(value: Tensor, exact: Tensor) -> float:
    """‖value − exact‖ / ‖exact‖ in float64; 0 where both are empty or zero, inf where only exact is."""
    value, exact = value.detach().double(), exact.detach().double()
    difference, size = torch.linalg.vector_norm(value - exact).item(), torch.linalg.vector_norm(exact).item()
    if difference == 0:
        return 0.0
    return difference / size if size else float("inf")
