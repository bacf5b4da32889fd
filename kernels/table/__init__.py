"""The table of configurations: every tile that ships and is not calculated, a row for each, by architecture and regime.

    python -m gdcore.kernels.table [--arch 90] [--family forward]

prints it, with what the compiler made of each row as resources.json has it.

The columns of a row in the source:

family          the kernel file that is launched: one_pass_dot, forward, ...
kind            of operands, by which registers and shared memory are taken:
                float64; float32, in full precision on the ordinary units; tf32; tf32x3; half, float16 and bfloat16;
                float8; wide, a float32 residual or a matrix grad_output read beside half operands;
                any, of a kernel that takes all of them.
                "... unaligned": rows that do not all begin at multiples of 16 bytes, or columns that do not lie side by
                side, pass through registers one by one. A kind with no such row fits as it is.
                "... narrow": up to configs.TALL_NARROW outputs, where there is such a row.
architectures   compute capabilities, 90 for 9.0, that share the row; TABLE has a row for each of them.
                Which of them serves another GPU is said in configs.py.
size            what else the tile depends on: for one_pass_dot and one_pass_tall BLOCK_K, all of K padded to a power of
                two; for one_pass_vector the outputs, padded; 0 for the rest, whose blocks configs.py shortens for small shapes.
blocks          BLOCK_N rows, BLOCK_K features, BLOCK_M outputs; 0 where the family has no such block.
warps, stages   of a program, and of its pipeline of loads.

Not here are the tiles that come from formulas: of one_pass_rows, specialised to each K and M (configs.rows_group and
one_pass_config), of one_pass_vector on unaligned rows (configs.unaligned_tile), and of the kernels of whole runs, which hold
all data (run_configs.py). What else passes over numbers once (loss, residual, ordered sums) takes the same tile everywhere
(configs.py).
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Config:
    """One launch configuration. A block size that a family does not use is 0."""

    block_n: int
    block_k: int = 0
    block_m: int = 0
    num_warps: int = 4
    num_stages: int = 1


class Key(NamedTuple):
    """What a row is found by."""

    family: str
    kind: str
    architecture: int
    size: int = 0


# fmt: off
# family, kind, architectures, size, BLOCK_N, BLOCK_K, BLOCK_M, warps, stages
SKINNY = (
    # Each aims at 40 kB or more of loads in flight on a multiprocessor, with no spills. Where accumulators fill the registers
    # it is less, 24 kB at least: float64, and one_pass_dot at K = 17 to 50 or so.
    #
    # The tile of K = 1; wider rows take BLOCK_N / K padded of them. The accumulators, one tile for each output, fill the
    # registers, so tiles shrink with M and asynchronous copies keep the loads in flight instead.
    ("one_pass_vector", "float64", (80, 90, 100),   1, 1024,   1,   0, 4, 1),
    ("one_pass_vector", "float64", (80, 90, 100),   2, 1024,   1,   0, 4, 3),
    ("one_pass_vector", "float64", (80, 90, 100),   4, 1024,   1,   0, 4, 4),
    ("one_pass_vector", "float32", (80, 100),       1, 2048,   1,   0, 4, 1),
    ("one_pass_vector", "float32", (90,),           1, 4096,   1,   0, 4, 2),
    ("one_pass_vector", "float32", (80, 90, 100),   2, 2048,   1,   0, 4, 3),
    ("one_pass_vector", "float32", (80, 90, 100),   4, 1024,   1,   0, 4, 6),
    ("one_pass_vector", "half",    (80, 100),       1, 2048,   1,   0, 4, 3),
    ("one_pass_vector", "half",    (90,),           1, 4096,   1,   0, 4, 3),
    ("one_pass_vector", "half",    (80, 90, 100),   2, 2048,   1,   0, 4, 5),
    ("one_pass_vector", "half",    (80, 90, 100),   4, 1024,   1,   0, 4, 8),
    # 16 outputs are the least that tl.dot takes. tf32 has float32's rows.
    ("one_pass_dot",    "float64", (80, 90, 100),  16,   32,  16,  16, 4, 3),
    ("one_pass_dot",    "float64", (80, 90, 100),  32,   16,  32,  16, 4, 4),
    ("one_pass_dot",    "float64", (80, 90, 100),  64,   16,  64,  16, 4, 3),
    ("one_pass_dot",    "float64", (80, 90, 100), 128,   16, 128,  16, 4, 2),
    ("one_pass_dot",    "float64", (80, 90, 100), 256,   16, 256,  16, 4, 2),
    ("one_pass_dot",    "float32", (80, 90, 100),  16,   64,  16,  16, 4, 4),
    ("one_pass_dot",    "float32", (80, 90, 100),  32,   32,  32,  16, 4, 4),
    ("one_pass_dot",    "float32", (80, 90, 100),  64,   16,  64,  16, 4, 4),
    ("one_pass_dot",    "float32", (80, 90, 100), 128,   16, 128,  16, 4, 3),
    ("one_pass_dot",    "float32", (80, 90, 100), 256,   16, 256,  16, 8, 3),
    ("one_pass_dot",    "half",    (80,),          16,  128,  16,  16, 4, 5),
    ("one_pass_dot",    "half",    (90, 100),      16,  128,  16,  16, 4, 4),
    ("one_pass_dot",    "half",    (80, 100),      32,   64,  32,  16, 4, 4),
    ("one_pass_dot",    "half",    (90,),          32,  128,  32,  16, 4, 3),
    ("one_pass_dot",    "half",    (80,),          64,   32,  64,  16, 4, 4),
    ("one_pass_dot",    "half",    (90,),          64,   64,  64,  16, 4, 4),
    ("one_pass_dot",    "half",    (100,),         64,   64,  64,  16, 4, 3),
    ("one_pass_dot",    "half",    (80,),         128,   32, 128,  16, 4, 4),
    ("one_pass_dot",    "half",    (90, 100),     128,   64, 128,  16, 4, 3),
    ("one_pass_dot",    "half",    (80, 100),     256,   16, 256,  16, 4, 4),
    ("one_pass_dot",    "half",    (90,),         256,   64, 256,  16, 8, 4),
)

TALL = (
    # Each row is the largest that compiles without spills, with a stored residual too.
    ("one_pass_tall", "float64",          (80, 90, 100),  16,   16,  16,  16, 4, 3),
    ("one_pass_tall", "float64",          (80, 90, 100),  32,   16,  32,  16, 4, 3),
    ("one_pass_tall", "float64",          (80, 90, 100),  64,   16,  64,  16, 4, 3),
    ("one_pass_tall", "float64",          (80, 90, 100), 128,   16, 128,  16, 4, 2),
    ("one_pass_tall", "float32",          (80, 90, 100),  16,   32,  16,  32, 4, 3),
    ("one_pass_tall", "float32",          (80, 90, 100),  32,   16,  32,  32, 4, 3),
    ("one_pass_tall", "float32",          (80, 90, 100),  64,   16,  64,  16, 4, 3),
    ("one_pass_tall", "float32",          (80, 90, 100), 128,   16, 128,  16, 4, 3),
    ("one_pass_tall", "tf32",             (80, 100),      16,   32,  16,  64, 4, 3),
    ("one_pass_tall", "tf32",             (90,),          16,   64,  16,  64, 4, 3),
    ("one_pass_tall", "tf32",             (80, 100),      32,   32,  32,  64, 4, 3),
    ("one_pass_tall", "tf32",             (90,),          32,   64,  32,  64, 4, 3),
    ("one_pass_tall", "tf32",             (80, 100),      64,   32,  64,  64, 4, 2),
    ("one_pass_tall", "tf32",             (90,),          64,   64,  64,  64, 4, 2),
    ("one_pass_tall", "tf32",             (80,),         128,   32, 128,  64, 8, 2),
    ("one_pass_tall", "tf32",             (90, 100),     128,   32, 128,  64, 4, 2),
    ("one_pass_tall", "tf32",             (80,),         256,   16, 256,  32, 8, 2),
    ("one_pass_tall", "tf32",             (90,),         256,   16, 256,  32, 4, 2),
    ("one_pass_tall", "tf32",             (100,),        256,   16, 256,  64, 8, 2),
    ("one_pass_tall", "tf32x3",           (80,),          16,   16,  16,  32, 4, 3),
    ("one_pass_tall", "tf32x3",           (90,),          16,   32,  16,  64, 4, 2),
    ("one_pass_tall", "tf32x3",           (100,),         16,   16,  16,  32, 4, 2),
    ("one_pass_tall", "tf32x3",           (80,),          32,   16,  32,  32, 4, 3),
    ("one_pass_tall", "tf32x3",           (90,),          32,   32,  32,  64, 4, 2),
    ("one_pass_tall", "tf32x3",           (100,),         32,   16,  32,  32, 4, 2),
    ("one_pass_tall", "tf32x3",           (80, 100),      64,   16,  64,  32, 4, 2),
    ("one_pass_tall", "tf32x3",           (90,),          64,   32,  64,  64, 4, 2),
    ("one_pass_tall", "half",             (80,),          16,   64,  16, 128, 4, 3),
    ("one_pass_tall", "half",             (90,),          16,   64,  16, 128, 4, 4),
    ("one_pass_tall", "half",             (100,),         16,   64,  16,  64, 4, 4),
    ("one_pass_tall", "half",             (80,),          32,   64,  32,  64, 4, 3),
    ("one_pass_tall", "half",             (90,),          32,   64,  32, 128, 4, 4),
    ("one_pass_tall", "half",             (100,),         32,   64,  32,  64, 4, 4),
    ("one_pass_tall", "half",             (80,),          64,   32,  64,  64, 4, 4),
    ("one_pass_tall", "half",             (90, 100),      64,   64,  64,  64, 4, 4),
    ("one_pass_tall", "half",             (80,),         128,   32, 128,  64, 4, 4),
    ("one_pass_tall", "half",             (90, 100),     128,   64, 128,  64, 4, 3),
    ("one_pass_tall", "half",             (80,),         256,   64, 256,  64, 8, 2),
    ("one_pass_tall", "half",             (90,),         256,   64, 256, 128, 8, 2),
    ("one_pass_tall", "half",             (100,),        256,   32, 256,  64, 4, 3),
    ("one_pass_tall", "half",             (80, 90),      512,   32, 512,  32, 8, 2),
    ("one_pass_tall", "half",             (100,),        512,   32, 512,  64, 8, 2),
    # A block no wider than the outputs.
    ("one_pass_tall", "half narrow",      (80,),          16,   64,  16,  64, 4, 3),
    ("one_pass_tall", "half narrow",      (90,),          16,   64,  16,  64, 4, 4),
    ("one_pass_tall", "half narrow",      (90,),          32,   64,  32,  64, 4, 4),
    ("one_pass_tall", "half narrow",      (90,),         256,   32, 256,  64, 4, 3),
    # Tiles are smaller: what is loaded takes registers on its way.
    ("one_pass_tall", "tf32 unaligned",   (80, 90, 100),  16,   16,  16,  64, 4, 2),
    ("one_pass_tall", "tf32 unaligned",   (80, 90, 100),  32,   16,  32,  64, 4, 2),
    ("one_pass_tall", "tf32 unaligned",   (80, 90, 100),  64,   16,  64,  64, 4, 2),
    ("one_pass_tall", "tf32 unaligned",   (80, 90),      128,   16, 128,  64, 8, 2),
    ("one_pass_tall", "tf32 unaligned",   (100,),        128,   16, 128,  64, 4, 2),
    ("one_pass_tall", "tf32 unaligned",   (80, 90, 100), 256,   16, 256,  16, 8, 2),
    ("one_pass_tall", "tf32x3 unaligned", (80, 90, 100),  16,   16,  16,  32, 4, 2),
    ("one_pass_tall", "tf32x3 unaligned", (80, 90, 100),  32,   16,  32,  32, 4, 2),
    ("one_pass_tall", "tf32x3 unaligned", (80, 90, 100),  64,   16,  64,  32, 4, 2),
    ("one_pass_tall", "half unaligned",   (80, 90, 100),  16,   32,  16,  64, 4, 2),
    ("one_pass_tall", "half unaligned",   (80, 90, 100),  32,   16,  32,  64, 4, 2),
    ("one_pass_tall", "half unaligned",   (80, 90, 100),  64,   16,  64,  64, 4, 2),
    ("one_pass_tall", "half unaligned",   (80, 90, 100), 128,   16, 128,  64, 8, 2),
    ("one_pass_tall", "half unaligned",   (80, 90),      256,   16, 256,  32, 8, 2),
    ("one_pass_tall", "half unaligned",   (100,),        256,   16, 256,  64, 8, 2),
    ("one_pass_tall", "half unaligned",   (80, 90, 100), 512,   16, 512,  16, 8, 2),
)

PRODUCTS = (
    # Tiles are the largest that compile without spills, stages what shared memory holds. Each operand of a tf32x3 product is
    # held twice, its upper and its lower digits, aligned or not. "half unaligned" serves "wide" too; on 90, 128 x 128
    # in half leaves room for two programs.
    ("forward",                          "float64",           (80, 90, 100),   0,   64,  16,  64, 8, 3),
    ("forward",                          "float32",           (80, 90, 100),   0,   64,  32, 128, 8, 3),
    ("forward",                          "tf32",              (80, 90, 100),   0,  128,  32, 128, 8, 3),
    ("forward",                          "tf32 unaligned",    (80, 90, 100),   0,  128,  32,  64, 8, 3),
    ("forward",                          "tf32x3",            (80, 90, 100),   0,  128,  32,  64, 8, 3),
    ("forward",                          "half",              (80,),           0,  128,  32, 128, 8, 4),
    ("forward",                          "half",              (90, 100),       0,  128,  64, 128, 8, 3),
    ("forward",                          "half unaligned",    (80, 90, 100),   0,  128,  32,  64, 8, 3),
    ("backward_input",                   "float64",           (80, 90, 100),   0,   64,  64,  16, 8, 3),
    ("backward_input",                   "float32",           (80, 90, 100),   0,   64, 128,  32, 8, 3),
    ("backward_input",                   "tf32",              (80, 90, 100),   0,  128, 128,  32, 8, 3),
    ("backward_input",                   "tf32x3",            (80, 90, 100),   0,  128,  64,  32, 8, 3),
    ("backward_input",                   "half",              (80,),           0,  128, 128,  32, 8, 4),
    ("backward_input",                   "half",              (90,),           0,  128, 256,  64, 8, 3),
    ("backward_input",                   "half",              (100,),          0,  128, 128,  64, 8, 3),
    ("backward_input",                   "half unaligned",    (80, 90, 100),   0,  128,  64,  32, 8, 3),
    ("backward_input",                   "wide",              (80, 90, 100),   0,  128, 128,  32, 8, 3),
    # BLOCK_N is the step; the rows are split among programs where tiles are few (configs.default_split).
    ("backward_weight",                  "float64",           (80, 90),        0,   16,  64,  64, 8, 3),
    ("backward_weight",                  "float64",           (100,),          0,   16,  64,  64, 4, 3),
    ("backward_weight",                  "float32",           (80,),           0,   16, 128,  64, 8, 3),
    ("backward_weight",                  "float32",           (90, 100),       0,   32, 128,  64, 8, 3),
    ("backward_weight",                  "float32 unaligned", (80,),           0,   16,  64,  64, 8, 3),
    ("backward_weight",                  "float32 unaligned", (90, 100),       0,   32, 128,  64, 8, 3),
    ("backward_weight",                  "tf32",              (80, 90, 100),   0,   32, 128, 128, 8, 3),
    ("backward_weight",                  "tf32 unaligned",    (80, 90, 100),   0,   32, 128,  64, 8, 3),
    ("backward_weight",                  "tf32x3",            (80,),           0,   32,  64,  64, 8, 3),
    ("backward_weight",                  "tf32x3",            (90, 100),       0,   32,  64, 128, 8, 3),
    ("backward_weight",                  "half",              (80,),           0,   32, 128, 128, 8, 4),
    ("backward_weight",                  "half",              (90,),           0,   64, 256, 128, 8, 3),
    ("backward_weight",                  "half",              (100,),          0,   64, 128, 128, 8, 3),
    ("backward_weight",                  "half unaligned",    (80, 90, 100),   0,   32, 128,  64, 8, 3),
    ("backward_weight",                  "wide",              (80, 90, 100),   0,   32, 128, 128, 8, 3),
    # On descriptors operands take no registers: 128 x 256, with the stages that fit beside the epilogue's pieces.
    ("forward_descriptors",              "tf32",              (90, 100),       0,  128,  32, 256, 8, 3),
    ("forward_descriptors",              "tf32x3",            (90, 100),       0,  128,  32, 128, 8, 3),
    ("forward_descriptors",              "half",              (90, 100),       0,  128,  64, 256, 8, 3),
    ("forward_descriptors",              "wide",              (90, 100),       0,  128,  64, 256, 8, 3),
    ("forward_descriptors",              "float8",            (90, 100),       0,  128, 128, 256, 8, 3),
    # Both backward products in one launch: BLOCK_N x BLOCK_K is the tile of dX and of dW, BLOCK_M the step of both.
    ("backward_products",                "tf32",              (80,),           0,  128, 128,  32, 8, 3),
    ("backward_products",                "half",              (80,),           0,  128, 128,  32, 8, 4),
    ("backward_products",                "wide",              (80,),           0,  128, 128,  32, 8, 3),
    ("backward_products_descriptors",    "half",              (90, 100),       0,  128, 256,  64, 8, 4),
    ("backward_products_descriptors",    "wide",              (90, 100),       0,  128, 128,  32, 8, 3),
    ("backward_weight_step_descriptors", "half",              (90, 100),       0,   64, 256, 128, 8, 4),
)

OPTIMIZER = (
    # Elementwise over chunks of tensors. 8 numbers a thread are one or two wide loads of each operand; the compiled code
    # leaves room for 4 programs or more on a multiprocessor (2 of float64), with 40 kB or more of loads in flight.
    ("sgd", "any", (80, 90, 100), 0, 2048, 0, 0, 8, 1),
)
# fmt: on
REGIMES = {"A skinny": SKINNY, "B tall": TALL, "C products": PRODUCTS, "SGD": OPTIMIZER}

TABLE: dict[Key, Config] = {
    Key(family, kind, architecture, size): Config(block_n, block_k, block_m, warps, stages)
    for rows in REGIMES.values()
    for family, kind, architectures, size, block_n, block_k, block_m, warps, stages in rows
    for architecture in architectures
}
KINDS = frozenset((key.family, key.kind) for key in TABLE)
ARCHITECTURES = tuple(sorted({key.architecture for key in TABLE}))


def lookup(family: str, kind: str, architecture: int, size: int = 0) -> Config:
    """A row of the table; a KeyError where there is none."""
    return TABLE[Key(family, kind, architecture, size)]
