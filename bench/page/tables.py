"""The page's other tables: parity, memory, training runs, host time, predictions, and what has no figure."""

from collections.abc import Callable, Mapping, Sequence

from .. import words
from ..peers import OURS, STOCK
from . import points
from .markup import Cell, Markup, joined, small, table, tag
from .speed_tables import below, bytes_, error, head, marks, seconds, timing

Rows = Sequence[Mapping]


def parity(rows: Rows, kind: str) -> Markup:
    """A row for each output of each case: gdcore's error, stock's, their ratio, and the other peers' errors."""
    lines = []
    for row in rows:
        found = points.dig(row, "peers", OURS, "parity") or {}
        lines += [(row, output, found) for output in found.get("errors") or {}]

    def ratio(line: tuple) -> Cell | None:
        ours, stock = (points.number(points.dig(line[2], part, line[1])) for part in ("errors", "stock_errors"))
        return Cell(f"{ours / stock:.2f}", ours / stock) if stock and ours is not None else None

    def judged(line: tuple) -> Cell:
        if line[2].get("passed"):
            return Cell("ok", 0)
        return Cell(f"FAILS: {'; '.join(map(str, line[2].get('failures') or []))}", 1, "why")

    def of(peer: str) -> Callable[[tuple], Cell | None]:
        return lambda line: error(points.dig(line[0], "peers", peer, "parity", "errors", line[1]))

    columns = {
        "output": lambda line: Cell(words.GRADIENTS.get(line[1], line[1])),
        "gdcore": of(OURS),
        "stock": lambda line: error(points.dig(line[2], "stock_errors", line[1])),
        "gdcore\nover stock": ratio,
        "parity": judged,
    }
    columns |= {points.title(peer): of(peer) for peer in points.peers(rows) if peer not in (OURS, STOCK)}
    what = "Relative error against float64 by output: gdcore's, stock's, and the other peers'"
    return table(
        f"parity-{kind}", what, lines, "case", lambda line: head(line[0]), columns, lambda line: marks(line[0])
    )


def memory(rows: Rows, kind: str) -> Markup:
    """Peak memory of one call by peer."""

    def of(peer: str) -> Callable[[Mapping], Cell | None]:
        return lambda row: bytes_(points.dig(row, "peers", peer, "peak_bytes"))

    rows = [row for row in rows if any("peak_bytes" in peer for peer in (row.get("peers") or {}).values())]
    columns = {points.title(peer): of(peer) for peer in points.peers(rows)}
    return table(
        f"memory-{kind}", "Peak memory of one call beyond what was held before it", rows, "case", head, columns, marks
    )


def scores(rows: Rows) -> Markup:
    """What was learnt: the metric by peer, and what differs."""

    def of(peer: str) -> Callable[[Mapping], Cell | None]:
        def cell(row: Mapping) -> Cell | None:
            value = points.number(points.dig(row, "peers", peer, "score"))
            return None if value is None else Cell(f"{value:.4f}", value)

        return cell

    def problems(row: Mapping) -> Cell:
        return Cell(
            "; ".join(map(str, row.get("problems") or [])) or "none", kind="why" if row.get("problems") else None
        )

    columns: dict = {"metric": lambda row: Cell(row.get("metric") or "?")}
    columns |= {points.title(peer): of(peer) for peer in points.peers(rows)}
    columns |= {"problems": problems}
    return table("scores", "What each run has learnt, by peer", rows, "run", head, columns, marks)


def host(found: Mapping) -> Markup:
    """From the call to the launch."""
    if found.get("failure"):
        return tag("p", f"No host times: {found['failure']}", class_="quiet")
    lines = [{**row, "name": name} for name, row in (found.get("rows") or {}).items()]

    def of(peer: str) -> Callable[[Mapping], Cell | None]:
        return lambda row: timing({"times": {"host": points.dig(row, "peers", peer)}}, "host")

    columns = {points.title(peer): of(peer) for peer in points.peers(lines)}
    what = str(found.get("what") or "from the call to the launch")
    what = f"{what[:1].upper()}{what[1:]}; median, p20 to p80"
    return table("host", what, lines, "call", lambda row: joined([row["name"], small(row.get("what") or "")]), columns)


def held(rows: Rows) -> Markup | None:
    """The plan's model beside the device clock, case by case; None where nothing can be compared."""

    def both(row: Mapping) -> tuple[float, float] | None:
        predicted = points.positive(points.dig(row, "plan", "predicted_seconds"))
        measured = points.median(row, OURS, "device")
        return (predicted, measured) if predicted and measured else None

    rows = [row for row in rows if row.get("kind") == "linear_mse" and both(row)]
    if not rows:
        return None
    ratios = sorted(found[1] / found[0] for row in rows if (found := both(row)))

    def ratio(row: Mapping) -> Cell | None:
        found = both(row)
        return found and Cell(words.times(found[1] / found[0]), found[1] / found[0])

    columns = {
        "path": lambda row: Cell(points.dig(row, "plan", "path") or ""),
        "predicted": lambda row: seconds(points.dig(row, "plan", "predicted_seconds")),
        "measured\ndevice time": lambda row: seconds(points.median(row, OURS, "device")),
        "ratio": ratio,
    }
    middle = words.times(ratios[len(ratios) // 2])
    what = (
        f"Measured over predicted: {middle} in the median case, {words.times(ratios[0])} to {words.times(ratios[-1])}"
    )
    return table("held", what, rows, "case", head, columns, marks)


def predicted(rows: Rows) -> Markup:
    """What plan and compiled code say of a GPU."""

    def stock_and_ours(ours: str, stock: str, cell: Callable[[object], Cell | None]) -> Callable:
        def both(row: Mapping) -> Cell | None:
            first, second = cell(row.get(ours)), cell(row.get(stock))
            return below(first, second and f"stock {second.content}")

        return both

    def compiled(row: Mapping) -> Cell | None:
        found = row.get("compiled") or {}
        share = points.number(found.get("occupancy"))
        below = small(f"{words.share(share)} occupancy") if share is not None else ""
        return Cell(joined([f"{found['registers']} registers", below])) if "registers" in found else None

    columns = {
        "device": lambda row: Cell(joined([row.get("device") or "?", small("PREDICTED")])),
        "path\nwhy": lambda row: Cell(joined([row.get("path") or "", small(row.get("why") or "")]), kind="why"),
        "moves\nstock moves": stock_and_ours("bytes", "stock_bytes", bytes_),
        "predicted\nstock predicted": stock_and_ours("predicted_seconds", "stock_predicted_seconds", seconds),
        "floor\nstock's floor": stock_and_ours("floor_seconds", "stock_floor_seconds", seconds),
        "bound by": lambda row: Cell(row.get("bound_by") or ""),
        "compiled code": compiled,
    }
    what = "PREDICTED, not measured: by the plan's model, and the least time that bytes and FLOPs need"
    rows = [{"label": words.shape(row), "name": row.get("case"), **row} for row in rows]
    return table("predicted", what, rows, "N × K × M", head, columns, marks)


def missing(rows: Rows) -> Markup:
    """Who has no figure, and why: cases with the same reason share a row."""
    reasons: dict[tuple[str, str, str], list[Mapping]] = {}

    def add(who: str, what: str, why: object, row: Mapping) -> None:
        reasons.setdefault((who, what, str(why)), []).append(row)

    for row in rows:
        if "skipped" in row:
            add("all", "skipped", row["skipped"], row)
        if row.get("failed"):
            add(OURS, "no figure", row["failed"], row)
        for name, peer in (row.get("peers") or {}).items():
            for key, what in (("failure", "failed"), ("left_out", "left out")):
                if key in peer:
                    add(points.title(name), what, peer[key], row)
            for column, why in (peer.get("no_time") or {}).items():
                add(points.title(name), f"no {column} time", why, row)

    def cases(line: tuple) -> Cell:
        named = [points.sentence(row) for row in line[1]]
        if len(named) == 1:
            return Cell(named[0], 1, "why")
        return Cell(tag("details", tag("summary", f"{len(named)} cases"), "; ".join(named)), len(named), "why")

    def found_by(line: tuple) -> dict[str, object]:
        return {"data_search": " ".join(str(row.get("name")) for row in line[1])}

    columns = {
        "what": lambda line: Cell(line[0][1]),
        "why": lambda line: Cell(line[0][2], kind="why"),
        "cases": cases,
    }
    what = "Peers and cases without figures, and why"
    return table("missing", what, list(reasons.items()), "who", lambda line: line[0][0], columns, found_by)
