"""Whole runs on a GPU: every method against float64, graphs that are captured, barriers that open, streams, rows from the host."""

import faulthandler
import os
import signal
import threading

import pytest
import torch

import gdcore
from fit_support import METHODS, assert_as_stock, assert_bitwise, problem
from gdcore.kernels import run_configs
from gdcore.training import Table, choice, shuffle, triton

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OPTIONS = {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1, "intercept": True}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
SECONDS = 150  # of a test: a barrier that does not open ends the process, which nothing else can interrupt


@pytest.fixture(autouse=True)
def _alarm():
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    torch.cuda.synchronize()
    faulthandler.cancel_dump_traceback_later()


def rows_for(method):
    """So many that a grid has several programs, or as many as one program holds."""
    return 200 if method == "resident" else 1500


def batches(seed, n, batch_size, steps):
    epochs = range(-(-steps // -(-n // batch_size)))
    return [rows for order in shuffle.orders(seed, epochs, n, CPU) for rows in order.split(batch_size)][:steps]


# Every method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [None, 3], ids=["one output", "three outputs"])
def test_error_is_at_most_twice_the_eager_loops(m, dtype, method):
    x, y = problem(rows_for(method), 4, m, dtype)
    result = gdcore.fit(x, y, steps=30, method=method, record_trajectory=True, **OPTIONS)
    assert (result.plan.backend, result.plan.method) == ("triton", method)
    assert result.plan.programs == {"resident": 1, "grid": 6}.get(method, 0)
    assert all(t.device == GPU for t in (result.coef, result.intercept, result.losses, result.trajectory))
    assert_as_stock(result, x, y, steps=30, **OPTIONS)


@pytest.mark.parametrize("method", ["resident", "steps", "stream"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mini_batches_equal_the_eager_loop_over_the_same_orders(dtype, method):
    x, y = problem(1000, 4, 2, dtype)
    result = gdcore.fit(x, y, steps=40, batch_size=64, seed=5, method=method, record_trajectory=True, **OPTIONS)
    assert_as_stock(result, x, y, steps=40, batches=batches(5, 1000, 64, 40), **OPTIONS)


@pytest.mark.parametrize("n", [1, 3, 20, 256, 257, 600, 100_000])
def test_the_gpu_draws_the_orders_that_the_cpu_draws(n):
    for epochs in (range(3), range(1000, 1001)):
        found = shuffle.orders(12345, epochs, n, GPU)
        assert torch.equal(found.cpu(), shuffle.orders(12345, epochs, n, CPU))
    parts = [part.cpu() for part in shuffle.parts(7, 2, n, max(1, n // 3), GPU)]
    assert torch.equal(torch.cat(parts), shuffle.orders(7, range(2, 3), n, CPU)[0])


@pytest.mark.parametrize("run", ["resident", "grid", "steps", "mini-batches"])
def test_a_hundred_runs_are_the_same_to_the_bit(run):
    method = "resident" if run == "mini-batches" else run
    x, y = problem(rows_for(method), 4)
    options = {**OPTIONS, "steps": 40, "method": method, "batch_size": 64 if run == "mini-batches" else None}
    first = gdcore.fit(x, y, **options)
    for _ in range(100):
        assert_bitwise(gdcore.fit(x, y, **options), first)


def test_the_suggested_rate_is_the_cpus():
    x, y = problem(1000, 4, 2)
    options = {**OPTIONS, "steps": 1, "suggest_lr": True}
    expected = gdcore.fit(x.cpu(), y.cpu(), **options).suggested_lr
    assert gdcore.fit(x, y, **options).suggested_lr == pytest.approx(expected, rel=1e-9)


# Long runs


@pytest.fixture
def captures(monkeypatch):
    """Notes the steps that were done when a graph was captured."""
    captured, noted = triton.GraphRun.captured, []

    def capture(self):
        noted.append(self.done)
        return captured(self)

    monkeypatch.setattr(triton.GraphRun, "captured", capture)
    return noted


@pytest.mark.parametrize(
    ("shape", "dtype", "intercept"),
    [
        ((1500, 4, None), torch.float32, True),
        ((1500, 4, None), torch.bfloat16, True),
        ((1500, 4, 3), torch.float64, False),
        ((200_000, 8, None), torch.float32, True),
        ((4096, 64, 8), torch.float32, True),
        ((8192, 512, 64), torch.float32, False),
        ((8192, 512, 64), torch.float32, True),
    ],
    ids=str,
)
def test_a_captured_run_is_the_run(shape, dtype, intercept, captures, monkeypatch):
    """By one kernel a step, by several programs of which the last updates, by tiles and by the library."""
    x, y = problem(*shape, dtype)
    options = {**OPTIONS, "lr": 0.02, "intercept": intercept, "steps": 31 * 12 + 5}
    result = gdcore.fit(x, y, method="steps", **options)
    assert captures == [31]
    assert not result.interrupted
    monkeypatch.setattr(triton, "_CHUNKS_TO_CAPTURE", 1 << 30)
    other = gdcore.fit(x, y, method="steps", **options)
    assert captures == [31]
    torch.testing.assert_close(result.losses, other.losses)
    torch.testing.assert_close(result.coef, other.coef)
    assert_as_stock(result, x, y, slack=2.0, **options)
    if shape[1] < 64:  # no product of the library's, which may choose another algorithm while it is captured
        assert_bitwise(result, other)


def test_captured_runs_repeat_one_after_another_and_on_another_stream(captures):
    x, y = problem(1500, 4)
    options = {**OPTIONS, "steps": 1000, "method": "steps"}
    first = gdcore.fit(x, y, **options)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for _ in range(3):
        assert_bitwise(gdcore.fit(x, y, **options), first)
        with torch.cuda.stream(side):
            assert_bitwise(gdcore.fit(x, y, **options), first)
    assert captures == 7 * [31]


@pytest.mark.parametrize("run", ["resident", "grid", "mini-batches"])
def test_a_run_of_many_launches_is_bitwise_the_run_of_few(run, monkeypatch):
    method = "grid" if run == "grid" else "resident"
    x, y = problem(rows_for(method), 4)
    options = {**OPTIONS, "steps": 20_000, "method": method, "batch_size": 64 if run == "mini-batches" else None}
    few = gdcore.fit(x, y, **options)
    monkeypatch.setattr(triton.ChipRun, "chunk", 777)
    assert_bitwise(gdcore.fit(x, y, **options), few)


# The barrier of a grid


def fullest(k, m, dtype):
    """The most rows that every multiprocessor holds, less a few: the last program has fewer than the others."""
    about = torch.cuda.get_device_properties(GPU)
    architecture = gdcore.devices.describe(GPU).architecture
    sizes = [about.multi_processor_count << bits for bits in range(8, 15)]
    fit = [n for n in sizes if run_configs.grid_config(n, k, m, dtype, architecture, about.multi_processor_count)]
    return fit[-1] - 5, about.multi_processor_count


@pytest.mark.parametrize(
    ("k", "m", "dtype"),
    [(2, None, torch.float32), (16, None, torch.float32), (3, 2, torch.float64), (8, 1, torch.bfloat16)],
    ids=str,
)
def test_a_grid_that_fills_the_chip(k, m, dtype):
    n, programs = fullest(k, m or 1, dtype)
    x, y = problem(n, k, m, dtype)
    options = {**OPTIONS, "steps": 60}
    first = gdcore.fit(x, y, method="grid", **options)
    assert first.plan.programs == programs
    assert_as_stock(first, x, y, slack=2.0, **options)
    for _ in range(20):
        assert_bitwise(gdcore.fit(x, y, method="grid", **options), first)


def test_grids_open_while_others_work_on_the_chip():
    """A cooperative launch waits until all its programs find room: beside products, and beside another grid."""
    n, _ = fullest(2, 1, torch.float32)
    x, y = problem(n, 2)
    options = {**OPTIONS, "steps": 200, "method": "grid"}
    first = gdcore.fit(x, y, **options)
    a = torch.randn(4096, 4096, device=GPU)
    streams = [torch.cuda.Stream() for _ in range(3)]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    results = []
    for _ in range(5):
        with torch.cuda.stream(streams[0]):
            for _ in range(10):
                a @ a
        for stream in streams[1:]:
            with torch.cuda.stream(stream):
                results.append(gdcore.fit(x, y, **options))
    torch.cuda.synchronize()
    for result in results:
        assert_bitwise(result, first)


# Streams


@pytest.mark.parametrize("method", METHODS)
def test_work_that_the_callers_stream_has_before_is_seen(method):
    x, y = problem(rows_for(method), 4)
    init = torch.randn(4, device=GPU)
    options = {"lr": 0.05, "steps": 20, "method": method, "momentum": 0.5}
    expected = gdcore.fit(x, y, init=init, **options)
    torch.cuda.synchronize()
    late = [torch.zeros_like(t) for t in (x, y, init)]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # some 30 ms
        for place, tensor in zip(late, (x, y, init), strict=True):
            place.copy_(tensor)
        result = gdcore.fit(late[0], late[1], init=late[2], **options)
        for place in late:
            place.fill_(torch.nan)  # after the run, in the stream's order
        assert_bitwise(result, expected)


@pytest.mark.parametrize("batch_size", [64, 500])
def test_mini_batches_on_a_stream_of_the_callers(batch_size):
    x, y = problem(1000, 4)
    for method in ("resident", "steps"):
        if method == "resident" and batch_size == 500:
            continue
        options = {**OPTIONS, "steps": 50, "method": method, "batch_size": batch_size}
        expected = gdcore.fit(x, y, **options)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            assert_bitwise(gdcore.fit(x, y, **options), expected)


# Rows from the host


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_rows_on_the_host_are_computed_with_on_the_device(device, method):
    x, y = problem(rows_for(method), 4, 2)
    options = {**OPTIONS, "steps": 20, "method": method}
    result = gdcore.fit(x.cpu(), y.cpu(), device=device, **options)
    assert result.coef.device == GPU
    assert_bitwise(result, gdcore.fit(x, y, **options))


@pytest.mark.parametrize("method", ["auto", "stream", "gram"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_do_not_fit_pass_by_in_blocks(dtype, method, monkeypatch):
    """Many blocks, the last one short: both buffers are used again and again."""
    monkeypatch.setattr(choice, "_fits", lambda table, device: False)
    monkeypatch.setattr(Table, "block_bytes", property(lambda _: 16 * 37, lambda *_: None))
    x, y = problem(1000, 3, dtype=dtype, device="cpu")
    options = {**OPTIONS, "steps": 5}
    for data in (x, x.t().contiguous().t()):
        result = gdcore.fit(data, y, method=method, device="cuda", **options)
        assert result.plan.method == ("gram" if method == "gram" else "stream")
        assert_as_stock(result, x, y, **options)


def test_large_blocks_pass_by_as_they_were_when_they_were_read(monkeypatch):
    """Copies of tens of megabytes, under way while the host fills the other buffer."""
    monkeypatch.setattr(choice, "_fits", lambda table, device: False)
    x, y = problem(2_000_000, 16, device="cpu")
    options = {**OPTIONS, "steps": 3}
    result = gdcore.fit(x, y, device="cuda", **options)
    assert_as_stock(result, x.cuda(), y.cuda(), **options)
    assert_bitwise(gdcore.fit(x, y, device="cuda", **options), result)


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_a_batch_may_be_overwritten_once_it_has_been_taken(pinned):
    x, y = problem(64 * 30, 256, device="cpu")
    a, b = torch.empty(64, 256, pin_memory=pinned), torch.empty(64, pin_memory=pinned)

    def reusing():
        for rows in torch.arange(len(x)).split(64):
            a.copy_(x[rows]), b.copy_(y[rows])
            yield a, b
            a.fill_(torch.nan), b.fill_(torch.nan)

    options = {**OPTIONS, "lr": 1e-3, "steps": 30}
    result = gdcore.fit(reusing(), device="cuda", **options)
    assert result.plan.method == "stream"
    assert_as_stock(result, x, y, batches=torch.arange(len(x)).split(64), **options)


def test_batches_that_are_made_on_the_device():
    x, y = problem(64 * 10, 8)
    options = {**OPTIONS, "steps": 25}
    rows = list(torch.arange(len(x)).split(64))
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        result = gdcore.fit([(x[r], y[r]) for r in rows], **options)
        assert_as_stock(result, x, y, batches=(3 * rows)[:25], **options)


# Interrupts


@pytest.mark.parametrize("method", ["resident", "grid", "steps"])
def test_control_c_is_heard_while_the_gpu_works(method):
    x, y = problem(rows_for(method), 4)
    options = {**OPTIONS, "lr": 1e-4, "method": method}
    gdcore.fit(x, y, steps=1000, **options)  # compiles
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        result = gdcore.fit(x, y, steps=20_000_000, **options)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, handler)
    assert result.interrupted
    assert 0 < len(result.losses) < 20_000_000
    assert torch.isfinite(result.losses).all()
    assert_bitwise(result, gdcore.fit(x, y, steps=len(result.losses), **options))
