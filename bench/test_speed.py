"""The same cases and peers for pytest-benchmark: `pytest bench/ --benchmark-only`. Parity comes first here too.

GDCORE_BENCH_PROFILE chooses the profile, smoke by default. `extra_info` holds what a result file would: the peer's parity
and times, the case's bytes, FLOPs and floor, gdcore's comparison with it.
"""

import os

import pytest
import torch

from gdcore.bench import ceilings, measure
from gdcore.bench.machine import device_here
from gdcore.bench.peers import COMPILERS, OURS, LeftOut, Peer, Workload
from gdcore.bench.selection import Selection, choose

pytest.importorskip("pytest_benchmark")
DEVICE = device_here()
PROFILE = os.environ.get("GDCORE_BENCH_PROFILE", "smoke")
CASES = choose(PROFILE, DEVICE.type, Selection())
PAIRS = [(case, peer) for case in CASES for peer in case.peers]


@pytest.fixture(scope="module")
def setting() -> measure.Setting:
    return measure.Setting(
        DEVICE, 0, ceilings.measure(DEVICE, {case.dtype for case in CASES}, small=PROFILE == "smoke")
    )


@pytest.fixture(scope="module")
def rows(setting: measure.Setting) -> dict[str, dict]:
    """Each case is measured once, when its first peer comes."""

    class Rows(dict):
        def __missing__(self, case: Workload) -> dict:
            self[case] = measure.measure_case(case, setting)
            return self[case]

    return Rows()


@pytest.mark.parametrize(("case", "peer"), PAIRS, ids=lambda value: value.name)
def test_speed(benchmark, rows: dict, case: Workload, peer: Peer) -> None:
    row = rows[case]
    if "skipped" in row:
        pytest.skip(row["skipped"])
    entry = row["peers"][peer.name]
    if "left_out" in entry:
        pytest.skip(entry["left_out"])
    if peer.name in COMPILERS and "failure" in entry:
        pytest.skip(f"torch.compile does not work here: {entry['failure']}")
    if "failure" in entry and peer.name != OURS:
        pytest.skip(f"no speed for what is wrong: {entry['failure']}")
    assert "failure" not in entry, entry["failure"]
    if "times" not in entry:
        pytest.skip(row["failed"] or f"not timed: {entry.get('no_time')}")
    try:
        operands = case.draw(DEVICE, 0)
        call = peer.prepare(case, DEVICE)(operands)
    except LeftOut as reason:
        pytest.skip(str(reason))
    times = {column: {q: t for q, t in found.items() if q != "samples"} for column, found in entry["times"].items()}
    benchmark.group = case.name
    benchmark.extra_info |= {
        name: row[name] for name in ("op", "regime", "bytes", "flops", "floor_seconds", "bound_by")
    }
    benchmark.extra_info |= {"peer": peer.what, "parity": entry.get("parity"), "times": times}
    benchmark.extra_info |= {"gdcore": {column: found.get(peer.name) for column, found in row["comparisons"].items()}}
    benchmark(call if DEVICE.type == "cpu" else lambda: (call(), torch.cuda.synchronize()))
