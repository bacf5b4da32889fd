"""A one-pass forward pass from a tape: for a call whose tensors are known to be like those of the call before."""

import torch
from torch import Tensor

from ..kernels.launch import has_hooks
from ..kernels.tape import Replay, recording
from ..plan import Plan
from . import Forward, Wanted, triton
from .common import on_device_of


class OnePass:
    """The Triton backend for calls of one kind, the same shapes, strides, dtypes, device and plan, which the caller has looked at.

    The first forward pass is recorded. Alignment of addresses, which kernels are compiled for, is looked at here.
    """

    backward = staticmethod(triton.backward)

    def __init__(self) -> None:
        self.taped: tuple[tuple[bool, ...], Replay | None] = (), None  # alignment of addresses, and launches for it

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None,
        reduction: str,
        wanted: Wanted,
        plan: Plan,
    ) -> Forward:
        given = (input, weight, target) if bias is None else (input, weight, target, bias)
        aligned = tuple([not tensor.data_ptr() & 15 for tensor in given])
        taped_for, replay = self.taped
        if taped_for != aligned:
            with recording() as tape:
                result = triton.forward(input, weight, target, bias, reduction, wanted, plan)
            self.taped = aligned, tape.replay(given)
            return result
        if replay is None or has_hooks():
            return triton.forward(input, weight, target, bias, reduction, wanted, plan)
        with on_device_of(input):
            sums = replay(*given)[-1]
            return triton.from_sums(sums, None, torch.promote_types(input.dtype, target.dtype), wanted, plan)
