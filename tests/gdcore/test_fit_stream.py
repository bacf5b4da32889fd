"""Rows that come from files, loaders and generators; runs that are interrupted; what is shown meanwhile."""

import functools
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fit_support
import gdcore
from fit_support import assert_as_stock, assert_bitwise, on_cpu
from gdcore import training
from gdcore.training.steps import StepRun
from support import DEVICE

pytestmark = pytest.mark.usefixtures("one_thread")

# Where there is a GPU it computes, and the rows come to it from the CPU's memory.
fit = functools.partial(gdcore.fit, device=DEVICE)
problem = functools.partial(fit_support.problem, device="cpu")

MODES = {"r": "read-only", "r+": "read and write", "c": "copy on write"}
OPTIONS = {"lr": 0.1, "steps": 5, "momentum": 0.5, "intercept": True}


# Files


def mapped(path, tensor, mode="r"):
    """A file of the tensor's numbers, mapped."""
    array = tensor.numpy()
    np.ascontiguousarray(array).tofile(path)
    return np.memmap(path, array.dtype, mode, shape=array.shape)


VIEWS = {
    "the whole map": (lambda x: x, lambda x: x),
    "some rows of it": (lambda x: x[10:60], lambda x: x[10:60]),
    "every third row": (lambda x: x[::3], lambda x: x[::3]),
    "some columns": (lambda x: x[:, 1:3], lambda x: x[:, 1:3]),
    "a transpose": (lambda x: x.T, lambda x: x.T),
    "a plain array over it": (np.asarray, lambda x: x),
    "a shape of its own": (lambda x: x.reshape(40, 10), lambda x: x.reshape(40, 10)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: MODES[mode])
@pytest.mark.parametrize("view", VIEWS)
def test_a_mapped_file_gives_what_memory_gives(view, mode, tmp_path):
    x = torch.randn(100, 4)
    of_map, of_tensor = VIEWS[view]
    data = of_map(mapped(tmp_path / "x", x, mode))
    rows = of_tensor(x)
    y = torch.randn(len(rows))
    for options in ({}, {"batch_size": 3}, {"method": "gram"}):
        result = fit(data, y, **OPTIONS, **options)
        expected = {"method": "auto" if mode == "c" else "stream", **options}
        assert_bitwise(result, fit(rows, y, **OPTIONS, **expected))
        assert result.plan.method == options.get("method", "resident" if mode == "c" else "stream")
    assert np.array_equal(data, rows)


@pytest.mark.parametrize("both", [True, False], ids=["x and y mapped", "y alone mapped"])
def test_targets_may_be_mapped(both, tmp_path):
    x, y = problem(90, 3, 2, torch.float64)
    data = mapped(tmp_path / "x", x) if both else x
    result = fit(data, mapped(tmp_path / "y", y), **OPTIONS)
    assert result.plan.method == "stream"
    assert "memory-mapped" in result.plan.why
    assert_as_stock(result, x, y, **OPTIONS)


@pytest.mark.parametrize("method", ["resident", "grid", "steps"])
def test_a_mapped_file_is_only_streamed(method, tmp_path):
    with pytest.raises(ValueError, match=f"method='{method}' cannot .* memory-mapped file.*'stream'"):
        fit(mapped(tmp_path / "x", torch.randn(20, 2)), torch.randn(20), lr=0.1, steps=1, method=method)


@pytest.mark.parametrize("mode", ["r+", "c"], ids=lambda mode: MODES[mode])
@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 30}, {"method": "gram"}], ids=["full batch", "mini-batches", "gram"]
)
def test_what_was_written_to_a_map_and_not_yet_to_the_file_is_read_and_kept(options, mode, tmp_path):
    x, y = problem(5000, 2)
    data = mapped(tmp_path / "x", torch.zeros_like(x), mode)
    data[:] = x.numpy()
    part = data[100:]  # the views of a private map are private too
    assert_as_written = lambda: np.testing.assert_array_equal(data, x.numpy())  # noqa: E731
    result = fit(part, y[100:], **OPTIONS, **options)
    assert_as_written()
    assert_bitwise(result, fit(x[100:], y[100:], **OPTIONS, **({"method": "stream"} if mode == "r+" else {}) | options))
    fit(data.T[:, :50].T, y[:50], **OPTIONS)
    assert_as_written()
    if mode == "c":
        assert not np.fromfile(tmp_path / "x", "f4").any()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: MODES[mode])
def test_a_file_is_not_modified(mode, tmp_path):
    x, y = problem(1000, 3)
    data, targets = mapped(tmp_path / "x", x, mode), mapped(tmp_path / "y", y, mode)
    before = [(tmp_path / name).read_bytes() for name in "xy"]
    for options in ({}, {"batch_size": 64}, {"method": "gram", "suggest_lr": True}):
        fit(data, targets, **OPTIONS, **options)
    data.flush(), targets.flush()
    assert [(tmp_path / name).read_bytes() for name in "xy"] == before


MEMORY = """
    import sys, numpy as np, torch, gdcore
    torch.set_num_threads(1)

    def peak():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

    def forget():
        open("/proc/self/clear_refs", "w").write("5")

    rows = 1_500_000
    x = np.memmap(sys.argv[1], "f4", "r", shape=(rows, 16))  # 96 MB
    y = torch.ones(rows)
    options = {"lr": 0.1, "steps": 2}
    gdcore.fit(x[:100], y[:100], **options), gdcore.fit(x[:100], y[:100], **options, method="gram", suggest_lr=True)
    for more in ({}, {"method": "gram"}, {"batch_size": 10, "steps": 500}, {"suggest_lr": True}):
        forget()
        before = peak()
        gdcore.fit(x, y, **{**options, **more})
        print(peak() - before)
    forget()
    before = peak()
    x.sum()  # to see that a map is counted at all
    print(peak() - before)
"""


def can_measure():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


@on_cpu(reason="the peak is that of the CPU's path")
@pytest.mark.skipif(not can_measure(), reason="needs Linux's /proc to measure a peak")
def test_peak_memory_is_that_of_a_block_or_a_batch(tmp_path):
    rows, columns = 1_500_000, 16
    path = os.fspath(tmp_path / "x")
    with open(path, "wb") as file:
        file.truncate(4 * rows * columns)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), path], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    full, gram, batches, suggested, everything = map(float, done.stdout.split())
    assert everything > 85
    assert full < 25
    assert gram < 70  # blocks are widened to float64
    assert batches < 40  # each of ten rows brings some of the file with it, as much as the system likes
    assert suggested < 70


# Batches that somebody else makes


def pieces(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def rows_of(n, size, steps):
    """The row numbers of each step, from the beginning again when they end."""
    parts = torch.arange(n).split(size)
    return [parts[step % len(parts)] for step in range(steps)]


SOURCES = {
    "a DataLoader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=16),
    "a list": lambda x, y: pieces(x, y, 16),
    "a tuple of lists": lambda x, y: tuple(map(list, pieces(x, y, 16))),
    "a list of arrays": lambda x, y: [(a.numpy(), b.numpy()) for a, b in pieces(x, y, 16)],
    "batches of other strides": lambda x, y: [(a.t().contiguous().t(), b) for a, b in pieces(x, y, 16)],
    "batches that require gradients": lambda x, y: [(a.clone().requires_grad_(), b) for a, b in pieces(x, y, 16)],
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("m", [None, 2], ids=["one output", "two outputs"])
def test_each_batch_is_an_update_and_they_start_again(source, m):
    x, y = problem(40, 3, m)
    options = {"lr": 0.05, "steps": 8, "momentum": 0.5, "weight_decay": 0.1, "intercept": True}
    result = fit(SOURCES[source](x, y), record_trajectory=True, **options)
    assert result.plan.method == "stream"
    assert not result.interrupted
    assert_as_stock(result, x, y, batches=rows_of(40, 16, 8), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_batches_of_every_dtype(dtype):
    x, y = problem(40, 3, dtype=dtype)
    result = fit(pieces(x, y, 16), lr=0.05, steps=5)
    assert_as_stock(result, x, y, lr=0.05, steps=5, batches=rows_of(40, 16, 5))


def test_a_shuffling_loader_shuffles_anew_each_epoch():
    x, y = torch.eye(12), torch.ones(12)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    result = fit(loader, lr=1e-3, steps=30, record_trajectory=True)
    seen = [frozenset(row.nonzero()[:, 0].tolist()) for row in result.trajectory.diff(dim=0)]
    epochs = [seen[i : i + 3] for i in range(0, 30, 3)]
    assert all(frozenset().union(*epoch) == frozenset(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 5


def test_no_more_batches_are_asked_for_than_there_are_steps():
    x, y = problem(40, 3)
    asked = []

    def batches():
        for i, pair in enumerate(pieces(x, y, 10)):
            asked.append(i)
            yield pair

    fit(batches(), lr=0.1, steps=3)
    assert asked == [0, 1, 2]


def test_a_generator_that_ends_returns_what_has_been_learnt_and_warns():
    x, y = problem(40, 3)
    with pytest.warns(UserWarning, match="ended after 3 of 10 steps.*cannot be iterated again") as caught:
        result = fit((pair for pair in pieces(x, y, 16)), lr=0.1, steps=10, record_trajectory=True)
    assert caught[0].filename == __file__
    assert not result.interrupted
    assert result.losses.shape == (3,)
    assert result.trajectory.shape == (4, 3)
    assert_bitwise(result, fit(pieces(x, y, 16), lr=0.1, steps=3))


@pytest.mark.filterwarnings("error")
def test_a_generator_that_is_long_enough_warns_of_nothing():
    x, y = problem(40, 3)
    assert len(fit((pair for pair in pieces(x, y, 16)), lr=0.1, steps=3).losses) == 3


x, y = torch.ones(8, 3), torch.ones(8)
UNLIKE = {
    "other features": ((x[:, :2], y), ValueError, "^batch 1 has x \\(8, 2\\) .* 3 features"),
    "other outputs": ((x, y[:, None]), ValueError, "^batch 1 has .* y \\(8, 1\\)"),
    "other rows in y": ((x, y[:3]), ValueError, "^y has shape \\(3,\\)"),
    "one thing": ((x,), TypeError, "batch 1 is 1 things"),
    "a tensor": (x, TypeError, "batch 1 is of type Tensor"),
    "whole numbers": ((x.int(), y), NotImplementedError, "x must have dtype"),
    "a list": ((x, [1.0] * 8), TypeError, "^y must be a Tensor"),
    "no rows": ((x[:0], y[:0]), ValueError, "^there is nothing to learn from"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_a_later_batch_is_refused_for(name):
    wrong, error, message = UNLIKE[name]
    with pytest.raises(error, match=message):
        fit([(x, y), wrong], lr=0.1, steps=2)
    fit([(x, y), wrong], lr=0.1, steps=1)


def test_what_an_iterable_raises_is_raised():
    def broken():
        yield x, y
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        fit(broken(), lr=0.1, steps=5)


# Interrupts

RUNS = {
    "resident": {"method": "resident"},
    "resident mini-batches": {"method": "resident", "batch_size": 20},
    "steps": {"method": "steps"},
    "steps of mini-batches": {"method": "steps", "batch_size": 20},
    "stream": {"method": "stream"},
    "stream of mini-batches": {"method": "stream", "batch_size": 20},
    "gram": {"method": "gram"},
}


@pytest.mark.parametrize("after", [1, 2, 7])
@pytest.mark.parametrize("record", [False, True], ids=["without trajectory", "with trajectory"])
def test_an_interrupt_while_a_batch_is_made_returns_what_has_been_learnt(record, after):
    data, targets = problem(40, 3)

    def batches():
        for step in range(100):
            if step == after:
                raise KeyboardInterrupt
            yield pieces(data, targets, 10)[step % 4]

    result = fit(batches(), **{**OPTIONS, "steps": 50}, record_trajectory=record)
    assert result.interrupted
    assert len(result.losses) == after
    assert_bitwise(result, fit(pieces(data, targets, 10), **{**OPTIONS, "steps": after}, record_trajectory=record))
    if record:
        assert result.trajectory.shape == (after + 1, 4)


@pytest.mark.parametrize("record", [False, True], ids=["without trajectory", "with trajectory"])
@pytest.mark.parametrize("run", RUNS)
def test_control_c_at_any_moment_returns_what_has_been_learnt(run, record, monkeypatch):
    data, targets = problem(100, 3, 2)
    options = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.01, "intercept": True, "record_trajectory": record}
    options |= RUNS[run]
    steps = 400_000
    if DEVICE == "cuda":
        steps *= 20
        fit(data, targets, steps=400, **options)  # compiles
    drive, delays = training.drive, [0.05, 0.02 + 0.05 * torch.rand(()).item()]

    def drive_and_interrupt(*arguments):
        if delays:
            # Orders for many steps, or the capture of a graph, come first.
            drawing = 0.15 * (run == "resident mini-batches" or DEVICE == "cuda")
            threading.Timer(drawing + delays.pop(), os.kill, (os.getpid(), signal.SIGINT)).start()
        return drive(*arguments)

    monkeypatch.setattr(training, "drive", drive_and_interrupt)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    gc.disable()  # Python ignores what is raised in a callback of the collector, and hypothesis has one
    try:
        results = [fit(data, targets, steps=steps, **options) for _ in range(2)]
    finally:
        signal.signal(signal.SIGINT, handler)
        gc.enable()
    for result in results:
        assert result.interrupted
        done = len(result.losses)
        assert done < steps
        if done:
            assert_bitwise(result, fit(data, targets, steps=done, **options))
        else:  # a busy machine: nothing had been learnt
            assert not result.coef.any()


@on_cpu(reason="the CPU's engine")
def test_an_interrupt_between_the_update_and_its_count_loses_that_step_alone(monkeypatch):
    """Whatever the moment: the coefficients are those after the last step that has a loss."""
    from gdcore.training import cpu

    data, targets = problem(100, 3)
    update = cpu.CacheRun._update

    def interrupted(self, batch, w, after):
        update(self, batch, w, after)
        if self.done == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(cpu.CacheRun, "_update", interrupted)
    result = fit(data, targets, **{**OPTIONS, "steps": 20})
    monkeypatch.undo()
    assert_bitwise(result, fit(data, targets, **{**OPTIONS, "steps": 6}))


def test_an_interrupt_while_losses_are_worked_out_from_sums_keeps_coefficients_and_losses_together(monkeypatch):
    from gdcore.training.gram import GramRun

    data, targets = problem(100, 3)
    losses = GramRun._losses

    def interrupted(self, deltas):
        if self.done:
            raise KeyboardInterrupt
        return losses(self, deltas)

    monkeypatch.setattr(GramRun, "_losses", interrupted)
    result = fit(data, targets, **{**OPTIONS, "steps": 1000}, method="gram")
    monkeypatch.undo()
    assert result.interrupted
    assert len(result.losses) == 256, "a chunk"
    assert_bitwise(result, fit(data, targets, **{**OPTIONS, "steps": 256}, method="gram"))


# What is shown


@pytest.mark.parametrize("run", RUNS)
def test_progress_is_shown_on_stderr_alone(run, capfd):
    data, targets = problem(100, 3)
    quiet = fit(data, targets, lr=0.1, steps=30, **RUNS[run])
    assert capfd.readouterr() == ("", "")
    shown = fit(data, targets, lr=0.1, steps=30, **RUNS[run], progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "30/30" in err
    assert "steps" in err
    assert_bitwise(shown, quiet)


@pytest.mark.parametrize("chunk", [1, 8])  # steps between two looks
def test_progress_of_a_run_that_ends_early(chunk, capfd, monkeypatch):
    monkeypatch.setattr(StepRun, "chunk", chunk)
    with pytest.warns(UserWarning, match="ended"):
        fit(iter([(x, y), (x, y)]), lr=0.1, steps=9, progress=True)
    assert "2/9" in capfd.readouterr().err


def test_the_first_call_does_not_import_the_compiler():
    code = "import sys, torch, gdcore; gdcore.fit(torch.ones(4, 2), torch.ones(4), lr=0.1, steps=2); print('torch._dynamo' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.strip() == "False", done.stderr


def test_a_compiled_caller_leaves_its_graph():
    """Nothing of the run itself is compiled."""
    from torch._dynamo.testing import CompileCounter

    data, targets = problem(30, 2)
    options = {"steps": 3, "momentum": 0.5, "weight_decay": 0.1, "init": torch.ones(2), "seed": 3, "batch_size": 7}
    counter = CompileCounter()
    caller = torch.compile(lambda a: fit(a * 2, targets, lr=0.1, record_trajectory=True, **options), backend=counter)
    assert_bitwise(caller(data), fit(data * 2, targets, lr=0.1, record_trajectory=True, **options))
    assert 1 <= counter.op_count <= 2


@pytest.mark.parametrize("records", [True, False], ids=["with gradients", "without"])
def test_batches_are_made_as_outside_of_the_run(records):
    """A generator may compute its features with autograd."""
    data, targets = problem(20, 3)
    seen = []

    def batches():
        for part in range(2):
            seen.append(torch.is_grad_enabled())
            yield data[part * 10 :][:10], targets[part * 10 :][:10]

    with torch.set_grad_enabled(records):
        fit(batches(), lr=0.1, steps=2)
    assert seen == [records] * 2
