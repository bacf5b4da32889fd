"""Who computes: `triton` (CUDA, or interpreted), `cpu` (streaming), `reference` (plain PyTorch). One interface:

forward(input, weight, target, bias, reduction, wanted, plan) -> Forward
backward(grad_output, input, weight, target, forward, reduction, wanted, plan) -> (d_input, d_weight, d_target, d_bias)
step(input, weight, target, bias, update, momentum_buffer, bias_momentum_buffer, plan) -> loss before the update

on 2-D tensors: input (N, K), weight (M, K), target (N, M), bias (M,) or None. Where the plan makes all gradients in the
forward pass, `backward` uses up what it is given. `step` updates weight, bias and buffers in
place, does not synchronise on CUDA and can be captured in a CUDA graph; it runs without grad mode, its plan is the mean's
for gradients of weight and bias, and weight and bias may be of another dtype than the rest: a copy computes then.
"""

import contextvars
import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("auto", "triton", "cpu", "reference")


class Wanted(NamedTuple):
    """Which gradients are wanted."""

    input: bool = False
    weight: bool = True
    target: bool = False
    bias: bool = False


NOTHING = Wanted(False, False, False, False)


class Forward(NamedTuple):
    """What a forward pass leaves for the backward pass. Gradients are for grad_output = 1; see early.py for their powers."""

    loss: Tensor  # 0-d, or (N, M) for reduction="none"
    residual: Tensor | None = None  # (N, M), unscaled
    grad_weight: Tensor | None = None  # (M, K), in the accumulator's dtype
    grad_bias: Tensor | None = None  # (M,), in the accumulator's dtype
    grad_input: Tensor | None = None  # (N, K), in input's dtype
    grad_target: Tensor | None = None  # (N, M), in target's dtype
    input_powers: Tensor | None = None  # (N, 1), of a float16 gradient
    target_powers: Tensor | None = None  # (N, 1), of a float16 gradient


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a backend: it must be one of {', '.join(map(repr, NAMES))}")
    return name


_default = _checked(os.environ.get("GDCORE_BACKEND", "auto"))
_chosen: contextvars.ContextVar[str] = contextvars.ContextVar("gdcore_backend", default=_default)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run what is inside with one backend; the environment variable GDCORE_BACKEND sets the default at import.

    Parameters
    ----------
    name : {"auto", "triton", "cpu", "reference"}
        "auto" takes Triton kernels for CUDA tensors (compute capability 8.0 or later); for CPU tensors the streaming
        path, or stock where that is as fast; stock PyTorch for everything else. "cpu" streams every shape. "triton"
        accepts CPU tensors only when Triton's interpreter is on (TRITON_INTERPRET=1). A backward pass is computed by who
        computed the forward pass; under torch.compile each asks when it runs, on CUDA in a thread of autograd's, which
        sees the default alone.

    Raises
    ------
    ValueError
        If the name is unknown.
    RuntimeError
        At the call that it concerns, if the backend cannot take the tensors' device.
    """
    token = _chosen.set(_checked(name))
    try:
        yield
    finally:
        _chosen.reset(token)


@functools.cache
def triton_is_there() -> bool:
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


@functools.cache
def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter. Triton decides when a kernel is decorated, so once."""
    if not triton_is_there():
        return False
    from gdcore.kernels.common import INTERPRET

    return bool(INTERPRET.value)


@functools.cache
def _kernels_run_on(device: torch.device) -> bool:
    return triton_is_there() and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def stock_may_win() -> bool:
    """Whether a plan may leave small CPU shapes to stock: only where no backend was asked for by name."""
    return _chosen.get() == "auto"


def chosen() -> str:
    """The name that use_backend or the environment gave."""
    return _chosen.get()


def backend_for(device: torch.device) -> str:
    """The name of the backend that computes for tensors on this device."""
    chosen = _chosen.get()
    kind = device.type
    if chosen == "auto":
        if kind == "cpu":
            return "cpu"
        return "triton" if kind == "cuda" and _kernels_run_on(device) else "reference"
    if chosen == "cpu" and kind != "cpu":
        raise RuntimeError(
            f"the cpu backend was asked for, but the tensors are on {device}: move them, or use_backend('auto')"
        )
    if chosen == "triton":
        if not triton_is_there():
            raise RuntimeError("the triton backend was asked for, but Triton is not installed: pip install triton")
        if kind == "cpu" and not interpreting():
            raise RuntimeError(
                "the triton backend was asked for, but the tensors are on the CPU: move them to a CUDA device, "
                "or set TRITON_INTERPRET=1 before Python starts to check the kernels in the interpreter"
            )
        if kind not in ("cpu", "cuda"):
            raise RuntimeError(
                f"the triton backend was asked for, but the tensors are on {device}: it takes CUDA tensors"
            )
        if kind == "cuda" and not _kernels_run_on(device):
            raise RuntimeError(
                f"the triton backend was asked for, but its kernels are not for {device}: they take NVIDIA GPUs of compute "
                "capability 8.0 or later"
            )
    return chosen


@functools.cache
def load(name: str) -> ModuleType:
    """The backend's module; Triton is imported only here."""
    return importlib.import_module(f".{name}", __name__)
