"""The one-pass kernels: loss, bias gradient, weight gradient and residual from one read of X and Y."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdcore.backends.reference import relative_error
from gdcore.kernels.configs import (
    Config,
    accumulator_dtype,
    one_pass_config,
    rows_group,
    rows_per_tile,
    vector_part,
    vector_registers,
    vector_unaligned,
    vector_width,
)
from gdcore.kernels.one_pass_dot import one_pass_dot
from gdcore.kernels.one_pass_rows import one_pass_rows
from gdcore.kernels.one_pass_vector import one_pass_vector
from product_support import LAYOUTS, assert_near, laid_out, normal, poison
from support import DEVICE, DTYPES

KERNELS = {"rows": one_pass_rows, "vector": one_pass_vector, "dot": one_pass_dot}
# N, K, M: one row; a row short of, exactly and one past whole tiles; K and M that are no powers of two.
SHAPES = {
    "rows": [(1, 1, 1), (1023, 1, 1), (257, 2, 1), (128, 3, 1), (150, 5, 3), (67, 16, 2), (33, 8, 4), (129, 15, 2)],
    "vector": [(1, 1, 1), (33, 3, 1), (70, 100, 4), (48, 64, 2), (17, 256, 3)],
    "dot": [(1, 1, 1), (33, 20, 16), (70, 100, 5), (17, 256, 3), (64, 16, 16)],
}
CASES = [(family, *shape) for family, shapes in SHAPES.items() for shape in shapes]
ODD = [("rows", 131, 3, 2), ("vector", 37, 5, 3), ("dot", 37, 20, 5)]


def shape_id(case):
    return "{} N={} K={} M={}".format(*case)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def small_config(family, k):
    """Tiles so small that small shapes have several."""
    if family == "rows":
        return Config(block_n=32, num_warps=1)
    block_k = 1 << (k - 1).bit_length()
    if family == "vector":
        return Config(block_n=8, block_k=min(block_k, 32), num_warps=4)  # beyond K = 32, several blocks of columns
    return Config(block_n=16, block_k=max(block_k, 16), block_m=16, num_warps=4, num_stages=2)


def operands(n, k, m, dtype, bias=True, target_dtype=None):
    return (
        normal(n, k, dtype=dtype),
        normal(m, k, dtype=dtype) / k**0.5,
        normal(n, m, dtype=target_dtype or dtype),
        normal(m, dtype=dtype) if bias else None,
    )


def launch(family, x, w, y, b, *, programs=3, want_grads=True, residual=None, config=None):
    n, m = y.shape
    return KERNELS[family](
        x, w, y, b,
        config=config or small_config(family, x.shape[1]), programs=programs,
        loss_scale=1 / (n * m), grad_scale=2 / (n * m), want_grads=want_grads, residual=residual,
    )  # fmt: skip


def formulas(x, w, y, b, dtype):
    """Loss, bias gradient, weight gradient and residual in a dtype, by formula."""
    x, w, y, b = (None if t is None else t.to(dtype) for t in (x, w, y, b))
    e = F.linear(x, w, b) - y
    return F.mse_loss(F.linear(x, w, b), y), 2 / e.numel() * e.sum(0), 2 / e.numel() * (e.t() @ x), e


def parts(sums, m, k):
    assert sums.shape == (1 + m + m * k,)
    return sums[0], sums[1 : 1 + m], sums[1 + m :].view(m, k)


def check(family, x, w, y, b, **options):
    """Everything against float64 and stock; returns what the kernel wrote."""
    m, k = w.shape
    exact = formulas(x, w, y, b, torch.float64)
    stock = formulas(x, w, y, b, torch.promote_types(x.dtype, y.dtype))
    size = formulas(x.abs(), w.abs(), -y.abs(), None if b is None else b.abs(), torch.float64)
    residual = torch.empty_like(stock[-1]).fill_(torch.nan)
    sums = launch(family, x, w, y, b, residual=residual, **options)
    assert sums.dtype == accumulator_dtype(x.dtype)
    # A kernel reads inputs of x's dtype: that is what its error is measured by, also beside a wider target.
    for name, ours, theirs, reference, magnitude in zip(
        ("loss", "bias gradient", "weight gradient", "residual"),
        (*parts(sums, m, k), residual), stock, exact, size, strict=True,
    ):  # fmt: skip
        assert_near(ours, theirs.to(x.dtype), reference, magnitude, name)
    return sums, residual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=shape_id)
def test_error_is_at_most_twice_stocks(case, dtype):
    family, *shape = case
    check(family, *operands(*shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ODD, ids=shape_id)
def test_a_float32_target_beside_narrow_input_is_read_in_full(case, dtype):
    family, *shape = case
    check(family, *operands(*shape, dtype, target_dtype=torch.float32))


@pytest.mark.parametrize("programs", [1, 2, 11])
@pytest.mark.parametrize("case", ODD, ids=shape_id)
def test_any_number_of_programs_and_no_bias(case, programs):
    family, *shape = case
    check(family, *operands(*shape, torch.float32, bias=False), programs=programs)


@pytest.mark.parametrize("case", ODD, ids=shape_id)
def test_without_gradients_only_the_loss_is_returned_and_is_the_same_to_rounding(case):
    family, *shape = case
    tensors = operands(*shape, torch.float32)
    for programs in (1, 4):
        alone = launch(family, *tensors, programs=programs, want_grads=False)
        assert alone.shape == (1,)
        torch.testing.assert_close(alone[0], launch(family, *tensors, programs=programs)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", ODD, ids=shape_id)
def test_repeats_are_bitwise_equal(case):
    family, *shape = case
    tensors = operands(*shape, torch.float32)
    first, second = (check(family, *tensors, programs=5) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, where it interprets
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", ["input", "last input row", "weight", "target", "bias"])
@pytest.mark.parametrize("case", ODD, ids=shape_id)
def test_nan_and_inf_go_where_the_formulas_send_them_and_nowhere_else(case, where, value):
    family, *shape = case
    x, w, y, b = operands(*shape, torch.float32)
    {"input": x[2], "last input row": x[-1], "weight": w[0], "target": y[2], "bias": b}[where][1] = value
    residual = torch.empty_like(y)
    sums = launch(family, x, w, y, b, residual=residual)
    for ours, expected in zip((*parts(sums, *w.shape), residual), formulas(x, w, y, b, torch.float32), strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", KERNELS)
def test_rows_beyond_the_last_add_nothing_even_if_a_weight_is_infinite(family):
    x, w, y, b = operands(1, 2, 1, torch.float32)
    w[0, 0] = torch.inf
    x[0, 0] = 1
    assert launch(family, x, w, y, b)[0] == torch.inf


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ODD[1:], ids=shape_id)
def test_any_strides(case, layout):
    family, *shape = case
    x, w, y, b = (laid_out(t, layout) for t in (*operands(*shape, torch.float32, bias=False)[:3], normal(1, shape[2])))
    check(family, x, w, y, b[0])
    residual = laid_out(torch.zeros_like(y), "sliced")
    launch(family, x, w, y, b[0], residual=residual)
    torch.testing.assert_close(residual, formulas(x, w, y, b[0], torch.float32)[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_reads_weight_and_bias_of_any_strides(layout):
    x, w, y, b = operands(131, 3, 2, torch.float32)
    check("rows", x, laid_out(w, layout), y, laid_out(b[None], layout)[0])


@pytest.mark.skipif(DEVICE == "cuda", reason="needs memory that is reserved but never touched")
@pytest.mark.parametrize("weight_strides", [(1, 2**30), (2**30, 1)], ids=["far columns", "far rows of W"])
@pytest.mark.parametrize("family", ["vector", "dot"])
def test_offsets_beyond_32_bits(family, weight_strides):
    """Operands whose columns lie 2^30 elements apart, in pages that are never touched."""
    n, k, m, far = 20, 4, 4, (1, 2**30)
    memory = torch.from_numpy(np.zeros(4 * 2**30, np.float16))
    x, w, y = (
        memory.as_strided(shape, strides, 32 * place)
        for place, (shape, strides) in enumerate((((n, k), far), ((m, k), weight_strides), ((n, m), far)))
    )
    for tensor in (x, w, y):
        tensor.copy_(normal(*tensor.shape, dtype=torch.float16))
    check(family, x, w, y, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ODD, ids=shape_id)
def test_near_convergence_the_residual_keeps_its_digits(case, dtype):
    """It comes from the accumulator: a prediction rounded to half precision would be off by more than all of it."""
    family, *shape = case
    x, w, y, b = operands(*shape, dtype, target_dtype=torch.float32)
    y.copy_(F.linear(x.double(), w.double(), b.double()) + 1e-4 * torch.randn_like(y, dtype=torch.float64))
    exact = formulas(x, w, y, b, torch.float64)
    residual = torch.empty_like(y)
    loss = launch(family, x, w, y, b, residual=residual)[0]
    assert relative_error(residual, exact[-1]) < 2e-2
    assert relative_error(loss, exact[0]) < 2e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [("rows", 3, 1), ("vector", 20, 4), ("vector", 200, 2), ("dot", 20, 5)], ids=str)
def test_the_shipped_configuration(case, dtype):
    family, k, m = case
    config = one_pass_config(family, 90, dtype, k, m)
    rows = rows_per_tile(family, config, k, dtype)
    check(family, *operands(2 * rows + 7, k, m, dtype), config=config, programs=2)


# K odd: 8, 16 and 32 lanes a row, one block and several, padded by one number and by almost a block.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", ["below a tile", "tiles and part of one"])
@pytest.mark.parametrize(("k", "m"), [(17, 4), (23, 2), (37, 3), (63, 1), (65, 4), (129, 2), (255, 1), (255, 4)])
def test_rows_that_do_not_begin_at_multiples_of_16_bytes(k, m, n, dtype):
    config = one_pass_config("vector", 90, dtype, k, m)
    part = vector_part(config, k, dtype)
    assert part < config.block_n or config.block_n * k * dtype.itemsize >= 4096
    rows = part - 1 if n == "below a tile" else 2 * config.block_n + part + 1
    check("vector", *operands(max(rows, 1), k, m, dtype), config=config, programs=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_a_tile_take_any_strides(layout):
    x, w, y = (laid_out(t, layout) for t in operands(75, 37, 3, torch.float32)[:3])
    config = one_pass_config("vector", 90, torch.float32, 37, 3)
    check("vector", x, w, y, None, config=replace(config, block_n=32))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, where it interprets
@pytest.mark.parametrize("row", [0, 40, 74], ids="row {}".format)
def test_nan_in_one_part_of_a_tile_is_seen_and_spoils_no_other_row(row):
    x, w, y, b = operands(75, 37, 3, torch.float32)
    x[row, 36] = torch.nan
    config = replace(one_pass_config("vector", 90, torch.float32, 37, 3), block_n=32)
    residual = torch.empty_like(y)
    sums = launch("vector", x, w, y, b, config=config, residual=residual)
    exact = formulas(x, w, y, b, torch.float64)
    for ours, theirs in zip((*parts(sums, 3, 37), residual), exact, strict=True):
        assert torch.equal(torch.isnan(ours), torch.isnan(theirs))


def test_registers_are_bounded_only_where_a_tile_has_parts():
    for dtype, k, m in itertools.product(DTYPES, (17, 36, 64, 255, 256), (1, 4)):
        config = one_pass_config("vector", 90, dtype, k, m)
        bound = vector_registers(config, k, dtype)
        assert bound in (None, 168, 128, 255)
        assert (bound is None) == (vector_part(config, k, dtype) == config.block_n)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("family", KERNELS)
def test_any_shape_and_strides(family, data):
    n = data.draw(st.integers(1, 140), "N")
    m = data.draw(st.integers(1, 12 if family == "dot" else 4), "M")
    k = data.draw(st.integers(1, min(16, 32 // m) if family == "rows" else 40), "K")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    x, w, y, b = operands(n, k, m, dtype)
    if family != "rows":
        x, y = (laid_out(t, data.draw(st.sampled_from(LAYOUTS), name)) for t, name in ((x, "X"), (y, "Y")))
    w = laid_out(w, data.draw(st.sampled_from(LAYOUTS), "W"))
    check(family, x, w, y, b, programs=data.draw(st.integers(1, 9), "programs"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_lane_of_rows_owns_whole_vectors_that_fit_its_registers(dtype):
    for k in range(1, 17):
        rows, vector = rows_group(k, dtype.itemsize)
        assert rows * k % vector == 0
        assert vector * dtype.itemsize in (8, 16)
        assert rows * k * max(dtype.itemsize, 4) <= 256
        assert rows_per_tile("rows", Config(block_n=64), k, dtype) == 64 * rows


@pytest.mark.parametrize("arch", [75, 80, 86, 90, 100, 120])
def test_every_supported_shape_has_a_configuration(arch):
    for dtype, k, m in itertools.product(DTYPES, range(1, 257), range(1, 17)):
        fits = {"dot": True, "vector": m <= 4, "rows": k <= 16 and m <= 4 and m * k <= 32}
        for family in (name for name, fit in fits.items() if fit):
            config = one_pass_config(family, arch, dtype, k, m)
            assert config.block_n & (config.block_n - 1) == 0 < config.block_n
            if family == "rows":
                assert config.block_n >= 32 * config.num_warps
            elif family == "vector":
                rows = vector_part(config, k, dtype)
                assert config.block_n % rows == 0
                if vector_unaligned(k, dtype):  # one row for each group of lanes, in parts
                    assert rows * config.block_k == 32 * config.num_warps * vector_width(k, dtype)
                    assert config.block_k <= 32 * vector_width(k, dtype)  # a row lies in one warp
                    assert config.num_stages == 1
                else:
                    assert config.block_k >= min(k, 512 // dtype.itemsize)
                    assert rows == config.block_n
            else:
                assert config.block_k >= max(k, 16)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family is 'tiles', must be"):
        one_pass_config("tiles", 90, torch.float32, 1, 1)
