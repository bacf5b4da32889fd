"""A one-pass forward pass from a tape: for a call whose tensors are known to be like those of the call before."""

import torch
from torch import Tensor

from ..kernels.launch import has_hooks
from ..kernels.tape import Replay, recorded
from ..plan import Plan
from . import Forward, Wanted, triton
from .common import on_device_of


class OnePass:
    """The Triton backend for calls of one kind, the same shapes, strides, dtypes, device and plan, which the caller has looked at.

    Kernels are compiled for addresses that are multiples of 16 or not: for each such pattern one forward pass is recorded.
    """

    backward = staticmethod(triton.backward)

    def __init__(self) -> None:
        self.replays: dict[tuple[bool, ...], Replay | None] = {}  # None: its launches cannot be made again

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
        def asked() -> Forward:
            return triton.forward(input, weight, target, bias, reduction, wanted, plan)

        if has_hooks():  # those who listen hear of no launch from a tape
            return asked()
        given = (input, weight, target) if bias is None else (input, weight, target, bias)
        aligned = tuple([not tensor.data_ptr() & 15 for tensor in given])
        if aligned not in self.replays:
            result, tape = recorded(asked)
            self.replays[aligned] = tape.replay(given)
            return result
        replay = self.replays[aligned]
        if replay is None:
            return asked()
        with on_device_of(input):
            sums = replay(*given)[-1]
            return triton.from_sums(sums, None, torch.promote_types(input.dtype, target.dtype), wanted, plan)
