"""Which part of the device's rate a kernel reaches, and how that is known; how far such a model is trusted.

Rates are the device's: those that the library's own products reach. Where a factor is assumed, a model of this kind ranks
paths that differ by a half; it cannot tell two that differ by a tenth. Where they were measured, it was within a tenth of
every product of 1,024 and more.
"""

from typing import NamedTuple

import torch

from .devices import Device


class Factor(NamedTuple):
    """A part of the device's rate that a kernel is expected to reach, and how that is known."""

    value: float
    known: str  # measured, published, compiled code, assumed
    source: str


_H100 = "H100, Triton 3.6, 2026-11-28"
_H200 = "H200, Triton 3.6, 2026-11-28"
# By family and kind. A family of the tiled products that has none of its own takes "product"'s, and a kind "any".
FACTORS: dict[tuple[str, str], Factor] = {
    ("library", "any"): Factor(1.0, "measured", "the device's rates are the library's, 8192 x 8192 x 8192 on an H200"),
    ("library", "half"): Factor(1.05, "measured", f"{_H100}: without waves and ends of tiles, which are in that rate"),
    ("library", "half unaligned"): Factor(0.19, "measured", f"{_H100}: 8191 x 4097 x 4095 in 1660 to 2070 µs"),
    ("product", "half"): Factor(0.85, "assumed", "pointers in place of descriptors, two programs a multiprocessor"),
    ("forward_descriptors", "half"): Factor(1.06, "measured", f"{_H100}: 8192 rows, 1024 to 8192 features and outputs"),
    ("forward_descriptors", "tf32"): Factor(0.85, "assumed", "as half, and operands are twice as long"),
    ("both_descriptors", "half"): Factor(0.87, "measured", f"{_H100}: 8192 rows, 1024 to 8192 features and outputs"),
    ("both_descriptors", "tf32"): Factor(0.6, "assumed", "as product"),
    ("backward_weight", "half"): Factor(1.06, "measured", f"{_H100}: 8192 rows, 1024 to 8192 features and outputs"),
    ("backward_input", "half"): Factor(1.04, "measured", f"{_H200}: 8192 rows, 1024 to 8192 features and outputs"),
    ("forward", "half unaligned"): Factor(0.095, "measured", f"{_H100}: 8191 x 4097 x 4095 in 3828 µs"),
    ("backward_input", "half unaligned"): Factor(0.104, "measured", f"{_H100}: 8191 x 4097 x 4095 in 3510 µs"),
    ("backward_weight", "half unaligned"): Factor(0.063, "measured", f"{_H100}: 8191 x 4097 x 4095 in 5801 µs"),
    ("product", "tf32"): Factor(0.6, "assumed", "operands pass through registers"),
    ("forward", "float32"): Factor(0.275, "measured", f"{_H100}: 8192 x 2048 x 2048 in 4910 µs"),
    ("backward_weight", "float32"): Factor(0.94, "measured", f"{_H100}: 8192 x 2048 x 2048 in 1465 µs"),
    ("product", "float32"): Factor(
        0.87, "compiled code", "1024 FFMA of 1171 instructions of a loop, sm_90, Triton 3.7.1"
    ),
    ("product", "float64"): Factor(0.85, "assumed", "matrix instructions, as float32's loop"),
    ("tall", "half"): Factor(0.525, "measured", f"{_H200}: 1,000,000 x 256 x 256 in 642 µs"),
    ("tall", "tf32"): Factor(0.4, "assumed", "as half, and one operand of each product passes through registers"),
    ("tall", "float32"): Factor(0.104, "measured", f"{_H100}: 500,000 x 64 x 64 in 1516 µs"),
    ("tall", "float64"): Factor(0.6, "assumed", "as half"),
    ("dot", "half"): Factor(0.25, "assumed", "16 columns fill a quarter of a matrix instruction's time"),
    ("dot", "tf32"): Factor(0.25, "assumed", "as half"),
    ("dot", "float32"): Factor(0.124, "measured", f"{_H100}: 2,000,000 x 64 x 16 in 1286 µs"),
    ("dot", "float64"): Factor(0.4, "assumed", "as float32, with matrix instructions of fewer columns"),
    ("rows", "any"): Factor(
        0.3, "assumed", "multiplications and sums on the ordinary units, beside address arithmetic"
    ),
    ("vector", "any"): Factor(0.3, "assumed", "as rows"),
}
# Times as fast must a path be predicted, where the products' factors were measured, and elsewhere.
TRUSTED, UNSURE = 1.02, 1.10


def kind_of(dtype: torch.dtype, input_precision: str) -> str:
    """The unit that multiplies: half, tf32, float32 or float64."""
    if dtype.itemsize == 2:
        return "half"
    if dtype is torch.float64:
        return "float64"
    return "float32" if input_precision == "ieee" else "tf32"


def factor_of(family: str, dtype: torch.dtype, input_precision: str, aligned: bool = True) -> Factor:
    """The factor for a kernel's family: rows, vector, dot, tall, library, product, or one of the tiled products'."""
    kind = kind_of(dtype, input_precision)
    for found in ((family, kind), ("product" if (family, "any") not in FACTORS else family, kind), (family, "any")):
        if not aligned and (found[0], f"{kind} unaligned") in FACTORS:
            return FACTORS[found[0], f"{kind} unaligned"]
        if found in FACTORS:
            return FACTORS[found]
    raise KeyError(family)


def trusted_to(device: Device, dtype: torch.dtype, input_precision: str) -> float:
    """How many times as fast as the library's products a path must be predicted to be, to be taken for it."""
    return TRUSTED if device.architecture == 90 and kind_of(dtype, input_precision) == "half" else UNSURE
