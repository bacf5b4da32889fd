"""The tables of a result document as headings and rows of text: the console, the README and the page print the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import words
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
from .words import duration, label, size, times

PEERS = {
    "linear_mse": (STOCK, COMPILED, TUNED, GRAPHED_COMPILED, FUNCTIONAL, LIBRARY, FOLDED, GRAPH, JAX, OURS),
    "sgd": (LOOP, FOREACH, STOCK_FUSED, COMPILED, OURS),
    "run": (STOCK, COMPILED, LIBRARY, GRAPH, JAX, SKLEARN, STEPS, GRAM, OURS),
}
TITLES = {
    "linear_mse": "Loss, gradients, training steps",
    "sgd": "One step of the optimizer",
    "run": "Whole training runs",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the headings, and rows of as many cells; the first column is words, the others are figures."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def all_of(document: Mapping) -> list[Table]:
    """Every table that has rows."""
    found = [parity(document), *(speed(document, kind) for kind in PEERS), columns(document), held(document)]
    found += [memory(document), host(document["host"]), predicted(document["predicted"])]
    return [table for table in found if table.rows]


def parity(document: Mapping) -> Table:
    """Errors against float64, next to stock's."""
    rows = []
    for row in document["cases"].values():
        found = row.get("peers", {}).get(OURS, {}).get("parity")
        if found is None:
            rows.append([label(row), words.why_not(row), "", ""])
            continue
        names = words.GRADIENTS if row["op"] == "backward" else {}
        errors = [
            f"{names.get(name, name)} {words.difference(float(error))} / "
            f"{words.difference(float(found['stock_errors'][name]))}"
            for name, error in found["errors"].items()
        ]
        ratio = "" if found["worst_ratio"] is None else f"{float(found['worst_ratio']):.2f}"
        rows.append([label(row), ", ".join(errors), ratio, "ok" if found["passed"] else "FAILS"])
    heads = ("case", "relative error against float64: gdcore's / stock's", "worst ratio", "")
    return Table("Parity", heads, rows)


def speed(document: Mapping, kind: str) -> Table:
    """Medians of the peers that have any, and gdcore against stock and against the best of them."""
    rows = words.of_kind(document, kind)
    shown = [peer for peer in PEERS[kind] if any(words.median(row, peer) for row in rows)]
    lines = []
    for row in rows:
        first = [label(row), row.get("plan", {}).get("path", "")] if kind != "sgd" else [label(row)]
        if not words.timed([row]):
            lines.append([*first, *[""] * (len(shown) + 3), words.why_not(row)])
            continue
        stock, best = words.against(row), row["best"].get(row["column"])
        lines.append(
            [
                *first,
                *(words.median(row, peer) for peer in shown),
                f"{times(stock['speedup'])} ({stock['low']:.2f} to {stock['high']:.2f})" if stock else "",
                f"{times(best['speedup'])} of {words.TITLES[best['baseline']]}" if best else "",
                best["verdict"].lower() if best else "",
                words.of_the_floor(row),
            ]
        )
    path = ("path",) if kind != "sgd" else ()
    titles = [words.TITLES[peer] for peer in shown]
    heads = ("case", *path, *titles, "against stock (95 %)", "against the best", "verdict", "of the floor")
    machine = words.device_label(document["machine"])
    note = (
        "Medians, in the column that suits the case. Verdict: against the best right peer. Of the floor: the time that the "
        "least bytes or FLOPs need at this run's ceilings, over gdcore's. Wrong: off by more than twice stock's error."
    )
    return Table(f"{TITLES[kind]}, {machine}", heads, lines, note)


def columns(document: Mapping) -> Table:
    """Where there is more than one clock: gdcore and the best other peer by each."""
    rows = []
    for row in document["cases"].values():
        measured = row.get("best", {})
        if len(measured) > 1:
            cells = []
            for column in ("device", "replay", "wall"):
                ours, best = row["peers"][OURS]["times"].get(column), measured.get(column)
                cells.append(
                    f"{duration(ours['p50'])}, {times(best['speedup'])} of {words.TITLES[best['baseline']]}"
                    if ours and best
                    else ""
                )
            rows.append([label(row), *cells])
    heads = ("case", "device time, cold cache", "graph replay, no launches", "wall time, end to end")
    return Table("gdcore by each clock, against the best other", heads, rows)


def memory(document: Mapping) -> Table:
    """Peak of one call beyond its inputs."""
    rows = words.of_kind(document, "linear_mse")
    rows = [row for row in rows if any("peak_bytes" in entry for entry in row.get("peers", {}).values())]
    shown = [p for p in PEERS["linear_mse"] if any("peak_bytes" in row["peers"].get(p, {}) for row in rows)]
    lines = []
    for row in rows:
        peaks = [row["peers"].get(peer, {}).get("peak_bytes") for peer in shown]
        matrix = size(row["n"] * row["m"] * {"float64": 8, "float32": 4}.get(row["dtype"], 2))
        lines.append([label(row), matrix, *("" if peak is None else size(peak) for peak in peaks)])
    heads = ("case", "an N × M matrix", *(words.TITLES[peer] for peer in shown))
    return Table(f"Extra memory: peak of one call, {words.device_label(document['machine'])}", heads, lines)


def held(document: Mapping) -> Table:
    """On a GPU: what the plan's model said, beside what the device clock says."""
    lines = []
    for row, predicted, measured in words.held_predictions(document):
        path = row["plan"].get("path", "")
        lines.append([label(row), path, duration(predicted), duration(measured), times(measured / predicted)])
    heads = ("case", "path", "predicted", "measured", "ratio")
    return Table("Predicted and measured, device time", heads, lines, words.how_predictions_held(document))


def host(found: Mapping) -> Table:
    """What a call costs the host."""
    lines = []
    for name, row in found.get("rows", {}).items():
        stock = next(peer for peer in row["peers"] if peer != OURS)
        theirs, ours = row["peers"][stock]["p50"], row["peers"][OURS]["p50"]
        lines.append([name, row["what"], duration(theirs), duration(ours), times(theirs / ours)])
    heads = ("call", "to", "stock", "gdcore", "times as fast")
    return Table(
        "Host time from the call to the launch, Triton's own launcher not included", heads, lines, found.get("what", "")
    )


def predicted(rows: Sequence[Mapping]) -> Table:
    """Times and floors on a GPU that was not there; older files have floors alone."""
    lines = []
    modelled = any("predicted_seconds" in row for row in rows)

    def _model(row: Mapping) -> list[str]:
        if not modelled:
            return []
        return [
            duration(row[name]) if row.get(name) else "" for name in ("predicted_seconds", "stock_predicted_seconds")
        ]

    for row in words.shown_predictions(rows):
        compiled = row["compiled"] or {}
        lines.append(
            [
                f"{words.shape(row)}{'' if row['dtype'] == 'float32' else ' ' + row['dtype']}",
                row["path"],
                size(row["bytes"]),
                size(row["stock_bytes"]),
                *_model(row),
                duration(row["floor_seconds"]),
                duration(row["stock_floor_seconds"]),
                row["bound_by"],
                str(compiled.get("registers", "")),
                words.share(compiled["occupancy"]) if compiled else "",
            ]
        )
    heads = (
        "N × K × M",
        "path",
        "moves",
        "stock moves",
        *(("predicted", "stock predicted") if modelled else ()),
        "floor",
        "stock's floor",
        "bound by",
        "registers",
        "occupancy",
    )
    device = rows[0]["device"] if rows else ""
    note = "Floor: bytes over bandwidth or FLOPs over rate, whichever is longer; a real call takes longer."
    if modelled:
        note = f"Predicted: every launch of the path by the model of gdcore/cost.py, stock's by the same. {note}"
    return Table(f"PREDICTED for one {device}, nothing here was measured", heads, lines, note)
