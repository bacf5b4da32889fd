"""One update of stochastic gradient descent, in torch.optim.SGD's order of operations."""

from typing import NamedTuple

import torch
from torch import Tensor


class Update(NamedTuple):
    """g ← ±dW + wd W;  v ← μ v + (1 − τ) g;  W ← W − lr (g + μ v if nesterov else v), and v = g without momentum."""

    lr: float | Tensor  # a tensor has one element and is read on its device
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False


def apply_(update: Update, param: Tensor, grad: Tensor, momentum_buffer: Tensor | None) -> None:
    """Step `param` and its buffer in place, calculating in grad's dtype, the accumulator's. `grad` is used up."""
    wide = param.to(grad.dtype)  # itself, where it is as wide
    if update.maximize:
        grad.neg_()
    if update.weight_decay:
        grad.add_(wide, alpha=update.weight_decay)
    if update.momentum:
        assert momentum_buffer is not None
        v = momentum_buffer.to(grad.dtype)
        v.mul_(update.momentum).add_(grad, alpha=1 - update.dampening)
        if v is not momentum_buffer:
            momentum_buffer.copy_(v)
        grad = grad.add_(v, alpha=update.momentum) if update.nesterov else v
    if isinstance(update.lr, Tensor):
        torch.addcmul(wide, grad, update.lr.to(grad.dtype), value=-1, out=wide)
    else:
        wide.sub_(grad, alpha=update.lr)
    if wide is not param:
        param.copy_(wide)
