"""The peers of a whole training run: plain gradient descent as a user would write it, and what promises to be faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import gdcore
from gdcore.backends import reference

from . import jax_peers
from .by_hand import mean_square, residual
from .peers import (
    COMPILED,
    GRAM,
    GRAPH,
    JAX,
    LIBRARY,
    OURS,
    SKLEARN,
    STEPS,
    STOCK,
    Bind,
    Call,
    LeftOut,
    Peer,
    on_cuda_only,
)

if TYPE_CHECKING:
    from .run_cases import RunCase, Start

Trained = tuple[Tensor, ...]  # losses before each update, weight, and bias where there is one


def batches(start: Start, updates: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The data of every update."""
    if start.rows is None:
        for _ in range(updates):
            yield start.x, start.y
    else:
        for rows in start.rows:
            yield start.x[rows], start.y[rows]


def lesson_loop(case: RunCase, loss_function: Callable) -> Bind:
    """The loop that everybody writes first: predict, loss, backward, subtract the learning rate times the gradient."""

    lr = case.lr

    def bind(start: Start) -> Call:
        def train() -> Trained:
            parameters = [t.clone().requires_grad_() for t in start.parameters]
            losses = []
            for x, y in batches(start, case.updates):
                loss = loss_function(x, parameters[0], y, *parameters[1:])
                loss.backward()
                with torch.no_grad():
                    for p in parameters:
                        p.sub_(lr * p.grad)
                        p.grad = None
                losses.append(loss.detach())
            return torch.stack(losses), *(p.detach() for p in parameters)

        return train

    return bind


def _stock(case: RunCase, device: torch.device) -> Bind:
    return lesson_loop(case, reference.linear_mse)


def _by_hand(case: RunCase, device: torch.device) -> Bind:
    """The loop without autograd: the residual in one call, each gradient in another, updates in place."""

    lr = case.lr

    def bind(start: Start) -> Call:
        def train() -> Trained:
            w, *bias = (t.clone() for t in start.parameters)
            losses = []
            for x, y in batches(start, case.updates):
                e = residual(x, w, y, bias[0] if bias else None)
                losses.append(mean_square(e))
                w.sub_(torch.mm(e.t(), x), alpha=lr * 2 / e.numel())
                for b in bias:
                    b.sub_(e.sum(0), alpha=lr * 2 / e.numel())
            return torch.stack(losses), w, *bias

        return train

    return bind


def _steps(case: RunCase, device: torch.device) -> Bind:
    """A loop over gdcore.linear_mse_sgd_, one call an update."""

    lr = case.lr

    def bind(start: Start) -> Call:
        def train() -> Trained:
            w, *bias = (t.clone() for t in start.parameters)
            losses = [gdcore.linear_mse_sgd_(x, w, y, *bias, lr=lr) for x, y in batches(start, case.updates)]
            return torch.stack(losses), w, *bias

        return train

    return bind


def fitted(case: RunCase, method: str) -> Bind:
    """The run in one call of gdcore.fit. It draws the order of the rows itself; everyone else is given it."""

    def bind(start: Start) -> Call:
        coef, *bias = start.weight.t().contiguous(), *([] if start.bias is None else [start.bias])
        init = (coef, *bias) if bias else coef

        def train() -> Trained:
            found = gdcore.fit(
                start.x, start.y, lr=case.lr, steps=case.updates, batch_size=case.batch, init=init, intercept=bool(bias),
                seed=start.seed, method=method,
            )  # fmt: skip
            return found.losses, found.coef.t(), *([found.intercept] if bias else [])

        return train

    return bind


def _ours(case: RunCase, device: torch.device) -> Bind:
    return fitted(case, "auto")


def _gram(case: RunCase, device: torch.device) -> Bind:
    if case.batch:
        raise LeftOut("sums of products are for full batches")
    return fitted(case, "gram")


def one_update(lr: float) -> Callable:
    """Loss and update in place, as one function."""

    def update(x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
        places = tuple(range(len(parameters)))
        grads, loss = torch.func.grad_and_value(lambda w, *b: reference.linear_mse(x, w, y, *b), places)(*parameters)
        for p, grad in zip(parameters, grads, strict=True):
            p.sub_(lr * grad)
        return loss

    return update


def _compiled(case: RunCase, device: torch.device) -> Bind:
    """The same loop around one compiled update."""
    update = torch.compile(one_update(case.lr))

    def bind(start: Start) -> Call:
        def train() -> Trained:
            parameters = [t.clone() for t in start.parameters]
            losses = [update(x, y, *parameters) for x, y in batches(start, case.updates)]
            return torch.stack(losses), *parameters

        return train

    return bind


def _graph(case: RunCase, device: torch.device) -> Bind:
    """One eager update as a CUDA graph, replayed; batches are copied to where it reads."""
    on_cuda_only(device, "CUDA graphs")
    if case.batch and case.n % case.batch:
        raise LeftOut("a graph needs batches of one size, the last one here is shorter")
    from .linear_peers import captured

    update = one_update(case.lr)

    def bind(start: Start) -> Call:
        x, y = (t[: case.batch].clone() if case.batch else t for t in (start.x, start.y))
        parameters = [t.clone() for t in start.parameters]
        graph, loss = captured(lambda: update(x, y, *parameters))

        def train() -> Trained:
            for p, first in zip(parameters, start.parameters, strict=True):
                p.copy_(first)
            losses = torch.empty(case.updates, device=device)
            for i in range(case.updates):
                if start.rows is not None:
                    torch.index_select(start.x, 0, start.rows[i], out=x)
                    torch.index_select(start.y, 0, start.rows[i], out=y)
                graph.replay()
                losses[i] = loss
            return losses, *(p.clone() for p in parameters)

        return train

    return bind


def _sklearn(case: RunCase, device: torch.device) -> Bind:
    """scikit-learn's SGDRegressor: as many epochs, but an update for every row, in Cython."""
    if device.type != "cpu":
        raise LeftOut("scikit-learn computes on the CPU")
    if case.m != 1:
        raise LeftOut("SGDRegressor has one output")
    try:
        from sklearn.linear_model import SGDRegressor
    except ImportError as error:
        raise LeftOut("scikit-learn is not installed") from error

    def bind(start: Start) -> Call:
        x, y = start.x.double().numpy(), start.y[:, 0].double().numpy()
        w, *b = (t.double().numpy() for t in start.parameters)

        def train() -> Trained:
            model = SGDRegressor(
                alpha=0.0, max_iter=case.epochs, tol=None, eta0=0.01, random_state=0, fit_intercept=bool(b)
            )
            model.fit(x, y, coef_init=w[0].copy(), intercept_init=b[0].copy() if b else None)
            found = [torch.tensor(t).float() for t in (model.coef_[None], model.intercept_)[: 1 + len(b)]]
            return reference.linear_mse(start.x, found[0], start.y, *found[1:])[None], *found

        return train

    return bind


PEERS = (
    Peer(STOCK, "the lesson's loop: F.mse_loss(F.linear(x, w, b), y).backward(), w.sub_(lr * w.grad)", _stock),
    Peer(COMPILED, "a loop around one compiled update, torch.func.grad_and_value and sub_", _compiled),
    Peer(LIBRARY, "the loop without autograd: addmm for the residual, mm and sub_", _by_hand),
    Peer(GRAPH, "a loop around one update as a CUDA graph", _graph),
    Peer(JAX, "jax.jit of the whole run, lax.scan over updates", jax_peers.run),
    Peer(
        SKLEARN,
        "scikit-learn's SGDRegressor: as many epochs, an update for every row; another algorithm",
        _sklearn,
        comparable=False,
    ),
    Peer(STEPS, "the loop with gdcore.linear_mse_sgd_: loss, gradient and update in one call", _steps),
    Peer(GRAM, "gdcore.fit(method='gram'): one pass over the data, then steps on sums of products in float64", _gram),
    Peer(OURS, "gdcore.fit: the whole run in one call", _ours),
)
