"""One SGD step of any number of tensors, of all sizes, types and hyperparameters, in one launch.

    g ← s g_stored + λ w                                    s = ±1 / grad_scale · min(1, max_norm / (norm + 1e-6))
    v ← g in a tensor's first step, else μ v + (1 − τ) g
    w ← w − lr (g + μ v if nesterov, else v, else g)        without momentum there is no v

Every number is read once and written once: bytes for each parameter of 4 bytes are 12 without momentum (w and g in, w
out), 20 with it (v in and out), 4 more for the norm (kernels/sgd_norm.py reads g) and 4 more where g is zeroed. A
bfloat16 parameter with a float32 master and momentum takes 22. There are at most 8 FLOPs a number: bandwidth is all.

A tensor is cut into chunks of BLOCK numbers and each program takes one chunk; a map leads from the chunk to its tensor,
and a row of a table from the tensor to addresses, size and group. Since nothing about a tensor is an argument, one launch
serves all of them. The types, and with them the code, differ by KINDS, the few kinds of tensor that are there: each has
its own branch, and a branch costs nothing where there is one kind only. Whole chunks are read without masks, in wide
accesses; the end of a tensor and tensors that are not flat go TAIL numbers at a time, one for each thread.

What must be known of the past, whether a tensor has been stepped before, is a counter for each chunk. A program reads
and writes its own alone, so it needs no host, and works in a CUDA graph that is replayed.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import TRITON_TYPES, narrow
from .configs import SGD_BLOCK, SGD_TAIL, SGD_WARPS
from .launch import launch
from .stochastic import random_16_bits, round_stochastically

# Columns of a row of the table of tensors. Addresses are in bytes; 0 where there is no such tensor.
PARAM, MOMENTUM, MASTER, NUMEL, FIRST_CHUNK, KIND, GROUP, LAYOUT = map(tl.constexpr, range(8))
TENSOR_COLUMNS = tl.constexpr(8)

# Columns of a row of the table of groups: bits of a float64, or an address and whether float64 lies there.
LR, LR_ADDRESS, LR_WIDE, DECAY, DECAY_ADDRESS, DECAY_WIDE, MU, UNDAMPED, NESTEROV, SIGN = map(tl.constexpr, range(10))
GROUP_COLUMNS = tl.constexpr(10)

# Columns of the layout of a tensor that is not flat: for each dimension its size and four strides.
LAYOUT_COLUMNS = tl.constexpr(5)

NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in TRITON_TYPES}
TYPES = {name: TRITON_TYPES[dtype] for dtype, name in NAMES.items()} | {"none": None}


class Kind(NamedTuple):
    """What the code for a tensor depends on."""

    param: torch.dtype
    grad: torch.dtype
    momentum: torch.dtype | None = None
    master: bool = False  # a float32 copy that is updated in place of the parameter
    stochastic: bool = False  # the parameter is rounded stochastically
    strided: bool = False  # not all of these tensors lie in memory in the same order without gaps
    aligned: bool = True  # all addresses are multiples of 16

    def __str__(self) -> str:
        """As the kernel takes it: a constexpr must be a plain value."""
        types = [NAMES[dtype] if dtype else "none" for dtype in (self.param, self.grad, self.momentum)]
        return " ".join(types + [str(int(flag)) for flag in self[3:]])


@triton.constexpr_function
def count(kinds):
    """How many kinds there are."""
    return len(kinds.split(";"))


@triton.constexpr_function
def kind_type(kinds, i, column):
    """A Triton type, or None."""
    return TYPES[kinds.split(";")[i].split()[column]]


@triton.constexpr_function
def kind_flag(kinds, i, column):
    """One of the flags."""
    return kinds.split(";")[i].split()[column] == "1"


@triton.constexpr_function
def accumulator(dtype):
    """What is calculated in."""
    return tl.float64 if dtype.is_fp64() else tl.float32


@triton.jit
def at(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A pointer. What the compiler may assume of it makes the difference between wide and narrow accesses."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def load(pointers, mask, MASKED: tl.constexpr, DTYPE: tl.constexpr):
    """Whole chunks are read without a mask: it would break the wide accesses."""
    if MASKED:
        values = tl.load(pointers, mask=mask, other=0.0)
    else:
        values = tl.load(pointers)
    return values.to(DTYPE)


@triton.jit
def store(pointers, values, mask, MASKED: tl.constexpr):
    """The opposite of load."""
    if MASKED:
        tl.store(pointers, narrow(values, pointers.dtype.element_ty), mask=mask)
    else:
        tl.store(pointers, narrow(values, pointers.dtype.element_ty))


@triton.jit
def bits_to_float(pointer):
    """A float64 in a table of int64."""
    return tl.load(pointer).to(tl.float64, bitcast=True)


@triton.jit
def hyperparameter(pointer):
    """A float64 from the table, or from the tensor that a scheduler may change: (value, address, wide)."""
    value = bits_to_float(pointer)
    address = tl.load(pointer + 1)
    if address != 0:
        if tl.load(pointer + 2) != 0:
            value = tl.load(address.to(tl.pointer_type(tl.float64)))
        else:
            value = tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return value


@triton.jit
def strided_offsets(index, layout_ptr):
    """Offsets in parameter, gradient, momentum and master of the elements with these numbers in row-major order."""
    param = index * 0
    grad = index * 0
    momentum = index * 0
    master = index * 0
    rest = index
    dims = tl.load(layout_ptr)
    row_ptr = layout_ptr + 1
    for _ in range(dims):
        size = tl.load(row_ptr)
        i = rest % size
        rest = rest // size
        param += i * tl.load(row_ptr + 1)
        grad += i * tl.load(row_ptr + 2)
        momentum += i * tl.load(row_ptr + 3)
        master += i * tl.load(row_ptr + 4)
        row_ptr += LAYOUT_COLUMNS
    return param, grad, momentum, master


@triton.jit
def update_chunk(
    row_ptr,
    grad_address,
    group_ptr,
    layouts_ptr,
    grad_scale_ptr,
    found_inf_ptr,
    norm_ptr,
    max_norm,
    seed,
    chunk,
    step,
    start,
    n,
    KINDS: tl.constexpr,
    WHICH: tl.constexpr,  # of the kinds
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    ZERO_GRAD: tl.constexpr,
):
    """Numbers start to start + BLOCK, of n, of one kind of tensor."""
    P: tl.constexpr = kind_type(KINDS, WHICH, 0)
    G: tl.constexpr = kind_type(KINDS, WHICH, 1)
    V: tl.constexpr = kind_type(KINDS, WHICH, 2)
    HAS_MASTER: tl.constexpr = kind_flag(KINDS, WHICH, 3)
    STOCHASTIC: tl.constexpr = kind_flag(KINDS, WHICH, 4)
    STRIDED: tl.constexpr = kind_flag(KINDS, WHICH, 5)
    ALIGNED: tl.constexpr = kind_flag(KINDS, WHICH, 6)
    dtype: tl.constexpr = accumulator(P)

    lanes = tl.arange(0, BLOCK)
    mask = lanes < n - start
    if STRIDED:
        layout_ptr = layouts_ptr + tl.load(row_ptr + LAYOUT)
        at_p, at_g, at_v, at_m = strided_offsets(start + lanes.to(tl.int64), layout_ptr)
    else:
        at_p = start + lanes
        at_g = at_p
        at_v = at_p
        at_m = at_p
    p_ptr = at(tl.load(row_ptr + PARAM), P, ALIGNED) + at_p
    g_ptr = at(grad_address, G, ALIGNED) + at_g
    w = load(p_ptr, mask, MASKED, dtype)
    g = load(g_ptr, mask, MASKED, dtype)
    if HAS_MASTER:
        m_ptr = at(tl.load(row_ptr + MASTER), tl.float32, ALIGNED) + at_m
        master = load(m_ptr, mask, MASKED, dtype)
        # Something else may have written the parameter since: then the master follows.
        w = tl.where(narrow(master, P).to(dtype) == w, master, w)
    if V is not None:
        v_ptr = at(tl.load(row_ptr + MOMENTUM), V, ALIGNED) + at_v
        v = load(v_ptr, mask, MASKED, dtype)
    veto = tl.load(found_inf_ptr) != 0

    clip = tl.cast(max_norm, dtype) / (tl.load(norm_ptr).to(dtype) + 1e-6)
    clip = tl.where(clip > 1, 1.0, clip)  # not a minimum: of a norm that is NaN the gradients are NaN, as stock's
    scale = bits_to_float(group_ptr + SIGN).to(dtype) * clip / tl.load(grad_scale_ptr).to(dtype)
    lr = hyperparameter(group_ptr + LR).to(dtype)
    decay = hyperparameter(group_ptr + DECAY).to(dtype)

    g = g * scale
    g = tl.where(decay != 0, g + decay * w, g)  # not 0 * w, which of an infinite w is NaN
    if V is not None:
        mu = bits_to_float(group_ptr + MU).to(dtype)
        undamped = bits_to_float(group_ptr + UNDAMPED).to(dtype)
        first = step == 0
        new_v = tl.where(first, g, mu * v + undamped * g)
        g = tl.where(tl.load(group_ptr + NESTEROV) != 0, g + mu * new_v, new_v)
        # A step that is not taken leaves the momentum as it was: before the first step that is nothing, so zero.
        store(v_ptr, tl.where(veto, tl.where(first, 0.0, v), new_v), mask, MASKED)
    new_w = tl.where(veto, w, w - lr * g)
    if HAS_MASTER:
        store(m_ptr, new_w, mask, MASKED)
    if STOCHASTIC:
        rounded = round_stochastically(new_w, random_16_bits(seed, chunk, step, start, BLOCK), P)
        new_w = tl.where(veto, w, rounded)
    store(p_ptr, new_w, mask, MASKED)
    if ZERO_GRAD:
        store(g_ptr, tl.zeros((BLOCK,), dtype=dtype), mask, MASKED)


@triton.jit(do_not_specialize=["seed"])
def sgd_kernel(
    chunks_ptr,  # (chunks,) int32: the number of each chunk's tensor
    tensors_ptr,  # (tensors, TENSOR_COLUMNS) int64
    layouts_ptr,  # int64: for each strided tensor its dimensions, then LAYOUT_COLUMNS numbers for each, the last first
    grads_ptr,  # (tensors,) int64: addresses; 0 where there is no gradient, and the tensor is left alone
    groups_ptr,  # (groups, GROUP_COLUMNS) int64
    steps_ptr,  # (chunks,) int32: steps that each chunk has taken
    grad_scale_ptr,  # (1,) what the gradients have been multiplied by
    found_inf_ptr,  # (1,) not 0: the step is not taken
    norm_ptr,  # (1,) of all gradients together
    max_norm: tl.float64,
    seed,
    KINDS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    ZERO_GRAD: tl.constexpr,
):
    chunk = tl.program_id(0)
    tensor = tl.load(chunks_ptr + chunk)
    grad_address = tl.load(grads_ptr + tensor)
    if grad_address != 0:
        row_ptr = tensors_ptr + tensor * TENSOR_COLUMNS
        kind = tl.load(row_ptr + KIND)
        n = tl.load(row_ptr + NUMEL)
        start = (chunk - tl.load(row_ptr + FIRST_CHUNK)) * BLOCK
        group_ptr = groups_ptr + tl.load(row_ptr + GROUP) * GROUP_COLUMNS
        step = tl.load(steps_ptr + chunk)
        for i in tl.static_range(count(KINDS)):
            if kind == i:
                # fmt: off
                if n - start >= BLOCK and not kind_flag(KINDS, i, 5):
                    update_chunk(row_ptr, grad_address, group_ptr, layouts_ptr, grad_scale_ptr, found_inf_ptr, norm_ptr,
                                 max_norm, seed, chunk, step, start, n, KINDS, i, BLOCK, False, ZERO_GRAD)
                else:
                    for first in range(start, tl.minimum(n, start + BLOCK), TAIL):
                        update_chunk(row_ptr, grad_address, group_ptr, layouts_ptr, grad_scale_ptr, found_inf_ptr,
                                     norm_ptr, max_norm, seed, chunk, step, first, n, KINDS, i, TAIL, True, ZERO_GRAD)
                # fmt: on
        tl.store(steps_ptr + chunk, tl.where(tl.load(found_inf_ptr) != 0, step, step + 1))


def sgd_update(
    chunks: Tensor,  # (chunks,) int32
    tensors: Tensor,  # (tensors, 8) int64
    layouts: Tensor,  # int64
    grads: Tensor,  # (tensors,) int64
    groups: Tensor,  # (groups, 10) int64
    steps: Tensor,  # (chunks,) int32, read and written
    grad_scale: Tensor,  # (1,)
    found_inf: Tensor,  # (1,)
    norm: Tensor,  # (1,)
    *,
    max_norm: float,
    seed: int,
    kinds: str,
    zero_grad: bool,
) -> None:
    """Step every tensor of the table; all arguments on one device.

    Parameters
    ----------
    chunks, tensors, layouts, grads, groups
        The tables that the kernel describes. The tensors that they name must live until the launch has run.
    steps : Tensor
        One counter for each chunk, read and written.
    grad_scale, found_inf, norm : Tensor
        One number each, float32 or float64.
    max_norm : float
        Inf leaves the gradients as they are.
    seed : int
        Of stochastic rounding.
    kinds : str
        `Kind`s as text, joined by semicolons; a row's KIND counts them.
    zero_grad : bool
        Whether gradients are set to zero once they are read, also where the step is not taken.
    """
    # One program for each chunk.
    launch(
        sgd_kernel,
        (chunks.shape[0],),
        chunks, tensors, layouts, grads, groups, steps, grad_scale, found_inf, norm, max_norm, seed,
        KINDS=kinds, BLOCK=SGD_BLOCK, TAIL=SGD_TAIL, ZERO_GRAD=zero_grad, num_warps=SGD_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
