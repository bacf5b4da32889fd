"""How long does it take? Three clocks for three questions, and samples of all peers interleaved, so that a slow moment of
the machine meets all of them.

wall: how long does a loop of calls take, end to end? device: what does the GPU need, with nothing in its cache? replay: what
would it need if launches cost nothing, the inputs changing from call to call? (Six small ones still fit in the cache.) On a
CPU there is the first alone.

A sample is the mean of `repeats` calls, on the device clock their median. Every other round goes backwards, and every
second one starts with another peer, so that none always follows the same. Before a sample of a short call comes one that is
not timed: the threads of the peer before it still spin, and its data is in the cache. Not timed either: drawing inputs,
compilation, warm-up, accumulation into `.grad`, garbage collection.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch

from .peers import Call

MARGIN = 1.02  # what differs by less is called the same
INTERVAL = (2.5, 97.5)
SETTLING_SECONDS = 0.1  # a longer call does not notice what was there before it


LEAST_HEAD_START = 1e-3  # seconds that the device waits before what is timed
MOST_REPLAYS, REPLAY_SECONDS = 500, 20e-6  # in one sample; of the host for each, with room to spare


def _cycles(seconds: float) -> int:
    """For torch.cuda._sleep, at the highest clock of any GPU so far: at a lower one it sleeps longer."""
    return round(seconds * 2.6e9)


class Clock(Protocol):
    """Takes one sample: seconds per call over `repeats` calls."""

    def sample(self, call: Call, repeats: int) -> float: ...


class WallClock:
    """Elapsed time on the host for calls one after the other, with the device drained before the first and after the last."""

    def __init__(self, device: torch.device) -> None:
        self._wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def sample(self, call: Call, repeats: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self._wait()
        getattr(call, "wait", _nothing)()  # for a library that CUDA's own waiting does not cover
        return (time.perf_counter() - start) / repeats


def _nothing() -> None:
    pass


class DeviceClock:
    """Time on a CUDA device between two events, one call at a time, with a cold L2 cache.

    A buffer larger than the cache is read before each call: read and not written, since lines that were written would have
    to go back to memory while the call runs, up to 50 MB of traffic that is not the call's. The device is then kept waiting while the host
    enqueues the call, so that gaps between launches are not counted: they belong to wall time. How long the host needs is
    seen in the call before; the first, whose head start may be too short, is not counted.
    """

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(4 * cache, 1 << 28), dtype=torch.int8, device=device)

    def sample(self, call: Call, repeats: int) -> float:
        pairs, enqueueing = [], 0.0
        for _ in range(1 + repeats):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._flush.amax()
            torch.cuda._sleep(_cycles(max(LEAST_HEAD_START, 1.5 * enqueueing)))
            begun = time.perf_counter()
            start.record()
            call()
            end.record()
            enqueueing = time.perf_counter() - begun
            pairs.append((start, end))
        torch.cuda.synchronize()
        return float(np.median([start.elapsed_time(end) for start, end in pairs[1:]])) / 1e3


class ReplayClock:
    """Time on a CUDA device of captured graphs replayed one after another, each with inputs of its own.

    The device waits until the host has enqueued them all, so that it has no launch to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        del device  # clocks are made alike

    def sample(self, call: "Replays", repeats: int) -> float:
        repeats = min(repeats, MOST_REPLAYS)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(_cycles(LEAST_HEAD_START + repeats * REPLAY_SECONDS))
        start.record()
        for number in range(repeats):
            call.graphs[number % len(call.graphs)].replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats


@dataclass(frozen=True, slots=True)
class Replays:
    """A call on rotating inputs, as graphs; `kept` is what they read and write."""

    graphs: Sequence["torch.cuda.CUDAGraph"]
    kept: object = None

    def __call__(self) -> None:
        self.graphs[0].replay()


WALL, DEVICE, REPLAY = "wall", "device", "replay"
QUESTIONS = {
    DEVICE: "what the GPU needs, its cache emptied before each call",
    REPLAY: "what it needs where launches cost nothing: graph replays over rotating inputs",
    WALL: "how long a loop of calls takes end to end, launches and all",
}


def headline(regime: str | None, kind: str, device: torch.device) -> str:
    """The column that a case is judged by: device time on CUDA, except where the calls themselves are the cost."""
    return DEVICE if device.type == "cuda" and regime != "D" and kind != "run" else WALL


def calibrate(call: Call, clock: Clock, sample_seconds: float) -> tuple[int, float]:
    """Warms the call up; returns how many repeats occupy the host for about `sample_seconds`, and for how long one does."""
    repeats = 1
    while True:
        start = time.perf_counter()
        clock.sample(call, repeats)
        elapsed = time.perf_counter() - start
        if elapsed >= sample_seconds / 4 or repeats >= 1 << 16:
            return max(1, round(repeats * sample_seconds / elapsed)), elapsed / repeats
        repeats *= 4


def order_of(names: Sequence[str], number: int) -> list[str]:
    """Who is sampled in which place of a round: every order forwards, then backwards, then rotated by one."""
    shift = number // 2 % len(names)
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if number % 2 else rotated


def interleave(
    calls: Mapping[str, Call],
    clock: Clock,
    *,
    seconds: float,
    sample_seconds: float = 0.01,
    rounds: tuple[int, int] = (5, 61),
    after_round: Callable[[], object] = _nothing,
) -> dict[str, list[float]]:
    """Seconds per call of every peer, a sample a round, until the time or the rounds are spent; never fewer than rounds[0]."""
    names = list(calls)
    calibrated = {name: calibrate(call, clock, sample_seconds) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for number in range(rounds[1]):
            if number >= rounds[0] and time.perf_counter() - start > seconds:
                break
            for name in order_of(names, number):
                repeats, call_seconds = calibrated[name]
                if call_seconds < SETTLING_SECONDS:
                    calls[name]()
                samples[name].append(clock.sample(calls[name], repeats))
            after_round()
    finally:
        if collecting:
            gc.enable()
    return samples


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    return dict(zip(("p20", "p50", "p80"), np.percentile(samples, (20, 50, 80)).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much faster than a baseline: the ratio of medians, its 95 % interval, and what that amounts to."""

    baseline: str
    speedup: float
    low: float
    high: float
    verdict: str  # FASTER, SAME, SLOWER; UNSURE where the interval allows for more than one of them

    def to_json(self) -> dict:
        return asdict(self)


def verdict(low: float, high: float, margin: float = MARGIN) -> str:
    """What an interval of speed-ups shows. SAME needs the whole interval within 10 %."""
    if low > margin:
        return "FASTER"
    if high < 1 / margin:
        return "SLOWER"
    return "SAME" if low > 1 / 1.1 and high < 1.1 else "UNSURE"


def compare(
    samples: Sequence[float],
    baseline_samples: Sequence[float],
    baseline: str,
    margin: float = MARGIN,
    resamples: int = 2000,
) -> Comparison:
    """Ratio of medians; its interval by bootstrap over rounds, which keeps samples of the same round together.

    What lies within `margin` is called the same: at least 2 %, or by how much something differs from itself in this run.
    """
    ours, theirs = np.asarray(samples), np.asarray(baseline_samples)
    rounds = min(len(ours), len(theirs))
    drawn = np.random.default_rng(0).integers(rounds, size=(resamples, rounds))
    ratios = np.median(theirs[drawn], axis=1) / np.median(ours[drawn], axis=1)
    low, high = np.percentile(ratios, INTERVAL).tolist()
    return Comparison(baseline, float(np.median(theirs) / np.median(ours)), low, high, verdict(low, high, margin))
