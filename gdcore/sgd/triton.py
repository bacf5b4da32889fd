"""The kernel's tables, and what keeps them true from step to step.

Nothing is built in a step that is like the one before: the tables stay on the device, and what moved, gradients' addresses
and hyperparameters, is uploaded in one copy. What else changes is noticed (watch.py), and the tables are built again.

In a CUDA graph that is being captured nothing is built: a step that would have to is refused. What moved goes into the
graph as arguments of kernels, so that a replay reads no host memory. Pinned memory, which a copy would need, is freed
whenever Python collects the optimizer; where that is while another graph is captured, PyTorch's allocator records an
event in the capture, and fails when it asks for it later.
"""

import contextlib
import itertools
import operator
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import sgd as kernels
from ..kernels.configs import SGD_BLOCK
from ..kernels.sgd_norm import squared_norm
from .members import (
    Member,
    MovedError,
    check_clearable,
    check_group,
    check_member,
    local,
    overlapping,
    wants_master,
)
from .tables import describe
from .watch import Watch

_HYPERPARAMETERS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")
_MOMENTUM = _HYPERPARAMETERS.index("momentum")
_READABLE = (torch.float32, torch.float64)  # of a number that the kernel reads from the device
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
        self.watch: Watch | None = None
        self.tables: tuple[Tensor, ...] = ()
        self.known: dict[int, weakref.ref] = {}  # position -> the momentum buffer that its counters count for
        self.fresh: set[int] = set()  # positions whose momentum was made for the step to come
        self.unsure: set[int] = set()  # positions whose first step may have been refused on the device
        self.used: set[int] = set()  # positions whose counters may not be zero
        self.counters: Tensor | None = None  # steps that each chunk has taken
        self.inherited = inherited
        if not self._capturing():
            self._make_counters()

    def check(self) -> None:
        self.capturing = self._capturing()
        self.current = self.built and self._refresh()
        if self.current:
            return
        moved = self.built and self.watch.moved()
        self.built = False  # what is staged is not on the device
        for group in self.groups:
            check_group(group)
        for member, numel in zip(self.members, self.numels, strict=True):
            check_member(member, self.owner.state, self.device)
            if self.owner.zeroes_grads:
                check_clearable(member)
            if local(member.param).numel() != numel:
                raise MovedError
        if moved:
            self.owner.check_overlap()
        if self.capturing:
            raise RuntimeError(
                "tables and state of the optimizer would be made in the CUDA graph that is being captured, and made again in "
                "each replay: take one step before the capture, with gradients, state and groups as they will be in it"
            )

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
        if self.kinds:  # otherwise no parameter has a gradient
            self._launch(grad_scale, found_inf, norm)
        if found_inf is not None or self.capturing:
            self.unsure |= self.fresh
        self.fresh = set()
        self.watch.release()

    def _launch(self, grad_scale: Tensor | None, found_inf: Tensor | None, norm: Tensor | None) -> None:
        tables = (self.chunks, self.rows, self.layouts, self.grads, self.group_rows, self.counters)
        numbers = (
            self.one if grad_scale is None else self._number(grad_scale),
            self.zero if found_inf is None else self._number(found_inf),
            self.zero if norm is None else self._number(norm),
        )
        with self._on_device():
            kernels.sgd_update(
                *tables,
                *numbers,
                max_norm=float("inf") if norm is None else self.owner.max_norm,
                seed=self.owner.seed,
                kinds=self.kinds,
                zero_grad=self.owner.zeroes_grads and not self.shared_grads,
            )
        torch.autograd.graph.increment_version(self.written)
        if self.capturing:
            self.owner.keep((tables, numbers))
        if self.owner.zeroes_grads:
            grads = [param.grad for param in self.written]
            if self.shared_grads:
                with torch.no_grad():
                    torch._foreach_zero_(grads)
            else:
                torch.autograd.graph.increment_version(grads)

    def not_started(self) -> list[Tensor]:
        unsure = self.unsure | self.fresh
        if unsure:
            state, counts = self.owner.state, self.counters.cpu()
            unsure = {
                i
                for i in unsure
                if self.numels[i] and counts[self.first_chunks[i]] == 0
                if dict.get(state, self.members[i].param, {}).get("momentum_buffer") is self.known[i]()
            }
            self.unsure &= unsure
        return [self.members[i].param for i in unsure]

    # In every step.

    def _refresh(self) -> bool:
        """Whether the tables say what is there, after the updates that cost little."""
        if not self.watch.holds():
            return False
        changed = self._refresh_groups()
        addresses = self.watch.addresses
        if self.watch.missing != self.missing or (addresses is not self.addresses and addresses != self.addresses):
            if not self._set_addresses():
                return False
            changed = True
        if not self.built:
            return False
        if self.capturing:
            self.grads, self.group_rows = self._views(_made_in_graph(self.staging_array, self.device))
            self.addresses = None  # what the next step finds on the device is older than what it finds staged
            return True
        if changed:
            self.dynamic.copy_(self.staging, non_blocking=True)  # pageable: the driver has read it when this returns
        self.grads, self.group_rows = self.own_views
        return True

    def _refresh_groups(self) -> bool:
        """Whether a hyperparameter has changed; it is staged."""
        changed = False
        for i, (group, known) in enumerate(zip(self.groups, self.hyperparameters, strict=True)):
            if not all(map(operator.is_, map(group.__getitem__, _HYPERPARAMETERS), known)) or self._tensors_changed(i):
                changed |= self._set_group(i)
        return changed

    def _tensors_changed(self, i: int) -> bool:
        """Whether a group's tensors may say something else: those that the kernel does not read, or that have moved."""
        tensors = self.tensors[i]
        return bool(tensors) and any(address is None or value.data_ptr() != address for value, address in tensors)

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
        self.tensors[i] = [
            (value, value.data_ptr() if self._is_read_on_device(value) else None)
            for value in values
            if isinstance(value, Tensor)
        ]
        return not np.array_equal(row, before)

    def _is_read_on_device(self, value: float | Tensor) -> bool:
        return isinstance(value, Tensor) and value.device == self.device and value.dtype in _READABLE

    def _set_addresses(self) -> bool:
        """Stage the gradients' addresses; False where the table does not allow for one of them."""
        watch = self.watch
        staged = self.staging_array[: len(watch.addresses)]
        staged[:] = watch.addresses
        odd = np.bitwise_or.reduce(staged if self.all_aligned else staged[self.aligned]) & 15
        if odd or any(watch.grads[i] is not None for i in self.unseen):
            return False
        if self.missing or watch.missing or self.addresses is None:
            self.written = [m.param for m, grad in zip(self.members, watch.grads, strict=True) if grad is not None]
        self.addresses, self.missing = watch.addresses, watch.missing
        # A program must not clear what another has yet to read.
        self.shared_grads = self.owner.zeroes_grads and bool(
            overlapping([grad for grad in watch.grads if grad is not None])
        )
        return True

    def _views(self, dynamic: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients' addresses and the table of groups in one upload."""
        return dynamic[: len(self.members)], dynamic[self.padded :]

    # When something else than an address or a hyperparameter changed.

    def _build(self) -> None:
        if self.counters is None:
            self._make_counters()
        self._hold_for_launches()
        for i, member in enumerate(self.members):
            if member.param.grad is not None:
                self._make_state(i, member)
        self.watch = Watch(self.owner, self.members, self.watch)
        table = describe(self.owner, self.members, self.watch, self.groups, self.numels, self.first_chunks)
        self.kinds, self.aligned, self.unseen = table.kinds, table.aligned, table.unseen
        self.all_aligned = bool(self.aligned.all())
        self.padded = len(self.members) + len(self.members) % 2  # keeps the groups at a multiple of 16 bytes
        self.staging = torch.zeros(self.padded + len(self.groups) * _GROUP_ROW, dtype=torch.int64, device="cpu")
        self.staging_array = self.staging.numpy()
        self.hyperparameters = [[group[name] for name in _HYPERPARAMETERS] for group in self.groups]
        self.tensors: list[list[tuple[Tensor, int | None]]] = [[] for _ in self.groups]  # hyperparameters, addresses
        for i in range(len(self.groups)):
            self._set_group(i)
        self.addresses, self.missing = None, 0
        self._set_addresses()
        self.chunks, self.rows = (
            self._upload(torch.from_numpy(table.chunks)),
            self._upload(torch.from_numpy(table.rows)),
        )
        self.layouts, self.dynamic = self._upload(torch.from_numpy(table.layouts)), self._upload(self.staging)
        self.zero, self.one = self._upload(torch.zeros(1, device="cpu")), self._upload(torch.ones(1, device="cpu"))
        self.tables = (self.chunks, self.rows, self.layouts, self.dynamic, self.zero, self.one)
        self.grads, self.group_rows = self.own_views = self._views(self.dynamic)
        self.built = True

    def _hold_for_launches(self) -> None:
        """Tables that are about to be dropped may still be read by a launch on a stream that they were not made on."""
        if self.is_cuda:
            for table in self.tables:
                table.record_stream(torch.cuda.current_stream(self.device))

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
        elif i not in self.known or self.known[i]() is not state["momentum_buffer"]:
            self.unsure.discard(i)
            self._counters_of(i).fill_(1)  # it was loaded, or set by hand: its first step is over
        self.known[i] = weakref.ref(state["momentum_buffer"])

    def _make_counters(self) -> None:
        """Zeros, or what the stepper before this one had counted."""
        inherited, self.inherited = self.inherited, None
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
                if j in inherited.unsure | inherited.fresh:
                    self.unsure.add(i)

    def _counters_of(self, i: int) -> Tensor:
        return self.counters[self.first_chunks[i] : self.first_chunks[i + 1]]

    # Copies to the device.

    def _upload(self, array: Tensor) -> Tensor:
        return array.clone() if not self.is_cuda else array.to(self.device, non_blocking=True)

    def _number(self, value: Tensor) -> Tensor:
        """A tensor of one number as the kernel reads it: on this device, float32 or float64."""
        value = value.detach().reshape(1).to(self.device, non_blocking=True)
        return value if value.dtype in _READABLE else value.float()

    def _capturing(self) -> bool:
        return self.is_cuda and torch.cuda.is_current_stream_capturing()

    def _on_device(self) -> contextlib.AbstractContextManager:
        """This device as the current one, where it is not: Triton launches on the current device."""
        if self.is_cuda and self.device.index != torch.cuda.current_device():
            return torch.cuda.device(self.device)
        return contextlib.nullcontext()


def _made_in_graph(words: np.ndarray, device: torch.device) -> Tensor:
    """int64 on the device, which each replay writes again: they are arguments of its kernels, many of each."""
    made = torch.zeros(len(words), dtype=torch.int64, device=device)
    places = words.nonzero()[0].tolist()  # a group's sign is never zero
    torch._foreach_add_([made[i] for i in places], words[places].tolist())
    return made
