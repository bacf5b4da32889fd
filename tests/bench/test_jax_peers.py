"""JAX: right where it is installed, and left out in words where it is not, or cannot do the same work."""

import importlib.util
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from gdcore.bench import jax_peers, parity
from gdcore.bench.cases import Case
from gdcore.bench.peers import LeftOut
from gdcore.bench.run_cases import RunCase

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def device():
    """Where this JAX runs: a peer is measured on no other device."""
    platform = pytest.importorskip("jax").default_backend()
    device = {"cpu": CPU, "gpu": CUDA}.get(platform)
    if device is None or (device == CUDA and not torch.cuda.is_available()):
        pytest.skip(f"this JAX runs on {platform}, where this PyTorch does not")
    return device


def judged(case, prepare, device) -> dict:
    operands, oracle = case.draw(device, 0), case.peers[0].prepare(case, device)
    truth, stock = case.results(oracle, case.widened(operands)), case.results(oracle, operands)
    return parity.judge(case.kind, case.results(prepare(case, device), operands), truth, stock)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (257, 13, 5)], ids=str)
@pytest.mark.parametrize(
    ("op", "wanted"),
    [("forward", ("weight",)), ("backward", ("input", "weight", "bias")), ("step", ("weight", "bias"))],
    ids=["loss", "gradients", "step"],
)
def test_jax_is_right(device, op, wanted, shape, dtype):
    found = judged(Case("A", *shape, op=op, wanted=wanted, dtype=dtype), jax_peers.linear, device)
    assert found["passed"], found["failures"]


@pytest.mark.parametrize("case", [RunCase("lesson", 20), RunCase("thermometer", 20)], ids=lambda case: case.name)
def test_jax_trains_alike(device, case):
    assert judged(case, jax_peers.run, device)["passed"]


def test_what_jax_updates_is_its_own_copy(device):
    case = Case("D", 10, 2, 1, op="step")
    operands = case.draw(device, 0)
    start = operands.weight.detach().clone()
    call = jax_peers.linear(case, device)(operands)
    first, second = (float(call()[0]) for _ in range(2))
    assert second < first and torch.equal(operands.weight.detach(), start)


@pytest.fixture
def pretended(monkeypatch):
    """A JAX that is there and says that it runs on `platform`."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    module = SimpleNamespace(default_backend=lambda: module.platform, platform="cpu", jit=lambda function: function)
    monkeypatch.setitem(sys.modules, "jax", module)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    return module


@pytest.mark.parametrize("prepare", [jax_peers.linear, jax_peers.run])
def test_a_jax_that_is_not_there_is_left_out(prepare, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    case = RunCase("lesson", 10) if prepare is jax_peers.run else Case("D", 10, 2, 1)
    with pytest.raises(LeftOut, match=r"^JAX is not installed$"):
        prepare(case, CPU)


@pytest.mark.parametrize(("platform", "device"), [("cpu", CUDA), ("gpu", CPU), ("tpu", CPU), ("tpu", CUDA)], ids=str)
def test_a_jax_on_another_device_is_left_out(pretended, platform, device):
    pretended.platform = platform
    with pytest.raises(LeftOut, match=f"this JAX runs on {platform}, what is measured here is {device.type}"):
        jax_peers._jax(device, torch.float32)


@pytest.mark.parametrize(("platform", "device"), [("cpu", CPU), ("gpu", CUDA)], ids=str)
def test_a_jax_on_the_same_device_does_not_take_all_its_memory(pretended, platform, device):
    pretended.platform = platform
    assert jax_peers._jax(device, torch.float32) is pretended
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_float64_and_batches_of_two_sizes_are_left_out(pretended):
    with pytest.raises(LeftOut, match="float32 unless"):
        jax_peers.linear(Case("D", 10, 2, 1, dtype=torch.float64), CPU)
    with pytest.raises(LeftOut, match="the last one here is shorter"):
        jax_peers.run(RunCase("digits", 1, batch=64), CPU)
