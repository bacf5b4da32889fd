"""Mini-batches: every epoch a permutation, all permutations equally likely, the same wherever it is drawn; and the runs on them."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch

import gdcore
from fit_support import assert_as_stock, assert_bitwise, loop, on_cpu, problem
from gdcore.training import cpu, shuffle
from support import DEVICE, DTYPES

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZES = [*range(1, 35), 63, 64, 65, 255, 256, 257, 1000, 1024, 1025, 5000]
METHODS = ["resident", "steps", "stream"]
each_method = pytest.mark.parametrize("method", METHODS)


def orders(seed, epochs, n):
    return shuffle.orders(seed, epochs, n, CPU)


def batches(seed, n, batch_size, steps):
    """The row numbers of each step."""
    epochs = -(-steps // -(-n // batch_size))
    return [rows for order in orders(seed, range(epochs), n) for rows in order.split(batch_size)][:steps]


def likely(observed, expected):
    """Pearson's statistic of equally likely outcomes is no more than four deviations above its mean."""
    degrees = observed.numel() - 1
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    return statistic < degrees + 4 * math.sqrt(2 * degrees)


# The order of the rows


@pytest.mark.parametrize("n", SIZES)
def test_every_epoch_is_a_permutation(n):
    found = orders(3, range(20), n)
    assert found.shape == (20, n)
    assert found.dtype is torch.int64
    assert (found.sort(1).values == torch.arange(n)).all()


@pytest.mark.parametrize("n", [1, 2, 5, 100, 256, 257, 3000])
@pytest.mark.parametrize("block", [64, 1 << 20], ids=["many blocks", "one block"])
def test_an_epoch_in_parts_is_the_same_epoch(n, block, monkeypatch):
    monkeypatch.setattr(shuffle, "_BLOCK", block)
    for epoch, size in itertools.product((0, 7), {1 if n < 500 else 13, 3 if n < 500 else 64, n // 2 + 1, n, n + 5}):
        parts = list(shuffle.parts(11, epoch, n, size, CPU))
        assert all(len(part) == size for part in parts[:-1])
        assert 0 < len(parts[-1]) <= size
        assert torch.equal(torch.cat(parts), orders(11, range(epoch, epoch + 1), n)[0])


@pytest.mark.parametrize("n", [3, 100, 1000])
def test_an_epoch_does_not_depend_on_those_it_is_drawn_with(n):
    whole = orders(5, range(10), n)
    assert torch.equal(orders(5, range(4, 7), n), whole[4:7])
    assert torch.equal(torch.cat([orders(5, range(e, e + 1), n) for e in range(10)]), whole)


@pytest.mark.parametrize("n", [100, 1000])
def test_epochs_and_seeds_differ(n):
    seeds = [0, 1, 2, 1 << 32, 1 << 63, 1 << 64, (1 << 128) - 1]
    found = torch.cat([orders(seed, range(30), n) for seed in seeds])
    assert len({tuple(row) for row in found.tolist()}) == 30 * len(seeds)
    # Unrelated permutations agree in one place on average.
    agree = (found[:, None] == found).sum(2).double()
    agree.fill_diagonal_(0)
    assert abs(agree.sum() / (len(found) * (len(found) - 1)) - 1) < 0.05
    assert agree.max() < 12


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_permutations_of_few_rows_are_equally_likely_over_epochs(n):
    counts = collections.Counter(map(tuple, orders(1, range(24_000), n).tolist()))
    observed = torch.tensor([counts[p] for p in itertools.permutations(range(n))], dtype=torch.float64)
    assert observed.sum() == 24_000
    assert likely(observed, 24_000 / math.factorial(n))


@pytest.mark.parametrize("n", [8, 16, 17, 64, 100])
def test_half_of_all_permutations_are_odd(n):
    """So many pairs are out of order that the count is as likely even as odd."""
    found = orders(1, range(1000), n)
    out_of_order = torch.triu(found[:, :, None] > found[:, None, :], 1).sum((1, 2))
    assert 420 < (out_of_order % 2).sum() < 580


def test_all_permutations_of_few_rows_are_equally_likely_over_seeds():
    counts = collections.Counter(tuple(orders(seed, range(1), 3)[0].tolist()) for seed in range(900))
    assert likely(torch.tensor([counts[p] for p in itertools.permutations(range(3))], dtype=torch.float64), 150)


@pytest.mark.parametrize("n", [7, 16, 100, 256, 257, 300])
def test_every_row_is_equally_likely_at_every_place(n):
    epochs = 40 * max(n, 100)
    counts = torch.zeros(n * n, dtype=torch.int64)
    for first in range(0, epochs, 2000):
        found = orders(2, range(first, min(first + 2000, epochs)), n)
        counts += torch.bincount((found * n + torch.arange(n)).view(-1), minlength=n * n)
    assert likely(counts.double(), epochs / n)


@pytest.mark.parametrize("n", [16, 64, 256, 257, 1000, 1024])
@pytest.mark.parametrize("apart", [1, 2, 8])
def test_neighbours_in_the_data_are_strangers_in_the_order(n, apart):
    """How far apart two rows lie in an order, and which of them comes first, is as for any two rows."""
    found = orders(4, range(20_000 // n * 10), n)
    places = found.argsort(1)
    distance = (places[:, apart:] - places[:, :-apart]).flatten()
    assert abs((distance > 0).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(distance.numel() / 2)
    assert abs(distance.abs().double().mean() / ((n + 1) / 3) - 1) < 5 / math.sqrt(distance.numel() / 2)
    beside = (distance.abs() == 1).double().mean()
    assert abs(beside / (2 / n) - 1) < 5 / math.sqrt(distance.numel() * 2 / n)


@pytest.mark.parametrize("n", [256, 300, 1000])
def test_two_epochs_in_turn_are_independent(n):
    """Where a row lies in one epoch says nothing about where it lies in the next."""
    places = orders(6, range(200_000 // n + 1), n).argsort(1) * 8 // n
    pairs = (places[:-1] * 8 + places[1:]).flatten()
    shares = torch.bincount(places[0], minlength=8).double() / n
    expected = torch.outer(shares, shares).flatten() * pairs.numel()
    assert likely(torch.bincount(pairs, minlength=64).double() / expected * expected.mean(), expected.mean())


def by_hand(seed, epoch, n):
    """The same network in Python's own whole numbers, which no device, library or word size bends."""
    bits = max(2, (n - 1).bit_length())
    low_bits = bits // 2
    rounds = 32 if n <= 256 else 12
    philox = np.random.Philox(key=seed, counter=epoch * (4 + 2 * rounds) // 4)
    _, shift, _, _, *words = philox.random_raw(4 + 2 * rounds).tolist()
    found = []
    for number in range(1 << bits):
        number = (number + shift) % (1 << bits)
        high, low = number >> low_bits, number & ((1 << low_bits) - 1)
        for i in range(rounds):
            source, wanted = (low, bits - low_bits) if i % 2 == 0 else (high, low_bits)
            hashed = ((words[2 * i] | 1) * source + words[2 * i + 1]) % (1 << 64) >> (64 - wanted)
            high, low = (high ^ hashed, low) if i % 2 == 0 else (high, low ^ hashed)
        found.append(high << low_bits | low)
    return [number for number in found if number < n]


@pytest.mark.parametrize("n", [1, 3, 20, 256, 257, 600])
@pytest.mark.parametrize("seed", [0, 12345, (1 << 100) + 7])
def test_the_order_is_exact_integer_arithmetic_so_every_device_draws_the_same(n, seed):
    for epoch in (0, 1, 1000):
        assert orders(seed, range(epoch, epoch + 1), n)[0].tolist() == by_hand(seed, epoch, n)


def test_the_order_never_changes():
    """What a seed gave once, it gives in every version."""
    assert orders(0, range(2), 10).tolist() == [[1, 6, 3, 5, 8, 0, 4, 2, 7, 9], [8, 3, 2, 7, 6, 9, 0, 1, 4, 5]]
    assert orders(7, range(3, 4), 300)[0, :8].tolist() == [221, 35, 89, 242, 106, 19, 145, 144]


def test_the_global_random_state_is_not_touched_nor_asked():
    x, y = problem(50, 2)
    options = {"lr": 0.1, "steps": 10, "batch_size": 7, "seed": 1}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = gdcore.fit(x, y, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert_bitwise(first, gdcore.fit(x, y, **options))


def test_an_order_takes_no_memory_however_many_rows_there_are():
    n = 10**15
    part = next(shuffle.parts(1, 0, n, 1000, CPU))
    assert len(set(part.tolist())) == 1000
    assert 0 <= part.min() < part.max() < n
    assert part.max() > n // 2
    found = shuffle.batches(1, n, 100, 1 << 40, 1 << 10, CPU)
    rows, sizes = next(found)
    assert sizes == 10 * [100]
    assert torch.equal(rows, part)


@pytest.mark.parametrize("unit", [1, 10, 100, 250, 10_000])
@pytest.mark.parametrize("batch_size", [1, 7, 50, 100])
def test_units_hold_whole_batches_and_no_batch_goes_over_the_end_of_an_epoch(batch_size, unit):
    n, steps = 100, 2 * -(-100 // batch_size) + 1
    found, total = [], 0
    for rows, sizes in shuffle.batches(9, n, batch_size, steps, unit, CPU):
        assert sum(sizes) == len(rows)
        assert len(rows) <= max(unit, n if unit >= n else batch_size)
        found += rows.split(sizes)
        total += len(sizes)
        if total >= steps:
            break
    expected = batches(9, n, batch_size, steps)
    assert all(torch.equal(one, other) for one, other in zip(found[:steps], expected, strict=True))


def test_epochs_that_are_not_reached_are_not_drawn():
    rows, _ = next(shuffle.batches(0, 10, 5, 3, 1 << 20, CPU))
    assert len(rows) == 20


# Runs


def seen(method, n, batch_size, steps, **options):
    """Which rows each step saw: with x the unit matrix, their coefficients alone move."""
    result = gdcore.fit(
        torch.eye(n, device=DEVICE), torch.ones(n, device=DEVICE), lr=1e-3, steps=steps, batch_size=batch_size,
        method=method, record_trajectory=True, **options,
    )  # fmt: skip
    return [set(row.nonzero()[:, 0].tolist()) for row in result.trajectory.diff(dim=0)]


@each_method
@pytest.mark.parametrize("batch_size", [1, 4, 7, 13, 20], ids=lambda size: f"{size} of 20 rows")
def test_an_epoch_visits_every_row_once_in_the_drawn_order(batch_size, method):
    per_epoch = -(-20 // batch_size)
    found = seen(method, 20, batch_size, 3 * per_epoch, seed=5)
    for epoch in range(3):
        parts = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [len(part) for part in parts[:-1]] == [batch_size] * (per_epoch - 1)
        assert len(parts[-1]) == (20 % batch_size or batch_size)
        assert set().union(*parts) == set(range(20))
        assert sum(map(len, parts)) == 20
    assert found == [set(rows.tolist()) for rows in batches(5, 20, batch_size, 3 * per_epoch)]


@each_method
def test_epochs_and_seeds_give_batches_of_their_own(method):
    found = [tuple(map(tuple, map(sorted, seen(method, 40, 10, 8, seed=seed)))) for seed in (0, 1, 2**40, 2**100)]
    epochs = [part for run in found for part in (run[:4], run[4:])]
    assert len(set(epochs)) == 8
    again = tuple(map(tuple, map(sorted, seen(method, 40, 10, 8, seed=2**100))))
    assert again == found[-1]


@each_method
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1, "intercept": True},
        {"momentum": 0.5, "weight_decay": 0.1, "intercept": True},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()) or "plain",
)
@pytest.mark.parametrize("batch_size", [1, 16, 64, 100], ids=lambda size: f"batches of {size}")
@pytest.mark.parametrize("m", [None, 3], ids=["one output", "three outputs"])
def test_equals_the_eager_loop_over_the_same_orders(m, batch_size, options, method):
    x, y = problem(100, 4, m)
    options = {"lr": 0.02, "steps": 20, **options}
    result = gdcore.fit(x, y, batch_size=batch_size, seed=8, method=method, record_trajectory=True, **options)
    assert result.plan.method == method
    assert_as_stock(result, x, y, batches=batches(8, 100, batch_size, 20), **options)


@each_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_eager_loop_in_every_dtype(dtype, method):
    x, y = problem(70, 3, 2, dtype)
    options = {"lr": 0.05, "steps": 12, "momentum": 0.5, "intercept": True}
    result = gdcore.fit(x, y, batch_size=32, method=method, record_trajectory=True, **options)
    assert_as_stock(result, x, y, batches=batches(0, 70, 32, 12), **options)


@each_method
def test_the_loss_of_a_short_batch_is_the_mean_over_its_own_rows(method):
    x, y = problem(10, 2)
    result = gdcore.fit(x, y, lr=0, steps=6, batch_size=4, method=method)
    expected = [y[rows].square().mean() for rows in batches(0, 10, 4, 6)]
    torch.testing.assert_close(result.losses, torch.stack(expected))


@each_method
def test_a_batch_of_all_rows_is_the_full_batch(method):
    x, y = problem(30, 3)
    options = {"lr": 0.1, "steps": 10, "momentum": 0.5, "intercept": True, "method": method}
    whole, batch = gdcore.fit(x, y, **options), gdcore.fit(x, y, **options, batch_size=30)
    torch.testing.assert_close(batch.losses, whole.losses)
    torch.testing.assert_close(batch.coef, whole.coef)


@each_method
def test_a_single_row(method):
    x, y = torch.tensor([[2.0]], device=DEVICE), torch.tensor([4.0], device=DEVICE)
    result = gdcore.fit(x, y, lr=0.0625, steps=3, batch_size=1, method=method, record_trajectory=True)
    assert result.trajectory.flatten().tolist() == [0.0, 1.0, 1.5, 1.75]
    assert result.losses.tolist() == [16.0, 4.0, 1.0]


@each_method
@pytest.mark.parametrize("batch_size", [3, 8], ids=["a short last batch", "whole batches"])
def test_a_shorter_run_is_the_beginning_of_a_longer_one(batch_size, method):
    x, y = problem(24, 2)
    options = {"lr": 0.05, "batch_size": batch_size, "momentum": 0.5, "method": method, "record_trajectory": True}
    whole = gdcore.fit(x, y, steps=100, **options)
    for steps in (1, 2, 3, 4, 9, 65):
        assert_bitwise(gdcore.fit(x, y, steps=steps, **options), whole, steps)


@on_cpu(reason="the CPU's engine")
@pytest.mark.parametrize("numbers", [1, 30, 100, 300], ids="{} row numbers at a time".format)
@pytest.mark.parametrize("together", [1, 3, 64], ids="{} batches gathered at a time".format)
def test_how_much_is_drawn_and_gathered_at_a_time_changes_nothing(together, numbers, monkeypatch):
    x, y = problem(100, 3)
    options = {"lr": 0.05, "steps": 50, "batch_size": 15, "intercept": True, "record_trajectory": True}
    expected = gdcore.fit(x, y, **options)
    monkeypatch.setattr(cpu, "_ORDER_NUMBERS", numbers)
    monkeypatch.setattr(cpu, "_UNIT_BATCHES", together)
    assert_bitwise(gdcore.fit(x, y, **options), expected)
    monkeypatch.setattr(cpu, "_UNIT_BYTES", 1)
    assert_bitwise(gdcore.fit(x, y, **options), expected)


@on_cpu(reason="the CPU's engine")
@pytest.mark.parametrize("batch_size", [10, 1000, 100_000])
def test_what_is_gathered_at_a_time_stays_small(batch_size, monkeypatch):
    """Some batches together, a cache's part of bytes at most; a batch that is larger alone."""
    gathered = []
    room = cpu.CacheRun._room
    monkeypatch.setattr(cpu.CacheRun, "_room", lambda self, x, rows: gathered.append(rows) or room(self, x, rows))
    x, y = problem(200_000, 2)
    gdcore.fit(x, y, lr=0.1, steps=2, batch_size=batch_size, intercept=True)
    assert gathered[0] * 4 * 4 <= max(cpu._UNIT_BYTES, batch_size * 4 * 4)
    assert gathered[0] == max(1, min(64, (2 << 20) // (16 * batch_size))) * batch_size


@on_cpu(reason="the CPU's engine")
def test_more_rows_than_are_drawn_at_a_time():
    n = 300_000
    assert n > cpu._ORDER_NUMBERS
    x, y = problem(n, 1)
    options = {"lr": 0.1, "steps": 9}
    result = gdcore.fit(x, y, batch_size=40_000, seed=3, method="resident", **options)
    assert_as_stock(result, x, y, batches=batches(3, n, 40_000, 9), **options)


@each_method
def test_a_diverging_run_is_a_result(method):
    x, y = problem(64, 2)
    result = gdcore.fit(x, y, lr=30.0, steps=100, batch_size=20, method=method)
    finite = torch.isfinite(loop(x, y, lr=30.0, steps=100, dtype=torch.float32, batches=batches(0, 64, 20, 100)).losses)
    assert abs(result.diverged_at - int((~finite).nonzero()[0])) <= 1
    assert not torch.isfinite(result.losses[-1])


@each_method
def test_nan_in_a_row_shows_when_its_batch_comes(method):
    x, y = problem(64, 2)
    y[17] = torch.nan
    result = gdcore.fit(x, y, lr=0.1, steps=10, batch_size=8, method=method)
    first = next(i for i, rows in enumerate(batches(0, 64, 8, 10)) if 17 in rows)
    assert result.diverged_at == first
    assert result.losses[first:].isnan().all()
