"""A GPU that slows down is noticed, and one that does not tell is measured all the same. The management library is acted."""

import sys

import pytest

from gdcore.bench import gpu_clocks
from gpu_support import CUDA


class Nvml:
    """A management library whose clock and reasons follow a script."""

    NVML_CLOCK_SM = 1

    def __init__(self, clocks, reasons):
        self.clocks, self.reasons, self.asked = list(clocks), list(reasons), None

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked = uuid
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return self.clocks.pop(0) if len(self.clocks) > 1 else self.clocks[0]

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return 1980

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0]


@pytest.mark.parametrize(
    ("clocks", "reasons", "throttled"),
    [
        ([1900], [0], None),
        ([1900], [0x01 | 0x02], None),
        ([1900], [0x04], "power limit"),
        ([1900], [0x20 | 0x40], "software thermal slowdown, hardware thermal slowdown"),
        ([300, 300, 1900, 1500, 1900], [0], "clock fell from 1900 to 1500 MHz"),
        ([300, 300, 1900, 1750], [0], None),
        ([1900], [0, 0, 0x08, 0], "hardware slowdown"),
    ],
    ids=["none", "idle", "power", "heat", "slower", "a little slower", "in between"],
)
def test_a_gpu_that_slows_down_is_noticed(among, gpu, monkeypatch, clocks, reasons, throttled):
    nvml = Nvml(clocks, reasons)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = among()["clocks"]
    assert nvml.asked == "GPU-1234" and found["max_mhz"] == 1980 and found["before_mhz"] == 1900
    assert found["throttled"] == throttled


def test_a_gpu_that_refuses_to_tell_is_measured_all_the_same(among, monkeypatch):
    class Refusing(Nvml):
        def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
            raise RuntimeError("Not Supported")

    monkeypatch.setitem(sys.modules, "pynvml", Refusing([1900], [0]))
    row = among()
    assert row["clocks"] is None and row["failed"] is None


def test_without_the_library_nothing_is_read(gpu):
    clocks = gpu_clocks.Clocks(CUDA)
    clocks.look()
    assert clocks.report() is None
