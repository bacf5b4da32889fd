"""The loss of a stored residual."""

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdcore.kernels import loss as loss_module
from gdcore.kernels.configs import accumulator_dtype
from gdcore.kernels.loss import loss
from gdcore.kernels.tiles import blocks_of
from product_support import LAYOUTS, assert_near, laid_out, normal, poison, shape_id
from support import DEVICE, DTYPES


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


@triton.jit
def count_kernel(out_ptr, length, BLOCK: tl.constexpr):
    tl.store(out_ptr, blocks_of(length, BLOCK))


@pytest.mark.parametrize("length", [1, 4096, 4097, 2**31 - 2048, 2**31 - 1, 2**31])
def test_a_long_row_is_cut_to_its_end(length):
    """A dense matrix is one row: 1048575 x 2048 numbers are 2048 less than 32 bits hold, and half a tile."""
    out = torch.zeros((), dtype=torch.int64, device=DEVICE)
    count_kernel[(1,)](out, length, BLOCK=4096)
    assert out.item() == -(-length // 4096)


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
