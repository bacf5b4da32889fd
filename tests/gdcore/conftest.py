import pytest
import torch

import gdcore
from gdcore import plan
from gdcore.training import plan as run_plan
from support import DEVICE


@pytest.fixture
def every_shape_fused(monkeypatch):
    """On the CPU small shapes go to stock; here they stream, in blocks so small that several workers have several each."""
    for name, value in {"_STOCK_BYTES": 0, "_BLOCK_BYTES": 1 << 10, "_LEAST_ROWS": 3}.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(run_plan, "_CACHE_NUMBERS", 0)
    plan.plan_for.cache_clear()
    yield
    plan.plan_for.cache_clear()


@pytest.fixture(params=["cpu", "triton"])
def backend(request, every_shape_fused):
    """Every fused backend that can run here: the streaming path on the CPU, the kernels on a GPU or interpreted."""
    if request.param == "cpu" and DEVICE != "cpu":
        pytest.skip("the tensors are on a GPU")
    with gdcore.use_backend(request.param):
        yield request.param


@pytest.fixture
def one_thread():
    """Small products on one thread: those that wait for a second one wait long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
