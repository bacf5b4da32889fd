"""A run on all multiprocessors. Interpreted, one program runs here; several, in processes of their own, in grid_processes."""

import functools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton

import grid_processes
from gdcore.kernels.run_grid import run_grid
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

SHAPES = [(1, 1, 1), (100, 2, 1), (64, 16, 1), (33, 17, 2), (37, 5, 3)]
STEPS = 5
PROGRAMS = 1 if DEVICE == "cpu" else 4


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.fixture(autouse=True)
def _alarm():
    """An interpreted program that waits for ever is stopped."""

    def stop(*_):
        raise TimeoutError("the barrier did not open")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(x, y, state, steps=STEPS, **options):
    n, k = x.shape
    config = tile(-(-n // PROGRAMS), k, 4)
    return launch(functools.partial(run_grid, config=config, programs=PROGRAMS), x, y, state, steps, **options)


def check(x, y, state=None, **options):
    options = {**FULL, **options}
    state = start(x, y, options["intercept"]) if state is None else state
    assert_near(run(x, y, state, **options), x, y, state, full_batch(STEPS), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_error_is_at_most_twice_the_loops(shape, dtype):
    check(*problem(*shape, dtype))


@pytest.mark.parametrize("options", OPTIONS, ids=options_id)
def test_options(options):
    x, y = problem(37, 5, 2)
    check(x, y, start(x, y, options["intercept"], zero=False), **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_among_memory_that_is_nan(layout):
    x, y = (laid_out(tensor, layout) for tensor in problem(37, 5, 3))
    check(x, y)


def test_a_run_split_in_two_is_bitwise_the_same_and_so_is_a_repeated_one():
    x, y = problem(100, 2, 1)
    state = start(x, y, True)
    whole = run(x, y, state, 11, **FULL)
    assert_equal(whole, run(x, y, state, 11, **FULL))
    first = run(x, y, state, 3, **FULL)
    assert_equal(whole, joined(first, run(x, y, first[0], 8, **FULL)))


def test_without_momentum_and_trajectory():
    x, y = problem(37, 3, 2)
    state = start(x, y, True, zero=False)
    options = {**FULL, "momentum": 0.0}
    ours = run(x, y, state, record=False, **options)
    assert_near(ours, x, y, state, full_batch(STEPS), **options)
    assert torch.equal(run(x, y, state, 0, **options)[0], state)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, where it interprets
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_nan_and_inf_go_where_the_loop_sends_them(value):
    x, y = problem(37, 3, 2)
    x[-1, 1] = value
    state = start(x, y, True, zero=False)
    theirs = loop(x, y, state, full_batch(STEPS), dtype=torch.float32, **FULL)
    for mine, stock in zip(run(x, y, state, **FULL), theirs, strict=True):
        assert torch.equal(kinds(mine), kinds(stock))


def test_it_is_what_one_program_calculates():
    x, y = problem(100, 3, 2)
    state = start(x, y, True)
    resident = launch(functools.partial(run_resident, config=tile(100, 3, 4)), x, y, state, STEPS, **FULL)
    for one, other in zip(run(x, y, state, **FULL), resident, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="compiled, programs run at once")
def test_interpreted_programs_that_would_wait_for_ever_are_refused():
    x, y = problem(10, 2, 1)
    with pytest.raises(RuntimeError, match="programs is 2, must be 1"):
        launch(functools.partial(run_grid, config=tile(5, 2), programs=2), x, y, start(x, y, True), 1, **FULL)


@pytest.mark.skipif(
    triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton 3.6's interpreter makes numbers of arrays of one element, which NumPy 2.4 refuses",
)
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_several_programs_at_once_in_any_order_calculate_the_run(tmp_path):
    environment = {
        **os.environ,
        "GDCORE_SEED": str(torch.initial_seed() % 2**31),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TRITON_INTERPRET": "1",
    }
    command = [sys.executable, "-c", "import grid_processes, sys; grid_processes.main(sys.argv[1])", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "results.pt")
    x, y, state = found["input"], found["target"], found["state_in"]
    ours = found["state_out"], found["losses"], found["trajectory"]
    assert_near(ours, x, y, state, full_batch(grid_processes.STEPS), **grid_processes.OPTIONS)
