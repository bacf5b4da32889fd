"""What the compiler made of the shipped configurations: the committed table resources.json, which compiled.py writes."""

import functools
import json
import math
import pathlib
import re

import torch


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
) -> dict | None:
    """The compiled variant nearest to what a plan's path launches, with its name as "variant"; None where there is none.

    One-pass kernels are specialised to K and M, and a selection of them stands for all: nearest is counted in doublings.
    """
    short = str(dtype).removeprefix("torch.")
    if path == "tiled":
        name = f"forward {'half' if dtype.itemsize == 2 else input_precision if input_precision == 'tf32' else short}"
        return {"variant": name, **table()[name][str(architecture)]}
    # float16 and bfloat16 have one size and compile alike: each has a selection of its own, the two together are finer.
    kinds = "(?:float16|bfloat16)" if dtype.itemsize == 2 else short
    near = {}
    for name in table():
        found = re.match(rf"{path} {kinds} K=(\d+) M=(\d+)", name)
        if found:
            distance = abs(math.log2(int(found[1]) / k)) + abs(math.log2(int(found[2]) / m))
            near[name] = (distance, ("residual" in name) != residual, ("tf32" in name) != (input_precision == "tf32"))
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
