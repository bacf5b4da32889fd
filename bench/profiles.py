"""Profiles: which cases of linear_mse a run has, by device. smoke: seconds. quick: under two minutes on two cores. full: all."""

from dataclasses import replace

import torch

from .cases import Case
from .datasets import SIZES
from .peers import COMPILED, COMPILERS, FUNCTIONAL, GRAPHED_COMPILED

BOTH = ("input", "weight")
ALL = ("input", "weight", "bias")
BF16, FP16, FP64 = torch.bfloat16, torch.float16, torch.float64
TWO = (COMPILED, FUNCTIONAL)
THREE = (*TWO, GRAPHED_COMPILED)  # on a GPU; max-autotune, which takes as long as all of them, for one case of a kind


def _real(regime: str, data: str, **more: object) -> Case:
    return Case(regime, *SIZES[data], data=data, **more)


_CPU_QUICK = (
    Case("D", 100, 2, 1, compilers=TWO),
    Case("D", 100, 2, 1, op="step"),
    Case("D", 1_000, 10, 1),
    _real("D", "diabetes"),
    Case("A", 50_000, 8, 1),
    Case("A", 1_000_000, 8, 1, op="forward"),
    Case("A", 20_000, 64, 10),
    Case("A", 10_000_000, 2, 1),
    Case("A", 1_000_000, 64, 1),
    Case("A", 200_000, 64, 1, op="step"),
    Case("A", 200_000, 256, 1),
    Case("A", 200_003, 37, 3, wanted=("weight", "bias")),
    _real("A", "photographs"),
    Case("A", 500_000, 64, 1, dtype=BF16),
    Case("B", 150_000, 64, 64),
    Case("B", 100_000, 64, 64, wanted=BOTH, compilers=(FUNCTIONAL,)),
    Case("B", 8_192, 512, 512),
    Case("C", 512, 2_048, 2_048),
)
CPU_QUICK = tuple(replace(case, seconds=0.6) for case in _CPU_QUICK)
CPU_FULL = (
    *(Case("D", 100, 2, 1, op=op, compilers=COMPILERS) for op in ("forward", "backward", "step")),
    *(Case("D", 1_000, 10, 1, op=op) for op in ("forward", "backward", "step")),
    Case("D", 1_000, 10, 1, dtype=FP64),
    _real("D", "diabetes"),
    Case("A", 50_000, 8, 1, compilers=TWO),
    Case("A", 20_000, 64, 10, compilers=TWO),
    *(Case("A", 10_000_000, 2, 1, op=op, compilers=TWO, seconds=2.0) for op in ("forward", "backward", "step")),
    Case("A", 10_000_001, 3, 1, seconds=2.0),
    *(Case("A", 2_000_000, 64, 1, op=op, compilers=TWO, seconds=2.0) for op in ("forward", "backward", "step")),
    Case("A", 2_000_000, 64, 1, wanted=BOTH, seconds=2.0),
    Case("A", 500_000, 256, 1, compilers=TWO, seconds=2.0),
    Case("A", 500_000, 256, 1, dtype=FP64, seconds=2.0),
    Case("A", 777_777, 37, 3, wanted=("weight", "bias"), compilers=TWO, seconds=2.0),
    _real("A", "photographs", seconds=2.0, compilers=TWO),
    Case("A", 500_000, 64, 1, dtype=BF16, compilers=(COMPILED,), seconds=2.0),
    Case("A", 500_000, 64, 1, dtype=FP16, seconds=2.0),
    *(Case("B", 500_000, 64, 64, op=op, compilers=TWO, seconds=2.0) for op in ("forward", "backward", "step")),
    Case("B", 1_000_000, 64, 64, seconds=2.0),
    Case("B", 200_000, 64, 64, wanted=BOTH, compilers=TWO, seconds=2.0),
    Case("B", 200_003, 63, 65, wanted=ALL, seconds=2.0),
    Case("B", 65_536, 512, 512, compilers=TWO, seconds=5.0),
    Case("B", 65_536, 512, 512, op="step", seconds=5.0),
    Case("C", 8_192, 2_048, 2_048, compilers=(COMPILED,), seconds=5.0),
    Case("C", 2_049, 2_047, 2_050, wanted=BOTH, seconds=5.0),
    Case("F", 4_096, 64, 32_768, seconds=5.0),
    Case("F", 8_192, 64, 32_768, wanted=BOTH, seconds=5.0),
    # 8 GB of target. Stock holds two more such matrices: too much for a machine of 23 GB, where this trains.
    Case("F", 40_000, 16, 50_000, seconds=2.0, judged=200),
)
CUDA_QUICK = (
    Case("D", 100, 2, 1, compilers=TWO),
    Case("D", 100, 2, 1, op="step", compilers=TWO),
    Case("A", 10_000_000, 2, 1, compilers=TWO),
    Case("A", 2_000_000, 64, 1, compilers=TWO),
    _real("A", "photographs"),
    Case("B", 500_000, 64, 64),
    Case("B", 1_000_000, 256, 64, dtype=BF16, compilers=TWO),
    Case("C", 8_192, 2_048, 2_048, dtype=BF16, compilers=TWO),
    Case("C", 8_192, 4_096, 4_096, dtype=BF16, wanted=BOTH),
)
CUDA_FULL = (
    Case("D", 100, 2, 1, compilers=COMPILERS),
    *(Case("D", 100, 2, 1, op=op, compilers=THREE) for op in ("forward", "step")),
    *(Case("D", 1_000, 10, 1, op=op) for op in ("forward", "backward", "step")),
    _real("D", "diabetes"),
    Case("A", 100_000_000, 2, 1),
    *(Case("A", 10_000_000, 2, 1, op=op, compilers=TWO) for op in ("forward", "backward", "step")),
    Case("A", 10_000_001, 3, 1),
    Case("A", 20_000_000, 16, 1),
    *(Case("A", 2_000_000, 64, 1, op=op, compilers=TWO) for op in ("forward", "backward", "step")),
    Case("A", 2_000_000, 256, 1, compilers=THREE),
    Case("A", 2_000_000, 64, 16),
    Case("A", 777_777, 37, 3, wanted=("weight", "bias")),
    _real("A", "photographs"),
    Case("A", 2_000_000, 64, 1, dtype=BF16, compilers=TWO),
    Case("A", 2_000_000, 64, 1, wanted=BOTH),
    Case("B", 500_000, 64, 64, compilers=TWO),
    Case("B", 1_000_000, 128, 64, dtype=BF16),
    Case("B", 1_000_000, 256, 64, dtype=BF16, compilers=THREE),
    *(Case("B", 1_000_000, 256, 64, dtype=BF16, op=op, compilers=TWO) for op in ("forward", "step")),
    Case("B", 1_000_000, 256, 64, dtype=BF16, wanted=BOTH),
    Case("B", 1_000_003, 257, 63, dtype=FP16),
    Case("B", 1_000_000, 256, 256, dtype=BF16, compilers=TWO),
    Case("B", 65_536, 512, 512),
    Case("C", 8_192, 2_048, 2_048, dtype=BF16, compilers=COMPILERS),
    Case("C", 8_192, 2_048, 2_048, dtype=BF16, wanted=BOTH),
    Case("C", 8_192, 1_024, 1_024, dtype=BF16),
    Case("C", 8_192, 4_096, 4_096, dtype=BF16),
    Case("C", 8_192, 4_096, 4_096, dtype=BF16, wanted=BOTH),
    Case("C", 8_192, 8_192, 8_192, dtype=BF16),
    Case("C", 8_192, 8_192, 8_192, dtype=BF16, wanted=BOTH, compilers=(COMPILED,)),
    Case("C", 8_191, 4_097, 4_095, dtype=BF16, wanted=BOTH),
    Case("C", 8_192, 2_048, 2_048),
    Case("C", 8_192, 4_096, 4_096, dtype=BF16, op="step", compilers=(FUNCTIONAL, GRAPHED_COMPILED)),
    Case("F", 65_536, 1_024, 32_768, dtype=BF16),
    Case("F", 65_536, 1_024, 32_768, dtype=BF16, wanted=BOTH),
    # 51.5 GB of target. Stock holds two more such matrices, 155 GB in all: an H200 has 150.
    Case("F", 98_304, 2_048, 262_144, dtype=BF16, wanted=BOTH, seconds=8.0, judged=1_024),
)
SMOKE = (
    Case("D", 100, 2, 1, compilers=(COMPILED,), seconds=0.1),
    Case("A", 50_000, 3, 1, wanted=("weight", "bias"), op="step", seconds=0.1),
    Case("B", 20_000, 16, 8, wanted=BOTH, seconds=0.1),
    Case("B", 3_000, 16, 17, op="forward", seconds=0.05),
)
PROFILES: dict[str, dict[str, tuple[Case, ...]]] = {
    "quick": {"cpu": CPU_QUICK, "cuda": CUDA_QUICK},
    "full": {"cpu": CPU_FULL, "cuda": CUDA_FULL},
    "smoke": {"cpu": SMOKE, "cuda": SMOKE},
}

# What a profile may take, in seconds: two minutes on two CPU cores, eight on a GPU. On a CPU `full` takes what it takes.
LIMITS = {("quick", "cpu"): 100.0, ("quick", "cuda"): 110.0, ("full", "cuda"): 460.0}


def limit_seconds(profile: str, device_type: str) -> float | None:
    """The time after which cases get less of it and nothing more is compiled; None where there is no such promise."""
    return LIMITS.get((profile, device_type))
