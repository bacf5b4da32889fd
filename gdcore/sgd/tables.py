"""What the kernel reads about its tensors, as NumPy arrays: a row for each parameter, a map of chunks, layouts, kinds."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..kernels import sgd as kernels
from .members import HALF, Member, flat_order, local, wants_master
from .watch import Watch


class Table(NamedTuple):
    """The tables that kernels/sgd.py describes, and what they allow for."""

    rows: np.ndarray  # (parameters, columns) int64
    chunks: np.ndarray  # (chunks,) int32
    layouts: np.ndarray  # int64
    kinds: str
    aligned: np.ndarray  # (parameters,) bool: whether the gradient's address must be a multiple of 16
    unseen: list[int]  # parameters without a row: they never had a gradient


def describe(
    owner: Any,
    members: list[Member],
    watch: Watch,
    groups: list[dict[str, Any]],
    numels: list[int],
    first_chunks: list[int],
) -> Table:
    """The tables for parameters whose state is there.

    A parameter whose gradient is missing has a row too, if it ever had one: it may come back.
    """
    rows = np.zeros((len(members), kernels.TENSOR_COLUMNS.value), dtype=np.int64)
    rows[:, kernels.FIRST_CHUNK.value] = first_chunks[:-1]
    rows[:, kernels.NUMEL.value] = numels
    group_of = {id(group): i for i, group in enumerate(groups)}
    kinds: dict[int, kernels.Kind] = {}
    layouts: list[int] = [0]
    unseen = []
    for i, (member, fact) in enumerate(zip(members, watch.facts, strict=True)):
        state = owner.state.peek(member.param)
        has_momentum, has_master = member.group["momentum"] != 0, wants_master(owner, member.param)
        momentum = local(state.get("momentum_buffer")) if has_momentum else None
        master = local(state.get("master_weight")) if has_master else None
        if fact is None or (has_momentum and momentum is None) or (has_master and master is None):
            unseen.append(i)
            continue
        param, grad = watch.inner[i], watch.grads[i]
        aligned = grad is None or grad.data_ptr() % 16 == 0
        kinds[i] = _kind(param, fact, aligned, momentum, master, owner.stochastic_rounding)
        rows[i, kernels.PARAM.value] = param.data_ptr()
        rows[i, kernels.MOMENTUM.value] = 0 if momentum is None else momentum.data_ptr()
        rows[i, kernels.MASTER.value] = 0 if master is None else master.data_ptr()
        rows[i, kernels.GROUP.value] = group_of[id(member.group)]
        rows[i, kernels.LAYOUT.value] = len(layouts)
        if kinds[i].strided:
            layouts += _layout(param, fact, momentum, master)
    names = sorted(set(map(str, kinds.values())))  # in an order that does not depend on that of the parameters
    for i, kind in kinds.items():
        rows[i, kernels.KIND.value] = names.index(str(kind))
    return Table(
        rows,
        np.repeat(np.arange(len(members), dtype=np.int32), np.diff(first_chunks)),
        np.array(layouts, dtype=np.int64),
        ";".join(names),
        np.array([i in kinds and kinds[i].aligned for i in range(len(members))], dtype=bool),
        unseen,
    )


def _kind(
    param: Tensor,
    grad: tuple[Any, ...],
    grad_aligned: bool,
    momentum: Tensor | None,
    master: Tensor | None,
    stochastic_rounding: bool,
) -> kernels.Kind:
    """`grad` is what watch.py knows of the gradient: dtype, device, shape, strides."""
    own = [tensor for tensor in (param, momentum, master) if tensor is not None]
    order = flat_order(param.shape, param.stride())
    orders = [flat_order(grad[2], grad[3]), *(flat_order(tensor.shape, tensor.stride()) for tensor in own)]
    return kernels.Kind(
        param=param.dtype,
        grad=grad[0],
        momentum=None if momentum is None else momentum.dtype,
        master=master is not None,
        stochastic=stochastic_rounding and param.dtype in HALF,
        strided=order is None or any(other != order for other in orders),
        aligned=grad_aligned and all(tensor.data_ptr() % 16 == 0 for tensor in own),
    )


def _layout(param: Tensor, grad: tuple[Any, ...], *others: Tensor | None) -> list[int]:
    """How to find an element of each tensor from its number in row-major order."""
    dims = [dim for dim in reversed(range(param.dim())) if param.shape[dim] > 1]
    layout = [len(dims)]
    for dim in dims:
        layout += [param.shape[dim], param.stride(dim), grad[3][dim]]
        layout += [0 if tensor is None else tensor.stride(dim) for tensor in others]
    return layout
