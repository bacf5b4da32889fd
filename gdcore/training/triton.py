"""Whole runs in one launch, or few: kernels that keep data and parameters on the chip; a CUDA graph where there is none."""

import itertools

import torch
from torch import Tensor

from ..backends.triton import new_counter
from ..kernels.run_batches import run_batches
from ..kernels.run_grid import run_grid
from ..kernels.run_resident import run_resident
from ..kernels.run_tile import packed
from . import shuffle
from .engine import Engine
from .plan import RunPlan
from .spec import Spec
from .steps import StepRun

_LAUNCH_SECONDS = 0.1  # that a launch is predicted to take at most: between launches Ctrl-C is heard
_LAUNCH_STEPS = 100_000  # and its steps
_ORDER_NUMBERS = 1 << 21  # row numbers drawn at a time: with their temporaries, about 150 MB
_CHUNKS_TO_CAPTURE = 10  # fewer are not worth a capture, which waits for the GPU and empties allocators


class ChipRun(Engine):
    """Launches that take many steps each. A launch reads one copy of the parameters and momentum and writes the other."""

    chunk = _LAUNCH_STEPS

    def __init__(self, spec: Spec, start: Tensor, x: Tensor, y: Tensor, plan: RunPlan) -> None:
        super().__init__(spec, start, in_turn=False)
        steps = min(self.chunk, int(_LAUNCH_SECONDS / (plan.predicted_step_seconds or 1e-5)))
        # A launch whose losses begin at another alignment would be compiled anew.
        self.chunk = steps - steps % 16 if steps > 16 else max(1, steps)
        self.x, self.y, self.plan = packed(x), y, plan  # once, not in each launch
        # By step: parameters and momentum, (2, R, M), or parameters, (1, R, M), for which nothing has to be launched.
        self.states = {0: torch.stack([start, torch.zeros_like(start)]) if spec.momentum else start.unsqueeze(0)}
        self.spare = torch.empty_like(self.states[0])
        if spec.batch_size:
            self.units = shuffle.batches(spec.seed, spec.n, spec.batch_size, spec.steps, _ORDER_NUMBERS, x.device)
            self.order, self.order_steps, self.order_used = None, 0, 0

    def advance(self, count: int) -> None:
        spec, first = self.spec, self.done
        if spec.batch_size:
            if self.order_used == self.order_steps:
                self.order, sizes = next(self.units)
                self.order_steps, self.order_used = len(sizes), 0
            count = min(count, self.order_steps - self.order_used)
        options = {
            "steps": count,
            "lr": spec.lr,
            "momentum": spec.momentum,
            "weight_decay": spec.weight_decay,
            "intercept": spec.intercept,
            "config": self.plan.config,
        }
        before, after = self.states[first], self.spare
        self.states = {first: before, first + count: after}
        losses = self.losses[first : first + count]
        trajectory = self._places[first : first + count] if spec.record else None
        if spec.batch_size:
            # A part of an epoch is an epoch of fewer rows to the kernel: its batches end where the part does.
            run_batches(
                self.x[: len(self.order)], self.y, self.order, before, after, losses, trajectory,
                first_step=self.order_used, batch_size=spec.batch_size, **options,
            )  # fmt: skip
            self.order_used += count
        elif self.plan.method == "grid":
            run_grid(self.x, self.y, before, after, losses, trajectory, programs=self.plan.programs, **options)
        else:
            run_resident(self.x, self.y, before, after, losses, trajectory, **options)
        if spec.record:
            self._places[first + count] = after[0]
        self.done = first + count
        self.spare = before

    def parameters_at(self, step: int) -> Tensor:
        return self.states[step][0]

    def result(self) -> Tensor:
        """Not a copy, which would be one launch of few: nobody else has this memory, unless it is the trajectory's."""
        return super().result() if self.spec.record else self.parameters_at(self.done).data


class GraphRun(StepRun):
    """Full-batch steps of one fused launch each, a chunk of them captured once and replayed."""

    chunk = 31  # odd: chunks in turn leave their parameters in either of two places

    def __init__(self, spec: Spec, start: Tensor, x: Tensor, y: Tensor, backend: str) -> None:
        super().__init__(spec, start, itertools.repeat((x, y)), backend)
        self.data, self.graph = (x, y), None
        self.options = {"counter": new_counter(start.device)}  # one for all steps, else each takes a fresh one
        self.chunk_losses = torch.empty(self.chunk, dtype=start.dtype, device=start.device)

    def advance(self, count: int) -> None:
        if count < self.chunk or (self.graph is None and not self.worth_capturing()):
            super().advance(count)
            return
        self.graph = self.graph or self.captured()
        self.graph.replay()
        self.losses[self.done : self.done + count] = self.chunk_losses
        self.keep(self.done + count)

    def worth_capturing(self) -> bool:
        """Not the first chunk, which compiles and allocates what a capture may not, and not the trajectory's copies."""
        left = self.spec.steps - self.done
        return self.done > 0 and left >= _CHUNKS_TO_CAPTURE * self.chunk and not self.spec.record

    def captured(self) -> torch.cuda.CUDAGraph:
        """A chunk of steps. Capturing computes nothing."""
        graph = torch.cuda.CUDAGraph()
        # On a stream of this device, and without forbidding other threads, a DataLoader's for one, to allocate.
        stream = torch.cuda.Stream(self.weight.device)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for i in range(self.chunk):
                self.chunk_losses[i] = self.step(*self.data)
        return graph
