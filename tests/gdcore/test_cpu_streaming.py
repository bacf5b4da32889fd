"""The streaming CPU path: threads, forks, and memory that does not grow with N x M."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

import gdcore
from gdcore.backends import cpu
from gdcore.backends.reference import oracle, relative_error
from gdcore.devices import CPU
from gdcore.plan import plan_for

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU path is tested on machines without a GPU")


def big(n=700_000, k=12, m=2):
    return torch.randn(n, k), torch.randn(m, k, requires_grad=True), torch.randn(n, m)


def test_shapes_above_the_threshold_stream():
    x, w, y = big()
    assert gdcore.explain(x, w, y).plan.path == "streaming"
    assert "LinearMSE" in type(gdcore.linear_mse(x, w, y).grad_fn).__name__


def test_the_callers_threads_stay_as_they_were():
    before = torch.get_num_threads()
    gdcore.linear_mse(*big()).backward()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


def test_a_worker_runs_on_one_core():
    workers = cpu._pool(2)
    assert {workers.submit(torch.get_num_threads).result() for _ in range(8)} == {1}
    workers.submit(lambda: torch.randn(300, 300) @ torch.randn(300, 300)).result()
    assert {workers.submit(torch.get_num_threads).result() for _ in range(8)} == {1}


@pytest.mark.parametrize("threads", [2, 16, 64])
def test_workers_only_where_rows_are_many(threads):
    device = CPU._replace(sms=threads)
    assert plan_for(10**7, 64, 1, device=device).workers == threads
    assert plan_for(8192, 2048, 2048, device=device).workers == (2 if threads == 2 else 1)
    assert plan_for(65536, 8192, 8192, device=device).workers * 8192 <= 65536  # gradients of their own: at most N x M


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_result_to_rounding(threads):
    before = torch.get_num_threads()
    x, w, y = big()
    try:
        torch.set_num_threads(threads)
        loss = gdcore.linear_mse(x, w, y)
        (gradient,) = torch.autograd.grad(loss, w)
        (again,) = torch.autograd.grad(gdcore.linear_mse(x, w, y), w)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(gradient, again)
    exact_loss, exact = oracle(x, w, y)
    assert relative_error(loss, exact_loss) < 1e-6
    assert relative_error(gradient, exact["weight"]) < 2e-5


def test_calls_from_several_threads_at_once():
    x, w, y = big()
    expected = gdcore.linear_mse(x, w, y).detach()
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(gdcore.linear_mse(x, w, y).detach())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 4
    assert all(torch.equal(loss, expected) for loss in seen)


def _in_child(queue):
    torch.set_num_threads(1)  # OpenMP itself does not survive a fork; DataLoader workers do the same
    queue.put(gdcore.linear_mse(*big()).item())


def test_works_in_a_forked_child():
    gdcore.linear_mse(*big())  # the parent has its workers
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) > 0
    child.join(60)
    assert child.exitcode == 0


MEMORY = """
import sys, torch, torch.nn.functional as F, gdcore

def peak():  # ru_maxrss would start from the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

n, k, m = 400_000, 8, 64
x, y = torch.randn(n, k), torch.randn(n, m)
w = torch.randn(m, k, requires_grad=True)
loss_of = gdcore.linear_mse if sys.argv[1] == "gdcore" else lambda x, w, y: F.mse_loss(F.linear(x, w), y)
loss_of(x[:200_000], w, y[:200_000]).backward()  # pools, code and buffers
half = peak()
small = n // 2 * m * 4 // 1024
loss_of(x, w, y).backward()
print((peak() - half) / small)
"""


def growth(who):
    root = os.path.dirname(os.path.dirname(gdcore.__file__))
    answer = subprocess.run([sys.executable, "-c", MEMORY, who], cwd=root, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return float(answer.stdout)


def test_extra_memory_does_not_grow_with_the_rows():
    """Twice the rows: stock's peak grows by several N x M tensors, ours by less than a tenth of one."""
    assert growth("gdcore") < 0.1
    assert growth("stock") > 1


def test_a_blocks_residual_stays_small_for_any_number_of_outputs():
    for m in (1, 100, 10_000, 1_000_000):
        plan = plan_for(10_000_000, 16, m)
        assert min(plan.block_rows, plan.n) * (plan.block_columns or m) * 4 <= 4 << 20
        kept = plan_for(10_000_000, 16, m, reduction="none")
        assert min(kept.block_rows, kept.n) * m * 4 <= max(64 << 20, 64 * m * 4)
