"""Training on real data: published losses reproduced, stock and fused the same, wrong functions noticed."""

import pytest
import torch

import gdcore
from gdcore.bench import training_runs
from gdcore.bench.datasets import DATASETS, thermometer
from gdcore.bench.peers import OURS, STOCK

CPU = torch.device("cpu")


@pytest.mark.parametrize("function", [training_runs.stock_loss, gdcore.linear_mse], ids=["stock", "gdcore"])
def test_the_thermometers_published_losses(function):
    data = thermometer(CPU)
    differences = training_runs.golden_difference(training_runs.train(function, data, 0), data.golden)
    assert differences["losses"] < 1e-5 and differences["parameters"] < 1e-4


@pytest.mark.parametrize("name", DATASETS)
def test_stock_and_fused_train_alike(name):
    row = training_runs.run_dataset(name, CPU, 0, small=True)
    assert row["problems"] == []
    assert row[STOCK]["final_loss"] < row["first_loss"]
    assert row[OURS]["score"] == pytest.approx(row[STOCK]["score"], abs=1e-3)


def test_a_wrong_function_is_noticed(monkeypatch):
    monkeypatch.setattr(gdcore, "linear_mse", lambda x, w, y, b: 1.01 * training_runs.stock_loss(x, w, y, b))
    problems = training_runs.run_dataset("diabetes", CPU, 0, small=True)["problems"]
    assert any("losses differ" in problem for problem in problems)


def test_data_that_is_not_there_is_reported(monkeypatch):
    def missing(device):
        raise ModuleNotFoundError("No module named 'sklearn'")

    monkeypatch.setitem(training_runs.DATASETS, "diabetes", missing)
    row = training_runs.run_dataset("diabetes", CPU, 0)
    assert "sklearn" in row["unavailable"] and row["problems"] == []
