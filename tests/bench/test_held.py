"""Prediction and measurement side by side: on a GPU every case has both, with the median and the worst named; on a CPU none."""

import pytest
import torch

import gdcore
from gdcore.bench import console, findings, page, tables, words
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.measure import _plan
from gdcore.bench.roofline import predicted_seconds

GPU = {"device": "cuda", "gpu": "Acted H200", "sms": 132, "gpu_memory_gib": 141.0, "driver": "570"}
CEILINGS = Ceilings(read=1e9, copy=1e9, product={"float32": 1e9})


@pytest.fixture
def on_a_gpu(make):
    """Three cases predicted at 5 ms that took 4, 5 and 20 ms; one that failed; an optimizer's step, which no plan predicts."""
    rows = [make.row(f"case {ms}", seconds={"eager": 0.04, "gdcore": ms / 1e3}, column="device") for ms in (4, 5, 20)]
    rows += [make.wrong(make.row("wrong", column="device")), make.row("step", kind="sgd", column="device")]
    document = make.document(rows)
    document["machine"] |= GPU
    return document


def test_the_median_and_the_worst_are_said(on_a_gpu):
    (sentence,) = [said for said in findings.findings(on_a_gpu) if said.startswith("Predicted times")]
    assert "1.00x as long in the median of 3 cases, 0.80x to 4.00x" in sentence
    assert "the worst is case 20, predicted 5.00 ms, measured 20.0 ms" in sentence


def test_the_tables_show_both(on_a_gpu, capsys):
    table = tables.held(on_a_gpu)
    assert [list(row[1:]) for row in table.rows] == [
        ["streaming", "5.00 ms", "4.00 ms", "0.80x"],
        ["streaming", "5.00 ms", "5.00 ms", "1.00x"],
        ["streaming", "5.00 ms", "20.0 ms", "4.00x"],
    ]
    assert table in tables.all_of(on_a_gpu)
    console.summary(console.make_console(), on_a_gpu)
    assert "Predicted and measured" in capsys.readouterr().out
    html = page.html(on_a_gpu)
    assert "Predicted and measured" in html and "1.00x in the median case, 0.80x to 4.00x" in html


def test_a_cpu_s_document_has_no_such_table(make):
    document = make.document([make.row()])
    assert words.how_predictions_held(document) == "" and not tables.held(document).rows
    assert "Predicted and measured" not in page.html(document)


@pytest.mark.parametrize("device", ["H200", None], ids=["a GPU", "a CPU"])
def test_a_row_s_prediction_on_a_gpu_is_the_plan_s_model(device):
    x, w, y = torch.empty(2_000_000, 4), torch.empty(2, 4, requires_grad=True), torch.empty(2_000_000, 2)
    plan = gdcore.explain(x, w, y, device=device).plan
    found = predicted_seconds(plan, torch.float32, CEILINGS)
    assert found == plan.predicted_seconds if device else found > 1e-2
    case = type("Acted", (), {"plan": lambda self, _: plan, "dtype": torch.float32})()
    assert _plan(case, None, CEILINGS)["plan"]["predicted_seconds"] == found
