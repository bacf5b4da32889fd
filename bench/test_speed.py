"""The same cases and peers for pytest-benchmark: `pytest bench/ --benchmark-only`. Small sizes; parity comes first here too."""

import pytest

from gdcore.bench import parity
from gdcore.bench.cases import Case, Tensors, make_tensors, select
from gdcore.bench.machine import device_here
from gdcore.bench.peers import PEERS, Peer, bind

pytest.importorskip("pytest_benchmark")
DEVICE = device_here()


@pytest.fixture(scope="module", params=select("smoke", DEVICE.type), ids=lambda case: case.name)
def operands(request: pytest.FixtureRequest) -> tuple[Case, Tensors]:
    return request.param, make_tensors(request.param, DEVICE, seed=0)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_speed(benchmark, operands: tuple[Case, Tensors], peer: Peer) -> None:
    case, tensors = operands
    try:
        call = bind(peer.prepare(), case, tensors)
        found = parity.check(case, call, parity.exact(case, tensors), parity.stock(case, tensors))
    except Exception as error:
        if peer.name != "compile":
            raise
        pytest.skip(f"torch.compile does not work here: {error}")
    assert found.passed, found.failures
    benchmark.group = case.name
    benchmark.extra_info |= {"regime": case.regime, "peer": peer.what, "parity": found.to_json()}
    benchmark(call)
