"""A CUDA device that only keeps time: every call takes as long as its peer says, a replay takes half of that."""

import contextlib
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from gdcore.backends import reference
from gdcore.bench import linear_peers, timing
from gdcore.bench.cases import Case, make_tensors
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.measure import Setting, measure_case
from gdcore.bench.peers import OURS, STOCK, Peer

CUDA = torch.device("cuda")
SETTING = Setting(CUDA, seed=0, ceilings=Ceilings(1e10, 1e10, {"float32": 1e11}))
CASE = Case("B", 40, 6, 3, wanted=("input", "weight"), seconds=0.0)
MS = 1e-3


class Device:
    """A clock, and what is asked of the GPU, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.slept: list[int] = []
        self.capturing: object = None
        self.properties = SimpleNamespace(L2_cache_size=1 << 20, uuid="1234", name="Acted", total_memory=80 << 30)
        self.properties.shared_memory_per_block_optin = 232_448
        self.properties.major, self.properties.minor, self.properties.multi_processor_count = 9, 0, 132
        self.free, self.kept, self.held, self.peak = 1 << 30, 0, 400, 1000

    def work(self, seconds: float) -> None:
        if self.capturing is None:
            self.now += seconds
        else:
            self.capturing.seconds += seconds / 2

    def note(self, what: str, seconds: float = 0.0) -> None:
        self.log.append(what)
        self.now += seconds


def act(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Puts the acted device in place of torch.cuda."""
    acted = Device()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = acted.now
            acted.log.append("record")

        def synchronize(self):
            acted.log.append("wait")

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)

    class Graph:
        def __init__(self):
            self.seconds = 0.0

        def replay(self):
            acted.note(f"replay {id(self)}", self.seconds or MS)

    @contextlib.contextmanager
    def graph(captured):
        acted.capturing = captured
        try:
            yield
        finally:
            acted.capturing = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    empty = torch.empty

    def empty_here(*shape, device=None, **more):
        if device == CUDA:  # the buffer that empties the cache
            acted.buffer, shape, device = shape[0], (1,), None
        return empty(*shape, device=device, **more)

    for name, value in {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "set_stream": lambda _: None,
        "synchronize": lambda: acted.log.append("wait"),
        "_sleep": lambda cycles: acted.slept.append(cycles) or acted.note("sleep", MS),
        "mem_get_info": lambda _: (acted.free, 80 << 30),
        "memory_reserved": lambda _: acted.held + acted.kept,
        "memory_allocated": lambda *_: acted.held,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: acted.peak,
        "get_device_properties": lambda _: acted.properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value, raising=False)
    monkeypatch.setattr(torch, "empty", empty_here)
    monkeypatch.setattr(Case, "draw", lambda case, device, seed: make_tensors(case, torch.device("cpu"), seed))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: acted.now))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return acted


def measuring(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Measures stock, which takes 2 ms, gdcore, which takes 1 ms, and others: (name, seconds, whether it can be captured)."""

    def peer(name: str, seconds: float, captures: bool = True) -> Peer:
        def prepare(case, device):
            def bind(tensors):
                call = linear_peers.bound(case, tensors, reference.linear_mse)

                def work():
                    if not captures and gpu.capturing is not None:
                        raise RuntimeError("operation not permitted when stream is capturing\nmore")
                    gpu.work(seconds)
                    return call()

                return work

            return bind

        return Peer(name, name, prepare)

    def run(*others: tuple, case: Case = CASE, ours: tuple = (OURS, MS)) -> dict:
        made = [other if isinstance(other, Peer) else peer(*other) for other in others]
        monkeypatch.setattr(linear_peers, "PEERS", (peer(STOCK, 2 * MS), *made, peer(*ours)))
        return measure_case(case, SETTING)

    return run
