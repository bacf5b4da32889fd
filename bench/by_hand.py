"""linear_mse as an expert writes it by hand from the library's products, without autograd: the peer that is hardest to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .peers import Bind, Call, LeftOut

if TYPE_CHECKING:
    from .cases import Case, Tensors

ROW = 1 << 14  # numbers of one norm on the CPU: over ten million its sum is off by 1e-3, and one dot's by 1e-4


def mean_square(residual: Tensor) -> Tensor:
    """The loss of a residual in one pass, in the residual's dtype."""
    flat = residual.view(-1)
    count, wide = flat.numel(), torch.promote_types(flat.dtype, torch.float32)
    if flat.is_cuda or count <= ROW or flat.dtype is not wide:
        if not flat.is_cuda and flat.dtype is wide:
            return torch.dot(flat, flat) / count
        return torch.linalg.vector_norm(flat, dtype=wide).square().div(count).to(flat.dtype)
    whole = count // ROW * ROW
    total = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1).square().sum()
    rest = flat[whole:]
    return (total + torch.dot(rest, rest)) / count


def residual(x: Tensor, w: Tensor, y: Tensor, b: Tensor | None) -> Tensor:
    """X Wᵀ + b − Y in one call, or two with a bias."""
    return torch.addmm(y if b is None else y - b, x, w.t(), beta=-1)


def library(case: Case, device: torch.device) -> Bind:
    """E in one call, every gradient in another."""
    scale = 2 / (case.n * case.m)

    def bind(tensors: Tensors) -> Call:
        x, w, y, b = (None if t is None else t.detach() for t in tensors)
        unscaled: dict[str, Callable[[Tensor], Tensor]] = {
            "weight": lambda e: torch.mm(e.t(), x),
            "bias": lambda e: e.sum(0),
        }
        gradient = {name: lambda e, get=get: get(e).mul_(scale) for name, get in unscaled.items()}
        gradient["input"] = lambda e: torch.mm(e, w * scale)

        def forward() -> tuple[Tensor, ...]:
            return (mean_square(residual(x, w, y, b)),)

        def backward() -> tuple[Tensor, ...]:
            e = residual(x, w, y, b)
            return mean_square(e), *(gradient[name](e) for name in case.wanted)

        def step() -> tuple[Tensor, ...]:
            e = residual(x, w, y, b)
            parameters = {"weight": w, "bias": b}
            for name in case.wanted:
                parameters[name].sub_(unscaled[name](e), alpha=case.lr * scale)
            return mean_square(e), *(parameters[name] for name in case.wanted)

        return {"forward": forward, "backward": backward, "step": step}[case.op]

    return bind


def folded(case: Case, device: torch.device) -> Bind:
    """A step with no gradient: W ← W − lr c EᵀX is one product. Its sum over N rows ends in W's own digits."""
    if case.op != "step":
        raise LeftOut("there is no update to fold into a product")
    scale = 2 / (case.n * case.m)

    def bind(tensors: Tensors) -> Call:
        x, w, y, b = (None if t is None else t.detach() for t in tensors)

        def step() -> tuple[Tensor, ...]:
            e = residual(x, w, y, b)
            w.addmm_(e.t(), x, alpha=-case.lr * scale)
            if b is not None:
                b.sub_(e.sum(0), alpha=case.lr * scale)
            return mean_square(e), *({"weight": w, "bias": b}[name] for name in case.wanted)

        return step

    return bind
