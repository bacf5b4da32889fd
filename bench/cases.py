"""What is measured: a case is a shape, a dtype and the gradients that are wanted. Profiles are lists of cases."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

REGIMES = {"A": "skinny", "B": "tall", "C": "compute", "D": "tiny", "F": "wide"}


@dataclass(frozen=True, slots=True)
class Case:
    """linear_mse on X (n, k), W (m, k) and Y (n, m); `wanted` names the gradients, none of them means the loss alone."""

    regime: str  # a key of REGIMES
    n: int
    k: int
    m: int
    dtype: torch.dtype = torch.float32
    wanted: tuple[str, ...] = ("weight",)
    seconds: float = 2.5  # about how long the timing of all peers together may take

    @property
    def name(self) -> str:
        """Reads as a sentence and is the case's key in result files: skinny-10000000x2x1-float32-dW."""
        gradients = "+".join({"weight": "dW", "input": "dX", "bias": "db"}[name] for name in self.wanted) or "loss"
        return f"{REGIMES[self.regime]}-{self.n}x{self.k}x{self.m}-{dtype_name(self.dtype)}-{gradients}"

    @property
    def minimal_bytes(self) -> int:
        """Every operand read once and every wanted gradient written once."""
        sizes = {"input": self.n * self.k, "weight": self.m * self.k, "bias": self.m}
        read = sizes["input"] + sizes["weight"] + self.n * self.m + (sizes["bias"] if "bias" in self.wanted else 0)
        return (read + sum(sizes[name] for name in self.wanted)) * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products: X Wᵀ, then EᵀX for dW and E W for dX."""
        return 2 * self.n * self.k * self.m * (1 + sum(name in self.wanted for name in ("weight", "input")))

    @property
    def bytes_needed(self) -> int:
        """An upper guess of the memory that the case takes: inputs, their float64 copies, and three N x M temporaries in float64."""
        inputs = self.n * self.k + self.m * self.k + self.n * self.m
        gradients = self.n * self.k if "input" in self.wanted else 0
        return (inputs + gradients) * (self.dtype.itemsize + 8) + 3 * 8 * self.n * self.m


@dataclass(frozen=True, slots=True)
class Tensors:
    """One case's operands; those whose gradient is wanted are leaves that require it."""

    input: Tensor  # (n, k)
    weight: Tensor  # (m, k)
    target: Tensor  # (n, m)
    bias: Tensor | None  # (m,)


def matches(name: str, pattern: str | None) -> bool:
    """Whether the name contains the pattern, or fits it as a shell glob; without a pattern every name does."""
    if pattern is None:
        return True
    name, pattern = name.lower(), pattern.lower()
    return pattern in name or fnmatchcase(name, pattern)


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> float32."""
    return str(dtype).removeprefix("torch.")


def make_tensors(case: Case, device: torch.device, seed: int) -> Tensors:
    """Random normal operands, W scaled so that predictions and targets have unit variance. The same seed gives the same case."""
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.empty(shape, device=device, dtype=torch.float32).normal_(0, scale, generator=generator)
        return values.to(case.dtype)

    bias = draw(case.m) if "bias" in case.wanted else None
    tensors = Tensors(draw(case.n, case.k), draw(case.m, case.k, scale=case.k**-0.5), draw(case.n, case.m), bias)
    for name in case.wanted:
        getattr(tensors, name).requires_grad_()
    return tensors


BOTH = ("input", "weight")

CPU_QUICK = (
    Case("D", 100, 2, 1),
    Case("D", 1_000, 10, 1),
    Case("A", 50_000, 8, 1, seconds=2.0),
    Case("A", 20_000, 64, 10, seconds=2.0),
    Case("A", 10_000_000, 2, 1),
    Case("A", 2_000_000, 64, 1),
    Case("A", 500_000, 256, 1),
    Case("A", 500_000, 64, 1, dtype=torch.bfloat16),
    Case("B", 500_000, 64, 64),
    Case("B", 200_000, 64, 64, wanted=BOTH),
    Case("B", 65_536, 512, 512, seconds=4.0),
    Case("C", 8_192, 2_048, 2_048, seconds=4.0),
)
CUDA_QUICK = (
    Case("D", 100, 2, 1),
    Case("D", 1_000, 10, 1),
    Case("A", 100_000_000, 2, 1),
    Case("A", 10_000_000, 2, 1),
    Case("A", 10_000_000, 3, 1),
    Case("A", 20_000_000, 16, 1),
    Case("A", 2_000_000, 64, 1),
    Case("A", 2_000_000, 256, 1),
    Case("A", 2_000_000, 64, 16),
    Case("A", 2_000_000, 64, 1, dtype=torch.bfloat16),
    Case("A", 2_000_000, 64, 1, wanted=BOTH),
    Case("B", 500_000, 64, 64),
    Case("B", 1_000_000, 128, 64, dtype=torch.bfloat16),
    Case("B", 1_000_000, 256, 64, dtype=torch.bfloat16),
    Case("B", 1_000_000, 256, 64, dtype=torch.bfloat16, wanted=BOTH),
    Case("B", 65_536, 512, 512),
    Case("C", 8_192, 2_048, 2_048, dtype=torch.bfloat16),
    Case("C", 8_192, 4_096, 4_096, dtype=torch.bfloat16),
    Case("C", 8_192, 8_192, 8_192, dtype=torch.bfloat16),
    Case("C", 8_192, 8_192, 8_192, dtype=torch.bfloat16, wanted=BOTH),
    Case("C", 8_192, 2_048, 2_048),
    Case("F", 65_536, 1_024, 32_768, dtype=torch.bfloat16),
)
SMOKE = (
    Case("D", 100, 2, 1, seconds=0.1),
    Case("A", 50_000, 3, 1, wanted=("weight", "bias"), seconds=0.1),
    Case("B", 20_000, 16, 8, wanted=BOTH, seconds=0.1),
)
PROFILES: dict[str, dict[str, tuple[Case, ...]]] = {
    "quick": {"cpu": CPU_QUICK, "cuda": CUDA_QUICK},
    "smoke": {"cpu": SMOKE, "cuda": SMOKE},
    "sgd": {"cpu": (), "cuda": ()},  # the optimizer's own (sgd_cases.py), which every profile has some of
}


def select(profile: str, device_type: str, pattern: str | None = None) -> tuple[Case, ...]:
    """The profile's cases for a device type, in order; with a pattern, those that it matches."""
    cases: Iterable[Case] = PROFILES[profile][device_type]
    return tuple(case for case in cases if matches(case.name, pattern))
