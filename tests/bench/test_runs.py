"""Whole training runs: published losses, the same batches for everyone, what is wrong noticed."""

import dataclasses
import math
import sys

import pytest
import torch

import gdcore
from gdcore.bench import measure, parity, run_cases, run_peers
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.datasets import DATASETS
from gdcore.bench.measure import Setting, measure_case
from gdcore.bench.peers import COMPILED, GRAM, GRAPH, JAX, LIBRARY, NAMES, OURS, SKLEARN, STEPS, STOCK, LeftOut
from gdcore.bench.run_cases import RunCase

CPU = torch.device("cpu")
SETTING = Setting(CPU, seed=0, ceilings=Ceilings(1e10, 1e10, {"float32": 1e11}))
PEERS = {peer.name: peer for peer in run_peers.PEERS}


@pytest.fixture(autouse=True)
def _quick(quiet, monkeypatch):
    """Every run is made, but its time is made up."""
    monkeypatch.setattr(measure, "interleave", lambda calls, *_, **__: {name: [1.0] * 5 for name in calls})


@pytest.fixture
def not_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)


def found_by(name: str, case: RunCase) -> dict:
    return case.results(PEERS[name].prepare(case, CPU), case.draw(CPU, 0))


@pytest.mark.parametrize("name", [STOCK, COMPILED, LIBRARY, STEPS, GRAM, OURS])
def test_the_thermometer_s_published_losses(name, not_compiled):
    case = RunCase("thermometer", 100)
    found = found_by(name, case)
    assert case.problems(found) == []
    assert found["losses"][0].item() == pytest.approx(80.364342, rel=1e-5)
    assert found["losses"][99].item() == pytest.approx(22.14871, rel=1e-5)
    assert found["parameters"].tolist() == pytest.approx([2.7553, -2.5162], rel=1e-4)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f | {"losses": f["losses"] * 1.001}, "losses are off the published ones by 1.0e-03"),
        (lambda f: f | {"parameters": f["parameters"] * 1.01}, "parameters are off the published ones by 1.0e-02"),
        (lambda f: f | {"losses": f["losses"] * math.nan}, "losses are off the published ones by nan"),
    ],
    ids=["losses", "parameters", "NaN"],
)
def test_what_differs_from_what_is_published_is_said(spoil, said):
    case = RunCase("thermometer", 100)
    assert case.problems(spoil(found_by(STOCK, case))) == [said]


def test_the_published_run_to_its_end():
    case = RunCase("thermometer", 5_000)
    losses, *parameters = PEERS[STOCK].prepare(case, CPU)(case.draw(CPU, 0))()
    found = {"losses": losses, "parameters": torch.cat([p.reshape(-1) for p in parameters])}
    assert case.problems(found) == [] and losses[-1].item() == pytest.approx(2.927648, rel=1e-5)
    losses[-1] *= 1.001
    assert case.problems(found) == ["losses are off the published ones by 1.0e-03"]


def test_a_run_as_short_as_one_update_is_compared_too():
    case = RunCase("thermometer", 1)
    assert case.problems(found_by(STOCK, case)) == []


@pytest.mark.parametrize(
    "case",
    [RunCase("lesson", 60), RunCase("thermometer", 60), RunCase("diabetes", 60), RunCase("digits", 1, batch=64)],
    ids=lambda case: case.name,
)
def test_everyone_trains_alike(case, not_compiled):
    row = measure_case(
        case, Setting(CPU, 0, SETTING.ceilings, only=(COMPILED, LIBRARY, STEPS, GRAM, SKLEARN, JAX, GRAPH))
    )
    assert row["failed"] is None and row["problems"] == [] and row["column"] == "wall"
    assert list(row["peers"]) == [STOCK, COMPILED, LIBRARY, GRAPH, JAX, SKLEARN, STEPS, GRAM, OURS]
    assert set(row["peers"]) <= set(NAMES)
    for name in (COMPILED, LIBRARY, STEPS, OURS, *(() if case.batch else (GRAM,))):
        entry = row["peers"][name]
        assert set(entry["parity"]["errors"]) == {"losses", "parameters"} and "times" in entry, name
        assert entry["score"] == pytest.approx(row["peers"][STOCK]["score"], abs=1e-3)
    assert "CUDA" in row["peers"][GRAPH]["left_out"]
    assert row["updates"] == len(case.draw(CPU, 0).rows or range(case.epochs))
    assert row["best"]["wall"]["baseline"] not in (SKLEARN, STEPS, GRAM), "another algorithm, and gdcore in other ways"
    assert ("left_out" in row["peers"][GRAM]) == bool(case.batch)


def test_training_reaches_what_the_data_allow():
    assert RunCase("lesson", 100).score(found_by(STOCK, RunCase("lesson", 100))) > 0.95
    assert RunCase("diabetes", 200).score(found_by(STOCK, RunCase("diabetes", 200))) == pytest.approx(0.518, abs=0.01)
    digits = RunCase("digits", 10, batch=64)
    assert digits.metric == "accuracy" and 0.85 < digits.score(found_by(STOCK, digits)) <= 1


def test_a_bias_that_is_next_to_nothing_is_judged_by_the_parameters_size():
    """Standardised columns make the best bias zero: what is left of it is rounding, different in every implementation."""
    case = RunCase("diabetes", 300)
    bind = PEERS[STOCK].prepare(case, CPU)
    operands = case.draw(CPU, 0)
    truth, stock = case.results(bind, case.widened(operands)), case.results(bind, operands)
    assert truth["parameters"][-1].abs() < 1e-6 < truth["parameters"].norm()
    shifted = stock["parameters"].clone()
    shifted[-1] += 1e-7
    assert parity.judge("run", stock | {"parameters": shifted}, truth, stock)["passed"]
    shifted[-1] += 1e-4
    assert not parity.judge("run", stock | {"parameters": shifted}, truth, stock)["passed"]


def test_a_wrong_run_is_noticed(monkeypatch):
    real = gdcore.fit

    def wrong(*data, **options):
        found = real(*data, **options)
        return dataclasses.replace(found, losses=1.01 * found.losses)

    monkeypatch.setattr(gdcore, "fit", wrong)
    row = measure_case(RunCase("diabetes", 20), SETTING)
    assert row["failed"].startswith("losses is off by") and "comparisons" not in row


def test_step_by_step_gdcore_is_called_once_an_update(monkeypatch):
    rows = []
    real = gdcore.linear_mse_sgd_
    monkeypatch.setattr(gdcore, "linear_mse_sgd_", lambda x, *rest, **lr: rows.append(len(x)) or real(x, *rest, **lr))
    case = RunCase("digits", 2, batch=500)
    PEERS[STEPS].prepare(case, CPU)(case.draw(CPU, 0))()
    assert rows == [500, 500, 437] * 2 and len(rows) == case.updates


@pytest.mark.parametrize(("name", "method"), [(OURS, "auto"), (GRAM, "gram")])
def test_a_whole_run_is_one_call(name, method, monkeypatch):
    asked = []
    real = gdcore.fit
    monkeypatch.setattr(gdcore, "fit", lambda *data, **options: asked.append(options) or real(*data, **options))
    call = PEERS[name].prepare(RunCase("thermometer", 9), CPU)(RunCase("thermometer", 9).draw(CPU, 0))
    call()
    assert len(asked) == 1 and asked[0]["method"] == method and asked[0]["steps"] == 9 and asked[0]["intercept"] is True


def test_batches_are_a_new_order_every_epoch_and_the_same_for_everyone():
    case = RunCase("digits", 2, batch=64)
    first, again, other = (case.draw(CPU, seed) for seed in (0, 0, 1))
    assert case.updates == len(first.rows) == 2 * 23 and [len(rows) for rows in first.rows[:23]] == [64] * 22 + [29]
    assert all(torch.equal(*pair) for pair in zip(first.rows, again.rows, strict=True))
    assert not torch.equal(first.rows[0], other.rows[0]) and not torch.equal(first.rows[0], first.rows[23])
    assert torch.cat(first.rows[:23]).sort().values.tolist() == list(range(case.n)), "every row once an epoch"
    seen = list(run_peers.batches(first, case.updates))
    assert torch.equal(seen[22][0], first.x[first.rows[22]]) and torch.equal(seen[22][1], first.y[first.rows[22]])


def test_a_graph_needs_batches_of_one_size():
    with pytest.raises(LeftOut, match="batches of one size, the last one here is shorter"):
        PEERS[GRAPH].prepare(RunCase("digits", 1, batch=64), torch.device("cuda"))
    PEERS[GRAPH].prepare(RunCase("digits", 1, batch=1437), torch.device("cuda"))


def test_a_run_starts_from_its_start_each_time():
    case = RunCase("lesson", 5)
    operands = case.draw(CPU, 0)
    start = operands.weight.clone()
    call = PEERS[OURS].prepare(case, CPU)(operands)
    assert torch.equal(call()[0], call()[0]) and torch.equal(operands.weight, start)


@pytest.mark.parametrize(
    ("case", "device", "why"),
    [
        (RunCase("digits", 1), CPU, "SGDRegressor has one output"),
        (RunCase("lesson", 1), torch.device("cuda"), "scikit-learn computes on the CPU"),
    ],
    ids=["outputs", "device"],
)
def test_scikit_learn_is_left_out_where_it_cannot(case, device, why):
    with pytest.raises(LeftOut, match=f"^{why}$"):
        PEERS[SKLEARN].prepare(case, device)


def test_scikit_learn_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(LeftOut, match=r"^scikit-learn is not installed$"):
        PEERS[SKLEARN].prepare(RunCase("lesson", 1), CPU)


@pytest.mark.parametrize("name", ["lesson", "diabetes"])
def test_scikit_learn_learns_the_same_data(name):
    case = RunCase(name, 200)
    row = measure_case(case, SETTING)
    entry = row["peers"][SKLEARN]
    assert entry["another_algorithm"] and "parity" not in entry and "times" in entry
    assert entry["score"] == pytest.approx(row["peers"][STOCK]["score"], abs=0.03)


def test_scikit_learn_fits_a_bias_where_the_run_has_one():
    case = RunCase("thermometer", 20)
    loss, weight, bias = PEERS[SKLEARN].prepare(case, CPU)(case.draw(CPU, 0))()
    assert loss.shape == (1,) and weight.shape == (1, 1) and bias.shape == (1,) and bias.item() != 0


def test_data_that_is_not_there_is_reported(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'sklearn'")

    monkeypatch.setitem(DATASETS, "diabetes", missing)
    row = measure_case(RunCase("diabetes", 10), SETTING)
    assert row["skipped"] == "ModuleNotFoundError: No module named 'sklearn'" and row["updates"] == 10


@pytest.mark.parametrize(
    ("case", "numbers", "flops"),
    [
        (RunCase("lesson", 7), 100 * 3 + 2 * 2 + 7, 4 * 100 * 2 * 7),
        (RunCase("thermometer", 7), 11 * 2 + 2 * 2 + 7, 4 * 11 * 7),
        (RunCase("digits", 2, batch=64), 1437 * 74 + 2 * 650 + 46, 4 * 1437 * 640 * 2),
    ],
    ids=["no bias", "bias", "batches"],
)
def test_hand_counts_of_bytes_and_flops(case, numbers, flops):
    assert case.minimal_bytes == 4 * numbers and case.flops == flops


def test_a_plan_is_of_the_whole_run():
    full, batched = (case.plan(case.draw(CPU, 0)) for case in (RunCase("digits", 3), RunCase("digits", 3, batch=64)))
    assert full.path == batched.path == "resident" and (full.spec.steps, batched.spec.steps) == (3, 69)
    assert full.flops == 3 * 4 * 1437 * 640 and full.bytes_read == 4 * 1437 * 74
    assert batched.flops == 69 * 4 * 64 * 640 and batched.spec.batch_size == 64


def test_profiles_train_on_all_data():
    for profile in ("quick", "full"):
        assert {case.data for case in run_cases.PROFILES[profile]} == set(DATASETS)
    assert any(case.updates >= 5_000 for case in run_cases.PROFILES["full"]), "the published run to its end"
