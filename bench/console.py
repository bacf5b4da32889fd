"""The console: what is about to be done, a line a case as it comes, how far it is, and at the end tables and findings."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from . import findings, tables, words
from .peers import LIBRARY, OURS

COLOURS = {"FASTER": "green", "SLOWER": "red", "SAME": "cyan", "UNSURE": "yellow"}
LINE_WIDTH, TABLE_WIDTH = 120, 1_000  # a table takes what its cells need
# Of the table that grows while cases are measured: the case takes what the place and the figures leave.
FIGURES = (("stock", 8), ("by hand", 8), ("gdcore", 8), ("against", 7), ("best", 7), ("", 6))
CASE_WIDTHS = 16, 46


def make_console() -> Console:
    """Wide enough for the lines when the output is a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=LINE_WIDTH)


class Steps:
    """How far the run is: a table that grows by a line a case, and on a terminal a bar with the time left below it.

    The bar is redrawn between steps only: a thread that redraws it would disturb what is measured.
    """

    def __init__(self, console: Console, expected: Sequence[float]) -> None:
        self._console = console
        self._remaining, self._done, self._count, self._number = sum(expected), 0.0, len(expected), 0
        self._start = time.perf_counter()
        self._headed = False
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[left]}"))
            self._bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("", total=self._remaining, left="")

    def __enter__(self) -> "Steps":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _left(self) -> str:
        """The time left, as the expected time scaled by how the expectation has held so far."""
        elapsed = time.perf_counter() - self._start
        pace = min(4.0, max(0.25, elapsed / self._done)) if self._done else 1.0
        return f"about {max(0.0, self._remaining) * pace:.0f} s left"

    @contextmanager
    def step(self, title: str, expected: float) -> Iterator[list]:
        """One piece of work. What it appends to the list it is given, a row or words, is shown at its end."""
        self._number += 1
        place = f"[{self._number}/{self._count}]"
        if self._bar:
            self._bar.update(self._task, description=escape(f"{place} {title}"), left=self._left(), refresh=True)
        said: list = []
        start = time.perf_counter()
        yield said
        self._remaining, self._done = self._remaining - expected, self._done + expected
        if self._bar:
            self._bar.update(self._task, advance=expected)
        took = f"{time.perf_counter() - start:.1f} s" + ("" if self._bar else f"; {self._left()}")
        (found,) = said
        if isinstance(found, Mapping):
            self._case(place, found, took)
        else:
            self._console.print(escape(f"{place} {title}: {found} ({took})"), soft_wrap=True)

    def _case(self, place: str, row: Mapping, took: str) -> None:
        """A line of the growing table; in words where there is no figure."""
        name = words.label(row)
        if not words.timed([row]):
            self._console.print(
                f"[yellow]{escape(f'{place} {name}: {words.why_not(row)} ({took})')}[/]", soft_wrap=True
            )
            return
        table = Table(box=None, show_header=not self._headed, pad_edge=False, collapse_padding=True)
        self._headed = True
        place_width = len(f"[{self._count}/{self._count}]")
        left = self._console.width - place_width - 1 - sum(1 + width for _, width in FIGURES)
        table.add_column("", width=place_width, no_wrap=True, justify="right")
        table.add_column("case", width=max(CASE_WIDTHS[0], min(CASE_WIDTHS[1], left)), overflow="fold")
        for head, width in FIGURES:
            table.add_column(head, width=width, no_wrap=True, justify="right")
        stock, best = words.against(row), row["best"].get(row["column"])
        table.add_row(
            escape(place),
            escape(name),
            words.median(row, words.stock_of(row)),
            words.median(row, LIBRARY),
            words.median(row, OURS),
            words.times(stock["speedup"]) if stock else "",
            words.times(best["speedup"]) if best else "",
            f"[{COLOURS[best['verdict']]}]{best['verdict'].lower()}[/]" if best else "",
        )
        self._console.print(table)


def header(console: Console, document: Mapping, path: object) -> None:
    """What runs, where, and what the figures are."""
    machine, versions = document["machine"], document["versions"]
    on_gpu = machine["device"] == "cuda"
    console.print(
        f"[bold]gdcore benchmark[/], profile {document['profile']}: gdcore against stock PyTorch and other peers"
    )
    kind = (
        "GPU figures" if on_gpu else "CPU figures: no GPU here. What is said of GPUs below is predicted, not measured"
    )
    rows = [
        ("figures", kind),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"),
        ("threads", str(machine["threads"])),
        ("versions", ", ".join(f"{n} {v or 'missing'}" for n, v in versions.items() if n != "cuda" or v)),
        ("commit", f"{document['commit'] or 'none'}, seed {document['seed']}"),
        ("saved in", f"{path}, after every step; go on with --resume {path}"),
    ]
    if on_gpu:
        gpu = f"{machine['gpu']}, {machine['sms']} SMs, {machine['gpu_memory_gib']} GiB, driver {machine['driver']}"
        rows.insert(1, ("device", gpu))
    for name, text in rows:
        console.print(f"  {name:<9} {escape(text)}", soft_wrap=True)
    for sentence in findings.busy(document):
        console.print(f"[yellow]  {escape(sentence)}[/]", soft_wrap=True)
    console.print()


def ceilings_line(document: Mapping) -> str:
    """What the machine can do, as measured in this run."""
    found = document["ceilings"]
    products = ", ".join(f"{name} product {rate / 1e9:,.0f} GFLOP/s" for name, rate in found["product"].items())
    return f"this machine reads {found['read'] / 1e9:.1f} GB/s, copies {found['copy'] / 1e9:.1f} GB/s (read + write); {products}"


def summary(console: Console, document: Mapping) -> None:
    """All tables, then the findings in words."""
    console.print()
    # On a narrow terminal lines wrap, but no figure is cut off.
    wide = Console(file=console.file, width=max(console.width, TABLE_WIDTH), force_terminal=console.is_terminal)
    for table in tables.all_of(document):
        wide.print(_rich(table))
        wide.print()
    console.print(
        "[bold]What this run found[/]" + ("" if document["machine"]["device"] == "cuda" else " (CPU figures)")
    )
    for sentence in findings.findings(document):
        console.print(f"  - {escape(sentence)}", soft_wrap=True)


def _rich(table: tables.Table) -> Table:
    drawn = Table(
        title=escape(table.title),
        caption=escape(table.note) or None,
        box=box.SIMPLE,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )
    for number, head in enumerate(table.heads):
        drawn.add_column(escape(head.replace(", ", ",\n")), justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*(escape(cell) for cell in row))
    return drawn
