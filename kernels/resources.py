"""What the compiler made of the shipped configurations: the committed table resources.json, which compiled.py writes."""

import functools
import json
import math
import pathlib
import re

import torch

from .configs import REDUCED, TALL_NARROW, product_kind, tall_block_k, vector_unaligned


@functools.cache
def table() -> dict[str, dict[str, dict]]:
    """Variant name -> architecture -> registers, shared_bytes, programs_per_sm, occupancy, limited_by."""
    path = pathlib.Path(__file__).with_name("resources.json")
    return json.loads(path.read_text(encoding="utf-8"))["variants"]


@functools.cache
def nearest(
    path: str,
    architecture: int,
    dtype: torch.dtype,
    k: int,
    m: int,
    input_precision: str = "ieee",
    residual: bool = False,
    *,
    wide: bool = False,
    aligned: bool = True,
) -> dict | None:
    """The compiled variant nearest to what a plan's path launches, with its name as "variant"; None where there is none.

    The path may also be a family of the tiled products; "tiled" is "forward". wide and aligned are of those alone, as for
    product_config. One-pass kernels are specialised to K and M, and a selection of them stands for all: nearest is
    counted in doublings.
    """
    short = str(dtype).removeprefix("torch.")
    family = "forward" if path == "tiled" else path
    if family in REDUCED:
        name = f"{family} {product_kind(family, dtype, input_precision, wide, aligned)}"
        made = table().get(name, {}).get(str(architecture))
        return None if made is None else {"variant": name, **made}
    # float16 and bfloat16 have one size and compile alike: each has a selection of its own, the two together are finer.
    kinds = "(?:float16|bfloat16)" if dtype.itemsize == 2 else short
    near = {}
    for name in table():
        found = re.match(rf"{path} {kinds} K=(\d+) M=(\d+)", name)
        if found:
            variant_k, variant_m = int(found[1]), int(found[2])
            distance = abs(math.log2(variant_k / k)) + abs(math.log2(variant_m / m))
            precision = next((word for word in name.split() if word.startswith("tf32")), "ieee")
            order = (distance, ("residual" in name) != residual, precision != input_precision)
            if (
                path == "one_pass_tall"
            ):  # its tiles change with the precision, with K padded, and with M where it is small
                blocks = abs(math.log2(tall_block_k(variant_k) / tall_block_k(k)))
                order = (precision != input_precision, blocks, (variant_m <= TALL_NARROW) != (m <= TALL_NARROW), *order)
            if path == "one_pass_vector":
                order = (vector_unaligned(variant_k, dtype) != vector_unaligned(k, dtype), *order)
            near[name] = order
    if not near:
        return None
    name = min(near, key=near.__getitem__)
    return {"variant": name, **table()[name][str(architecture)]}


@functools.cache
def nearest_run(kind: str, architecture: int, dtype: torch.dtype, n: int, k: int, m: int) -> dict | None:
    """The compiled variant nearest to a kernel of a whole run ("resident", "batches" or "grid"), with its name as "variant"."""
    kinds = "(?:float16|bfloat16)" if dtype.itemsize == 2 else str(dtype).removeprefix("torch.")
    near = {}
    for name, made in table().items():
        found = re.match(rf"run_{kind} {kinds} N=(\d+) K=(\d+) M=(\d+)", name)
        if found and str(architecture) in made:
            near[name] = sum(abs(math.log2(int(a) / b)) for a, b in zip(found.groups(), (n, k, m), strict=True))
    if not near:
        return None
    name = min(near, key=near.__getitem__)
    return {"variant": name, **table()[name][str(architecture)]}
