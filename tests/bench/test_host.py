"""The host's time: all of gdcore's Python runs, no kernel does, and stock is measured beside it."""

import os
import sys

import pytest
import torch

import gdcore
from gdcore.bench import host
from gdcore.bench.peers import OURS, STOCK, STOCK_FUSED

# In this process only where the kernels are interpreted; host.measure() takes care of that itself.
interpreted = pytest.mark.skipif(not gdcore.backends.interpreting(), reason="kernels are compiled in this process")
ROWS = {row.name: row for row in host.rows()}


def test_it_is_measured_in_a_process_of_its_own():
    found = host.measure(small=True)
    assert "launches left out" in found["what"]
    assert set(found["rows"]) == {row.name for row in host.rows(small=True)} < set(ROWS)
    for name, row in found["rows"].items():
        assert list(row["peers"]) == [STOCK_FUSED if name.startswith("SGD") else STOCK, OURS]
        for times in row["peers"].values():
            assert 2e-6 < times["p20"] <= times["p50"] <= times["p80"] < 0.1


def test_every_size_and_stage_has_a_row():
    for subject in ("100 × 2 × 1", "1,000 × 10 × 1", "1,000 × 64 × 64 with dX"):
        assert {f"linear_mse {subject}, {stage}" for stage in host.STAGES} <= set(ROWS)
    steps = {name for name in ROWS if name.startswith("SGD, 161 tensors")}
    assert len(steps) == 9
    assert "SGD, 1 tensor, momentum, gradients new" in ROWS


@interpreted
@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("linear_mse 100 × 2 × 1, loss alone", "1 kernel"),
        ("linear_mse 1,000 × 10 × 1, backward", "no kernels"),
        ("linear_mse 1,000 × 10 × 1 as a module, forward and backward", "2 kernels"),
        ("linear_mse 1,000 × 64 × 64 with dX, backward", "1 kernel"),
        ("linear_mse 1,000 × 64 × 64 with dX, forward and backward", "3 kernels"),
        ("linear_mse_sgd_ 100 × 2 × 1", "1 kernel"),
        ("linear_mse_sgd_ 1,000 × 10 × 1 with bias, momentum", "1 kernel"),
        ("linear_mse_sgd_ 1,000 × 64 × 64", "2 kernels"),
        ("SGD, 1 tensor, momentum, gradients new", "1 kernel"),
    ],
)
def test_what_gdcore_would_launch_is_counted(name, kernels):
    launches = host.Launches()
    with launches.stubbed():
        found = host.times(ROWS[name], launches, turns=2)
    assert found["what"].endswith(f"; {kernels} of gdcore's")
    assert all(0 < times["p50"] < 0.1 for times in found["peers"].values())


@interpreted
def test_no_kernel_runs_and_everything_is_put_back():
    x, y, w = torch.ones(8, 3), torch.ones(8, 1), torch.nn.Parameter(torch.zeros(1, 3))
    w.grad = torch.ones_like(w)
    optimizer, stock = gdcore.SGD([w], lr=1.0), torch.optim.SGD([w], lr=1.0, fused=True)
    launches = host.Launches()
    with launches.stubbed():
        assert gdcore.explain(x, w, y).plan.device == gdcore.devices.H200
        gdcore.linear_mse(x, w, y)
        optimizer.step()
        stock.step()
    assert launches.count == 3
    assert not w.any()
    with gdcore.use_backend("triton"):
        assert gdcore.linear_mse(x, w, y) == 1.0
    stock.step()
    assert (w == -1).all()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first >&2; echo 'RuntimeError: no Triton' >&2; exit 1", "host --small failed: RuntimeError: no Triton"),
        ("kill -9 $$", "host --small failed: exit status -9"),
    ],
    ids=["it raises", "it dies"],
)
def test_a_failure_is_told_in_one_line(tmp_path, monkeypatch, script, said):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(python, 0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError) as raised:
        host.measure(small=True)
    assert str(raised.value).endswith(said)
    assert "\n" not in str(raised.value)
