"""What the benchmark's tests share: a small case, and a stand-in for compilation, which takes seconds."""

import copy
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace

import pytest
import torch

import gpu_support
from gdcore.bench import machine, runner, timing
from gdcore.bench.cases import Case
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.peers import Workload
from gdcore.bench.results import SCHEMA
from gdcore.bench.selection import Selection
from gdcore.bench.timing import verdict


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def case() -> Case:
    return Case("B", 40, 6, 3, wanted=("input", "weight"), seconds=0.02)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, since on a busy machine threads wait for each other; and no garbage is collected, which takes 0.1 s a column."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call a sample: for tests of what is measured, not of how long it takes."""
    monkeypatch.setattr(timing, "calibrate", lambda call, clock, seconds: (1, 1.0))


@pytest.fixture
def gpu(quiet: None, monkeypatch: pytest.MonkeyPatch) -> gpu_support.Device:
    """A device that only keeps time, in place of torch.cuda."""
    return gpu_support.act(monkeypatch)


@pytest.fixture
def among(gpu: gpu_support.Device, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Measures stock, gdcore and others on the acted device."""
    return gpu_support.measuring(gpu, monkeypatch)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile fails as it does where no compiler is installed."""

    def fail(function, **_: object):
        def call(*_: object):
            raise RuntimeError("No working C++ compiler found\nsecond line")

        return call

    monkeypatch.setattr(torch, "compile", fail)


def _row(
    label: str = "1,000 × 2 × 1",
    kind: str = "linear_mse",
    seconds: Mapping[str, float] | None = None,
    column: str = "wall",
    **more: object,
) -> dict:
    """A measured row by hand: every peer's median, and verdicts as 2 % on either side of a speed-up make them."""
    stock = "for-loop" if kind == "sgd" else "eager"
    seconds = seconds or {stock: 0.04, "gdcore": 0.01}
    parity = {
        "errors": {"loss": 1e-8},
        "stock_errors": {"loss": 2e-8},
        "worst_ratio": 0.5,
        "passed": True,
        "failures": [],
    }
    what = {"n": 1000, "k": 2, "m": 1, "dtype": "float32", "wanted": ["weight"], "data": "normal"}
    if kind == "sgd":
        what = {"what": "one", "options": "plain", "tensors": 1, "numel": 10, "dtypes": ["float32"]}
        parity |= {"errors": {"parameters": 1e-8}, "stock_errors": {"parameters": 1e-8}}
    if kind == "run":
        what |= {"updates": 10, "batch": None, "metric": "R²", "data": "diabetes"}
        parity |= {"errors": {"losses": 1e-8}, "stock_errors": {"losses": 1e-8}}
    times = {n: {"samples": [s, s], "p20": 0.9 * s, "p50": s, "p80": 1.1 * s} for n, s in seconds.items()}
    peers = {n: {"what": n, "parity": parity, "times": {column: t}} for n, t in times.items()}
    if kind == "run":
        peers = {n: entry | {"score": 0.5} for n, entry in peers.items()}
    ratios = {n: s / seconds["gdcore"] for n, s in seconds.items() if n != "gdcore"}
    compared = {
        n: {"baseline": n, "speedup": r, "low": 0.98 * r, "high": 1.02 * r, "verdict": verdict(0.98 * r, 1.02 * r)}
        for n, r in ratios.items()
    }
    right = [found for n, found in compared.items() if n != "sklearn"]
    row = {
        "kind": kind,
        "op": {"linear_mse": "backward"}.get(kind, kind),
        "label": label,
        "regime": None if kind == "sgd" else "D",
        **what,
        "bytes": 1000,
        "flops": 1000,
        "floor_seconds": 0.005,
        "bound_by": "memory",
        "explained": None,
        "peers": peers,
        "problems": [],
        "column": column,
        "comparisons": {column: compared},
        "best": {column: min(right, key=lambda found: found["speedup"])} if right else {},
        "noise": {column: {"speedup": 1.01, "low": 0.99, "high": 1.02}},
        "clocks": None,
        "failed": None,
    }
    if kind != "sgd":
        row["plan"] = {"backend": "cpu", "path": "streaming", "why": "it is faster", "bytes": 1000, "flops": 1000}
        row["plan"] |= {"workspace_bytes": 0, "predicted_seconds": 0.005}
    return copy.deepcopy(row) | more


def _wrong(row: dict, peer: str = "gdcore", why: str = "loss is off by 1e-03") -> dict:
    """The row where a peer's parity failed: of gdcore's failure nobody gets a figure."""
    entry = row["peers"][peer]
    entry["parity"] |= {"passed": False, "failures": [why]}
    entry["failure"] = why
    del entry["times"]
    if peer == "gdcore":
        for name in ("column", "comparisons", "best", "noise", "clocks", "explained"):
            del row[name]
        for entry in row["peers"].values():
            entry.pop("times", None)
        row["failed"] = why
    return row


def _document(rows: Iterable[dict] = (), **parts: object) -> dict:
    """A finished run by hand."""
    return {
        "schema": SCHEMA,
        "created": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:00+00:00",
        "profile": "smoke",
        "selection": Selection().to_json(),
        "seed": 0,
        "machine": {
            "cpu": "A CPU",
            "cores": 2,
            "threads": 2,
            "memory_gib": 8.0,
            "system": "Linux x86_64",
            "device": "cpu",
        },
        "versions": {"gdcore": "0.1.0", "torch": "2.13.0", "triton": None},
        "commit": "abc",
        "ceilings": {"read": 1e10, "copy": 1e10, "product": {"float32": 1e11}},
        "cases": {f"case-{number}": row for number, row in enumerate(rows)},
        "host": {},
        "predicted": [],
        "attempts": {},
        **parts,
    }


@pytest.fixture
def make() -> SimpleNamespace:
    """Rows and documents by hand: make.row(), make.wrong(row), make.document([rows])."""
    return SimpleNamespace(row=_row, wrong=_wrong, document=_document)


@pytest.fixture
def fake_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run that measures nothing: every piece of work answers at once, and its name is added to the list."""
    did: list[str] = []

    def note(name: str, answer: object) -> object:
        did.append(name)
        return answer

    def measure_case(case: Workload, setting: object) -> dict:
        return note(case.name, _row(kind=case.kind) | case.describe())

    host = {
        "what": "host time",
        "rows": {"a call": {"what": "x", "peers": {"eager": {"p50": 2e-5}, "gdcore": {"p50": 1e-5}}}},
    }
    monkeypatch.setattr(runner, "measure_case", measure_case)
    monkeypatch.setattr(
        runner.ceilings, "measure", lambda *_, small: note("ceilings", Ceilings(1e10, 1e10, {"float32": 1e11}))
    )
    monkeypatch.setattr(runner.host, "measure", lambda *, small: note("host", host))
    monkeypatch.setattr(runner.predict, "table", lambda: note("predicted", [{"wanted": ["input"], "device": "H200"}]))
    monkeypatch.setattr(runner.memory, "measure_apart", lambda rows, seed: note("memory", iter(())))
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    return did
