"""What the kernels of whole runs share: the sums of one tile, the update, and the state in registers.

    E = X W + b − Y,    sums (Σ E², XᵀE, Σₙ E),    g = s sums + wd W,    v ← μ v + g,    W ← W − lr v        (W is (K, M))

A tile is X [BLOCK_N, BLOCK_K] and M columns of Y [BLOCK_N], in registers. Parameters are a tuple: M vectors [BLOCK_K], then
the M numbers of the intercept if there is one; gradients and momentum are tuples of the same form, so that an update is
one loop. Every lane of a column of the tile holds the parameter of that column: a sum over rows ends where the next step
wants it, and the update is calculated everywhere instead of being sent. A masked row adds exactly 0.
"""

import triton
import triton.language as tl
from torch import Tensor

from .configs import VECTOR_BYTES


@triton.jit
def load_state(ptr, columns, K: tl.constexpr, M: tl.constexpr, HAS_INTERCEPT: tl.constexpr):
    """Parameters, or momentum, from (K + HAS_INTERCEPT, M), contiguous."""
    values = ()
    for m in tl.static_range(M):
        values += (tl.load(ptr + columns * M + m, mask=columns < K, other=0.0),)
    if HAS_INTERCEPT:
        for m in tl.static_range(M):
            values += (tl.load(ptr + K * M + m),)
    return values


@triton.jit
def store_state(ptr, values, columns, K: tl.constexpr, M: tl.constexpr, HAS_INTERCEPT: tl.constexpr):
    """The opposite of load_state."""
    for m in tl.static_range(M):
        tl.store(ptr + columns * M + m, values[m], mask=columns < K)
    if HAS_INTERCEPT:
        for m in tl.static_range(M):
            tl.store(ptr + K * M + m, values[M + m])


@triton.jit
def load_rows(
    input_ptr, target_ptr, numbers, mask_n, columns, mask_k, step_xn, step_xk, step_yn, step_ym,
    M: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The rows of these numbers (64 bits): X [BLOCK_N, BLOCK_K], then M columns of Y; 0 where masked."""
    ptrs = input_ptr + numbers[:, None] * step_xn + columns[None, :] * step_xk
    values = (tl.load(ptrs, mask=mask_n[:, None] & mask_k[None, :], other=0.0).to(DTYPE),)
    ptrs = target_ptr + numbers * step_yn
    for m in tl.static_range(M):
        values += (tl.load(ptrs + m * step_ym, mask=mask_n, other=0.0).to(DTYPE),)
    return values


@triton.jit
def beside_rows(y, columns, M: tl.constexpr):
    """The same columns as sums over a tile's rows: so each lies where that row's sum will, and the loop exchanges nothing."""
    moved = ()
    for m in tl.static_range(M):
        moved += (tl.sum(tl.where((columns == 0)[None, :], y[m][:, None], 0.0), axis=1),)
    return moved


@triton.jit
def add_rows_of(tiles):
    """The sum over axis 0 of each of these tiles of one shape; two at a time share one exchange between warps."""
    sums = ()
    for i in tl.static_range(0, len(tiles) - 1, 2):
        sums += tl.split(tl.sum(tl.join(tiles[i], tiles[i + 1]), axis=0))
    if len(tiles) % 2 == 1:
        sums += (tl.sum(tiles[len(tiles) - 1], axis=0),)
    return sums


@triton.jit
def tile_sums(
    x,  # [BLOCK_N, BLOCK_K], 0 where masked
    y,  # M vectors [BLOCK_N]
    params,
    mask_n,
    mask_k,
    M: tl.constexpr,
    HAS_INTERCEPT: tl.constexpr,
    WHOLE: tl.constexpr = False,  # no row is masked
):
    """Σ E², then M vectors XᵀE, then the M numbers Σₙ E if there is an intercept."""
    residuals = ()
    products = ()
    squares = tl.zeros_like(y[0])
    for m in tl.static_range(M):
        e = tl.sum(x * params[m][None, :], axis=1)
        if HAS_INTERCEPT:
            e += params[M + m]
        e -= y[m]
        if not WHOLE:
            e = tl.where(mask_n, e, 0.0)
        squares += e * e
        residuals += (e,)
        products += (x * e[:, None],)
    added = add_rows_of(products)
    # The padding stays 0 even where E is infinite: it would make NaN of the next step's E.
    grads = ()
    for m in tl.static_range(M):
        grads += (tl.where(mask_k, added[m], 0.0),)
    others = (squares,)
    if HAS_INTERCEPT:
        others += residuals
    totals = add_rows_of(others)
    return totals[:1] + grads + totals[1:]


@triton.jit
def direction(params, velocity, sums, grad_scale, momentum, weight_decay, HAS_MOMENTUM: tl.constexpr):
    """g, or μ v + g. Without weight decay an infinite parameter adds nothing."""
    steps = ()
    for i in tl.static_range(len(params)):
        g = sums[1 + i] * grad_scale
        g = tl.where(weight_decay != 0, g + weight_decay * params[i], g)
        if HAS_MOMENTUM:
            g = momentum * velocity[i] + g
        steps += (g,)
    return steps


@triton.jit
def moved(params, steps, lr):
    """W − lr v."""
    new = ()
    for i in tl.static_range(len(params)):
        new += (params[i] - lr * steps[i],)
    return new


def packed(input: Tensor) -> Tensor:
    """X itself, or a copy that is contiguous and aligned: how it lies in registers, and if it fits, depends on that."""
    input = input.contiguous()
    return input if input.data_ptr() % VECTOR_BYTES == 0 else input.clone()
