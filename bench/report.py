"""The console: what is about to be done, how far it is, and at the end tables and the findings in words."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from . import sgd_words, words
from .peers import COMPILED, FUSED, OURS, STOCK

COLOURS = {"FASTER": "green", "SLOWER": "red", "SAME": "cyan", "UNSURE": "yellow"}

TABLE_WIDTH = 150


def make_console() -> Console:
    """Wide enough for the tables when the output is a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


class Steps:
    """How far the run is: a bar with the time left on a terminal, a line a step otherwise.

    The bar is redrawn between steps only: a thread that redraws it would disturb what is measured.
    """

    def __init__(self, console: Console, expected: Sequence[float]) -> None:
        self._console = console
        self._remaining, self._done, self._count, self._number = sum(expected), 0.0, len(expected), 0
        self._start = time.perf_counter()
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
    def step(self, title: str, expected: float) -> Iterator[list[str]]:
        """One piece of work. What it appends to the list it is given is said at its end."""
        self._number += 1
        place = f"[{self._number}/{self._count}]"
        if self._bar:
            self._bar.update(self._task, description=escape(f"{place} {title}"), left=self._left(), refresh=True)
        said: list[str] = []
        start = time.perf_counter()
        yield said
        self._remaining, self._done = self._remaining - expected, self._done + expected
        line = f"{place} {title}: {'; '.join(said) or 'done'} ({time.perf_counter() - start:.1f} s"
        if self._bar:
            self._bar.update(self._task, advance=expected)
            self._bar.console.print(escape(line + ")"))
        else:
            self._console.print(escape(f"{line}; {self._left()})"), soft_wrap=True)


def header(console: Console, document: Mapping, path: object) -> None:
    """What runs, where, and what the figures are."""
    machine, versions = document["machine"], document["versions"]
    on_gpu = machine["device"] == "cuda"
    console.print(f"[bold]gdcore benchmark[/], profile {document['profile']}: fused linear + MSE against stock PyTorch")
    kind = (
        "GPU figures" if on_gpu else "CPU figures: no GPU here. What is said of GPUs below is predicted, not measured"
    )
    rows = [
        ("figures", kind),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"),
        ("threads", str(machine["threads"])),
        (
            "versions",
            ", ".join(
                f"{name} {version or 'missing'}" for name, version in versions.items() if name != "cuda" or version
            ),
        ),
        ("commit", f"{document['commit'] or 'none'}, seed {document['seed']}"),
        ("saved in", f"{path}, after every step; go on with --resume {path}"),
    ]
    if on_gpu:
        rows.insert(1, ("device", f"{machine['gpu']}, {machine['sms']} SMs, {machine['gpu_memory_gib']} GiB"))
    for name, text in rows:
        console.print(f"  {name:<9} {escape(text)}", soft_wrap=True)
    console.print()


def case_line(row: Mapping) -> str:
    """One case's outcome in a line, as it comes."""
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    if row["failed"]:
        return f"PARITY FAILS, no speed: {row['failed']}"
    comparison = row["comparisons"][STOCK]
    return f"parity ok; {words.times(comparison['speedup'])} stock's speed, {comparison['verdict']}"


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(
        title=title, caption=caption, box=box.SIMPLE, title_justify="left", caption_justify="left", title_style="bold"
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def parity_table(rows: Sequence[Mapping]) -> Table:
    """Errors against float64, next to stock's."""
    table = _table(
        "Parity: relative error against float64, gdcore's / stock's",
        "N × K × M",
        "wanted",
        "loss",
        "dW",
        "dX",
        "db",
        "worst ratio",
        "",
    )
    for row in rows:
        found = row.get("peers", {}).get(OURS, {}).get("parity")
        if found is None:
            why = row.get("skipped") or row.get("failed") or ""
            table.add_row(words.shape(row), words.wanted(row), "", "", "", "", "", f"[yellow]{escape(why)}[/]")
            continue
        cells = [
            f"{float(found['errors'][name]):.0e} / {float(found['stock_errors'][name]):.0e}"
            if name in found["errors"]
            else ""
            for name in ("loss", "weight", "input", "bias")
        ]
        ratio = f"{float(found['worst_ratio']):.2f}" if found["worst_ratio"] is not None else ""
        passed = "[green]ok[/]" if found["passed"] else "[red]FAILS[/]"
        table.add_row(words.shape(row), words.wanted(row), *cells, ratio, passed)
    return table


def speed_table(rows: Sequence[Mapping], machine: Mapping) -> Table:
    """Medians with their spread, and the verdict against stock."""
    table = _table(
        f"Speed: loss and gradients, median and p20 to p80; {words.device_label(machine)}",
        "N × K × M\n[dim]wanted, path[/]",
        "stock",
        "compile",
        "gdcore",
        "vs stock\n[dim]95 %[/]",
        "vs best\npeer",
        "verdict",
        "of the\nfloor",
        caption="Compile: torch.compile of stock. Vs: ratio of medians, with its 95 % interval.\n"
        "Of the floor: the time that the least bytes or FLOPs need here, over gdcore's.",
    )
    for row in words.timed(rows):
        against, best = row["comparisons"][STOCK], row["best"]
        table.add_row(
            f"{words.shape(row)}\n[dim]{words.wanted(row)}, {row['plan']['path']}[/]",
            *(_timing(row["peers"].get(name, {})) for name in (STOCK, COMPILED, OURS)),
            f"{words.times(against['speedup'])}\n[dim]{against['low']:.2f}–{against['high']:.2f}[/]",
            words.times(best["speedup"]),
            f"[{COLOURS[against['verdict']]}]{against['verdict']}[/]",
            words.share(row["floor_seconds"] / row["peers"][OURS]["p50"]),
        )
    return table


def _timing(peer: Mapping) -> str:
    if "p50" not in peer:
        return "[yellow]failed[/]" if "failure" in peer else ""
    return f"{words.duration(peer['p50'])}\n[dim]{words.spread(peer['p20'], peer['p80'], like=peer['p50'])}[/]"


def memory_table(rows: Sequence[Mapping], machine: Mapping) -> Table:
    """Peak of one call beyond its inputs."""
    table = _table(
        f"Extra memory: peak of one call; {words.device_label(machine)}",
        "N × K × M",
        "an N × M matrix",
        "stock",
        "gdcore",
    )
    for row in rows:
        cells = [
            words.size(row[name]["peak_bytes"]) if "peak_bytes" in row[name] else "failed" for name in (STOCK, OURS)
        ]
        table.add_row(words.shape(row), words.size(row["output_bytes"]), *cells)
    return table


def predicted_table(rows: Sequence[Mapping]) -> Table:
    """What the plan and the compiled code say of a GPU."""
    table = _table(
        f"PREDICTED for one {rows[0]['device']}, nothing here was measured: one call, loss and gradients",
        "N × K × M\n[dim]wanted[/]",
        "path\n[dim]bound by[/]",
        "moves\n[dim]stock[/]",
        "GFLOP",
        "floor\n[dim]stock[/]",
        "registers",
        "occupancy",
        caption="Floor: bytes over bandwidth or FLOPs over rate, whichever is longer; a real call takes longer.",
    )
    for row in words.shown_predictions(rows):
        compiled = row["compiled"] or {}
        occupancy = compiled.get("occupancy")
        table.add_row(
            f"{words.shape(row)}\n[dim]{words.wanted(row)}[/]",
            f"{row['path']}\n[dim]{row['bound_by']}[/]",
            f"{words.size(row['bytes'])}\n[dim]{words.size(row['stock_bytes'])}[/]",
            f"{row['flops'] / 1e9:,.1f}",
            f"{words.duration(row['floor_seconds'])}\n[dim]{words.duration(row['stock_floor_seconds'])}[/]",
            str(compiled.get("registers", "")),
            words.share(occupancy) if occupancy is not None else "",
        )
    return table


def training_table(rows: Sequence[Mapping]) -> Table:
    """Stock and fused side by side on real data."""
    table = _table(
        "Training on real data: the same loop with one line changed",
        "data\n[dim]updates[/]",
        "with",
        "last loss",
        "accuracy or R²",
        "time",
        "losses\ndiffer by",
        "",
    )
    for row in rows:
        if "unavailable" in row:
            table.add_row(row["dataset"], *[""] * 5, f"[yellow]{escape(row['unavailable'])}[/]")
            continue
        firsts = (row["dataset"], f"[dim]{row['updates']:,}[/]", "")
        verdict = "[red]DIFFERS[/]" if row["problems"] else "[green]same[/]"
        for name, first in zip((STOCK, OURS, FUSED), firsts, strict=True):
            run = row[name]
            table.add_row(
                first,
                words.TITLES[name] if name != OURS else f"{words.TITLES[name]} [dim]({row['path']['name']} path)[/]",
                f"{run['final_loss']:.6g}",
                f"{row['metric']} {run['score']:.4f}",
                words.duration(run["seconds"]),
                "" if name == STOCK else words.difference(run["loss_difference"]),
                verdict if name == FUSED else "",
            )
    return table


def sgd_table(rows: Sequence[Mapping], machine: Mapping) -> Table:
    """Medians of one optimizer step."""
    table = _table(
        f"One optimizer step, median; {words.device_label(machine)}",
        *sgd_words.HEADS,
        caption="Of the floor: the time that the least bytes need at this machine's copy bandwidth, over gdcore's.\n"
        "Wrong: its parameters differ from float64's by more than twice the for-loop's error, so it gets no figure.",
    )
    for row in rows:
        table.add_row(*sgd_words.cells(row))
    return table


def sgd_host_table(host: Mapping) -> Table:
    """What a step costs the host."""
    table = _table(
        f"From step() to the launch, {host['tensors']} tensors, on this host, launch left out", *sgd_words.HOST_HEADS
    )
    for line in sgd_words.host_cells(host):
        table.add_row(*line)
    return table


def ceilings_line(document: Mapping) -> str:
    """What the machine can do, as measured in this run."""
    found = document["ceilings"]
    products = ", ".join(f"{name} product {rate / 1e9:,.0f} GFLOP/s" for name, rate in found["product"].items())
    return f"this machine reads {found['read'] / 1e9:.1f} GB/s, copies {found['copy'] / 1e9:.1f} GB/s (read + write); {products}"


def summary(console: Console, document: Mapping) -> None:
    """All tables, then the findings in words."""
    rows = list(document["cases"].values())
    machine = document["machine"]
    tables = []
    if rows:
        tables += [parity_table(rows), speed_table(rows, machine)]
    if document["sgd"]:
        tables.append(sgd_table(list(document["sgd"].values()), machine))
    if document["sgd_host"]:
        tables.append(sgd_host_table(document["sgd_host"]))
    if document["memory"]:
        tables.append(memory_table(document["memory"], machine))
    if document["predicted"]:
        tables.append(predicted_table(document["predicted"]))
    if document["training"]:
        tables.append(training_table(list(document["training"].values())))
    console.print()
    # On a narrow terminal lines wrap, but no figure is cut off.
    wide = Console(file=console.file, width=max(console.width, TABLE_WIDTH), force_terminal=console.is_terminal)
    for table in tables:
        wide.print(table)
    console.print("[bold]What this run found[/]" + ("" if machine["device"] == "cuda" else " (CPU figures)"))
    for sentence in (*words.findings(document), *sgd_words.findings(document)):
        console.print(f"  - {escape(sentence)}", soft_wrap=True)
