"""Timing: order, budget, intervals, verdicts."""

import gc

import numpy as np
import pytest
import torch

from gdcore.bench import timing
from gdcore.bench.timing import WallClock, calibrate, compare, interleave, order_of, quantiles, verdict


class CountingClock:
    """Says what is sampled; every call takes its own made-up time."""

    name = "made up"

    def __init__(self) -> None:
        self.sampled: list[str] = []
        self.collecting: list[bool] = []

    def sample(self, call, repeats):
        self.sampled.append(call())
        self.collecting.append(gc.isenabled())
        return {"a": 1.0, "b": 2.0, "c": 4.0}[self.sampled[-1]]


@pytest.fixture
def quick_calibration(monkeypatch):
    monkeypatch.setattr(timing, "calibrate", lambda call, clock, seconds: (1, 1.0))


def test_every_round_samples_every_peer_once_in_a_moving_order(quick_calibration):
    clock = CountingClock()
    calls = {name: lambda name=name: name for name in "abc"}
    samples = interleave(calls, clock, seconds=0.0, rounds=(6, 6))
    rounds = ["".join(clock.sampled[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) >= 4, "the order must move from round to round"
    assert {order[0] for order in rounds} == {"a", "b", "c"}, "everyone goes first"
    assert samples == {"a": [1.0] * 6, "b": [2.0] * 6, "c": [4.0] * 6}


def test_nobody_always_follows_the_same_peer():
    orders = [order_of("abc", number) for number in range(6)]
    before_b = {order[order.index("b") - 1] for order in orders if order.index("b") > 0}
    assert before_b == {"a", "c"}


def test_rounds_end_with_the_budget_but_not_before_the_least(quick_calibration):
    calls = {"a": lambda: "a", "b": lambda: "b"}
    assert len(interleave(calls, CountingClock(), seconds=0.0, rounds=(3, 50))["a"]) == 3
    assert len(interleave(calls, CountingClock(), seconds=60.0, rounds=(3, 5))["a"]) == 5


def test_garbage_is_not_collected_while_sampling(quick_calibration):
    clock = CountingClock()
    interleave({"a": lambda: "a"}, clock, seconds=0.0, rounds=(2, 2))
    assert clock.collecting == [False, False] and gc.isenabled()


def test_short_calls_are_repeated_within_a_sample():
    repeats, seconds = calibrate(lambda: None, WallClock(torch.device("cpu")), 0.001)
    assert repeats > 100 and seconds < 1e-4


def test_quantiles_are_of_the_samples():
    assert quantiles(list(range(11))) == {"p20": 2.0, "p50": 5.0, "p80": 8.0}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.5, 1.7, "FASTER"),
        (0.5, 0.7, "SLOWER"),
        (0.97, 1.05, "SAME"),
        (0.99, 1.5, "UNSURE"),
        (0.6, 1.3, "UNSURE"),
    ],
)
def test_verdicts_follow_from_intervals(low, high, expected):
    assert verdict(low, high) == expected


def test_a_known_ratio_is_found_with_an_interval_around_it():
    noise = np.random.default_rng(0).normal(1, 0.02, size=(2, 21))
    found = compare(noise[0].tolist(), (2 * noise[1]).tolist(), "stock")
    assert found.low < found.speedup < found.high and found.low < 2 < found.high
    assert found.high - found.low < 0.2 and found.verdict == "FASTER"


def test_the_same_samples_are_the_same():
    samples = np.random.default_rng(0).normal(1, 0.01, size=21).tolist()
    found = compare(samples, samples[::-1], "stock")
    assert found.speedup == 1.0 and found.verdict == "SAME"


def test_the_device_clock_flushes_and_lets_the_host_run_ahead(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def elapsed_time(self, end):
            return 5.0  # milliseconds

    class Properties:
        L2_cache_size = 1024

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    clock = timing.DeviceClock(torch.device("cpu"))
    monkeypatch.setattr(clock, "_flush", type("Buffer", (), {"zero_": lambda self: log.append("flush")})())
    assert clock.sample(lambda: log.append("call"), 2) == pytest.approx(5e-3)
    assert log == ["flush", "sleep", "record", "call", "record"] * 2 + ["wait"]
