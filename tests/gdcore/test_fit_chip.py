"""Runs in one launch or a few: the engine about the kernels, interpreted or on a GPU, and the CUDA graph, here acted."""

import contextlib
import itertools
import types

import pytest
import torch

import gdcore
from fit_support import assert_as_stock, assert_bitwise, loop, on_cpu, problem
from gdcore import backends, training
from gdcore.training import choice, shuffle, steps, triton
from gdcore.training.spec import Spec
from support import DEVICE, DTYPES

pytestmark = pytest.mark.usefixtures("one_thread", "kernels")

OPTIONS = {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1, "intercept": True}
METHODS = {"a full batch": {}, "mini-batches": {"batch_size": 16}}


@pytest.fixture
def kernels():
    with gdcore.use_backend("triton"):
        yield


def batches(seed, n, batch_size, steps):
    """The row numbers of each step."""
    epochs = -(-steps // -(-n // batch_size))
    orders = shuffle.orders(seed, range(epochs), n, torch.device("cpu"))
    return [rows for order in orders for rows in order.split(batch_size)][:steps]


def rows_of(more, n, steps):
    return batches(0, n, more["batch_size"], steps) if more else None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, None), (30, 2, None), (20, 5, 3), (33, 3, 1)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_error_is_at_most_twice_the_eager_loops(method, shape, dtype):
    x, y = problem(*shape, dtype)
    more = {"batch_size": min(16, shape[0])} if METHODS[method] else {}
    result = gdcore.fit(x, y, steps=5, record_trajectory=True, **OPTIONS, **more)
    assert (result.plan.backend, result.plan.method) == ("triton", "resident")
    assert_as_stock(result, x, y, steps=5, batches=rows_of(more, shape[0], 5), slack=2.0, **OPTIONS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": momentum, "weight_decay": weight_decay, "intercept": intercept}
        for momentum, weight_decay, intercept in itertools.product((0.0, 0.9), (0.0, 0.05), (False, True))
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()),
)
def test_agrees_with_the_cpus_own_path(options, method):
    x, y = problem(40, 3)
    init = torch.randn(3)
    options = {**options, **METHODS[method], "lr": 0.05, "steps": 6, "init": init, "record_trajectory": True}
    ours = gdcore.fit(x, y, **options)
    with gdcore.use_backend("cpu"):
        other = gdcore.fit(x.cpu(), y.cpu(), **options)
    assert ours.plan.backend != other.plan.backend
    for name in ("coef", "intercept", "losses", "trajectory"):
        torch.testing.assert_close(getattr(ours, name), getattr(other, name), rtol=2e-5, atol=2e-6, check_device=False)
    assert torch.equal(ours.trajectory[0][:3].cpu(), init)
    assert torch.equal(ours.trajectory[-1][:3], ours.coef)


def counting(monkeypatch, after=None):
    """Notes the steps of every launch; interrupts before a launch, if asked to."""
    launches = []

    def counted(kernel):
        def launch(*arguments, **options):
            if len(launches) == after:
                raise KeyboardInterrupt
            launches.append(options["steps"])
            return kernel(*arguments, **options)

        return launch

    for name in ("run_resident", "run_batches", "run_grid"):
        monkeypatch.setattr(triton, name, counted(getattr(triton, name)))
    return launches


@pytest.mark.parametrize("record", [True, False], ids=["with trajectory", "without trajectory"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_many_launches_is_bitwise_the_run_in_one(method, record, monkeypatch):
    x, y = problem(40, 3)
    options = {**OPTIONS, **METHODS[method], "steps": 11, "record_trajectory": record}
    launches = counting(monkeypatch)
    whole = gdcore.fit(x, y, **options)
    assert launches == [11]
    for size, expected in ((4, [4, 4, 3]), (11, [11]), (20, [11])):
        launches.clear()
        monkeypatch.setattr(triton.ChipRun, "chunk", size)
        assert_bitwise(gdcore.fit(x, y, **options), whole)
        assert launches == expected


@pytest.mark.parametrize(("seconds", "chunk"), [(1e-7, 100_000), (5e-6, 20_000), (1.0, 1), (None, 10_000)])
def test_a_launch_is_short_enough_to_be_interrupted(seconds, chunk):
    x, y = problem(9, 2, 1)
    plan = types.SimpleNamespace(predicted_step_seconds=seconds)
    spec = Spec(n=9, k=2, m=1, dtype=x.dtype, steps=5, lr=0.1)
    assert triton.ChipRun(spec, torch.zeros(2, 1), x, y, plan).chunk == chunk


@pytest.mark.parametrize("numbers", [1, 36, 40, 100, 1000], ids="{} row numbers at a time".format)
@pytest.mark.parametrize("chunk", [100, 4], ids="launches of {} steps at most".format)
def test_how_many_row_numbers_are_drawn_at_a_time_changes_nothing(chunk, numbers, monkeypatch):
    """Several epochs, one, or a part of one: 40 rows in batches of 16 are two batches and a short one."""
    x, y = problem(40, 3)
    options = {**OPTIONS, "batch_size": 16, "steps": 11, "seed": 4, "record_trajectory": True}
    whole = gdcore.fit(x, y, **options)
    assert_as_stock(whole, x, y, steps=11, batches=batches(4, 40, 16, 11), slack=2.0, **OPTIONS)
    monkeypatch.setattr(triton, "_ORDER_NUMBERS", numbers)
    monkeypatch.setattr(triton.ChipRun, "chunk", chunk)
    launches = counting(monkeypatch)
    assert_bitwise(gdcore.fit(x, y, **options), whole)
    assert sum(launches) == 11
    assert len(launches) > 1 or (numbers, chunk) == (1000, 100)


@pytest.mark.parametrize("record", [True, False], ids=["with trajectory", "without trajectory"])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_between_launches_returns_what_has_been_learnt(method, after, record, monkeypatch):
    x, y = problem(40, 3)
    options = {**OPTIONS, **METHODS[method], "record_trajectory": record, "init": (torch.ones(3), torch.tensor(2.0))}
    monkeypatch.setattr(triton.ChipRun, "chunk", 4)
    with monkeypatch.context() as patch:
        counting(patch, after)
        result = gdcore.fit(x, y, steps=30, **options)
    assert result.interrupted
    assert result.losses.shape == (4 * after,)
    if after == 0:
        assert result.coef.tolist() == [1.0] * 3
        assert result.intercept == 2
        assert not record or result.trajectory.tolist() == [[1.0, 1.0, 1.0, 2.0]]
    else:
        assert_bitwise(result, gdcore.fit(x, y, steps=4 * after, **options))


def test_no_argument_is_overwritten_or_shares_memory_with_the_result():
    x, y = problem(20, 2)
    init = torch.randn(2)
    before = [t.clone() for t in (x, y, init)]
    result = gdcore.fit(x, y, lr=0.1, steps=3, init=init)
    result.coef.zero_(), result.losses.zero_()
    assert all(torch.equal(t, old) for t, old in zip((x, y, init), before, strict=True))


def test_a_grid_is_launched_with_its_programs(monkeypatch):
    """One program is all that the interpreter can do; the plan that asks for it is made here."""
    plan_run = choice.plan_run

    def as_grid(spec, device, backend, **options):
        plan = plan_run(spec, device, backend, **options)
        return type(plan)(**{n: getattr(plan, n) for n in plan.__slots__} | {"method": "grid", "programs": 1})

    x, y = problem(40, 3)
    options = {**OPTIONS, "steps": 6, "record_trajectory": True}
    monkeypatch.setattr(choice, "plan_run", as_grid)
    monkeypatch.setattr(triton.ChipRun, "chunk", 4)
    launches = counting(monkeypatch)
    result = gdcore.fit(x, y, **options)
    assert launches == [4, 2]
    assert result.plan.method == "grid"
    assert_as_stock(result, x, y, steps=6, slack=2.0, **OPTIONS)


@pytest.mark.parametrize("method", ["steps", "stream", "gram"])
def test_methods_with_a_launch_a_step(method):
    x, y = problem(40, 3)
    result = gdcore.fit(x, y, steps=4, method=method, record_trajectory=True, **OPTIONS)
    assert (result.plan.backend, result.plan.method) == ("triton", method)
    assert_as_stock(result, x, y, steps=4, slack=2.0, **OPTIONS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what overflows
@pytest.mark.parametrize("method", METHODS)
def test_divergence_is_a_result(method):
    x, y = problem(32, 2)
    options = {"lr": 1e8, "steps": 8}
    result = gdcore.fit(x, y, **options, **METHODS[method])
    rows = rows_of(METHODS[method], 32, 8)
    finite = torch.isfinite(loop(x, y, dtype=torch.float32, batches=rows, **options).losses)
    assert abs(result.diverged_at - int((~finite).nonzero()[0])) <= 1
    assert not torch.isfinite(result.losses[-1])
    y[3] = torch.nan
    assert gdcore.fit(x, y, lr=0.1, steps=2).diverged_at == 0


# The CUDA graph


class Graph:
    """What was done while it was captured is not done, but done again at each replay."""

    def __init__(self):
        self.steps, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for step in self.steps:
            step()


@pytest.fixture
def graphs(monkeypatch):
    """CUDA's graphs acted: the steps of a capture are recorded."""
    if DEVICE == "cuda":
        pytest.skip("without a GPU graphs are acted; test_fit_cuda captures")
    made, capturing = [], []

    @contextlib.contextmanager
    def graph(captured, stream, capture_error_mode):
        assert (stream, capture_error_mode) == ("a stream of cpu", "thread_local")
        made.append(captured)
        capturing.append(captured)
        yield
        capturing.pop()

    step = triton.GraphRun.step

    def recorded(self, *data):
        if not capturing:
            return step(self, *data)
        i = len(capturing[-1].steps)
        capturing[-1].steps.append(lambda: self.chunk_losses[i].copy_(step(self, *data)))
        return self.chunk_losses[i].clone()

    def counted_step(*arguments, counter):  # the CPU's, which is faster than an interpreted kernel
        counters.add(counter.data_ptr())
        return backends.load("cpu").step(*arguments)

    counters = set()
    monkeypatch.setattr(steps, "load", lambda _: types.SimpleNamespace(step=counted_step))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(triton, "_CHUNKS_TO_CAPTURE", 1)
    monkeypatch.setattr(triton.GraphRun, "step", recorded)
    yield made
    assert len(counters) <= 2, "a graph and the steps before it share one counter"


def graph_run(x, y, count, record=False, **options):
    start = torch.zeros(x.shape[1] + options.get("intercept", False), y.shape[1], dtype=x.dtype)
    spec = Spec(n=len(x), k=x.shape[1], m=y.shape[1], dtype=x.dtype, steps=count, record=record, **options)
    return triton.GraphRun(spec, start, x, y, "cpu")


def finished(engine, interrupted=False):
    assert training.drive(engine, False) == interrupted
    return training._result(engine, types.SimpleNamespace(), False, interrupted, None)


@pytest.mark.parametrize("count", [1, 30, 31, 32, 62, 93, 100, 160])
def test_replayed_chunks_are_the_run(count, graphs):
    x, y = problem(40, 3, 2)
    chunk = triton.GraphRun.chunk
    result = finished(graph_run(x, y, count, **OPTIONS))
    assert_as_stock(result, x, y, steps=count, **OPTIONS)
    assert len(graphs) == (count >= 2 * chunk)
    if graphs:
        assert len(graphs[0].steps) == chunk
        assert graphs[0].replays == count // chunk - 1


@pytest.mark.parametrize("chunks", [10, 11])
def test_a_short_run_is_not_worth_a_capture(chunks, graphs, monkeypatch):
    """The first chunk is taken step by step in any case."""
    monkeypatch.setattr(triton, "_CHUNKS_TO_CAPTURE", 10)
    x, y = problem(40, 3, 2)
    finished(graph_run(x, y, chunks * triton.GraphRun.chunk, **OPTIONS))
    assert len(graphs) == (chunks == 11)


def test_a_trajectory_takes_every_step_by_itself(graphs):
    x, y = problem(40, 3, 2)
    result = finished(graph_run(x, y, 100, record=True, **OPTIONS))
    assert not graphs
    assert_as_stock(result, x, y, steps=100, **OPTIONS)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupt_between_replays_returns_what_has_been_learnt(after, graphs, monkeypatch):
    """Of an interrupted replay nothing shows, though it has moved the graph's own parameters."""
    x, y = problem(40, 3, 2)
    replay = Graph.replay

    def interrupted(self):
        replay(self)
        if self.replays == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Graph, "replay", interrupted)
    count = after * triton.GraphRun.chunk
    result = finished(graph_run(x, y, 1000, **OPTIONS), interrupted=True)
    assert result.losses.shape == (count,)
    monkeypatch.setattr(Graph, "replay", replay)
    assert_bitwise(result, finished(graph_run(x, y, count, **OPTIONS)))


def test_an_interrupt_while_a_chunk_is_noted_loses_that_chunk_alone(graphs, monkeypatch):
    x, y = problem(40, 3, 2)
    keep, chunk = triton.GraphRun.keep, triton.GraphRun.chunk

    def interrupted(self, step):
        before = self.done
        keep(self, step)
        if step == 3 * chunk:
            self.done = before
            raise KeyboardInterrupt

    monkeypatch.setattr(triton.GraphRun, "keep", interrupted)
    result = finished(graph_run(x, y, 1000, **OPTIONS), interrupted=True)
    monkeypatch.setattr(triton.GraphRun, "keep", keep)
    assert_bitwise(result, finished(graph_run(x, y, 2 * chunk, **OPTIONS)))


@on_cpu(reason="a GPU compiles")
def test_this_machine_interprets():
    assert DEVICE == "cpu"
    assert gdcore.backends.interpreting()
