"""A call on a GPU like two before: what was found out of those holds, and nothing has to be asked again.

Before a kernel starts, Python asks what the arguments are, what mode it is in and what to do, and works out the launches; beside
a GPU that needs 40 µs for the work, that is most of the call. Two calls of a kind go that way, and leave their answers here.
From then on one call of PyTorch's compiler guards compares what the answers depend on of the tensors (types, dtypes, devices,
shapes, strides, whether they require a gradient, what is dispatched on). Where one read of the data is all there is, a third call
is recorded, and later ones take their launches from the tape.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import chunks
from .backends import Wanted, chosen, load
from .guards import PLAIN, guards_of
from .plan import Plan, stock_wins_on_cuda
from .precision import float32_precision

_KINDS = 256  # that are kept


class Call(NamedTuple):
    """What is known of calls of one kind."""

    check: Callable[..., bool]  # whether tensors are like those that it is known of
    wanted: Wanted
    plan: Plan
    backend: Any


_known: dict[tuple, Call | Plan] = {}  # a plan: a kind that was met once


def recall(input: Any, weight: Any, target: Any, bias: Any, reduction: Any) -> Call | None:
    """What is known of a call with these arguments, if anything is and all of it holds."""
    if (
        not _known
        or type(input) not in PLAIN
        or type(weight) not in PLAIN
        or type(target) not in PLAIN
        or type(reduction) is not str
        or not input.layout is weight.layout is target.layout is torch.strided
    ):
        return None
    call = _known.get(_kind(input, weight, target, bias, reduction))
    if type(call) is not Call:
        return None
    alike = call.check(input, weight, target) if bias is None else call.check(input, weight, target, bias)
    return call if alike and not _in_a_mode() else None


def remember(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str, wanted: Wanted, plan: Plan
) -> None:
    """A call with these arguments, as they were given, that the Triton backend takes on this plan: the second one is learnt."""
    tensors = (input, weight, target) if bias is None else (input, weight, target, bias)
    if (
        _in_a_mode()
        or not _is_lasting(input, target, plan)
        or len(set(map(id, tensors))) < len(tensors)  # which the guards refuse
    ):
        return
    kind = _kind(input, weight, target, bias, reduction)
    met = _known.get(kind)
    if type(met) is Call:  # for others of this kind, which may come back: two that take turns would be learnt each time
        return
    if met is not plan:
        if len(_known) >= _KINDS:
            _known.clear()
        _known[kind] = plan
        return
    check = guards_of(tensors)
    if check is not None:
        backend = load("triton")
        if plan.path in backend.ONE_PASS and not plan.store_residual:
            from .backends.triton_replay import OnePass

            backend = OnePass()
        _known[kind] = Call(check, wanted, plan, backend)


def forget() -> None:
    """Know nothing."""
    _known.clear()


def _kind(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str) -> tuple:
    """What chooses the entry: beside the tensors' likeness, all that the answers depend on."""
    return (
        input.get_device(),
        input.shape,
        weight.shape,
        input.stride(),
        weight.stride(),
        target.stride(),
        input.dtype,
        target.dtype,
        input.requires_grad,
        weight.requires_grad,
        target.requires_grad,
        bias is None,
        reduction,
        torch.is_grad_enabled(),
        chosen(),
        float32_precision(),
    )


def _is_lasting(input: Tensor, target: Tensor, plan: Plan) -> bool:
    """Whether the plan depends on nothing else: neither on free memory nor on whether a graph is being captured."""
    numbers, products = input.numel() + target.numel(), target.numel() * input.shape[-1]
    return target.numel() * input.itemsize < chunks.LARGE_BYTES and not stock_wins_on_cuda(
        numbers, products, input.dtype
    )


def _in_a_mode() -> bool:
    """Whether calls mean something else than they say."""
    return bool(
        torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
    )
