"""What a plan needs to know of a device, as plain numbers: no GPU is needed to plan for one."""

import functools
from typing import Any, NamedTuple

import torch

from .tuned import Table, table_for


class Device(NamedTuple):
    """A device as a plan sees it. Rates are floating-point operations a second by dtype; bandwidth is read + write, bytes a second."""

    name: str
    kind: str  # "cpu" or "cuda"
    architecture: int = 0  # 80, 90 or 100: the table of configurations that applies
    sms: int = 0  # multiprocessors, or threads of a CPU
    shared_memory: int = 0  # bytes a program may ask for
    bandwidth: float = 0.0
    rates: tuple[tuple[torch.dtype | str, float], ...] = ()
    l2_bandwidth: float = 0.0  # bytes a second from L2 to the multiprocessors
    tuned: Table | None = None  # the user's own configurations; only of a GPU that is there

    def __hash__(self) -> int:
        return hash(self.name)  # every call looks its plan up, and the nested rates would cost more than the rest of it

    def rate(self, dtype: torch.dtype, input_precision: str) -> float:
        """Of products. tf32x3 takes three of TF32 for each."""
        if dtype is torch.float32 and input_precision != "ieee":
            return dict(self.rates)["tf32"] / (3 if input_precision == "tf32x3" else 1)
        return dict(self.rates)[dtype]


def _cuda(
    name: str,
    architecture: int,
    sms: int,
    shared: int,
    bandwidth: float,
    fp64: float,
    fp32: float,
    tf32: float,
    half: float,
    l2_bandwidth: float,
) -> Device:
    rates = (
        (torch.float64, fp64),
        (torch.float32, fp32),
        ("tf32", tf32),
        (torch.float16, half),
        (torch.bfloat16, half),
    )
    return Device(name, "cuda", architecture, sms, shared, bandwidth, rates, l2_bandwidth)


# L2 of the H200: at least what a published product reads through it without multicast (662 TFLOP/s on an H100 with tiles of
# 128 x 256 x 64 in float16, 7.5 TB/s), times the same ratio of this H200's rate to that H100's (780 / 661). The others are assumed.
CPU = Device("CPU", "cpu", sms=1)  # sms: threads
# Bandwidth and the half-precision rate of the H200 were measured; the others are the vendors' figures less the same fraction.
A100 = _cuda("A100", 80, 108, 166_912, 1.75e12, 17e12, 17e12, 120e12, 250e12, 4.5e12)
H200 = _cuda("H200", 90, 132, 232_448, 4.3e12, 52e12, 52e12, 390e12, 780e12, 8.8e12)
B200 = _cuda("B200", 100, 148, 232_448, 6.9e12, 33e12, 60e12, 870e12, 1750e12, 12e12)
INTERPRETED = H200._replace(name="interpreter", sms=2)
KNOWN = {device.architecture: device for device in (A100, H200, B200)}
CLOCKS = {80: 1.41e9, 90: 1.98e9, 100: 1.965e9}  # of their multiprocessors, at which their rates were reached
# Of a memory's peak a copy gets as much as this: measured 4.3 of 4.92 TB/s on an H200 and 3.05 of 3.35 on an H100.
BANDWIDTH_REACHED = 0.89


def describe(device: torch.device, interpreted: bool = False) -> Device:
    """The device that tensors are on; kernels that are interpreted on a CPU are planned as for a small H200."""
    if device.type == "cuda":
        return _describe_cuda(device)
    return INTERPRETED if interpreted else CPU._replace(sms=torch.get_num_threads())


@functools.cache
def _describe_cuda(device: torch.device) -> Device:
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major * 10 + properties.minor
    # Consumer GPUs from 12.0 on have the shared memory of the 8.x ones.
    architecture = max((a for a in KNOWN if a <= capability < 120), default=min(KNOWN))
    described = _like(KNOWN[architecture], properties)._replace(
        name=properties.name, shared_memory=properties.shared_memory_per_block_optin
    )
    return described._replace(tuned=table_for(described))


def _like(known: Device, properties: Any) -> Device:
    """The known device of an architecture with another one's memory, multiprocessors and clock, as far as PyTorch tells them."""
    sms, clock, memory_clock, bus = (
        getattr(properties, name, 0)  # clocks in kHz; PyTorch 2.9 may not know them
        for name in ("multi_processor_count", "clock_rate", "memory_clock_rate", "memory_bus_width")
    )
    speed = sms * 1e3 * clock / (known.sms * CLOCKS[known.architecture]) if clock else sms / known.sms
    return known._replace(
        sms=sms,
        bandwidth=BANDWIDTH_REACHED * 2e3 * memory_clock * bus / 8 or known.bandwidth,  # two transfers a clock
        rates=tuple((kind, rate * speed) for kind, rate in known.rates),
        l2_bandwidth=known.l2_bandwidth * speed,
    )
