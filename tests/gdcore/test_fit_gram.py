"""Full-batch runs from sums of products: where the plain sums in float32 are wrong by a hundredfold, and the largest stable rate."""

import functools

import numpy as np
import pytest
import torch

import gdcore
from fit_support import assert_as_stock, loop, problem
from gdcore.training import gram
from gdcore.training.table import Table
from support import DEVICE

pytestmark = pytest.mark.usefixtures("one_thread")


def naive_losses(x, y, *, lr, steps, init, dtype):
    """From XᵀX, Xᵀy and yᵀy as they are."""
    n = len(x)
    x, y, w = x.to(dtype), y.to(dtype), init.to(dtype)
    a, b, c = x.t() @ x, x.t() @ y, y @ y
    losses = []
    for _ in range(steps):
        losses.append((w @ a @ w - 2 * b @ w + c) / n)
        w = w - lr * 2 / n * (a @ w - b)
    return torch.stack(losses).double()


def worst(losses, exact):
    return ((losses.double() - exact) / exact).abs().max().item()


def small_noise(n=500, k=3, mean=0.0, noise=1e-3, dtype=torch.float64):
    x = mean + torch.randn(n, k, dtype=dtype, device=DEVICE)
    a = torch.randn(k, dtype=dtype, device=DEVICE)
    return x, x @ a + noise * torch.randn_like(x[:, 0]), a + 0.01


@pytest.mark.parametrize("mean", [0.0, 30.0], ids=["around zero", "far from zero"])
def test_right_where_plain_sums_in_float32_are_wrong_a_hundredfold(mean):
    x, y, init = small_noise(mean=mean)
    x, y, init = x.float(), y.float(), init.float()
    options = {"lr": 0.3 / (1 + 3 * mean**2), "steps": 25, "init": init}
    exact = loop(x, y, **options).losses
    ours = worst(gdcore.fit(x, y, method="gram", **options).losses, exact)
    assert ours < 2e-7
    assert worst(naive_losses(x, y, dtype=torch.float32, **options), exact) > 100 * max(ours, 1e-6)


def test_right_where_plain_sums_in_float64_are_wrong_a_hundredfold():
    x, y, init = small_noise(mean=1e4, noise=1e-4)
    options = {"lr": 1e-9, "steps": 25, "init": init}
    exact = loop(x, y, **options).losses
    ours = worst(gdcore.fit(x, y, method="gram", **options).losses, exact)
    assert worst(naive_losses(x, y, dtype=torch.float64, **options), exact) > 100 * max(ours, 1e-12)


def test_a_loss_is_right_to_the_documented_part_of_the_first():
    """1e-16 · first loss / loss, of which a sum may have some tens."""
    x, y, init = small_noise(noise=1e-6)
    options = {"lr": 0.3, "steps": 60, "init": init}
    exact = loop(x, y, **options).losses
    result = gdcore.fit(x, y, method="gram", **options)
    assert exact[-1] < 1e-7 * exact[0]
    assert ((result.losses - exact).abs() <= 1e-12 * exact + 5e-15 * exact[0]).all()


def test_a_loss_of_nothing_is_not_negative():
    """What is left of a difference is as often below nothing as above."""
    for draw in range(12):
        x = torch.randn(40, 3, device=DEVICE) + draw % 2
        y = x.double().sum(1)
        result = gdcore.fit(x, y, lr=0.3 / (1 + 3 * (draw % 2)), steps=400, method="gram")
        assert (result.losses >= 0).all()
        assert result.losses[-1] <= 1e-13 * result.losses[0]


@pytest.mark.parametrize("steps", [256, 257, 600])
def test_more_steps_than_are_worked_out_together(steps):
    x, y = problem(80, 4, 2)
    options = {"lr": 0.02, "steps": steps, "momentum": 0.9, "weight_decay": 0.01, "intercept": True}
    result = gdcore.fit(x, y, method="gram", record_trajectory=True, **options)
    assert_as_stock(result, x, y, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_features_far_from_zero_with_an_intercept(dtype):
    x, y, init = small_noise(n=300, k=2, mean=100.0, dtype=dtype)
    options = {"lr": 1e-5, "steps": 30, "init": (init, torch.tensor(3.0)), "intercept": True, "weight_decay": 0.1}
    result = gdcore.fit(x, y, method="gram", **options)
    assert worst(result.losses, loop(x, y, **options).losses) < (2e-7 if dtype is torch.float32 else 1e-11)


# The sums


def blocks_of(x, y, sizes):
    assert sum(sizes) == len(x)
    return zip(x.split(sizes), y.split(sizes), strict=True)


@pytest.mark.parametrize("sizes", [[100], [1, 99], [50, 0, 50], [0, 3, 90, 7], [1] * 100], ids=str)
def test_blocks_that_are_unlike_merge_to_the_moments_of_all_rows(sizes):
    """Means of rows differ by a million from block to block; numpy's long double says what is right."""
    x, y = torch.randn(100, 3, dtype=torch.float64), torch.randn(100, 2, dtype=torch.float64)
    x += 1e6 * (torch.arange(100) // 10)[:, None]
    start = torch.randn(4, 2, dtype=torch.float64)
    found = gram.moments(blocks_of(x, y, sizes), start, 3)
    z = np.concatenate([x, x @ start[:3] + start[3] - y], 1).astype(np.longdouble)
    mean = z.mean(0)
    products = (z - mean).T @ (z - mean)
    assert found.n == 100
    np.testing.assert_allclose(found.mean, mean.astype(float), rtol=1e-12)
    np.testing.assert_allclose(
        found.products, products.astype(float), rtol=1e-10, atol=1e-12 * float(abs(products).max())
    )


def test_blocks_of_half_precision_are_added_in_float64():
    x, y = problem(5000, 2, 1, torch.bfloat16)
    found = gram.moments(blocks_of(x, y, [64] * 78 + [8]), torch.zeros(2, 1, device=DEVICE), 2)
    z = torch.cat([x, -y], 1).double()
    torch.testing.assert_close(found.products, (z - z.mean(0)).t() @ (z - z.mean(0)), rtol=1e-12, atol=1e-9)


def test_the_data_is_read_once_and_once_more_for_a_rate(monkeypatch):
    reads = []
    blocks = Table.blocks
    monkeypatch.setattr(Table, "blocks", lambda self, *parts: reads.append(0) or blocks(self, *parts))
    x, y = problem(50, 2)
    gdcore.fit(x, y, lr=0.1, steps=500, method="gram")
    assert len(reads) == 1
    gdcore.fit(x, y, lr=0.1, steps=500, method="gram", suggest_lr=True)
    assert len(reads) == 3


@pytest.mark.parametrize("place", ["first", "last"])
def test_nan_in_any_row_makes_every_loss_nan(place):
    x, y = problem(1000, 2)
    x[{"first": 0, "last": -1}[place], 1] = torch.nan
    result = gdcore.fit(x, y, lr=0.1, steps=3, method="gram", suggest_lr=True)
    assert result.losses.isnan().all()
    assert result.coef.isnan().any()
    assert result.diverged_at == 0
    assert np.isnan(result.suggested_lr)


# The largest stable learning rate

SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "weight decay": {"weight_decay": 2.0},
    "an intercept": {"intercept": True},
    "three outputs": {"m": 3},
    "everything": {"momentum": 0.5, "weight_decay": 1.0, "intercept": True, "m": 2},
}


def spoken(setting, **more):
    options = {**SETTINGS[setting], **more}
    return options.pop("m", None), options


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", ["resident", "gram"])
def test_just_below_the_suggested_rate_converges_and_just_above_diverges(setting, method):
    m, options = spoken(setting)
    x, y = problem(40, 3, m)
    x = x + 0.5
    run = functools.partial(gdcore.fit, x, y, init=torch.randn(3, *y.shape[1:]), method=method, **options)
    rate = run(lr=0.0, steps=1, suggest_lr=True).suggested_lr
    # An error in the steepest direction becomes (1 - 2 factor) of itself in each step, about the root of that with momentum.
    below, above = run(lr=0.97 * rate, steps=1500), run(lr=1.03 * rate, steps=1500)
    assert below.diverged_at is None
    assert below.losses[-1] < 1.5 * below.losses[0] + 1
    assert above.diverged_at is not None or above.losses[-1] > 1e6 * above.losses[0]
    assert above.losses[-1] > 1e6 * below.losses[-1] or above.diverged_at is not None


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_suggested_rate_is_that_of_the_second_derivative(setting):
    m, options = spoken(setting)
    x, y = problem(40, 3, m)
    x = x + 0.5
    rows, outputs = 3 + options.get("intercept", False), y[0].numel()

    def loss(w):
        w = w.view(rows, outputs)
        prediction = x.double() @ w[:3] + (w[3] if rows > 3 else 0)
        decay = options.get("weight_decay", 0.0) / 2 * w.square().sum()
        return (prediction - y.double().view(40, -1)).square().mean() + decay

    second = torch.autograd.functional.hessian(loss, x.new_zeros(rows * outputs, dtype=torch.float64))
    expected = 2 * (1 + options.get("momentum", 0.0)) / torch.linalg.eigvalsh(second)[-1].item()
    for start in (None, torch.randn(3, *y.shape[1:])):  # it is the same from everywhere
        result = gdcore.fit(x, y, lr=0.0, steps=1, suggest_lr=True, init=start, **options)
        assert result.suggested_lr == pytest.approx(expected, rel=1e-9)
    batch = gdcore.fit(x, y, lr=0.0, steps=1, suggest_lr=True, batch_size=7, **options)
    assert batch.suggested_lr == pytest.approx(expected, rel=1e-9)


def test_the_lessons_rate_lies_where_it_was_recorded():
    for _ in range(5):
        x = torch.ones(100, 2, device=DEVICE)
        x[:, 0].uniform_(-1, 1)
        result = gdcore.fit(x, x.sum(1), lr=0.1, steps=1, suggest_lr=True)
        assert 0.93 < result.suggested_lr <= 1.0


def test_any_rate_is_stable_where_nothing_can_be_learnt():
    zeros, ones = torch.zeros(5, 2, device=DEVICE), torch.ones(5, device=DEVICE)
    assert gdcore.fit(zeros, ones, lr=0.1, steps=1, suggest_lr=True).suggested_lr == float("inf")
    decayed = gdcore.fit(zeros, ones, lr=0.1, steps=1, suggest_lr=True, weight_decay=4.0)
    assert decayed.suggested_lr == pytest.approx(0.5)


def test_no_rate_is_suggested_unasked():
    x, y = problem(10, 2)
    assert gdcore.fit(x, y, lr=0.1, steps=1, method="gram").suggested_lr is None
