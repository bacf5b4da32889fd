"""The gradients of weight and bias: scale · (grad_output ∘ E)ᵀ X, and scale · its column sums."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdcore.kernels.backward_weight import backward_weight
from gdcore.kernels.configs import accumulator_dtype, product_config
from product_support import LAYOUTS, SHAPES, SMALL, assert_near, laid_out, normal, poison, shape_id
from support import DEVICE, DTYPES


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def launch(e, x, go, *, scale=0.25, config=SMALL, split=1, want_bias=True, out_dtype=None):
    return backward_weight(
        e,
        x,
        go,
        scale=scale,
        config=config,
        split=split,
        input_precision="ieee",
        want_bias=want_bias,
        out_dtype=out_dtype or x.dtype,
    )


def check(e, x, go, *, scale=0.25, config=SMALL, split=1):
    d = scale * go.double() * e.double()
    stock = (scale * go * e).to(x.dtype)
    weight_grad, bias_grad = launch(e, x, go, scale=scale, config=config, split=split)
    assert weight_grad.is_contiguous()
    assert weight_grad.dtype == bias_grad.dtype == x.dtype
    assert_near(weight_grad, stock.t() @ x, d.t() @ x.double(), d.abs().t() @ x.double().abs(), "weight")
    assert_near(bias_grad, stock.sum(0), d.sum(0), d.abs().sum(0), "bias")
    return weight_grad, bias_grad


def one(value, dtype=torch.float32):
    return torch.tensor(value, dtype=accumulator_dtype(dtype), device=DEVICE)


@pytest.mark.parametrize("split", [1, 3], ids=["one part", "three parts"])
@pytest.mark.parametrize("grad_output", ["number", "matrix"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_parity(shape, dtype, grad_output, split):
    n, k, m = shape
    go = one(-3.5, dtype) if grad_output == "number" else normal(n, m, dtype=dtype)
    check(normal(n, m, dtype=dtype), normal(n, k, dtype=dtype), go, split=split)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_configuration_that_ships(dtype):
    n, k, m = 70, 257, 40
    config = product_config("backward_weight", 90, dtype, n, k, m)
    check(normal(n, m, dtype=dtype), normal(n, k, dtype=dtype), one(2.0, dtype), config=config, split=2)


@pytest.mark.parametrize("split", [2, 3, 7, 20])
def test_parts_of_any_number_also_empty_ones(split):
    check(normal(100, 20), normal(100, 18), one(1.0), split=split)


@pytest.mark.parametrize("split", [1, 2])
def test_without_bias(split):
    e, x, go = normal(40, 20), normal(40, 18), one(1.0)
    weight_grad, bias_grad = launch(e, x, go, split=split, want_bias=False)
    assert bias_grad is None
    assert torch.equal(weight_grad, launch(e, x, go, split=split)[0])


@pytest.mark.parametrize("grad_output", ["number", "matrix"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_float32_residual_is_not_rounded_in_the_bias_gradient(dtype, grad_output):
    # Columns that cancel to a thousandth: rounded to half precision first, they would not.
    e = normal(64, 5)
    e -= e.mean(0) * (1 - 1e-3)
    go = one(1.0) if grad_output == "number" else torch.ones(64, 5, device=DEVICE)
    _, bias_grad = launch(e, normal(64, 18, dtype=dtype), go, scale=1.0, out_dtype=torch.float32, split=2)
    torch.testing.assert_close(bias_grad.double(), e.double().sum(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", range(3), ids=["residual", "input", "grad_output"])
def test_layouts(which, layout, split):
    tensors = [normal(35, 19), normal(35, 21), normal(35, 19)]
    tensors[which] = laid_out(tensors[which], layout)
    check(*tensors, split=split)


@pytest.mark.parametrize("split", [1, 3])
def test_a_tiny_scale_survives_half_precision(split):
    e, x = normal(50, 5, dtype=torch.float16), normal(50, 7, dtype=torch.float16)
    weight_grad, bias_grad = launch(e, x, one(1e11), scale=1e-12, split=split)
    torch.testing.assert_close(weight_grad.double(), 0.1 * e.double().t() @ x.double(), rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(bias_grad.double(), 0.1 * e.double().sum(0), rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("split", [1, 3])
def test_the_scale_of_float64_is_not_rounded(split):
    e, x = normal(50, 5, dtype=torch.float64), normal(50, 7, dtype=torch.float64)
    weight_grad, _ = check(e, x, one(1.0, torch.float64), scale=1 / 3, split=split)
    torch.testing.assert_close(weight_grad, e.t() @ x / 3, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("split", [1, 3])
def test_nan_and_infinity_reach_their_output_and_no_other(split, value):
    e, x = normal(35, 18), normal(35, 5)
    e[34, 0] = value
    weight_grad, bias_grad = launch(e, x, one(1.0), scale=1.0, split=split)
    torch.testing.assert_close(weight_grad, e.t() @ x, equal_nan=True, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias_grad, e.sum(0), equal_nan=True, rtol=1e-4, atol=1e-4)


def test_the_same_bits_every_time():
    e, x, go = normal(100, 20), normal(100, 18), one(1.0)
    first = launch(e, x, go, split=3)
    assert all(torch.equal(a, b) for a, b in zip(first, launch(e, x, go, split=3), strict=True))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.sampled_from(DTYPES),
    st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    st.booleans(),
    st.integers(1, 4),
)
def test_any_shape_dtype_layout_and_split(shape, dtype, layouts, matrix, split):
    n, k, m = shape
    go = laid_out(normal(n, m, dtype=dtype), layouts[2]) if matrix else one(-2.0, dtype)
    e, x = normal(n, m, dtype=dtype), normal(n, k, dtype=dtype)
    check(laid_out(e, layouts[0]), laid_out(x, layouts[1]), go, split=split)


COMPILE = """
import dataclasses, sys
import gdcore
from gdcore.kernels.compiled import compile_kernel
from gdcore.kernels.shipped_products import product_variants
[variant] = [v for v in product_variants(90) if v.name == "backward_weight half"]
constants = variant.constants | {"BLOCK_K": int(sys.argv[1])}
print(compile_kernel(dataclasses.replace(variant, constants=constants), 90).asm["sass"])
"""


@pytest.mark.parametrize("block_k", [128, 256])
def test_hoppers_tensor_cores_do_not_wait_after_every_instruction(block_k):
    # The assembler serialises them silently, for a branch in the loop or operands that come through registers.
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", COMPILE, str(block_k)]
    sass = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    products, waits = sass.count("HGMMA"), sass.count("WARPGROUP.DEPBAR.LE gsb0, 0x0")
    assert products >= 8
    assert waits <= 2  # one behind each loop
