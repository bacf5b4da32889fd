"""What the tiled products share: the order of the tiles, offsets that need no mask, types and shapes of a launch."""

import functools
import threading
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .common import INTERPRET, TRITON_TYPES
from .configs import accumulator_dtype

GROUP = tl.constexpr(8)
_thread = threading.local()


@triton.jit
def blocks_of(length, BLOCK: tl.constexpr):
    """How many blocks a length of at least 1 takes. Not tl.cdiv, whose length + BLOCK - 1 may pass 2³¹."""
    return (length - 1) // BLOCK + 1


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


@triton.jit
def halves(values):
    """The left and the right half of the columns. A thread holds its own share of both: nothing moves."""
    ROWS: tl.constexpr = values.shape[0]
    COLUMNS: tl.constexpr = values.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(values, (ROWS, 2, COLUMNS)), (0, 2, 1)))


def accumulator(dtype) -> tl.dtype:
    """Triton's type of the accumulator for tensors of a torch dtype."""
    return TRITON_TYPES[accumulator_dtype(dtype)]


def descriptors_fit(*tensors: Tensor) -> bool:
    """Whether the copy engine can address these matrices: rows that are dense, apart, and aligned to 16 bytes.

    Sizes are those of its coordinates, which are int32.
    """
    return all(
        t.stride(1) == 1
        and t.stride(0) >= t.shape[1]  # repeated rows have stride 0
        and t.stride(0) * t.dtype.itemsize % 16 == 0
        and t.data_ptr() % 16 == 0
        and max(t.shape) < 2**31 - 2**16  # with room for the tile that reaches past the end
        for t in tensors
    )


def rows_aligned(*tensors: Tensor) -> bool:
    """Whether a launch tells the compiler of these matrices that all rows are dense and start at multiples of 16 bytes.

    What it says of an address is that it is a multiple of 16 bytes; of a size or a stride, that it is a multiple of 16.
    """
    return all(
        t.stride(1) == 1 and t.stride(0) % 16 == 0 and t.shape[1] % 16 == 0 and t.data_ptr() % 16 == 0 for t in tensors
    )


class Address(NamedTuple):
    """What a descriptor asks of a tensor; it keeps no memory."""

    address: int
    dtype: torch.dtype
    device: int

    def data_ptr(self) -> int:
        return self.address

    def get_device(self) -> int:
        return self.device


def descriptor(tensor: Tensor | None, rows: int, columns: int) -> TensorDescriptor | None:
    """A row-major matrix in blocks of rows × columns."""
    if tensor is None:
        return None
    if INTERPRET.value:
        return TensorDescriptor.from_tensor(tensor, [rows, columns])
    if not hasattr(_thread, "launched"):
        # The driver encodes descriptors in a context, which a thread has from its first launch on.
        tensor.new_zeros(1)
        _thread.launched = True
    base = Address(tensor.data_ptr(), tensor.dtype, tensor.get_device())
    return _described(base, tensor.shape, tensor.stride(), rows, columns)


@functools.lru_cache(4096)
def _described(
    base: Address, shape: tuple[int, int], stride: tuple[int, int], rows: int, columns: int
) -> TensorDescriptor:
    """One for each address, shape, stride and block, whichever tensor lies there: Triton's checks are run once."""
    return TensorDescriptor(base, shape, stride, [rows, columns])


def as_long_rows(*tensors: Tensor) -> tuple[int, int, list[tuple[int, int]]]:
    """(rows, columns, strides of each tensor) for an elementwise kernel: dense tensors are one long row."""
    n, m = tensors[0].shape
    if all(t.is_contiguous() for t in tensors):
        return 1, n * m, [(n * m, 1)] * len(tensors)
    return n, m, [t.stride() for t in tensors]
