"""The optimizer's step as a case: how many tensors, of which sizes and types, with which options."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from . import sgd_peers
from .cases import STEPS, dtype_name
from .peers import COMPILED, Bind, Named, Peer

OPTIONS: dict[str, dict[str, float | bool]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
}


class Stepped(NamedTuple):
    """Parameters, which every peer steps in turn, their gradients and their start."""

    params: list[Tensor]
    grads: list[Tensor]
    start: list[Tensor]


@dataclass(frozen=True, slots=True)
class SgdCase:
    """Tensors to step. `options` is a key of OPTIONS."""

    what: str
    shapes: tuple[tuple[int, ...], ...]
    options: str
    dtypes: tuple[torch.dtype, ...]  # of each tensor
    compilers: tuple[str, ...] = ()
    seconds: float = 0.3
    kind: ClassVar[str] = "sgd"
    op: ClassVar[str] = "sgd"
    regime: ClassVar[None] = None
    bandwidth: ClassVar[str] = "copy"

    @property
    def name(self) -> str:
        return f"sgd-{self.what}-{self.options}".replace(" ", "-")

    @property
    def dtype(self) -> torch.dtype:
        return self.dtypes[0]

    @property
    def settings(self) -> dict[str, float | bool]:
        """The options as torch.optim.SGD takes them."""
        return OPTIONS[self.options]

    @property
    def numel(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def minimal_bytes(self) -> int:
        """What any implementation must move: w and g in and w out, with momentum also v in and out."""
        accesses = 3 if self.options == "plain" else 5
        sizes = zip(self.shapes, self.dtypes, strict=True)
        return accesses * sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes)

    @property
    def flops(self) -> int:
        """w − lr·g; with momentum also μv + g; with weight decay and nesterov two more pairs."""
        return {"plain": 2, "momentum": 4, "nesterov": 8}[self.options] * self.numel

    @property
    def bytes_needed(self) -> int:
        """An upper guess: parameters, gradients, start, float64 copies of them, every peer's momentum and result."""
        sizes = zip(self.shapes, self.dtypes, strict=True)
        own = sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes)
        return own * (3 + 2 * len(self.peers)) + 4 * 8 * self.numel

    @property
    def peers(self) -> Sequence[Peer]:
        return sgd_peers.PEERS

    def describe(self) -> dict:
        return {
            "label": f"{self.what}, {self.options}",
            "what": self.what,
            "options": self.options,
            "tensors": len(self.shapes),
            "numel": self.numel,
            "dtypes": sorted({dtype_name(dtype) for dtype in self.dtypes}),
        }

    def draw(self, device: torch.device, seed: int) -> Stepped:
        """Random normal parameters and gradients."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal() -> list[Tensor]:
            pairs = zip(self.shapes, self.dtypes, strict=True)
            return [torch.empty(shape, device=device).normal_(generator=generator).to(dtype) for shape, dtype in pairs]

        params, grads = normal(), normal()
        return _ready(params, grads, [p.clone() for p in params])

    def widened(self, operands: Stepped) -> Stepped:
        start = [t.double() for t in operands.start]
        return _ready([t.clone() for t in start], [t.double() for t in operands.grads], start)

    def results(self, bind: Bind, operands: Stepped) -> Named:
        """The parameters after the first step and two more, which have momentum.

        All step the same tensors, one after the other: where in memory a copy happens to lie makes several per cent.
        """
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in operands.params], operands.start)
        call = bind(operands)
        for _ in range(STEPS):
            call()
        return {f"tensor {i} {tuple(p.shape)}": p.detach().clone() for i, p in enumerate(operands.params)}

    def plan(self, operands: Stepped) -> None:
        return None


def _ready(params: list[Tensor], grads: list[Tensor], start: list[Tensor]) -> Stepped:
    for p, g in zip(params, grads, strict=True):
        p.requires_grad_().grad = g
    return Stepped(params, grads, start)


def resnet50() -> tuple[tuple[int, ...], ...]:
    """The shapes of ResNet-50's 161 parameters."""
    data = json.loads((Path(__file__).parent / "data" / "resnet50.json").read_text(encoding="utf-8"))
    return tuple(map(tuple, data["parameters"].values()))


def _one(numel: int, **more: object) -> list[SgdCase]:
    return [SgdCase(f"1 x {numel:.0e}".replace("e+0", "e"), ((numel,),), o, (torch.float32,), **more) for o in OPTIONS]


def _many(what: str, shapes: tuple[tuple[int, ...], ...], **more: object) -> list[SgdCase]:
    return [SgdCase(what, shapes, o, (torch.float32,) * len(shapes), **more) for o in OPTIONS]


def _mixed() -> list[SgdCase]:
    """A network trained in bfloat16 whose vectors, the normalisation's, are float32."""
    shapes = resnet50()
    dtypes = tuple(torch.bfloat16 if len(shape) > 1 else torch.float32 for shape in shapes)
    return [SgdCase("ResNet-50 mixed", shapes, o, dtypes) for o in OPTIONS]


def quick(device_type: str) -> list[SgdCase]:
    """A compiled step at one size; momentum alone where tensors are many."""
    sizes = (1_000, 100_000, 10_000_000) if device_type == "cpu" else (1_000, 1_000_000, 100_000_000)
    cases = [case for size in sizes for case in _one(size)]
    cases += _one(sizes[1], compilers=(COMPILED,), seconds=0.5)[1:2]
    many = (*_many("ResNet-50", resnet50()), *_many("1000 x 1e3", ((1_000,),) * 1_000), *_mixed())
    cases += [case for case in many if case.options == "momentum"]
    return list({case.name: case for case in cases}.values())


def full(device_type: str) -> list[SgdCase]:
    """One tensor of 1e3 to 1e9 numbers; a compiled step at three sizes and for a network."""
    compiled = {3: (COMPILED,), 5: (COMPILED,), 7: (COMPILED,)}
    seconds = 1.0 if device_type == "cpu" else 0.5
    cases = [c for power in range(3, 10) for c in _one(10**power, compilers=compiled.get(power, ()), seconds=seconds)]
    cases += _many("ResNet-50", resnet50(), compilers=(COMPILED,) * (device_type == "cpu"), seconds=seconds)
    return cases + _many("1000 x 1e3", ((1_000,),) * 1_000, seconds=seconds) + _mixed()


def smoke(device_type: str) -> list[SgdCase]:
    """Milliseconds each."""
    return [SgdCase("3 small", ((300,), (7, 5), ()), o, (torch.float32,) * 3, seconds=0.05) for o in OPTIONS]


PROFILES = {"quick": quick, "full": full, "smoke": smoke}
