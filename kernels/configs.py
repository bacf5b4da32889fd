"""Tile configurations as data, by kernel family, architecture and element size.

Policy (which family for which shape) is gdcore/plan.py's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Config:
    """One launch configuration. A block size that a family does not use is 0."""

    block_n: int
    block_k: int = 0
    block_m: int = 0
    num_warps: int = 4
    num_stages: int = 1


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype is torch.float64 else torch.float32


# ONE_PASS: loss and gradients from one read of X and Y.
# Each aims at 40 kB or more of loads in flight on a multiprocessor, with no spills. Where accumulators fill the registers
# it is less, 24 kB at least: the largest M of one_pass_rows, float64, and one_pass_dot at K = 17 to 50 or so.

VECTOR_BYTES = 16  # the widest load
WARP_BYTES = 512  # of a warp's lanes together
ROWS_GROUP_BYTES = 256  # of the X that a lane of one_pass_rows holds, as the accumulator sees it: 64 registers
ROWS_MIN_BYTES = 64  # of X for each lane from K = 8 on, where accumulators leave no room for a second group
ROWS_BYTES_IN_FLIGHT = 128  # that a thread of one_pass_rows requests before it uses any of them
ROWS_ACCUMULATORS = 32  # that a thread of one_pass_rows keeps
ONE_PASS_WARPS = 4

# one_pass_vector: by element size, then outputs (rounded up): (elements of a tile, stages). The accumulators, one tile
# for each output, fill the registers, so tiles shrink with M and asynchronous copies keep the loads in flight instead.
# The same on every architecture.
ONE_PASS_VECTOR = {
    8: {1: (1024, 1), 2: (1024, 3), 4: (1024, 4)},
    4: {1: (2048, 1), 2: (2048, 3), 4: (1024, 6)},
    2: {1: (2048, 3), 2: (2048, 5), 4: (1024, 8)},
}

# one_pass_dot: by architecture and element size, then BLOCK_K: (block_n, stages, warps).
_DOT_WIDE = {
    8: {16: (32, 3, 4), 32: (16, 4, 4), 64: (16, 3, 4), 128: (16, 2, 4), 256: (16, 2, 4)},
    4: {16: (64, 4, 4), 32: (32, 4, 4), 64: (16, 4, 4), 128: (16, 3, 4), 256: (16, 3, 8)},
}
ONE_PASS_DOT = {
    80: {**_DOT_WIDE, 2: {16: (128, 5, 4), 32: (64, 4, 4), 64: (32, 4, 4), 128: (32, 4, 4), 256: (16, 4, 4)}},
    90: {**_DOT_WIDE, 2: {16: (128, 4, 4), 32: (128, 3, 4), 64: (64, 4, 4), 128: (64, 3, 4), 256: (64, 4, 8)}},
    100: {**_DOT_WIDE, 2: {16: (128, 4, 4), 32: (64, 4, 4), 64: (64, 3, 4), 128: (64, 3, 4), 256: (16, 4, 4)}},
}

# one_pass_tall: by architecture and kind of operands, then BLOCK_K: (block_n, block_m, stages, warps). Kinds as in PRODUCT,
# and tf32x3. "unaligned": rows of X or Y that do not all begin at multiples of 16 bytes, or columns that do not lie side by
# side, pass through registers one by one. Each row is the largest that compiles without spills, with a stored residual too.
TALL_LIMIT = 512  # of K and of M
TALL_LONG = 256  # beyond it dW fills the registers with 32 outputs, and each further block reads all of X again
TALL_LONG_OUTPUTS = 32
_TALL_FLOAT = {
    "float32": {
        16: (32, 32, 3, 4),
        32: (16, 32, 3, 4),
        64: (16, 16, 3, 4),
        128: (16, 16, 3, 4),
    },
    "float64": {16: (16, 16, 3, 4), 32: (16, 16, 3, 4), 64: (16, 16, 3, 4), 128: (16, 16, 2, 4)},
}
_TALL_UNALIGNED = {
    "half": {
        16: (32, 64, 2, 4),
        32: (16, 64, 2, 4),
        64: (16, 64, 2, 4),
        128: (16, 64, 2, 8),
        256: (16, 64, 2, 8),
        512: (16, 16, 2, 8),
    },
    "tf32": {
        16: (16, 64, 2, 4),
        32: (16, 64, 2, 4),
        64: (16, 64, 2, 4),
        128: (16, 64, 2, 4),
        256: (16, 16, 2, 8),
    },
    "tf32x3": {16: (16, 32, 2, 4), 32: (16, 32, 2, 4), 64: (16, 32, 2, 4)},
}
_TALL_UNALIGNED |= _TALL_FLOAT
ONE_PASS_TALL = {
    80: {
        **_TALL_FLOAT,
        "half": {
            16: (64, 128, 3, 4),
            32: (64, 128, 3, 4),
            64: (32, 64, 4, 4),
            128: (32, 64, 4, 4),
            256: (64, 64, 2, 8),
            512: (32, 32, 2, 8),
        },
        "half narrow": {16: (64, 64, 3, 4), 32: (64, 64, 3, 4)},
        "tf32": {
            16: (32, 64, 3, 4),
            32: (32, 64, 3, 4),
            64: (32, 64, 2, 4),
            128: (32, 64, 2, 8),
            256: (16, 32, 2, 8),
        },
        "tf32x3": {16: (16, 32, 3, 4), 32: (16, 32, 3, 4), 64: (16, 32, 2, 4)},
    },
    90: {
        **_TALL_FLOAT,
        "half": {
            16: (64, 128, 4, 4),
            32: (64, 128, 4, 4),
            64: (64, 64, 4, 4),
            128: (64, 64, 3, 4),
            256: (64, 128, 2, 8),
            512: (32, 32, 2, 8),
        },
        "half narrow": {16: (64, 64, 4, 4), 32: (64, 64, 4, 4), 256: (32, 64, 3, 4)},
        "tf32": {
            16: (64, 64, 3, 4),
            32: (64, 64, 3, 4),
            64: (64, 64, 2, 4),
            128: (32, 64, 2, 4),
            256: (16, 32, 2, 4),
        },
        "tf32x3": {16: (32, 64, 2, 4), 32: (32, 64, 2, 4), 64: (32, 64, 2, 4)},
    },
    100: {
        **_TALL_FLOAT,
        "half": {
            16: (64, 64, 4, 4),
            32: (64, 64, 4, 4),
            64: (64, 64, 4, 4),
            128: (64, 64, 3, 4),
            256: (32, 64, 3, 4),
            512: (32, 64, 2, 8),
        },
        "tf32": {
            16: (32, 64, 3, 4),
            32: (32, 64, 3, 4),
            64: (32, 64, 2, 4),
            128: (32, 64, 2, 4),
            256: (16, 64, 2, 8),
        },
        "tf32x3": {16: (16, 32, 2, 4), 32: (16, 32, 2, 4), 64: (16, 32, 2, 4)},
    },
}
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


def nearest_architecture(arch: int, table: Mapping[int, object]) -> int:
    """The newest architecture of the table that is no newer than `arch`, else its oldest."""
    return max((known for known in table if known <= arch), default=min(table))


def tall_kind(dtype: torch.dtype, input_precision: str) -> str:
    """The kind of operands, by which one_pass_tall's table is ordered."""
    if dtype.itemsize == 2:
        return "half"
    return "float64" if dtype.itemsize == 8 else "float32" if input_precision == "ieee" else input_precision


def tall_block_k(k: int) -> int:
    """All of K, padded to what a matrix instruction takes."""
    return max(1 << (k - 1).bit_length(), 16)


def tall_fits(arch: int, dtype: torch.dtype, k: int, m: int, input_precision: str = "ieee") -> bool:
    """Whether one_pass_tall has a configuration for so many columns of X and of Y that can be the fastest."""
    by_block_k = ONE_PASS_TALL[nearest_architecture(arch, ONE_PASS_TALL)].get(tall_kind(dtype, input_precision), {})
    outputs = TALL_LIMIT if k <= TALL_LONG else TALL_LONG_OUTPUTS
    return 1 <= k <= TALL_LIMIT and 1 <= m <= outputs and tall_block_k(k) in by_block_k


def tall_aligned(k: int, m: int, dtype: torch.dtype, contiguous: bool = True) -> bool:
    """Whether all rows of X and Y begin at multiples of 16 bytes, if the tensors do and are `contiguous`."""
    return contiguous and k * dtype.itemsize % VECTOR_BYTES == 0 == m * dtype.itemsize % VECTOR_BYTES


def tall_config(arch: int, dtype: torch.dtype, k: int, m: int, input_precision: str, aligned: bool) -> Config:
    """The shipped configuration of one_pass_tall."""
    kind, block_k = tall_kind(dtype, input_precision), tall_block_k(k)
    by_kind = ONE_PASS_TALL[nearest_architecture(arch, ONE_PASS_TALL)] if aligned else _TALL_UNALIGNED
    by_block_k = by_kind[kind]
    if m <= TALL_NARROW:
        by_block_k = by_block_k | by_kind.get(f"{kind} narrow", {})
    block_n, block_m, stages, warps = by_block_k[block_k]
    return Config(block_n=block_n, block_k=block_k, block_m=block_m, num_warps=warps, num_stages=stages)


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
        return Config(block_n=each * 32 * ONE_PASS_WARPS, num_warps=ONE_PASS_WARPS)
    block_k = 1 << (k - 1).bit_length()
    if family == "vector":
        elements, stages = ONE_PASS_VECTOR[size][1 << (m - 1).bit_length()]
        block_n, block_k = elements // block_k, min(block_k, WARP_BYTES // size)
        return Config(block_n=block_n, block_k=block_k, num_warps=ONE_PASS_WARPS, num_stages=stages)
    if family == "dot":
        block_k = max(block_k, 16)
        block_n, stages, warps = ONE_PASS_DOT[nearest_architecture(arch, ONE_PASS_DOT)][size][block_k]
        return Config(block_n=block_n, block_k=block_k, block_m=16, num_warps=warps, num_stages=stages)
    if family == "tall":
        return tall_config(arch, dtype, k, m, input_precision, tall_aligned(k, m, dtype, contiguous))
    raise ValueError(f"family is {family!r}, must be 'rows', 'vector', 'dot' or 'tall'")


def rows_per_tile(family: str, config: Config, k: int, dtype: torch.dtype) -> int:
    """Rows of X that one program takes at a time."""
    return config.block_n * (rows_group(k, dtype.itemsize)[0] if family == "rows" else 1)


# PRODUCT: the tiled products, and the elementwise kernels beside them.

SUM_BLOCK = 1024  # numbers that a program of an ordered sum holds
ELEMENTWISE_TILE = 4096  # numbers in a tile of an elementwise kernel
LOSS_PROGRAMS = 1024  # programs of the loss of a stored residual
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}
MIN_STEPS_PER_PART = 4  # a part of the rows shorter than this is all prologue and epilogue

# (family, kind of operands) -> architecture -> configuration. Kinds: float64; float32 in full precision, on the ordinary
# units; tf32; half; wide: a float32 residual or a matrix grad_output read beside half operands. Tiles are the largest
# that compile without spills, stages what shared memory holds; on 90, 128 x 128 in half leaves room for two programs.
PRODUCT: dict[tuple[str, str], dict[int, Config]] = {
    ("forward", "float64"): dict.fromkeys((80, 90, 100), Config(64, 16, 64, 8, 3)),
    ("forward", "float32"): dict.fromkeys((80, 90, 100), Config(64, 32, 128, 8, 3)),
    ("forward", "tf32"): dict.fromkeys((80, 90, 100), Config(128, 32, 128, 8, 3)),
    ("forward", "half"): {
        80: Config(128, 32, 128, 8, 4),
        90: Config(128, 64, 128, 8, 3),
        100: Config(128, 64, 128, 8, 3),
    },
    ("backward_input", "float64"): dict.fromkeys((80, 90, 100), Config(64, 64, 16, 8, 3)),
    ("backward_input", "float32"): dict.fromkeys((80, 90, 100), Config(64, 128, 32, 8, 3)),
    ("backward_input", "tf32"): dict.fromkeys((80, 90, 100), Config(128, 128, 32, 8, 3)),
    ("backward_input", "half"): {
        80: Config(128, 128, 32, 8, 4),
        90: Config(128, 256, 64, 8, 3),
        100: Config(128, 128, 64, 8, 3),
    },
    ("backward_input", "wide"): dict.fromkeys((80, 90, 100), Config(128, 128, 32, 8, 3)),
    ("backward_weight", "float64"): {
        80: Config(16, 64, 64, 8, 3),
        90: Config(16, 64, 64, 8, 3),
        100: Config(16, 64, 64, 4, 3),
    },
    ("backward_weight", "float32"): {
        80: Config(16, 128, 64, 8, 3),
        90: Config(32, 128, 64, 8, 3),
        100: Config(32, 128, 64, 8, 3),
    },
    ("backward_weight", "tf32"): dict.fromkeys((80, 90, 100), Config(32, 128, 128, 8, 3)),
    ("backward_weight", "half"): {
        80: Config(32, 128, 128, 8, 4),
        90: Config(64, 256, 128, 8, 3),
        100: Config(64, 128, 128, 8, 3),
    },
    ("backward_weight", "wide"): dict.fromkeys((80, 90, 100), Config(32, 128, 128, 8, 3)),
    # Operands that no 16 bytes of are known to be aligned come through registers, so tiles are smaller. (float64, and what
    # else is missing here, fits as it is.) "half unaligned" serves "wide" too.
    ("forward", "half unaligned"): dict.fromkeys((80, 90, 100), Config(128, 32, 64, 8, 3)),
    ("forward", "tf32 unaligned"): dict.fromkeys((80, 90, 100), Config(128, 32, 64, 8, 3)),
    ("backward_input", "half unaligned"): dict.fromkeys((80, 90, 100), Config(128, 64, 32, 8, 3)),
    ("backward_weight", "half unaligned"): dict.fromkeys((80, 90, 100), Config(32, 128, 64, 8, 3)),
    ("backward_weight", "tf32 unaligned"): dict.fromkeys((80, 90, 100), Config(32, 128, 64, 8, 3)),
    ("backward_weight", "float32 unaligned"): {
        80: Config(16, 64, 64, 8, 3),
        90: Config(32, 128, 64, 8, 3),
        100: Config(32, 128, 64, 8, 3),
    },
    # Each operand of a tf32x3 product is held twice, its upper and its lower digits, aligned or not.
    ("forward", "tf32x3"): dict.fromkeys((80, 90, 100), Config(128, 32, 64, 8, 3)),
    ("backward_input", "tf32x3"): dict.fromkeys((80, 90, 100), Config(128, 64, 32, 8, 3)),
    ("backward_weight", "tf32x3"): {
        80: Config(32, 64, 64, 8, 3),
        90: Config(32, 64, 128, 8, 3),
        100: Config(32, 64, 128, 8, 3),
    },
    # On descriptors operands take no registers: 128 x 256, with the stages that fit beside the epilogue's pieces.
    ("forward_descriptors", "half"): dict.fromkeys((90, 100), Config(128, 64, 256, 8, 3)),
    ("forward_descriptors", "wide"): dict.fromkeys((90, 100), Config(128, 64, 256, 8, 3)),
    ("forward_descriptors", "float8"): dict.fromkeys((90, 100), Config(128, 128, 256, 8, 3)),
    ("forward_descriptors", "tf32"): dict.fromkeys((90, 100), Config(128, 32, 256, 8, 3)),
    ("forward_descriptors", "tf32x3"): dict.fromkeys((90, 100), Config(128, 32, 128, 8, 3)),
    # Both backward products: block_n x block_k is the tile of dX and of dW, block_m the step of both.
    ("backward_products", "half"): {80: Config(128, 128, 32, 8, 4)},
    ("backward_products", "wide"): {80: Config(128, 128, 32, 8, 3)},
    ("backward_products", "tf32"): {80: Config(128, 128, 32, 8, 3)},
    ("backward_products_descriptors", "half"): dict.fromkeys((90, 100), Config(128, 256, 64, 8, 4)),
    ("backward_products_descriptors", "wide"): dict.fromkeys((90, 100), Config(128, 128, 32, 8, 3)),
    ("backward_weight_step_descriptors", "half"): dict.fromkeys((90, 100), Config(64, 256, 128, 8, 4)),
}

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
    return kind if aligned or (family, kind + " unaligned") not in PRODUCT else kind + " unaligned"


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
    row = PRODUCT.get((family, product_kind(family, dtype, input_precision, wide, aligned)), {})
    return product_architecture(arch) in row


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
    config = PRODUCT[family, product_kind(family, dtype, input_precision, wide, aligned)][arch]
    size = {"block_n": n, "block_k": k, "block_m": m}
    together = family.startswith("backward_products")
    if together:  # tiles of N × K and of M × K, steps along M and N
        size["block_n"] = size["block_m"] = max(n, m)
    block = {}
    for name, length in size.items():
        least = 32 if name == REDUCED[family] else 16
        block[name] = min(getattr(config, name), max(least, 1 << (length - 1).bit_length()))
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
    block_m = min(1 << (columns - 1).bit_length(), ELEMENTWISE_TILE)
    return ELEMENTWISE_TILE // block_m, block_m


# SGD: elementwise over chunks of tensors. 8 numbers a thread are one or two wide loads of each operand; the compiled code
# leaves room for 4 programs or more on a multiprocessor (2 of float64), with 40 kB or more of loads in flight.

SGD_BLOCK = 2048
SGD_WARPS = 8
SGD_TAIL = 256  # numbers at a time where accesses are masked: one a thread, or masks and addresses fill the registers
SGD_NORM_PROGRAMS = 1024  # each leaves one partial sum
