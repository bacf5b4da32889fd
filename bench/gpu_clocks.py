"""Does the GPU slow down while it is measured? Its clock and its reasons for holding back, through NVML where that is installed."""

from typing import Any

import torch

SLOWING = {  # NVML's bits that mean slower than asked for; idle and applications' own settings are not among them
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
DROP = 0.9  # of the clock before: what falls below it has slowed down


class Clocks:
    """Reads before and after. Without CUDA or NVML it reads nothing, and `report` is None."""

    def __init__(self, device: torch.device) -> None:
        self._nvml, self._handle = _open(device)
        self._clocks, self._reasons = [self._clock()], 0

    def _clock(self) -> int | None:
        return None if self._nvml is None else self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)

    def look(self) -> None:
        """Notes the clock, and what holds the GPU back, at this moment. The first look replaces the clock of an idle GPU."""
        if self._nvml is not None:
            self._clocks.append(self._clock())
            self._reasons |= _reasons(self._nvml, self._handle)

    def report(self) -> dict[str, Any] | None:
        """Clocks in MHz, and in words whether the GPU held back since this object was made."""
        if self._nvml is None:
            return None
        self.look()
        before, after = self._clocks[1], min(self._clocks[1:])
        held_back = [name for bit, name in SLOWING.items() if self._reasons & bit]
        if after < DROP * before:
            held_back.append(f"clock fell from {before} to {after} MHz")
        return {
            "before_mhz": before,
            "after_mhz": after,
            "max_mhz": self._nvml.nvmlDeviceGetMaxClockInfo(self._handle, self._nvml.NVML_CLOCK_SM),
            "throttled": ", ".join(held_back) or None,
        }


def _reasons(nvml: Any, handle: Any) -> int:
    return nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)


def _open(device: torch.device) -> tuple[Any, Any]:
    if device.type != "cuda":
        return None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = (
            f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # its index is not NVML's where devices are hidden
        )
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)  # some GPUs refuse: better now than between samples
        pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
        _reasons(pynvml, handle)
        return pynvml, handle
    except Exception:  # not installed, no permission, a driver without it: then there is nothing to read
        return None, None
