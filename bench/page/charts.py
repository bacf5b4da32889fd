"""The page's plots, drawn as SVG by hand: roofline, errors, memory. Colours are CSS classes, so they follow the theme."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from .. import words
from ..peers import OURS, STOCK
from . import points
from .markup import Markup, joined, tag

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 92, 30, 24, 50
ROW = 22  # the height of a case in the memory plot
Label = Callable[[int], str]
SHAPES = {"float32": "circle", "bfloat16": "square", "float16": "triangle", "float64": "diamond"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ZERO, INFINITE = "exactly 0", "inf or NaN"


def si(value: float, unit: str) -> str:
    """4.10 TB/s."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale * 0.9995:
            return f"{words.three_digits(value / scale)} {prefix}{unit}"
    return f"{words.three_digits(value)} {unit}"


def power(exponent: int) -> str:
    """10⁻⁷: a decade's label."""
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def plain(exponent: int) -> str:
    """0.1, 1,000: a decade's label where numbers are short."""
    return f"{10.0**exponent:,.{max(0, -exponent)}f}"


def si_power(exponent: int) -> str:
    """10 G: a decade's label in units."""
    return si(10.0**exponent, "").replace(".00", "").replace(".0", "").strip()


class Axis:
    """A log axis from pixel to pixel, with places at its ends for zero and for what is not finite, where asked for."""

    def __init__(self, values: Iterable[float], start: float, end: float, base: float = 10, bands: bool = False):
        values = list(values)
        logs = [math.log(value, base) for value in values if 0 < value < math.inf] or [0.0]
        # A value on a power of the base still gets room: no point lies on the frame.
        self.low, self.high = math.floor(min(logs) - 0.02), math.ceil(max(logs) + 0.02)
        self.base, step = base, (end - start) / 12
        self.zero = start + step / 2 if bands and 0 in values else None
        self.infinite = end - step / 2 if bands and math.inf in values else None
        self.start = start if self.zero is None else start + step
        self.end = end if self.infinite is None else end - step

    def __call__(self, value: float) -> float:
        if value <= 0:
            return self.start if self.zero is None else self.zero
        if value == math.inf:
            return self.end if self.infinite is None else self.infinite
        part = (math.log(value, self.base) - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, part)) * (self.end - self.start)

    def ticks(self) -> list[int]:
        """At most nine exponents."""
        return list(range(self.low, self.high + 1, math.ceil((self.high - self.low) / 8)))


def text(x: float, y: float, content: object, anchor: str = "middle", kind: str = "tick", **more: object) -> Markup:
    return tag("text", content, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=kind, **more)


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> Markup:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=kind)


def marker(shape: str, x: float, y: float, kind: str, title: str, r: float = 5) -> Markup:
    """A point with its tooltip."""
    about = tag("title", title)
    if shape == "circle":
        return tag("circle", about, cx=f"{x:.1f}", cy=f"{y:.1f}", r=r, class_=kind)
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1.1), (1.1, 0.9), (-1.1, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }[shape]
    return tag("polygon", about, points=" ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in corners), class_=kind)


def picture(parts: Iterable[Markup], label: str, height: float = HEIGHT) -> Markup:
    """The SVG element, in a box that scrolls where the screen is narrower than letters can be read."""
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)
    return tag("div", svg, class_="chart", tabindex="0", role="region", aria_label=label)


def legend(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """Shape, class and words of each kind of point."""
    keys = []
    for shape, kind, what in entries:
        sign = line(0, 8, 16, 8, kind) if shape == "line" else marker(shape, 8, 8, kind, what)
        keys.append(tag("li", tag("svg", sign, viewBox="0 0 16 16", aria_hidden="true"), what))
    return tag("ul", *keys, class_="legend")


def frame(x: Axis, y: Axis, x_title: str, y_title: str, x_label: Label = power, y_label: Label = power) -> list[Markup]:
    """Grid, ticks and titles."""
    top, bottom = TOP, HEIGHT - BOTTOM
    parts = []
    places = [(x(x.base**tick), x_label(tick)) for tick in x.ticks()]
    places += [(place, name) for place, name in ((x.zero, ZERO), (x.infinite, INFINITE)) if place is not None]
    for place, name in places:
        parts += [line(place, top, place, bottom), text(place, bottom + 17, name)]
    places = [(y(y.base**tick), y_label(tick)) for tick in y.ticks()]
    places += [(place, name) for place, name in ((y.zero, ZERO), (y.infinite, INFINITE)) if place is not None]
    for place, name in places:
        parts += [line(LEFT, place, WIDTH - RIGHT, place), text(LEFT - 7, place + 4, name, "end")]
    middle = (top + bottom) / 2
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_title, kind="name"))
    parts.append(text(14, middle, y_title, kind="name", transform=f"rotate(-90 14 {middle:g})"))
    return parts


def roofline(document: Mapping) -> Markup | None:
    """Least FLOPs a byte against achieved FLOP/s, stock joined to gdcore, under the measured ceilings."""
    found = points.rates(document)
    if not found:
        return None
    read, products = points.roofs(document)
    ridges = [rate / read for rate in products.values()] if read else []
    x = Axis([*(point.intensity for point in found), *ridges], LEFT, WIDTH - RIGHT)
    y = Axis([*(point.rate for point in found), *products.values()], HEIGHT - BOTTOM, TOP)
    names = ("FLOP per byte: least FLOPs over least bytes of the case", "achieved FLOP/s")
    parts = frame(x, y, *names, plain, si_power)
    parts += _roofs(x, y, read, products)
    by_case: dict[str, list[points.Rate]] = {}
    for point in found:
        by_case.setdefault(point.row["name"], []).append(point)
    for pair in by_case.values():
        if len(pair) == 2:
            parts.append(line(x(pair[0].intensity), y(pair[0].rate), x(pair[1].intensity), y(pair[1].rate), "pair"))
    for row, peer, intensity, rate, seconds in found:
        told = f"{points.title(peer)} at {points.sentence(row)}: {words.duration(seconds)}, {si(rate, 'FLOP/s')}"
        kind, shape = ("ours", "circle") if peer == OURS else ("stock", "square")
        parts.append(marker(shape, x(intensity), y(rate), kind, f"{told}, {row.get('column')} time"))
    key = legend([("circle", "ours", "gdcore"), ("square", "stock", "stock"), ("line", "roof", "measured ceiling")])
    return joined([key, picture(parts, "Roofline: achieved FLOP/s against FLOP per byte, with measured ceilings")])


def _roofs(x: Axis, y: Axis, read: float | None, products: Mapping[str, float]) -> list[Markup]:
    """The ceilings, each with its name; names that would touch are moved apart."""
    parts: list[Markup] = []
    left, right = x.base**x.low, x.base**x.high
    if read:
        start = max(left, y.base**y.low / read)
        end = min(right, max(products.values(), default=y.base**y.high) / read)
        if start < end:
            corners = x(start), y(start * read), x(end), y(end * read)
            angle = math.degrees(math.atan2(corners[3] - corners[1], corners[2] - corners[0]))
            at = corners[0] + 0.3 * (corners[2] - corners[0]), corners[1] + 0.3 * (corners[3] - corners[1]) - 7
            name = f"memory: reads {si(read, 'B/s')}"
            turn = f"rotate({angle:.1f} {at[0]:.1f} {at[1]:.1f})"
            parts += [line(*corners, "roof"), text(*at, name, kind="roofname", transform=turn)]
    last = math.inf
    for dtype, rate in sorted(products.items(), key=lambda pair: pair[1]):
        height = y(rate)
        last = min(height - 6, last - 14)
        parts.append(line(x(max(left, rate / read)) if read else x(left), height, x(right), height, "roof"))
        parts.append(text(WIDTH - RIGHT - 4, last, f"{dtype} product: {si(rate, 'FLOP/s')}", "end", "roofname"))
    return parts


def errors(document: Mapping) -> Markup | None:
    """gdcore's error against stock's, both against float64: below the line gdcore is the more exact one."""
    found = points.errors(document)
    if not found:
        return None
    values = [value for point in found for value in (point.ours, point.stock)]
    shown = [max(value, 1e-18) if value else value for value in values]
    x, y = Axis(shown, LEFT, WIDTH - RIGHT, bands=True), Axis(shown, HEIGHT - BOTTOM, TOP, bands=True)
    parts = frame(x, y, "stock's relative error against float64", "gdcore's relative error")
    low, high = 10.0**x.low, 10.0**x.high
    parts.append(line(x(low), y(low), x(high), y(high), "diagonal"))
    parts.append(line(x(low), y(2 * low), x(high / 2), y(high), "limit"))
    used = {}
    for row, output, ours, stock, passed in found:
        dtype = row.get("dtype") or ", ".join(row.get("dtypes") or ())
        kind, shape = (f"dtype-{dtype}", SHAPES[dtype]) if dtype in SHAPES else ("other", "circle")
        used[kind] = (shape, kind, dtype if dtype in SHAPES else "other or several dtypes")
        told = f"{output} of {points.sentence(row)}: gdcore {ours:.1e}, stock {stock:.1e}"
        kind = f"{kind} point" if passed else "failed"
        parts.append(marker(shape, x(stock), y(ours), kind, told if passed else f"{told}: PARITY FAILS"))
    keys = [*used.values(), ("line", "diagonal", "the same error"), ("line", "limit", "twice stock's")]
    if any(not point.passed for point in found):
        keys.append(("diamond", "failed", "parity fails"))
    return joined([legend(keys), picture(parts, "gdcore's error against stock's, both relative to float64")])


def memory(document: Mapping) -> Markup | None:
    """Peak memory of one call by case, a row a case."""
    found = points.peaks(document)
    if not found:
        return None
    values = [size for _, sizes in found for size in sizes.values()]
    left, height = 300, 40 + ROW * len(found)
    x = Axis(values, left, WIDTH - 24, base=2, bands=True)
    parts = []
    every = math.ceil((x.high - x.low) / 6)
    places = [(x(2.0**tick), words.size(2.0**tick)) for tick in range(x.low, x.high + 1) if tick % every == 0]
    for place, name in [*places, *([(x.zero, "0")] if x.zero else [])]:
        parts += [line(place, 24, place, height - 8), text(place, 16, name)]
    for i, (row, sizes) in enumerate(found):
        y = 24 + ROW * (i + 0.5)
        name = joined([points.subject(row), tag("tspan", f"  {points.details(row)}", class_="quiet")])
        parts.append(text(left - 14, y + 4, name, "end", "case"))
        places = [x(size) for size in sizes.values()]
        parts.append(line(min(places), y, max(places), y, "pair"))
        for name in sorted(sizes, key=(STOCK, OURS).__contains__):  # gdcore and stock on top
            shape, kind = {OURS: ("circle", "ours"), STOCK: ("square", "stock")}.get(name, ("circle", "other"))
            told = f"{points.title(name)} at {points.sentence(row)}: {words.size(sizes[name])}"
            parts.append(marker(shape, x(sizes[name]), y, kind, told, 4 if kind == "other" else 5))
    key = legend([("circle", "ours", "gdcore"), ("square", "stock", "stock"), ("circle", "other", "other peers")])
    return joined([key, picture(parts, "Peak memory of one call by case and peer, on a log scale", height)])
