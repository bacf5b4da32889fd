"""What the user calls: linear + mean squared error in one step, in place of two stock ones."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from . import autocast, ops
from .autograd import LinearMSE, run_forward
from .backends import NOTHING, Wanted, backend_for, load, reference, stock_may_win
from .explanation import host_is_slower, plan_of
from .guards import PLAIN
from .plan import Plan, stock_wins_on_cpu
from .recall import recall, remember
from .validation import check_linear_mse, check_matmul_mse


def linear_mse(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """``F.mse_loss(F.linear(input, weight, bias), target)``, with loss and weight gradient from one read of the data.

    Parameters
    ----------
    input : Tensor (..., K)
        float64, float32, float16 or bfloat16, any strides; leading dimensions are flattened to N rows.
    weight : Tensor (M, K)
        Of input's dtype.
    target : Tensor (..., M)
        Of any floating dtype; must have exactly the shape of the prediction. It is never broadcast.
    bias : Tensor (M,), optional
        Of input's dtype.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    Tensor
        0-d, or (..., M) for "none"; dtype, gradient dtypes and autocast behaviour are stock's.

    Raises
    ------
    ValueError
        Unknown reduction; target of another shape than the prediction.
    RuntimeError
        Shapes that cannot be multiplied; dtypes or devices that differ.
    NotImplementedError (a RuntimeError)
        Integer, complex or sparse tensors.
    TypeError
        Arguments that are not tensors.

    Notes
    -----
    With E = X Wᵀ + b − Y, formed in float32 (float64 for float64) from the product's accumulator, never from a rounded
    prediction: L = mean(E²), dW = c EᵀX, db = c Σₙ E, dX = c E W, dY = −c E, c = 2 grad_output / (N M).
    Gradients flow to any subset of input, weight, target and bias, and only the wanted ones are computed; under
    ``torch.no_grad()`` only the loss is. Nothing is modified. Double backward works. Results are bitwise the same from
    run to run. Where N x M is large, a mean or sum makes all gradients in the forward pass, some rows at a time, and takes
    memory for inputs, gradients and one chunk of E (half types also for dW in float32); a second backward pass over a graph
    that was kept (``retain_graph=True``), and ``torch.autograd.grad`` for one tensor after the other, compute them anew,
    which is an error if input, weight or bias was modified in between.
    Bytes moved when only weight and bias want a gradient and the shape is skinny: N (K + M) numbers, once;
    ``gdcore.explain`` predicts them for any shape.
    """
    if reduction == "mean" and _are_small_and_plain(input, weight, target, bias):
        rows, outputs = input.shape, weight.shape
        if (
            len(rows) == len(outputs) == 2
            and rows[1] == outputs[1]
            and target.shape == (rows[0], outputs[0])
            and (bias is None or bias.shape == outputs[:1])
        ):
            return _mse_loss(_linear(input, weight, bias), target, _MEAN)
    if not torch.compiler.is_compiling() and (call := recall(input, weight, target, bias, reduction)):
        return _planned(call.backend, input, weight, target, bias, reduction, call.wanted, call.plan)
    if has_torch_function((input, weight, target, bias)):
        return handle_torch_function(
            linear_mse, (input, weight, target, bias), input, weight, target, bias, reduction=reduction
        )
    input, weight, target, bias = autocast.cast(input, weight, target, bias)
    check_linear_mse(input, weight, target, bias, reduction)
    backend = _backend(input, weight, target, bias, reduction)
    if backend is None:
        return reference.linear_mse(input, weight, target, bias, reduction)
    return _fused(backend, input, weight, target, bias, reduction, as_given=True)


def matmul_mse(x: Tensor, a: Tensor, y: Tensor, *, reduction: str = "mean") -> Tensor:
    """``((x @ a - y) ** 2).mean()``: linear_mse in the lesson's words.

    Parameters
    ----------
    x : Tensor (..., K)
    a : Tensor (K,) or (K, M)
        Of x's dtype.
    y : Tensor (...) or (..., M)
        Exactly the shape of ``x @ a``.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    Tensor
        0-d, or of y's shape for "none".

    Raises
    ------
    ValueError, RuntimeError, NotImplementedError, TypeError
        As linear_mse. Nothing is modified; bytes moved and determinism are linear_mse's.
    """
    if reduction == "mean" and _are_small_and_plain(x, a, y, None):
        rows, (features, *outputs) = x.shape, a.shape
        if len(rows) == 2 and rows[1] == features and len(outputs) < 2 and y.shape == (rows[0], *outputs):
            return _mse_loss(x.matmul(a), y, _MEAN)
    if has_torch_function((x, a, y)):
        return handle_torch_function(matmul_mse, (x, a, y), x, a, y, reduction=reduction)
    x, a, y, _ = autocast.cast(x, a, y, None)
    check_matmul_mse(x, a, y, reduction)
    backend = _backend(x, a, y, None, reduction)
    if backend is None:
        return reference.matmul_mse(x, a, y, reduction)
    if a.dim() == 2:
        return _fused(backend, x, a.t(), y, None, reduction)
    loss = _fused(backend, x, a.unsqueeze(0), y.unsqueeze(-1), None, reduction)
    return loss.squeeze(-1) if reduction == "none" else loss


# Where the call is all the cost, F.mse_loss's own Python (its second check of shapes, its broadcast) is part of it.
# So small float32 and float64 tensors, the lesson's case, are recognised with as few steps as can be and go to what it calls.
_linear, _mse_loss, _MEAN = torch._C._nn.linear, torch._C._nn.mse_loss, 1


def _are_small_and_plain(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> bool:
    """Whether stock wins, for sure, as far as can be told without shapes; False only means to look closer."""
    return (
        not torch.compiler.is_compiling()
        and type(input) in PLAIN
        and type(weight) in PLAIN
        and type(target) in PLAIN
        and _are_together(input, weight, target)
        and input.dtype is weight.dtype is target.dtype
        and (input.dtype is torch.float32 or input.dtype is torch.float64)
        and input.layout is weight.layout is target.layout is torch.strided
        and weight.dim() > 0
        and (
            bias is None
            or (
                type(bias) in PLAIN
                and bias.dtype is input.dtype
                and _are_together(input, bias, bias)
                and bias.layout is torch.strided
            )
        )
        and (
            stock_wins_on_cpu(input.numel() + target.numel(), input.dtype, input.dtype, "mean")
            if input.is_cpu
            else host_is_slower(input, target, target.numel() * (input.shape[-1] if input.dim() else 1))
        )
        and not torch._C._is_any_autocast_enabled()
        and stock_may_win()
    )


def _are_together(input: Tensor, weight: Tensor, target: Tensor) -> bool:
    """Whether all are on the CPU, or on one GPU."""
    if input.is_cpu:
        return weight.is_cpu and target.is_cpu
    on_cuda = input.is_cuda and weight.is_cuda and target.is_cuda
    return on_cuda and input.get_device() == weight.get_device() == target.get_device()


def _backend(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str) -> str | None:
    """Who computes. None: the stock composition, for what is small, empty, or in a mode or of a kind that kernels do not know."""
    elements, outputs = input.numel(), target.numel()
    compiling = torch.compiler.is_compiling()  # Dynamo cannot follow a ContextVar
    if (
        (
            input.is_cpu
            and (compiling or stock_may_win())
            and stock_wins_on_cpu(elements + outputs, input.dtype, target.dtype, reduction)
        )
        or torch._C._are_functorch_transforms_active()
        or type(input) not in PLAIN
        or type(weight) not in PLAIN
        or type(target) not in PLAIN
        or (bias is not None and type(bias) not in PLAIN)
    ):
        return None
    # An unscaled residual of a wider target may pass 65504, and the products of float16 operands take it as float16.
    overflows = input.dtype is torch.float16 and target.dtype in (torch.float32, torch.bfloat16)
    if compiling:  # the operator looks for its backend when it runs
        return None if overflows and not input.is_cpu else "operator"
    backend = backend_for(input.device)
    stock = (
        backend == "reference"
        or (backend == "triton" and overflows)
        or elements == 0
        or outputs == 0
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or input.is_neg()
        or weight.is_neg()
        or target.is_neg()
        or (bias is not None and bias.is_neg())
    )
    return None if stock else backend


def _fused(
    backend: str,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    as_given: bool = False,
) -> Tensor:
    """`as_given`: the tensors are those of the caller of linear_mse, who may come again."""
    if target.dtype is torch.float64 and input.dtype is not torch.float64:  # stock's loss is float64, so all of it is
        as_given = False
        input, weight, bias = input.double(), weight.double(), None if bias is None else bias.double()
    wanted = NOTHING
    if torch.is_grad_enabled():
        wanted = Wanted(
            input.requires_grad, weight.requires_grad, target.requires_grad, bias is not None and bias.requires_grad
        )
    if torch.compiler.is_compiling():
        return ops.linear_mse(input, weight, target, bias, reduction, *wanted)[0]
    plan = plan_of(backend, input, weight, target, bias, reduction, wanted)
    if plan.path == "stock":
        return reference.linear_mse(input, weight, target, bias, reduction)
    if as_given and backend == "triton":
        remember(input, weight, target, bias, reduction, wanted, plan)
    return _planned(load(backend), input, weight, target, bias, reduction, wanted, plan)


def _planned(
    backend: Any,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    wanted: Wanted,
    plan: Plan,
) -> Tensor:
    if not any(wanted):
        loss = run_forward(backend, input, weight, target, bias, reduction, wanted, plan).loss
        return loss.view(target.shape) if reduction == "none" else loss
    return LinearMSE.apply(input, weight, target, bias, reduction, wanted, plan, backend)
