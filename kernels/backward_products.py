"""Both backward products in one launch: dX = c E W and dW = c Eᵀ X, db = c Σₙ Eₙ, with c = scale · grad_output.

    E (N, M)   X (N, K)   W (M, K)   grad_output 0-d   ->   dX (N, K), dW (M, K), db (M,)

FLOPs   4 N M K (+ N M for db).
Bytes   as backward_input.py and backward_weight.py together; E, which both read, may still be in L2 for the second.
Tiling  dX and dW have K columns both, so one tile shape, ROWS × COLUMNS, serves both, with steps of STEP along M in dX
        and along N in dW. Each launch of its own would end with a wave that fills part of the GPU; in one launch the
        tiles of the other product fill it. The longer tiles come first, so that short ones are left for the end.
        Where dW has few, long tiles its rows are cut into parts, as in backward_weight.py: a part writes its sums to a
        workspace, and a second kernel adds the parts in order. No atomics: bitwise repeatable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backward_input import product_over_outputs
from .backward_weight import add_parts_kernel, product_over_rows
from .configs import SUM_BLOCK, Config, accumulator_dtype, epilogue_parts
from .launch import launch
from .tiles import accumulator, grouped_tile, halves, wrapped


@triton.jit
def task(number, input_tiles, weight_tiles, WEIGHT_FIRST: tl.constexpr):
    """(whether a task is a tile of dW, its number among those of its product)."""
    if WEIGHT_FIRST:
        return number < weight_tiles, tl.where(number < weight_tiles, number, number - weight_tiles)
    return number >= input_tiles, tl.where(number < input_tiles, number, number - input_tiles)


@triton.jit
def store_tile(
    product, out_ptr, start_row, start_column, rows, columns, stride_row, stride_column, PARTS: tl.constexpr
):
    """Store a tile in PARTS column blocks, so that the exchange between threads takes little shared memory."""
    ROWS: tl.constexpr = product.shape[0]
    COLUMNS: tl.constexpr = product.shape[1]
    if PARTS > 1:
        left, right = halves(product)
        store_tile(left, out_ptr, start_row, start_column, rows, columns, stride_row, stride_column, PARTS // 2)
        start_column += COLUMNS // 2
        store_tile(right, out_ptr, start_row, start_column, rows, columns, stride_row, stride_column, PARTS // 2)
    else:
        within_row, within_column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
        offsets_row = (tl.cast(start_row, tl.int64) + within_row)[:, None] * stride_row
        offsets_column = (tl.cast(start_column, tl.int64) + within_column)[None, :] * stride_column
        mask = (within_row < rows - start_row)[:, None] & (within_column < columns - start_column)[None, :]
        tl.store(out_ptr + offsets_row + offsets_column, product, mask=mask)


@triton.jit
def backward_products_kernel(
    residual_ptr,  # (N, M)
    input_ptr,  # (N, K)
    weight_ptr,  # (M, K)
    grad_output_ptr,  # ()
    input_grad_ptr,  # (N, K)
    weight_grad_ptr,  # (M, K), or the workspace: (parts, M K + M), a part's dW and then its db
    bias_grad_ptr,  # (M,), or the same workspace
    scale: tl.float64,  # a float would arrive as float32, too narrow for float64 tensors
    N,
    K,
    M,
    parts,
    rows_per_part,
    stride_residual_n,
    stride_residual_m,
    stride_input_n,
    stride_input_k,
    stride_weight_m,
    stride_weight_k,
    stride_input_grad_n,
    stride_input_grad_k,
    WANT_BIAS: tl.constexpr,
    WORKSPACE: tl.constexpr,  # store a part's plain sums: add_parts_kernel does the rest
    WEIGHT_FIRST: tl.constexpr,
    EVEN: tl.constexpr,  # every step of either product is whole: the loops need no masks
    INPUT_PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PARTS: tl.constexpr,  # column blocks in which a tile is stored
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    tiles_n = (N - 1) // ROWS + 1
    tiles_k = (K - 1) // COLUMNS + 1
    tiles_m = (M - 1) // ROWS + 1
    factor = tl.full((), scale, ACCUMULATOR) * tl.load(grad_output_ptr).to(ACCUMULATOR)
    steps = tl.arange(0, STEP).to(tl.int64)
    for number in range(tl.program_id(0), (tiles_n + parts * tiles_m) * tiles_k, tl.num_programs(0)):
        of_weight, tile = task(number, tiles_n * tiles_k, parts * tiles_m * tiles_k, WEIGHT_FIRST)
        if of_weight:
            part = tile // (tiles_m * tiles_k)
            tile_m, tile_k = grouped_tile(tile % (tiles_m * tiles_k), tiles_m, tiles_k)
            first = part * rows_per_part
            last = tl.minimum(first + rows_per_part, N)
            offsets_m = tile_m * ROWS + tl.arange(0, ROWS)
            columns = wrapped(tile_k * COLUMNS + tl.arange(0, COLUMNS), K)[None, :]
            rows = (first + steps)[:, None]
            residual_ptrs = residual_ptr + rows * stride_residual_n + wrapped(offsets_m, M)[None, :] * stride_residual_m
            input_ptrs = input_ptr + rows * stride_input_n + columns * stride_input_k
            out_ptr, bias_out_ptr, weight_factor = weight_grad_ptr, bias_grad_ptr, factor
            if WORKSPACE:
                matrix_elements = tl.cast(M, tl.int64) * K
                out_ptr += part * (matrix_elements + M)
                bias_out_ptr += part * (matrix_elements + M) + matrix_elements
                weight_factor = tl.full((), 1.0, ACCUMULATOR)
            if WANT_BIAS and tile_k == 0:  # a loop of its own, as in backward_weight.py
                product, sums = product_over_rows(
                    residual_ptrs, input_ptrs, residual_ptrs, stride_residual_n, stride_input_n, 0, first, last,
                    True, False, EVEN, INPUT_PRECISION, ACCUMULATOR, STEP, COLUMNS, ROWS,
                )  # fmt: skip
                tl.store(bias_out_ptr + offsets_m, tl.sum(sums, axis=0) * weight_factor, mask=offsets_m < M)
            else:
                product, _ = product_over_rows(
                    residual_ptrs, input_ptrs, residual_ptrs, stride_residual_n, stride_input_n, 0, first, last,
                    False, False, EVEN, INPUT_PRECISION, ACCUMULATOR, STEP, COLUMNS, ROWS,
                )  # fmt: skip
            store_tile(product * weight_factor, out_ptr, tile_m * ROWS, tile_k * COLUMNS, M, K, K, 1, PARTS)
        else:
            tile_n, tile_k = grouped_tile(tile, tiles_n, tiles_k)
            rows_n = wrapped(tile_n * ROWS + tl.arange(0, ROWS), N)[:, None]
            columns = wrapped(tile_k * COLUMNS + tl.arange(0, COLUMNS), K)[None, :]
            error_ptrs = residual_ptr + rows_n * stride_residual_n + steps[None, :] * stride_residual_m
            weight_ptrs = weight_ptr + steps[:, None] * stride_weight_m + columns * stride_weight_k
            product = product_over_outputs(
                error_ptrs, weight_ptrs, error_ptrs, stride_residual_m, stride_weight_m, 0, M,
                False, EVEN, INPUT_PRECISION, ACCUMULATOR, ROWS, COLUMNS, STEP,
            )  # fmt: skip
            store_tile(
                product * factor, input_grad_ptr, tile_n * ROWS, tile_k * COLUMNS, N, K,
                stride_input_grad_n, stride_input_grad_k, PARTS,
            )  # fmt: skip


def backward_products(
    residual: Tensor,  # (N, M)
    input: Tensor,  # (N, K)
    weight: Tensor,  # (M, K)
    grad_output: Tensor,  # ()
    *,
    scale: float,
    config: Config,
    split: int,
    input_precision: str,
    want_bias: bool,
    out_input: Tensor,  # (N, K)
    out_dtype: torch.dtype,
    programs: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Write the input's gradient and return those of weight and bias, from one launch over the tiles of both.

    Parameters
    ----------
    residual
        E, unscaled; rounded to the input's dtype as it enters the products, unrounded in the column sums. Any strides.
    grad_output
        One number, read on the device.
    scale
        Applied with grad_output after the last addition, in the accumulator's precision.
    config
        block_n × block_k is the tile of both outputs, block_m the step of both reductions.
    split
        Parts that the rows are cut into for the weight's gradient; see default_products_split.
    input_precision
        "ieee", "tf32" or "tf32x3", for float32.
    out_input
        Overwritten with the input's gradient. Any strides.
    programs
        How many programs share the tiles; None: one for each, which the GPU hands out as others finish.

    Returns
    -------
    dW (M, K) and db (M,), or None without want_bias, of out_dtype, contiguous. Bitwise repeatable for one config and
    split, whatever programs is.
    """
    work = Launch(residual, input, config, split, want_bias, out_dtype, programs)
    launch(
        backward_products_kernel,
        (work.programs,),
        residual,
        input,
        weight,
        grad_output,
        out_input,
        *work.outputs,
        scale,
        *work.sizes,
        *residual.stride(),
        *input.stride(),
        *weight.stride(),
        *out_input.stride(),
        EVEN=work.m % config.block_m == 0 and work.n % config.block_m == 0,
        INPUT_PRECISION=input_precision,
        **work.constants,
    )
    return work.gradients(grad_output, scale)


class Launch:
    """What the launches of both kernels (backward_products_descriptors.py has the other) share."""

    def __init__(
        self,
        residual: Tensor,
        input: Tensor,
        config: Config,
        split: int,
        want_bias: bool,
        out_dtype: torch.dtype,
        programs: int | None,
    ) -> None:
        (self.n, self.m), k, device = residual.shape, input.shape[1], input.device
        self.k, self.split = k, split
        self.weight_grad = torch.empty((self.m, k), dtype=out_dtype, device=device)
        self.bias_grad = torch.empty(self.m, dtype=out_dtype, device=device) if want_bias else None
        self.workspace = None
        if split > 1:
            wide = accumulator_dtype(input.dtype)
            self.workspace = torch.empty((split, self.m * k + self.m), dtype=wide, device=device)
        rows, columns, step = config.block_n, config.block_k, config.block_m
        blocks = -(-self.n // step)
        rows_per_part = -(-blocks // split) * step
        tasks = (-(-self.n // rows) + split * -(-self.m // rows)) * -(-k // columns)
        self.programs = tasks if programs is None else min(tasks, programs)
        self.sizes = (self.n, k, self.m, split, rows_per_part)
        self.constants = {
            "WANT_BIAS": want_bias,
            "WORKSPACE": split > 1,
            "WEIGHT_FIRST": rows_per_part >= self.m,
            "ACCUMULATOR": accumulator(input.dtype),
            "PARTS": epilogue_parts(rows, columns, 2 * accumulator_dtype(input.dtype).itemsize),
            "ROWS": rows,
            "COLUMNS": columns,
            "STEP": step,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": True,
        }

    @property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """Where the kernel writes dW and db, or their parts. Without want_bias the second is never written."""
        if self.workspace is not None:
            return self.workspace, self.workspace
        return self.weight_grad, self.weight_grad if self.bias_grad is None else self.bias_grad

    def gradients(self, grad_output: Tensor, scale: float) -> tuple[Tensor, Tensor | None]:
        """dW and db, after the parts have been added if there are any."""
        if self.workspace is not None:
            elements = self.m * self.k
            size = elements if self.bias_grad is None else elements + self.m
            launch(
                add_parts_kernel,
                (-(-size // SUM_BLOCK),),  # one program a block of gradients
                self.workspace,
                grad_output,
                self.weight_grad,
                self.weight_grad if self.bias_grad is None else self.bias_grad,
                scale,
                self.split,
                elements,
                size,
                elements + self.m,
                MATRIX_GRAD_OUTPUT=False,
                BLOCK=SUM_BLOCK,
                num_warps=4,
                enable_fp_fusion=True,
            )
        return self.weight_grad, self.bias_grad
