"""kernel[grid](...) without asking Triton each time what it answered before.

Triton's own launch binds the arguments to the signature, finds what each is specialised on, turns that and the options into
a string, and looks the compiled kernel up by it: tens of microseconds of Python for our kernels, where the GPU often needs less
for the work. Here a table leads from the arguments to the compiled kernel. Its key has all that Triton specialises on, and
more: the device; of a tensor its dtype, and whether its address is a multiple of 16; of a descriptor its dtype and block; of a
run-time float that it is one; any other value itself. So equal keys mean one compiled kernel, and a key that is new costs a
launch of Triton's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from .common import INTERPRET
from .tape import note

_ENTRIES = 4096  # for shapes that never come back there is an end
_table: dict[tuple, Callable[..., None]] = {}  # to what starts the kernel with its run-time arguments


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
    """kernel[grid](*args, **named), on the current stream of the current device, which is the tensors'.

    Parameters
    ----------
    kernel
        A function of triton.jit.
    grid : tuple of int
        Programs along up to three axes.
    args, named
        The kernel's run-time arguments in order, a tensor or a descriptor first; its constants and the compiler's options
        (num_warps, ...) by name.

    Notes
    -----
    Where there are hooks, a profiler's for one, Triton launches and calls them. Its settings (environment, `triton.knobs`) and
    the globals that a kernel reads hold as they were at the first launch of a key for all that follow.
    """
    if INTERPRET.value or has_hooks():
        start = functools.partial(kernel[grid], **named)
        note(start, args)
        start(*args)
        return
    first, types = args[0], tuple(map(type, args))
    key = (
        id(kernel),
        grid,
        (first.base if types[0] is TensorDescriptor else first).get_device(),
        types,  # True and 1.0 equal 1
        tuple(
            [
                v if t is int else (v.dtype, not v.data_ptr() & 15) if t in _TENSORS else _kind(v)
                for t, v in zip(types, args, strict=True)
            ]
        ),
        *named,
        *named.values(),
    )
    start = _table.get(key)
    if start is None:
        start = _first(key, kernel, grid, args, named)
    else:
        start(*args)
    note(start, args)


def has_hooks() -> bool:
    """Whether somebody, a profiler for one, wants to hear of launches."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


# By exact type: to ask a tensor whether it is one takes longer than all the rest.
_TENSORS = frozenset((Tensor, torch.nn.Parameter))


def _kind(value: Any) -> Any:
    """What a compiled kernel depends on, of a value that is neither a tensor nor an int."""
    if isinstance(value, TensorDescriptor):
        return value.base.dtype, tuple(value.block_shape), value.padding
    if isinstance(value, Tensor):  # a subclass
        return value.dtype, not value.data_ptr() & 15
    return None if isinstance(value, float) else value


def _first(key: tuple, kernel: Any, grid: tuple[int, ...], args: tuple, named: dict[str, Any]) -> Callable[..., None]:
    """Triton's launch, and a note of what it ran; returns what makes it again."""
    if [p.is_constexpr for p in kernel.params] != [place >= len(args) for place in range(len(kernel.params))]:
        raise TypeError(
            f"{kernel.__name__}: its constants, and they alone, are given by name: the key has their values"
        )
    compiled = kernel[grid](*args, **named)
    if not isinstance(compiled, CompiledKernel):  # it may still be compiling
        return functools.partial(kernel[grid], **named)
    if len(_table) >= _ENTRIES:
        _table.clear()
    run, stream_of, device = (
        functools.partial(compiled.run, *(*grid, 1, 1)[:3]),
        driver.active.get_current_stream,
        key[2],
    )
    constants = tuple(named.get(p.name) for p in kernel.params[len(args) :])

    def start(*args: Any) -> None:
        if kernel.pre_run_hooks:
            kernel[grid](*args, **named)
            return
        stream = stream_of(device)
        run(stream, compiled.function, compiled.packed_metadata, None, None, None, *args, *constants)

    # It keeps what was compiled, without which the code is unloaded, and so the kernel: no other one gets its id.
    _table[key] = start
    return start
