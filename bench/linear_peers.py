"""The peers of linear_mse, each as an expert would write it, for the loss, its gradients, and a whole training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import gdcore
from gdcore.backends import reference

from . import by_hand, jax_peers
from .peers import (
    COMPILED,
    FOLDED,
    FUNCTIONAL,
    GRAPH,
    GRAPHED_COMPILED,
    JAX,
    LIBRARY,
    OURS,
    STOCK,
    TUNED,
    Bind,
    Call,
    LeftOut,
    Peer,
    on_cuda_only,
)

if TYPE_CHECKING:
    from .cases import Case, Tensors

LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def bound(case: Case, tensors: Tensors, function: LossFunction, optimizer: type = torch.optim.SGD) -> Call:
    """A call with autograd. Gradients come by torch.autograd.grad, which accumulates nothing into `.grad`, except in a step."""
    leaves = [getattr(tensors, name) for name in case.wanted]
    operands = (tensors.input, tensors.weight, tensors.target, tensors.bias)

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(*operands),)

    def backward() -> tuple[Tensor, ...]:
        loss = function(*operands)
        return loss, *torch.autograd.grad(loss, leaves)

    if case.op != "step":
        return forward if case.op == "forward" else backward
    stepper = optimizer(leaves, lr=case.lr)

    def step() -> tuple[Tensor, ...]:
        loss = function(*operands)
        loss.backward()
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        return loss, *leaves

    return step


def _with_autograd(get: Callable[[], LossFunction], optimizer: Callable = torch.optim.SGD) -> Callable:
    """A peer's prepare: stock's loop around a loss function."""

    def prepare(case: Case, device: torch.device) -> Bind:
        function = get()
        return lambda tensors: bound(case, tensors, function, optimizer)

    return prepare


def stock_sgd(params: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """torch.optim.SGD as fast as it is right: its fused kernel leaves half-precision elements unchanged on the CPU."""
    return torch.optim.SGD(params, lr=lr, fused=params[0].is_cuda or params[0].dtype.itemsize >= 4)


def _compiled(mode: str | None) -> Callable:
    """torch.compile of the loss in a mode, with stock's loop around it."""

    def prepare(case: Case, device: torch.device) -> Bind:
        if mode == "reduce-overhead":
            on_cuda_only(device, "CUDA graphs, which are what this mode adds,")
        compiled = torch.compile(reference.linear_mse, mode=mode)

        def function(*operands: Tensor | None) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # the results of the call before are no longer needed
            return compiled(*operands)

        if mode is None or device.type != "cuda":
            return lambda tensors: bound(case, tensors, compiled, stock_sgd)

        def bind(tensors: Tensors) -> Call:
            for t in tensors:
                if t is not None:  # else its CUDA graph would copy every operand in every call
                    torch._dynamo.mark_static_address(t)
            return bound(case, tensors, function, stock_sgd)

        return bind

    return prepare


def _functional(case: Case, device: torch.device) -> Bind:
    """Loss and gradients as one function, compiled into one graph, with the update in it where there is one."""
    if case.op == "forward":
        raise LeftOut("there is no gradient to take")
    places = [("input", "weight", "target", "bias").index(name) for name in case.wanted]
    gradients = torch.func.grad_and_value(reference.linear_mse, argnums=tuple(places))
    lr = case.lr

    def backward(*operands: Tensor | None) -> tuple[Tensor, ...]:
        grads, loss = gradients(*operands)
        return loss, *grads

    def step(*operands: Tensor | None) -> tuple[Tensor, ...]:
        grads, loss = gradients(*operands)
        for place, grad in zip(places, grads, strict=True):
            operands[place].sub_(lr * grad)
        return (loss,)

    compiled = torch.compile(step if case.op == "step" else backward)

    def bind(tensors: Tensors) -> Call:
        operands = [None if t is None else t.detach() for t in tensors]
        if case.op == "backward":
            return lambda: compiled(*operands)
        return lambda: (*compiled(*operands), *(operands[place] for place in places))

    return bind


def leaves_of_their_own(tensors: Tensors) -> Tensors:
    """The same memory under leaves that no one else has.

    Autograd's node for a leaf belongs to the stream that it was made on, and lives as long as any graph that holds it: a peer
    that keeps its graph (torch.compile with CUDA graphs does) would tie a capture to a stream that is not captured.
    """
    return type(tensors)(*(None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors))


def captured(call: Call) -> tuple[torch.cuda.CUDAGraph, object]:
    """A call as a CUDA graph, and the results that a replay writes, without their autograd graph."""
    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = call()
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own behind
    if isinstance(
        results, tuple
    ):  # kept with their graph, they would tie later backward passes to the capture's stream
        return graph, tuple(t.detach() for t in results)
    return graph, results.detach() if isinstance(results, Tensor) else results


def _graph(case: Case, device: torch.device) -> Bind:
    """The eager call, captured once and replayed."""
    on_cuda_only(device, "CUDA graphs")

    def bind(tensors: Tensors) -> Call:
        start = [None if t is None else t.detach().clone() for t in tensors] if case.op == "step" else []
        graph, results = captured(bound(case, leaves_of_their_own(tensors), reference.linear_mse, stock_sgd))
        with torch.no_grad():  # warming up took steps
            for t, values in zip(tensors, start, strict=False):
                if values is not None:
                    t.copy_(values)

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return results

        replay.graph = graph
        return replay

    return bind


def _ours(case: Case, device: torch.device) -> Bind:
    """linear_mse; a step of weight (and bias) is one call, without autograd."""
    if case.op != "step" or "input" in case.wanted:
        return _with_autograd(lambda: gdcore.linear_mse, gdcore.SGD)(case, device)

    def bind(tensors: Tensors) -> Call:
        x, w, y, b = tensors
        updated = [getattr(tensors, name) for name in case.wanted]

        def step() -> tuple[Tensor, ...]:
            return gdcore.linear_mse_sgd_(x, w, y, b, lr=case.lr), *updated

        return step

    return bind


PEERS = (
    Peer(
        STOCK,
        "F.mse_loss(F.linear(input, weight, bias), target), autograd; in a step torch.optim.SGD, fused where it is right",
        _with_autograd(lambda: reference.linear_mse, stock_sgd),
    ),
    Peer(COMPILED, "torch.compile of that loss, default mode", _compiled(None)),
    Peer(TUNED, 'torch.compile(mode="max-autotune") of that loss', _compiled("max-autotune")),
    Peer(GRAPHED_COMPILED, 'torch.compile(mode="reduce-overhead") of that loss', _compiled("reduce-overhead")),
    Peer(FUNCTIONAL, "torch.func.grad_and_value, in a step with the update, compiled as one graph", _functional),
    Peer(
        LIBRARY, "by hand: addmm(target, input, weight.t(), beta=-1), then mm; in a step weight.sub_", by_hand.library
    ),
    Peer(FOLDED, "by hand, the update folded into the product: weight.addmm_(residual.t(), input)", by_hand.folded),
    Peer(GRAPH, "the eager call as a CUDA graph", _graph),
    Peer(JAX, "jax.jit of value_and_grad, in a step with the update", jax_peers.linear),
    Peer(
        OURS,
        "gdcore.linear_mse(input, weight, target, bias), in a step gdcore.linear_mse_sgd_",
        _ours,
    ),
)
