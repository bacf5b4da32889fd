"""One pass for very small K: whole rows in the registers of one thread.

    E = X Wᵀ + b − Y,    loss = s_l Σ E²,    dW = s_g EᵀX,    db = s_g Σₙ E          K <= 16, M <= 4, M K <= 32

X and Y are read once, W and b once a program: N (K + M) elements in, N M out if the residual is stored, about 4 N K M
FLOPs. That is less than one FLOP a byte for each output, so bandwidth is all that counts.

Why not a tile [rows, K]: below K = 16 the sum over k would be shuffles between a few lanes, and a K that is no power of
two would pad the tile and load element by element. Here a lane owns ROWS whole rows, with ROWS chosen so that ROWS * K
elements are a multiple of 16 bytes (8 where that would be too many registers: half precision, odd K from 9 on); it
reads them as such vectors whatever K is, and splits those in registers.
Sums over k and over rows stay inside the lane until the program's last tile: no shuffle, no padding, no shared memory
in the loop. The grid is persistent; a program takes tiles p, p + programs, ... A tile is LANES * ROWS rows. Whole tiles
are read without masks (a mask would break the vectors); the last, partial one is read one row a lane.
"""

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .configs import VECTOR_BYTES, Config, accumulator_dtype, rows_group
from .launch import launch
from .reduce import add_rows
from .tape import empty

SUMS_AT_ONCE = 8  # accumulators that share one reduction over the lanes


@triton.jit
def split_columns(block, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """[LANES, WIDTH] -> a tuple of WIDTH vectors [LANES]."""
    if WIDTH == 1:
        parts = (tl.reshape(block, (LANES,)),)
    elif WIDTH == 2:
        parts = tl.split(block)
    else:
        even, odd = tl.split(tl.reshape(block, (LANES, WIDTH // 2, 2)))
        even_parts = split_columns(even, LANES, WIDTH // 2)
        odd_parts = split_columns(odd, LANES, WIDTH // 2)
        parts = ()
        for i in tl.static_range(WIDTH // 2):
            parts += (even_parts[i], odd_parts[i])
    return parts


@triton.jit
def join_columns(parts, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """A tuple of WIDTH vectors [LANES] -> [LANES, WIDTH]."""
    if WIDTH == 1:
        block = tl.reshape(parts[0], (LANES, 1))
    else:
        even_parts = ()
        odd_parts = ()
        for i in tl.static_range(WIDTH // 2):
            even_parts += (parts[2 * i],)
            odd_parts += (parts[2 * i + 1],)
        even = join_columns(even_parts, LANES, WIDTH // 2)
        odd = join_columns(odd_parts, LANES, WIDTH // 2)
        block = tl.reshape(tl.join(even, odd), (LANES, WIDTH))
    return block


@triton.jit
def load_group(ptr, lanes, LANES: tl.constexpr, COUNT: tl.constexpr, VECTOR: tl.constexpr, DTYPE: tl.constexpr):
    """COUNT consecutive elements for each lane, as a tuple of COUNT vectors, read VECTOR elements at a time."""
    values = ()
    for first in tl.static_range(0, COUNT, VECTOR):
        offsets = lanes[:, None] * COUNT + (first + tl.arange(0, VECTOR))[None, :]
        values += split_columns(tl.load(ptr + offsets).to(DTYPE), LANES, VECTOR)
    return values


@triton.jit
def store_group(ptr, lanes, values, LANES: tl.constexpr, COUNT: tl.constexpr, VECTOR: tl.constexpr):
    """The opposite of load_group."""
    for first in tl.static_range(0, COUNT, VECTOR):
        part = ()
        for i in tl.static_range(VECTOR):
            part += (values[first + i],)
        offsets = lanes[:, None] * COUNT + (first + tl.arange(0, VECTOR))[None, :]
        tl.store(ptr + offsets, join_columns(part, LANES, VECTOR))


@triton.jit
def row_residual(x, weight, bias, target, m: tl.constexpr, K: tl.constexpr):
    """One element of E for each lane: x is a tuple of K vectors, weight a tuple of M K scalars."""
    e = x[0] * weight[m * K]
    for k in tl.static_range(1, K):
        e += x[k] * weight[m * K + k]
    return e + bias - target


@triton.jit
def add_row(sums, x, e, K: tl.constexpr, M: tl.constexpr, WANT_GRADS: tl.constexpr):
    """The sums (loss, db, dW) after one more row for each lane; e is a tuple of M vectors."""
    loss = sums[0]
    for m in tl.static_range(M):
        loss += e[m] * e[m]
    new = (loss,)
    if WANT_GRADS:
        for m in tl.static_range(M):
            new += (sums[1 + m] + e[m],)
        for m in tl.static_range(M):
            for k in tl.static_range(K):
                new += (sums[1 + M + m * K + k] + e[m] * x[k],)
    return new


@triton.jit(do_not_specialize=["n_rows", "stride_wm", "stride_wk", "stride_b"])
def one_pass_rows_kernel(
    input_ptr,  # (N, K), contiguous
    weight_ptr,  # (M, K)
    target_ptr,  # (N, M), contiguous
    bias_ptr,  # (M,), read if HAS_BIAS
    residual_ptr,  # (N, M), contiguous, written if STORE_RESIDUAL
    sums_ptr,  # (programs, LENGTH): one row for each program
    n_rows,
    stride_wm,
    stride_wk,
    stride_b,
    loss_scale: tl.float64,
    grad_scale: tl.float64,
    K: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,  # rows of a lane
    LANES: tl.constexpr,  # lanes of a tile
    VECTOR_X: tl.constexpr,  # elements of one load of X, Y; of one store of E
    VECTOR_Y: tl.constexpr,
    VECTOR_E: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_GRADS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    SUMS_AT_ONCE: tl.constexpr,
):
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    LENGTH: tl.constexpr = 1 + M + M * K if WANT_GRADS else 1
    lanes = tl.arange(0, LANES)
    step_wm = tl.cast(stride_wm, tl.int64)
    step_wk = tl.cast(stride_wk, tl.int64)
    weight = ()
    bias = ()
    for m in tl.static_range(M):
        if HAS_BIAS:
            bias += (tl.load(bias_ptr + m * stride_b).to(dtype),)
        else:
            bias += (0.0,)
        for k in tl.static_range(K):
            weight += (tl.load(weight_ptr + m * step_wm + k * step_wk).to(dtype),)
    sums = ()
    for _ in tl.static_range(LENGTH):
        sums += (tl.zeros((LANES,), dtype=dtype),)

    n_tiles = n_rows // (LANES * ROWS)
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * (LANES * ROWS)
        x = load_group(input_ptr + first * K, lanes, LANES, ROWS * K, VECTOR_X, dtype)
        y = load_group(target_ptr + first * M, lanes, LANES, ROWS * M, VECTOR_Y, dtype)
        residual = ()
        for r in tl.static_range(ROWS):
            row = ()
            for k in tl.static_range(K):
                row += (x[r * K + k],)
            e = ()
            for m in tl.static_range(M):
                e += (row_residual(row, weight, bias[m], y[r * M + m], m, K),)
            sums = add_row(sums, row, e, K, M, WANT_GRADS)
            residual += e
        if STORE_RESIDUAL:
            store_group(residual_ptr + first * M, lanes, residual, LANES, ROWS * M, VECTOR_E)

    # The partial tile goes to the program whose turn it is: one row a lane, at most ROWS rounds.
    mine = (tl.program_id(0) == n_tiles % tl.num_programs(0)).to(tl.int32)
    done = n_tiles * (LANES * ROWS)
    for i in range(tl.cdiv(n_rows - done, LANES) * mine):
        first = tl.cast(done, tl.int64) + i * LANES
        mask = lanes < n_rows - first
        row = ()
        for k in tl.static_range(K):
            row += (tl.load(input_ptr + first * K + lanes * K + k, mask=mask, other=0.0).to(dtype),)
        e = ()
        for m in tl.static_range(M):
            offsets = lanes * M + m
            y = tl.load(target_ptr + first * M + offsets, mask=mask, other=0.0).to(dtype)
            e += (tl.where(mask, row_residual(row, weight, bias[m], y, m, K), 0.0),)
            if STORE_RESIDUAL:
                tl.store(residual_ptr + first * M + offsets, e[m], mask=mask)
        sums = add_row(sums, row, e, K, M, WANT_GRADS)

    # Several accumulators are joined and added over the lanes together: one exchange between warps for all of them.
    WIDTH: tl.constexpr = SUMS_AT_ONCE if LENGTH >= SUMS_AT_ONCE else triton.next_power_of_2(LENGTH)
    for begin in tl.static_range(0, LENGTH, WIDTH):
        part = ()
        for i in tl.static_range(WIDTH):
            part += (sums[begin + i] if begin + i < LENGTH else tl.zeros((LANES,), dtype=dtype),)
        total = tl.sum(join_columns(part, LANES, WIDTH), axis=0)
        columns = begin + tl.arange(0, WIDTH)
        total = tl.where(columns == 0, total * loss_scale, total * grad_scale)
        tl.store(sums_ptr + tl.program_id(0) * LENGTH + columns, total, mask=columns < LENGTH)


def vector_for(count: int, element_size: int) -> int:
    """Elements of one access when a lane owns `count` consecutive ones."""
    return math.gcd(count, VECTOR_BYTES // element_size)


def rows_arguments(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    sums: Tensor,  # (programs, LENGTH), written
    *,
    config: Config,
    loss_scale: float,
    grad_scale: float,
    want_grads: bool,
    input_precision: str = "ieee",
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the kernel is launched with: its run-time arguments in order, the others by name."""
    n_rows, k = input.shape
    m = weight.shape[0]
    rows, vector_x = rows_group(k, input.element_size())
    return (
        input,
        weight,
        target,
        input if bias is None else bias,
        input if residual is None else residual,
        sums,
        n_rows,
        weight.stride(0),
        weight.stride(1),
        0 if bias is None else bias.stride(0),
        loss_scale,
        grad_scale,
    ), {
        "K": k,
        "M": m,
        "ROWS": rows,
        "LANES": config.block_n,
        "VECTOR_X": vector_x,
        "VECTOR_Y": vector_for(rows * m, target.element_size()),
        "VECTOR_E": 1 if residual is None else vector_for(rows * m, residual.element_size()),
        "HAS_BIAS": bias is not None,
        "WANT_GRADS": want_grads,
        "STORE_RESIDUAL": residual is not None,
        "SUMS_AT_ONCE": SUMS_AT_ONCE,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }


def one_pass_rows(
    input: Tensor,  # (N, K), contiguous
    weight: Tensor,  # (M, K)
    target: Tensor,  # (N, M), contiguous
    bias: Tensor | None,  # (M,)
    *,
    config: Config,
    programs: int,
    loss_scale: float,
    grad_scale: float,
    want_grads: bool,
    residual: Tensor | None,  # (N, M), contiguous, written
    input_precision: str = "ieee",
) -> Tensor:
    """Loss, bias gradient and weight gradient from one read of X and Y; for K <= 16, M <= 4, M K <= 32.

    Parameters
    ----------
    input, weight, target, bias
        `input` and `target` contiguous; `weight` and `bias` with any strides. float64, float32, float16 or bfloat16.
    config : Config
        `block_n` lanes a tile.
    programs : int
        Size of the persistent grid. With 1, the result is written by the one launch.
    loss_scale, grad_scale : float
        What the sum of squares and the two gradients are multiplied by.
    want_grads : bool
        If False, only the loss is computed.
    residual : Tensor or None
        If given, receives E, unscaled, in its own dtype. The only argument that is written.
    input_precision : str
        Unused: there is no tensor-core product here.

    Returns
    -------
    Tensor, shape (1 + M + M K,), or (1,) without gradients
        [loss, grad_bias, grad_weight], float32 (float64 for float64). Bitwise reproducible for one `programs`.
    """
    m, k = weight.shape
    length = 1 + m + m * k if want_grads else 1
    shape = length if programs == 1 else (programs, length)
    sums = empty(shape, dtype=accumulator_dtype(input.dtype), device=input.device)
    arguments, options = rows_arguments(
        input,
        weight,
        target,
        bias,
        residual,
        sums,
        config=config,
        loss_scale=loss_scale,
        grad_scale=grad_scale,
        want_grads=want_grads,
        input_precision=input_precision,
    )
    # A persistent grid: program p takes tiles p, p + programs, ...
    launch(one_pass_rows_kernel, (programs,), *arguments, **options)
    return sums if programs == 1 else add_rows(sums)
