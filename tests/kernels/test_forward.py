"""The forward product: loss, residual and squared residual."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdcore.kernels.configs import accumulator_dtype, product_config
from gdcore.kernels.forward import forward
from product_support import LAYOUTS, SHAPES, SMALL, assert_near, laid_out, normal, poison, shape_id
from support import DEVICE, DTYPES


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def operands(n, k, m, dtype, bias=True, target_dtype=None):
    return (
        normal(n, k, dtype=dtype),
        normal(m, k, dtype=dtype) / k**0.5,
        normal(n, m, dtype=target_dtype or dtype),
        normal(m, dtype=dtype) if bias else None,
    )


def exact_residual(x, w, y, b):
    return F.linear(x.double(), w.double(), None if b is None else b.double()) - y.double()


def launch(x, w, y, b, *, config=SMALL, residual=None, squares=None, loss_scale=1.0, precision="ieee"):
    return forward(
        x, w, y, b, config=config, loss_scale=loss_scale, residual=residual, squares=squares, input_precision=precision
    )


def check(x, w, y, b, config=SMALL):
    """Loss and residual together, loss alone, and squares, each against float64 and stock."""
    n, m = y.shape
    exact = exact_residual(x, w, y, b)
    magnitude = exact_residual(x.abs(), w.abs(), -y.abs(), None if b is None else b.abs())
    stock = F.linear(x, w, b) - y
    residual, squares = torch.empty_like(stock).fill_(torch.nan), torch.empty_like(stock).fill_(torch.nan)
    loss = launch(x, w, y, b, config=config, residual=residual, loss_scale=1 / (n * m))
    assert loss.shape == ()
    assert loss.dtype == accumulator_dtype(x.dtype)
    assert_near(loss, F.mse_loss(F.linear(x, w, b), y), exact.square().mean(), magnitude.square().mean(), "loss")
    assert_near(residual, stock, exact, magnitude, "residual")
    alone = launch(x, w, y, b, config=config, loss_scale=1 / (n * m))
    assert torch.equal(alone, loss)
    assert launch(x, w, y, b, config=config, squares=squares) is None
    assert_near(squares, stock.square(), exact.square(), magnitude.square(), "squares")


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_loss_residual_and_squares(shape, dtype, bias):
    check(*operands(*shape, dtype, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_configuration_that_ships(dtype):
    shape = (70, 40, 257)
    check(*operands(*shape, dtype), config=product_config("forward", 90, dtype, *shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", range(3), ids=["input", "weight", "target"])
def test_layouts(which, layout):
    tensors = list(operands(19, 35, 21, torch.float32))
    tensors[which] = laid_out(tensors[which], layout)
    check(*tensors)


def test_residual_squares_and_bias_of_any_layout():
    x, w, y, b = operands(19, 17, 21, torch.float32)
    b = laid_out(b[:, None], "sliced")[:, 0]
    for name in ("residual", "squares"):
        out = laid_out(torch.zeros_like(y), "sliced")
        launch(x, w, y, b, **{name: out})
        exact = exact_residual(x, w, y, b) ** (1 if name == "residual" else 2)
        torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_float32_target_is_met_by_the_unrounded_prediction(dtype):
    # A prediction rounded to half precision would lose every digit of a residual this small.
    x, w, _, b = operands(40, 24, 18, dtype)
    target = (exact_residual(x, w, torch.zeros(40, 18, device=DEVICE), b) + 1e-3 * normal(40, 18)).float()
    residual = torch.empty(40, 18, device=DEVICE)
    loss = launch(x, w, target, b, residual=residual, loss_scale=1 / 720)
    exact = exact_residual(x, w, target, b)
    torch.testing.assert_close(residual.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss.double(), exact.square().mean(), rtol=1e-2, atol=0)


def test_the_scale_of_a_float64_loss_is_not_rounded():
    tensors = operands(5, 4, 3, torch.float64)
    loss = launch(*tensors, loss_scale=1 / 3)
    assert math.isclose(loss.item(), exact_residual(*tensors).square().sum().item() / 3, rel_tol=1e-14)


def test_a_tiny_scale_survives_half_precision():
    tensors = operands(20, 4, 3, torch.float16)
    loss = launch(*tensors, loss_scale=1e-12)
    assert math.isclose(loss.item(), exact_residual(*tensors).square().sum().item() * 1e-12, rel_tol=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", range(4), ids=["input", "weight", "target", "bias"])
def test_nan_and_infinity_reach_their_residuals_and_no_others(which, value):
    tensors = list(operands(17, 5, 18, torch.float32))
    tensors[which].view(-1)[0] = value
    residual = torch.empty(17, 18, device=DEVICE)
    loss = launch(*tensors, residual=residual)
    torch.testing.assert_close(residual.double(), exact_residual(*tensors), equal_nan=True, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.double(), exact_residual(*tensors).square().sum(), equal_nan=True)


def test_memory_beyond_the_tensors_is_not_used():
    tensors = [laid_out(t, "sliced") for t in operands(17, 18, 19, torch.float32)[:3]]
    check(*tensors, None)


def test_the_same_bits_every_time():
    tensors = operands(50, 20, 34, torch.float32)
    losses = {launch(*tensors).item() for _ in range(3)}
    assert len(losses) == 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from(DTYPES), st.tuples(*[st.sampled_from(LAYOUTS)] * 3))
def test_any_shape_dtype_and_layout(shape, dtype, layouts):
    x, w, y, b = operands(*shape, dtype)
    check(*(laid_out(t, layout) for t, layout in zip((x, w, y), layouts, strict=True)), b)
