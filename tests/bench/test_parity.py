"""Parity: right results pass, wrong ones do not, in every way in which a result can be wrong."""

import math

import pytest
import torch

from gdcore.bench import parity

EXACT = {"loss": torch.tensor(2.0, dtype=torch.float64), "weight": torch.tensor([[3.0, 4.0]], dtype=torch.float64)}
STOCK = {name: value.float() for name, value in EXACT.items()}


def judged(kind: str = "linear_mse", stock: dict = STOCK, **found: torch.Tensor) -> dict:
    return parity.judge(kind, STOCK | found, EXACT, stock)


def test_stock_passes_its_own_test():
    found = judged()
    assert found["passed"] and found["failures"] == []
    assert found["errors"] == found["stock_errors"] == {"loss": 0.0, "weight": 0.0}
    assert found["worst_ratio"] is None, "nothing to divide by"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"weight": STOCK["weight"] * 1.001}, "weight is off by 1.0e-03"),
        ({"weight": -STOCK["weight"]}, "weight is off by 2.0e+00"),
        ({"weight": torch.zeros(1, 2)}, "weight is off by 1.0e+00"),
        ({"weight": torch.tensor([[3.0, math.nan]])}, "weight is off by nan"),
        ({"weight": torch.tensor([[3.0, math.inf]])}, "weight is off by inf"),
        ({"weight": STOCK["weight"].T}, "weight is off by inf"),
        ({"weight": STOCK["weight"].double()}, "weight has dtype torch.float64, stock's has torch.float32"),
        ({"loss": STOCK["loss"][None]}, "loss is off by inf"),
    ],
    ids=["a thousandth", "sign", "zeros", "NaN", "inf", "transposed", "dtype", "shape of the loss"],
)
def test_what_is_wrong_fails_by_name(found, said):
    entry = judged(**found)
    assert not entry["passed"] and len(entry["failures"]) == 1 and entry["failures"][0].startswith(said)


def test_twice_stock_s_error_is_allowed_and_not_more():
    stock = STOCK | {"loss": torch.tensor(2.002)}
    assert judged(stock=stock, loss=torch.tensor(2.0039))["passed"]
    worse = judged(stock=stock, loss=torch.tensor(2.0042))
    assert not worse["passed"] and worse["worst_ratio"] == pytest.approx(2.1, rel=1e-3)
    assert worse["errors"]["loss"] == pytest.approx(2.1e-3, rel=1e-3)
    assert worse["stock_errors"]["loss"] == pytest.approx(1e-3, rel=1e-3)


def test_a_missing_result_is_an_error():
    with pytest.raises(KeyError, match="weight"):
        parity.judge("linear_mse", {"loss": STOCK["loss"]}, EXACT, STOCK)


def test_of_an_optimizer_s_tensors_the_worst_is_kept_and_all_are_counted():
    exact = {f"tensor {i}": torch.arange(1.0, 1001.0, dtype=torch.float64) for i in range(3)}
    stock = {name: value.float() for name, value in exact.items()}
    left_out = {name: value.clone() for name, value in stock.items()}
    left_out["tensor 2"][-1] += 1
    found = parity.judge("sgd", left_out, exact, stock)
    assert found["failures"] == [f"tensor 2 is off by 1.0e-03 (stock 0.0e+00, allowed {1e-6:.1e})"]
    assert found["errors"] == {"parameters": pytest.approx(1e-3)}, "one of a thousand numbers shows"
    left_out["tensor 0"][0] += 100
    assert parity.judge("sgd", left_out, exact, stock)["failures"][0].startswith("wrong for 2 of 3 tensors: tensor 0")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_is_the_worst_wherever_it_stands(place):
    exact = {f"tensor {i}": torch.ones(4, dtype=torch.float64) for i in range(3)}
    stock = {name: torch.full((4,), 1.25) for name in exact}
    found = {**stock, f"tensor {place}": torch.full((4,), math.nan)}
    entry = parity.judge("sgd", found, exact, stock)
    assert math.isnan(entry["errors"]["parameters"]) and math.isnan(entry["worst_ratio"]) and not entry["passed"]


def test_nothing_at_all_is_right():
    empty = {"tensor 0": torch.empty(0, dtype=torch.float64)}
    narrow = {"tensor 0": torch.empty(0)}
    assert parity.judge("sgd", narrow, empty, narrow)["passed"]


def test_rows_left_out_of_many_do_not_hide_in_a_norm():
    """A hundred rows of a million left at zero are a hundredth of the norm, which half precision is allowed."""
    exact = torch.randn(200_000, 8, dtype=torch.float64)
    stock = exact.bfloat16()
    left_out = stock.clone()
    left_out[-20:] = 0
    found = parity.judge("linear_mse", {"input": left_out}, {"input": exact}, {"input": stock})
    assert found["errors"]["input"] < 2 * found["stock_errors"]["input"] + 8e-3, "the norm alone would let it pass"
    assert not found["passed"] and "in one place" in found["failures"][0]
    assert parity.judge("linear_mse", {"input": stock}, {"input": exact}, {"input": stock})["passed"]
