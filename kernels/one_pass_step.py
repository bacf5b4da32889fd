"""A whole SGD step of a skinny shape in one launch: the one-pass kernels, and in the last program to finish the update.

Each program leaves its row of partial sums (loss, db, dW) as in a launch without an update; the last one to arrive reads
all rows, from L2, adds them in a fixed order and steps weight and bias. So nothing but the partial sums is moved beside
X and Y, nothing is launched behind, and which program is the last changes nothing: results repeat bitwise.

All rows pass through one multiprocessor, at about 64 bytes a clock. Where that costs more than another launch, the
one-pass kernel runs as it is, and step.py's second launch adds and updates.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arrive import last_to_arrive
from .configs import Config, accumulator_dtype
from .launch import launch
from .one_pass_dot import dot_arguments, one_pass_dot_kernel
from .one_pass_rows import one_pass_rows_kernel, rows_arguments
from .one_pass_tall import tall_partials
from .one_pass_vector import one_pass_vector_kernel, vector_arguments
from .step import Step, add_and_step, add_rows_step, numbers_of

ELEMENTS_PER_ROUND = 4096  # partial sums that the last program asks for at a time: few warps must hide the latency
MAX_COLUMNS = 32


@triton.jit
def finish(
    sums_ptr,  # (programs, 1 + M + M K)
    counter_ptr,  # (1,), None for a single program
    loss_ptr,
    weight_ptr,
    bias_ptr,  # None without bias
    momentum_ptr,
    bias_momentum_ptr,
    lr_ptr,
    stride_wm,
    stride_wk,
    stride_b,
    lr,
    mu,
    undamped,
    decay,
    nesterov,
    K: tl.constexpr,
    M: tl.constexpr,
    SUMS_N: tl.constexpr,
    SUMS_M: tl.constexpr,
):
    """What follows a program's own partial sums."""
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    if counter_ptr is not None:
        last = last_to_arrive(counter_ptr, tl.num_programs(0))
    else:
        tl.debug_barrier()  # its threads read what others of them stored
        last = True
    if last:
        numbers = numbers_of(lr_ptr, lr, mu, undamped, decay, nesterov, dtype)
        for first in range(0, 1 + M + M * K, SUMS_M):
            add_and_step(
                sums_ptr, tl.num_programs(0), 1 + M + M * K, first, loss_ptr, weight_ptr, bias_ptr, momentum_ptr,
                bias_momentum_ptr, tl.cast(stride_wm, tl.int64), tl.cast(stride_wk, tl.int64),
                tl.cast(stride_b, tl.int64), K, M, numbers, 1, 1, 1, dtype, SUMS_N, SUMS_M,
            )  # fmt: skip


@triton.jit(do_not_specialize=["n_rows", "stride_wm", "stride_wk", "stride_b", "nesterov"])
def one_pass_rows_step_kernel(
    input_ptr,  # as one_pass_rows_kernel, but weight and bias are written too
    weight_ptr,
    target_ptr,
    bias_ptr,
    residual_ptr,
    sums_ptr,
    n_rows,
    stride_wm,
    stride_wk,
    stride_b,
    loss_scale: tl.float64,
    grad_scale: tl.float64,
    loss_ptr,  # ()
    counter_ptr,  # (1,) int32, zero; None for a single program
    momentum_ptr,  # (M, K), of weight's strides; None without momentum
    bias_momentum_ptr,  # (M,), of bias's stride
    lr_ptr,  # (1,); None where lr is a number
    lr: tl.float64,
    mu: tl.float64,
    undamped: tl.float64,
    decay: tl.float64,
    nesterov,
    K: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR_X: tl.constexpr,
    VECTOR_Y: tl.constexpr,
    VECTOR_E: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_GRADS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    SUMS_AT_ONCE: tl.constexpr,
    SUMS_N: tl.constexpr,
    SUMS_M: tl.constexpr,
):
    one_pass_rows_kernel(
        input_ptr, weight_ptr, target_ptr, bias_ptr, residual_ptr, sums_ptr, n_rows, stride_wm, stride_wk, stride_b,
        loss_scale, grad_scale, K, M, ROWS, LANES, VECTOR_X, VECTOR_Y, VECTOR_E, HAS_BIAS, WANT_GRADS, STORE_RESIDUAL,
        SUMS_AT_ONCE,
    )  # fmt: skip
    finish(
        sums_ptr, counter_ptr, loss_ptr, weight_ptr, bias_ptr if HAS_BIAS else None, momentum_ptr, bias_momentum_ptr,
        lr_ptr, stride_wm, stride_wk, stride_b, lr, mu, undamped, decay, nesterov, K, M, SUMS_N, SUMS_M,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n_rows", "stride_wm", "stride_wk", "stride_b", "nesterov"])
def one_pass_vector_step_kernel(
    input_ptr,  # as one_pass_vector_kernel, but weight and bias are written too
    weight_ptr,
    target_ptr,
    bias_ptr,
    residual_ptr,
    sums_ptr,
    n_rows,
    stride_xn,
    stride_xk,
    stride_wm,
    stride_wk,
    stride_yn,
    stride_ym,
    stride_b,
    stride_en,
    stride_em,
    loss_scale: tl.float64,
    grad_scale: tl.float64,
    loss_ptr,  # as in one_pass_rows_step_kernel, to the end
    counter_ptr,
    momentum_ptr,
    bias_momentum_ptr,
    lr_ptr,
    lr: tl.float64,
    mu: tl.float64,
    undamped: tl.float64,
    decay: tl.float64,
    nesterov,
    K: tl.constexpr,
    M: tl.constexpr,
    UNIT_XN: tl.constexpr,
    UNIT_XK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_GRADS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    SUMS_N: tl.constexpr,
    SUMS_M: tl.constexpr,
):
    one_pass_vector_kernel(
        input_ptr, weight_ptr, target_ptr, bias_ptr, residual_ptr, sums_ptr, n_rows, stride_xn, stride_xk, stride_wm,
        stride_wk, stride_yn, stride_ym, stride_b, stride_en, stride_em, loss_scale, grad_scale, K, M, UNIT_XN, UNIT_XK,
        BLOCK_N, ROWS, BLOCK_K, HAS_BIAS, WANT_GRADS, STORE_RESIDUAL, NUM_STAGES,
    )  # fmt: skip
    finish(
        sums_ptr, counter_ptr, loss_ptr, weight_ptr, bias_ptr if HAS_BIAS else None, momentum_ptr, bias_momentum_ptr,
        lr_ptr, stride_wm, stride_wk, stride_b, lr, mu, undamped, decay, nesterov, K, M, SUMS_N, SUMS_M,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n_rows", "stride_wm", "stride_wk", "stride_b", "nesterov"])
def one_pass_dot_step_kernel(
    input_ptr,  # as one_pass_dot_kernel, but weight and bias are written too
    weight_ptr,
    target_ptr,
    bias_ptr,
    residual_ptr,
    sums_ptr,
    n_rows,
    stride_xn,
    stride_xk,
    stride_wm,
    stride_wk,
    stride_yn,
    stride_ym,
    stride_b,
    stride_en,
    stride_em,
    loss_scale: tl.float64,
    grad_scale: tl.float64,
    loss_ptr,  # as in one_pass_rows_step_kernel, to the end
    counter_ptr,
    momentum_ptr,
    bias_momentum_ptr,
    lr_ptr,
    lr: tl.float64,
    mu: tl.float64,
    undamped: tl.float64,
    decay: tl.float64,
    nesterov,
    K: tl.constexpr,
    M: tl.constexpr,
    UNIT_XN: tl.constexpr,
    UNIT_XK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_GRADS: tl.constexpr,
    STORE_RESIDUAL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    SUMS_N: tl.constexpr,
    SUMS_M: tl.constexpr,
):
    one_pass_dot_kernel(
        input_ptr, weight_ptr, target_ptr, bias_ptr, residual_ptr, sums_ptr, n_rows, stride_xn, stride_xk, stride_wm,
        stride_wk, stride_yn, stride_ym, stride_b, stride_en, stride_em, loss_scale, grad_scale, K, M, UNIT_XN, UNIT_XK,
        BLOCK_N, BLOCK_K, BLOCK_M, HAS_BIAS, WANT_GRADS, STORE_RESIDUAL, INPUT_PRECISION,
    )  # fmt: skip
    finish(
        sums_ptr, counter_ptr, loss_ptr, weight_ptr, bias_ptr if HAS_BIAS else None, momentum_ptr, bias_momentum_ptr,
        lr_ptr, stride_wm, stride_wk, stride_b, lr, mu, undamped, decay, nesterov, K, M, SUMS_N, SUMS_M,
    )  # fmt: skip


FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "rows": (one_pass_rows_kernel, one_pass_rows_step_kernel, rows_arguments),
    "vector": (one_pass_vector_kernel, one_pass_vector_step_kernel, vector_arguments),
    "dot": (one_pass_dot_kernel, one_pass_dot_step_kernel, dot_arguments),
}


def sums_tile(n_columns: int) -> tuple[int, int]:
    """(SUMS_N, SUMS_M): rows and columns of the partial sums that the last program adds at a time."""
    columns = min(1 << (n_columns - 1).bit_length(), MAX_COLUMNS)
    return ELEMENTS_PER_ROUND // columns, columns


def one_pass_step(
    family: str,
    input: Tensor,  # (N, K)
    target: Tensor,  # (N, M)
    loss: Tensor,  # (), written
    step: Step,  # its tensors are written
    *,
    config: Config,
    programs: int,
    loss_scale: float,
    grad_scale: float,
    counter: Tensor | None,  # (1,), written
    input_precision: str = "ieee",
) -> None:
    """Loss and update from one read of X and Y: in one launch, or in two.

    Parameters
    ----------
    family : {"rows", "vector", "dot", "tall"}
        Its kernel's bounds of K and M, and its demands on strides, hold here too.
    input, target
        As for the family's kernel without an update.
    loss
        In any floating dtype.
    step
        Weight and bias of input's dtype. The partial sums are of the weights before the update.
    config, programs, loss_scale, input_precision
        As for the family's kernel.
    grad_scale
        What the sums of the gradients are multiplied by; negative to ascend.
    counter
        One int32 that is zero, and is zero again afterwards; no other launch may use it at the same time. None: a second
        launch updates, or there is a single program. Not used by "tall", where a second launch always does.
    """
    if family == "tall":  # its partial sums are too many for one program
        workspace = tall_partials(
            input,
            step.weight,
            target,
            step.bias,
            config=config,
            programs=programs,
            loss_scale=loss_scale,
            grad_scale=grad_scale,
            want_grads=True,
            residual=None,
            input_precision=input_precision,
        )
        add_rows_step(workspace.partials, loss, step, lead=workspace.lead, losses=workspace.losses)
        return
    kernel, step_kernel, arguments_of = FAMILIES[family]
    m, k = step.weight.shape
    length = 1 + m + m * k
    sums = torch.empty((programs, length), dtype=accumulator_dtype(input.dtype), device=input.device)
    arguments, options = arguments_of(
        input,
        step.weight,
        target,
        step.bias,
        None,
        sums,
        config=config,
        loss_scale=loss_scale,
        grad_scale=grad_scale,
        want_grads=True,
        input_precision=input_precision,
    )
    if counter is None and programs > 1:
        launch(kernel, (programs,), *arguments, **options)
        add_rows_step(sums, loss, step)
        return
    sums_n, sums_m = sums_tile(length)
    # A persistent grid: program p takes tiles p, p + programs, ...
    launch(
        step_kernel,
        (programs,),
        *arguments,
        loss,
        None if programs == 1 else counter,
        *step.tensors(),
        *step.numbers(),
        **options,
        SUMS_N=sums_n,
        SUMS_M=sums_m,
    )
