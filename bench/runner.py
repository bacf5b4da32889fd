"""A whole run: what there is to do, in order, each piece saved as soon as it is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from rich.console import Console

from . import ceilings, memory, predict, report, sgd, sgd_cases, sgd_host, training_runs, words
from .cases import Case, matches, select
from .datasets import DATASETS
from .measure import Setting, measure_case
from .peers import PEERS, Peer
from .results import BadInput, Results, now
from .sgd_cases import SgdCase

CASE_OVERHEAD_SECONDS = 8.0  # drawing operands, float64, compilation


@dataclass(frozen=True, slots=True)
class Selection:
    """Which pieces of work a run has."""

    cases: tuple[Case, ...]
    memory: bool
    predicted: bool
    training: tuple[str, ...]
    sgd: tuple[SgdCase, ...]
    sgd_host: bool


def choose(profile: str, device: torch.device, pattern: str | None, training: bool) -> Selection:
    """The profile's cases and the other pieces, whose names are memory, predicted, training-<data>; all, or what the pattern matches.

    Raises
    ------
    BadInput
        If nothing matches.
    """

    chosen = Selection(
        select(profile, device.type, pattern),
        matches("memory", pattern),
        matches("predicted", pattern) and device.type == "cpu",
        tuple(name for name in DATASETS if training and matches(f"training-{name}", pattern)),
        sgd_cases.select(profile, device.type, pattern),
        profile != "smoke" and matches("sgd-host", pattern),
    )
    if not any(getattr(chosen, field.name) for field in fields(chosen)):
        known = [case.name for case in (*select(profile, device.type), *sgd_cases.select(profile, device.type))]
        others = ["memory", "predicted", *(f"training-{name}" for name in DATASETS), "sgd-host"]
        raise BadInput(f"nothing in profile {profile} matches {pattern!r}; there are: {', '.join([*known, *others])}")
    return chosen


class Run:
    """One run's work, piece by piece: every method does one, saves it, and says in a line what came out."""

    def __init__(self, results: Results, device: torch.device, peers: Sequence[Peer]) -> None:
        self.results, self.document, self.device, self.peers = results, results.document, device, peers
        self.small = self.document["profile"] == "smoke"

    def pieces(self, chosen: Selection) -> list[tuple[str, float, Callable[[], str]]]:
        """What is chosen and not yet done: title, expected seconds, work."""
        cases = [case for case in chosen.cases if case.name not in self.document["cases"]]
        overhead = 1.0 if self.small else CASE_OVERHEAD_SECONDS
        todo: list[tuple[str, float, Callable[[], str]]] = []
        steps = [case for case in chosen.sgd if case.name not in self.document["sgd"]]
        if cases or steps:
            todo.append(("what this machine can do", 3.0, partial(self.ceilings, {case.dtype for case in cases})))
        todo += [(case.name, case.seconds + overhead, partial(self.case, case)) for case in cases]
        todo += [(case.name, case.seconds + overhead / 8, partial(self.sgd, case)) for case in steps]
        if chosen.sgd_host and not self.document["sgd_host"]:
            todo.append(("host time of a step", 10.0, self.sgd_host))
        if chosen.memory and not self.document["memory"]:
            todo.append(("extra memory", 12.0, self.memory))
        if chosen.predicted and not self.document["predicted"]:
            todo.append(("predictions for a GPU", 0.1, self.predicted))
        todo += [
            (f"training on {name}", 4.0, partial(self.training, name))
            for name in chosen.training
            if name not in self.document["training"]
        ]
        return todo

    def ceilings(self, dtypes: set[torch.dtype]) -> str:
        found = ceilings.measure(self.device, dtypes, small=self.small)
        self.results.put("ceilings", found.to_json())
        return report.ceilings_line(self.document)

    def case(self, case: Case) -> str:
        known = ceilings.Ceilings(**self.document["ceilings"])
        row = measure_case(case, Setting(self.device, self.document["seed"], known, self.peers))
        self.results.put("cases", row, case.name)
        return report.case_line(row)

    def sgd(self, case: SgdCase) -> str:
        known = ceilings.Ceilings(**self.document["ceilings"])
        row = sgd.measure_case(case, Setting(self.device, self.document["seed"], known))
        self.results.put("sgd", row, case.name)
        if "comparisons" not in row:
            return f"no speed: {row.get('skipped') or row['failed']}"
        return f"parity ok; {words.times(row['best']['speedup'])} the best other's speed, {row['best']['verdict']}"

    def sgd_host(self) -> str:
        self.results.put("sgd_host", sgd_host.measure())
        return "measured"

    def memory(self) -> str:
        rows = memory.measure(self.device, small=self.small)
        self.results.put("memory", rows)
        return f"{len(rows)} shapes"

    def predicted(self) -> str:
        rows = predict.table()
        self.results.put("predicted", rows)
        return f"{len(rows)} shapes"

    def training(self, name: str) -> str:
        row = training_runs.run_dataset(name, self.device, self.document["seed"], small=self.small)
        self.results.put("training", row, name)
        return row.get("unavailable") or "; ".join(row["problems"]) or "same losses, same predictions"


def run(
    results: Results, chosen: Selection, device: torch.device, console: Console, peers: Sequence[Peer] = PEERS
) -> int:
    """Does what is chosen and not yet done, and reports. Returns the exit status."""
    todo = Run(results, device, peers).pieces(chosen)
    with report.Steps(console, [expected for _, expected, _ in todo]) as steps:
        for title, expected, work in todo:
            with steps.step(title, expected) as said:
                said.append(work())
    results.put("finished", now())
    report.summary(console, results.document)
    return exit_status(results.document)


def exit_status(document: dict) -> int:
    """0, or 1 where a case failed its parity or a training run differed."""
    failed = any(row.get("failed") for part in ("cases", "sgd") for row in document[part].values())
    return int(failed or any(row["problems"] for row in document["training"].values()))
