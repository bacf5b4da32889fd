"""A whole run of gradient descent on all multiprocessors in one cooperative launch: rows stay in registers, sums meet in L2.

    step t:    E = X W + b − Y,    losses[t] = Σ E² / (N M),    g = 2 / (N M) (XᵀE, Σₙ E) + wd (W, b),
               v ← μ v + g,    (W, b) ← (W, b) − lr v                                            full batch, M <= 16

Program p keeps rows p R to (p + 1) R − 1 of X and Y for the whole run: N (K + M) elements are read once. In each step it
writes its 1 + M + M K partial sums to a workspace, waits at a barrier until all have done so, reads the partial sums of
all, adds them in the order of the programs, and updates its own copy of the parameters. All programs add the same numbers
in the same order, so their copies stay equal to the bit, and so does a repeated run. Program 0 writes losses, trajectory
and state.

One barrier a step is enough because the workspace has two halves, used in turn. A program writes into a half again two
steps later, at step t + 2, after it has passed the barrier of step t + 1. Every program arrived there only after it had
read the partial sums of step t and used them: nobody reads what is overwritten.

The barrier is a counter that only grows: program arrivals, `programs` of them a step. Memory order: the threads' stores
come before debug_barrier, and that before the one atomic addition (acq_rel, for the whole GPU), which therefore
publishes the stores of all of them; whoever reads the full count, by an atomic with acquire, sees all stores of all
programs; its threads learn of it through shared memory and another barrier. Partial sums are read past L1 (.cg), which
may hold the half of two steps before. A cooperative launch guarantees that all programs run at once, without which the
wait would never end.

Why: a step costs a trip to L2 for the stores and the arrival, one or two to see the last arrival and one for the sums,
some 3 us in all (predicted, see loops.py), and the rows cost little beside that while they fit in the registers, which
together hold some 2 million numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

from .common import INTERPRET
from .configs import Config
from .launch import launch
from .run_configs import may_fuse
from .run_tile import add_rows_of, beside_rows, direction, load_rows, load_state, moved, packed, store_state, tile_sums


@triton.jit
def arrive_and_wait(counter_ptr, expected):
    """Returns when `expected` arrivals are counted, this program's among them."""
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < expected:
        arrived = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")


@triton.jit
def store_sums(ptr, sums, columns, M: tl.constexpr, BLOCK_K: tl.constexpr):
    """One program's partial sums: M times BLOCK_K of XᵀE, then Σ E² and Σₙ E."""
    for m in tl.static_range(M):
        tl.store(ptr + m * BLOCK_K + columns, sums[1 + m])
    tl.store(ptr + M * BLOCK_K, sums[0])
    for i in tl.static_range(1 + M, len(sums)):
        tl.store(ptr + M * BLOCK_K + i - M, sums[i])


@triton.jit
def add_sums(
    ptr,
    programs,
    columns,
    M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    LENGTH: tl.constexpr,
    HAS_INTERCEPT: tl.constexpr,
):
    """The sums of all programs, in the form of tile_sums."""
    offsets = tl.arange(0, BLOCK_P)
    mask = offsets < programs
    ptrs = ptr + offsets * LENGTH
    # All loads before the first sum, so that they wait for L2 together.
    parts = ()
    for m in tl.static_range(M):
        column_ptrs = ptrs[:, None] + (m * BLOCK_K + columns)[None, :]
        parts += (tl.load(column_ptrs, mask=mask[:, None], other=0.0, cache_modifier=".cg"),)
    others = ()
    for i in tl.static_range(1 + M * HAS_INTERCEPT):
        others += (tl.load(ptrs + M * BLOCK_K + i, mask=mask, other=0.0, cache_modifier=".cg"),)
    grads = add_rows_of(parts)
    totals = add_rows_of(others)
    return totals[:1] + grads + totals[1:]


@triton.jit(do_not_specialize=["n_rows", "rows_each", "steps"])
def run_grid_kernel(
    input_ptr,  # (N, K), contiguous
    target_ptr,  # (N, M)
    state_in_ptr,  # (1 + HAS_MOMENTUM, K + HAS_INTERCEPT, M): parameters, momentum
    state_out_ptr,  # the same, written
    losses_ptr,  # (steps,), written
    trajectory_ptr,  # (steps, K + HAS_INTERCEPT, M), written if RECORD
    workspace_ptr,  # (2, programs, LENGTH): partial sums of the even and of the odd steps
    counter_ptr,  # (1,), int64, 0 at first: arrivals at the barrier
    n_rows,
    rows_each,  # of a program, at most BLOCK_N
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
    BLOCK_P: tl.constexpr,  # at least the number of programs
    LENGTH: tl.constexpr,  # numbers of a program in half of the workspace
    HAS_INTERCEPT: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    RECORD: tl.constexpr,
):
    dtype: tl.constexpr = state_in_ptr.dtype.element_ty
    STATE: tl.constexpr = (K + HAS_INTERCEPT) * M
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    first = tl.cast(program, tl.int64) * rows_each
    rows = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    mask_n = rows < tl.minimum(n_rows - first, rows_each)
    mask_k = columns < K
    tile = load_rows(
        input_ptr, target_ptr, first + rows, mask_n, columns, mask_k, K, 1,
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
    for t in range(steps):
        half_ptr = workspace_ptr + (t % 2) * programs * LENGTH
        store_sums(
            half_ptr + program * LENGTH, tile_sums(x, y, params, mask_n, mask_k, M, HAS_INTERCEPT), columns, M, BLOCK_K
        )
        arrive_and_wait(counter_ptr, tl.cast(t + 1, tl.int64) * programs)
        sums = add_sums(half_ptr, programs, columns, M, BLOCK_K, BLOCK_P, LENGTH, HAS_INTERCEPT)
        if program == 0:
            tl.store(losses_ptr + t, sums[0] * loss_scale)
            if RECORD:
                store_state(trajectory_ptr + tl.cast(t, tl.int64) * STATE, params, columns, K, M, HAS_INTERCEPT)
        change = direction(params, velocity, sums, grad_scale, momentum, weight_decay, HAS_MOMENTUM)
        if HAS_MOMENTUM:
            velocity = change
        params = moved(params, change, lr)

    if program == 0:
        store_state(state_out_ptr, params, columns, K, M, HAS_INTERCEPT)
        if HAS_MOMENTUM:
            store_state(state_out_ptr + STATE, velocity, columns, K, M, HAS_INTERCEPT)


def sums_length(m: int, block_k: int) -> int:
    """Numbers of one program's partial sums, a multiple of 4 apart so that vectors of them can be read."""
    return m * block_k + -(-(1 + m) // 4) * 4


def run_grid(
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
    programs: int,
) -> None:
    """`steps` full-batch steps in one cooperative launch.

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
        `block_n` >= the rows of a program, ceil(N / programs), and `block_k` >= K: see run_configs.grid_config.
    programs : int
        At most as many as can run at once; with one for each multiprocessor they can.

    Raises
    ------
    RuntimeError
        For more than one program where kernels are interpreted: one after another, they would wait for ever.

    Bitwise reproducible for one `programs`; a run split into two launches, momentum included, is bitwise the same run.
    """
    if INTERPRET and programs > 1:
        raise RuntimeError(
            f"programs is {programs}, must be 1 where kernels are interpreted: programs wait for each other"
        )
    n_rows, k = input.shape
    m = target.shape[1]
    length = sums_length(m, config.block_k)
    workspace = torch.empty((2, programs, length), dtype=state_in.dtype, device=input.device)
    counter = torch.zeros(1, dtype=torch.int64, device=input.device)
    input = packed(input)
    # As many programs as multiprocessors, at most; all run at once.
    launch(
        run_grid_kernel,
        (programs,),
        input,
        target,
        state_in,
        state_out,
        losses,
        state_out if trajectory is None else trajectory,
        workspace,
        counter,
        n_rows,
        -(-n_rows // programs),
        steps,
        target.stride(0),
        target.stride(1),
        lr,
        momentum,
        weight_decay,
        K=k,
        M=m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_P=next_power_of_2(programs),
        LENGTH=length,
        HAS_INTERCEPT=intercept,
        HAS_MOMENTUM=momentum != 0,
        RECORD=trajectory is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=may_fuse(config, input.shape[1], input.dtype),
        launch_cooperative_grid=True,
    )
