"""What changed between two result documents: times, memory, parity, and figures that are there no more.

Two runs may find the machine in two states, so a time is judged relative to stock's in the same run: after over before of
gdcore / stock. Its 95 % interval is a bootstrap that draws rounds of each run by itself: gdcore's and stock's samples of one
round belong together, rounds of two runs do not. A regression is an interval that lies beyond the threshold as a whole.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import results, words
from .peers import OURS, STOCK
from .timing import INTERVAL

REGRESSION, UNJUDGED, UNSURE, SAME, BETTER = VERDICTS = ("REGRESSION", "NOT JUDGED", "UNSURE", "SAME", "BETTER")
FEWEST = 3  # samples that have an interval worth the name
LEAST_GROWTH = 1 << 20  # bytes: less is not worth a word
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """After over before, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison: of a column's times, of memory, of parity, or of whether there are figures at all."""

    case: str
    what: str
    verdict: str
    why: str
    before: str = ""
    after: str = ""
    absolute: Ratio | None = None
    relative: Ratio | None = None  # to stock in the same run

    @property
    def rank(self) -> tuple[int, float]:
        """Worst first."""
        ratio = self.relative or self.absolute
        return VERDICTS.index(self.verdict), -(ratio.value if ratio else math.inf)


def ratio_of(
    before: Sequence[float],
    after: Sequence[float],
    before_stock: Sequence[float] | None = None,
    after_stock: Sequence[float] | None = None,
) -> Ratio:
    """The ratio of medians; with stock's samples, of medians over stock's median in the same run."""
    generator = np.random.default_rng(0)

    def medians(samples: Sequence[float], stock: Sequence[float] | None) -> tuple[float, np.ndarray]:
        ours, theirs = np.asarray(samples), None if stock is None else np.asarray(stock)
        rounds = len(ours) if theirs is None else min(len(ours), len(theirs))
        drawn = generator.integers(rounds, size=(RESAMPLES, rounds))
        if theirs is None:
            return float(np.median(ours)), np.median(ours[drawn], axis=1)
        return (
            float(np.median(ours) / np.median(theirs)),
            np.median(ours[drawn], axis=1) / np.median(theirs[drawn], axis=1),
        )

    (old, olds), (new, news) = medians(before, before_stock), medians(after, after_stock)
    low, high = np.percentile(news / olds, INTERVAL).tolist()
    return Ratio(new / old, low, high)


def verdict(ratio: Ratio, threshold: float) -> str:
    """What an interval of time ratios shows; the threshold is a fraction."""
    if ratio.low > 1 + threshold:
        return REGRESSION
    if ratio.high < 1 / (1 + threshold):
        return BETTER
    return SAME if ratio.low >= 1 / (1 + threshold) and ratio.high <= 1 + threshold else UNSURE


def differences(before: Mapping, after: Mapping) -> list[str]:
    """What differs between the machines and versions of two runs; gdcore's own version may."""
    found = []
    for part in ("machine", "versions"):
        old, new = before[part], after[part]
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name) and (part, name) != ("versions", "gdcore"):
                found.append(f"{name.replace('_', ' ')} {_value(old, name)} before, {_value(new, name)} after")
    return found


def _value(part: Mapping, name: str) -> str:
    return "missing" if part.get(name) is None else str(part[name])


def compare(
    before: Mapping, after: Mapping, *, threshold: float, column: str | None = None, peer: str = OURS
) -> list[Finding]:
    """Every finding of the cases that both documents have, worst first.

    Raises
    ------
    BadInput
        If the two have nothing in common that could be compared.
    """
    pairs = {name: (row, after["cases"][name]) for name, row in before["cases"].items() if name in after["cases"]}
    if not pairs:
        raise results.BadInput("the two files have no case in common")
    if not any(column in (None, c) for old, _ in pairs.values() for c in _entry(old, peer).get("times", {})):
        where = f" in the column {column!r}" if column else ""
        raise results.BadInput(f"no case that both files have has figures of {peer!r}{where} in the first")
    alike = not differences(before, after)
    found = []
    for name, (old, new) in pairs.items():
        found += [
            *_parity(name, old, new, peer),
            *_times(name, old, new, peer, column, threshold, alike),
            *_memory(name, old, new, peer, threshold),
        ]
    return sorted(found, key=lambda finding: finding.rank)


def _entry(row: Mapping, peer: str) -> Mapping:
    return row.get("peers", {}).get(peer, {})


def _wrong(row: Mapping, peer: str) -> str | None:
    """Why parity fails, or what gdcore's training run got wrong."""
    parity = _entry(row, peer).get("parity")
    if parity is not None and not parity["passed"]:
        return "; ".join(parity["failures"]) or "parity fails"
    return "; ".join(row.get("problems") or ()) or None if peer == OURS else None


def _parity(name: str, old: Mapping, new: Mapping, peer: str) -> Iterator[Finding]:
    judged = {"parity", "times"} & set(_entry(old, peer))
    if judged and not _wrong(old, peer) and (why := _wrong(new, peer)):
        yield Finding(name, "parity", REGRESSION, why, "passes", "fails")


def _times(
    name: str, old: Mapping, new: Mapping, peer: str, column: str | None, threshold: float, alike: bool
) -> Iterator[Finding]:
    olds, news = (_entry(row, peer).get("times", {}) for row in (old, new))
    wanted = [c for c in olds if column in (None, c)]
    if wanted and not any(c in news for c in wanted):
        if _wrong(new, peer) is None:  # else parity has said it
            yield _lacking(name, wanted[0], olds[wanted[0]], new, peer)
        return
    for c in wanted:
        if c in news:
            yield _time(name, c, old, new, peer, threshold, alike)
        else:
            yield _lacking(name, c, olds[c], new, peer)


def _lacking(name: str, column: str, times: Mapping, new: Mapping, peer: str) -> Finding:
    """A figure that is there no more: a failure is a regression, what was left out is not."""
    entry = _entry(new, peer)
    broken = entry.get("failure") or (new.get("failed") if peer == OURS else None)
    left_out = new.get("skipped") or entry.get("left_out") or entry.get("no_time", {}).get(column) or "not measured"
    lost = (REGRESSION, broken, "failed") if broken else (UNJUDGED, left_out, "left out")
    return Finding(name, column, lost[0], lost[1], words.duration(times["p50"]), lost[2])


def _time(name: str, column: str, old: Mapping, new: Mapping, peer: str, threshold: float, alike: bool) -> Finding:
    baseline = words.stock_of(old)

    def samples(row: Mapping, who: str) -> Sequence[float] | None:
        times = _entry(row, who).get("times", {}).get(column)
        return None if times is None else times["samples"]

    ours, stocks = [[samples(row, who) for row in (old, new)] for who in (peer, baseline)]
    absolute, relative = ratio_of(*ours), None
    if peer != baseline and None not in stocks:
        relative = ratio_of(*ours, *stocks)
    judged = relative or (absolute if alike else None)
    theirs = "stock" if baseline == STOCK else f"stock's {baseline}"
    basis = f"relative to {theirs}" if relative else "by its own time: there is none of stock to relate it to"
    if min(map(len, ours)) < FEWEST:
        found, why = UNJUDGED, f"fewer than {FEWEST} samples"
    elif judged is None:
        found, why = UNJUDGED, f"no time of {theirs} to relate it to, and the machines or versions differ"
    else:
        found, why = verdict(judged, threshold), f"{_change(judged)}, {basis}"
    before, after = (words.duration(float(np.median(values))) for values in ours)
    return Finding(name, column, found, why, before, after, absolute, relative)


def _change(ratio: Ratio) -> str:
    """In words: 12 % more time."""
    percent = 100 * (ratio.value - 1)
    return (
        "as long as before" if abs(percent) < 0.5 else f"{abs(percent):.0f} % {'more' if percent > 0 else 'less'} time"
    )


def _memory(name: str, old: Mapping, new: Mapping, peer: str, threshold: float) -> Iterator[Finding]:
    sizes = [_entry(row, peer).get("peak_bytes") for row in (old, new)]
    if None not in sizes and sizes[1] > sizes[0] * (1 + threshold) and sizes[1] - sizes[0] > LEAST_GROWTH:
        why = f"{words.size(sizes[1] - sizes[0])} more"
        yield Finding(name, "memory", REGRESSION, why, *map(words.size, sizes))
