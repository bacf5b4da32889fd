"""A call on a GPU like one before: what was found out of that one holds, and nothing has to be asked again.

Before a kernel starts, Python asks what the arguments are, what mode it is in and what to do, and works out the launches; beside
a GPU that needs 40 µs for the work, that is most of the call. The first call of a kind goes that way, the second too, and leaves
its answers here. From the third on one call of PyTorch's compiler guards compares all that the answers depend on of the tensors
(types, dtypes, devices, shapes, strides, whether they require a gradient), and the launches come from a tape.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import Wanted, chosen, load
from .chunks import LARGE_BYTES
from .plan import Plan, stock_wins_on_cuda
from .precision import float32_precision

try:
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None

_KINDS = 256  # that are kept
_TENSORS = frozenset((Tensor, torch.nn.Parameter))


class Call(NamedTuple):
    """What is known of calls of one kind."""

    check: Callable[..., bool]  # whether tensors are like those that it is known of
    wanted: Wanted
    plan: Plan
    backend: Any


_known: dict[tuple, Call | Plan] = {}  # a plan: a kind that was met once


def recall(input: Any, weight: Any, target: Any, bias: Any, reduction: str) -> Call | None:
    """What is known of a call with these arguments, if anything is and all of it holds."""
    if not _known or type(input) not in _TENSORS or type(weight) not in _TENSORS:
        return None
    call = _known.get(_kind(input, weight, bias, reduction))
    if type(call) is not Call:
        return None
    alike = call.check(input, weight, target) if bias is None else call.check(input, weight, target, bias)
    return call if alike and not _in_a_mode() else None


def remember(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str, wanted: Wanted, plan: Plan
) -> None:
    """A call that the Triton backend takes on this plan: with the second in a row, its kind is known."""
    if TensorGuards is None or _in_a_mode() or not _is_lasting(input, target, plan):
        return
    kind = _kind(input, weight, bias, reduction)
    if _known.get(kind) is not plan:
        if len(_known) >= _KINDS:
            _known.clear()
        _known[kind] = plan
        return
    tensors = (input, weight, target) if bias is None else (input, weight, target, bias)
    sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
    check = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    backend = load("triton")
    if plan.path in backend.ONE_PASS and not plan.store_residual:
        from .backends.triton_replay import OnePass

        backend = OnePass()
    _known[kind] = Call(check, wanted, plan, backend)


def forget() -> None:
    """Know nothing."""
    _known.clear()


def _kind(input: Tensor, weight: Tensor, bias: Tensor | None, reduction: str) -> tuple:
    """What chooses the entry; beside the tensors' likeness, all that the answers depend on."""
    return (
        input.get_device(),
        input.shape,
        weight.shape,
        bias is None,
        reduction,
        torch.is_grad_enabled(),
        chosen(),
        float32_precision(),
    )


def _is_lasting(input: Tensor, target: Tensor, plan: Plan) -> bool:
    """Whether the plan depends on nothing else: neither on free memory nor on whether a graph is being captured."""
    numbers, products = input.numel() + target.numel(), target.numel() * input.shape[-1]
    return target.numel() * input.itemsize < LARGE_BYTES and not stock_wins_on_cuda(numbers, products, input.dtype)


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
