"""The report: a result document as one HTML page that needs no network, no server and no other file."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..results import BadInput
from . import charts, findings, head, heatmap, points, speed_tables, tables
from .markup import Markup, joined, tag

STATIC = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
KINDS = {"linear_mse": "linear + MSE", "sgd": "an optimizer step", "run": "whole training runs"}
OWN = "headline"  # each case in the column that its row names
CLOCKS = {
    OWN: "every case by the clock that matters for its size: tiny ones by wall, where calls and launches are the cost",
    "device": "GPU time between two events, the L2 cache flushed before each call: how long does the GPU work?",
    "replay": "a CUDA graph replayed over rotating inputs, so without launches: how fast is it inside a captured loop?",
    "wall": "the host's clock around a loop of calls, launches and all, with a wait at its end: how long does my loop take?",
}
GLOSSARY = {
    "median": "half of the timed samples were faster, half slower; a few slow outliers do not move it.",
    "p20 to p80": "the middle of the samples: a fifth was faster, a fifth slower. Wide means noisy.",
    "speed-up": "the other's median over gdcore's. 2x: gdcore takes half the time. Below 1x gdcore is slower.",
    "interval": "the speed-up's 95 % confidence interval, from the samples. The truth lies in it 19 times of 20.",
    "verdict": "FASTER or SLOWER: the interval says so; SAME: any difference is too small to matter; UNSURE: too noisy.",
    "floor": "the time that the least bytes, or the least FLOPs, need at this machine's measured ceilings. "
    "Data that stays in a cache can be faster than that.",
    "roofline": "the most FLOP/s that memory and arithmetic allow, by how many FLOPs each byte is used for. "
    "Where the data fits in a cache a point can lie above the memory roof.",
    "A/A": "gdcore timed against itself. What this reads beside 1.00x is the noise of the method.",
    "parity": "is it right? Errors against the same computation in float64, next to stock's own error.",
    "N × K × M": "rows of data × features in × outputs.",
}


def write(document: Mapping, path: Path) -> None:
    """Writes the page in one step: a reader finds the old page or the new one.

    Raises
    ------
    BadInput
        If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(html(document))
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from error


def html(document: Mapping) -> str:
    """The page. Whatever the document lacks is left out, or said to be missing."""
    rows = points.rows(document)
    columns = points.columns(rows)
    title = f"gdcore benchmark: {head.where(document)}"
    in_head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", _static("page.css")),
        tag("script", Markup("onerror = message => { document.documentElement.dataset.error = message }")),
    )
    body = tag(
        "body",
        tag("header", tag("h1", "gdcore benchmark"), head.banner(document), head.facts(document)),
        tag(
            "main",
            _section("What this run found", findings.found(document)),
            _section("What this machine can do", head.ceilings(document)),
            _controls(rows, columns),
            _section("Speed-up against stock, by shape", _by_column(columns, lambda c, _: heatmap.maps(rows, c))),
            *_plots(document),
            *_tables(document, rows, columns),
            _section("Words used here", tag("dl", *head.pairs(GLOSSARY.items()), class_="glossary")),
        ),
        tag("script", _static("page.js")),
    )
    return f"<!DOCTYPE html>\n{tag('html', in_head, body, lang='en')}\n"


def _static(name: str) -> Markup:
    return Markup((STATIC / name).read_text(encoding="utf-8"))


def _section(title: str, *content: object, about: str | None = None) -> Markup:
    return tag("section", tag("h2", title), tag("p", about, class_="about") if about else "", *content)


def _controls(rows: Sequence[Mapping], columns: Sequence[str]) -> Markup:
    """The clock, which needs no script; search and filters, which do and are hidden without."""
    parts = []
    if len(columns) > 1:
        choices = [
            tag(
                "label",
                tag("input", type="radio", name="column", value=name, id=f"column-{i}", checked=not i),
                f" {name}",
            )
            for i, name in enumerate((OWN, *columns))
        ]
        parts.append(tag("fieldset", tag("legend", "clock"), *choices))
    found = [speed_tables.marks(row) for row in rows]
    selects = []
    for name in ("op", "regime", "dtype", "verdict"):
        if values := sorted({str(value) for mark in found if (value := mark[f"data_{name}"])}):
            options = [tag("option", f"any {name}", value=""), *(tag("option", value, value=value) for value in values)]
            selects.append(tag("select", *options, id=f"filter-{name}", data_filter=name, aria_label=name))
    search = tag("input", type="search", id="search", placeholder="search: all words must occur", aria_label="search")
    count = tag("output", id="count", for_="search", aria_live="polite")
    parts.append(tag("div", search, *selects, count, id="finder", hidden=True))
    told = [(name, CLOCKS.get(name, "")) for name in (OWN, *columns)]
    clocks = tag("dl", *head.pairs(told), class_="glossary") if len(columns) > 1 else ""
    return joined([tag("div", *parts, class_="controls"), clocks])


def _by_column(columns: Sequence[str], render: Callable[[str | None, str], object]) -> Markup:
    """What `render` makes of each column and its name, of which the page shows the chosen one."""
    if len(columns) < 2:
        return joined([render(*(columns * 2 or (None, OWN)))])
    shown = [render(None, OWN), *(render(column, column) for column in columns)]
    return joined([tag("div", content, data_column=i) for i, content in enumerate(shown)])


def _plots(document: Mapping) -> list[Markup]:
    """The charts that have data."""
    every = (
        (
            "Roofline",
            charts.roofline(document),
            "Each case twice, stock and gdcore, joined by a line: higher is faster. Both are counted with the least FLOPs "
            "and bytes that the case needs, whatever they really do.",
        ),
        (
            "Errors",
            charts.errors(document),
            "Each output of each case. Below the full line gdcore is the more exact one; above the dashed one its error is "
            "more than twice stock's, which passes only where both are rounding.",
        ),
        (
            "Memory",
            charts.memory(document),
            "Peak memory of one call beyond what was held before it: further left is better.",
        ),
    )
    return [_section(title, chart, about=about) for title, chart, about in every if chart]


def _tables(document: Mapping, rows: Sequence[Mapping], columns: Sequence[str]) -> list[Markup]:
    """Every table that has rows."""
    found = []
    for kind, what in KINDS.items():
        if of_kind := [row for row in rows if row.get("kind") == kind]:
            more = tables.scores(of_kind) if kind == "run" else ""
            found.append(_section(f"Speed: {what}", _speed(kind, of_kind, columns), more))
    sections = (
        ("Parity", _by_kind(rows, tables.parity)),
        ("Memory of one call", _by_kind(rows, tables.memory)),
        ("Host time", document.get("host") and tables.host(document["host"])),
        ("Predicted and measured", (document.get("machine") or {}).get("device") == "cuda" and tables.held(rows)),
        (
            "Predicted for a GPU, not measured",
            document.get("predicted") and tables.predicted(document["predicted"]),
        ),
        ("Left out, failed, skipped", rows and tables.missing(rows)),
    )
    return found + [_section(title, content) for title, content in sections if content]


def _by_kind(rows: Sequence[Mapping], render: Callable[[Sequence[Mapping], str], Markup]) -> Markup:
    """A table for each kind of case: their peers and outputs differ."""
    return joined(render([row for row in rows if row.get("kind") == kind], kind) for kind in KINDS)


def _speed(kind: str, rows: Sequence[Mapping], columns: Sequence[str]) -> Markup:
    """The three tables of times, for each column."""

    def three(column: str | None, name: str) -> Markup:
        shown = [row for row in rows if points.no_figure(row) or _has(row, column)]
        if not shown:
            return tag("p", "No case has figures by this clock.", class_="quiet")
        whom = "stock (the for-loop) and the best peer" if kind == "sgd" else "stock and the best peer"
        clock = "each case by its own clock" if name == OWN else f"{name} time"
        return joined(
            [
                speed_tables.compared(shown, column, f"{kind}-{name}", f"gdcore against {whom}: {clock}"),
                speed_tables.every_peer(
                    shown, column, f"{kind}-peers-{name}", f"Every peer, median and p20 to p80: {clock}"
                ),
                speed_tables.noise(shown, column, f"{kind}-noise-{name}", f"A/A, gdcore against itself: {clock}"),
            ]
        )

    return _by_column(columns, three)


def _has(row: Mapping, column: str | None) -> bool:
    """Whether any peer was timed in this column."""
    return (column or row.get("column")) in points.columns([row])
