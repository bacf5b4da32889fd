"""A run of mini-batch gradient descent in one program: batches are gathered straight from X and Y, parameters stay in registers.

    step s:    batch j = s mod P of epoch e = s div P,  P = ceil(N / B),  rows order[e N + j B : e N + min((j + 1) B, N)]
               E = X W + b − Y over those rows,    losses[t] = Σ E² / (rows M),    g = 2 / (rows M) (XᵀE, Σₙ E) + wd (W, b),
               v ← μ v + g,    (W, b) ← (W, b) − lr v                                           M <= 16; X and Y of any size

The last batch of an epoch may be short; its mean is over its own rows. A step reads B row numbers and B (K + M) elements
and writes one number (K M + M more with a trajectory).

Why one program: a batch that fits in its registers is too little work to share (run_resident.py says more). The rows of a
batch lie anywhere, so they cost a trip to memory, and their numbers another one before it. Neither depends on the
parameters: the numbers are read two steps ahead and the rows one step ahead, into registers, and arrive while the steps
before are calculated.
"""

import triton
import triton.language as tl
from torch import Tensor

from .configs import Config
from .launch import launch
from .one_pass_vector import stride_units
from .run_configs import may_fuse
from .run_tile import direction, load_rows, load_state, moved, store_state, tile_sums


@triton.jit
def next_batch(base, first, batch_size, n_rows):
    """Where the following batch begins: at `first` of the epoch whose rows are named from order[base] on."""
    first += batch_size
    ends = first >= n_rows
    return tl.where(ends, base + n_rows, base), tl.where(ends, 0, first)


@triton.jit(do_not_specialize=["n_rows", "steps", "first_step", "batch_size"])
def run_batches_kernel(
    input_ptr,  # (N, K)
    target_ptr,  # (N, M)
    order_ptr,  # row numbers, N for each epoch
    state_in_ptr,  # (1 + HAS_MOMENTUM, K + HAS_INTERCEPT, M): parameters, momentum
    state_out_ptr,  # the same, written
    losses_ptr,  # (steps,), written
    trajectory_ptr,  # (steps, K + HAS_INTERCEPT, M), written if RECORD
    n_rows,
    steps,
    first_step,
    batch_size,
    stride_xn,  # in units of UNIT_XN elements
    stride_xk,  # in units of UNIT_XK elements
    stride_yn,
    stride_ym,
    lr: tl.float64,
    momentum: tl.float64,
    weight_decay: tl.float64,
    K: tl.constexpr,
    M: tl.constexpr,
    UNIT_XN: tl.constexpr,
    UNIT_XK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_INTERCEPT: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    RECORD: tl.constexpr,
):
    dtype: tl.constexpr = state_in_ptr.dtype.element_ty
    STATE: tl.constexpr = (K + HAS_INTERCEPT) * M
    rows = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    mask_k = columns < K
    step_xn = tl.cast(stride_xn, tl.int64) * UNIT_XN
    step_xk = tl.cast(stride_xk, tl.int64) * UNIT_XK
    step_yn = tl.cast(stride_yn, tl.int64)
    step_ym = tl.cast(stride_ym, tl.int64)
    params = load_state(state_in_ptr, columns, K, M, HAS_INTERCEPT)
    velocity = load_state(state_in_ptr + STATE, columns, K, M, HAS_INTERCEPT) if HAS_MOMENTUM else params
    lr = tl.full((), lr, dtype)
    momentum = tl.full((), momentum, dtype)
    weight_decay = tl.full((), weight_decay, dtype)

    n_rows = tl.cast(n_rows, tl.int64)
    batch_size = tl.cast(batch_size, tl.int64)
    per_epoch = (n_rows + batch_size - 1) // batch_size
    last = n_rows - (per_epoch - 1) * batch_size  # rows of an epoch's last batch
    full_scale = tl.cast(1.0 / (tl.cast(batch_size, tl.float64) * M), dtype)
    last_scale = tl.cast(1.0 / (tl.cast(last, tl.float64) * M), dtype)

    # The rows of step 0 and the numbers of step 1.
    epoch = tl.cast(first_step, tl.int64) // per_epoch
    base = epoch * n_rows
    first = (tl.cast(first_step, tl.int64) - epoch * per_epoch) * batch_size
    count = tl.minimum(batch_size, n_rows - first)
    mask_n = rows < count
    numbers = tl.cast(tl.load(order_ptr + (base + first) + rows, mask=mask_n, other=0), tl.int64)
    tile = load_rows(
        input_ptr, target_ptr, numbers, mask_n, columns, mask_k, step_xn, step_xk, step_yn, step_ym, M, dtype
    )  # fmt: skip
    base, first = next_batch(base, first, batch_size, n_rows)
    next_count = tl.where(steps > 1, tl.minimum(batch_size, n_rows - first), 0)
    numbers = tl.cast(tl.load(order_ptr + (base + first) + rows, mask=rows < next_count, other=0), tl.int64)
    for t in range(steps):
        # Ahead: the rows of step t + 1, the numbers of step t + 2; none beyond the last step.
        mask_next = rows < next_count
        next_tile = load_rows(
            input_ptr, target_ptr, numbers, mask_next, columns, mask_k, step_xn, step_xk, step_yn, step_ym, M, dtype
        )  # fmt: skip
        base, first = next_batch(base, first, batch_size, n_rows)
        far_count = tl.where(t < steps - 2, tl.minimum(batch_size, n_rows - first), 0)
        numbers = tl.cast(tl.load(order_ptr + (base + first) + rows, mask=rows < far_count, other=0), tl.int64)

        scale = tl.where(count == batch_size, full_scale, last_scale)
        sums = tile_sums(tile[0], tile[1:], params, rows < count, mask_k, M, HAS_INTERCEPT)
        tl.store(losses_ptr, sums[0] * scale)
        losses_ptr += 1
        if RECORD:
            store_state(trajectory_ptr, params, columns, K, M, HAS_INTERCEPT)
            trajectory_ptr += STATE
        change = direction(params, velocity, sums, 2 * scale, momentum, weight_decay, HAS_MOMENTUM)
        if HAS_MOMENTUM:
            velocity = change
        params = moved(params, change, lr)
        tile = next_tile
        count = next_count
        next_count = far_count

    store_state(state_out_ptr, params, columns, K, M, HAS_INTERCEPT)
    if HAS_MOMENTUM:
        store_state(state_out_ptr + STATE, velocity, columns, K, M, HAS_INTERCEPT)


def run_batches(
    input: Tensor,  # (N, K)
    target: Tensor,  # (N, M)
    order: Tensor,  # (>= the rows of the steps so far,), int32 or int64: a permutation of the rows for each epoch
    state_in: Tensor,  # (2, K + intercept, M), contiguous: parameters, momentum; (1, ...) without momentum
    state_out: Tensor,  # the same shape, written
    losses: Tensor,  # (steps,), contiguous, written
    trajectory: Tensor | None,  # (steps, K + intercept, M), contiguous, written
    *,
    steps: int,
    first_step: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    intercept: bool,
    config: Config,
) -> None:
    """`steps` mini-batch steps in one launch of one program.

    Parameters
    ----------
    input, target
        float64, float32, float16 or bfloat16, any strides.
    order
        Contiguous. Reaches as far as the last batch of this launch; nothing beyond is read.
    state_in, state_out
        In the accumulator's dtype. Two tensors, so that a launch can be repeated. Without momentum its half is
        neither read nor written.
    losses : Tensor
        Receives the loss of each step's batch, from before its update.
    trajectory : Tensor or None
        Receives the parameters from before each update.
    first_step : int
        Steps of the table `order` that are already done.
    config : Config
        `block_n` >= `batch_size` and `block_k` >= K: see run_configs.batches_config.

    Bitwise reproducible; a run split into two launches, momentum included, is bitwise the same run.
    """
    n_rows, k = input.shape
    stride_xn, stride_xk = input.stride()
    unit_xn, unit_xk = stride_units(input)
    # One program.
    launch(
        run_batches_kernel,
        (1,),
        input,
        target,
        order,
        state_in,
        state_out,
        losses,
        state_out if trajectory is None else trajectory,
        n_rows,
        steps,
        first_step,
        batch_size,
        stride_xn // unit_xn,
        stride_xk // unit_xk,
        target.stride(0),
        target.stride(1),
        lr,
        momentum,
        weight_decay,
        K=k,
        M=target.shape[1],
        UNIT_XN=unit_xn,
        UNIT_XK=unit_xk,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        HAS_INTERCEPT=intercept,
        HAS_MOMENTUM=momentum != 0,
        RECORD=trajectory is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=input.is_contiguous() and may_fuse(config, input.shape[1], input.dtype),
    )
