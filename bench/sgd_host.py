"""How long a step keeps the host: from step() to the launch, with the launch itself left out. Needs no GPU.

    python -m gdcore.bench.sgd_host        prints JSON; a process of its own, because Triton decides at import whether
                                           kernels are interpreted, and only then takes it tensors on the CPU

The 161 parameters of ResNet-50, whose numbers nobody reads. torch.optim.SGD(fused=True) is measured the same way, up to the
call of its kernel. Three steady states: gradients that stay where they are; the same after somebody has read the
optimizer's state, which gdcore then has to watch; gradients that are new tensors in every step, as after zero_grad().
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from unittest import mock

TURNS, STEPS, WARM = 12, 30, 3  # many short turns, so that a slow moment of the machine meets both


def measure() -> dict:
    """Microseconds by options, gradients and implementation; runs this module in a process of its own.

    Raises
    ------
    RuntimeError
        If the process fails.
    """
    command = [sys.executable, "-m", "gdcore.bench.sgd_host"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def _times() -> dict:
    import torch

    import gdcore
    from gdcore.kernels import sgd as kernels

    from .sgd_cases import OPTIONS, resnet50

    launched = [0]

    def launch(*_: object, **__: object) -> None:
        launched[0] = time.perf_counter_ns()

    def new(params: list, fresh: bool) -> None:
        for p in params:
            if fresh or p.grad is None:
                p.grad = torch.empty_like(p)

    def to_launch(step: Callable[[], object], params: list, fresh: bool) -> list[float]:
        found = []
        for i in range(STEPS + WARM):
            new(params, fresh)
            start = time.perf_counter_ns()
            step()
            if i >= WARM:
                found.append((launched[0] - start) / 1e3)
        return found

    shapes = resnet50()
    found: dict[str, dict] = {}
    stubs = mock.patch.object(torch, "_fused_sgd_", launch), mock.patch.object(kernels, "sgd_update", launch)
    with gdcore.use_backend("triton"), stubs[0], stubs[1]:
        for name, options in OPTIONS.items():
            for gradients in ("kept", "kept, state read", "new"):
                params = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
                optimizers = {
                    "fused": torch.optim.SGD(params, lr=1e-3, fused=True, **options),
                    "gdcore": gdcore.SGD(params, lr=1e-3, **options),
                }
                steps = {who: optimizer.step for who, optimizer in optimizers.items()}
                if gradients == "kept, state read":
                    new(params, True)
                    for optimizer in optimizers.values():
                        optimizer.step()
                        optimizer.state_dict()
                samples: dict[str, list[float]] = {who: [] for who in steps}
                for _ in range(TURNS):
                    for who, step in steps.items():
                        samples[who] += to_launch(step, params, gradients == "new")
                found[f"{name}, gradients {gradients}"] = {
                    who: {
                        "p20": statistics.quantiles(values, n=5)[0],
                        "p50": statistics.median(values),
                        "p80": statistics.quantiles(values, n=5)[3],
                    }
                    for who, values in samples.items()
                }
    return {"tensors": len(shapes), "microseconds": found}


if __name__ == "__main__":
    print(json.dumps(_times()))
