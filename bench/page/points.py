"""What pictures and tables take from a result document: its rows, their figures, and their points in the plots.

A document may be of an unfinished run: whatever is missing reads as None or as no point, never as an error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import words
from ..peers import LOOP, OURS, STOCK

COLUMNS = ("device", "replay", "wall")
OPS = ("forward", "backward", "step", "sgd", "run")
VERDICTS = ("FASTER", "SAME", "UNSURE", "SLOWER")


class Rate(NamedTuple):
    """A point of the roofline plot."""

    row: Mapping
    peer: str
    intensity: float  # least FLOPs over least bytes
    rate: float  # least FLOPs a second
    seconds: float


class Error(NamedTuple):
    """A point of the error plot: relative errors of one output against float64."""

    row: Mapping
    output: str
    ours: float
    stock: float
    passed: bool


def title(peer: str | None) -> str:
    """A peer's name in words."""
    return words.TITLES.get(peer, peer or "?")


def stock(row: Mapping) -> str:
    """The peer that is stock PyTorch: of an optimizer step torch's default, the for-loop on a CPU, foreach on a GPU."""
    return row.get("stock") or (LOOP if row.get("kind") == "sgd" else STOCK)


def dig(value: Any, *keys: str) -> Any:
    """value[key][key]..., or None where a part is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: Any) -> float | None:
    """A float, also from a "nan" or "inf" that was stored as text; None where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def positive(value: Any) -> float | None:
    """A number that a log axis can show, or None."""
    found = number(value)
    return found if found is not None and 0 < found < math.inf else None


def rows(document: Mapping, *kinds: str) -> list[dict]:
    """The cases of these kinds, or of all, each with its name."""
    found = [{**row, "name": name} for name, row in (document.get("cases") or {}).items()]
    return [row for row in found if not kinds or row.get("kind") in kinds]


def ordered(names: Sequence[str], like: Sequence[str]) -> list[str]:
    """The names without repetitions: those in `like` first and in its order, the others as they come."""
    return [name for name in like if name in names] + [name for name in dict.fromkeys(names) if name not in like]


def peers(found: Sequence[Mapping]) -> list[str]:
    """Every peer of these rows, stock first and gdcore last."""
    names = ordered([name for row in found for name in row.get("peers") or {}], (STOCK, LOOP))
    return [name for name in names if name != OURS] + [name for name in names if name == OURS]


def columns(found: Sequence[Mapping]) -> list[str]:
    """Every column in which some peer was timed."""
    every = [peer for row in found for peer in (row.get("peers") or {}).values()]
    return ordered([column for peer in every for column in peer.get("times") or {}], COLUMNS)


def median(row: Mapping, peer: str, column: str | None = None) -> float | None:
    """Seconds, in this column or in the row's own."""
    return positive(dig(row, "peers", peer, "times", column or row.get("column"), "p50"))


def against(row: Mapping, column: str | None = None) -> Mapping | None:
    """gdcore's comparison with stock, in this column or in the row's own."""
    found = dig(row, "comparisons", column or row.get("column"), stock(row))
    return found if positive(dig(found, "speedup")) else None


def best(row: Mapping, column: str | None = None) -> Mapping | None:
    """gdcore's comparison with the fastest peer that is right."""
    found = dig(row, "best", column or row.get("column"))
    return found if positive(dig(found, "speedup")) else None


def headline(row: Mapping, column: str | None = None) -> Mapping | None:
    """The comparison that a row is judged by: with stock, or with the best where stock has no figure."""
    return against(row, column) or best(row, column)


def no_figure(row: Mapping) -> str | None:
    """Why gdcore has no speed figure, or None where it has."""
    return row.get("skipped") or row.get("failed") or dig(row, "peers", OURS, "failure")


def gradients(row: Mapping) -> str:
    """dX, dW: the gradients that are wanted."""
    return ", ".join(words.GRADIENTS.get(name, name) for name in row.get("wanted") or ()) or "loss alone"


def details(row: Mapping, op: bool = True) -> str:
    """What the label leaves open: backward, dW, float32."""
    if row.get("kind") == "sgd":
        return ", ".join(row.get("dtypes") or ())
    parts = [row.get("op") if op else None, gradients(row), row.get("dtype")]
    if row.get("kind") == "linear_mse" and row.get("data") not in (None, "normal"):
        parts.append(f"data: {row['data']}")
    return ", ".join(part for part in parts if part)


def subject(row: Mapping) -> str:
    """The row's label."""
    return str(row.get("label") or row.get("name") or "?")


def sentence(row: Mapping) -> str:
    """A case in full: 1,000 × 10 × 1 (backward, dW, float32)."""
    more = details(row)
    return f"{subject(row)} ({more})" if more else subject(row)


def rates(document: Mapping, names: Sequence[str] = (STOCK, OURS)) -> list[Rate]:
    """The roofline's points: these peers in every fused case, each in its row's own column."""
    points = []
    for row in rows(document, "linear_mse"):
        flops, moved = positive(row.get("flops")), positive(row.get("bytes"))
        for name in names:
            seconds = median(row, name)
            if flops and moved and seconds:
                points.append(Rate(row, name, flops / moved, flops / seconds, seconds))
    return points


def roofs(document: Mapping) -> tuple[float | None, dict[str, float]]:
    """The measured ceilings: bytes read a second, and FLOPs a second of a product by dtype.

    Half types can be widened first, which is faster where they are emulated: then they have float32's roof, and its name.
    """
    measured = dig(document, "ceilings", "product") or {}
    rates = {dtype: rate for dtype, value in measured.items() if (rate := positive(value))}
    wide = rates.get("float32", 0.0)
    emulated = [dtype for dtype in ("float16", "bfloat16") if rates.get(dtype, math.inf) < wide]
    products = {dtype: rate for dtype, rate in rates.items() if dtype not in emulated}
    if emulated:
        products = {", ".join(("float32", *emulated)) if d == "float32" else d: rate for d, rate in products.items()}
    return positive(dig(document, "ceilings", "read")), products


def errors(document: Mapping) -> list[Error]:
    """gdcore's error and stock's for every output of every case; NaN reads as infinite."""
    points = []
    for row in rows(document):
        parity = dig(row, "peers", OURS, "parity") or {}
        for output, value in (parity.get("errors") or {}).items():
            pair = number(value), number(dig(parity, "stock_errors", output))
            if None not in pair:
                ours, stock = (math.inf if math.isnan(error) else abs(error) for error in pair)
                points.append(Error(row, output, ours, stock, bool(parity.get("passed"))))
    return points


def peaks(document: Mapping, *ops: str) -> list[tuple[Mapping, dict[str, float]]]:
    """Peak bytes by peer of the fused cases with these ops, or with any, where some peer has a figure."""
    found = []
    for row in rows(document, "linear_mse"):
        sizes = {name: number(peer.get("peak_bytes")) for name, peer in (row.get("peers") or {}).items()}
        sizes = {name: value for name, value in sizes.items() if value is not None and 0 <= value < math.inf}
        if sizes and (not ops or row.get("op") in ops):
            found.append((row, sizes))
    return found
