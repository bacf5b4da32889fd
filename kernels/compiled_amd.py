"""Compile every variant for an AMD MI300 (gfx942) without one: a check that nothing here is NVIDIA's alone.

    python -m gdcore.kernels.compiled_amd

prints registers, spills, shared memory and matrix instructions. The library does not run on these GPUs yet: no configuration
was chosen for them, nothing was measured. They get the table of 80 with two stages: asynchronous copies do not exist
there, so a third only takes shared memory, of which there is 64 KiB. one_pass_tall spills there unless its tiles have 16
rows and one stage, and goes without its instruction of NVIDIA's assembler (PTX).
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from .compiled import Variant, compile_kernel
from .one_pass_tall_kernel import one_pass_tall_kernel

GFX942 = 942
TABLE = 80
STAGES = 2
SHARED_BYTES = 65536  # of a program


@dataclass(frozen=True)
class AmdResources:
    """What the compiled code of a variant takes."""

    registers: int  # vector registers of a lane, accumulation registers included
    spilled: int  # of those, kept in memory
    shared_bytes: int  # of a program
    matrix_instructions: int  # MFMA


def compile_for_amd(variant: Variant) -> AmdResources:
    """Compile a variant for gfx942 and read its assembly. No GPU is needed."""
    config = replace(variant.config, num_stages=min(variant.config.num_stages, STAGES))
    different: dict[str, Any] = {"PTX": False}
    if variant.kernel is one_pass_tall_kernel:
        config = replace(config, block_n=16, num_stages=1)
        different["BLOCK_N"] = config.block_n
    different["NUM_STAGES"] = config.num_stages
    constants = variant.constants | {name: value for name, value in different.items() if name in variant.constants}
    compiled = compile_kernel(replace(variant, config=config, constants=constants), GFX942)
    assembly = compiled.asm["amdgcn"]

    def figure(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    return AmdResources(
        registers=figure("vgpr_count"),
        spilled=figure("vgpr_spill_count"),
        shared_bytes=compiled.metadata.shared,
        matrix_instructions=len(re.findall(r"\bv_mfma_", assembly)),
    )


def amd_variants() -> list[Variant]:
    """What ships for 80, without products in three TF32 parts: AMD's compiler has none."""
    from .shipped import variants

    return [variant for variant in variants(TABLE) if variant.constants.get("INPUT_PRECISION") != "tf32x3"]


def resources_or_error(index: int) -> tuple[str, AmdResources | str]:
    """Name, and figures or what went wrong, of one shipped variant; runs in a worker process."""
    variant = amd_variants()[index]
    try:
        return variant.name, compile_for_amd(variant)
    except Exception as error:  # a compiler may raise anything; the caller reports it beside the variants that compiled
        return variant.name, f"{type(error).__name__}: {error}"


def compile_shipped_for_amd() -> dict[str, AmdResources | str]:
    """Variant name -> figures or error, for everything that ships, on all cores."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return dict(pool.map(resources_or_error, range(len(amd_variants()))))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gdcore.kernels.compiled_amd", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file instead of printing a table")
    path = parser.parse_args().json
    found = compile_shipped_for_amd()
    if path:
        path.write_text(json.dumps({name: f if isinstance(f, str) else asdict(f) for name, f in found.items()}))
        return
    for name, figures in found.items():
        if isinstance(figures, str):
            print(f"{name:58} {figures}")
        else:
            print(
                f"{name:58} {figures.registers:4} registers, {figures.spilled} spilled, {figures.shared_bytes:6} B shared, "
                f"{figures.matrix_instructions} MFMA"
            )


if __name__ == "__main__":
    main()
