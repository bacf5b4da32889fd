"""A whole run: what there is to do, in order, each piece saved as soon as it is done."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console

from . import ceilings, console, host, memory, predict
from .measure import Setting, measure_case
from .peers import COMPILERS, TUNED, Workload, in_one_line
from .profiles import limit_seconds
from .results import BadInput, Results, now
from .selection import Selection, choose

LEAST_PACE, LEAST_SHARE = 0.3, 0.8  # of a case's seconds; of what is left to be timed
DEATHS = 2  # a case in which the process died so often is not begun again


class Piece(NamedTuple):
    """A piece of work."""

    title: str
    seconds: float  # about how long it takes, compilation left out
    work: Callable[[], object]
    compiling: float = 0.0  # seconds


class Clock:
    """The profile's time: how much of each case's seconds there is, and whether any is left to compile.

    A case may compile while what it needs for that is left beside the timing of all that is still to be done.
    """

    def __init__(self, limit: float | None, expected: float) -> None:
        self._end = None if limit is None else time.perf_counter() + limit
        self._expected = expected  # of what is still to be done, compilation left out

    def spend(self, expected: float, compiling: float = 0.0) -> tuple[float, bool]:
        """Before a piece of work: (pace, whether it may compile)."""
        left = float("inf") if self._end is None else self._end - time.perf_counter()
        may_compile = left - compiling > LEAST_SHARE * self._expected
        share = (left - compiling * may_compile) / max(self._expected, 1e-9)
        self._expected -= expected
        return min(1.0, max(LEAST_PACE, share)), may_compile


def expected_seconds(case: Workload, device: torch.device) -> float:
    """About how long a case takes: drawing, float64, every peer twice, and its timing."""
    if device.type == "cuda":  # float64 runs at half of float32's rate
        return case.seconds + 1.2 + 2e-13 * case.flops * (case.kind == "linear_mse")
    return case.seconds + 0.2 + 6e-9 * case.minimal_bytes + 4e-10 * case.flops * (case.kind == "linear_mse")


def compiling_seconds(names: Sequence[str]) -> float:
    """About how long these peers compile, of those that do."""
    return sum(25.0 if name == TUNED else 5.0 for name in names if name in COMPILERS)


class Run:
    """One run's work, piece by piece: every method does one, saves it, and says in a line what came out."""

    def __init__(self, results: Results, device: torch.device, selection: Selection, limit: float | None) -> None:
        self.results, self.document, self.device, self.selection = results, results.document, device, selection
        self.small = self.document["profile"] == "smoke"
        self.limit = limit if selection.empty else None  # a profile's promise is for all of it
        self.setting: Setting | None = None

    def pieces(self) -> list[Piece]:
        """What is chosen and not yet done, in order.

        Raises
        ------
        BadInput
            If nothing at all is chosen.
        """
        chosen = choose(self.document["profile"], self.device.type, self.selection)
        done = self.document["cases"]
        cases = [case for case in chosen if case.name not in done]
        forgotten = any(memory.measurable(done[case.name]) for case in chosen if case.name in done)
        todo: list[Piece] = []
        if cases:
            dtypes = {case.dtype for case in cases}
            todo.append(Piece("what this machine can do", 1.0 if self.small else 4.0, partial(self.ceilings, dtypes)))
        todo += [
            Piece(case.name, expected_seconds(case, self.device), partial(self.case, case), self.compiling(case))
            for case in cases
        ]
        others: list[tuple[str, bool, float, Callable[[], object]]] = [
            ("host", not self.document["host"] and not (self.small and self.selection.empty), 9.0, self.host),
            ("predicted", not self.document["predicted"] and self.device.type == "cpu", 0.2, self.predicted),
        ]
        asked = [(title, wanted, seconds, work) for title, wanted, seconds, work in others if self.selection.has(title)]
        if (cases or forgotten) and self.device.type == "cpu" and not self.small:
            todo.append(Piece("extra memory", 8.0, self.memory))
        if not chosen and not asked:
            raise BadInput(self._nothing())
        return todo + [Piece(title, seconds, work) for title, wanted, seconds, work in asked if wanted]

    def compiling(self, case: Workload) -> float:
        """Seconds that the case's peers compile."""
        return compiling_seconds(case.compilers if self.selection.peer is None else self.selection.peer)

    def _nothing(self) -> str:
        known = [case.name for case in choose(self.document["profile"], self.device.type, Selection())]
        asked = {name: value for name, value in self.selection.to_json().items() if value is not None}
        said = ", ".join(f"{name} {','.join(v) if isinstance(v, list) else v!r}" for name, v in asked.items())
        return f"nothing in profile {self.document['profile']} matches {said}; there are: {', '.join(known)}"

    def ceilings(self, dtypes: set[torch.dtype]) -> str:
        if self.document["ceilings"]:
            dtypes = dtypes | {getattr(torch, name) for name in self.document["ceilings"]["product"]}
        found = ceilings.measure(self.device, dtypes, small=self.small)
        self.results.put("ceilings", found.to_json())
        self.setting = Setting(self.device, self.document["seed"], found, self.selection.peer)
        return console.ceilings_line(self.document)

    def case(self, case: Workload) -> dict:
        attempts = self.document["attempts"].get(case.name, 0)
        if attempts >= DEATHS:
            row = {"kind": case.kind, "op": case.op, "regime": case.regime, **case.describe()}
            row["skipped"] = f"the process died here {attempts} times"
        else:
            self.results.put("attempts", attempts + 1, case.name)
            try:
                row = measure_case(case, self.setting)
            except KeyboardInterrupt:  # no death
                self.results.put("attempts", attempts, case.name)
                raise
        self.results.put("cases", row, case.name)
        return row

    def memory(self) -> str:
        rows = [row for row in self.document["cases"].values() if memory.measurable(row)]
        count = 0
        with suppress(OSError):  # it may die before it has read what to do
            for number, peer, found in memory.measure_apart(rows, self.document["seed"]):
                rows[number]["peers"][peer] |= found
                count += 1
        lost = [row["peers"][peer] for row in rows for peer in memory.measurable(row)]
        for entry in lost:
            entry["no_memory"] = "the process that measures memory died"
        self.results.save()
        return f"{count} call{'s' * (count != 1)}" + (f"; the process died before {len(lost)} more" if lost else "")

    def host(self) -> str:
        try:
            self.results.put("host", host.measure(small=self.small))
        except (OSError, RuntimeError, ValueError) as error:
            self.results.put("host", {"failure": in_one_line(error)})
            return f"no figures: {self.document['host']['failure']}"
        return "measured"

    def predicted(self) -> str:
        rows = predict.table()
        self.results.put("predicted", rows)
        return f"{len(rows)} shapes"


@contextmanager
def interrupts() -> Iterator[list]:
    """Ctrl-C as always, and noted in the list: inside a compiler or a destructor it can be swallowed on its way up."""
    seen: list = []
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(*arrived: object) -> None:
        seen.append(arrived)
        usual(*arrived)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, usual)


def run(results: Results, selection: Selection, device: torch.device, out: Console) -> int:
    """Does what is chosen and not yet done, and reports. Returns the exit status."""
    torch._logging.set_logs(all=logging.ERROR)  # compilers' warnings would break the table that grows
    work = Run(results, device, selection, limit_seconds(results.document["profile"], device.type))
    todo = work.pieces()
    results.save()  # a folder that cannot be written shows now, not after the work
    console.header(out, results.document, results.path)
    clock = Clock(work.limit, sum(piece.seconds for piece in todo))
    with console.Steps(out, [piece.seconds + piece.compiling for piece in todo]) as steps, interrupts() as swallowed:
        for piece in todo:
            pace, may_compile = clock.spend(piece.seconds, piece.compiling)
            if work.setting:
                work.setting = work.setting.at(pace, may_compile)
            with steps.step(piece.title, piece.seconds + piece.compiling) as said:
                said.append(piece.work())
            if swallowed:
                raise KeyboardInterrupt
    results.put("finished", now())
    console.summary(out, results.document)
    return exit_status(results.document)


def exit_status(document: dict) -> int:
    """0, or 1 where a case failed its parity, or a training run differs from published figures."""
    rows: Sequence[dict] = list(document["cases"].values())
    return int(any(row.get("failed") or row.get("problems") for row in rows))
