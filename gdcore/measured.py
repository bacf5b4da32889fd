"""Measured times of paths by GPU and shape: the committed tables in measured/*.json, which go before every prediction.

`gdcore-bench paths` measures and writes them. A row is one shape on one kind of GPU: the median of every path that could run,
stock among them, from samples that were interleaved. A plan takes the row nearest to its shape, of the same GPU, dtype,
precision and kind of gradients, if no dimension differs by more than a factor of 2; further away the model decides.

GDCORE_MEASURED names one more file, such as one's own before it is committed, or is "off". A file that is damaged is left
out as a whole, with one warning: whatever it holds, it must not stop a training run.
"""

import datetime
import functools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .backends import Wanted
from .tuned_format import DTYPES

if TYPE_CHECKING:
    from .cost import Asked
    from .devices import Device

SCHEMA = "gdcore-measured/1"
VARIABLE = "GDCORE_MEASURED"
FOLDER = Path(__file__).with_name("measured")
STOCK = "stock"
ONE_PASS = tuple(f"one_pass_{family}" for family in ("rows", "vector", "dot", "tall"))
PATHS = (STOCK, "library", "epilogue", "tiled", "chunked", *ONE_PASS)
PRECISIONS = {"float32": ("ieee", "tf32", "tf32x3")}  # of others: ieee
NEAREST = 1.0  # doublings that a dimension may differ by


class MeasuredTableWarning(UserWarning):
    """A table of measured times was found and refused."""


class Row(NamedTuple):
    """One shape as it was measured."""

    gpu: str  # as its driver names it
    architecture: int
    torch: str
    triton: str
    dtype: torch.dtype
    precision: str
    n: int
    k: int
    m: int
    wanted: Wanted
    times: tuple[tuple[str, float], ...]  # (path, median seconds of forward and backward)
    date: str
    source: str  # the file under bench/results that holds the samples

    @property
    def seconds(self) -> dict[str, float]:
        return dict(self.times)

    def words(self, path: str) -> str:
        """The path's time, and where it was measured."""
        return (
            f"{self.seconds[path] * 1e6:.3g} µs at {self.n} x {self.k} x {self.m} on {self.gpu}, {self.date}, "
            f"torch {self.torch}, Triton {self.triton}"
        )


def kind_of(wanted: Wanted) -> tuple[bool, bool, bool]:
    """Gradients that cost alike: weight's and bias's come together."""
    return wanted.input, wanted.weight or wanted.bias, wanted.target


def nearest(
    device: "Device", dtype: torch.dtype, precision: str, shape: tuple[int, int, int], asked: "Asked"
) -> Row | None:
    """The measured row that stands for a shape; None where there is none near enough, or the call is of another kind."""
    if not table() or asked.reduction == "none" or asked.target_dtype is not dtype or not asked.contiguous:
        return None
    best: tuple[float, Row] | None = None
    for row in table():
        if (row.architecture, row.dtype, row.precision) != (device.architecture, dtype, precision):
            continue
        if kind_of(row.wanted) != kind_of(asked.wanted) or not _is_of(row.gpu, device.name):
            continue
        doublings = [abs(math.log2(here / there)) for here, there in zip(shape, (row.n, row.k, row.m), strict=True)]
        if max(doublings) <= NEAREST and (best is None or sum(doublings) < best[0]):
            best = sum(doublings), row
    return best and best[1]


def _is_of(measured: str, planned: str) -> bool:
    """Whether a driver's name is that of the planned GPU, which may be known by a part of it, as H200."""
    return measured == planned or planned in re.split(r"[ -]", measured)


@functools.cache
def table() -> tuple[Row, ...]:
    """Every row of every table, read once a process; the user's own file last, so that of equally near rows it comes second."""
    given = os.environ.get(VARIABLE, "")
    if given == "off":
        return ()
    paths = sorted(FOLDER.glob("*.json")) + ([Path(os.path.expanduser(given))] if given else [])
    found: list[Row] = []
    for path in paths:
        try:
            found += read(path)
        except Exception as error:  # a damaged file must not stop a training run
            what = error.strerror if isinstance(error, OSError) else str(error)
            warnings.warn(f"{path}: {what}; its measured times are not used", MeasuredTableWarning, stacklevel=2)
    return tuple(found)


def read(path: Path) -> list[Row]:
    """A table's rows, checked in full.

    Raises
    ------
    OSError
    ValueError
        Anything at all is wrong; the message says what.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is damaged: {error}") from error
    _require(isinstance(document, dict), "it is no table")
    _require(document.get("schema") == SCHEMA, f"its schema is {document.get('schema')!r}, it must be {SCHEMA!r}")
    _require(isinstance(document.get("rows"), list), "its rows are missing")
    rows: dict[tuple, Row] = {}
    for number, stored in enumerate(document["rows"]):
        try:
            row = _row(stored)
            _require(key_of(row) not in rows, "it is there twice")
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        rows[key_of(row)] = row
    return list(rows.values())


def document(rows: Iterable[Row]) -> dict[str, Any]:
    """What a table's file holds."""
    return {"schema": SCHEMA, "rows": [_stored(row) for row in rows]}


def key_of(row: Row) -> tuple:
    """What a row is a measurement of: another one of the same takes its place."""
    return row.gpu, row.dtype, row.precision, row.n, row.k, row.m, kind_of(row.wanted)


def _stored(row: Row) -> dict[str, Any]:
    wanted = [name for name, is_wanted in row.wanted._asdict().items() if is_wanted]
    dtype = str(row.dtype).removeprefix("torch.")
    given = {**row._asdict(), "dtype": dtype, "wanted": wanted, "seconds": row.seconds}
    del given["times"]
    return given


def _row(stored: Any) -> Row:
    _require(isinstance(stored, Mapping), "it is no row")
    names = {*Row._fields} - {"times"} | {"seconds"}
    _require(set(stored) == names, f"it must have exactly {', '.join(sorted(names))}")
    for name in ("gpu", "torch", "triton", "source"):
        _require(isinstance(stored[name], str) and stored[name] != "", f"{name} is {stored[name]!r}")
    for name, most in (("architecture", 999), ("n", 1 << 48), ("k", 1 << 48), ("m", 1 << 48)):
        _require(type(stored[name]) is int and 1 <= stored[name] <= most, f"{name} is {stored[name]!r}")
    dtype, precision, wanted, seconds = (stored[name] for name in ("dtype", "precision", "wanted", "seconds"))
    _require(isinstance(dtype, str) and dtype in DTYPES, f"dtype is {dtype!r}")
    _require(precision in PRECISIONS.get(dtype, ("ieee",)), f"precision is {precision!r}")
    _require(isinstance(wanted, list) and all(name in Wanted._fields for name in wanted), f"wanted is {wanted!r}")
    _require(isinstance(seconds, dict) and len(seconds) > 1 and STOCK in seconds, "seconds must hold stock and more")
    for path, value in seconds.items():
        _require(path in PATHS, f"there is no path {path!r}")
        good = isinstance(value, float) and math.isfinite(value) and 0 < value < 3600
        _require(good, f"the seconds of {path} are {value!r}")
    try:
        datetime.date.fromisoformat(stored["date"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"date is {stored['date']!r}") from error
    flags = Wanted(*(name in wanted for name in Wanted._fields))
    plain = {name: stored[name] for name in names - {"dtype", "wanted", "seconds"}}
    return Row(**plain, dtype=DTYPES[dtype], wanted=flags, times=tuple(seconds.items()))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
