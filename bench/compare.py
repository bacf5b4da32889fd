"""Two runs, before and after, side by side: `python -m gdcore.bench compare A.json B.json`. What it judges by: changes.py."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import results, words
from .changes import BETTER, REGRESSION, SAME, UNJUDGED, UNSURE, Finding, Ratio, compare, differences
from .peers import OURS

COLOURS = {REGRESSION: "red", UNJUDGED: "yellow", UNSURE: "yellow", SAME: "cyan", BETTER: "green"}
TABLE_WIDTH = 150


def heading(before: Mapping, after: Mapping, paths: Sequence[object]) -> list[str]:
    """Which runs these are, and what to make of their differences."""
    lines = [
        f"{when}: {path}, {document['created']}, commit {document['commit'] or 'none'}, profile {document['profile']}"
        for when, path, document in zip(("before", "after "), paths, (before, after), strict=True)
    ]
    if different := differences(before, after):
        lines.append(
            f"DIFFERENT: {'; '.join(different)}. Absolute times of the two are not comparable; "
            "judged is the time relative to stock in the same run."
        )
    for here, there, where in ((before, after, "before"), (after, before, "after")):
        if missing := [name for name in here["cases"] if name not in there["cases"]]:
            lines.append(f"only {where}: {words.listed(missing)}")
    return lines


def table(findings: Sequence[Finding], peer: str) -> Table:
    """All findings, in their order."""
    found = Table(
        title=f"{peer}, after against before",
        caption="Change: after over before, median and 95 % interval. Against stock: the same of the time over stock's.",
        box=box.SIMPLE,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )
    found.add_column("case", overflow="fold")
    for name in ("of", "before", "after", "change", "against\nstock"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("verdict", overflow="fold")
    for f in findings:
        ratios = map(_ratio, (f.absolute, f.relative))
        said = f"[{COLOURS[f.verdict]}]{f.verdict}[/]\n[dim]{escape(f.why)}[/]"
        found.add_row(escape(f.case), f.what, f.before, f.after, *ratios, said)
    return found


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{words.times(ratio.value)}\n[dim]{ratio.low:.2f}–{ratio.high:.2f}[/]"


def summary(findings: Sequence[Finding], threshold: float) -> str:
    """One line."""
    counts = {name: sum(finding.verdict == name for finding in findings) for name in COLOURS}
    said = [f"{count} {name.lower()}" for name, count in counts.items() if count and name != REGRESSION]
    number = counts[REGRESSION]
    regressions = f"{number or 'no'} regression{'s' * (number != 1)} beyond {100 * threshold:g} %"
    return f"{len(findings)} comparisons: {words.listed([regressions, *said])}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`compare`: its arguments."""
    parser.description = (
        "Compares two result files. Exit status: 0 without regressions, 1 with at least one, 2 for bad input."
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument("--threshold", type=float, default=5.0, metavar="PERCENT", help="what is too much (default: 5)")
    parser.add_argument("--column", help="only this one: wall, device or replay")
    parser.add_argument("--peer", default=OURS, help=f"whose figures (default: {OURS})")


def command(options: argparse.Namespace) -> int:
    """`compare`: prints what changed; 1 where something regressed."""
    if not 0 < options.threshold < math.inf:
        raise results.BadInput(f"--threshold is {options.threshold:g}, it must be a percentage above 0")
    threshold, paths = options.threshold / 100, (options.before, options.after)
    before, after = map(results.read, paths)
    findings = compare(before, after, threshold=threshold, column=options.column, peer=options.peer)
    console = Console(highlight=False)
    for line in heading(before, after, paths):
        console.print(escape(line), soft_wrap=True)
    wide = Console(highlight=False, width=max(console.width, TABLE_WIDTH))
    wide.print(table(findings, options.peer))
    console.print(summary(findings, threshold), soft_wrap=True)
    return int(any(finding.verdict == REGRESSION for finding in findings))
