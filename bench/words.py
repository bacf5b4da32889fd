"""Numbers and rows in words, for the console, the README and the page alike."""

import math
from collections.abc import Mapping, Sequence

from .peers import (
    COMPILED,
    FOLDED,
    FOREACH,
    FUNCTIONAL,
    GRAM,
    GRAPH,
    GRAPHED_COMPILED,
    JAX,
    LIBRARY,
    LOOP,
    OURS,
    SKLEARN,
    STEPS,
    STOCK,
    STOCK_FUSED,
    TUNED,
)

TITLES = {
    STOCK: "stock",
    COMPILED: "torch.compile",
    TUNED: "torch.compile, max-autotune",
    GRAPHED_COMPILED: "torch.compile, reduce-overhead",
    FUNCTIONAL: "compiled as one graph",
    LIBRARY: "by hand",
    FOLDED: "by hand, folded",
    GRAPH: "CUDA graph",
    JAX: "JAX",
    LOOP: "for-loop",
    FOREACH: "foreach",
    STOCK_FUSED: "fused",
    SKLEARN: "scikit-learn",
    STEPS: "gdcore, step by step",
    GRAM: "gdcore, gram",
    OURS: "gdcore",
}
GRADIENTS = {"weight": "dW", "input": "dX", "bias": "db"}
OPS = {
    "forward": "loss alone",
    "backward": "loss and gradients",
    "step": "training step",
    "sgd": "optimizer step",
    "run": "whole training run",
}
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
    """0.0031, 1.23, 12.3, 1,234."""
    if 0 < value < 0.0995:
        return f"{value:.2g}"
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def size(count: float) -> str:
    """Bytes in binary units: 3.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 999.5 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def times(ratio: float) -> str:
    """4.93x."""
    return f"{three_digits(ratio)}x"


def share(part: float) -> str:
    """A fraction in per cent."""
    return f"{100 * part:.0f} %"


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def shape(row: Mapping) -> str:
    """10,000,000 × 2 × 1."""
    return f"{row['n']:,} × {row['k']:,} × {row['m']:,}"


def asked(row: Mapping) -> str:
    """What of a shape is measured, and the dtype where it is not float32: dX, dW bfloat16."""
    gradients = ", ".join(GRADIENTS[name] for name in row["wanted"])
    what = {"forward": "loss", "step": f"step: {gradients}"}.get(row["op"], gradients)
    return what if row["dtype"] == "float32" else f"{what} {row['dtype']}"


def label(row: Mapping) -> str:
    """A case as the subject of a sentence."""
    if row["kind"] != "linear_mse":
        return row["label"]
    extra = asked(row)
    return row["label"] if extra == "dW" else f"{row['label']} ({extra})"


def device_label(machine: Mapping) -> str:
    """Where the figures are from: `CPU, 2 cores`, or the GPU's name."""
    if machine["device"] == "cuda":
        return machine["gpu"]
    return f"CPU, {machine['cores']} core{'s' if machine['cores'] != 1 else ''}"


def of_kind(document: Mapping, *kinds: str) -> list[Mapping]:
    """The rows of some kinds, in order."""
    return [row for row in document["cases"].values() if row["kind"] in kinds]


def stock_of(row: Mapping) -> str:
    """The peer that is stock PyTorch: of an optimizer step torch's default, the for-loop on a CPU, foreach on a GPU."""
    return row.get("stock") or (LOOP if row["kind"] == "sgd" else STOCK)


def timed(rows: Sequence[Mapping]) -> list[Mapping]:
    """The rows that have speed figures in the column they are judged by."""
    return [row for row in rows if row.get("comparisons", {}).get(row.get("column"))]


def against(row: Mapping, peer: str | None = None) -> Mapping | None:
    """gdcore's comparison with a peer in the row's own column, by default with stock; None where there is none."""
    return row["comparisons"][row["column"]].get(peer or stock_of(row))


def best(row: Mapping) -> Mapping:
    """gdcore's comparison with the fastest right peer in the row's own column."""
    return row["best"][row["column"]]


def timing(row: Mapping, peer: str) -> Mapping | None:
    """A peer's quantiles in the row's own column."""
    return row["peers"].get(peer, {}).get("times", {}).get(row["column"])


def median(row: Mapping, peer: str) -> str:
    """A peer's median in words; else `wrong`, `failed` or `no memory`, or nothing where it was left out."""
    found = timing(row, peer) if "column" in row else None
    if found:
        return duration(found["p50"])
    entry = row.get("peers", {}).get(peer, {})  # a skipped row has none
    if entry.get("out_of_memory"):
        return "no memory"
    return "" if "failure" not in entry else "wrong" if "parity" in entry else "failed"


def why_not(row: Mapping) -> str:
    """Why a row has no figures."""
    return row.get("skipped") or row.get("failed") or "not timed"


def of_the_floor(row: Mapping) -> str:
    """The floor over gdcore's time."""
    return share(row["floor_seconds"] / timing(row, OURS)["p50"])


def held_predictions(document: Mapping) -> list[tuple[Mapping, float, float]]:
    """(row, predicted seconds, measured seconds) of every case that ran on a GPU: the plan's model against the device clock."""
    if document["machine"]["device"] != "cuda":
        return []
    found = []
    for row in of_kind(document, "linear_mse"):
        predicted = row.get("plan", {}).get("predicted_seconds")
        measured = row.get("peers", {}).get(OURS, {}).get("times", {}).get("device", {}).get("p50")
        if predicted and measured:
            found.append((row, predicted, measured))
    return found


def how_predictions_held(document: Mapping) -> str:
    """Median and worst of measured over predicted, in a sentence; empty where nothing can be compared."""
    held = held_predictions(document)
    if not held:
        return ""
    ratios = sorted(measured / predicted for _, predicted, measured in held)
    worst, predicted, measured = max(held, key=lambda one: abs(math.log(one[2] / one[1])))
    return (
        f"Predicted times against the device clock: measured takes {times(ratios[len(ratios) // 2])} as long in the median of "
        f"{len(held)} case{'s' * (len(held) != 1)}, {times(ratios[0])} to {times(ratios[-1])}; the worst is {label(worst)}, "
        f"predicted {duration(predicted)}, measured {duration(measured)}."
    )


def shown_predictions(rows: Sequence[Mapping]) -> list[Mapping]:
    """The predicted rows that tables show: those of the weight's gradient alone. Result files hold all of them."""
    return [row for row in rows if row["wanted"] == ["weight"]]
