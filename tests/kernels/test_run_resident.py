"""A whole run in one program: against the loop in float64, relative to the same loop in the accumulator's dtype."""

import functools

import pytest
import torch

from gdcore.kernels.run_resident import run_resident
from product_support import LAYOUTS, laid_out, poison
from run_support import (
    FULL,
    OPTIONS,
    assert_equal,
    assert_near,
    full_batch,
    joined,
    kinds,
    launch,
    loop,
    options_id,
    problem,
    shape_id,
    start,
    tile,
)  # fmt: skip
from support import DEVICE, DTYPES

SHAPES = [(1, 1, 1), (100, 2, 1), (64, 16, 1), (130, 17, 1), (33, 3, 2), (37, 5, 3), (20, 1, 5)]
STEPS = 5


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def run(x, y, state, steps=STEPS, **options):
    config = options.pop("config", None) or tile(*x.shape)
    return launch(functools.partial(run_resident, config=config), x, y, state, steps, **options)


def check(x, y, state=None, config=None, **options):
    options = {**FULL, **options}
    state = start(x, y, options["intercept"]) if state is None else state
    ours = run(x, y, state, config=config, **options)
    assert_near(ours, x, y, state, full_batch(STEPS), **options)
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_error_is_at_most_twice_the_loops(shape, dtype):
    check(*problem(*shape, dtype))


@pytest.mark.parametrize("options", OPTIONS, ids=options_id)
@pytest.mark.parametrize("zero", [True, False], ids=["from zero", "from anywhere"])
def test_options(options, zero):
    x, y = problem(37, 5, 2)
    check(x, y, start(x, y, options["intercept"], zero), **options)


def test_a_larger_tile_gives_the_same_and_without_a_trajectory_too():
    x, y = problem(37, 5, 1)
    first = check(x, y, config=tile(37, 5))
    second = check(x, y, config=tile(200, 30, 4))
    torch.testing.assert_close(first[0], second[0], rtol=1e-5, atol=1e-6)
    without = run(x, y, start(x, y, True), record=False, **FULL)
    assert without[2] is None
    assert torch.equal(first[0], without[0])
    assert torch.equal(first[1], without[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_among_memory_that_is_nan(layout):
    x, y = (laid_out(tensor, layout) for tensor in problem(37, 5, 3))
    check(x, y)


def test_a_wider_target_is_read_in_full():
    x, y = problem(37, 2, 1, torch.float16)
    check(x, y.float() + 1e-4)


def test_a_run_split_in_two_is_bitwise_the_same_and_so_is_a_repeated_one():
    x, y = problem(100, 2, 1)
    state = start(x, y, True)
    whole = run(x, y, state, 11, **FULL)
    assert_equal(whole, run(x, y, state, 11, **FULL))
    first = run(x, y, state, 4, **FULL)
    assert_equal(whole, joined(first, run(x, y, first[0], 7, **FULL)))
    assert torch.equal(whole[2][4], first[0][0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_steps_copy_the_state(momentum):
    x, y = problem(9, 3, 2)
    state = start(x, y, True, zero=False)
    assert torch.equal(run(x, y, state, 0, **{**FULL, "momentum": momentum})[0], state)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, where it interprets
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("where", ["input", "target", "state"])
def test_nan_and_inf_go_where_the_loop_sends_them(where, value):
    x, y = problem(37, 3, 2)
    state = start(x, y, True, zero=False)
    {"input": x[-1], "target": y[-1], "state": state[0, 1]}[where][1] = value
    ours = run(x, y, state, 4, **FULL)
    theirs = loop(x, y, state, full_batch(4), dtype=torch.float32, **FULL)
    for mine, stock in zip(ours, theirs, strict=True):
        assert torch.equal(kinds(mine), kinds(stock))
    finite = ours[0].isfinite()
    torch.testing.assert_close(ours[0][finite], theirs[0][finite], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_diverging_run_ends_as_the_loop_does(momentum):
    x, y = problem(37, 3, 1)
    options = {**FULL, "lr": 1e4, "momentum": momentum, "weight_decay": 0.0}
    state = start(x, y, True)
    ours = run(x, y, state, 20, **options)
    theirs = loop(x, y, state, full_batch(20), dtype=torch.float32, **options)
    assert kinds(theirs[1]).unique().tolist() == [0, 1, 2]
    for mine, stock in zip(ours[1:], theirs[1:], strict=True):
        assert torch.equal(kinds(mine), kinds(stock))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_without_weight_decay_an_infinite_weight_adds_nothing_to_the_gradient():
    x, y = problem(5, 2, 1)
    x.abs_()
    state = start(x, y, True)
    state[0, 0] = torch.inf
    options = {**FULL, "weight_decay": 0.0}
    assert run(x, y, state, 1, **options)[0][1].isposinf().all()
    assert run(x, y, state, 1, **{**options, "weight_decay": -1e-3})[0][1, 0].isnan().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_padding_of_k_does_not_turn_infinity_into_nan_a_step_too_soon(outputs):
    x, y = torch.ones(5, 3, device=DEVICE), torch.zeros(5, outputs, device=DEVICE)
    options = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "intercept": False}
    state = start(x, y, False).fill_(3e38)
    losses = run(x, y, state, 3, **options)[1]
    assert kinds(losses).tolist() == [1, 1, 2]
    assert torch.equal(kinds(losses), kinds(loop(x, y, state, full_batch(3), dtype=torch.float32, **options)[1]))
