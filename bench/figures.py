"""Pictures for the README: speed, roofline, memory and errors, each as SVG and PNG; the same files for the same figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from . import words
from .page import points
from .page.charts import plain, power, si, si_power
from .page.head import where
from .peers import COMPILED, LIBRARY, OURS, STOCK
from .results import BadInput

STYLE = {
    "svg.hashsalt": "gdcore",
    "svg.fonttype": "path",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "figure.facecolor": "white",
}
ENOUGH = 6  # cases that every peer of the picture has: then it shows those alone
COLOURS = {OURS: "#c42f45", STOCK: "#2b6cb8", COMPILED: "#9aa5b1", LIBRARY: "#5d6b7a"}
DTYPES = {
    "float32": ("o", "#2b6cb8"),
    "bfloat16": ("s", "#c2620c"),
    "float16": ("^", "#15803d"),
    "float64": ("D", "#7e3fb8"),
}
INK = "#333333"
PATCH = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # behind a number: the line of stock does not cross it
BAR = 0.26  # the height of a bar; cases are 1 apart


def draw(document: Mapping, folder: Path) -> list[Path]:
    """Writes the pictures that the document has data for into the folder, and returns what was written.

    Raises
    ------
    BadInput
        If the folder cannot be made or written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            for name, paint in PICTURES.items():
                if (figure := paint(document)) is None:
                    continue
                for path in (folder / f"{name}.svg", folder / f"{name}.png"):
                    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
                    written.append(path)
    except OSError as error:
        raise BadInput(f"cannot write {folder}: {error.strerror}") from error
    return written


def _figure(height: float, title: str, document: Mapping) -> tuple[Figure, Axes]:
    """An 8 inch wide figure with its title, which names the machine."""
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{title}  ({where(document)})", loc="left", fontweight="bold", fontsize=11, pad=26)
    return figure, axes


def _legend(axes: Axes) -> None:
    """The legend between title and plot."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, borderaxespad=0.2, fontsize=9)


def _label(row: Mapping) -> str:
    """A case on an axis: what every case shares is left out."""
    extra = [points.gradients(row)] if row.get("wanted") != ["weight"] else []
    extra += [row["dtype"]] if row.get("dtype") not in ("float32", None) else []
    return f"{points.subject(row)} ({', '.join(extra)})" if extra else points.subject(row)


def speed(document: Mapping) -> Figure | None:
    """Bars: how many times as fast as stock gdcore, the compiled and the hand-written composition are."""
    rows = [row for row in points.rows(document, "linear_mse") if row.get("op") == "backward"]
    rows = [row for row in rows if points.median(row, OURS) and points.median(row, STOCK)]
    names = [name for name in (OURS, COMPILED, LIBRARY) if any(points.median(row, name) for row in rows)]
    if not rows:
        return None
    whole = [row for row in rows if all(points.median(row, name) for name in names)]
    rows = whole if len(whole) >= ENOUGH else rows  # the page has them all
    figure, axes = _figure(1.5 + len(rows) * (0.1 + 0.19 * len(names)), "Loss and gradients, N × K × M", document)
    for i, name in enumerate(names):
        medians = [points.median(row, name) for row in rows]
        ratios = [
            points.median(row, STOCK) / value if value else None for row, value in zip(rows, medians, strict=True)
        ]
        places = [place + (i - (len(names) - 1) / 2) * BAR for place in range(len(rows))]
        bars = axes.barh(
            places, [ratio or 0.0 for ratio in ratios], height=BAR * 0.94, color=COLOURS[name], label=points.title(name)
        )
        texts = [words.times(ratio) if ratio else "no figure" for ratio in ratios]
        weight = "bold" if name == OURS else "normal"
        axes.bar_label(bars, texts, padding=3, fontsize=7.5, color=INK, fontweight=weight, bbox=PATCH)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--", label="stock")
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("times as fast as stock PyTorch: longer is faster")
    _legend(axes)
    return figure


def roofline(document: Mapping) -> Figure | None:
    """Achieved FLOP/s against FLOP per byte under the measured ceilings, stock joined to gdcore."""
    found = [point for point in points.rates(document) if point.row.get("op") == "backward"]
    if not found:
        return None
    figure, axes = _figure(4.8, "Roofline: loss and gradients", document)
    read, products = points.roofs(document)
    ridges = [rate / read for rate in products.values()] if read else []
    low, high = _decades([*(point.intensity for point in found), *ridges])
    bottom, top = _decades([*(point.rate for point in found), *products.values()])
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top * 2))
    if read:
        end = min(high, max(products.values(), default=top) / read)
        axes.plot(
            [low, end],
            [low * read, end * read],
            color=INK,
            linewidth=1.8,
            label=f"measured ceilings (memory: {si(read, 'B/s')})",
        )
    for dtype, rate in products.items():
        axes.plot([rate / read if read else low, high], [rate, rate], color=INK, linewidth=1.8)
        name = f"{dtype}: {si(rate, 'FLOP/s')}"
        axes.annotate(
            name, (high, rate), (-4, 3), textcoords="offset points", ha="right", fontsize=8.5, color=INK, bbox=PATCH
        )
    for name, shape in ((STOCK, "s"), (OURS, "o")):
        of_peer = [point for point in found if point.peer == name]
        xs, ys = [point.intensity for point in of_peer], [point.rate for point in of_peer]
        axes.scatter(
            xs, ys, s=42, marker=shape, color=COLOURS[name], edgecolor="white", zorder=3, label=points.title(name)
        )
    for name in {point.row["name"]: None for point in found}:
        pair = [point for point in found if point.row["name"] == name]
        axes.plot([p.intensity for p in pair], [p.rate for p in pair], color="#8993a3", linewidth=1, zorder=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("FLOP per byte: least FLOPs over least bytes of the case")
    axes.set_ylabel("achieved FLOP/s: higher is faster")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: si_power(round(math.log10(value)))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(round(math.log10(value)))))
    _legend(axes)
    return figure


def memory(document: Mapping) -> Figure | None:
    """Peak memory of one call by case: gdcore, stock and the others."""
    found = points.peaks(document, "backward")
    if not found:
        return None
    figure, axes = _figure(1.5 + 0.3 * len(found), "Peak memory of one call, loss and gradients", document)
    least = min((size for _, sizes in found for size in sizes.values() if size), default=1.0)
    smallest = 2.0 ** math.floor(math.log2(least) - 1)  # where zero is drawn
    shown = [{name: size or smallest for name, size in sizes.items()} for _, sizes in found]
    for place, sizes in enumerate(shown):
        axes.plot([min(sizes.values()), max(sizes.values())], [place, place], color="#c3c9d1", linewidth=1.5, zorder=1)
    others = {name for sizes in shown for name in sizes} - {OURS, STOCK}
    for label, names, marker, area, face, edge in (
        ("other peers", others, "o", 22, "white", "#6b7686"),
        ("stock", {STOCK}, "s", 36, COLOURS[STOCK], "white"),
        ("gdcore", {OURS}, "o", 46, COLOURS[OURS], "white"),
    ):
        spots = [(size, place) for place, sizes in enumerate(shown) for name, size in sizes.items() if name in names]
        if spots:
            axes.scatter(
                *zip(*spots, strict=True), s=area, marker=marker, color=face, edgecolor=edge, zorder=3, label=label
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in _powers(shown)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.size(value).replace(".0 ", " ")))
    axes.set_yticks(range(len(found)), [_label(row) for row, _ in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    zero = " (none at all: the left edge)" if any(not size for _, sizes in found for size in sizes.values()) else ""
    axes.set_xlabel(f"bytes beyond the inputs{zero}: further left is better")
    _legend(axes)
    return figure


def errors(document: Mapping) -> Figure | None:
    """gdcore's error against stock's, both against float64."""
    found = points.errors(document)
    if not found:
        return None
    figure, axes = _figure(5.2, "Relative error against float64", document)
    low, high = _decades([value for point in found for value in (point.ours, point.stock)])
    exact = low / 3  # where zero is drawn

    def place(value: float) -> float:
        return exact if value == 0 else min(value, high)

    kinds: dict[str, list[points.Error]] = {}
    for point in found:
        dtype = point.row.get("dtype") or " and ".join(point.row.get("dtypes") or ())
        kinds.setdefault(dtype if dtype in DTYPES else "several dtypes", []).append(point)
    for dtype, of_kind in kinds.items():
        marker, colour = DTYPES.get(dtype, ("P", "#8993a3"))
        xs, ys = [place(point.stock) for point in of_kind], [place(point.ours) for point in of_kind]
        axes.scatter(xs, ys, s=34, marker=marker, color=colour, alpha=0.7, edgecolor="white", zorder=3, label=dtype)
    if wrong := [point for point in found if not point.passed]:
        xs, ys = [place(point.stock) for point in wrong], [place(point.ours) for point in wrong]
        axes.scatter(xs, ys, s=90, marker="x", color="#b91c1c", zorder=4, label="parity fails", clip_on=False)
    axes.plot([low, high], [low, high], color=INK, linewidth=1.2, label="the same")
    axes.plot([low, high / 2], [2 * low, high], color="#b91c1c", linewidth=1.2, linestyle="--", label="twice stock's")
    ticks = [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    start = low
    if any(not value for point in found for value in (point.ours, point.stock)):
        ticks.insert(0, exact)
        start = exact / 1.8
    axes.set(xscale="log", yscale="log", xlim=(start, high), ylim=(start, high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: "0" if value == exact else power(round(math.log10(value))))
        )
    axes.set_xlabel("stock's error")
    axes.set_ylabel("gdcore's error: below the line is more exact")
    _legend(axes)
    return figure


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """The powers of ten around the values that a log axis can show, with room at both ends."""
    logs = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
    return 10.0 ** math.floor(min(logs) - 0.02), 10.0 ** math.ceil(max(logs) + 0.02)


def _powers(shown: Sequence[Mapping[str, float]]) -> list[int]:
    """At most about seven powers of two that span the sizes."""
    logs = [math.log2(size) for sizes in shown for size in sizes.values()]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    step = max(1, math.ceil((high - low) / 6))
    return [power for power in range(low, high + 1) if power % step == 0]


PICTURES = {"speed": speed, "roofline": roofline, "memory": memory, "errors": errors}
