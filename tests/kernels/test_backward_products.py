"""Both backward products in one launch: dX = c E W and dW = c Eᵀ X, db = c Σ E; by pointers and by descriptors."""

import math

import pytest
import torch

from gdcore.kernels.backward_products import backward_products
from gdcore.kernels.backward_products_descriptors import backward_products_descriptors
from gdcore.kernels.backward_weight_step import backward_weight_step
from gdcore.kernels.backward_weight_step_descriptors import backward_weight_step_descriptors
from gdcore.kernels.configs import Config, accumulator_dtype
from gdcore.kernels.step import Step
from product_support import assert_near, laid_out, normal, poison
from support import DEVICE, DTYPES

SMALL = Config(block_n=32, block_k=64, block_m=32, num_warps=4, num_stages=2)
CASES = [
    # N, K, M, dtype, parts
    (1, 16, 257, torch.float32, 1),
    (257, 8, 33, torch.float32, 3),
    (40, 513, 1, torch.float32, 2),
    *((70, 72, 40, dtype, 1 + i % 2 * 2) for i, dtype in enumerate(DTYPES)),
]
KERNELS = {"pointers": backward_products, "descriptors": backward_products_descriptors}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def aligned(n, m, dtype=torch.float32):
    """Normal numbers in an (n, m) matrix whose rows start at multiples of 16 bytes, among memory that is NaN."""
    out = torch.full((n + 1, -(-m // 16) * 16 + 16), torch.nan, device=DEVICE).to(dtype)[:n, :m]
    return out.copy_(normal(n, m))


def launch(kernel, e, x, w, go, *, scale=0.25, config=SMALL, split=1, want_bias=True, programs=3, out_input=None):
    out = torch.full_like(x, torch.nan) if out_input is None else out_input
    dw, db = KERNELS[kernel](
        e, x, w, go, scale=scale, config=config, split=split, input_precision="ieee", want_bias=want_bias, out_input=out,
        out_dtype=w.dtype, programs=programs,
    )  # fmt: skip
    return out, dw, db


def one(value, dtype=torch.float32):
    return torch.tensor(value, dtype=accumulator_dtype(dtype), device=DEVICE)


@pytest.mark.parametrize(("n", "k", "m", "dtype", "split"), CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parity(kernel, n, k, m, dtype, split):
    e, x, w = aligned(n, m, dtype), aligned(n, k, dtype), aligned(m, k, dtype)
    go = one(-3.5, dtype)
    d = 0.25 * go.double() * e.double()
    stock = (0.25 * go * e).to(dtype)
    base = torch.full((n + 2, k + 3), torch.nan, dtype=dtype, device=DEVICE)
    dx, dw, db = launch(kernel, e, x, w, go, split=split, out_input=base[1:-1, 1:-2])
    assert dw.is_contiguous()
    assert dw.dtype == db.dtype == dtype
    assert_near(dx, stock @ w, d @ w.double(), d.abs() @ w.double().abs(), "input")
    assert_near(dw, stock.t() @ x, d.t() @ x.double(), d.abs().t() @ x.double().abs(), "weight")
    assert_near(db, stock.sum(0), d.sum(0), d.abs().sum(0), "bias")
    dx.fill_(torch.nan)
    assert base.isnan().all()  # nothing was written past the matrix


@pytest.mark.parametrize("which", range(4), ids=["residual", "input", "weight", "out"])
def test_pointers_take_any_layout(which):
    tensors = [normal(35, 19), normal(35, 21), normal(19, 21), torch.empty(35, 21, device=DEVICE)]
    tensors[which] = laid_out(tensors[which], "sliced" if which % 2 else "transposed")
    e, x, w, out = tensors
    dx, dw, db = launch("pointers", e, x, w, one(2.0), out_input=out, split=2)
    torch.testing.assert_close(dx, 0.5 * e @ w, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dw, 0.5 * e.t() @ x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(db, 0.5 * e.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_for_any_number_of_programs_and_without_bias(kernel):
    e, x, w = aligned(100, 24), aligned(100, 40), aligned(24, 40)
    first = launch(kernel, e, x, w, one(1.0), split=3)
    for programs in (None, 1, 7):
        again = launch(kernel, e, x, w, one(1.0), split=3, programs=programs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    dx, dw, db = launch(kernel, e, x, w, one(1.0), split=3, want_bias=False)
    assert db is None
    assert torch.equal(dx, first[0])
    assert torch.equal(dw, first[1])


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_tiny_scale_survives_half_precision(kernel, split):
    e, x, w = (aligned(*shape, torch.float16) for shape in ((50, 24), (50, 16), (24, 16)))
    dx, dw, db = launch(kernel, e, x, w, one(1e11), scale=1e-12, split=split)
    for ours, exact in ((dx, e.double() @ w.double()), (dw, e.double().t() @ x.double()), (db, e.double().sum(0))):
        torch.testing.assert_close(ours.double(), 0.1 * exact, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_float32_residual_is_not_rounded_in_the_bias_gradient(kernel):
    e, x, w = aligned(64, 8), aligned(64, 16, torch.float16), aligned(8, 16, torch.float16)
    e -= e.mean(0) * (1 - 1e-3)  # columns that cancel to a thousandth
    out = torch.empty_like(x)
    _, db = KERNELS[kernel](
        e, x, w, one(1.0), scale=1.0, config=SMALL, split=2, input_precision="ieee", want_bias=True, out_input=out,
        out_dtype=torch.float32,
    )  # fmt: skip
    torch.testing.assert_close(db.double(), e.double().sum(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.float(), e.half().float() @ w.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_reach_their_outputs_and_no_others(kernel, value):
    e, x, w = aligned(35, 18), aligned(35, 8), aligned(18, 8)
    e[34, 0] = value
    dx, dw, db = launch(kernel, e, x, w, one(1.0), scale=1.0, split=3)
    for ours, exact in ((dx, e @ w), (dw, e.t() @ x), (db, e.sum(0))):
        torch.testing.assert_close(ours, exact, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["plain", "momentum"])
@pytest.mark.parametrize(("bias", "dtype"), [(True, torch.float16), (False, torch.float64), (True, torch.float32)])
def test_the_step_in_the_epilogue_is_that_of_the_kernel_on_pointers(dtype, bias, momentum):
    e, x = aligned(70, 40, dtype), aligned(70, 264, dtype)
    config = Config(block_n=32, block_k=128, block_m=32)
    both = []
    for kernel in (backward_weight_step, backward_weight_step_descriptors):
        torch.manual_seed(0)
        weight, v = (laid_out(normal(40, 264, dtype=dtype), "sliced" if bias else "dense") for _ in range(2))
        b, bv = normal(40, dtype=dtype), normal(40, dtype=dtype)
        step = Step(
            weight, b if bias else None, v if momentum else None, bv if bias and momentum else None, 0.1, momentum, 0.25,
            0.01, bool(momentum),
        )  # fmt: skip
        split = {"split": 1} if kernel is backward_weight_step else {}
        kernel(e, x, step, scale=1 / 70, config=config, input_precision="ieee", **split)
        both.append((weight, b, v, bv))
    for ours, theirs in zip(*both, strict=True):
        if (
            DEVICE == "cuda" and dtype is not torch.float16
        ):  # compilers contract w - lr g as they like; half types hide it
            tolerance = 1e-14 if dtype is torch.float64 else 2e-6
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(ours, theirs)
