"""Sums over the rows of a residual: the bias's gradient."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdcore.kernels import configs
from gdcore.kernels.column_sums import column_sums
from gdcore.kernels.configs import accumulator_dtype, column_sums_grid
from product_support import LAYOUTS, assert_near, laid_out, normal, poison, shape_id
from support import DTYPES


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def check(e):
    found = column_sums(e)
    assert found.dtype == accumulator_dtype(e.dtype)
    assert found.shape == e.shape[1:]
    assert_near(found, e.to(found.dtype).sum(0), e.double().sum(0), e.double().abs().sum(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (9000, 1, 1), (5, 1, 300), (700, 1, 41), (70, 1, 128)], ids=shape_id)
def test_parity(shape, dtype):
    n, _, m = shape
    check(normal(n, m, dtype=dtype))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
def test_any_shape_dtype_and_layout(n, m, dtype, layout):
    check(laid_out(normal(n, m, dtype=dtype), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_tiles_than_programs(layout, monkeypatch):
    monkeypatch.setattr(configs, "LOSS_PROGRAMS", 3)
    assert column_sums_grid(2000, 41)[2] == 3
    assert column_sums_grid(200, 41)[2] == 1
    check(laid_out(normal(2000, 41), layout))


def test_whole_numbers_are_exact_and_repeats_bitwise_equal():
    e = (torch.arange(3000 * 7, dtype=torch.float32).view(3000, 7) % 251).to(normal(1).device)
    assert torch.equal(column_sums(e), e.sum(0))
    e = normal(3000, 7)
    before = e.clone()
    assert torch.equal(column_sums(e), column_sums(e))
    assert torch.equal(e, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [100, 1500])  # in one part, in several
def test_scale_and_upstream_gradient_enter_before_the_one_rounding(n, dtype):
    e, upstream = normal(n, 41, dtype=dtype), normal(1, dtype=dtype).view(())
    found = column_sums(e, upstream, scale=-0.25, out_dtype=dtype)
    assert found.dtype == dtype
    exact = -0.25 * upstream.double() * e.double().sum(0)
    stock = (-0.25 * upstream.to(accumulator_dtype(dtype)) * e.to(accumulator_dtype(dtype)).sum(0)).to(dtype)
    assert_near(found, stock, exact, e.double().abs().sum(0) * upstream.double().abs() / 4)


def test_nan_stays_in_its_column():
    e = normal(200, 5)
    e[77, 2] = torch.nan
    assert column_sums(e).isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("m", [1, 2, 64, 203, 4096, 2**20])
def test_what_it_takes_is_small(m):
    """A megabyte of float32, or a row."""
    block_n, block_m, parts = column_sums_grid(2**22, m)
    assert block_n * block_m == configs.ELEMENTWISE_TILE
    assert parts * m * 4 <= max(1 << 20, 4 * m)
