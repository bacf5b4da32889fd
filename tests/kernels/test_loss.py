"""The loss of a stored residual."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdcore.kernels import loss as loss_module
from gdcore.kernels.configs import accumulator_dtype
from gdcore.kernels.loss import loss
from product_support import LAYOUTS, assert_near, laid_out, normal, poison, shape_id
from support import DTYPES


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def check(e, scale):
    value = loss(e, loss_scale=scale)
    assert value.dtype == accumulator_dtype(e.dtype)
    exact = e.double().square().sum() * scale
    assert_near(value, e.square().sum() * scale, exact, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (9000, 1, 1), (5, 1, 5000), (70, 1, 300)], ids=shape_id)
def test_parity(shape, dtype):
    n, _, m = shape
    check(normal(n, m, dtype=dtype), 1 / (n * m))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_tiles_than_programs(layout, monkeypatch):
    monkeypatch.setattr(loss_module, "LOSS_PROGRAMS", 3)
    check(laid_out(normal(700, 41), layout), 1.0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 300), st.integers(1, 70), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
def test_any_shape_dtype_and_layout(n, m, dtype, layout):
    check(laid_out(normal(n, m, dtype=dtype), layout), 1 / (n * m))


def test_the_scale_of_float64_is_not_rounded():
    e = normal(20, 5, dtype=torch.float64)
    assert math.isclose(loss(e, loss_scale=1 / 3).item(), e.square().sum().item() / 3, rel_tol=1e-14)


def test_a_tiny_scale_survives_half_precision():
    e = normal(20, 5, dtype=torch.float16)
    assert math.isclose(loss(e, loss_scale=1e-12).item(), e.double().square().sum().item() * 1e-12, rel_tol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_reach_the_loss(value):
    e = normal(20, 5)
    e[19, 4] = value
    torch.testing.assert_close(loss(e, loss_scale=1.0).item(), value, equal_nan=True)


def test_the_same_bits_every_time():
    e = normal(100, 70)
    assert len({loss(e, loss_scale=1.0).item() for _ in range(3)}) == 1
