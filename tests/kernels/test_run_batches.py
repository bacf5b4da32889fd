"""A run of mini-batches in one program: against the loop in float64, relative to the same loop in the accumulator's dtype."""

import functools

import pytest
import torch

from gdcore.kernels.run_batches import run_batches
from gdcore.kernels.run_resident import run_resident
from product_support import LAYOUTS, laid_out, poison
from run_support import (
    FULL,
    OPTIONS,
    assert_equal,
    assert_near,
    joined,
    kinds,
    launch,
    loop,
    options_id,
    problem,
    start,
    tile,
)  # fmt: skip
from support import DEVICE, DTYPES

# N, K, M, batch: one row; one batch an epoch; whole batches; a short one at the end, of one row too; single rows.
CASES = [(1, 1, 1, 1), (20, 2, 1, 20), (24, 3, 2, 8), (37, 5, 3, 8), (33, 16, 1, 16), (5, 17, 1, 1), (10, 2, 5, 7)]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def case_id(case):
    return "N={} K={} M={} batches of {}".format(*case)


def shuffled(n, epochs, dtype=torch.int32):
    """Another permutation for each epoch."""
    return torch.cat([torch.randperm(n) for _ in range(epochs)]).to(dtype).to(DEVICE)


def batches_of(order, n, batch_size, first_step, steps):
    """The row numbers of each step."""
    found = []
    for epoch in order.long().split(n):
        found += epoch.split(batch_size)
    return found[first_step : first_step + steps]


def run(x, y, order, state, batch_size, steps, first_step=0, **options):
    config = options.pop("config", None) or tile(batch_size, x.shape[1])
    kernel = functools.partial(run_batches, order=order, first_step=first_step, batch_size=batch_size, config=config)
    return launch(kernel, x, y, state, steps, **options)


def check(x, y, batch_size, steps, order_dtype=torch.int32, **options):
    n = len(x)
    options = {**FULL, "lr": 0.05, **options}
    state = start(x, y, options["intercept"])
    order = shuffled(n, -(-steps // -(-n // batch_size)), order_dtype)
    ours = run(x, y, order, state, batch_size, steps, **options)
    assert_near(ours, x, y, state, batches_of(order, n, batch_size, 0, steps), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_error_is_at_most_twice_the_loops(case, dtype):
    n, k, m, batch_size = case
    check(*problem(n, k, m, dtype), batch_size, min(2 * -(-n // batch_size) + 1, 7))


@pytest.mark.parametrize("options", OPTIONS, ids=options_id)
def test_options(options):
    check(*problem(11, 5, 2), 4, 4, torch.int64, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_among_memory_that_is_nan(layout):
    x, y = (laid_out(tensor, layout) for tensor in problem(11, 5, 3))
    check(x, y, 4, 4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_nothing_is_read_beyond_the_last_batch(steps):
    """`order` ends with it, and the memory behind names rows far outside of X."""
    x, y = problem(11, 2, 1)
    state = start(x, y, True)
    numbers = torch.full((80,), 2**40, device=DEVICE)
    rows = min(4 * steps, 11)
    numbers[:rows] = torch.randperm(11, device=DEVICE)[:rows]
    ours = run(x, y, numbers[:rows], state, 4, steps, **FULL)
    assert_near(ours, x, y, state, batches_of(numbers[:rows], 11, 4, 0, steps), **FULL)


def test_a_run_split_anywhere_is_bitwise_the_same_and_so_is_a_repeated_one():
    x, y = problem(11, 2, 1)
    state, order = start(x, y, True), shuffled(11, 3)
    whole = run(x, y, order, state, 4, 9, **FULL)
    assert_equal(whole, run(x, y, order, state, 4, 9, **FULL))
    for steps in (1, 2, 3, 4, 8):
        first = run(x, y, order, state, 4, steps, **FULL)
        second = run(x, y, order, first[0], 4, 9 - steps, steps, **FULL)
        assert_equal(whole, joined(first, second))


def test_a_batch_of_all_rows_in_their_order_is_the_full_batch():
    x, y = problem(37, 3, 2)
    state, order = start(x, y, True), torch.arange(37, device=DEVICE).repeat(6)
    ours = run(x, y, order, state, 37, 6, **FULL)
    full = launch(functools.partial(run_resident, config=tile(37, 3)), x, y, state, 6, **FULL)
    for one, other in zip(ours, full, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_without_momentum_and_trajectory():
    x, y = problem(11, 3, 2)
    state, order = start(x, y, True, zero=False), shuffled(11, 2)
    options = {**FULL, "momentum": 0.0}
    ours = run(x, y, order, state, 4, 4, record=False, **options)
    assert_near(ours, x, y, state, batches_of(order, 11, 4, 0, 4), **options)
    assert torch.equal(run(x, y, order, state, 4, 0, **options)[0], state)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, where it interprets
@pytest.mark.parametrize("where", ["input", "target"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_bad_row_spoils_the_steps_from_its_batch_on(where, value):
    x, y = problem(10, 3, 1)
    {"input": x, "target": y}[where][7, 0] = value
    state, order = start(x, y, True, zero=False), torch.arange(10, device=DEVICE)
    ours = run(x, y, order, state, 3, 4, **FULL)
    theirs = loop(x, y, state, batches_of(order, 10, 3, 0, 4), dtype=torch.float32, **FULL)
    assert kinds(theirs[1])[:2].tolist() == [0, 0]
    assert kinds(theirs[1])[2] > 0
    for mine, stock in zip(ours, theirs, strict=True):
        assert torch.equal(kinds(mine), kinds(stock))
