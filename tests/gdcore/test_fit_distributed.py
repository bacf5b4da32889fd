"""Runs over processes that hold rows of their own: the same result as one process that holds them all.

Two processes on the CPU are started once and run everything; each test here looks at what became of its case.
"""

import datetime
import os
import queue
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import gdcore
from fit_support import assert_as_stock, loop
from gdcore.training import shuffle

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)

PROCESSES = 2
SHARDS = {"even": 40, "uneven": 57, "one row": 1, "empty": 0}  # rows of the first process, of 80
OPTIONS = {"lr": 0.05, "steps": 12, "momentum": 0.5, "weight_decay": 0.1, "intercept": True}


def data(dtype=torch.float32, m=2, apart=0.0):
    """All rows, the same in both processes."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(80, 3, generator=generator) + apart * (torch.arange(80) // 40)[:, None]
    y = torch.randn(80, *([] if m is None else [m]), generator=generator)
    y += x[:, 0] if m is None else x[:, :1]
    return x.to(dtype), y.to(dtype)


def mine(tensor, first):
    return (tensor[:first], tensor[first:])[dist.get_rank()]


def assert_everywhere_the_same(result):
    for tensor in (result.coef, result.intercept, result.losses):
        if tensor is not None:
            others = [torch.empty_like(tensor) for _ in range(PROCESSES)]
            dist.all_gather(others, tensor.contiguous())
            assert all(torch.allclose(tensor, other, rtol=0, atol=0, equal_nan=True) for other in others)


# The cases. Everything in them happens in every process.


def full_batch(method, shards, dtype=torch.float32, m=2):
    x, y = data(dtype, m)
    first = SHARDS[shards]
    result = gdcore.fit(mine(x, first), mine(y, first), method=method, record_trajectory=True, **OPTIONS)
    assert result.plan.method == {"auto": "steps"}.get(method, method)
    assert_everywhere_the_same(result)
    assert_as_stock(result, x, y, slack=2.0, **OPTIONS)


def gram_of_rows_that_are_unlike_from_process_to_process():
    x, y = data(apart=1000.0)
    options = {"lr": 1e-7, "steps": 20, "intercept": True}
    result = gdcore.fit(mine(x, 40), mine(y, 40), method="gram", **options)
    assert_everywhere_the_same(result)
    assert_as_stock(result, x, y, **options)


def a_rate_is_suggested_for_all_rows(shards):
    x, y = data()
    first = SHARDS[shards]
    result = gdcore.fit(mine(x, first), mine(y, first), suggest_lr=True, **OPTIONS)
    a = torch.cat([x.double(), torch.ones(80, 1)], 1)
    largest = torch.linalg.eigvalsh(2 / (80 * 2) * a.t() @ a)[-1].item() + OPTIONS["weight_decay"]
    assert abs(result.suggested_lr * largest / (2 * (1 + OPTIONS["momentum"])) - 1) < 1e-9


def mini_batches(shards, batch_size, method="auto"):
    """Each step adds a batch of every process, which draws it from its own rows."""
    x, y = data()
    first = SHARDS[shards]
    result = gdcore.fit(
        mine(x, first), mine(y, first), batch_size=batch_size, seed=3, method=method, record_trajectory=True, **OPTIONS
    )
    assert_everywhere_the_same(result)
    drawn = []
    for begin, rows in ((0, first), (first, 80 - first)):
        orders = shuffle.orders(3, range(OPTIONS["steps"]), rows, torch.device("cpu")) + begin
        drawn.append([part for order in orders for part in order.split(batch_size)][: OPTIONS["steps"]])
    batches = [torch.cat(parts) for parts in zip(*drawn, strict=True)]
    assert_as_stock(result, x, y, slack=2.0, batches=batches, **OPTIONS)


def an_iterable_of_batches():
    x, y = data()
    parts = list(zip(mine(x, 48).split(16), mine(y, 48).split(16), strict=True))
    result = gdcore.fit(parts, **OPTIONS)
    assert_everywhere_the_same(result)
    rows = [list(torch.arange(48).split(16)), list(torch.arange(48, 80).split(16))]
    batches = [torch.cat([own[step % len(own)] for own in rows]) for step in range(OPTIONS["steps"])]
    assert_as_stock(result, x, y, slack=2.0, batches=batches, **OPTIONS)


def batches_that_end_in_one_process_end_the_run_in_all():
    """A step is taken with a batch of everybody, or not at all."""
    x, y = data()
    rows = torch.arange(80).split(10)
    own = rows[:3] if dist.get_rank() == 0 else rows[3:]
    with pytest.warns(UserWarning, match="ended after 3 of 12 steps"):
        result = gdcore.fit(((x[i], y[i]) for i in own), **OPTIONS)
    assert_everywhere_the_same(result)
    batches = [torch.cat([rows[i], rows[3 + i]]) for i in range(3)]
    assert_as_stock(result, x, y, slack=2.0, batches=batches, **{**OPTIONS, "steps": 3})


def one_process_computes_by_itself(method):
    """The other one takes no part, and need not call."""
    x, y = data()
    if dist.get_rank() == 0:
        result = gdcore.fit(x[:40], y[:40], method=method, distributed=False, **OPTIONS)
        assert_as_stock(result, x[:40], y[:40], slack=2.0, **OPTIONS)


def the_first_process_says_where_to_start(method):
    x, y = data()
    init = (torch.full((3, 2), 1.0 + dist.get_rank()), torch.full((2,), -1.0 - dist.get_rank()))
    result = gdcore.fit(mine(x, 57), mine(y, 57), init=init, method=method, record_trajectory=True, **OPTIONS)
    assert result.trajectory[0].tolist() == [[1.0, 1.0]] * 3 + [[-1.0, -1.0]]
    assert init[0][0, 0] == 1.0 + dist.get_rank(), "init was modified"
    assert_everywhere_the_same(result)
    exact = {**OPTIONS, "init": (torch.ones(3, 2), -torch.ones(2))}
    assert_as_stock(result, x, y, slack=2.0, **exact)


def a_run_that_diverges_does_so_everywhere():
    x, y = data()
    options = {"lr": 100.0, "steps": 40}
    result = gdcore.fit(mine(x, 57), mine(y, 57), **options)
    assert_everywhere_the_same(result)
    finite = torch.isfinite(loop(x, y, dtype=torch.float32, **options).losses)
    assert abs(result.diverged_at - int((~finite).nonzero()[0])) <= 1


def nan_in_one_process_reaches_all(method):
    x, y = data()
    y[79, 0] = torch.nan
    result = gdcore.fit(mine(x, 57), mine(y, 57), method=method, **OPTIONS)
    assert result.diverged_at == 0
    assert result.losses.isnan().all()


def one_chip_cannot_hold_the_rows_of_several_processes(method):
    x, y = data()
    with pytest.raises(ValueError, match=f"method='{method}' .*several processes.*'steps' or 'gram'"):
        gdcore.fit(mine(x, 40), mine(y, 40), method=method, **OPTIONS)


def a_batch_larger_than_the_rows_of_one_process_is_refused_in_all(shards, rows):
    x, y = data()
    first = SHARDS[shards]
    with pytest.raises(ValueError, match=f"^batch_size is 30, .* rows, {rows} in one of the processes"):
        gdcore.fit(mine(x, first), mine(y, first), batch_size=30, **OPTIONS)


CASES = {
    f"{method}, {shards} shards": (full_batch, method, shards)
    for method in ("auto", "stream", "gram")
    for shards in SHARDS
}
CASES |= {f"auto, {dtype}": (full_batch, "auto", "uneven", dtype) for dtype in (torch.float64, torch.float16)}
CASES |= {
    f"{method}, targets of one dimension": (full_batch, method, "uneven", torch.float32, None)
    for method in ("auto", "gram")
}
CASES["gram of rows that are unlike from process to process"] = (gram_of_rows_that_are_unlike_from_process_to_process,)
CASES |= {f"a rate is suggested, {shards} shards": (a_rate_is_suggested_for_all_rows, shards) for shards in SHARDS}
CASES |= {f"mini-batches of 16, {shards} shards": (mini_batches, shards, 16) for shards in ("even", "uneven")}
CASES["mini-batches of 1, one row"] = (mini_batches, "one row", 1)
CASES["mini-batches of 23, streamed"] = (mini_batches, "uneven", 23, "stream")
CASES |= {
    f"a batch is too large, {shards} shards": (
        a_batch_larger_than_the_rows_of_one_process_is_refused_in_all,
        shards,
        rows,
    )
    for shards, rows in (("uneven", 23), ("empty", 0))
}
CASES["an iterable of batches"] = (an_iterable_of_batches,)
CASES["batches that end in one process"] = (batches_that_end_in_one_process_end_the_run_in_all,)
CASES |= {f"one process alone, {method}": (one_process_computes_by_itself, method) for method in ("auto", "gram")}
CASES |= {
    f"the first process's start, {method}": (the_first_process_says_where_to_start, method)
    for method in ("auto", "gram")
}
CASES["a run that diverges"] = (a_run_that_diverges_does_so_everywhere,)
CASES |= {f"NaN in one process, {method}": (nan_in_one_process_reaches_all, method) for method in ("auto", "gram")}
CASES |= {
    f"{method} is refused": (one_chip_cannot_hold_the_rows_of_several_processes, method)
    for method in ("resident", "grid")
}


def work(rank, path, outcomes):
    """One process: every case."""
    torch.set_num_threads(1)
    store = dist.FileStore(path, PROCESSES)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=PROCESSES, timeout=datetime.timedelta(seconds=20)
    )
    for case, (function, *arguments) in CASES.items():
        message = ""
        try:
            function(*arguments)
        except Exception:
            message = f"process {rank}: {traceback.format_exc()}"
        flag = torch.tensor([len(message)])
        outcomes.put((case, message))
        dist.all_reduce(flag)  # the next case starts in all processes at once
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """case -> the messages of the processes; of a case that no process came to there are none."""
    context = mp.get_context("spawn")
    answers = context.Queue()
    path = os.fspath(tmp_path_factory.mktemp("store") / "store")
    workers = [context.Process(target=work, args=(rank, path, answers), daemon=True) for rank in range(PROCESSES)]
    for worker in workers:
        worker.start()
    found = {}
    try:
        for _ in range(PROCESSES * len(CASES)):
            case, message = answers.get(timeout=60)
            found.setdefault(case, []).append(message)
    except queue.Empty:
        pass
    for worker in workers:
        worker.join(10)
        if worker.is_alive():
            worker.kill()
            worker.join()
    return found


@pytest.mark.parametrize("case", CASES)
def test_in_two_processes(case, outcomes):
    messages = outcomes.get(case, [])
    assert len(messages) == PROCESSES, "a process did not come so far"
    assert not any(messages), "\n".join(messages)


def test_a_single_process_is_not_shared(monkeypatch):
    """With a group of one nothing is exchanged, and everything stays on the chip."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    assert gdcore.fit(*data(), **OPTIONS).plan.method == "resident"
    with pytest.raises(ValueError, match="nothing to learn from"):
        gdcore.fit(torch.ones(0, 2), torch.ones(0), **OPTIONS)
