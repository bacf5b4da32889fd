"""SGD on the CPU: each parameter by the fastest of four ways that is right for it.

added      w ← w − lr g, nothing else: one library call for all of them, in any type (it rounds once)
fused      float32 and float64 whose tensors lie in memory alike: PyTorch's fused kernel, one pass over w, g and v
rounded    half precision: the for-loop's operations, less those that another can do on the way; PyTorch's fused kernel is
           wrong for these types
widened    everything else: blocks that fit in cache are copied to float32, stepped there by the fused kernel and copied
           back. Momentum of another type, tensors in another order, scaled gradients (the fused kernel would overwrite
           them), masters, stochastic rounding

The fused kernel is told nothing but what it does right: it never sees a scale, a refused step, or a buffer that does not
exist yet beside one that does.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .members import (
    HALF,
    Member,
    check_clearable,
    check_group,
    check_member,
    flat_order,
    local,
    state_tensors,
    wants_master,
)
from .rounding import round_stochastically
from .watch import Watch

_BLOCK = 1 << 18  # numbers of a block: 1 MB of float32
_SMALL = 1 << 14  # up to here a call costs more than what it calculates


class Batch(NamedTuple):
    """What parameters have in common that one call steps."""

    group: int
    way: str
    compute: torch.dtype
    scaled: bool  # the gradients are to be multiplied
    first: bool  # the momentum is empty
    has_master: bool
    param: torch.dtype


class Cut(NamedTuple):
    """A part of a tensor that fits in a block: all of it, or so many slices of one dimension."""

    place: int  # of the parameter
    numel: int = 0
    flat: bool = False  # of the tensor seen as a vector
    dim: int | None = None  # None: all of it
    start: int = 0
    length: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        if self.dim is None:
            return tensor
        return (tensor.view(-1) if self.flat else tensor).narrow(self.dim, self.start, self.length)


class Stepper:
    """The parameters on the CPU."""

    def __init__(self, owner: Any, device: torch.device, members: list[Member], inherited: "Stepper | None") -> None:
        self.owner, self.device, self.members = owner, device, members
        self.groups = list({id(member.group): member.group for member in members}.values())
        self.watch: Watch | None = None
        self.scratch: dict[Any, Tensor] = {}

    def check(self) -> None:
        for group in self.groups:
            check_group(group)
        self.current = self.watch is not None and self.watch.holds() and self._switches() == self.switches
        if not self.current:
            for member in self.members:
                check_member(member, self.owner.state, self.device)
                if self.owner.zeroes_grads:
                    check_clearable(member)
            if self.watch is not None and self.watch.moved():
                self.owner.check_overlap()

    def ready(self) -> None:
        if not self.current:
            self.watch = Watch(self.owner, self.members, self.watch)
            self.switches = self._switches()
            self.batches: dict[bool, dict[Batch, list[int]]] = {}
            self.cuts: dict[Batch, list[Cut]] = {}

    def squared_norm(self, grad_scale: Tensor | None) -> Tensor:
        grads = [grad for grad in self.watch.grads if grad is not None]
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for dtype in {grad.dtype for grad in grads}:
            alike = [grad for grad in grads if grad.dtype is dtype]
            wide = torch.float32 if dtype in HALF else dtype
            total += torch.stack(torch._foreach_norm(alike, 2, dtype=wide)).double().square().sum()
        return total if grad_scale is None else total / grad_scale.double().cpu().square()

    @torch.no_grad()
    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None, norm: Tensor | None) -> None:
        made = False
        if found_inf is None or found_inf.item() == 0:
            factor = 1.0 if grad_scale is None else 1.0 / grad_scale.item()
            if norm is not None:
                factor *= (self.owner.max_norm / (norm.cpu() + 1e-6)).clamp(max=1.0).item()
            for batch, places in self._batches(factor != 1.0).items():
                if batch.first or batch.has_master:
                    made |= self._make_state(batch, places)
                getattr(self, "_step_" + batch.way)(batch, places, factor)
            torch.autograd.graph.increment_version([m.param for m in self.members if m.param.grad is not None])
        if self.owner.zeroes_grads:
            torch._foreach_zero_([member.param.grad for member in self.members if member.param.grad is not None])
        self.watch.release()
        if made:
            self.watch = None  # it has not seen the new state

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
        order = flat_order(param.shape, param.stride())
        if not (has_momentum or has_decay or scaled) and alike and rounds_once:
            way = "added"
        elif (
            param.dtype is compute
            and alike
            and not scaled
            and order is not None
            and all(flat_order(tensor.shape, tensor.stride()) == order for tensor in tensors)
        ):
            way = "fused"
        elif param.dtype in HALF and alike and rounds_once and not scaled:
            way = "rounded"
        else:
            way = "widened"
        return Batch(group, way, compute, scaled, first, has_master, param.dtype)

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

    # The four ways.

    def _step_added(self, batch: Batch, places: list[int], factor: float) -> None:
        group, grads = self.groups[batch.group], self.watch.grads
        lr = float(group["lr"])
        params = [self.watch.inner[i] for i in places]
        torch._foreach_add_(params, [grads[i] for i in places], alpha=lr if group["maximize"] else -lr)

    def _step_fused(self, batch: Batch, places: list[int], factor: float) -> None:
        momenta = list(self._momenta(batch, places).values())
        self._fused(batch, [self.watch.inner[i] for i in places], [self.watch.grads[i] for i in places], momenta)

    def _fused(self, batch: Batch, params: list[Tensor], grads: list[Tensor], momenta: list[Tensor]) -> None:
        group = self.groups[batch.group]
        torch._fused_sgd_(
            params,
            grads,
            momenta,
            weight_decay=float(group["weight_decay"]),
            momentum=float(group["momentum"]),
            lr=float(group["lr"]),
            dampening=float(group["dampening"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=batch.first,
        )

    def _step_rounded(self, batch: Batch, places: list[int], factor: float) -> None:
        momenta = self._momenta(batch, places)
        small = [i for i in places if self.watch.inner[i].numel() <= _SMALL]
        if small:
            self._round_small(
                batch,
                [self.watch.inner[i] for i in small],
                [self.watch.grads[i] for i in small],
                [momenta[i] for i in small if momenta],
            )
        large = [i for i in places if self.watch.inner[i].numel() > _SMALL]
        for cut in self._cuts_of(batch, large) if _needs_scratch(self.groups[batch.group]) else map(Cut, large):
            param, grad = cut.of(self.watch.inner[cut.place]), cut.of(self.watch.grads[cut.place])
            self._round_large(batch, param, grad, cut.of(momenta[cut.place]) if momenta else None)

    def _round_small(self, batch: Batch, w: list[Tensor], g: list[Tensor], v: list[Tensor]) -> None:
        group = self.groups[batch.group]
        if group["maximize"]:
            g = torch._foreach_neg(g)
        if group["weight_decay"] != 0:
            g = torch._foreach_add(g, w, alpha=float(group["weight_decay"]))
        if v:
            for momentum, grad in zip(v, g, strict=True):  # _foreach_mul_ would round the factor to half precision
                _round_momentum(momentum, grad, group, batch.first)
            g = torch._foreach_add(g, v, alpha=float(group["momentum"])) if group["nesterov"] else v
        torch._foreach_add_(w, g, alpha=-float(group["lr"]))

    def _round_large(self, batch: Batch, w: Tensor, g: Tensor, v: Tensor | None) -> None:
        group = self.groups[batch.group]
        out = self._scratch("g", batch.param, w.numel()).view(w.shape) if _needs_scratch(group) else None
        if group["maximize"]:
            g = torch.neg(g, out=out)
        if group["weight_decay"] != 0:
            g = torch.add(g, w, alpha=float(group["weight_decay"]), out=out)
        if v is not None:
            _round_momentum(v, g, group, batch.first)
            g = torch.add(g, v, alpha=float(group["momentum"]), out=out) if group["nesterov"] else v
        w.add_(g, alpha=-float(group["lr"]))

    def _step_widened(self, batch: Batch, places: list[int], factor: float) -> None:
        momenta = self._momenta(batch, places)
        masters = dict(zip(places, self._state(places, "master_weight"), strict=True)) if batch.has_master else {}
        stochastic = self.owner.stochastic_rounding and batch.param in HALF
        for block in _blocks(self._cuts_of(batch, places)):
            p = [cut.of(self.watch.inner[cut.place]) for cut in block]
            w, w_views = self._gather("w", p, batch.compute)
            g, _ = self._gather("g", [cut.of(self.watch.grads[cut.place]) for cut in block], batch.compute)
            if factor != 1.0:
                g.mul_(factor)
            v = None
            if momenta:
                v_pieces = [cut.of(momenta[cut.place]) for cut in block]
                v, v_views = self._gather("v", v_pieces, batch.compute)
            if masters:  # it follows where something else has written the parameter
                m_pieces = [cut.of(masters[cut.place]) for cut in block]
                m, _ = self._gather("m", m_pieces, batch.compute)
                torch.where(m.to(batch.param) == w.to(batch.param), m, w, out=w)
            self._fused(batch, [w], [g], [] if v is None else [v])
            if momenta:
                torch._foreach_copy_(v_pieces, v_views)
            if masters:
                torch._foreach_copy_(m_pieces, w_views)
            if stochastic:
                w.copy_(round_stochastically(w, batch.param, self.owner.generator))
            torch._foreach_copy_(p, w_views)

    def _momenta(self, batch: Batch, places: list[int]) -> dict[int, Tensor]:
        if not self.switches[1 + batch.group][0]:
            return {}
        return dict(zip(places, self._state(places, "momentum_buffer"), strict=True))

    # Blocks.

    def _cuts_of(self, batch: Batch, places: list[int]) -> list[Cut]:
        if batch not in self.cuts:
            self.cuts[batch] = [cut for i in places for cut in self._cut(i)]
        return self.cuts[batch]

    def _cut(self, i: int) -> Iterator[Cut]:
        """Parts of a parameter, of about _BLOCK numbers at most."""
        param, numel = self.watch.inner[i], self.watch.inner[i].numel()
        if numel <= _BLOCK:
            yield Cut(i, numel)
            return
        tensors = [param, self.watch.grads[i], *state_tensors(self.members[i], self.owner.state)]
        flat = all(tensor.is_contiguous() for tensor in tensors)
        dim = 0 if flat else max(range(param.dim()), key=param.shape.__getitem__)
        slices = numel if flat else param.shape[dim]
        step = max(1, _BLOCK * slices // numel)
        for start in range(0, slices, step):
            length = min(step, slices - start)
            yield Cut(i, length * (numel // slices), flat, dim, start, length)

    def _scratch(self, name: str, dtype: torch.dtype, numel: int) -> Tensor:
        """A vector that is kept: fresh memory costs more than what is calculated in it."""
        kept = self.scratch.get((name, dtype))
        if kept is None or kept.numel() < numel:
            kept = self.scratch[name, dtype] = torch.empty(max(numel, _BLOCK), dtype=dtype, device="cpu")
        return kept[:numel]

    def _gather(self, name: str, pieces: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Copies side by side in one vector, and the views of it that have the pieces' shapes."""
        sizes = [piece.numel() for piece in pieces]
        vector = self._scratch(name, dtype, sum(sizes))
        views = [part.view(piece.shape) for part, piece in zip(vector.split(sizes), pieces, strict=True)]
        torch._foreach_copy_(views, pieces)
        return vector, views


def _round_momentum(momentum: Tensor, grad: Tensor, group: dict[str, Any], first: bool) -> None:
    if first:
        momentum.copy_(grad)
    else:  # two roundings, as the for-loop has: with one, momentum drifts from it by whole units in the last place
        momentum.mul_(float(group["momentum"])).add_(grad, alpha=1 - float(group["dampening"]))


def _needs_scratch(group: dict[str, Any]) -> bool:
    """Whether a rounded step has a value that is neither parameter nor state."""
    return group["maximize"] or group["weight_decay"] != 0 or group["nesterov"]


def _blocks(cuts: list[Cut]) -> Iterator[list[Cut]]:
    """Cuts together, up to _BLOCK numbers."""
    block: list[Cut] = []
    filled = 0
    for cut in cuts:
        if block and filled + cut.numel > _BLOCK:
            yield block
            block, filled = [], 0
        block.append(cut)
        filled += cut.numel
    if block:
        yield block
