"""The forward product on tensor descriptors: loss, residual and squared residual."""

import math

import pytest
import torch
import torch.nn.functional as F

from gdcore.kernels.configs import Config, accumulator_dtype, epilogue_parts, product_config
from gdcore.kernels.forward_descriptors import forward_descriptors
from gdcore.kernels.tiles import descriptors_fit
from product_support import assert_near, laid_out, normal, poison
from support import DEVICE, DTYPES

SMALL = Config(block_n=32, block_k=32, block_m=64, num_warps=4, num_stages=2)
CASES = [
    # N, K, M, dtype, bias
    (1, 513, 16, torch.float32, True),
    (37, 16, 257, torch.float32, True),
    (257, 33, 1, torch.float32, False),
    *((70, 40, 72, dtype, bias) for dtype in DTYPES for bias in (True, False)),
]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def aligned(n, m, dtype):
    """An (n, m) matrix whose rows start at multiples of 16 bytes, among memory that is NaN."""
    return torch.full((n + 1, -(-m // 16) * 16 + 16), torch.nan, device=DEVICE).to(dtype)[:n, :m]


def operands(n, k, m, dtype, bias=True, target_dtype=None):
    x, w, y = aligned(n, k, dtype), aligned(m, k, dtype), aligned(n, m, target_dtype or dtype)
    for tensor, scale in ((x, 1), (w, k**-0.5), (y, 1)):
        tensor.copy_(scale * normal(*tensor.shape))
    assert descriptors_fit(x, w, y)
    return x, w, y, laid_out(normal(m, 1, dtype=dtype), "sliced")[:, 0] if bias else None


def exact_residual(x, w, y, b):
    return F.linear(x.double(), w.double(), None if b is None else b.double()) - y.double()


def launch(x, w, y, b, *, config=SMALL, programs=3, residual=None, squares=None, loss_scale=1.0):
    return forward_descriptors(
        x, w, y, b, config=config, loss_scale=loss_scale, residual=residual, squares=squares, input_precision="ieee",
        programs=programs,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "k", "m", "dtype", "bias"), CASES)
def test_loss_residual_and_squares(n, k, m, dtype, bias):
    x, w, y, b = operands(n, k, m, dtype, bias)
    exact = exact_residual(x, w, y, b)
    magnitude = exact_residual(x.abs(), w.abs(), -y.abs(), None if b is None else b.abs())
    stock = F.linear(x, w, b) - y
    residual, squares = aligned(n, m, dtype), aligned(n, m, dtype)
    loss = launch(x, w, y, b, residual=residual, loss_scale=1 / (n * m))
    assert loss.shape == ()
    assert loss.dtype == accumulator_dtype(dtype)
    assert_near(loss, F.mse_loss(F.linear(x, w, b), y), exact.square().mean(), magnitude.square().mean(), "loss")
    assert_near(residual, stock, exact, magnitude, "residual")
    assert launch(x, w, y, b, squares=squares) is None
    assert_near(squares, stock.square(), exact.square(), magnitude.square(), "squares")
    for out in (residual, squares):  # nothing is written past the matrix
        assert out._base[n:].isnan().all()
        assert out._base[:, m:].isnan().all()


@pytest.mark.parametrize("config", [Config(64, 32, 128), Config(128, 32, 256)], ids=str)
def test_the_tile_may_be_finished_in_parts(config):
    tensors = operands(130, 17, 264, torch.float32)
    residual = aligned(130, 264, torch.float32)
    loss = launch(*tensors, config=config, residual=residual)
    exact = exact_residual(*tensors)
    torch.testing.assert_close(residual.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.double(), exact.square().sum(), rtol=1e-5, atol=0)


def test_parts_fit_the_shared_memory_beside_the_pipeline():
    assert epilogue_parts(128, 256, 4) == 2  # Y and E in half precision
    assert epilogue_parts(128, 256, 8) == 4  # in float32
    assert epilogue_parts(128, 128, 2) == 1  # Y alone


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_float32_target_is_met_by_the_unrounded_prediction(dtype):
    x, w, y, b = operands(40, 24, 18, dtype, target_dtype=torch.float32)
    y.copy_(exact_residual(x, w, torch.zeros_like(y), b) + 1e-3 * normal(40, 18))
    residual = aligned(40, 18, torch.float32)
    loss = launch(x, w, y, b, residual=residual, loss_scale=1 / 720)
    exact = exact_residual(x, w, y, b)
    torch.testing.assert_close(residual.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss.double(), exact.square().mean(), rtol=1e-2, atol=0)


def test_the_scale_of_a_float64_loss_is_not_rounded():
    tensors = operands(5, 4, 4, torch.float64)
    loss = launch(*tensors, loss_scale=1 / 3)
    assert math.isclose(loss.item(), exact_residual(*tensors).square().sum().item() / 3, rel_tol=1e-14)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", range(4), ids=["input", "weight", "target", "bias"])
def test_nan_and_infinity_reach_their_residuals_and_no_others(which, value):
    tensors = list(operands(17, 5, 18, torch.float32))
    tensors[which][(0,) * tensors[which].dim()] = value
    residual = aligned(17, 18, torch.float32)
    loss = launch(*tensors, residual=residual)
    torch.testing.assert_close(residual.double(), exact_residual(*tensors), equal_nan=True, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.double(), exact_residual(*tensors).square().sum(), equal_nan=True)


def test_the_same_bits_for_any_number_of_programs():
    tensors = operands(50, 20, 72, torch.float32)
    losses = {launch(*tensors, programs=programs).item() for programs in (None, 1, 2, 5, 5, 100)}
    assert len(losses) == 1


def test_descriptors_fit_dense_aligned_rows():
    half = torch.zeros(8, 24, dtype=torch.bfloat16)
    assert descriptors_fit(half, half[:, :5], half[1:, 8:])
    assert not descriptors_fit(half[:, 1:])  # starts between
    assert not descriptors_fit(half, half.t())
    assert not descriptors_fit(torch.zeros(8, 20, dtype=torch.bfloat16))  # rows of 40 bytes
    assert not descriptors_fit(half[:1].expand(8, 24))
    assert descriptors_fit(torch.zeros(8, 20))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_configuration_that_ships(dtype):
    shape = (70, 40, 264)
    x, w, y, b = operands(*shape, dtype)
    loss = launch(x, w, y, b, config=product_config("forward_descriptors", 90, dtype, *shape, input_precision="tf32"))
    torch.testing.assert_close(loss.double(), exact_residual(x, w, y, b).square().sum(), rtol=1e-3, atol=0)


def test_8_bit_operands_have_one_scale():
    x, w = (8 * aligned(*shape, torch.float32).copy_(normal(*shape)) for shape in ((40, 48), (24, 48)))
    x, w = (laid_out_in_8_bits(t) for t in (x, w))
    y = aligned(40, 24, torch.bfloat16).copy_(normal(40, 24))
    scale = torch.tensor(1 / 64, device=DEVICE)
    loss = forward_descriptors(
        x, w, y, None, config=SMALL, loss_scale=1.0, residual=None, squares=None, input_precision="ieee",
        operand_scale=scale,
    )  # fmt: skip
    exact = x.double() @ w.double().t() / 64 - y.double()
    torch.testing.assert_close(loss.double(), exact.square().sum(), rtol=1e-5, atol=0)


def laid_out_in_8_bits(tensor):
    return torch.zeros(tensor.shape[0], 64, device=DEVICE).to(torch.float8_e4m3fn)[:, :48].copy_(tensor)
