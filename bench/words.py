"""Numbers and rows in words, for the console and the README alike."""

from collections.abc import Mapping, Sequence

from .peers import COMPILED, FUSED, OURS, STOCK

TITLES = {STOCK: "stock", COMPILED: "torch.compile", OURS: "gdcore", FUSED: "gdcore, fused"}
GRADIENTS = {"weight": "dW", "input": "dX", "bias": "db"}


UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


def _unit(seconds: float) -> tuple[str, float]:
    return next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])


def duration(seconds: float) -> str:
    """Three digits with a unit: 61.2 µs, 14.0 ms, 1.31 s."""
    unit, scale = _unit(seconds)
    return f"{three_digits(seconds / scale)} {unit}"


def spread(low: float, high: float, like: float) -> str:
    """Two durations in the unit of a third: 13.8–14.9."""
    scale = _unit(like)[1]
    return f"{three_digits(low / scale)}–{three_digits(high / scale)}"


def difference(relative: float) -> str:
    """A relative difference: 3e-07, or 0 where all bits are the same."""
    return f"{relative:.0e}" if relative else "0"


def three_digits(value: float) -> str:
    """1.23, 12.3, 123."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def size(count: float) -> str:
    """Bytes in binary units: 3.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 999.5 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def shape(row: Mapping) -> str:
    """10,000,000 x 2 x 1."""
    return f"{row['n']:,} × {row['k']:,} × {row['m']:,}"


def wanted(row: Mapping) -> str:
    """Which gradients, and the dtype where it is not float32."""
    gradients = ", ".join(GRADIENTS[name] for name in row["wanted"]) or "loss alone"
    return gradients if row["dtype"] == "float32" else f"{gradients} {row['dtype']}"


def label(row: Mapping) -> str:
    """A case as the subject of a sentence."""
    extra = wanted(row)
    return shape(row) if extra == "dW" else f"{shape(row)} ({extra})"


def times(ratio: float) -> str:
    """4.93x."""
    return f"{three_digits(ratio)}x"


def share(part: float) -> str:
    """A fraction in per cent."""
    return f"{100 * part:.0f} %"


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def device_label(machine: Mapping) -> str:
    """Where the figures are from: `CPU, 2 cores`, or the GPU's name."""
    if machine["device"] == "cuda":
        return machine["gpu"]
    return f"CPU, {machine['cores']} core{'s' if machine['cores'] != 1 else ''}"


def shown_predictions(rows: Sequence[Mapping]) -> list[Mapping]:
    """The predicted rows that tables show: those of the weight's gradient alone. Result files hold all of them."""
    return [row for row in rows if row["wanted"] == ["weight"]]


def timed(rows: Sequence[Mapping]) -> list[Mapping]:
    """The rows that have speed figures."""
    return [row for row in rows if row.get("comparisons")]


def findings(document: Mapping) -> list[str]:
    """What the run found, in sentences: where it is faster, the same, where a peer wins; parity, memory, training."""
    rows = list(document["cases"].values())
    return [
        *_speed(timed(rows)),
        *_parity(rows),
        *_memory(document["memory"]),
        *_training(document["training"].values()),
    ]


def _speed(rows: list[Mapping]) -> list[str]:
    by_verdict: dict[str, list[Mapping]] = {}
    for row in rows:
        by_verdict.setdefault(row["comparisons"][STOCK]["verdict"], []).append(row)
    sentences = []
    if faster := by_verdict.get("FASTER"):
        ratios = [row["comparisons"][STOCK]["speedup"] for row in faster]
        span = times(ratios[0]) if len(ratios) == 1 else f"{times(min(ratios))} to {times(max(ratios))}"
        sentences.append(f"Faster than stock in {len(faster)} of {len(rows)} cases: {span}.")
    for verdict, opening in (
        ("SAME", "The same speed as stock"),
        ("UNSURE", "Too noisy to tell from stock"),
        ("SLOWER", "Stock wins"),
    ):
        if found := by_verdict.get(verdict):
            cases = [f"{label(row)} ({times(row['comparisons'][STOCK]['speedup'])})" for row in found]
            sentences.append(f"{opening} at {listed(cases)}.")
    if rows and "SLOWER" not in by_verdict:
        sentences.append("Stock wins in none of these cases.")
    beaten = [row for row in rows if row["best"]["baseline"] == COMPILED and row["best"]["verdict"] == "SLOWER"]
    if beaten:
        cases = [f"{label(row)} (gdcore reaches {times(row['best']['speedup'])} of its speed)" for row in beaten]
        sentences.append(f"torch.compile wins at {listed(cases)}.")
    return sentences


def _parity(rows: list[Mapping]) -> list[str]:
    sentences = []
    checked = [row for row in rows if "skipped" not in row]
    failed = [row for row in checked if row["failed"]]
    if checked:
        good = len(checked) - len(failed)
        sentences.append(
            f"Parity with float64: {good} of {len(checked)} cases pass "
            "(loss and every gradient at most twice as far off as stock's, plus rounding)."
        )
    sentences += [f"PARITY FAILS at {label(row)}: {row['failed']}." for row in failed]
    for row in rows:
        for name, peer in row.get("peers", {}).items():
            if name != OURS and "failure" in peer:
                sentences.append(f"{TITLES[name]} gave no figure at {label(row)}: {peer['failure']}.")
    sentences += [f"Skipped: {label(row)}: {row['skipped']}." for row in rows if "skipped" in row]
    return sentences


def _memory(rows: Sequence[Mapping]) -> list[str]:
    sentences = [
        f"No memory figure for {TITLES[name]} at {shape(row)}: {row[name]['failure']}."
        for row in rows
        for name in (STOCK, OURS)
        if "failure" in row[name]
    ]
    rows = [row for row in rows if "failure" not in row[STOCK] and "failure" not in row[OURS]]
    for row in rows:
        stock, ours = (size(row[name]["peak_bytes"]) for name in (STOCK, OURS))
        sentences.append(f"Extra memory of one call at {shape(row)}: stock {stock}, gdcore {ours}.")
    if len(rows) == 2:
        growth = [times(rows[1][name]["peak_bytes"] / max(1, rows[0][name]["peak_bytes"])) for name in (STOCK, OURS)]
        more = f"{rows[1]['n'] / rows[0]['n']:g} times"
        sentences.append(f"With {more} the rows stock's extra memory is {growth[0]} as large, gdcore's {growth[1]}.")
    return sentences


def _same(relative: float) -> str:
    return f"losses differ by at most {difference(relative)}" if relative else "the same losses to the last bit"


def _training(rows) -> list[str]:
    sentences = []
    for row in rows:
        if "unavailable" in row:
            sentences.append(f"Training on {row['dataset']}: not run, {row['unavailable']}.")
            continue
        stock, ours, fused = row[STOCK], row[OURS], row[FUSED]
        sentences.append(
            f"Training on {row['dataset']}, {row['updates']:,} updates: {_same(fused['loss_difference'])} with the fused path; "
            f"{row['metric']} {stock['score']:.4f} with stock, {fused['score']:.4f} fused; "
            f"{duration(stock['seconds'])} with stock, {duration(ours['seconds'])} with gdcore"
            + (
                f", which leaves this to stock ({row['path']['why']}); fused {duration(fused['seconds'])}."
                if row["path"]["name"] == "stock"
                else "."
            )
        )
        sentences += [f"TRAINING on {row['dataset']} DIFFERS: {problem}." for problem in row["problems"]]
    return sentences
