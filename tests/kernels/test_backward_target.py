"""The target's gradient: −scale · grad_output ∘ E, elementwise."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdcore.kernels.backward_target import backward_target
from gdcore.kernels.configs import accumulator_dtype
from product_support import LAYOUTS, assert_near, laid_out, normal, poison, shape_id
from support import DEVICE, DTYPES


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def check(e, go, scale=0.25, out=None):
    out = torch.full_like(e, torch.nan) if out is None else out
    backward_target(e, go, scale=scale, out=out)
    exact = -scale * go.double() * e.double()
    assert_near(out, (-scale * go * e).to(e.dtype), exact, exact)


@pytest.mark.parametrize("grad_output", ["number", "matrix"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (9000, 1, 1), (5, 1, 5000), (70, 1, 300)], ids=shape_id)
def test_parity(shape, dtype, grad_output):
    n, _, m = shape
    number = torch.tensor(-3.5, dtype=accumulator_dtype(dtype), device=DEVICE)
    check(normal(n, m, dtype=dtype), number if grad_output == "number" else normal(n, m, dtype=dtype))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 300), st.integers(1, 70), st.sampled_from(DTYPES), st.tuples(*[st.sampled_from(LAYOUTS)] * 2))
def test_any_shape_dtype_and_layout(n, m, dtype, layouts):
    e, go = (laid_out(normal(n, m, dtype=dtype), layout) for layout in layouts)
    check(e, go, out=laid_out(torch.zeros_like(e).contiguous(), "sliced"))


def test_a_tiny_scale_survives_half_precision():
    e = normal(20, 5, dtype=torch.float16)
    out = torch.empty_like(e)
    backward_target(e, torch.tensor(1e11, device=DEVICE), scale=1e-12, out=out)
    torch.testing.assert_close(out.double(), -0.1 * e.double(), rtol=1e-2, atol=1e-4)


def test_the_scale_of_float64_is_not_rounded():
    e = normal(20, 5, dtype=torch.float64)
    out = torch.empty_like(e)
    backward_target(e, torch.ones((), dtype=torch.float64, device=DEVICE), scale=1 / 3, out=out)
    torch.testing.assert_close(out, -e / 3, rtol=1e-15, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_stay_in_place(value):
    e = normal(20, 5)
    e[3, 4] = value
    out = torch.empty_like(e)
    backward_target(e, torch.ones((), device=DEVICE), scale=1.0, out=out)
    torch.testing.assert_close(out, -e, equal_nan=True)
