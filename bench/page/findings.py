"""What a run found, at the head of the page: verdicts counted, every loss named, parity, noise. Works on unfinished runs."""

from collections.abc import Mapping, Sequence

from .. import words
from ..peers import OURS
from . import points
from .markup import Markup, items, joined, tag
from .speed_tables import badge

OPPONENTS = (("stock", points.against), ("the best peer", points.best))


def found(document: Mapping) -> Markup:
    """Counts as a table, then sentences; where gdcore loses is listed in full."""
    rows = points.rows(document)
    lines = [*_parity(rows), *_noise(rows), *_others(rows)]
    return joined([_counts(rows), *_losses(rows), items(lines)])


def _counts(rows: Sequence[Mapping]) -> Markup:
    body = []
    for op in points.ordered([row.get("op") for row in rows], points.OPS):
        lines = []
        for name, compare in OPPONENTS:
            verdicts = [one.get("verdict") for row in rows if row.get("op") == op and (one := compare(row))]
            if verdicts:
                cells = [verdicts.count(verdict) or "–" for verdict in points.VERDICTS]
                lines.append([tag("td", name), *(tag("td", count) for count in cells)])
        for i, cells in enumerate(lines):
            what = f"{words.OPS.get(op, '')} ({op})".strip()
            first = tag("th", what, scope="rowgroup", rowspan=len(lines)) if i == 0 else ""
            body.append(tag("tr", first, *cells))
    if not body:
        return tag("p", "This run holds no speed figures.", class_="quiet")
    heads = ["what", "gdcore against", *(badge(verdict) for verdict in points.VERDICTS)]
    caption = "Cases by verdict, each by its own clock"
    inside = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in heads))),
        tag("tbody", *body),
        class_="counts",
    )
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _losses(rows: Sequence[Mapping]) -> list[Markup]:
    """Every case in which stock, or another peer, is faster."""
    stock_wins, peer_wins = [], []
    timed = [row for row in rows if points.headline(row)]
    for row in timed:
        stock, best = points.against(row), points.best(row)
        if stock and stock.get("verdict") == "SLOWER":
            ratio = words.times(float(stock["speedup"]))
            stock_wins.append(f"{points.sentence(row)}: gdcore reaches {ratio} of its speed")
        if best and best.get("verdict") == "SLOWER" and best.get("baseline") != points.stock(row):
            whose, ratio = points.title(best.get("baseline")), words.times(float(best["speedup"]))
            peer_wins.append(f"{points.sentence(row)}: {whose}; gdcore reaches {ratio} of its speed")
    if timed and not stock_wins + peer_wins:
        return [tag("p", "No peer wins beyond the noise.")]
    return [
        tag("details", tag("summary", f"{who} in {len(cases)} of {len(timed)} cases"), items(cases), open=True)
        for who, cases in (("Stock wins", stock_wins), ("Another peer wins", peer_wins))
        if cases
    ]


def _parity(rows: Sequence[Mapping]) -> list[object]:
    checked = [(row, parity) for row in rows if (parity := points.dig(row, "peers", OURS, "parity"))]
    failed = [(row, parity) for row, parity in checked if not parity.get("passed")]
    if not checked:
        return ["Parity with float64 was not checked."]
    lines: list[object] = [
        f"Parity with float64: {len(checked) - len(failed)} of {len(checked)} cases pass "
        "(every output at most twice as far off as stock's, plus rounding)."
    ]
    for row, parity in failed:
        why = "; ".join(map(str, parity.get("failures") or ["it says not why"]))
        lines.append(tag("strong", f"Parity FAILS at {points.sentence(row)}: {why}"))
    return lines


def _noise(rows: Sequence[Mapping]) -> list[str]:
    """The A/A runs, and whether the GPU held back."""
    itself = [points.positive(points.dig(row, "noise", row.get("column"), "speedup")) for row in rows]
    off = sorted(abs(speedup - 1) for speedup in itself if speedup)
    lines = []
    if off:
        lines.append(
            f"Noise: gdcore against itself, timed the same way, differs by {100 * off[len(off) // 2]:.1f} % in the middle case "
            f"and {100 * off[-1]:.1f} % in the worst; FASTER and SLOWER must lie beyond the 95 % interval of that."
        )
    for row in rows:
        if why := points.dig(row, "clocks", "throttled"):
            lines.append(f"The clocks were throttled at {points.sentence(row)}: {why}.")
    return lines


def _others(rows: Sequence[Mapping]) -> list[object]:
    """Runs that differ, cases without a figure, and how often other peers failed."""
    lines: list[object] = []
    for row in rows:
        lines += [tag("strong", f"{points.sentence(row)}: {problem}") for problem in row.get("problems") or []]
        if (why := points.no_figure(row)) and not points.headline(row):
            lines.append(f"No figure for gdcore at {points.sentence(row)}: {why}")
    entries = [entry for row in rows for name, entry in (row.get("peers") or {}).items() if name != OURS]
    if failed := sum("failure" in entry for entry in entries):
        lines.append(
            f"Other peers failed {failed} time{'s' if failed != 1 else ''}; the last table says where and why."
        )
    return lines
