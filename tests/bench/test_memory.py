"""Extra memory: the probe sees what a call allocates and no earlier peak, in a process of its own, and says where it cannot."""

from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from gdcore.bench import memory
from gdcore.bench.cases import Case
from gdcore.bench.peers import JAX, LIBRARY, OURS, STOCK

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
MIB = 1 << 20


def measured(case: Case, *peers: str, **more: object) -> dict:
    """A row as measure_case makes it."""
    entries = {name: {"times": {}} for name in peers}
    row = {"kind": case.kind, "op": case.op, "regime": case.regime, **case.describe(), "bytes": case.minimal_bytes}
    return row | {"peers": entries} | more


@linux
def test_a_fresh_process_sees_stocks_temporaries_and_not_ours():
    case = Case("B", 300_000, 16, 32)
    rows = [measured(Case("B", 1_300_000, 2, 8), STOCK), measured(case, STOCK, JAX, OURS)]
    found = {(number, peer): entry for number, peer, entry in memory.measure_apart(rows, seed=0)}
    matrix = 4 * 300_000 * 32
    assert set(found) == {(0, STOCK), (1, STOCK), (1, JAX), (1, OURS)}
    assert 1.5 * matrix < found[1, STOCK]["peak_bytes"] < 4 * matrix, "stock holds prediction and gradient"
    assert found[1, OURS]["peak_bytes"] < 0.6 * matrix
    assert found[0, STOCK]["peak_bytes"] > 0.9 * 4 * 1_300_000 * 8
    assert "peak_bytes" in found[1, JAX] or found[1, JAX]["no_memory"].startswith("LeftOut: ")


@linux
@pytest.mark.parametrize("kept", [False, True], ids=["let go", "kept"])
def test_the_peak_is_of_one_call_and_no_earlier_one(kept):
    """Pages of its own each time: this process keeps what was freed, and would give it again."""
    held = []

    def take(mib: int) -> None:
        held.append(np.frombuffer(mmap(-1, mib * MIB), dtype=np.uint8))
        held[-1][:] = 1
        if not kept:
            held.clear()

    take(128)
    held.clear()
    assert 60 * MIB < memory.peak_of(lambda operands: lambda: take(64), None, CPU) < 80 * MIB


def test_a_process_that_dies_leaves_nobody_without_a_word(monkeypatch):
    monkeypatch.setattr(memory.sys, "executable", "/bin/false")
    rows = [measured(Case("B", 2 * 10**6, 2, 8), STOCK, OURS), measured(Case("B", 2 * 10**6, 2, 9), LIBRARY)]
    found = list(memory.measure_apart(rows, seed=0))
    assert [(number, peer) for number, peer, _ in found] == [(0, STOCK), (0, OURS), (1, LIBRARY)]
    assert all("ended" in entry["no_memory"] for *_, entry in found)


def test_who_is_measured():
    large, small = Case("B", 2 * 10**6, 2, 8), Case("D", 100, 2, 1)
    row = measured(large, STOCK, OURS)
    row["peers"] |= {LIBRARY: {"failure": "wrong"}, JAX: {"left_out": "not installed"}}
    assert memory.measurable(row) == [STOCK, OURS]
    row["peers"][OURS]["peak_bytes"] = 7
    assert memory.measurable(row) == [STOCK], "once is enough"
    assert memory.measurable(measured(small, STOCK)) == [], "pages are larger"
    assert memory.measurable(measured(large, STOCK, kind="sgd")) == []
    assert memory.measurable(measured(large, STOCK, op="step")) == []
    assert memory.measurable({"kind": "linear_mse", "op": "backward", "skipped": "too large", "peers": {}}) == []


@pytest.mark.parametrize(
    "case",
    [
        Case("A", 10, 3, 2, dtype=torch.bfloat16, wanted=("weight", "bias"), op="step"),
        Case("D", 442, 10, 1, data="diabetes"),
        Case("A", 10, 3, 2, op="forward"),
    ],
    ids=lambda case: case.name,
)
def test_a_row_says_enough_to_measure_its_case_elsewhere(case):
    assert memory._case(memory._arguments(measured(case))) == case


def test_the_process_answers_line_by_line(capsys, monkeypatch):
    monkeypatch.setattr(memory, "peak_of", lambda bind, operands, device: 5 if bind(operands)() else 0)
    rows = [measured(Case("D", 10, 2, 1), STOCK, JAX)]
    memory._answer([[memory._arguments(row), list(row["peers"])] for row in rows], 0)
    first, second = capsys.readouterr().out.splitlines()
    assert first == '[0, "eager", {"peak_bytes": 5}]'
    assert second.startswith('[0, "jax", {"no_memory": "LeftOut: ') or second == '[0, "jax", {"peak_bytes": 5}]'
