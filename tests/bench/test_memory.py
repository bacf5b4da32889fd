"""Extra memory: the probe sees what a call allocates, and the streaming path's stays where stock's grows."""

import pytest
import torch

from gdcore.bench import memory
from gdcore.bench.cases import Case
from gdcore.bench.peers import OURS, STOCK

linux = pytest.mark.skipif(not torch.os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")


@linux
def test_a_fresh_process_sees_stocks_temporaries_and_not_ours():
    shape = (200_000, 16, 32)
    stock, ours = (memory._measure_in_fresh_process(shape, peer)["peak_bytes"] for peer in (STOCK, OURS))
    matrix = 4 * 200_000 * 32
    assert 1.5 * matrix < stock < 4 * matrix, "stock holds prediction and gradient"
    assert ours < 0.6 * matrix


def test_a_probe_that_fails_says_why():
    assert "StopIteration" in memory._measure_or_say((10, 2, 1), "nobody", torch.device("cpu"))["failure"]


@linux
def test_an_earlier_peak_is_not_counted():
    del_me = torch.ones(100_000_000)
    del del_me
    assert memory.measure_here(Case("B", 1_000, 2, 32), STOCK, torch.device("cpu")) < 20_000_000


@linux
def test_the_peak_is_at_least_one_big_temporary():
    assert memory.measure_here(Case("B", 400_000, 2, 32), STOCK, torch.device("cpu")) > 4 * 400_000 * 32
