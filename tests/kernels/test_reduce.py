"""The ordered sum of partial results."""

import math

import numpy as np
import pytest
import torch

from gdcore.kernels.common import INTERPRET
from gdcore.kernels.reduce import add_rows, reduce_tile
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


def test_error_is_within_the_bound_of_the_order_it_adds_in():
    """One after another, 100,000 times 0.1 in float32 is off by more than this."""
    n_rows, n_columns = 100_000, 3
    partials = torch.full((n_rows, n_columns), 0.1, device=normal(1).device)
    block_n, _ = reduce_tile(n_columns)
    lanes = block_n if INTERPRET else math.log2(block_n)  # NumPy adds the lanes one after another
    bound = (-(-n_rows // block_n) + lanes) * 2.0**-24
    one_by_one = np.cumsum(np.full(n_rows, 0.1, np.float32), dtype=np.float32)[-1]
    exact = partials.double().sum(0)
    assert ((add_rows(partials) - exact) / exact).abs().max() <= bound
    assert abs(one_by_one - exact[0].item()) / exact[0].item() > bound


def test_repeats_are_bitwise_equal_and_leave_the_input_alone():
    partials = normal(777, 40)
    before = partials.clone()
    assert torch.equal(add_rows(partials), add_rows(partials))
    assert torch.equal(partials, before)


def test_nan_stays_in_its_column():
    partials = normal(50, 5)
    partials[7, 2] = torch.nan
    assert add_rows(partials).isnan().tolist() == [False, False, True, False, False]
