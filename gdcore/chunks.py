"""How many rows at a time, where N x M is large: a pure function of bytes, and the one question of how many bytes are free.

A chunk is so large that its products run at full speed, and no larger: free memory decides only where there is little of it.
dW is read and written once a chunk beside 6 K M FLOPs a row; with FULL_SPEED_ROWS rows that is 1.5 % of the products' time
on an H200 (predicted: 8 bytes over 4.3 TB/s, against 6 x 16,384 FLOPs over 780 TFLOP/s).
"""

from typing import NamedTuple

import torch

LARGE_BYTES = 256 << 20  # an N x M that is worth asking for: less is never cut
FULL_SPEED_ROWS = 16_384
CHUNK_BYTES = 256 << 20  # of a chunk's residual, where M is so small that more rows are cheap
SHARE = 4  # of the memory that is left beside the gradients, a chunk takes one part in so many
WIDE_ROWS = 4096  # of X Wᵀ in float32, where half-precision operands need it so: enough for a product at full speed
_WHOLE = 256  # rows of a tile, at most: a chunk is a multiple


class Sizes(NamedTuple):
    """Bytes of a call beside its arguments."""

    row: int  # of the temporaries, for each row of a chunk
    residual: int  # of each row of the residual, a part of `row`
    fixed: int  # of the gradients, the accumulators of those that sum over rows, and what no chunk makes larger


def rows_of_chunk(n: int, sizes: Sizes, free_bytes: int | None) -> int:
    """Rows of a chunk, or n where the residual is formed in one piece.

    `free_bytes` None: nothing is known, so there is taken to be enough.
    """
    if n * sizes.residual < LARGE_BYTES:
        return n
    rows = max(FULL_SPEED_ROWS, CHUNK_BYTES // sizes.residual)
    if n < 2 * rows:  # less than half would be saved
        rows = n
    if free_bytes is not None:
        left = max(0, free_bytes - sizes.fixed)
        rows = min(rows, max(_WHOLE, left // SHARE // sizes.row))
    if rows >= n:
        return n
    count = -(-n // rows)  # of equal chunks: a short last one would be slow
    return min(rows, _WHOLE * -(-n // (_WHOLE * count)))


_known: dict[torch.device, int] = {}


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a call may still take on a GPU, down to a power of two, so that small changes do not change the plan.

    Those that nobody has, and those that PyTorch's allocator holds unused. While a CUDA graph is captured, the last answer.
    """
    if device.type != "cuda":
        return None
    if not torch.cuda.is_current_stream_capturing():
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        _known[device] = 1 << max(0, free.bit_length() - 1)
    return _known.get(device)


def row_ranges(n: int, rows: int) -> list[tuple[int, int]]:
    """(first, past the last) row of every chunk."""
    return [(first, min(first + rows, n)) for first in range(0, n, rows)]
