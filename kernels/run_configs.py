"""Which configuration runs a whole run, and which shapes fit: by the registers that a thread will need.

A thread holds, of a tile [BLOCK_N, BLOCK_K], `rows` rows and `vector` columns of each. It reads a row in vectors, so a row
lies on several lanes, and each of those holds all that is calculated for the row. With s = 2 for float64, else 1, it
needs about so many registers:

    BASE + s (rows (vector + 2 M + 1) + M (3 vector + 2))                       X; Y, E and squares; W, momentum, gradients
    BASE + s (rows (2 vector + M + 1) + M (3 vector + 2) + 2 M targets) + 2 rows    with the next batch: Y lies on one lane

The compiler takes up to 30 more or fewer. BUDGET is the largest estimate below which nothing spilled, momentum and
trajectory included; it may be more registers than there are, since not all is held at once. 16 warps share the registers
of a multiprocessor among 512 threads, 128 for each. The fewest warps that fit are the fastest: one exchanges nothing
through shared memory at all.
"""

import math

import torch

from .configs import VECTOR_BYTES, Config, accumulator_dtype, nearest_architecture, power_of_2

MAX_OUTPUTS = 16  # parameters, momentum and gradients of so many are all that registers hold
BASE = 30  # addresses, counters, scales
WARPS = (1, 2, 4, 8, 16)
# Architecture, bytes of the accumulator -> up to 4 warps, 8 warps, 16 warps. For 100 the assemblers of Triton 3.6 and 3.9
# differ by 30 registers, and the more wasteful one counts.
BUDGET = {80: {4: (220, 220, 130), 8: (176, 176, 126)}, 100: {4: (220, 190, 130), 8: (176, 176, 126)}}
BUDGET_WHOLE = {
    80: {4: (268, 268, 130), 8: (176, 176, 126)},
    100: BUDGET[100],
}  # one output, no masks: N a power of two
BUDGET_AHEAD = {80: {4: (258, 276, 154), 8: (256, 256, 150)}}  # with the next batch
WIDE = 64  # beyond, a lane holds several vectors of a row, and the estimate would be a quarter too low
MAX_BLOCK_N = 16384
GRID_WARPS = (8, 16)  # fewer would leave registers of a multiprocessor unused
GRID_ROWS = 256  # of a program, at least: less is not worth a multiprocessor more at the barrier


def thread_tile(block_n: int, k: int, dtype: torch.dtype, num_warps: int) -> tuple[int, int]:
    """(rows of a thread, columns of each) as Triton lays out a tile that is loaded from contiguous rows."""
    block_k = power_of_2(k)
    threads = 32 * num_warps
    widest = min(VECTOR_BYTES // dtype.itemsize, max(1, block_n * block_k // threads))
    vector = min(math.gcd(k, VECTOR_BYTES // dtype.itemsize), power_of_2(widest))
    lanes = min(32, block_k // vector)  # of a row
    return max(1, block_n * lanes // threads), block_k // lanes


def may_fuse(config: Config, k: int, dtype: torch.dtype) -> bool:
    """Whether products and additions may become one instruction, and every lane still has the same sums.

    A sum across lanes gives each the same bits only if all add the same rounded numbers. Where a lane brings one product
    to it, the compiler would fuse that with the first addition: unrounded in the lane itself, rounded in its neighbour.
    Parameters, of which each lane holds a copy, would then differ, and a run that ends and goes on from one of them would
    not be the same run.
    """
    rows, columns = thread_tile(config.block_n, k, dtype, config.num_warps)
    return rows > 1 and (columns > 1 or config.block_k == 1)


def registers(block_n: int, k: int, m: int, dtype: torch.dtype, num_warps: int, ahead: bool) -> int:
    """The estimate above; `ahead`: with the next batch."""
    size = accumulator_dtype(dtype).itemsize // 4
    rows, vector = thread_tile(block_n, k, dtype, num_warps)
    params = m * (3 * vector + 2)
    if ahead:
        targets = max(1, block_n // (32 * num_warps))
        count = BASE + size * (rows * (2 * vector + m + 1) + params + 2 * m * targets) + 2 * rows
    else:
        count = BASE + size * (rows * (vector + 2 * m + 1) + params)
    return count * 5 // 4 if k > WIDE else count


def one_program(n: int, k: int, m: int, dtype: torch.dtype, architecture: int, ahead: bool) -> Config | None:
    """The fewest warps on which n rows fit."""
    block_n = power_of_2(n)
    if not (1 <= m <= MAX_OUTPUTS and n >= 1 and k >= 1) or block_n > MAX_BLOCK_N:
        return None
    budget = BUDGET_AHEAD if ahead else BUDGET_WHOLE if m == 1 and n == block_n else BUDGET
    upto_4, *more = budget[nearest_architecture(architecture, budget)][accumulator_dtype(dtype).itemsize]
    for num_warps, most in zip(WARPS, (upto_4, upto_4, upto_4, *more), strict=True):
        if registers(block_n, k, m, dtype, num_warps, ahead) <= most:
            return Config(block_n=block_n, block_k=power_of_2(k), num_warps=num_warps)
    return None


def resident_config(n: int, k: int, m: int, dtype: torch.dtype, architecture: int) -> Config | None:
    """For run_resident; None where the data does not fit in the registers of one program.

    Parameters
    ----------
    n, k, m : int
        Rows, columns of X, columns of Y.
    dtype : torch.dtype
        Of X.
    architecture : int
        Compute capability, major * 10 + minor. All have the same registers, but not the same assembler.
    """
    return one_program(n, k, m, dtype, architecture, ahead=False)


def batches_config(batch_size: int, k: int, m: int, dtype: torch.dtype, architecture: int) -> Config | None:
    """For run_batches; None where two batches do not fit in the registers of one program. Parameters as above."""
    return one_program(batch_size, k, m, dtype, architecture, ahead=True)


def grid_config(
    n: int, k: int, m: int, dtype: torch.dtype, architecture: int, multiprocessors: int
) -> tuple[Config, int] | None:
    """(configuration, programs) for run_grid, one program a multiprocessor at most; None where the data does not fit.

    The fewest rows a program that fit on all multiprocessors, GRID_ROWS at least.
    """
    if not (1 <= m <= MAX_OUTPUTS and n >= 1 and k >= 1):
        return None
    block_n = max(power_of_2(-(-n // multiprocessors)), min(GRID_ROWS, power_of_2(n)))
    programs = -(-n // block_n)
    block_k, size = power_of_2(k), accumulator_dtype(dtype).itemsize // 4
    budgets = BUDGET[nearest_architecture(architecture, BUDGET)][4 * size][1:]
    for num_warps, budget in zip(GRID_WARPS, budgets, strict=True):
        rows, vector = thread_tile(block_n, k, dtype, num_warps)
        partial = m * power_of_2(programs) * block_k // (32 * num_warps)  # numbers of all programs' sums
        held = BASE + size * (rows * (vector + m) + m * (2 * vector + 2) + partial)
        if block_n <= MAX_BLOCK_N and max(held, registers(block_n, k, m, dtype, num_warps, ahead=False)) <= budget:
            return Config(block_n=block_n, block_k=block_k, num_warps=num_warps), programs
    return None
