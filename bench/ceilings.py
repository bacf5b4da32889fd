"""How fast can this machine be? Read and copy bandwidth and the rate of a square product, measured in the same run.

They turn a case's bytes and FLOPs into a floor: the time that they take at the best rates that were seen. A case whose data
stays in a cache can beat it, and so can one that is measured in a better moment of the machine than the ceilings were.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial

import torch

from .cases import dtype_name
from .peers import Workload
from .timing import DeviceClock, WallClock, calibrate

BUDGET = 0.8  # seconds for one ceiling's samples: half products are emulated on many CPUs


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes per second, and FLOP per second by dtype name."""

    read: float
    copy: float  # bytes read plus bytes written, by a copy or an update in place
    product: dict[str, float]

    def to_json(self) -> dict:
        return asdict(self)

    def rate(self, dtype: torch.dtype) -> float:
        """FLOP per second of products. Half types can be widened first, which is faster where they are emulated."""
        names = {dtype_name(dtype)} | ({"float32"} if dtype.itemsize < 4 else set())
        return max(self.product[name] for name in names if name in self.product)

    def floor_seconds(self, case: Workload) -> tuple[float, str]:
        """The case's floor here, and what sets it: memory or arithmetic."""
        by_bytes = case.minimal_bytes / getattr(self, case.bandwidth)
        by_flops = 0.0 if case.kind == "sgd" else case.flops / self.rate(case.dtype)
        return (by_bytes, "memory") if by_bytes >= by_flops else (by_flops, "arithmetic")


def measure(device: torch.device, dtypes: Iterable[torch.dtype], *, small: bool = False) -> Ceilings:
    """The best of many short samples each; random data, since products of zeros run at a higher clock."""
    clock = DeviceClock(device) if device.type == "cuda" else WallClock(device)

    def best(call: Callable[[], object]) -> float:
        repeats, _ = calibrate(call, clock, 0.02)
        start, samples = time.perf_counter(), []
        while len(samples) < (5 if small else 25) and (not samples or time.perf_counter() - start < BUDGET):
            samples.append(clock.sample(call, repeats))
        return min(samples)

    large = 1 << (31 if device.type == "cuda" else 28)
    size = (1 << 20 if small else large) // 4
    source = torch.empty(size, device=device).normal_()
    target = torch.empty_like(source)
    read = source.nbytes / min(
        best(partial(reduce, source)) for reduce in (torch.sum, torch.amax, torch.linalg.vector_norm)
    )
    copy = 2 * source.nbytes / best(partial(target.copy_, source))
    # A CPU reads what a copy is about to overwrite, which nobody counts; an update in place has no such traffic.
    update = 3 * source.nbytes / best(partial(target.sub_, source, alpha=1e-3))
    copy = max(copy, update)
    read = max(read, copy)
    product = {}
    for dtype in sorted({*dtypes, torch.float32}, key=dtype_name):
        side = 256 if small else 8192 if device.type == "cuda" else 1024 if dtype.itemsize >= 4 else 512
        a, b = (torch.empty(side, side, device=device).normal_().to(dtype) for _ in range(2))
        product[dtype_name(dtype)] = 2 * side**3 / best(partial(torch.mm, a, b))
    return Ceilings(read, copy, product)
