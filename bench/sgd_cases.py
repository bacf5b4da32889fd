"""What the optimizer is measured on: how many tensors, of which sizes and types, with which options."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .cases import dtype_name, matches

OPTIONS: dict[str, dict[str, float | bool]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
}


@dataclass(frozen=True, slots=True)
class SgdCase:
    """Tensors to step. `options` is a key of OPTIONS."""

    what: str
    shapes: tuple[tuple[int, ...], ...]
    options: str
    dtypes: tuple[torch.dtype, ...]  # of each tensor
    compiled: bool = False  # whether a compiled step is among the peers: compilation takes its time
    seconds: float = 0.4

    @property
    def name(self) -> str:
        return f"sgd-{self.what}-{self.options}".replace(" ", "-")

    @property
    def numel(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def minimal_bytes(self) -> int:
        """What any implementation must move: w and g in and w out, with momentum also v in and out."""
        accesses = 3 if self.options == "plain" else 5
        sizes = zip(self.shapes, self.dtypes, strict=True)
        return accesses * sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes)

    def bytes_needed(self, peers: int) -> int:
        """For w, g, their copies while parity is checked (in float64 too), and each peer's own v."""
        numbers = sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(self.shapes, self.dtypes, strict=True))
        return numbers * (12 + peers)


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
    """Seconds each; a compiled step at one size."""
    sizes = (1_000, 100_000, 10_000_000) if device_type == "cpu" else (1_000, 1_000_000, 100_000_000)
    cases = [case for size in sizes for case in _one(size, compiled=size == sizes[1])]
    cases += _many("ResNet-50", resnet50())
    return cases + [c for c in (*_many("1000 x 1e3", ((1_000,),) * 1_000), *_mixed()) if c.options == "momentum"]


def every(device_type: str) -> list[SgdCase]:
    """One tensor of 1e3 to 1e9 numbers, a compiled step everywhere."""
    cases = [case for power in range(3, 10) for case in _one(10**power, compiled=True, seconds=2.0)]
    cases += _many("ResNet-50", resnet50(), compiled=True, seconds=2.0)
    return cases + _many("1000 x 1e3", ((1_000,),) * 1_000, seconds=2.0) + _mixed()


def smoke(device_type: str) -> list[SgdCase]:
    """Milliseconds each."""
    return [SgdCase("3 small", ((300,), (7, 5), ()), o, (torch.float32,) * 3, seconds=0.05) for o in OPTIONS]


PROFILES = {"quick": quick, "smoke": smoke, "sgd": every}


def select(profile: str, device_type: str, pattern: str | None = None) -> tuple[SgdCase, ...]:
    """The profile's cases, in order; with a pattern, those that it matches."""
    return tuple(case for case in PROFILES[profile](device_type) if matches(case.name, pattern))


def draw(case: SgdCase, device: torch.device, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and gradients: random normal, the same for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal() -> list[Tensor]:
        pairs = zip(case.shapes, case.dtypes, strict=True)
        return [torch.empty(shape, device=device).normal_(generator=generator).to(dtype) for shape, dtype in pairs]

    return normal(), normal()


def describe(case: SgdCase) -> dict:
    """The case's entries in a result row."""
    return {
        "what": case.what,
        "options": case.options,
        "tensors": len(case.shapes),
        "numel": case.numel,
        "dtypes": sorted({dtype_name(dtype) for dtype in case.dtypes}),
        "minimal_bytes": case.minimal_bytes,
    }
