"""Full-batch runs from sums of products: one pass over the data, then every step costs K² M, however many rows there are.

Loss and gradient of a linear model depend on the data through a few sums alone. With E₀ = X W₀ + b₀ − Y the residual at
the start, δ = W − W₀, β = b − b₀, means x̄ of X's and ē₀ of E₀'s columns, and everything centred (X_c = X − x̄, ...):

    A = X_cᵀX_c     B = X_cᵀE₀c     ē = ē₀ + δᵀx̄ + β                       (K, K), (K, M), (M,)
    Σ E²    = Σ E₀c² + ⟨2 B + A δ, δ⟩ + N Σ ē²
    Σ XᵀE   = B + A δ + N x̄ ēᵀ          Σ E = N ē

Why so, and not from XᵀX, XᵀY and YᵀY: the residual is far smaller than the data, and its square far smaller still. Uncentred
and from zero, the loss is what is left of terms N‖y‖² and N‖x̄‖²‖w‖²; centred and anchored at the start it is left of
the loss at the start. So with sums in float64 a loss is right to about 1e-16 · loss₀ / loss (and coefficients to about
1e-16 times the condition of A), down to 1e-16 of the first loss; a loss smaller than that reads as noise around zero.

Each block of rows is centred by its own means; blocks, and processes, are merged by the formula of Chan, Golub and LeVeque,
Updating formulae and a pairwise algorithm for computing sample variances, 1979. Moves N (K + M) numbers once.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from . import group
from .engine import Engine
from .plan import gram_chunk
from .spec import Spec
from .table import Pair


class Moments(NamedTuple):
    """Of rows z = (x, e₀): how many, their mean, and the sum of products of what is left when the mean is taken off."""

    n: int
    mean: Tensor  # (K + M,)
    products: Tensor  # (K + M, K + M)

    def merged(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        apart = other.mean - self.mean
        shift = torch.outer(apart, apart).mul_(self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), self.products + other.products + shift)


def moments(blocks: Iterable[Pair], start: Tensor, k: int) -> Moments:
    """Of all rows of all processes; `start` (R, M) is where the residual is taken."""
    m = start.shape[1]
    w = start.double()
    total = Moments(0, w.new_zeros(k + m), w.new_zeros(k + m, k + m))
    for x, y in blocks:
        if not len(x):
            continue
        x = x.double()
        z = torch.cat([x, torch.addmm(y.double(), x, w[:k], beta=-1).add_(w[k:].sum(0))], 1)
        mean = z.mean(0)
        z -= mean
        block = Moments(len(z), mean, z.t() @ z)
        total = block if total.n == 0 else total.merged(block)
    return _of_all_processes(total)


def _of_all_processes(mine: Moments) -> Moments:
    if not group.is_shared():
        return mine
    n = int(group.add_(torch.tensor(mine.n, device=mine.mean.device)))
    mean = group.add_(mine.mean * (mine.n / n))
    apart = mine.mean - mean
    products = mine.products + torch.outer(apart, apart) * mine.n if mine.n else mine.products
    return Moments(n, mean, group.add_(products))


class GramRun(Engine):
    """Steps from the moments, in float64: a product and an addition each. The losses of a chunk are worked out together."""

    def __init__(self, spec: Spec, start: Tensor, blocks: Iterable[Pair]) -> None:
        super().__init__(spec, start)
        self.chunk = gram_chunk(spec)
        k = spec.k
        self.start = start.double()
        found = moments(blocks, start, k)
        self.n, self.x_mean, self.e_mean = found.n, found.mean[:k], found.mean[k:]
        self.a, self.b = found.products[:k, :k], found.products[:k, k:]
        self.first_squares = found.products.diagonal()[k:].sum()
        # The gradient needs no centring: G = first + second δ, weight decay in both.
        ones = torch.cat([self.x_mean, self.x_mean.new_ones(int(spec.intercept))])
        scale = 2 / (self.n * spec.m)
        second, first = torch.outer(ones, ones).mul_(self.n), torch.outer(ones, self.e_mean).mul_(self.n)
        second[:k, :k] += self.a
        first[:k] += self.b
        self.second = second.mul_(scale) + spec.weight_decay * torch.eye(
            len(ones), dtype=second.dtype, device=second.device
        )
        self.first = first.mul_(scale).add_(self.start, alpha=spec.weight_decay)
        self.momentum = torch.zeros_like(self.start)
        self.deltas = self.start.new_zeros(self.chunk + 1, *start.shape)  # of this chunk's steps, and the next
        self.begin = 0  # the step of deltas[0]

    def advance(self, count: int) -> None:
        spec, begin, taken = self.spec, self.done, 0
        self.deltas[0] = self.deltas[begin - self.begin]
        self.begin = begin
        deltas, grad = self.deltas[: count + 1].unbind(), torch.empty_like(self.first)
        try:
            for i in range(count):
                step = torch.addmm(self.first, self.second, deltas[i], out=grad)
                if spec.momentum:
                    step = self.momentum.mul_(spec.momentum).add_(grad)
                torch.sub(deltas[i], step, alpha=spec.lr, out=deltas[i + 1])
                taken = i + 1
        finally:
            self.losses[begin : begin + taken] = self._losses(self.deltas[:taken])
            if spec.record:
                self._places[begin + 1 : begin + taken + 1] = self.start + self.deltas[1 : taken + 1]
            self.done = begin + taken

    def _losses(self, deltas: Tensor) -> Tensor:
        """Of parameters so far from the start: (steps, R, M) -> (steps,)."""
        k = self.spec.k
        changed = deltas[:, :k]
        means = self.e_mean + self.x_mean @ changed + deltas[:, k:].sum(1)
        squares = ((2 * self.b + self.a @ changed) * changed).sum((1, 2)) + self.n * means.square().sum(1)
        # What is left of a difference may fall below zero.
        return ((self.first_squares + squares) / (self.n * self.spec.m)).clamp_(min=0)

    def parameters_at(self, step: int) -> Tensor:
        """Of a step of the current chunk, or the one after it."""
        return (self.start + self.deltas[step - self.begin]).to(self.losses.dtype)


def largest_stable_lr(blocks: Iterable[Pair], start: Tensor, spec: Spec) -> float:
    """2 (1 + μ) / λmax of the loss's second derivative, weight decay included: below it full-batch descent converges."""
    k, m = spec.k, start.shape[1]
    found = moments(blocks, torch.zeros_like(start), k)
    mean = found.mean[:k]
    second = found.products[:k, :k] + found.n * torch.outer(mean, mean)
    if spec.intercept:
        sums = (found.n * mean)[:, None]
        second = torch.cat([torch.cat([second, sums], 1), torch.cat([sums.t(), sums.new_tensor([[found.n]])], 1)])
    if not torch.isfinite(second).all():
        return float("nan")
    largest = torch.linalg.eigvalsh(second * (2 / (found.n * m)))[-1].item() + spec.weight_decay
    return 2 * (1 + spec.momentum) / largest if largest > 0 else float("inf")
