"""The page's tables of times: gdcore against stock and the best peer, every peer, and the A/A run."""

import math
from collections.abc import Callable, Mapping, Sequence

from .. import words
from ..peers import OURS
from . import points
from .markup import Cell, Markup, joined, small, table, tag

Rows = Sequence[Mapping]


def marks(row: Mapping, column: str | None = None) -> dict[str, object]:
    """By what the page finds a case's row."""
    found = points.headline(row, column)
    return {
        "data_search": row.get("name"),
        "data_op": row.get("op"),
        "data_regime": row.get("regime"),
        "data_dtype": row.get("dtype") or " ".join(row.get("dtypes") or ()) or None,
        "data_verdict": found and found.get("verdict"),
    }


def head(row: Mapping) -> Markup:
    """A case as a row's heading."""
    return joined([points.subject(row), small(points.details(row))])


def seconds(value: object) -> Cell | None:
    """A duration, or nothing."""
    found = points.positive(value)
    return found and Cell(words.duration(found), found)


def bytes_(value: object) -> Cell | None:
    """An amount of memory, or nothing."""
    found = points.number(value)
    return None if found is None or not 0 <= found < math.inf else Cell(words.size(found), found)


def error(value: object) -> Cell | None:
    """A relative error: 3.1e-08, 0 where it is exact, or nothing."""
    found = points.number(value)
    return None if found is None else Cell(f"{found:.1e}" if found else "0", math.inf if found != found else found)


def badge(verdict: object) -> Markup:
    """A verdict, coloured and written out."""
    known = verdict if verdict in points.VERDICTS else "UNSURE"
    return tag("span", verdict or "?", class_=f"badge {str(known).lower()}")


def timing(peer: Mapping | None, column: str | None) -> Cell | None:
    """Median, and p20 to p80 below it."""
    found = points.dig(peer, "times", column) or {}
    p50 = points.positive(found.get("p50"))
    if p50 is None:
        short = "failed" if "failure" in (peer or {}) else None
        return short and Cell(short, kind="none")
    low, high = points.positive(found.get("p20")), points.positive(found.get("p80"))
    spread = small(words.spread(low, high, like=p50)) if low and high else ""
    return Cell(joined([words.duration(p50), spread]), p50, "number")


def speedup(found: Mapping | None, whose: bool = False) -> Cell | None:
    """A ratio and its verdict, below them its interval and, where that is asked for, whom it is against."""
    if not found:
        return None
    second = [points.title(found.get("baseline"))] if whose else []
    low, high = (points.number(found.get(end)) for end in ("low", "high"))
    if None not in (low, high):
        second.append(f"{words.three_digits(low)} to {words.three_digits(high)}")
    ratio = float(found["speedup"])
    return Cell(joined([words.times(ratio), " ", badge(found.get("verdict")), *map(small, second)]), ratio, "number")


def compared(rows: Rows, column: str | None, name: str, what: str) -> Markup:
    """gdcore against stock and the best peer, the floor, and what was predicted."""

    def of_the_floor(row: Mapping) -> Cell | None:
        ours, floor = points.median(row, OURS, column), points.positive(row.get("floor_seconds"))
        return Cell(words.share(floor / ours), floor / ours) if ours and floor else None

    def verdict(row: Mapping) -> Cell | None:
        if points.headline(row, column):
            return speedup(points.against(row, column))
        why = points.no_figure(row)
        return Cell(f"{'skipped' if 'skipped' in row else 'no figure'}: {why}" if why else "no figure", kind="why")

    columns: dict[str, Callable[[Mapping], Cell | None]] = {}
    if column is None:
        columns["clock"] = lambda row: Cell(row["column"]) if points.headline(row) else None
    columns |= {
        "stock\nmedian": lambda row: seconds(points.median(row, points.stock(row), column)),
        "gdcore\nmedian": lambda row: seconds(points.median(row, OURS, column)),
        "against stock\n95 % interval": verdict,
        "against the best peer\nwhich, 95 % interval": lambda row: speedup(points.best(row, column), whose=True),
        "floor\nbound by": lambda row: below(seconds(row.get("floor_seconds")), row.get("bound_by")),
        "of the floor": of_the_floor,
        "path\npredicted for one call": _predicted,
    }
    return table(name, what, rows, "case", head, columns, lambda row: marks(row, column))


def below(cell: Cell | None, more: object) -> Cell | None:
    return cell and Cell(joined([cell.content, small(more or "")]), cell.value)


def _predicted(row: Mapping) -> Cell | None:
    """The plan's path and time, and why the measured one is another."""
    predicted = points.positive(points.dig(row, "plan", "predicted_seconds"))
    parts: list[object] = [points.dig(row, "plan", "path") or ""]
    if predicted:
        parts.append(small(words.duration(predicted)))
    if row.get("explained"):
        parts.append(tag("p", row["explained"], class_="why"))
    return Cell(joined(parts), predicted, "path") if any(parts) else None


def every_peer(rows: Rows, column: str | None, name: str, what: str) -> Markup:
    """Every peer's median and p20 to p80."""

    def of(peer: str) -> Callable[[Mapping], Cell | None]:
        return lambda row: timing(points.dig(row, "peers", peer), column or row.get("column"))

    columns = {points.title(peer): of(peer) for peer in points.peers(rows)}
    return table(name, what, rows, "case", head, columns, lambda row: marks(row, column))


def noise(rows: Rows, column: str | None, name: str, what: str) -> Markup:
    """gdcore against itself, and the clocks."""

    def end(which: str) -> Callable[[Mapping], Cell | None]:
        def cell(row: Mapping) -> Cell | None:
            value = points.positive(points.dig(row, "noise", column or row.get("column"), which))
            return value and Cell(f"{value:.3f}x", value)

        return cell

    def clocks(row: Mapping) -> Cell | None:
        found = row.get("clocks")
        if not found:
            return None
        before, after, top = (found.get(key, "?") for key in ("before_mhz", "after_mhz", "max_mhz"))
        return Cell(joined([f"{before} → {after} of {top} MHz", small(found.get("throttled") or "not throttled")]))

    columns = {"measured": end("speedup"), "from": end("low"), "to": end("high"), "GPU clock": clocks}
    rows = [row for row in rows if points.dig(row, "noise", column or row.get("column"))]
    return table(name, what, rows, "case", head, columns, lambda row: marks(row, column))
