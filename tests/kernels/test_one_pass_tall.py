"""The one-pass kernel for many outputs: results, update, layouts, and what its configurations promise."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from gdcore.backends.reference import relative_error
from gdcore.kernels.configs import (
    TALL_LIMIT,
    Config,
    accumulator_dtype,
    one_pass_config,
    tall_aligned,
    tall_fits,
)
from gdcore.kernels.one_pass_step import one_pass_step
from gdcore.kernels.one_pass_tall import MAX_ROWS, one_pass_tall
from gdcore.kernels.reduce import add_rows, wide_tile
from gdcore.kernels.step import Step
from product_support import LAYOUTS, assert_near, laid_out, normal, poison
from support import DEVICE, DTYPES

# N, K, M: one row; a row short of, exactly and one past whole tiles; outputs that fill their last block and that do not.
SHAPES = [(1, 1, 1), (31, 20, 18), (32, 16, 32), (33, 33, 5)]
ODD = (37, 9, 19)


def shape_id(shape):
    return "N={} K={} M={}".format(*shape)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def small_config(k):
    """Tiles so small that small shapes have several, of rows and of outputs."""
    return Config(block_n=16, block_k=max(1 << (k - 1).bit_length(), 16), block_m=16, num_warps=4, num_stages=2)


def operands(n, k, m, dtype, bias=True, target_dtype=None):
    return (
        normal(n, k, dtype=dtype),
        normal(m, k, dtype=dtype) / k**0.5,
        normal(n, m, dtype=target_dtype or dtype),
        normal(m, dtype=dtype) if bias else None,
    )


def launch(x, w, y, b, *, parts=2, want_grads=True, residual=None, config=None):
    n, m = y.shape
    config = config or small_config(x.shape[1])
    return one_pass_tall(
        x, w, y, b, config=config, programs=parts * -(-m // config.block_m),
        loss_scale=1 / (n * m), grad_scale=2 / (n * m), want_grads=want_grads, residual=residual,
    )  # fmt: skip


def formulas(x, w, y, b, dtype):
    """Loss, bias gradient, weight gradient and residual in a dtype, by formula."""
    x, w, y, b = (None if t is None else t.to(dtype) for t in (x, w, y, b))
    e = F.linear(x, w, b) - y
    return F.mse_loss(F.linear(x, w, b), y), 2 / e.numel() * e.sum(0), 2 / e.numel() * (e.t() @ x), e


def split(sums, m, k):
    assert sums.shape == (1 + m + m * k,)
    return sums[0], sums[1 : 1 + m], sums[1 + m :].view(m, k)


def check(x, w, y, b, **options):
    """Everything against float64 and stock; returns what the kernel wrote."""
    m, k = w.shape
    exact = formulas(x, w, y, b, torch.float64)
    stock = formulas(x, w, y, b, torch.promote_types(x.dtype, y.dtype))
    size = formulas(x.abs(), w.abs(), -y.abs(), None if b is None else b.abs(), torch.float64)
    residual = torch.empty_like(stock[-1]).fill_(torch.nan)
    sums = launch(x, w, y, b, residual=residual, **options)
    assert sums.dtype == accumulator_dtype(x.dtype)
    for name, ours, theirs, reference, magnitude in zip(
        ("loss", "bias gradient", "weight gradient", "residual"),
        (*split(sums, m, k), residual), stock, exact, size, strict=True,
    ):  # fmt: skip
        assert_near(ours, theirs.to(x.dtype), reference, magnitude, name)
    return sums, residual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_error_is_at_most_twice_stocks(shape, dtype):
    check(*operands(*shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_float32_target_beside_narrow_input_is_read_in_full(dtype):
    x, w, y, b = operands(*ODD, dtype, target_dtype=torch.float32)
    check(x, w, y, b)
    # Near convergence a prediction rounded to half precision would be off by more than all of the residual.
    y.copy_(F.linear(x.double(), w.double(), b.double()) + 1e-4 * torch.randn_like(y, dtype=torch.float64))
    exact = formulas(x, w, y, b, torch.float64)
    residual = torch.empty_like(y)
    assert relative_error(launch(x, w, y, b, residual=residual)[0], exact[0]) < 2e-2
    assert relative_error(residual, exact[-1]) < 2e-2


@pytest.mark.parametrize("parts", [1, 7])
def test_any_number_of_parts_and_no_bias(parts):
    tensors = operands(*ODD, torch.float32, bias=False)
    first, second = (check(*tensors, parts=parts) for _ in range(2))
    assert torch.equal(first[0], second[0]), "repeats are bitwise equal"
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("m", [5, 19])
def test_without_gradients_only_the_loss_is_returned_and_is_the_same_to_rounding(m):
    tensors = operands(37, 9, m, torch.float32)
    for parts in (1, 3):
        alone = launch(*tensors, parts=parts, want_grads=False)
        assert alone.shape == (1,)
        torch.testing.assert_close(alone[0], launch(*tensors, parts=parts)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("of", ["X", "Y", "W", "E"])
def test_any_strides(of, layout):
    if of == "E" and layout == "expanded":
        layout = "dense"  # a tensor that is written has memory for each of its elements
    x, w, y, b = operands(*ODD, torch.float32)
    x, w, y = (laid_out(t, layout) if name == of else t for name, t in zip("XWY", (x, w, y), strict=True))
    b = laid_out(b[None], layout)[0]
    sums, plain = check(x, w, y, b)
    residual = laid_out(torch.zeros_like(plain), layout if of == "E" else "dense")
    assert torch.equal(launch(x, w, y, b, residual=residual), sums)
    assert torch.equal(residual, plain)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, where it interprets
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("where", ["input", "last input row", "weight", "target", "bias"])
def test_non_finite_numbers_spread_as_in_stock(where, value):
    x, w, y, b = operands(*ODD, torch.float32)
    {"input": x[5], "last input row": x[-1], "weight": w[-1], "target": y[-1], "bias": b}[where][3] = value
    exact = formulas(x, w, y, b, torch.float64)
    residual = torch.empty_like(y)
    found = (*split(launch(x, w, y, b, residual=residual), *w.shape), residual)
    for ours, stock in zip(found, exact, strict=True):
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(ours), kind(stock))


def test_what_lies_behind_the_last_row_and_beside_the_columns_is_not_counted():
    n, k, m = ODD
    x, w, y = torch.full((3, 48, 48), torch.nan, device=DEVICE)
    x, w, y, b = x[:n, :k], w[:m, :k], y[:n, :m], torch.full((48,), torch.nan, device=DEVICE)[:m]
    for view, values in zip((x, w, y, b), operands(*ODD, torch.float32), strict=True):
        view.copy_(values)
    check(x, w, y, b)


OPTIONS = {
    "plain": {},
    "everything": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
}


@pytest.mark.parametrize(
    ("options", "bias", "maximize", "rate"),
    [
        ("plain", True, False, "number"),
        ("plain", False, True, "on the device"),
        ("everything", True, True, "number"),
        ("nesterov", True, False, "on the device"),
        ("nesterov", False, False, "number"),
    ],
)
def test_the_second_launch_steps_as_sgd_does(options, bias, maximize, rate):
    x, w, y, b = operands(*ODD, torch.float64, bias=bias)
    parameters = [torch.nn.Parameter(t.clone()) for t in (w, b) if t is not None]
    optimizer = torch.optim.SGD(parameters, lr=0.1, maximize=maximize, foreach=False, **OPTIONS[options])
    lr = torch.tensor([0.1], dtype=torch.float64, device=DEVICE) if rate == "on the device" else 0.1
    buffers = [None, None]
    for step in range(2):
        loss = F.mse_loss(F.linear(x, *parameters), y)
        optimizer.zero_grad()
        loss.backward()
        if OPTIONS[options].get("momentum") and step == 0:  # stock's first buffer is the gradient, undamped
            optimizer.step()
            w, b = (*(p.detach().clone() for p in parameters), None)[:2]
            buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in parameters] + [None] * (not bias)
            continue
        optimizer.step()
        ours = torch.empty((), dtype=torch.float64, device=DEVICE)
        one_pass_step(
            "tall", x, y, ours, Step(w, b, *buffers, lr, **OPTIONS[options]), config=small_config(x.shape[1]),
            programs=6, loss_scale=1 / y.numel(), grad_scale=(-2 if maximize else 2) / y.numel(), counter=None,
        )  # fmt: skip
        for mine, theirs in zip((ours, w, b), (loss.detach(), *parameters), strict=False):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)
        for mine, p in zip(buffers, parameters, strict=False):
            if mine is not None:
                torch.testing.assert_close(mine, optimizer.state[p]["momentum_buffer"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_step_rounds_once(dtype):
    x, w, y, b = operands(*ODD, dtype)
    exact = formulas(x, w, y, b, torch.float64)
    stock = formulas(x, w, y, b, dtype)
    updated = [w.clone().t().contiguous().t(), b.clone()]
    loss = torch.empty((), dtype=dtype, device=DEVICE)
    one_pass_step(
        "tall", x, y, loss, Step(*updated, None, None, 0.1), config=small_config(x.shape[1]), programs=4,
        loss_scale=1 / y.numel(), grad_scale=2 / y.numel(), counter=None,
    )  # fmt: skip
    assert_near(loss, stock[0], exact[0], exact[0].abs(), "loss")
    for ours, before, gradient, theirs in zip(updated, (w, b), (exact[2], exact[1]), (stock[2], stock[1]), strict=True):
        reference = before.double() - 0.1 * gradient
        assert_near(ours, (before - 0.1 * theirs).to(dtype), reference, reference.abs(), "update")


@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (5, 300), (140, 70), (2, 16400)])
def test_a_workspace_with_padding_is_added_exactly(rows, columns):
    partials = torch.randint(-50, 50, (rows, -(-columns // 4) * 4), device=DEVICE).float()
    partials[:, 3:8] = torch.nan  # padding between the losses and what follows
    partials[:, columns:] = torch.nan
    found = add_rows(partials, columns=columns, lead=8, losses=3)
    exact = torch.cat([partials[:, :3].sum()[None], partials[:, 8:columns].sum(0)])
    assert torch.equal(found, exact)


def test_the_second_launch_has_programs_enough():
    for parts, columns in itertools.product((1, 16, 264), (1 << 14, 1 << 16, 512 * 512)):
        block_n, block_m = wide_tile(parts, columns)
        assert columns // block_m >= 256
        assert block_m >= 32
        assert block_n * block_m <= 4096


def test_programs_that_would_share_a_part_unevenly_are_refused():
    x, w, y, b = operands(*ODD, torch.float32)
    for programs in (0, 3):
        with pytest.raises(ValueError, match=f"programs is {programs}, must be a multiple of the 2 blocks"):
            one_pass_tall(
                x, w, y, b, config=small_config(x.shape[1]), programs=programs, loss_scale=1.0, grad_scale=1.0,
                want_grads=True, residual=None,
            )  # fmt: skip


def test_too_many_rows_are_refused():
    x = torch.empty(1, 1, device=DEVICE).expand(MAX_ROWS + 1, 1)
    with pytest.raises(ValueError, match=f"input has {MAX_ROWS + 1} rows, must have {MAX_ROWS} at most"):
        launch(x, torch.empty(1, 1, device=DEVICE), x, None)


@pytest.mark.parametrize("arch", [75, 80, 86, 90, 100, 120])
def test_every_shape_that_fits_has_a_configuration(arch):
    for dtype, k, m, precision in itertools.product(
        DTYPES, (1, 16, 17, 100, 256, 257, 512), (1, 32, 65, 512), PRECISIONS
    ):
        if dtype is not torch.float32 and precision != "ieee":
            continue
        fits = tall_fits(arch, dtype, k, m, precision)
        longest = {"ieee": 128, "tf32": 256, "tf32x3": 64}[precision] if dtype.itemsize > 2 else TALL_LIMIT
        assert fits == (k <= longest and (k <= 256 or m <= 32))
        if fits:
            for contiguous in (True, False):
                config = one_pass_config("tall", arch, dtype, k, m, precision, contiguous)
                assert config.block_k >= max(k, 16)
                assert config.block_m <= max(64, 2 * m)
                for block in (config.block_n, config.block_k, config.block_m):
                    assert block & (block - 1) == 0 < block
                # The losses of all blocks lie in the columns that the second launch's first program adds.
                assert -(-m // config.block_m) <= 32


PRECISIONS = ("ieee", "tf32", "tf32x3")


def test_what_does_not_fit_is_said():
    assert not tall_fits(90, torch.bfloat16, TALL_LIMIT + 1, 64)
    assert not tall_fits(90, torch.bfloat16, 64, TALL_LIMIT + 1)
    assert not tall_fits(90, torch.float64, 512, 64)
    assert not tall_fits(90, torch.float32, 512, 64)
    assert tall_fits(90, torch.float32, 256, 64, "tf32")
    assert not tall_fits(90, torch.bfloat16, TALL_LIMIT, 33)
    assert tall_fits(90, torch.bfloat16, TALL_LIMIT, 32)
    assert tall_fits(90, torch.bfloat16, 256, TALL_LIMIT)


def test_rows_that_do_not_begin_at_multiples_of_16_bytes_get_smaller_tiles():
    assert tall_aligned(256, 64, torch.bfloat16)
    assert not tall_aligned(250, 64, torch.bfloat16)
    assert not tall_aligned(256, 63, torch.bfloat16)
    assert not tall_aligned(256, 64, torch.bfloat16, contiguous=False)
    aligned, not_aligned = (one_pass_config("tall", 90, torch.bfloat16, k, 512) for k in (256, 255))
    assert not_aligned.block_n * not_aligned.block_m < aligned.block_n * aligned.block_m
