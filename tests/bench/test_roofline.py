"""What bounds a case, and the sentence where measured and predicted differ: the right reason, and none where they agree."""

import pytest
import torch

import gdcore
from gdcore import devices
from gdcore.bench.cases import Case
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.measure import _plan
from gdcore.bench.roofline import CACHE_BYTES, explained, predicted_seconds
from gdcore.training.plan import plan_run
from gdcore.training.spec import Spec

KNOWN = Ceilings(read=1e9, copy=2e9, product={"float32": 1e10})
CPU = torch.device("cpu")


def row(measured: float, predicted: float = 1e-3, column: str = "wall", **more: object) -> dict:
    plan = {"predicted_seconds": predicted, "bytes": more.pop("plan_bytes", 1 << 30)}
    peers = {"gdcore": {"times": {column: {"p50": measured}}}}
    return {"plan": plan, "peers": peers, "column": column, "bound_by": "memory", **more}


@pytest.mark.parametrize("measured", [1e-3, 1.49e-3, 0.68e-3])
def test_where_they_agree_nothing_is_said(measured):
    assert explained(row(measured), "cpu") is None


@pytest.mark.parametrize(
    ("given", "device", "said"),
    [
        (
            row(0.5e-3, plan_bytes=1000),
            "cpu",
            "Measured 500 µs, predicted 1.00 ms: 0.50x; the operands fit in the cache",
        ),
        (row(0.5e-3, plan_bytes=CACHE_BYTES + 1), "cpu", "parts of the data are still in the cache"),
        (row(5e-4, predicted=1e-5), "cpu", "Measured 500 µs, predicted 10.0 µs: 50.0x; calls cost more than the work"),
        (row(5e-4, predicted=60e-6), "cpu", "calls cost more than the work"),
        (row(5e-4, predicted=60e-6), "cuda", "probably arithmetic of the narrow product"),
        (row(5e-4, predicted=1e-5, column="device"), "cuda", "probably arithmetic of the narrow product"),
        (row(1.0, bound_by="arithmetic"), "cpu", "probably the shape of the products"),
        (row(1.0, predicted=1e-2, updates=1000), "cpu", "Measured 1.00 s, predicted 10.0 ms: 100x; calls cost more"),
    ],
    ids=[
        "cache",
        "part of it",
        "calls",
        "calls of 100 µs",
        "CUDA's of 50 µs",
        "on the device",
        "products",
        "a whole run",
    ],
)
def test_where_they_differ_the_likeliest_reason_is_said(given, device, said):
    sentence = explained(given, device)
    assert said in sentence and sentence.endswith(".") and "\n" not in sentence


def test_a_run_s_prediction_is_of_all_its_updates():
    assert explained(row(0.1, predicted=0.1, updates=1000), "cpu") is None


def test_a_run_on_a_gpu_is_predicted_step_by_step():
    spec = Spec(n=100, k=2, m=1, dtype=torch.float32, steps=70, lr=0.1)
    plan = plan_run(spec, devices.H200, "triton")
    assert plan.method == "resident"
    assert predicted_seconds(plan, torch.float32, KNOWN) == 70 * plan.predicted_step_seconds


def test_a_prediction_is_bytes_or_arithmetic_whichever_takes_longer():
    operands = Case("A", 1000, 8, 1).draw(CPU, 0)
    plan = gdcore.explain(operands.input, operands.weight, operands.target).plan
    by_bytes = plan.bytes_read / 1e9 + plan.bytes_written / 2e9
    assert predicted_seconds(plan, torch.float32, KNOWN) == pytest.approx(by_bytes)
    slow = Ceilings(1e9, 2e9, {"float32": 1e3})
    assert predicted_seconds(plan, torch.float32, slow) == pytest.approx(plan.flops / 1e3)


@pytest.mark.parametrize("op", ["forward", "backward", "step"])
def test_the_plan_is_the_one_that_the_case_runs(op):
    case = Case("A", 1000, 8, 2, op=op)
    plan = _plan(case, case.draw(CPU, 0), KNOWN)["plan"]
    assert plan["flops"] == case.flops + 3 * 1000 * 2, "the products; residual, square and sum of N x M numbers"
    assert plan["bytes"] >= case.minimal_bytes - 4 * 2 * 8 and plan["predicted_seconds"] > 0
