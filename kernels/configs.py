"""Which configuration a launch takes: a row of the table (table/), or a formula where tiles are calculated.

Policy (which family for which shape) is gdcore/plan.py's.
"""

import math
from collections.abc import Collection
from dataclasses import replace

import torch

from . import table
from .table import ARCHITECTURES, KINDS, TABLE, Config, Key


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype is torch.float64 else torch.float32


# ONE_PASS: loss and gradients from one read of X and Y.
# one_pass_rows, whose tiles are calculated, aims at 40 kB or more of loads in flight on a multiprocessor, with no spills;
# at its largest M accumulators fill the registers, and it is less, 24 kB at least. So does one_pass_vector on rows that do
# not begin at multiples of 16 bytes in half types.

VECTOR_BYTES = 16  # the widest load
WARP_BYTES = 512  # of a warp's lanes together
ROWS_GROUP_BYTES = 256  # of the X that a lane of one_pass_rows holds, as the accumulator sees it: 64 registers
ROWS_MIN_BYTES = 64  # of X for each lane from K = 8 on, where accumulators leave no room for a second group
ROWS_BYTES_IN_FLIGHT = 128  # that a thread of one_pass_rows requests before it uses any of them
ROWS_ACCUMULATORS = 32  # that a thread of one_pass_rows keeps
ROWS_WARPS = {80: 4, 90: 8, 100: 4}  # by architecture; on an H100 eight were 2 to 5 % faster
UNALIGNED_FROM = 17  # features, from which one_pass_vector has tiles for rows at any address
UNALIGNED_LANES = 8  # of a warp, at least, that share such a row
UNALIGNED_WARPS = 4
# of a thread, by the size of a number: so that 3, 4 and 2 programs fit, with no spills
UNALIGNED_REGISTERS = {2: 168, 4: 128, 8: 255}
UNALIGNED_NUMBERS = {2: 104, 4: 92, 8: 104}  # of W, dW and X that there is room for
UNALIGNED_PARTS = 4  # at most, of a tile
UNALIGNED_BYTES_IN_FLIGHT = 128  # that it requests before it uses any of them
TALL_LIMIT = 512  # of K and of M
TALL_LONG = 256  # beyond it dW fills the registers with 32 outputs, and each further block reads all of X again
TALL_LONG_OUTPUTS = 32
TALL_NARROW = 64  # outputs, up to which a row of "half narrow" is taken where there is one


def rows_group(k: int, element_size: int) -> tuple[int, int]:
    """(rows that a lane of one_pass_rows owns, elements of one load): the widest load that tiles whole rows and fits."""
    for vector_bytes in (VECTOR_BYTES, 8, 4, 2):
        vector = max(vector_bytes // element_size, 1)
        rows = vector // math.gcd(k, vector)
        if rows * k * max(element_size, 4) <= ROWS_GROUP_BYTES:
            break
    while k >= 8 and rows * k * element_size < ROWS_MIN_BYTES:
        rows *= 2
    if k < 8 and rows == 1:  # of a single number for each lane, Y would be loaded in another layout and exchanged
        rows = 2
    return rows, vector


def power_of_2(length: int) -> int:
    """The next power of two."""
    return 1 << (length - 1).bit_length()


def nearest_architecture(arch: int, architectures: Collection[int] = ARCHITECTURES) -> int:
    """The newest of the architectures that is no newer than `arch`, else the oldest."""
    return max((known for known in architectures if known <= arch), default=min(architectures))


def width_kind(dtype: torch.dtype) -> str:
    """The kind of operands where only their size matters."""
    return {8: "float64", 4: "float32", 2: "half"}[dtype.itemsize]


def tall_kind(dtype: torch.dtype, input_precision: str) -> str:
    """The kind of operands of one_pass_tall, aligned and of any number."""
    return width_kind(dtype) if dtype.itemsize != 4 or input_precision == "ieee" else input_precision


def tall_block_k(k: int) -> int:
    """All of K, padded to what a matrix instruction takes."""
    return max(power_of_2(k), 16)


def tall_fits(arch: int, dtype: torch.dtype, k: int, m: int, input_precision: str = "ieee") -> bool:
    """Whether one_pass_tall has a configuration for so many columns of X and of Y that can be the fastest."""
    if not 1 <= k <= TALL_LIMIT:
        return False
    outputs = TALL_LIMIT if k <= TALL_LONG else TALL_LONG_OUTPUTS
    row = Key("one_pass_tall", tall_kind(dtype, input_precision), nearest_architecture(arch), tall_block_k(k))
    return 1 <= m <= outputs and row in TABLE


def tall_aligned(k: int, m: int, dtype: torch.dtype, contiguous: bool = True) -> bool:
    """Whether all rows of X and Y begin at multiples of 16 bytes, if the tensors do and are `contiguous`."""
    return contiguous and k * dtype.itemsize % VECTOR_BYTES == 0 == m * dtype.itemsize % VECTOR_BYTES


def tall_row(arch: int, dtype: torch.dtype, k: int, m: int, input_precision: str, aligned: bool) -> Key:
    """The row of one_pass_tall."""
    plain = tall_kind(dtype, input_precision)
    row = Key("one_pass_tall", plain, nearest_architecture(arch), tall_block_k(k))
    if not aligned:
        unaligned = f"{plain} unaligned"
        return row._replace(kind=unaligned) if (row.family, unaligned) in KINDS else row
    narrow = row._replace(kind=f"{plain} narrow")
    return narrow if m <= TALL_NARROW and narrow in TABLE else row


def vector_tile(row: Config, k: int, dtype: torch.dtype) -> Config:
    """The tile of one_pass_vector for K features from its row, which is that of K = 1."""
    block_k = power_of_2(k)
    columns = min(block_k, WARP_BYTES // dtype.itemsize)
    return replace(row, block_n=row.block_n // block_k, block_k=columns)


def vector_width(k: int, dtype: torch.dtype) -> int:
    """Numbers that one load takes where rows of K lie one after another."""
    return math.gcd(k, VECTOR_BYTES // dtype.itemsize)


def vector_unaligned(k: int, dtype: torch.dtype) -> bool:
    """Whether one_pass_vector reads K features by narrow loads, in tiles of several parts."""
    return k >= UNALIGNED_FROM and k * dtype.itemsize % VECTOR_BYTES != 0


def unaligned_tile(k: int, m: int, dtype: torch.dtype) -> Config:
    """The tile of one_pass_vector for rows that do not begin at multiples of 16 bytes.

    As few lanes as registers allow share a row: shuffles and padding grow with them. Then as many parts as there is room for.
    """
    size, vector = dtype.itemsize, vector_width(k, dtype)

    def kept(lanes: int, parts: int) -> int:
        """Numbers of W and dW, and of X as it is loaded."""
        loads = -(-k // (lanes * vector))
        return 2 * m * loads * vector + parts * loads * max(vector * min(size, 4) // 4, 1)

    lanes, parts = UNALIGNED_LANES, 1
    while lanes < 32 and kept(lanes, parts) > UNALIGNED_NUMBERS[size]:
        lanes *= 2
    wanted = UNALIGNED_BYTES_IN_FLIGHT * max(size // 4, 1)  # of float64 fewer programs fit
    bytes_of_part = -(-k // (lanes * vector)) * vector * size
    while (
        2 * parts <= UNALIGNED_PARTS
        and 2 * parts * bytes_of_part <= wanted
        and kept(lanes, 2 * parts) <= UNALIGNED_NUMBERS[size]
    ):
        parts *= 2
    return Config(32 * UNALIGNED_WARPS // lanes * parts, lanes * vector, num_warps=UNALIGNED_WARPS)


def vector_part(config: Config, k: int, dtype: torch.dtype) -> int:
    """Rows that one_pass_vector computes at once: its tile, or of unaligned rows one for each group of lanes."""
    if not vector_unaligned(k, dtype):
        return config.block_n
    return min(config.block_n, max(32 * config.num_warps * vector_width(k, dtype) // config.block_k, 1))


def vector_registers(config: Config, k: int, dtype: torch.dtype) -> int | None:
    """The most registers of a thread of one_pass_vector; None where the assembler chooses.

    With parts it would choose few, and so move each load to where it is used. Told a number, it fills it.
    """
    parts = vector_part(config, k, dtype) < config.block_n
    return UNALIGNED_REGISTERS[dtype.itemsize] if parts else None


def one_pass_config(
    family: str,
    arch: int,
    dtype: torch.dtype,
    k: int,
    m: int,
    input_precision: str = "ieee",
    contiguous: bool = True,
) -> Config:
    """The shipped configuration.

    Parameters
    ----------
    family : {"rows", "vector", "dot", "tall"}
    arch : int
        Compute capability, major * 10 + minor.
    dtype : torch.dtype
        Of X.
    k, m : int
        Columns of X and of Y.
    input_precision : str
        Of float32 products; "tall" has tables of its own for each.
    contiguous : bool
        Whether the rows of X and Y lie one after another, from a multiple of 16 bytes on; asked by "tall".
    """
    size = dtype.itemsize
    if family == "rows":
        rows, _ = rows_group(k, size)
        by_bytes = ROWS_BYTES_IN_FLIGHT // (rows * (k + m) * size)
        by_registers = ROWS_ACCUMULATORS * 4 // ((1 + m + m * k) * max(size, 4))
        each = 4 if min(by_bytes, by_registers) >= 4 else max(min(by_bytes, by_registers, 2), 1)
        warps = ROWS_WARPS[nearest_architecture(arch, ROWS_WARPS)]
        return Config(block_n=each * 32 * warps, num_warps=warps)
    nearest = nearest_architecture(arch)
    if family == "vector" and vector_unaligned(k, dtype):
        return unaligned_tile(k, m, dtype)
    if family == "vector":
        return vector_tile(table.lookup("one_pass_vector", width_kind(dtype), nearest, power_of_2(m)), k, dtype)
    if family == "dot":
        return table.lookup("one_pass_dot", width_kind(dtype), nearest, max(power_of_2(k), 16))
    if family == "tall":
        return table.lookup(*tall_row(arch, dtype, k, m, input_precision, tall_aligned(k, m, dtype, contiguous)))
    raise ValueError(f"family is {family!r}, must be 'rows', 'vector', 'dot' or 'tall'")


def rows_per_tile(family: str, config: Config, k: int, dtype: torch.dtype) -> int:
    """Rows of X that one program takes at a time."""
    return config.block_n * (rows_group(k, dtype.itemsize)[0] if family == "rows" else 1)


# The tiled products, and the elementwise kernels beside them.

SUM_BLOCK = 1024  # numbers that a program of an ordered sum holds
ELEMENTWISE_TILE = 4096  # numbers in a tile of an elementwise kernel
LOSS_PROGRAMS = 1024  # programs of the loss of a stored residual
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}
MIN_STEPS_PER_PART = 4  # a part of the rows shorter than this is all prologue and epilogue

# The block that steps along the reduction; the others span the tile.
REDUCED = {
    "forward": "block_k",
    "backward_input": "block_m",
    "backward_weight": "block_n",
    "forward_descriptors": "block_k",
    "backward_products": "block_m",
    "backward_products_descriptors": "block_m",
    "backward_weight_step_descriptors": "block_n",
}


def product_kind(family: str, dtype: torch.dtype, input_precision: str, wide: bool, aligned: bool) -> str:
    """The kind of operands, of those that have a row in the table for a family."""
    if dtype.itemsize == 1:
        kind = "float8"
    elif dtype.itemsize == 2:
        kind = "wide" if wide and family != "forward" and aligned else "half"
    else:
        kind = "float64" if dtype.itemsize == 8 else input_precision.replace("ieee", "float32")
    return kind if aligned or (family, kind + " unaligned") not in KINDS else kind + " unaligned"


def product_offered(
    family: str,
    arch: int,
    dtype: torch.dtype,
    *,
    input_precision: str = "ieee",
    wide: bool = False,
    aligned: bool = True,
) -> bool:
    """Whether the table has a configuration for these operands: the kernels on descriptors, and both backward products in
    one launch, are offered where their compiled code holds the tensor cores' pace."""
    if not aligned and family not in ("forward", "backward_input", "backward_weight"):
        return False
    kind = product_kind(family, dtype, input_precision, wide, aligned)
    return Key(family, kind, product_architecture(arch)) in TABLE


def product_architecture(arch: int) -> int:
    """The architecture whose table serves a compute capability. Others than 90 and 100 get the least shared memory."""
    return 90 if arch == 90 else 100 if 100 <= arch < 120 else 80


def product_config(
    family: str,
    arch: int,
    dtype: torch.dtype,
    n: int,
    k: int,
    m: int,
    *,
    input_precision: str = "ieee",
    wide: bool = False,
    aligned: bool = True,
) -> Config:
    """Configuration of a tiled product.

    Parameters
    ----------
    family
        One of REDUCED's. Others than "forward", "backward_input" and "backward_weight": where product_offered() says so.
    arch
        Compute capability, 90 for 9.0.
    dtype
        Of the input and the weight.
    input_precision
        "ieee", "tf32" or "tf32x3", for float32.
    wide
        A float32 residual or a matrix grad_output is read beside half operands: shorter steps, to fit shared memory.
    aligned
        Whether the operands' rows are dense, and start at multiples of 16 elements.

    Returns
    -------
    The table's configuration, with no block longer than its dimension needs (16 at least, 32 along the reduction), and
    tiles halved while there are fewer of them than multiprocessors. The weight's gradient has its rows split instead:
    see default_split.
    """
    arch = product_architecture(arch)
    config = table.lookup(family, product_kind(family, dtype, input_precision, wide, aligned), arch)
    size = {"block_n": n, "block_k": k, "block_m": m}
    together = family.startswith("backward_products")
    if together:  # tiles of N × K and of M × K, steps along M and N
        size["block_n"] = size["block_m"] = max(n, m)
    block = {}
    for name, length in size.items():
        least = 32 if name == REDUCED[family] else 16
        block[name] = min(getattr(config, name), max(least, power_of_2(length)))
    first, second = (name for name in block if name != REDUCED[family])
    if not family.startswith("backward_weight"):
        longest = max(first, second, key=block.get)
        while (
            block[longest] > 64
            and (-(-size[first] // block[first]) + together * -(-m // block[first])) * -(-size[second] // block[second])
            < MULTIPROCESSORS[arch]
        ):
            block[longest] //= 2
            longest = max(first, second, key=block.get)
    return Config(**block, num_warps=config.num_warps, num_stages=config.num_stages)


def default_split(n: int, k: int, m: int, config: Config, multiprocessors: int) -> int:
    """Parts of the rows for the weight's gradient: two waves of programs at most, MIN_STEPS_PER_PART steps each at least."""
    tiles = -(-m // config.block_m) * -(-k // config.block_k)
    steps = -(-n // config.block_n)
    return max(1, min(2 * multiprocessors // tiles, steps // MIN_STEPS_PER_PART))


def default_products_split(n: int, k: int, m: int, config: Config, multiprocessors: int) -> int:
    """Parts of the rows for the weight's gradient where both backward products share one launch.

    One, unless a tile of dW is longer than three quarters of a multiprocessor's share of all steps: then the others' tiles
    could not fill the time it takes.
    """
    rows, columns, step = config.block_n, config.block_k, config.block_m
    steps_n, steps_m = -(-n // step), -(-m // step)
    all_steps = (-(-n // rows) * steps_m + -(-m // rows) * steps_n) * -(-k // columns)
    longest = max(3 * all_steps // (4 * multiprocessors), MIN_STEPS_PER_PART)
    return max(1, min(-(-steps_n // longest), steps_n // MIN_STEPS_PER_PART))


# Numbers of a tile that a thread may hold in the epilogue that steps: weight, momentum and their addresses come on top.
# tf32 has its operands pass through registers.
EPILOGUE_NUMBERS = {"float64": 16, "float32": 64, "tf32": 32, "tf32x3": 32, "half": 64}


def epilogue_config(config: Config, dtype: torch.dtype, input_precision: str, aligned: bool = True) -> Config:
    """The configuration of a product of the weight's gradient, with its tile small enough for an update in the epilogue.

    What is not aligned is loaded and stored number by number, each with an address of its own: a quarter of the tile.
    """
    kind = product_kind("", dtype, input_precision, wide=False, aligned=True)
    block_k, block_m = config.block_k, config.block_m
    numbers = EPILOGUE_NUMBERS[kind] // (1 if aligned else 4)
    while block_k * block_m > numbers * 32 * config.num_warps:
        if block_k >= block_m:
            block_k //= 2
        else:
            block_m //= 2
    return Config(config.block_n, block_k, block_m, config.num_warps, config.num_stages)


EPILOGUE_BYTES = 64 << 10  # that the pieces of a tile which pass through shared memory at a time take together


def epilogue_parts(rows: int, columns: int, bytes_moved: int) -> int:
    """Column blocks that a tile is finished in, where so many bytes go through shared memory for each of its numbers."""
    parts = 1
    while rows * columns // parts * bytes_moved > EPILOGUE_BYTES and columns // parts > 16:
        parts *= 2
    return parts


def elementwise_tile(columns: int) -> tuple[int, int]:
    """(BLOCK_N, BLOCK_M) of an elementwise kernel: as wide as a row, up to ELEMENTWISE_TILE numbers in all."""
    block_m = min(power_of_2(columns), ELEMENTWISE_TILE)
    return ELEMENTWISE_TILE // block_m, block_m


COLUMN_SUMS_BLOCK = 128  # columns of a program of column_sums
COLUMN_SUMS_TILES = 4  # of a part of the rows, or the launch that adds the parts is worth less than it takes
COLUMN_SUMS_BYTES = 4 << 20  # of a matrix: of a smaller one PyTorch's sum takes one launch, and little memory


def column_sums_wins(rows: int, columns: int, itemsize: int) -> bool:
    """Whether column_sums is taken, not PyTorch's sum: of so large a matrix that memory counts."""
    return rows * columns * itemsize >= COLUMN_SUMS_BYTES


def column_sums_grid(rows: int, columns: int) -> tuple[int, int, int]:
    """(BLOCK_N, BLOCK_M, parts of the rows) of column_sums."""
    block_m = min(power_of_2(columns), COLUMN_SUMS_BLOCK)
    block_n = ELEMENTWISE_TILE // block_m
    most = max(1, LOSS_PROGRAMS // -(-columns // block_m))
    return block_n, block_m, min(-(-rows // (block_n * COLUMN_SUMS_TILES)), most)


# SGD, the same on every architecture.

_SGD = table.lookup("sgd", "any", ARCHITECTURES[0])
SGD_BLOCK = _SGD.block_n
SGD_WARPS = _SGD.num_warps
SGD_TAIL = 256  # numbers at a time where accesses are masked: one a thread, or masks and addresses fill the registers
SGD_NORM_PROGRAMS = 1024  # each leaves one partial sum
