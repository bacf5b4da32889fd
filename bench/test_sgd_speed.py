"""The optimizer's cases and peers for pytest-benchmark. Small sizes; parity comes first here too."""

import pytest

from gdcore.bench import sgd
from gdcore.bench.machine import device_here
from gdcore.bench.peers import COMPILED
from gdcore.bench.sgd_cases import SgdCase, draw, select

pytest.importorskip("pytest_benchmark")
DEVICE = device_here()


@pytest.mark.parametrize("stepper", [s for s in sgd.STEPPERS if s.name != COMPILED], ids=lambda stepper: stepper.name)
@pytest.mark.parametrize("case", select("smoke", DEVICE.type), ids=lambda case: case.name)
def test_step(benchmark, case: SgdCase, stepper: sgd.Stepper) -> None:
    calls, entries = sgd.check_all(case, [stepper], *draw(case, DEVICE, seed=0))
    assert stepper.name in calls, entries
    benchmark.group = case.name
    benchmark.extra_info |= {"peer": stepper.name, "parity": entries[stepper.name]["parity"]}
    benchmark(calls[stepper.name])
