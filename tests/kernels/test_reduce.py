"""The ordered sum of partial results."""

import pytest
import torch
from gdcore.kernels.reduce import add_rows
from product_support import normal, poison


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [1, 3, 32, 33, 100])
@pytest.mark.parametrize("rows", [1, 2, 31, 300, 1100])
def test_adds_every_row_once(rows, columns, dtype):
    partials = torch.arange(rows * columns, dtype=dtype).view(rows, columns) % 251
    partials = partials.to(normal(1).device)
    assert torch.equal(add_rows(partials), partials.sum(0))  # whole numbers: exact in any order


def test_error_is_that_of_a_tree():
    partials = normal(4000, 3).abs()
    exact = partials.double().sum(0)
    assert ((add_rows(partials) - exact) / exact).abs().max() < 5e-7


def test_repeats_are_bitwise_equal_and_leave_the_input_alone():
    partials = normal(777, 40)
    before = partials.clone()
    assert torch.equal(add_rows(partials), add_rows(partials))
    assert torch.equal(partials, before)


def test_nan_stays_in_its_column():
    partials = normal(50, 5)
    partials[7, 2] = torch.nan
    assert add_rows(partials).isnan().tolist() == [False, False, True, False, False]
