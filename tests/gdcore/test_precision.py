"""The switch for float32 products: what it says, where it reaches, and what three TF32 products are worth."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import gdcore
from gdcore.backends import Wanted
from gdcore.devices import KNOWN
from gdcore.plan import plan_for
from gdcore.precision import float32_precision

H200 = KNOWN[90]


def test_follows_torch_unless_asked_otherwise():
    assert float32_precision() == "ieee"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert float32_precision() == "tf32"
        with gdcore.use_float32_precision("tf32x3"):
            assert float32_precision() == "tf32x3"
            with gdcore.use_float32_precision("torch"):
                assert float32_precision() == "tf32"
        assert float32_precision() == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_is_restored_after_an_error_and_belongs_to_its_thread():
    seen = []
    with pytest.raises(KeyError), gdcore.use_float32_precision("tf32x3"):
        thread = threading.Thread(target=lambda: seen.append(float32_precision()))
        thread.start()
        thread.join()
        raise KeyError
    assert seen == ["ieee"]
    assert float32_precision() == "ieee"


@pytest.mark.parametrize("name", ["ieee", "tf32", "TF32x3", "", None])
def test_refuses_unknown_names(name):
    with pytest.raises(ValueError, match="is not a precision of float32 products"), gdcore.use_float32_precision(name):
        pass


def test_the_environment_sets_the_default():
    def started_with(value):
        code = "import gdcore.precision as p; print(p.float32_precision())"
        environment = {**os.environ, "GDCORE_FLOAT32_PRECISION": value}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert started_with("tf32x3").stdout.strip() == "tf32x3"
    refused = started_with("tf33")
    assert refused.returncode != 0
    assert "'tf33' is not a precision" in refused.stderr


def planned(dtype, device="H200", **sizes):
    input, weight, target = (torch.empty(*shape, dtype=dtype, device="meta") for shape in sizes.values())
    return gdcore.explain(input, weight.requires_grad_(), target, device=device).plan


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_concerns_float32_alone(dtype):
    with gdcore.use_float32_precision("tf32x3"):
        plan = planned(dtype, input=(1000, 64), weight=(32, 64), target=(1000, 32))
    assert plan.input_precision == ("tf32x3" if dtype is torch.float32 else "ieee")


@pytest.mark.parametrize(("n", "k", "m"), [(1000, 64, 8), (100_000, 128, 128), (8192, 2048, 2048), (65_536, 513, 257)])
def test_products_that_torch_would_round_otherwise_are_not_the_librarys(n, k, m):
    """The library multiplies as torch is set: it cannot be asked for three products."""
    for wanted in (Wanted(), Wanted(True, True, False, True)):
        plan = plan_for(n, k, m, device=H200, wanted=wanted, input_precision="tf32x3")
        assert plan.path not in ("library", "stock", "chunked")
        assert (
            plan.compute_seconds > plan_for(n, k, m, device=H200, wanted=wanted, input_precision="tf32").compute_seconds
        )
