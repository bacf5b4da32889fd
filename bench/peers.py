"""Who is compared: each peer is a loss function of (input, weight, target, bias), prepared afresh for every case."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import gdcore
from gdcore.backends import reference

from .cases import Case, Tensors

LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Call = Callable[[], tuple[Tensor, ...]]  # returns the loss, then the wanted gradients in the case's order

STOCK, COMPILED, OURS = "eager", "compile", "gdcore"
FUSED = "fused"  # gdcore with its fused path asked for by name, in training runs


@dataclass(frozen=True, slots=True)
class Peer:
    """A name for tables, what it is in words, and how to get its loss function."""

    name: str
    what: str
    prepare: Callable[[], LossFunction]


def _compiled() -> LossFunction:
    """A compilation for this case's shapes alone: without the reset, the second case would make it generic in its shapes."""
    torch._dynamo.reset()
    return torch.compile(reference.linear_mse)


PEERS = (
    Peer(STOCK, "F.mse_loss(F.linear(input, weight, bias), target)", lambda: reference.linear_mse),
    Peer(COMPILED, "torch.compile of the same, default mode", _compiled),
    Peer(OURS, "gdcore.linear_mse(input, weight, target, bias)", lambda: gdcore.linear_mse),
)


def bind(function: LossFunction, case: Case, tensors: Tensors) -> Call:
    """One complete call: the loss, and its gradients by torch.autograd.grad, which accumulates nothing into `.grad`."""
    operands = (tensors.input, tensors.weight, tensors.target, tensors.bias)
    leaves = [getattr(tensors, name) for name in case.wanted]

    def loss_alone() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(*operands),)

    def loss_and_gradients() -> tuple[Tensor, ...]:
        loss = function(*operands)
        return loss, *torch.autograd.grad(loss, leaves)

    return loss_and_gradients if leaves else loss_alone


def in_one_line(error: BaseException, limit: int = 160) -> str:
    """An exception's type and the first line of its message, for tables and result files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
