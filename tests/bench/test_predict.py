"""Predictions: stock's bytes by hand, rows that call themselves predicted, no GPU needed."""

import torch

from gdcore.bench import predict
from gdcore.bench.cases import Case


def test_stocks_bytes_are_the_hand_count():
    n, k, m = 1000, 8, 2
    skinny = predict.stock_bytes(Case("A", n, k, m))
    assert skinny == 4 * (2 * n * k + 9 * n * m + 2 * m * k)  # X twice; the prediction and its kin nine times
    assert predict.stock_bytes(Case("A", n, k, m, dtype=torch.bfloat16)) == skinny // 2
    assert predict.stock_bytes(Case("A", n, k, m, wanted=())) < skinny


def test_one_pass_moves_less_than_stock_and_says_it_is_predicted():
    row = predict.predict(Case("A", 100_000_000, 2, 1))
    assert row["predicted"] is True and row["device"] == "H200"
    assert 4 * 3e8 <= row["bytes"] < row["stock_bytes"] / 2
    assert 0 < row["floor_seconds"] < row["stock_floor_seconds"]
    assert row["bound_by"] == "memory"


def test_every_shape_of_a_gpu_run_is_predicted():
    rows = predict.table()
    assert len({row["case"] for row in rows}) == len(rows) > 10
    assert all(row["predicted"] and row["path"] and row["why"] for row in rows)


def test_registers_and_occupancy_come_from_the_compiled_code():
    row = predict.predict(Case("A", 100_000_000, 2, 1))
    assert row["compiled"]["registers"] > 0 and 0 < row["compiled"]["occupancy"] <= 1
