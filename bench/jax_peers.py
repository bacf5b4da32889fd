"""The same in JAX, where it is installed: jitted, on JAX's default device, which must be the one that is measured."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .peers import Bind, Call, LeftOut

if TYPE_CHECKING:
    from .cases import Case, Tensors
    from .run_cases import RunCase, Start


def _jax(device: torch.device, dtype: torch.dtype) -> Any:
    """The module, set up; raises LeftOut where it cannot do the same work."""
    if importlib.util.find_spec("jax") is None:
        raise LeftOut("JAX is not installed")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes three quarters of a GPU's memory
    import jax

    platform = jax.default_backend()
    if platform != {"cuda": "gpu"}.get(device.type, device.type):
        raise LeftOut(f"this JAX runs on {platform}, what is measured here is {device.type}")
    if dtype is torch.float64:
        raise LeftOut("JAX computes in float32 unless a whole process is switched to 64 bits")
    return jax


def _array(jax: Any, tensor: Tensor | None) -> Any:
    """A copy in JAX's memory: what JAX may donate must not be ours."""
    return None if tensor is None else jax.numpy.array(jax.dlpack.from_dlpack(tensor.detach().contiguous()), copy=True)


def _loss(jax: Any, float32_products: str = "highest") -> Any:
    def loss(x: Any, w: Any, y: Any, b: Any) -> Any:
        prediction = jax.numpy.matmul(x, w.T, precision=float32_products)
        return jax.numpy.square((prediction if b is None else prediction + b) - y).mean()

    return loss


def _waiting(jax: Any, call: Any) -> Call:
    """The call, which returns before its results are there, with `wait` for the last of them."""
    call.last = None
    call.wait = lambda: jax.block_until_ready(call.last)
    return call


def linear(case: Case, device: torch.device) -> Bind:
    """linear_mse: the loss, its gradients, or a step."""
    jax = _jax(device, case.dtype)
    places = tuple(("input", "weight", "target", "bias").index(name) for name in case.wanted)
    loss = _loss(jax)
    gradients = jax.value_and_grad(loss, argnums=places)

    def step(x: Any, w: Any, y: Any, b: Any) -> Any:
        operands = [x, w, y, b]
        value, grads = gradients(*operands)
        return value, *(operands[place] - case.lr * grad for place, grad in zip(places, grads, strict=True))

    def backward(*operands: Any) -> Any:
        value, grads = gradients(*operands)
        return value, *grads

    compiled = jax.jit({"forward": lambda *operands: (loss(*operands),), "backward": backward, "step": step}[case.op])

    def bind(tensors: Tensors) -> Call:
        operands = [_array(jax, t) for t in tensors]

        def call() -> Any:
            call.last = found = compiled(*operands)
            if case.op == "step":
                for place, value in zip(places, found[1:], strict=True):
                    operands[place] = value
            return found

        return _waiting(jax, call)

    return bind


def run(case: RunCase, device: torch.device) -> Bind:
    """A whole training run as one jitted loop over the batches' rows."""
    jax = _jax(device, torch.float32)
    loss = _loss(jax)

    @jax.jit
    def train(x: Any, y: Any, parameters: Any, rows: Any) -> Any:
        def update(parameters: Any, chosen: Any) -> Any:
            xs, ys = (x, y) if chosen is None else (x[chosen], y[chosen])
            value, grads = jax.value_and_grad(lambda w, b=None: loss(xs, w, ys, b), argnums=places)(*parameters)
            return tuple(p - case.lr * grad for p, grad in zip(parameters, grads, strict=True)), value

        parameters, losses = jax.lax.scan(update, parameters, rows, length=case.updates)
        return losses, *parameters

    places = tuple(range(len(case.wanted)))
    if case.batch and case.n % case.batch:
        raise LeftOut("a jitted loop needs batches of one size, the last one here is shorter")

    def bind(start: Start) -> Call:
        x, y, *parameters = (_array(jax, t) for t in (start.x, start.y, *start.parameters))
        rows = None if start.rows is None else _array(jax, torch.stack(start.rows))

        def call() -> Any:
            call.last = train(x, y, tuple(parameters), rows)
            return call.last

        return _waiting(jax, call)

    return bind
