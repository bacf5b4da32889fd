"""What calls cost the host beside a GPU, on a machine without one: Python, PyTorch, Triton and its launcher, and no kernel.

    python tests/host_times.py [seconds]        prints microseconds a call: the least of many short turns that take turns

Launches go to the null driver, tensors are on the CPU in memory that nobody touches, plans are an H200's. Stock's calls, on
tensors of four rows, are there for scale: they include PyTorch's dispatch and kernels on the CPU that have next to nothing to do.
What a GPU's driver and PyTorch's allocator for it take is in neither.
"""

import gc
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import null_driver


def turns(calls: dict[str, Callable], seconds: float) -> dict[str, float]:
    """The least microseconds a call of each."""
    least = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        for _ in range(5):
            call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            for _ in range(10):
                call()
            least[name] = min(least[name], (time.perf_counter() - start) / 10 * 1e6)
    return least


def calls() -> dict[str, Callable]:
    import gdcore
    from gdcore.kernels.reduce import add_rows

    def loss(operands, no_grad=False):
        with torch.set_grad_enabled(not no_grad):
            return gdcore.linear_mse(*operands)

    def gradients(operands):
        operands[1].grad = None
        loss(operands).backward()

    def operands(n, k, m, dtype=torch.float32):
        return (
            torch.empty(n, k, dtype=dtype),
            torch.empty(m, k, dtype=dtype, requires_grad=True),
            torch.empty(n, m, dtype=dtype),
        )

    def optimizer(kind, count, **options):
        parameters = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(count)]
        for p in parameters:
            p.grad = torch.zeros_like(p)
        return kind(parameters, lr=1e-3, momentum=0.9, **options).step

    skinny, square = operands(2_000_000, 64, 1), operands(8192, 2048, 2048, torch.bfloat16)
    updated = [t.detach() for t in skinny]
    small, partials = operands(4, 64, 1), torch.zeros(132, 66)
    x, y, init = torch.zeros(100, 2), torch.zeros(100, 1), torch.zeros(2, 1)

    def stock():
        small[1].grad = None
        F.mse_loss(F.linear(small[0], small[1]), small[2]).backward()

    return {
        "stock: loss, 4 x 64 x 1": lambda: F.mse_loss(F.linear(small[0], small[1]), small[2]),
        "stock: loss and gradient, 4 x 64 x 1": stock,
        "stock: torch.optim.SGD, fused, 1 tensor": optimizer(torch.optim.SGD, 1, fused=True),
        "one launch and its output (add_rows)": lambda: add_rows(partials),
        "linear_mse, 2,000,000 x 64 x 1 (2 launches)": lambda: loss(skinny),
        "linear_mse and its gradient, 2,000,000 x 64 x 1": lambda: gradients(skinny),
        "linear_mse_sgd_, 2,000,000 x 64 x 1": lambda: gdcore.linear_mse_sgd_(*updated, lr=1e-3),
        "linear_mse, 8192 x 2048 x 2048, no gradients (2 launches, 3 descriptors)": lambda: loss(square, no_grad=True),
        "SGD, 1 tensor": optimizer(gdcore.SGD, 1),
        "SGD, 161 tensors": optimizer(gdcore.SGD, 161),
        "fit, 100 x 2, 100 steps": lambda: gdcore.fit(x, y, lr=1e-3, steps=100, init=init),
    }


def measure(seconds: float) -> None:
    import triton

    import gdcore
    from gdcore import backends, devices

    null_driver.Driver()
    backends.interpreting = lambda: True  # takes tensors on the CPU
    devices.INTERPRETED = devices.H200
    torch.set_num_threads(1)
    gc.disable()
    with gdcore.use_backend("triton"):
        found = turns(calls(), seconds)
    print(
        f"torch {torch.__version__}, Triton {triton.__version__}, Python {sys.version.split()[0]}; microseconds a call"
    )
    for name, taken in found.items():
        print(f"{taken:7.1f}  {name}")


if __name__ == "__main__":
    here = pathlib.Path(__file__).resolve()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    if os.environ.get("GDCORE_NULL_DRIVER"):
        sys.path.remove(str(here.parent))  # whose gdcore/ holds tests
        measure(seconds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            environment = null_driver.environment(pathlib.Path(folder)) | {"GDCORE_NULL_DRIVER": "1"}
            sys.exit(subprocess.call([sys.executable, str(here), str(seconds)], env=environment))
