"""The peers of the optimizer's step: torch.optim.SGD's three implementations, and that compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

import gdcore

from .peers import COMPILED, FOREACH, LOOP, OURS, STOCK_FUSED, Bind, Peer

if TYPE_CHECKING:
    from .sgd_cases import SgdCase, Stepped

LR = 0.05  # large enough that an element that was left out shows in half precision


def _optimizer(make: Callable, **which: bool) -> Callable[[SgdCase, torch.device], Bind]:
    def prepare(case: SgdCase, device: torch.device) -> Bind:
        return lambda operands: make(operands.params, lr=LR, **case.settings, **which).step

    return prepare


def _compiled(case: SgdCase, device: torch.device) -> Bind:
    def bind(operands: Stepped) -> Callable[[], object]:
        torch.compiler.reset()  # every optimizer is compiled anew: past the limit of those it would silently run eagerly
        return torch.compile(torch.optim.SGD(operands.params, lr=LR, **case.settings).step)

    return bind


PEERS = (
    Peer(LOOP, "torch.optim.SGD(foreach=False)", _optimizer(torch.optim.SGD, foreach=False)),
    Peer(FOREACH, "torch.optim.SGD(foreach=True)", _optimizer(torch.optim.SGD, foreach=True)),
    Peer(STOCK_FUSED, "torch.optim.SGD(fused=True)", _optimizer(torch.optim.SGD, fused=True)),
    Peer(COMPILED, "torch.compile(torch.optim.SGD(...).step)", _compiled),
    Peer(OURS, "gdcore.SGD", _optimizer(gdcore.SGD)),
)
