"""The squared norm of all gradients together, in a fixed order: what clipping by the global norm needs first.

    sum over tensors and elements of g²

Reads every gradient once: 4 bytes for each parameter of 4 bytes. The same chunks, tables and kinds as kernels/sgd.py; a
program of a persistent grid takes every so-many-th chunk and leaves one partial sum, and kernels/reduce.py adds those in
order. Squares are added in float32 inside a chunk, beyond it in float64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import SGD_BLOCK, SGD_NORM_PROGRAMS, SGD_TAIL, SGD_WARPS
from .launch import launch
from .reduce import add_rows
from .sgd import (
    FIRST_CHUNK,
    KIND,
    LAYOUT,
    NUMEL,
    TENSOR_COLUMNS,
    accumulator,
    at,
    count,
    kind_flag,
    kind_type,
    load,
    strided_offsets,
)


@triton.jit
def sum_chunk(
    row_ptr,
    grad_address,
    layouts_ptr,
    start,
    n,
    KINDS: tl.constexpr,
    WHICH: tl.constexpr,  # of the kinds
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The sum of squares of one chunk, as float64."""
    G: tl.constexpr = kind_type(KINDS, WHICH, 1)
    ALIGNED: tl.constexpr = kind_flag(KINDS, WHICH, 6)
    dtype: tl.constexpr = accumulator(G)
    lanes = tl.arange(0, BLOCK)
    if kind_flag(KINDS, WHICH, 5):
        _, offsets, _, _ = strided_offsets(start + lanes.to(tl.int64), layouts_ptr + tl.load(row_ptr + LAYOUT))
    else:
        offsets = start + lanes
    g = load(at(grad_address, G, ALIGNED) + offsets, lanes < n - start, MASKED, dtype)
    return tl.sum(g * g).to(tl.float64)


@triton.jit(do_not_specialize=["n_chunks"])
def sgd_norm_kernel(
    chunks_ptr,  # the tables of sgd_kernel
    tensors_ptr,
    layouts_ptr,
    grads_ptr,
    partials_ptr,  # (programs,) float64
    n_chunks,
    KINDS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
):
    total = tl.zeros((), dtype=tl.float64)
    for chunk in range(tl.program_id(0), n_chunks, tl.num_programs(0)):
        tensor = tl.load(chunks_ptr + chunk)
        grad_address = tl.load(grads_ptr + tensor)
        if grad_address != 0:
            row_ptr = tensors_ptr + tensor * TENSOR_COLUMNS
            kind = tl.load(row_ptr + KIND)
            n = tl.load(row_ptr + NUMEL)
            start = (chunk - tl.load(row_ptr + FIRST_CHUNK)) * BLOCK
            for i in tl.static_range(count(KINDS)):
                if kind == i:
                    if n - start >= BLOCK and not kind_flag(KINDS, i, 5):
                        total += sum_chunk(row_ptr, grad_address, layouts_ptr, start, n, KINDS, i, BLOCK, False)
                    else:
                        for first in range(start, tl.minimum(n, start + BLOCK), TAIL):
                            total += sum_chunk(row_ptr, grad_address, layouts_ptr, first, n, KINDS, i, TAIL, True)
    tl.store(partials_ptr + tl.program_id(0), total)


def squared_norm(chunks: Tensor, tensors: Tensor, layouts: Tensor, grads: Tensor, *, kinds: str) -> Tensor:
    """The sum of the squares of all gradients in a table of kernels/sgd.py.

    Parameters
    ----------
    chunks, tensors, layouts, grads, kinds
        As `sgd_update` takes them. Nothing is modified.

    Returns
    -------
    Tensor, shape (1,), float64
        On the tables' device. Bitwise reproducible.
    """
    programs = min(chunks.shape[0], SGD_NORM_PROGRAMS)
    partials = torch.empty(programs, 1, dtype=torch.float64, device=chunks.device)
    launch(
        sgd_norm_kernel,
        (programs,),
        chunks, tensors, layouts, grads, partials, chunks.shape[0],
        KINDS=kinds, BLOCK=SGD_BLOCK, TAIL=SGD_TAIL, num_warps=SGD_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    return add_rows(partials)
