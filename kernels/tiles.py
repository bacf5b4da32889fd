"""What the tiled products share: the order of the tiles, offsets that need no mask, types and shapes of a launch."""

import triton
import triton.language as tl
from torch import Tensor

from .common import TRITON_TYPES
from .configs import accumulator_dtype

GROUP = tl.constexpr(8)


@triton.jit
def grouped_tile(tile, tiles_a, tiles_b):
    """Row and column of a tile. GROUP rows of tiles are walked column by column, so that what they read stays in L2."""
    tiles_in_group = GROUP * tiles_b
    first_a = (tile // tiles_in_group) * GROUP
    group_a = tl.minimum(tiles_a - first_a, GROUP)
    within = tile % tiles_in_group
    return first_a + within % group_a, within // group_a


@triton.jit
def wrapped(offsets, size):
    """Offsets folded into range, as int64: the loop loads a row twice rather than through a mask."""
    return (offsets % size).to(tl.int64)


def accumulator(dtype) -> tl.dtype:
    """Triton's type of the accumulator for tensors of a torch dtype."""
    return TRITON_TYPES[accumulator_dtype(dtype)]


def as_long_rows(*tensors: Tensor) -> tuple[int, int, list[tuple[int, int]]]:
    """(rows, columns, strides of each tensor) for an elementwise kernel: dense tensors are one long row."""
    n, m = tensors[0].shape
    if all(t.is_contiguous() for t in tensors):
        return 1, n * m, [(n * m, 1)] * len(tensors)
    return n, m, [t.stride() for t in tensors]
