"""The optimizer's benchmark: cases as data, parity before speed, the host's time, the words."""

import math

import pytest
import torch

from gdcore.bench import sgd, sgd_cases, sgd_words
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.measure import Setting
from gdcore.bench.peers import OURS
from gdcore.bench.sgd_cases import SgdCase, resnet50

CPU = torch.device("cpu")
SETTING = Setting(CPU, seed=0, ceilings=Ceilings(1e10, 1e10, {"float32": 1e11}))
SMALL = SgdCase("small", ((300,), (3, 4)), "momentum", (torch.float32, torch.float32), seconds=0.02)


def test_resnet50_is_that_network():
    assert len(resnet50()) == 161
    assert sum(map(math.prod, resnet50())) == 25_557_032


def test_the_large_profile_has_every_size_options_and_a_compiled_step():
    cases = sgd_cases.select("sgd", "cuda")
    single = {case.numel for case in cases if len(case.shapes) == 1}
    assert single == {10**power for power in range(3, 10)}
    assert {case.options for case in cases} == {"plain", "momentum", "nesterov"}
    assert {"ResNet-50", "1000 x 1e3", "ResNet-50 mixed"} <= {case.what for case in cases}
    assert any(case.compiled for case in cases)
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize(("options", "accesses"), [("plain", 3), ("momentum", 5), ("nesterov", 5)])
def test_least_bytes_are_counted_by_type(options, accesses):
    case = SgdCase("two", ((10,), (4, 5)), options, (torch.float32, torch.bfloat16))
    assert case.minimal_bytes == accesses * (10 * 4 + 20 * 2)


def test_a_row_has_parity_and_speed_of_everyone():
    row = sgd.measure_case(SMALL, SETTING)
    assert row["failed"] is None
    assert set(row["peers"]) == {sgd.LOOP, sgd.FOREACH, sgd.STOCK_FUSED, OURS}
    for peer in row["peers"].values():
        assert peer["parity"]["error"] <= 1e-6
        assert peer["p20"] <= peer["p50"] <= peer["p80"]
    assert row["best"]["baseline"] in {sgd.LOOP, sgd.FOREACH, sgd.STOCK_FUSED}
    assert row["floor_seconds"] == pytest.approx(5 * 4 * 312 / 1e10)


def test_what_is_wrong_gets_no_speed():
    """PyTorch's fused kernel leaves elements of half-precision tensors unchanged on the CPU."""
    case = SgdCase("half", ((1_001,),), "momentum", (torch.bfloat16,), seconds=0.02)
    row = sgd.measure_case(case, SETTING)
    assert row["failed"] is None
    assert "wrong for 1 of 1 tensors" in row["peers"][sgd.STOCK_FUSED]["failure"]
    assert "p50" not in row["peers"][sgd.STOCK_FUSED]
    assert sgd_words.cells(row | {"options": "momentum"})[3] == "wrong"


@pytest.mark.parametrize("name", [OURS, sgd.LOOP])
def test_a_failure_is_told_in_words(name, monkeypatch):
    def broken(params, options):
        raise RuntimeError("no such thing\nsecond line")

    steppers = [sgd.Stepper(s.name, broken if s.name == name else s.make) for s in sgd.STEPPERS]
    row = sgd.measure_case(SMALL, SETTING, steppers)
    assert row["peers"][name]["failure"] == "RuntimeError: no such thing"
    assert (row["failed"] is None) == (name != OURS)
    assert ("comparisons" in row) == (name != OURS)


def test_a_case_that_does_not_fit_is_skipped(monkeypatch):
    monkeypatch.setattr(sgd, "free_bytes", lambda device: 10)
    assert "are free" in sgd.measure_case(SMALL, SETTING)["skipped"]


def test_sentences_say_where_stock_wins():
    row = sgd.measure_case(SMALL, SETTING)
    row["best"] = {"baseline": "foreach", "speedup": 0.5, "low": 0.4, "high": 0.6, "verdict": "SLOWER"}
    said = sgd_words.findings({"sgd": {SMALL.name: row}, "sgd_host": {}})
    assert said == ["A step of gdcore.SGD is slower at small, momentum (0.50x)."]
