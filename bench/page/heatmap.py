"""The speed-up against stock by shape, as a table for each op and dtype: rows N, columns K x M, colour and number in the cell."""

import math
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from .. import words
from . import points
from .markup import Markup, joined, small, tag

FULL = 2.0  # octaves from 1.0x to the strongest colour: 4x and 0.25x
MARKS = {"SAME": "=", "UNSURE": "?", "SLOWER": "▼", "FASTER": "▲"}

LEGEND = tag(
    "p",
    tag("span", "0.25x", class_="heat loss", style="--t:1"),
    tag("span", "0.5x", class_="heat loss", style="--t:0.5"),
    tag("span", "1x", class_="heat win", style="--t:0"),
    tag("span", "2x", class_="heat win", style="--t:0.5"),
    tag("span", "4x", class_="heat win", style="--t:1"),
    tag("span", "▲ faster than stock, = the same, ? unsure, ▼ slower. Point at a number for its interval; "),
    tag("span", "follow it to its rows in the tables."),
    class_="legend",
)


def maps(rows: Sequence[Mapping], column: str | None) -> Markup:
    """All heat maps of one column, or of each row's own."""
    rows = [
        row
        for row in rows
        if row.get("kind") == "linear_mse" and None not in (row.get("n"), row.get("k"), row.get("m"))
    ]
    ops = points.ordered([row.get("op") for row in rows], points.OPS)
    every = [
        _map([row for row in rows if (row.get("op"), row.get("dtype")) == (op, dtype)], op, dtype, column)
        for op in ops
        for dtype in dict.fromkeys(row.get("dtype") for row in rows)
    ]
    shown = [one for one in every if one]
    return joined([*shown, LEGEND]) if shown else tag("p", "No case has a figure here.", class_="quiet")


def _map(rows: Sequence[Mapping], op: object, dtype: object, column: str | None) -> Markup:
    """One op and dtype; empty where no row has a figure or a reason for none."""
    cells: dict[tuple, list[Markup]] = {}
    several = len({points.gradients(row) for row in rows}) > 1
    for row in rows:
        if entry := _entry(row, column, several):
            cells.setdefault((row["n"], (row["k"], row["m"])), []).append(entry)
    if not cells:
        return Markup()
    heights, widths = sorted({at[0] for at in cells}), sorted({at[1] for at in cells})
    head = [tag("th", f"{k:,} × {m:,}", scope="col") for k, m in widths]
    body = [
        tag("tr", tag("th", f"{n:,}", scope="row"), *(tag("td", *cells.get((n, width), [])) for width in widths))
        for n in heights
    ]
    caption = f"{op}, {dtype}" + ("" if several else f", {points.gradients(rows[0])}")
    corner = tag("th", "N", small("K × M →"), scope="col")
    inside = tag("table", tag("caption", caption), tag("thead", tag("tr", corner, *head)), tag("tbody", *body))
    return tag("div", inside, class_="scroll map", tabindex="0", role="region", aria_label=f"Speed-up: {caption}")


def _entry(row: Mapping, column: str | None, several: bool) -> Markup | None:
    """One case's number, or why it has none."""
    found = points.against(row, column)
    which = small(points.gradients(row)) if several else ""
    if found:
        ratio = float(found["speedup"])
        strength = min(1.0, abs(math.log2(ratio)) / FULL) ** 0.7
        content = joined([words.times(ratio), Markup("&nbsp;"), MARKS.get(found.get("verdict"), ""), which])
        style, kind = f"--t:{strength:.2f}", "heat win" if ratio >= 1 else "heat loss"
    elif why := points.no_figure(row):
        content, style, kind = joined(["skipped" if "skipped" in row else "failed", which]), None, "heat none"
        return tag("a", content, class_=kind, title=f"{points.sentence(row)}: {why}", href=_link(row))
    else:
        return None
    return tag("a", content, class_=kind, style=style, title=_title(row, found, column), href=_link(row))


def _link(row: Mapping) -> str:
    return f"#search={quote(str(row['name']), safe='')}"


def _title(row: Mapping, found: Mapping, column: str | None) -> str:
    """The tooltip: the case, the interval, the best peer."""
    text = f"{points.sentence(row)}: {interval(found)} of stock's speed, {found.get('verdict', '?')}"
    if best := points.best(row, column):
        text += f"; {words.times(float(best['speedup']))} of {points.title(best.get('baseline'))}'s, the best peer"
    return f"{text}; {column or row.get('column')} time"


def interval(found: Mapping) -> str:
    """4.42x (95 %: 3.73 to 4.90)."""
    low, high = (points.number(found.get(end)) for end in ("low", "high"))
    text = words.times(float(found["speedup"]))
    return text if None in (low, high) else f"{text} (95 %: {words.three_digits(low)} to {words.three_digits(high)})"
