"""A whole run of gradient descent in one program: X and Y are read once and stay in its registers.

    step t:    E = X W + b − Y,    losses[t] = Σ E² / (N M),    g = 2 / (N M) (XᵀE, Σₙ E) + wd (W, b),
               v ← μ v + g,    (W, b) ← (W, b) − lr v                                            full batch, M <= 16

Moves N (K + M) elements in, once, and one number out for each step (K M + M more with a trajectory); 4 N K M FLOPs a
step. What a step takes is the latency of its chain: products, a sum over k, a sum over rows, the update. Launches cost
nothing, there is but one.

Why one program: programs would have to exchange their sums through L2 in every step, some microseconds (see
run_grid.py), while 16 to 32 thousand numbers fit in the registers of one. Why one warp where it is enough: its
sums are shuffles, with no barrier and no shared memory in the loop. A sum over k takes log2 of the lanes of a row, a sum
over rows log2 of the lanes of a column: five shuffles one after the other, whatever the layout.
"""

import triton
import triton.language as tl
from torch import Tensor

from .configs import Config
from .launch import launch
from .run_configs import may_fuse
from .run_tile import beside_rows, direction, load_rows, load_state, moved, packed, store_state, tile_sums


@triton.jit(do_not_specialize=["n_rows", "steps"])
def run_resident_kernel(
    input_ptr,  # (N, K), contiguous
    target_ptr,  # (N, M)
    state_in_ptr,  # (1 + HAS_MOMENTUM, K + HAS_INTERCEPT, M): parameters, momentum
    state_out_ptr,  # the same, written
    losses_ptr,  # (steps,), written
    trajectory_ptr,  # (steps, K + HAS_INTERCEPT, M), written if RECORD
    n_rows,
    steps,
    stride_yn,
    stride_ym,
    lr: tl.float64,
    momentum: tl.float64,
    weight_decay: tl.float64,
    K: tl.constexpr,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_INTERCEPT: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    RECORD: tl.constexpr,
    WHOLE: tl.constexpr,  # N = BLOCK_N: masks of rows take registers
):
    dtype: tl.constexpr = state_in_ptr.dtype.element_ty
    STATE: tl.constexpr = (K + HAS_INTERCEPT) * M
    rows = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    mask_n = rows < n_rows
    mask_k = columns < K
    tile = load_rows(
        input_ptr, target_ptr, tl.cast(rows, tl.int64), mask_n, columns, mask_k, K, 1,
        tl.cast(stride_yn, tl.int64), tl.cast(stride_ym, tl.int64), M, dtype,
    )  # fmt: skip
    x = tile[0]
    y = beside_rows(tile[1:], columns, M)
    params = load_state(state_in_ptr, columns, K, M, HAS_INTERCEPT)
    velocity = load_state(state_in_ptr + STATE, columns, K, M, HAS_INTERCEPT) if HAS_MOMENTUM else params

    loss_scale = tl.cast(1.0 / (tl.cast(n_rows, tl.float64) * M), dtype)
    grad_scale = 2 * loss_scale
    lr = tl.full((), lr, dtype)
    momentum = tl.full((), momentum, dtype)
    weight_decay = tl.full((), weight_decay, dtype)
    for _ in range(steps):
        sums = tile_sums(x, y, params, mask_n, mask_k, M, HAS_INTERCEPT, WHOLE)
        tl.store(losses_ptr, sums[0] * loss_scale)
        losses_ptr += 1
        if RECORD:
            store_state(trajectory_ptr, params, columns, K, M, HAS_INTERCEPT)
            trajectory_ptr += STATE
        change = direction(params, velocity, sums, grad_scale, momentum, weight_decay, HAS_MOMENTUM)
        if HAS_MOMENTUM:
            velocity = change
        params = moved(params, change, lr)

    store_state(state_out_ptr, params, columns, K, M, HAS_INTERCEPT)
    if HAS_MOMENTUM:
        store_state(state_out_ptr + STATE, velocity, columns, K, M, HAS_INTERCEPT)


def run_resident(
    input: Tensor,  # (N, K)
    target: Tensor,  # (N, M)
    state_in: Tensor,  # (2, K + intercept, M), contiguous: parameters, momentum; (1, ...) without momentum
    state_out: Tensor,  # the same shape, written
    losses: Tensor,  # (steps,), contiguous, written
    trajectory: Tensor | None,  # (steps, K + intercept, M), contiguous, written
    *,
    steps: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    intercept: bool,
    config: Config,
) -> None:
    """`steps` full-batch steps in one launch of one program.

    Parameters
    ----------
    input, target
        float64, float32, float16 or bfloat16, any strides. An `input` that is not contiguous and aligned is copied first.
    state_in, state_out
        In the accumulator's dtype. Two tensors, so that a launch can be repeated. Without momentum its half is
        neither read nor written.
    losses : Tensor
        Receives the loss of each step, from before its update.
    trajectory : Tensor or None
        Receives the parameters from before each update.
    config : Config
        `block_n` >= N rows and `block_k` >= K columns: see run_configs.resident_config.

    Bitwise reproducible; a run split into two launches, momentum included, is bitwise the same run.
    """
    n_rows, k = input.shape
    input = packed(input)
    # One program.
    launch(
        run_resident_kernel,
        (1,),
        input,
        target,
        state_in,
        state_out,
        losses,
        state_out if trajectory is None else trajectory,
        n_rows,
        steps,
        target.stride(0),
        target.stride(1),
        lr,
        momentum,
        weight_decay,
        K=k,
        M=target.shape[1],
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        HAS_INTERCEPT=intercept,
        HAS_MOMENTUM=momentum != 0,
        RECORD=trajectory is not None,
        WHOLE=n_rows == config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=may_fuse(config, k, input.dtype),
    )
