"""How long a call keeps the host: Python, dispatch and allocation, with the kernels' launches left out. Needs no GPU.

    python -m gdcore.bench.host        prints JSON; a process of its own, because Triton decides at import whether kernels
                                       are interpreted, and only then takes it tensors on the CPU

gdcore's side is the Triton path, planned as for an H200, on CPU tensors. `kernel[grid](...)` gives a stub that notes the
time: all of gdcore's Python runs, nothing of Triton's and no kernel, so the sizes are real and nobody reads the numbers.
A step of the optimizer ends at its launch. linear_mse, its gradients and linear_mse_sgd_ end when the call returns: the
last thing that they start is often one of PyTorch's own operations, whose launch cannot be seen from here.

Stock's side is the same call on CPU tensors of ROWS rows, one thread: PyTorch's dispatch, its autograd, and kernels that
have next to nothing to do. Tensors without storage ("meta") would leave those out too, but the shapes of the loss and of
its gradient are then worked out in Python, which takes more than ten times as long as the whole call does here and which
no GPU waits for. Left out on both sides: the launches themselves, the GPU's allocator, and autograd's change of threads.
In gdcore's time is its look at whether a small CPU tensor is better left to stock, which CUDA tensors are spared.
"""

import argparse
import functools
import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import gdcore
from gdcore import devices

from . import timing
from .peers import OURS, STOCK, STOCK_FUSED
from .sgd_cases import OPTIONS, resnet50

TURNS, CALLS, WARM = 12, 18, 2  # many short turns, so that a slow moment of the machine meets both
ROWS = 4  # of stock's tensors

WHAT = (
    "seconds of host time with launches left out: linear_mse until the call returns, stock on tensors of "
    f"{ROWS} rows; the optimizer until its launch"
)

Sample = Callable[[], float]  # one call of what is timed, with whatever comes before and after it; seconds


def measure(*, small: bool = False) -> dict:
    """The document's part "host"; runs this module in a process of its own.

    Parameters
    ----------
    small : bool
        Few rows and turns: that it works, not how long it takes.

    Raises
    ------
    RuntimeError
        If the process fails.
    """
    command = [sys.executable, "-m", "gdcore.bench.host", *(["--small"] if small else [])]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"{' '.join(command[1:])} failed: {last}")
    return json.loads(done.stdout)


class Launches:
    """What stands in for Triton's launches: how many there were in a sample, and when the last one was."""

    def __init__(self) -> None:
        self.count, self.last = 0, 0

    def note(self, *_: object, **__: object) -> None:
        self.last = time.perf_counter_ns()
        self.count += 1

    @contextmanager
    def stubbed(self) -> Iterator[None]:
        """Every `kernel[grid](...)` and stock's fused step only note the time."""
        from gdcore.kernels import sgd

        note = self.note
        launcher = mock.patch.object(type(sgd.sgd_kernel), "__getitem__", lambda kernel, grid: note)
        as_on_a_gpu = mock.patch.object(devices, "INTERPRETED", devices.H200)
        with gdcore.use_backend("triton"), launcher, as_on_a_gpu, mock.patch.object(torch, "_fused_sgd_", note):
            yield


@dataclass(frozen=True, slots=True)
class Row:
    """What is timed: `start` prepares a peer's samples."""

    name: str
    what: str
    peers: tuple[str, ...]
    start: Callable[[str, Launches], Sample]


def _operands(n: int, k: int, m: int, wanted: Sequence[str]) -> dict[str, Tensor]:
    shapes = {"input": (n, k), "weight": (m, k), "target": (n, m), "bias": (m,)}
    names = [name for name in shapes if name != "bias" or name in wanted]
    return {name: torch.zeros(shapes[name]).requires_grad_(name in wanted) for name in names}


def _loss_of(peer: str, n: int, k: int, m: int, wanted: Sequence[str], module: bool) -> tuple[Callable, list[Tensor]]:
    """The peer's loss, and the leaves whose gradients are wanted."""
    tensors = _operands(n if peer == OURS else ROWS, k, m, wanted)
    x, w, y, b = (tensors.get(name) for name in ("input", "weight", "target", "bias"))
    leaves = [tensors[name] for name in wanted]
    if module:
        linear = torch.nn.Linear(k, m, bias=b is not None)
        if peer == OURS:
            loss = gdcore.LinearMSELoss.from_linear(linear)
            return lambda: loss(x, y), list(loss.parameters())
        loss = torch.nn.MSELoss()
        return lambda: loss(linear(x), y), list(linear.parameters())
    if peer == OURS:
        return lambda: gdcore.linear_mse(x, w, y, b), leaves
    return lambda: F.mse_loss(F.linear(x, w, b), y), leaves


STAGES = {
    "loss alone": "no gradient wanted",
    "forward": "the loss, ready for backward()",
    "backward": "loss.backward()",
    "forward and backward": "the loss and loss.backward()",
}


def _linear_mse(
    stage: str, n: int, k: int, m: int, wanted: Sequence[str], module: bool, peer: str, launches: Launches
) -> Sample:
    loss_of, leaves = _loss_of(peer, n, k, m, wanted, module)
    early, late = stage == "backward", stage in ("backward", "forward and backward")
    clock = time.perf_counter_ns

    def sample() -> float:
        for leaf in leaves:
            leaf.grad = None
        loss = loss_of() if early else None
        launches.count = 0
        start = clock()
        if not early:
            loss = loss_of()
        if late:
            loss.backward()
        return (clock() - start) / 1e9

    return torch.no_grad()(sample) if stage == "loss alone" else sample


def _sgd(shapes: Sequence[tuple[int, ...]], options: Mapping, gradients: str, peer: str, launches: Launches) -> Sample:
    params = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
    if peer == OURS:
        optimizer = gdcore.SGD(params, lr=1e-3, **options)
    else:
        optimizer = torch.optim.SGD(params, lr=1e-3, fused=True, **options)
    fresh, clock, step = gradients == "gradients new", time.perf_counter_ns, optimizer.step

    def sample() -> float:
        for p in params:
            if fresh or p.grad is None:
                p.grad = torch.empty_like(p)
        launches.count = 0
        start = clock()
        step()
        return (launches.last - start) / 1e9

    if gradients == "gradients kept, state read":
        sample()
        optimizer.state_dict()
    return sample


def _whole_step(
    n: int, k: int, m: int, wanted: Sequence[str], options: Mapping, peer: str, launches: Launches
) -> Sample:
    """linear_mse_sgd_ against stock's loss, backward() and fused optimizer, its gradients kept."""
    tensors = _operands(n if peer == OURS else ROWS, k, m, wanted)
    x, w, y, b = (tensors.get(name) for name in ("input", "weight", "target", "bias"))
    leaves, clock = [tensors[name] for name in wanted], time.perf_counter_ns
    buffers = {}
    if options.get("momentum"):
        names = ("momentum_buffer", "bias_momentum_buffer")
        buffers = {name: torch.zeros_like(leaf) for name, leaf in zip(names, leaves, strict=False)}
    optimizer = torch.optim.SGD(leaves, lr=1e-3, fused=True, **options)

    def ours() -> None:
        gdcore.linear_mse_sgd_(x, w, y, b, lr=1e-3, **options, **buffers)

    def stock() -> None:
        F.mse_loss(F.linear(x, w, b), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    call = ours if peer == OURS else stock

    def sample() -> float:
        launches.count = 0
        start = clock()
        call()
        return (clock() - start) / 1e9

    return sample


WEIGHT = ("weight",)
WHOLE_STEPS = {  # name: n, k, m, updated, options
    "100 × 2 × 1": (100, 2, 1, WEIGHT, {}),
    "1,000 × 10 × 1 with bias, momentum": (1_000, 10, 1, ("weight", "bias"), {"momentum": 0.9}),
    "1,000 × 64 × 64": (1_000, 64, 64, WEIGHT, {}),
}
SUBJECTS = {  # name: n, k, m, gradients, whether as a module, stages
    "100 × 2 × 1": (100, 2, 1, WEIGHT, False, tuple(STAGES)),
    "1,000 × 10 × 1": (1_000, 10, 1, WEIGHT, False, tuple(STAGES)),
    "1,000 × 10 × 1 with bias": (1_000, 10, 1, ("weight", "bias"), False, ("forward and backward",)),
    "1,000 × 10 × 1 as a module": (1_000, 10, 1, ("weight", "bias"), True, ("forward and backward",)),
    "1,000 × 64 × 64 with dX": (1_000, 64, 64, ("input", "weight"), False, tuple(STAGES)),
}
# Gradients that stay where they are; the same after somebody has read the optimizer's state, which gdcore then has to
# watch; gradients that are new tensors in every step, as after zero_grad().
GRADIENTS = ("gradients kept", "gradients kept, state read", "gradients new")


def rows(small: bool = False) -> list[Row]:
    """Everything that is timed, in order."""
    found = []
    for subject, (n, k, m, wanted, module, stages) in SUBJECTS.items():
        for stage in stages:
            start = functools.partial(_linear_mse, stage, n, k, m, wanted, module)
            found.append(Row(f"linear_mse {subject}, {stage}", STAGES[stage], (STOCK, OURS), start))
    for subject, shape in WHOLE_STEPS.items():
        start = functools.partial(_whole_step, *shape)
        found.append(Row(f"linear_mse_sgd_ {subject}", "loss, gradients and update", (STOCK, OURS), start))
    one, many = ((1_000,),), resnet50()
    steps = [(many, options, gradients) for options in OPTIONS for gradients in GRADIENTS]
    steps += [(one, "momentum", gradients) for gradients in GRADIENTS]
    for shapes, options, gradients in steps:
        count = f"{len(shapes)} tensor{'s' * (len(shapes) != 1)}"
        start = functools.partial(_sgd, shapes, OPTIONS[options], gradients)
        what = f"one step of {count} with {sum(map(math.prod, shapes)):,} numbers"
        found.append(Row(f"SGD, {count}, {options}, {gradients}", what, (STOCK_FUSED, OURS), start))
    return found[:: len(found) // 3] if small else found


def times(row: Row, launches: Launches, turns: int) -> dict:
    """One row of the document: p20, p50 and p80 of every peer, and how many kernels gdcore launches in a sample."""
    samplers = {peer: row.start(peer, launches) for peer in row.peers}
    for _ in range(3):  # what the first calls prepare stays prepared
        samplers[OURS]()
    launched = f"{launches.count or 'no'} kernel{'s' * (launches.count != 1)}"
    samples: dict[str, list[float]] = {peer: [] for peer in samplers}
    for turn in range(turns):
        for peer in row.peers[:: -1 if turn % 2 else 1]:
            taken = [samplers[peer]() for _ in range(WARM + CALLS)]
            samples[peer] += taken[WARM:]
    return {
        "what": f"{row.what}; {launched} of gdcore's",
        "peers": {peer: timing.quantiles(values) for peer, values in samples.items()},
    }


def _here(small: bool) -> dict:
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()  # of the whole process, which does nothing else
    launches = Launches()
    with launches.stubbed():
        found = {row.name: times(row, launches, 2 if small else TURNS) for row in rows(small)}
    return {"what": WHAT, "rows": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    print(json.dumps(_here(parser.parse_args().small)))
