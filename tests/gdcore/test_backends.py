"""Who computes: the choice of backend, and gdcore where Triton is missing."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import gdcore
from gdcore import backends
from support import DEVICE, draw

CPU = torch.device("cpu")


def test_auto_takes_the_tensors_device():
    assert backends.backend_for(CPU) == "cpu"
    assert backends.backend_for(torch.device("meta")) == "reference"


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
def test_auto_takes_triton_on_cuda():
    assert backends.backend_for(torch.device("cuda", 0)) == "triton"


def test_nests_and_restores_after_an_error():
    with gdcore.use_backend("reference"):
        with pytest.raises(KeyError), gdcore.use_backend("cpu"):
            assert backends.backend_for(CPU) == "cpu"
            raise KeyError
        assert backends.backend_for(CPU) == "reference"
    assert backends.backend_for(CPU) == "cpu"


def test_a_choice_belongs_to_its_thread():
    seen = []
    with gdcore.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.backend_for(CPU)))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_the_backward_pass_uses_the_forwards_backend(every_shape_fused):
    t = draw(50, 4, 2)
    weight = t["weight"].requires_grad_()
    with gdcore.use_backend("triton"):
        loss = gdcore.linear_mse(t["input"].requires_grad_(), weight, t["target"])
    assert loss.grad_fn.backend.__name__ == "gdcore.backends.triton"
    loss.backward()
    assert torch.isfinite(weight.grad).all()


def test_the_cpu_backend_refuses_other_devices():
    with (
        gdcore.use_backend("cpu"),
        pytest.raises(RuntimeError, match="cpu backend was asked for, but the tensors are on meta"),
    ):
        gdcore.linear_mse(*(torch.empty(s, device="meta") for s in ((5, 3), (2, 3), (5, 2))))


def test_meta_tensors_have_a_shape():
    loss = gdcore.linear_mse(*(torch.empty(s, device="meta") for s in ((5, 3), (2, 3), (5, 2))), reduction="none")
    assert loss.shape == (5, 2)


def python(code, **environment):
    root = os.path.dirname(os.path.dirname(gdcore.__file__))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_environment_sets_the_default():
    code = "import gdcore, torch; print(gdcore.backends.backend_for(torch.device('cpu')))"
    assert python(code, GDCORE_BACKEND="reference").stdout.strip() == "reference"
    bad = python(code, GDCORE_BACKEND="cuda")
    assert bad.returncode != 0
    assert "'cuda' is not a backend" in bad.stderr


def test_triton_on_cpu_tensors_needs_the_interpreter():
    code = """
import gdcore, torch
with gdcore.use_backend("triton"):
    gdcore.linear_mse(torch.randn(5, 3), torch.randn(2, 3), torch.randn(5, 2))
"""
    answer = python(code, TRITON_INTERPRET="0")
    assert answer.returncode != 0
    assert "RuntimeError" in answer.stderr
    assert "TRITON_INTERPRET=1" in answer.stderr


WITHOUT_TRITON = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")

sys.meta_path.insert(0, Missing())
import torch, gdcore
x, w, y = torch.randn(2_000_000, 3), torch.randn(2, 3, requires_grad=True), torch.randn(2_000_000, 2)
loss = gdcore.linear_mse(x, w, y)
loss.backward()
torch.testing.assert_close(loss, torch.nn.functional.mse_loss(x @ w.t(), y))
print(gdcore.explain(x, w, y, device="H200").plan.path)
try:
    with gdcore.use_backend("triton"):
        gdcore.linear_mse(x, w, y)
except RuntimeError as error:
    print(error)
assert "triton" not in sys.modules
"""


def test_imports_and_works_on_the_cpu_without_triton():
    answer = python(WITHOUT_TRITON)
    assert answer.returncode == 0, answer.stderr
    assert "one_pass_rows" in answer.stdout
    assert "Triton is not installed" in answer.stdout
