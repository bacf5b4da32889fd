"""Whether tensors are like those of a call before, in one question: PyTorch's compiler has it for its own guards."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PLAIN = frozenset((Tensor, torch.nn.Parameter))  # types of which nothing is overridden


def guards_of(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """A check that tensors have the types, dtypes, devices, shapes, strides and need of gradients of these, each another one.

    None where this version of PyTorch has no such check, or where it does not take even these.
    """
    try:
        from torch._C._dynamo.guards import TensorGuards

        sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
        check = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
        return check if tensors and check(*tensors) else None
    except (ImportError, TypeError, RuntimeError):
        return None
