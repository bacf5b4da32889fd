"""SGD on the CPU: each parameter by the fastest of three ways that is right for it.

added      w ← w − lr g, nothing else: one library call for all of them, in any type (it rounds once)
fused      float32 and float64 whose tensors lie in memory alike: PyTorch's fused kernel, one pass over w, g and v
widened    everything else: blocks that fit in cache are copied to float32, stepped there by the fused kernel and copied
           back. Half precision goes this way because PyTorch's fused kernel is wrong for it; so do momentum of another
           type, gradients in another order, scaled gradients (the fused kernel would overwrite them), masters

The fused kernel is told nothing but what it does right: it never sees a scale, a refused step, or a buffer that does not
exist yet beside one that does.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .members import HALF, Member, check_member, flat_order, local, wants_master
from .rounding import round_stochastically
from .watch import Watch

_BLOCK = 1 << 16  # numbers of a widened block: 768 kB for w, g and v


class Batch(NamedTuple):
    """What parameters have in common that one call steps."""

    group: int
    way: str  # "added", "fused" or "widened"
    compute: torch.dtype
    first: bool  # the momentum is empty
    has_master: bool
    param: torch.dtype


class Cut(NamedTuple):
    """A part of a tensor: so many slices of one dimension."""

    place: int  # of the parameter
    flat: bool  # of the tensor seen as a vector
    dim: int
    start: int
    length: int

    def of(self, tensor: Tensor) -> Tensor:
        return (tensor.view(-1) if self.flat else tensor).narrow(self.dim, self.start, self.length)


class Stepper:
    """The parameters on the CPU."""

    def __init__(self, owner: Any, device: torch.device, members: list[Member], inherited: "Stepper | None") -> None:
        self.owner, self.device, self.members = owner, device, members
        self.groups = list({id(member.group): member.group for member in members}.values())
        self.watch: Watch | None = None

    def check(self) -> None:
        self.current = self.watch is not None and self.watch.holds() and self._switches() == self.switches
        if not self.current:
            for member in self.members:
                check_member(member, self.owner.state, self.device)

    def ready(self) -> None:
        if not self.current:
            self.watch = Watch(self.owner, self.members, [wants_master(self.owner, m.param) for m in self.members])
            self.switches = self._switches()
            self.batches: dict[bool, dict[Batch, list[int]]] = {}
            self.blocks: dict[Batch, list[list[Cut]]] = {}

    def squared_norm(self, grad_scale: Tensor | None) -> Tensor:
        grads = [grad for grad in self.watch.grads if grad is not None]
        total = torch.zeros((), dtype=torch.float64)
        for dtype in {grad.dtype for grad in grads}:
            alike = [grad for grad in grads if grad.dtype is dtype]
            wide = torch.float32 if dtype in HALF else dtype
            total += torch.stack(torch._foreach_norm(alike, 2, dtype=wide)).double().square().sum()
        return total if grad_scale is None else total / grad_scale.double().cpu().square()

    @torch.no_grad()
    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None, norm: Tensor | None) -> None:
        if found_inf is None or found_inf.item() == 0:
            factor = 1.0 if grad_scale is None else 1.0 / grad_scale.item()
            if norm is not None:
                factor *= (self.owner.max_norm / (norm.cpu() + 1e-6)).clamp(max=1.0).item()
            made = False
            for batch, places in self._batches(factor != 1.0).items():
                if batch.first or batch.has_master:
                    made |= self._make_state(batch, places)
                getattr(self, "_step_" + batch.way)(batch, places, factor)
            if made:
                self.watch = None
            torch.autograd.graph.increment_version([m.param for m in self.members if m.param.grad is not None])
        if self.owner.zeroes_grads:
            torch._foreach_zero_([member.param.grad for member in self.members if member.param.grad is not None])

    def not_started(self) -> list[Tensor]:
        return []

    # What is done with whom.

    def _switches(self) -> list[Any]:
        """What the batches depend on, beside what is watched."""
        absent = [i for i, grad in enumerate(self.watch.grads) if grad is None] if self.watch.missing else []
        return [absent, *((group["momentum"] != 0, bool(group["weight_decay"] != 0)) for group in self.groups)]

    def _batches(self, scaled: bool) -> dict[Batch, list[int]]:
        if scaled not in self.batches:
            batches: dict[Batch, list[int]] = defaultdict(list)
            group_of = {id(group): i for i, group in enumerate(self.groups)}
            for i, (member, grad) in enumerate(zip(self.members, self.watch.grads, strict=True)):
                if grad is not None:
                    batches[self._batch(i, grad, group_of[id(member.group)], scaled)].append(i)
            self.batches[scaled] = dict(batches)
        return self.batches[scaled]

    def _batch(self, i: int, grad: Tensor, group: int, scaled: bool) -> Batch:
        member, param = self.members[i], self.watch.inner[i]
        momentum = self.owner.state.peek(member.param).get("momentum_buffer")
        has_momentum, has_decay = self.switches[1 + group]
        first = has_momentum and momentum is None
        has_master = wants_master(self.owner, param)
        compute = torch.float64 if param.dtype is torch.float64 else torch.float32
        rounds_once = not has_master and not (self.owner.stochastic_rounding and param.dtype in HALF)
        tensors = [param, grad, *([local(momentum)] if has_momentum and not first else [])]
        alike = all(tensor.dtype is param.dtype for tensor in tensors)
        order = flat_order(param)
        if not (has_momentum or has_decay or scaled) and alike and rounds_once:
            way = "added"
        elif (
            param.dtype is compute
            and alike
            and not scaled
            and order is not None
            and all(flat_order(tensor) == order for tensor in tensors)
        ):
            way = "fused"
        else:
            way = "widened"
        return Batch(group, way, compute, first, has_master, param.dtype)

    def _make_state(self, batch: Batch, places: list[int]) -> bool:
        """Make what the first step of these parameters needs; False where nothing was missing."""
        made = batch.first
        for i in places:
            param = self.members[i].param
            entry = self.owner.state.own(param)
            if batch.has_master and entry.get("master_weight") is None:
                entry["master_weight"] = param.detach().float()
                made = True
            if batch.first:
                dtype = torch.float32 if batch.has_master else param.dtype
                entry["momentum_buffer"] = torch.empty_like(param, dtype=dtype)
        return made

    def _state(self, places: list[int], name: str) -> list[Tensor]:
        return [local(self.owner.state.peek(self.members[i].param)[name]) for i in places]

    # The three ways.

    def _step_added(self, batch: Batch, places: list[int], factor: float) -> None:
        group, grads = self.groups[batch.group], self.watch.grads
        lr = float(group["lr"])
        params = [self.watch.inner[i] for i in places]
        torch._foreach_add_(params, [grads[i] for i in places], alpha=lr if group["maximize"] else -lr)

    def _step_fused(self, batch: Batch, places: list[int], factor: float) -> None:
        grads = self.watch.grads
        has_momentum = self.switches[1 + batch.group][0]
        self._fused(
            batch,
            [self.watch.inner[i] for i in places],
            [grads[i] for i in places],
            self._state(places, "momentum_buffer") if has_momentum else [],
        )

    def _fused(self, batch: Batch, params: list[Tensor], grads: list[Tensor], momenta: list[Tensor]) -> None:
        group = self.groups[batch.group]
        torch._fused_sgd_(
            params,
            grads,
            momenta,
            weight_decay=float(group["weight_decay"]),
            momentum=group["momentum"],
            lr=float(group["lr"]),
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=batch.first,
        )

    def _step_widened(self, batch: Batch, places: list[int], factor: float) -> None:
        if batch not in self.blocks:
            self.blocks[batch] = list(self._cut(places))
        params = dict(zip(places, (self.watch.inner[i] for i in places), strict=True))
        has_momentum = self.switches[1 + batch.group][0]
        momenta = dict(zip(places, self._state(places, "momentum_buffer"), strict=True)) if has_momentum else {}
        masters = dict(zip(places, self._state(places, "master_weight"), strict=True)) if batch.has_master else {}
        stochastic = self.owner.stochastic_rounding and batch.param in HALF
        for block in self.blocks[batch]:
            p = [cut.of(params[cut.place]) for cut in block]
            w, w_views = _gather(p, batch.compute)
            g, _ = _gather([cut.of(self.watch.grads[cut.place]) for cut in block], batch.compute)
            if factor != 1.0:
                g.mul_(factor)
            v, v_views = None, []
            if has_momentum:
                v_pieces = [cut.of(momenta[cut.place]) for cut in block]
                v, v_views = _gather(v_pieces, batch.compute)
            if masters:  # it follows where something else has written the parameter
                m_pieces = [cut.of(masters[cut.place]) for cut in block]
                m, _ = _gather(m_pieces, batch.compute)
                torch.where(m.to(batch.param) == w.to(batch.param), m, w, out=w)
            self._fused(batch, [w], [g], [] if v is None else [v])
            if has_momentum:
                torch._foreach_copy_(v_pieces, v_views)
            if masters:
                torch._foreach_copy_(m_pieces, w_views)
            if stochastic:
                w.copy_(round_stochastically(w, batch.param, self.owner.generator))
            torch._foreach_copy_(p, w_views)

    def _cut(self, places: list[int]) -> Iterator[list[Cut]]:
        """Parts of the parameters, in blocks of about _BLOCK numbers."""
        block: list[Cut] = []
        filled = 0
        for i in places:
            param, numel = self.watch.inner[i], self.watch.inner[i].numel()
            tensors = [
                param,
                self.watch.grads[i],
                *map(local, self.owner.state.peek(self.members[i].param).values()),
            ]
            flat = all(tensor.is_contiguous() for tensor in tensors)
            dim = 0 if flat or not param.dim() else max(range(param.dim()), key=param.shape.__getitem__)
            slices = numel if flat or not param.dim() else param.shape[dim]
            step = max(1, _BLOCK * slices // max(numel, 1))
            for start in range(0, slices, step):
                length = min(step, slices - start)
                size = length * numel // slices
                if block and filled + size > _BLOCK:
                    yield block
                    block, filled = [], 0
                block.append(Cut(i, flat or not param.dim(), dim, start, length))
                filled += size
        if block:
            yield block


def _gather(pieces: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Copies side by side in one vector, and the views of it that have the pieces' shapes."""
    vector = torch.empty(sum(piece.numel() for piece in pieces), dtype=dtype)
    parts = vector.split([piece.numel() for piece in pieces])
    views = [part.view(piece.shape) for part, piece in zip(parts, pieces, strict=True)]
    torch._foreach_copy_(views, pieces)
    return vector, views
