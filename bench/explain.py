"""One shape in words: `python -m gdcore.bench explain N K M`. What gdcore.explain says of it, what stock would move, and with
--measured what a result file has of the same shape. Tensors have no storage here, so N may be as large as it likes.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

import gdcore
from gdcore import devices
from gdcore.explanation import Explanation

from . import results, words
from .peers import OURS, STOCK
from .predict import stock_bytes

GRADIENTS = ("weight", "input", "bias", "target")
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in gdcore.validation.DTYPES}
PLANNED = {device.name: device for device in devices.KNOWN.values()}
LARGEST = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about: linear_mse on X (n, k), W (m, k) and Y (n, m)."""

    n: int
    k: int
    m: int
    dtype: torch.dtype
    wanted: tuple[str, ...]
    reduction: str = "mean"

    @property
    def stock_moves(self) -> int:
        """Bytes that stock moves; the benchmark's cases, which predict.py counts, want no gradient of the target and a mean."""
        more = 3 * ("target" in self.wanted) - (self.reduction == "none")  # another residual; squares not read again
        return stock_bytes(self) + more * self.n * self.m * self.dtype.itemsize


def question(options: argparse.Namespace) -> Question:
    """What the user asks.

    Raises
    ------
    BadInput
        For a size that is none, and for names that are unknown.
    """
    n, k, m = (_size(name.upper(), getattr(options, name)) for name in "nkm")
    dtype = DTYPES[_one_of("--dtype", options.dtype, DTYPES)]
    reduction = _one_of("--reduction", options.reduction, gdcore.validation.REDUCTIONS)
    given = [name for name in options.wanted.split(",") if name not in ("", "none")]
    wanted = tuple(dict.fromkeys(_one_of("--wanted", name, GRADIENTS) for name in given))
    for what, numbers in (("input, N x K", n * k), ("weight, M x K", m * k), ("target, N x M", n * m)):
        if numbers * dtype.itemsize > LARGEST:
            raise results.BadInput(f"{what}, would take {numbers * dtype.itemsize:.1e} bytes, at most 2**63 - 1 can be")
    return Question(n, k, m, dtype, wanted, reduction)


def _size(name: str, given: object) -> int:
    try:
        value = int(str(given))
    except ValueError:
        value = 0
    if not 0 < value <= LARGEST:
        raise results.BadInput(f"{name} is {given}, it must be a whole number from 1 to 2**63 - 1")
    return value


def _one_of(option: str, given: str, known: Sequence[str] | Mapping[str, object]) -> str:
    if given not in known:
        raise results.BadInput(f"{option} {given!r} is unknown: it must be one of {', '.join(known)}")
    return given


def device_named(name: str) -> devices.Device:
    """A device to plan for: one of gdcore's GPUs, this machine's CPU, or what is here."""
    _one_of("--device", name, ("here", "cpu", *PLANNED))
    kind = "cuda" if name == "here" and torch.cuda.is_available() else "cpu"
    return PLANNED.get(name) or devices.describe(torch.device(kind))


def explain(asked: Question, device: devices.Device) -> Explanation:
    """gdcore.explain of tensors without storage, planned for the device."""
    shapes = {"input": (asked.n, asked.k), "weight": (asked.m, asked.k), "target": (asked.n, asked.m)}
    if "bias" in asked.wanted:
        shapes["bias"] = (asked.m,)
    tensors = {
        name: torch.empty(shape, dtype=asked.dtype, device="meta", requires_grad=name in asked.wanted)
        for name, shape in shapes.items()
    }
    # Tensors without storage are planned for a GPU that gdcore knows by name: here it is to know this machine, too.
    with mock.patch.dict(devices.KNOWN, {device.architecture: device}):
        return gdcore.explain(**tensors, reduction=asked.reduction, device=device.name)


def against_stock(asked: Question, explained: Explanation) -> str:
    """What stock moves, and what follows for the time."""
    plan = explained.plan
    moved, stock = plan.bytes_read + plan.bytes_written, asked.stock_moves
    said = f"stock      moves {words.size(stock)}, gdcore {words.size(moved)}"
    if plan.path == "stock":
        return f"stock      moves {words.size(stock)}, and this shape is left to it: the same time (predicted)"
    if plan.floor_seconds is None:
        return f"{said}: up to {words.times(stock / moved)} as fast where memory is the limit (predicted)"
    seconds = max(stock / plan.device.bandwidth, plan.compute_seconds)
    floors = f"stock's floor {words.duration(seconds)}, gdcore's {words.duration(plan.floor_seconds)}"
    return f"{said}; {floors}: {words.times(seconds / plan.floor_seconds)} as fast (predicted)"


def measured(document: Mapping, asked: Question) -> list[str]:
    """What a result file has of the shape, a line a case: all its dtypes, gradients and operations."""
    found = [
        f"{name}: {_outcome(row)}"
        for name, row in document["cases"].items()
        if row["kind"] == "linear_mse" and (row["n"], row["k"], row["m"]) == (asked.n, asked.k, asked.m)
    ]
    where = f"measured   on {words.device_label(document['machine'])}, {document['created'][:10]}"
    return [f"{where}:", *(f"  {line}" for line in found)] if found else [f"{where}: nothing of this shape"]


def _outcome(row: Mapping) -> str:
    if why := row.get("skipped") or row.get("failed"):
        return f"no figure, {why}"
    column = row["column"]
    times = {name: row["peers"].get(name, {}).get("times", {}).get(column) for name in (OURS, STOCK)}
    if times[OURS] is None:
        return "no figure of gdcore"
    said = f"gdcore {words.duration(times[OURS]['p50'])} ({column})"
    compared = row["comparisons"].get(column, {}).get(STOCK)
    if times[STOCK] is None or compared is None:
        return f"{said}, no figure of stock"
    interval = f"{compared['low']:.2f} to {compared['high']:.2f}"
    return (
        f"{said}, stock {words.duration(times[STOCK]['p50'])}: {words.times(compared['speedup'])} as fast ({interval})"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`explain`: its arguments. Their values are checked by `question`, which says what is wrong in a line."""
    parser.description = "Says how gdcore computes one shape, what it moves, and what stock would. Allocates nothing."
    for name, what in (("n", "rows"), ("k", "features"), ("m", "outputs")):
        parser.add_argument(name, metavar=name.upper(), help=what)
    parser.add_argument("--dtype", default="float32", help=f"{', '.join(DTYPES)} (default: float32)")
    parser.add_argument(
        "--wanted",
        default="weight",
        metavar="NAMES",
        help=f"gradients, comma-separated: {', '.join(GRADIENTS)}; or none, the loss alone (default: weight)",
    )
    parser.add_argument("--reduction", default="mean", help="mean, sum or none (default: mean)")
    parser.add_argument("--device", default="here", help=f"cpu, {', '.join(PLANNED)}, or here, the default")
    parser.add_argument(
        "--measured", type=Path, metavar="FILE.json", help="a result file to show beside the prediction"
    )


def command(options: argparse.Namespace) -> int:
    """`explain`: prints what is known of one shape."""
    asked = question(options)
    document = results.read(options.measured) if options.measured else None
    explained = explain(asked, device_named(options.device))
    print(explained)
    print(against_stock(asked, explained))
    if document is not None:
        print(*measured(document, asked), sep="\n")
    return 0
