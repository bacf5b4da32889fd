"""The kernel's tables, and what keeps them true from step to step.

Nothing is built in a step that is like the one before: the tables stay on the device, and what moved, gradients' addresses
and hyperparameters, is uploaded in one copy. What else changes is noticed (watch.py), and the tables are built again.
"""

import contextlib
import itertools
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import sgd as kernels
from ..kernels.configs import SGD_BLOCK
from ..kernels.sgd_norm import squared_norm
from .members import HALF, Member, MovedError, check_group, check_member, flat_order, local, wants_master
from .watch import Watch

_HYPERPARAMETERS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")
_MOMENTUM = _HYPERPARAMETERS.index("momentum")
_READABLE = (torch.float32, torch.float64)  # of a number that the kernel reads from the device
_ROW = kernels.TENSOR_COLUMNS.value
_GROUP_ROW = kernels.GROUP_COLUMNS.value


class Stepper:
    """The parameters on one device that the kernel steps."""

    def __init__(self, owner: Any, device: torch.device, members: list[Member], inherited: "Stepper | None") -> None:
        self.owner, self.device, self.members = owner, device, members
        self.groups = list({id(member.group): member.group for member in members}.values())
        self.numels = [local(member.param).numel() for member in members]
        self.first_chunks = [0, *itertools.accumulate(-(-numel // SGD_BLOCK) for numel in self.numels)]
        self.is_cuda = device.type == "cuda"  # otherwise the kernel is interpreted
        self.built = self.current = False
        self.in_graph = False  # the tables were made while a graph was captured
        self.known: dict[int, Tensor] = {}  # position -> the momentum buffer that its counters count for
        self.fresh: set[int] = set()  # positions whose momentum was made for the step to come
        self.unsure: set[int] = set()  # positions whose first step may have been refused on the device
        self.used: set[int] = set()  # positions whose counters may not be zero
        self.counters: Tensor | None = None  # steps that each chunk has taken
        self.kept: list[Any] = []  # what captured graphs read when they are replayed
        if not self._capturing():
            self._make_counters(inherited)

    def check(self) -> None:
        self.current = self.built and self._refresh()
        if not self.current:
            for group in self.groups:
                check_group(group)
            for member, numel in zip(self.members, self.numels, strict=True):
                check_member(member, self.owner.state, self.device)
                if local(member.param).numel() != numel:
                    raise MovedError
            if self.built and self.watch.moved():
                self.owner.check_overlap()

    def ready(self) -> None:
        if not self.current:
            with torch.no_grad(), self._on_device():
                self._build()

    def squared_norm(self, grad_scale: Tensor | None) -> Tensor:
        if not self.kinds:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        with self._on_device():
            total = squared_norm(self.chunks, self.rows, self.layouts, self.grads, kinds=self.kinds)
        return (total if grad_scale is None else total / self._number(grad_scale).double().square())[0]

    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None, norm: Tensor | None) -> None:
        if found_inf is not None or self._capturing():
            self.unsure |= self.fresh
        self.fresh = set()
        if not self.kinds:  # no parameter has a gradient
            return
        with self._on_device():
            kernels.sgd_update(
                self.chunks,
                self.rows,
                self.layouts,
                self.grads,
                self.group_rows,
                self.counters,
                self.one if grad_scale is None else self._number(grad_scale),
                self.zero if found_inf is None else self._number(found_inf),
                self.zero if norm is None else self._number(norm),
                max_norm=float("inf") if norm is None else self.owner.max_norm,
                seed=self.owner.seed,
                kinds=self.kinds,
                zero_grad=self.owner.zeroes_grads,
            )
        torch.autograd.graph.increment_version(self.written)
        if self.owner.zeroes_grads:
            torch.autograd.graph.increment_version([param.grad for param in self.written])

    def not_started(self) -> list[Tensor]:
        if self.unsure:
            counts = self.counters.cpu()
            self.unsure = {
                i
                for i in self.unsure
                if self.numels[i] and counts[self.first_chunks[i]] == 0
                if dict.get(self.owner.state, self.members[i].param, {}).get("momentum_buffer") is self.known[i]
            }
        return [self.members[i].param for i in self.unsure]

    # In every step.

    def _refresh(self) -> bool:
        """Whether the tables say what is there, after the updates that cost little."""
        if self.in_graph or not self.watch.holds():
            return False
        changed = self._refresh_groups()
        if self.watch.addresses != self.addresses or self.watch.missing != self.missing:
            if not self._set_addresses():
                return False
            changed = True
        if not self.built:
            return False
        if self._capturing():
            self.grads, self.group_rows = self._views(self._upload_for_graph(self.staging))
            self.addresses = None  # what the next step finds on the device is older than what it finds staged
            return True
        if changed:
            self.dynamic.copy_(self.staging, non_blocking=True)  # pageable: the driver has read it when this returns
        self.grads, self.group_rows = self.own_views
        return True

    def _refresh_groups(self) -> bool:
        """Whether a hyperparameter may have changed; its row is set."""
        changed = False
        for i, (group, known) in enumerate(zip(self.groups, self.hyperparameters, strict=True)):
            if self.has_tensors[i] or not all(map(operator.is_, map(group.__getitem__, _HYPERPARAMETERS), known)):
                changed |= self._set_group(i)
        return changed

    def _set_group(self, i: int) -> bool:
        """Stage a group's hyperparameters; whether they are others than before."""
        group = self.groups[i]
        check_group(group)
        row = self.staging_array[self.padded + i * _GROUP_ROW :][:_GROUP_ROW]
        before = row.copy()
        floats = row.view(np.float64)
        row[:] = 0
        for column, name in ((kernels.LR.value, "lr"), (kernels.DECAY.value, "weight_decay")):
            value = group[name]
            if self._is_read_on_device(value):
                row[column + 1 : column + 3] = value.data_ptr(), value.dtype is torch.float64
            else:
                floats[column] = float(value)
        floats[kernels.MU.value] = float(group["momentum"])
        floats[kernels.UNDAMPED.value] = 1 - float(group["dampening"])
        floats[kernels.NESTEROV.value] = bool(group["nesterov"])
        floats[kernels.SIGN.value] = -1.0 if group["maximize"] else 1.0
        values = [group[name] for name in _HYPERPARAMETERS]
        if (values[_MOMENTUM] != 0) != (self.hyperparameters[i][_MOMENTUM] != 0):
            self.built = False  # with momentum or without is another kind
        self.hyperparameters[i] = values
        self.has_tensors[i] = any(isinstance(value, Tensor) for value in values)  # which may be written, or moved
        return not np.array_equal(row, before)

    def _is_read_on_device(self, value: float | Tensor) -> bool:
        return isinstance(value, Tensor) and value.device == self.device and value.dtype in _READABLE

    def _set_addresses(self) -> bool:
        """Stage the gradients' addresses; False where the table does not allow for one of them."""
        watch = self.watch
        staged = self.staging_array[: len(watch.addresses)]
        staged[:] = watch.addresses
        odd = np.bitwise_or.reduce(staged if self.all_aligned else staged[self.aligned]) & 15
        if odd or any(watch.grads[i] is not None for i in self.absent):
            return False
        if self.missing or watch.missing or self.addresses is None:
            self.written = [m.param for m, grad in zip(self.members, watch.grads, strict=True) if grad is not None]
        self.addresses, self.missing = watch.addresses, watch.missing
        return True

    def _views(self, dynamic: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients' addresses and the table of groups in one upload."""
        return dynamic[: len(self.members)], dynamic[self.padded :]

    # When something else than an address or a hyperparameter changed.

    def _build(self) -> None:
        self.in_graph = self._capturing()
        if self.in_graph:
            self._refuse_new_state()
        for i, member in enumerate(self.members):
            if member.param.grad is not None:
                self._make_state(i, member)
        self.watch = Watch(self.owner, self.members)
        rows, layouts = self._describe()
        chunks = np.repeat(np.arange(len(self.members), dtype=np.int32), np.diff(self.first_chunks))
        self.padded = len(self.members) + len(self.members) % 2  # keeps the groups at a multiple of 16 bytes
        self.staging = torch.zeros(self.padded + len(self.groups) * _GROUP_ROW, dtype=torch.int64, device="cpu")
        self.staging_array = self.staging.numpy()
        self.hyperparameters = [[group[name] for name in _HYPERPARAMETERS] for group in self.groups]
        self.has_tensors = [False] * len(self.groups)
        for i in range(len(self.groups)):
            self._set_group(i)
        self.addresses, self.missing = None, 0
        self._set_addresses()
        upload = self._upload_for_graph if self.in_graph else self._upload
        self.chunks, self.rows = upload(torch.from_numpy(chunks)), upload(torch.from_numpy(rows))
        self.layouts, self.dynamic = upload(torch.tensor(layouts or [0], device="cpu")), upload(self.staging)
        self.zero, self.one = upload(torch.zeros(1, device="cpu")), upload(torch.ones(1, device="cpu"))
        self.grads, self.group_rows = self.own_views = self._views(self.dynamic)
        if self.is_cuda and not self.in_graph:
            self.spare = self.staging.pin_memory()
        self.built = True

    def _describe(self) -> tuple[np.ndarray, list[int]]:
        """The table of tensors, and the layouts of those that are not flat. Sets what a gradient may not change."""
        rows = np.zeros((len(self.members), _ROW), dtype=np.int64)
        rows[:, kernels.FIRST_CHUNK.value] = self.first_chunks[:-1]
        rows[:, kernels.NUMEL.value] = self.numels
        self.aligned = np.zeros(len(self.members), dtype=bool)
        self.absent = [i for i, grad in enumerate(self.watch.grads) if grad is None]
        group_of = {id(group): i for i, group in enumerate(self.groups)}
        kinds: dict[kernels.Kind, int] = {}
        layouts: list[int] = []
        for i, (member, grad) in enumerate(zip(self.members, self.watch.grads, strict=True)):
            if grad is None:
                continue
            state = self.owner.state.peek(member.param)
            momentum = local(state["momentum_buffer"]) if member.group["momentum"] != 0 else None
            master = local(state["master_weight"]) if wants_master(self.owner, member.param) else None
            tensors = (self.watch.inner[i], grad, momentum, master)
            kind = _kind(*tensors, self.owner.stochastic_rounding)
            rows[i, kernels.PARAM.value] = tensors[0].data_ptr()
            rows[i, kernels.MOMENTUM.value] = 0 if momentum is None else momentum.data_ptr()
            rows[i, kernels.MASTER.value] = 0 if master is None else master.data_ptr()
            rows[i, kernels.KIND.value] = kinds.setdefault(kind, len(kinds))
            rows[i, kernels.GROUP.value] = group_of[id(member.group)]
            rows[i, kernels.LAYOUT.value] = len(layouts)
            if kind.strided:
                layouts += _layout(*tensors)
            self.aligned[i] = kind.aligned
        self.all_aligned = bool(self.aligned.all())
        self.kinds = ";".join(map(str, kinds))
        return rows, layouts

    def _make_state(self, i: int, member: Member) -> None:
        """What the step of a parameter needs and the optimizer does not have yet."""
        was_used = i in self.used
        self.used.add(i)
        master = wants_master(self.owner, member.param)
        if not master and member.group["momentum"] == 0:
            return
        param, state = member.param, self.owner.state.own(member.param)
        if master and state.get("master_weight") is None:
            state["master_weight"] = param.detach().float()
        if member.group["momentum"] == 0:
            return
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.empty_like(param, dtype=torch.float32 if master else param.dtype)
            if was_used:
                self._counters_of(i).zero_()
            self.fresh.add(i)
        elif self.known.get(i) is not state["momentum_buffer"]:
            self.unsure.discard(i)
            self._counters_of(i).fill_(1)  # it was loaded, or set by hand: its first step is over
        self.known[i] = state["momentum_buffer"]

    def _make_counters(self, inherited: "Stepper | None") -> None:
        with torch.no_grad(), self._on_device():
            self.counters = torch.zeros(self.first_chunks[-1], dtype=torch.int32, device=self.device)
            if inherited is None or inherited.counters is None:
                return
            places = {id(member.param): i for i, member in enumerate(self.members)}
            for j, member in enumerate(inherited.members):
                i = places.get(id(member.param))
                if i is None or self.numels[i] != inherited.numels[j]:
                    continue
                self._counters_of(i).copy_(inherited._counters_of(j))
                if j in inherited.known:
                    self.known[i] = inherited.known[j]
                if j in inherited.used:
                    self.used.add(i)
                if j in inherited.unsure:
                    self.unsure.add(i)
            self.kept = inherited.kept

    def _counters_of(self, i: int) -> Tensor:
        return self.counters[self.first_chunks[i] : self.first_chunks[i + 1]]

    # Copies to the device.

    def _upload(self, array: Tensor) -> Tensor:
        return array.clone() if not self.is_cuda else array.to(self.device, non_blocking=True)

    def _upload_for_graph(self, array: Tensor) -> Tensor:
        """A copy that a graph makes again in each replay, from pinned memory that must stay as it is."""
        spare = getattr(self, "spare", None)
        if spare is not None and array is self.staging:
            pinned, self.spare = spare.copy_(array), None
        else:
            pinned = array.pin_memory()
        copy = pinned.to(self.device, non_blocking=True)
        self.kept.append((pinned, copy, self.counters, getattr(self, "chunks", None), getattr(self, "rows", None)))
        return copy

    def _number(self, value: Tensor) -> Tensor:
        """A tensor of one number as the kernel reads it: on this device, float32 or float64."""
        value = value.detach().reshape(1).to(self.device, non_blocking=True)
        return value if value.dtype in _READABLE else value.float()

    def _refuse_new_state(self) -> None:
        """State that is made while a graph is captured would be made again in each replay."""
        for i, member in enumerate(self.members):
            if member.param.grad is None:
                continue
            state = self.owner.state.peek(member.param)
            buffer = state.get("momentum_buffer")
            # A new buffer needs nothing but counters that are zero: the kernel does not read it in the first step.
            stale = i in self.used if buffer is None else self.known.get(i) is not buffer
            no_master = wants_master(self.owner, member.param) and state.get("master_weight") is None
            if self.counters is None or no_master or (member.group["momentum"] != 0 and stale):
                raise RuntimeError(
                    f"the state of {member} would be made in the CUDA graph that is being captured, and made again in "
                    "each replay: take one step before the capture"
                )

    def _capturing(self) -> bool:
        return self.is_cuda and torch.cuda.is_current_stream_capturing()

    def _on_device(self) -> contextlib.AbstractContextManager:
        """This device as the current one, where it is not: Triton launches on the current device."""
        if self.is_cuda and self.device.index != torch.cuda.current_device():
            return torch.cuda.device(self.device)
        return contextlib.nullcontext()


def _kind(
    param: Tensor, grad: Tensor, momentum: Tensor | None, master: Tensor | None, stochastic_rounding: bool
) -> kernels.Kind:
    there = [tensor for tensor in (param, grad, momentum, master) if tensor is not None]
    order = flat_order(param)
    return kernels.Kind(
        param=param.dtype,
        grad=grad.dtype,
        momentum=None if momentum is None else momentum.dtype,
        master=master is not None,
        stochastic=stochastic_rounding and param.dtype in HALF,
        strided=order is None or any(flat_order(tensor) != order for tensor in there),
        aligned=all(tensor.data_ptr() % 16 == 0 for tensor in there),
    )


def _layout(param: Tensor, *others: Tensor | None) -> list[int]:
    """How to find an element of each tensor from its number in row-major order."""
    dims = [dim for dim in reversed(range(param.dim())) if param.shape[dim] > 1]
    layout = [len(dims)]
    for dim in dims:
        layout += [param.shape[dim], param.stride(dim)]
        layout += [0 if tensor is None else tensor.stride(dim) for tensor in others]
    return layout
