"""Timing: order, budget, intervals, verdicts."""

import gc
from types import SimpleNamespace

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


def test_a_short_call_is_made_once_untimed_before_its_sample(monkeypatch):
    """Threads of the peer before still spin, and its data is in the cache."""
    for seconds, calls in ((timing.SETTLING_SECONDS / 2, 3), (timing.SETTLING_SECONDS * 2, 0)):
        monkeypatch.setattr(timing, "calibrate", lambda *_, seconds=seconds: (1, seconds))
        made = []
        clock = SimpleNamespace(sample=lambda call, repeats: 1.0)
        interleave({"a": lambda made=made: made.append(1)}, clock, seconds=0.0, rounds=(3, 3))
        assert len(made) == calls


def test_a_wall_sample_is_the_mean_of_its_calls(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def call():
        now[0] += 0.25

    assert WallClock(torch.device("cpu")).sample(call, 4) == 0.25


def test_calls_are_warmed_up_by_time(monkeypatch):
    now, made = [0.0], []
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def call():
        made.append(1)
        now[0] += 1e-4

    repeats, seconds = calibrate(call, WallClock(torch.device("cpu")), 0.02)
    assert repeats == 200 and seconds == pytest.approx(1e-4) and len(made) == 1 + 4 + 16 + 64


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
        (1.021, 1.03, "FASTER"),
        (1.01, 1.03, "SAME"),
        (0.97, 0.98, "SLOWER"),
    ],
)
def test_verdicts_follow_from_intervals(low, high, expected):
    assert verdict(low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.04, 1.06, "SAME"), (0.94, 0.96, "SAME"), (1.06, 1.08, "FASTER"), (0.93, 0.94, "SLOWER"), (1.04, 1.2, "UNSURE")],
)
def test_noise_of_five_per_cent_makes_verdicts_more_careful(low, high, expected):
    assert verdict(low, high, margin=1.05) == expected


def test_a_known_ratio_is_found_with_an_interval_around_it():
    noise = np.random.default_rng(0).normal(1, 0.02, size=(2, 21))
    found = compare(noise[0].tolist(), (2 * noise[1]).tolist(), "stock")
    assert found.low < found.speedup < found.high and found.low < 2 < found.high
    assert found.high - found.low < 0.2 and found.verdict == "FASTER"


def test_the_same_samples_are_the_same():
    samples = np.random.default_rng(0).normal(1, 0.01, size=21).tolist()
    found = compare(samples, samples[::-1], "stock")
    assert found.speedup == 1.0 and found.verdict == "SAME"


def test_samples_of_the_same_round_are_compared_with_each_other():
    """A machine that slows down tenfold in some rounds slows everyone down: the ratio stays what it is."""
    slow = np.where(np.arange(21) % 3 == 0, 10.0, 1.0)
    found = compare(slow.tolist(), (2 * slow).tolist(), "stock")
    assert found.low == found.speedup == found.high == 2.0


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    generator, inside = np.random.default_rng(3), 0
    for _ in range(60):
        ours, theirs = generator.normal(1, 0.05, size=(2, 25))
        found = compare(ours.tolist(), theirs.tolist(), "stock", resamples=400)
        inside += found.low <= 1 <= found.high
    assert inside >= 52
