"""The input's gradient: scale · (grad_output ∘ E) W."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdcore.kernels.backward_input import backward_input
from gdcore.kernels.configs import accumulator_dtype, product_config
from product_support import LAYOUTS, SHAPES, SMALL, assert_near, laid_out, normal, poison, shape_id
from support import DEVICE, DTYPES


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def upstream(kind, n, m, dtype):
    """grad_output: one number of the loss's dtype, or a matrix."""
    if kind == "matrix":
        return normal(n, m, dtype=dtype)
    return torch.tensor({"one": 1.0, "negative": -3.5}[kind], dtype=accumulator_dtype(dtype), device=DEVICE)


def check(e, w, go, *, scale=0.25, config=SMALL, out=None):
    d = scale * go.double() * e.double()
    stock = (scale * go * e).to(w.dtype) @ w
    out = torch.empty_like(stock).fill_(torch.nan) if out is None else out
    backward_input(e, w, go, scale=scale, config=config, input_precision="ieee", out=out)
    assert_near(out, stock, d @ w.double(), d.abs() @ w.double().abs())
    return out


@pytest.mark.parametrize("grad_output", ["negative", "matrix"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_parity(shape, dtype, grad_output):
    n, k, m = shape
    check(normal(n, m, dtype=dtype), normal(m, k, dtype=dtype), upstream(grad_output, n, m, dtype))


@pytest.mark.parametrize("grad_output", ["one", "matrix"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_configuration_that_ships(dtype, grad_output):
    n, k, m = 70, 257, 40
    config = product_config("backward_input", 90, dtype, n, k, m)
    check(normal(n, m, dtype=dtype), normal(m, k, dtype=dtype), upstream(grad_output, n, m, dtype), config=config)


@pytest.mark.parametrize("grad_output", ["one", "matrix"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_float32_residual_beside_half_weights(dtype, grad_output):
    check(normal(20, 33), normal(33, 18, dtype=dtype), upstream(grad_output, 20, 33, torch.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", range(3), ids=["residual", "weight", "grad_output"])
def test_layouts(which, layout):
    tensors = [normal(19, 35), normal(35, 21), normal(19, 35)]
    tensors[which] = laid_out(tensors[which], layout)
    check(*tensors, out=laid_out(torch.zeros(19, 21, device=DEVICE), "transposed"))


def test_a_tiny_scale_survives_half_precision():
    e, w = normal(20, 5, dtype=torch.float16), normal(5, 7, dtype=torch.float16)
    go = torch.tensor(1e11, device=DEVICE)
    out = torch.empty(20, 7, dtype=torch.float16, device=DEVICE)
    backward_input(e, w, go, scale=1e-12, config=SMALL, input_precision="ieee", out=out)
    torch.testing.assert_close(out.double(), 0.1 * e.double() @ w.double(), rtol=1e-2, atol=1e-3)


def test_a_tiny_scale_beside_a_matrix_grad_output_survives_half_precision():
    e, w, go = normal(20, 5, dtype=torch.float16), normal(5, 7, dtype=torch.float16), normal(20, 5, dtype=torch.float16)
    out = torch.empty(20, 7, device=DEVICE)
    backward_input(e, w, go, scale=1e-12, config=SMALL, input_precision="ieee", out=out)
    exact = 1e-12 * (go.double() * e.double()) @ w.double()
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-15)


def test_the_scale_of_float64_is_not_rounded():
    e, w = normal(3, 4, dtype=torch.float64), normal(4, 5, dtype=torch.float64)
    out = check(e, w, torch.tensor(1.0, dtype=torch.float64, device=DEVICE), scale=1 / 3)
    torch.testing.assert_close(out, e @ w / 3, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_reach_their_row_and_no_other(value):
    e, w = normal(17, 5), normal(5, 18)
    e[0, 0] = value
    out = torch.empty(17, 18, device=DEVICE)
    backward_input(e, w, torch.ones((), device=DEVICE), scale=1.0, config=SMALL, input_precision="ieee", out=out)
    torch.testing.assert_close(out, e @ w, equal_nan=True, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.sampled_from(DTYPES),
    st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    st.sampled_from(["one", "negative", "matrix"]),
)
def test_any_shape_dtype_and_layout(shape, dtype, layouts, grad_output):
    n, k, m = shape
    go = upstream(grad_output, n, m, dtype)
    go = laid_out(go, layouts[2]) if grad_output == "matrix" else go
    check(laid_out(normal(n, m, dtype=dtype), layouts[0]), laid_out(normal(m, k, dtype=dtype), layouts[1]), go)
