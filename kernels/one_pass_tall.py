"""One pass for up to 512 features and outputs: both products on the tensor cores, from one copy of a row tile.

    E = X Wᵀ + b − Y,    loss = s_l Σ E²,    dW = s_g EᵀX,    db = s_g Σₙ E          K <= 512, M <= 512, any strides

A program owns BLOCK_M outputs: their rows of W stay in shared memory, their rows of dW [BLOCK_M, BLOCK_K] in registers.
It streams tiles of BLOCK_N whole rows of X and their columns of Y. The product is formed transposed, Sᵀ = W X_tᵀ, so
that Eᵀ [BLOCK_M, BLOCK_N] lies in registers the way the second product, dW += Eᵀ X_t, wants its left operand; and so
that a row of it lies in one warp, which makes Σₙ E and Σ E² sums inside a warp.

FLOPs   4 N K M, both products in full.
Bytes   N (K + M) elements in from memory: the M / BLOCK_M programs that share rows are neighbours and take the same tiles
        at the same time, so that all but one find X in L2; N M out if the residual is stored. Each part of the rows leaves
        its own partial sums, M K + M numbers, in a workspace that the second launch adds in order.
Grid    parts * blocks of M, persistent; part p takes tiles p, p + parts, ..., with the loads of the next ones in flight.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .configs import Config, accumulator_dtype
from .launch import launch
from .one_pass_tall_kernel import one_pass_tall_kernel
from .one_pass_vector import stride_units
from .reduce import WIDE_ALIGNMENT, add_rows
from .tape import empty

MAX_ROWS = 2**31 - 2**20  # the loop counts rows in 32 bits, and a step of all programs beyond them


class Workspace(NamedTuple):
    """Partial sums of the parts of the rows."""

    partials: Tensor  # (parts, stride): a row is loss of each block, padding up to `lead`; db (M,); dW (M, K); padding
    columns: int  # without the padding at the end
    lead: int
    losses: int


def workspace_columns(k: int, m: int, block_m: int, want_grads: bool) -> tuple[int, int, int, int]:
    """(columns, lead, losses, stride) of a workspace's rows: these, and dW in them, begin at multiples of 16 bytes."""
    losses = -(-m // block_m)
    lead = -(-losses // WIDE_ALIGNMENT) * WIDE_ALIGNMENT
    if not want_grads:
        return lead, lead, losses, lead
    lead += -m % WIDE_ALIGNMENT
    columns = lead + m + m * k
    return columns, lead, losses, -(-columns // WIDE_ALIGNMENT) * WIDE_ALIGNMENT


@functools.cache
def _takes_ptx(device: torch.device) -> bool:
    """Whether formed_here may pass its values through PTX: Triton's pipeliner for tensor memory does not know how to."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] < 10


def tall_arguments(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    workspace: Workspace,  # its partials are written
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
    unit_xn, unit_xk = stride_units(input)
    unit_wm, _ = stride_units(weight)
    unit_yn, _ = stride_units(target)
    written = target if residual is None else residual
    unit_en, _ = stride_units(written)
    return (
        input,
        weight,
        target,
        input if bias is None else bias,
        written,
        workspace.partials,
        n_rows,
        input.stride(0) // unit_xn,
        input.stride(1) // unit_xk,
        weight.stride(0) // unit_wm,
        weight.stride(1),
        target.stride(0) // unit_yn,
        target.stride(1),
        0 if bias is None else bias.stride(0),
        written.stride(0) // unit_en,
        written.stride(1),
        loss_scale,
        grad_scale,
    ), {
        "K": k,
        "M": m,
        "UNIT_XN": unit_xn,
        "UNIT_XK": unit_xk,
        "UNIT_WM": unit_wm,
        "UNIT_YN": unit_yn,
        "UNIT_EN": unit_en,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_M": config.block_m,
        "LEAD": workspace.lead,
        "STRIDE": workspace.partials.shape[1],
        "HAS_BIAS": bias is not None,
        "WANT_GRADS": want_grads,
        "STORE_RESIDUAL": residual is not None,
        "INPUT_PRECISION": input_precision,
        "PTX": _takes_ptx(input.device),
        "NUM_STAGES": config.num_stages,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }


def tall_partials(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    *,
    config: Config,
    programs: int,
    loss_scale: float,
    grad_scale: float,
    want_grads: bool,
    residual: Tensor | None,
    input_precision: str = "ieee",
) -> Workspace:
    """The first launch of one_pass_tall, whose parameters these are."""
    m, k = weight.shape
    if len(input) > MAX_ROWS:
        raise ValueError(f"input has {len(input)} rows, must have {MAX_ROWS} at most")
    blocks = -(-m // config.block_m)
    if programs % blocks or not programs:
        raise ValueError(f"programs is {programs}, must be a multiple of the {blocks} blocks of outputs")
    columns, lead, losses, stride = workspace_columns(k, m, config.block_m, want_grads)
    partials = empty((programs // blocks, stride), dtype=accumulator_dtype(input.dtype), device=input.device)
    workspace = Workspace(partials, columns, lead, losses)
    arguments, options = tall_arguments(
        input,
        weight,
        target,
        bias,
        residual,
        workspace,
        config=config,
        loss_scale=loss_scale,
        grad_scale=grad_scale,
        want_grads=want_grads,
        input_precision=input_precision,
    )
    # A persistent grid: program = part * blocks + block; part p takes tiles p, p + parts, ...
    launch(one_pass_tall_kernel, (programs,), *arguments, **options)
    return workspace


def one_pass_tall(
    input: Tensor,  # (N, K)
    weight: Tensor,  # (M, K)
    target: Tensor,  # (N, M)
    bias: Tensor | None,  # (M,)
    *,
    config: Config,
    programs: int,
    loss_scale: float,
    grad_scale: float,
    want_grads: bool,
    residual: Tensor | None,  # (N, M), written
    input_precision: str = "ieee",
) -> Tensor:
    """Loss, bias gradient and weight gradient from one read of X and Y; for K and M up to 512, any strides.

    Parameters
    ----------
    input, weight, target, bias
        float64, float32, float16 or bfloat16, any strides; MAX_ROWS rows at most.
    config : Config
        `block_n` rows a tile, `block_k` >= max(K, 16) columns, `block_m` outputs a program.
    programs : int
        Size of the persistent grid, a multiple of the ceil(M / block_m) programs that share each part of the rows.
    loss_scale, grad_scale : float
        What the sum of squares and the two gradients are multiplied by.
    want_grads : bool
        If False, only the loss is computed.
    residual : Tensor or None
        If given, receives E, unscaled, in its own dtype; any strides. The only argument that is written.
    input_precision : {"ieee", "tf32", "tf32x3"}
        Of the float32 products.

    Returns
    -------
    Tensor, shape (1 + M + M K,), or (1,) without gradients
        [loss, grad_bias, grad_weight], float32 (float64 for float64). Bitwise reproducible for one `programs`.
    """
    workspace = tall_partials(
        input,
        weight,
        target,
        bias,
        config=config,
        programs=programs,
        loss_scale=loss_scale,
        grad_scale=grad_scale,
        want_grads=want_grads,
        residual=residual,
        input_precision=input_precision,
    )
    return add_rows(workspace.partials, columns=workspace.columns, lead=workspace.lead, losses=workspace.losses)
