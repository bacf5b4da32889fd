"""One step at a time, for data of any size: loss, gradient and update in one call, or sums over blocks and processes."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..autograd import run_backward, run_forward
from ..backends import Wanted, load
from ..explanation import plan_of
from ..step_run import step_plan
from ..update import Update, apply_
from . import group
from .engine import Engine
from .spec import Spec
from .table import Pair


class Exhausted(Exception):
    """There are no more batches."""


class StepRun(Engine):
    """Each step is one fused call on a batch: `linear_mse_sgd_` without its checks."""

    def __init__(self, spec: Spec, start: Tensor, batches: Iterator[Pair], backend: str) -> None:
        super().__init__(spec, start)
        self.batches, self.backend, self.options = batches, backend, {}
        if start.is_cuda and self.chunk == 1:
            self.chunk = 8  # as many steps are enqueued before the host waits for earlier ones
        self.update = Update(spec.lr, spec.momentum, weight_decay=spec.weight_decay)
        self.weight = start[: spec.k].t().contiguous()
        self.bias = start[spec.k].clone() if spec.intercept else None
        self.momentum = torch.zeros_like(self.weight) if spec.momentum else None
        self.bias_momentum = torch.zeros_like(self.bias) if spec.momentum and spec.intercept else None

    def advance(self, count: int) -> None:
        for step in range(self.done, self.done + count):
            pair = next(self.batches, None)
            if pair is None:
                raise Exhausted
            self.losses[step] = self.step(*pair)
            self.keep(step + 1)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss before the update."""
        plan = step_plan(self.backend, x, self.weight, y, self.bias)
        return load(self.backend).step(
            x, self.weight, y, self.bias, self.update, self.momentum, self.bias_momentum, plan, **self.options
        )

    def keep(self, step: int) -> None:
        """Note the parameters as those before this step."""
        place = self.parameters_at(step)
        place[: self.spec.k] = self.weight.t()
        if self.bias is not None:
            place[self.spec.k] = self.bias
        self.done = step


class SumsRun(Engine):
    """Each step adds the sums of many blocks of rows, of all processes together, and then updates."""

    def __init__(self, spec: Spec, start: Tensor, passes: Iterator[Iterable[Pair]], backend: str) -> None:
        super().__init__(spec, start)
        self.passes, self.backend = passes, backend
        self.update = Update(spec.lr, spec.momentum, weight_decay=spec.weight_decay)
        self.momentum = torch.zeros_like(start) if spec.momentum else None

    def advance(self, count: int) -> None:
        for step in range(self.done, self.done + count):
            w = self.parameters_at(step)
            blocks = next(self.passes, None)
            # Of squares, of gradients; how many numbers; how many processes have no more batches.
            totals = w.new_zeros(3 + w.numel(), dtype=torch.float64)
            sums = totals[:-1]
            for x, y in blocks or ():
                if x.numel():
                    self.add(sums, w, x, y)
            if blocks is None:
                totals[-1] = 1
            group.add_(totals)
            if blocks is None or (group.is_shared() and totals[-1] > 0):  # all stop together
                raise Exhausted
            mean = (sums[:-1] / sums[-1]).to(w.dtype)
            self.losses[step] = mean[0]
            after = self.parameters_at(step + 1)
            after.copy_(w)
            apply_(self.update, after, mean[1:].view_as(w), self.momentum)
            self.done = step + 1

    def add(self, sums: Tensor, w: Tensor, x: Tensor, y: Tensor) -> None:
        """The sums with those of a block."""
        k = self.spec.k
        bias = w[k] if self.spec.intercept else None
        wanted = Wanted(weight=True, bias=bias is not None)
        weight, backend = w[:k].t().contiguous(), load(self.backend)
        plan = plan_of(self.backend, x, weight, y, bias, "sum", wanted, may_be_stock=False)
        found = run_forward(backend, x, weight, y, bias, "sum", wanted, plan)
        one = found.loss.new_ones(())
        _, grad_weight, _, grad_bias = run_backward(backend, one, x, weight, y, found, "sum", wanted, plan)
        sums[0] += found.loss
        sums[1 : 1 + grad_weight.numel()] += grad_weight.t().reshape(-1)
        if grad_bias is not None:
            sums[1 + grad_weight.numel() : -1] += grad_bias
        sums[-1] += y.numel()
