"""Compile any kernel for any GPU without one, and read what came out: registers, spills, shared memory, instructions.

    python -m gdcore.kernels.compiled [--arch 90] [--write]

prints a table of every shipped variant; --write stores the figures in resources.json, from which the library predicts
occupancy. Triton decides at import whether kernels are interpreted, so this needs a process without TRITON_INTERPRET.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .buffers import read_twice
from .configs import Config

ARCHITECTURES = (80, 90, 100)
RESOURCES = pathlib.Path(__file__).with_name("resources.json")
TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Variant:
    """One kernel in one shipped configuration, and what its compiled code must show."""

    name: str  # reads as a sentence: "one_pass_rows float32 K=3 M=1"
    kernel: Any  # the triton.jit function
    arguments: dict[str, str]  # run-time argument -> Triton type: "*fp32", "i32", "fp32"
    constants: dict[str, Any]  # constexpr argument -> value
    config: Config
    tensor_cores: bool = False  # HMMA / HGMMA / UTCHMMA must appear
    vector_loads: bool = False  # 128-bit global loads (or TMA) must appear
    descriptors: bool = False  # tiles must come by TMA, and Hopper's matrix instructions must overlap
    divisible_by_16: tuple[str, ...] = field(default=())  # arguments that the launch sees as multiples of 16
    most_registers: int | None = None  # that the launch allows a thread
    fp_fusion: bool = True  # products and additions may become one instruction


@dataclass(frozen=True)
class Chip:
    """What one multiprocessor has to share out."""

    shared_bytes: int  # of all resident programs
    max_shared_bytes: int  # of one program
    max_warps: int
    max_programs: int = 32
    registers: int = 65536
    reserved_shared_bytes: int = 1024  # taken by the system for each program


CHIPS = {
    80: Chip(shared_bytes=167936, max_shared_bytes=166912, max_warps=64),
    90: Chip(shared_bytes=233472, max_shared_bytes=232448, max_warps=64),
    100: Chip(shared_bytes=233472, max_shared_bytes=232448, max_warps=64),
}


@dataclass(frozen=True)
class Resources:
    """What the compiled code of a variant takes, and the instructions that say how it works."""

    registers: int  # of a thread
    stack_bytes: int  # of a thread; spilled registers live there
    shared_bytes: int  # of a program
    programs_per_sm: int  # that fit together
    occupancy: float  # resident warps / the most that fit
    limited_by: str
    instructions: dict[str, int]
    read_twice: list[str]  # buffers in which a matrix instruction may race with a copy: see buffers.py


# SASS opcodes worth counting: matrix products, wide, narrow and asynchronous global accesses, spills, exchanges.
COUNTED = re.compile(
    r"(?<![\w.])(?P<name>HGMMA|QGMMA|UTCHMMA|UTCQMMA|HMMA|DMMA|UTMALDG|LDGSTS|LDG|STG|LDL|STL|SHFL|BAR|USETMAXREG)"
    r"(?P<modifiers>[\w.]*)"
)
SERIAL_WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"  # for all matrix instructions of Hopper that are under way
WIDTHS = ("LDG", "STG", "LDGSTS")


def occupancy(chip: Chip, registers: int, shared_bytes: int, num_warps: int) -> tuple[int, float, str]:
    """(programs that fit on a multiprocessor, share of its warps, what limits them)."""
    registers_of_a_warp = -(-registers * 32 // 256) * 256
    limits = {
        "registers": chip.registers // registers_of_a_warp // num_warps if registers else chip.max_programs,
        "shared memory": chip.shared_bytes // (shared_bytes + chip.reserved_shared_bytes),
        "warps": chip.max_warps // num_warps,
        "programs": chip.max_programs,
    }
    reason = min(limits, key=lambda name: limits[name])
    return limits[reason], limits[reason] * num_warps / chip.max_warps, reason


def count_instructions(sass: str) -> dict[str, int]:
    """Opcode -> how often it stands in the code; LDG, STG and LDGSTS by width."""
    counts: collections.Counter[str] = collections.Counter()
    for match in COUNTED.finditer(sass):
        name = match["name"]
        if name in WIDTHS:
            width = re.search(r"\.(64|128|256)\b", match["modifiers"])
            name += f".{width[1]}" if width else ".32"
        counts[name] += 1
    if SERIAL_WAIT in sass:
        counts["HGMMA waits"] = sass.count(SERIAL_WAIT)
    return dict(sorted(counts.items()))


def tool(name: str, *arguments: str) -> str:
    """Output of one of the CUDA tools in the Triton wheel."""
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def compile_kernel(variant: Variant, arch: int) -> Any:
    """The compiled kernel, as triton.compile returns it; arch as below, or 942 for AMD's gfx942."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError(
            "kernels are interpreted in this process (TRITON_INTERPRET=1), so there is nothing to compile"
        )
    names = variant.kernel.arg_names
    given = variant.arguments.keys() | variant.constants.keys()
    if given != set(names) or len(given) != len(variant.arguments) + len(variant.constants):
        raise ValueError(
            f"{variant.name}: arguments and constants are {sorted(given)}, must be exactly {sorted(names)}"
        )
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.arguments.get(name, "constexpr") for name in names},
        constexprs=dict(variant.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible_by_16},
    )
    options = {
        "num_warps": variant.config.num_warps,
        "num_stages": variant.config.num_stages,
        "enable_fp_fusion": variant.fp_fusion,
        "maxnreg": variant.most_registers,
    }
    target = GPUTarget("hip", "gfx942", 64) if arch == 942 else GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options=options)


def compile_variant(variant: Variant, arch: int) -> Resources:
    """Compile a variant for an architecture (80, 90, 100) and read its machine code.

    Parameters
    ----------
    variant : Variant
    arch : int
        Compute capability, major * 10 + minor. No GPU is needed.

    Returns
    -------
    Resources
    """
    compiled = compile_kernel(variant, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", tool("cuobjdump", "-res-usage", file.name))
        sass = tool("nvdisasm", "-c", "-ndf", file.name)  # -ndf: no data-flow analysis, twice as fast
    registers, stack, _, local = map(int, usage.groups())
    shared = compiled.metadata.shared
    programs, share, limited_by = occupancy(CHIPS[arch], registers, shared, compiled.metadata.num_warps)
    instructions = count_instructions(sass)
    shared_operands = read_twice(compiled.asm["ttgir"])
    return Resources(registers, stack + local, shared, programs, share, limited_by, instructions, shared_operands)


def resources_or_error(arch: int, index: int) -> tuple[str, int, dict[str, Any]]:
    """Name, architecture and figures (or {"error": ...}) of one shipped variant; runs in a worker process."""
    from .loops import predict_step
    from .shipped import variants

    variant = variants(arch)[index]
    try:
        figures = dataclasses.asdict(compile_variant(variant, arch))
        if "steps" in variant.arguments:  # a kernel of a whole run
            figures["predicted_step_seconds"] = predict_step(variant, arch)["predicted_seconds"]
    except Exception as error:  # a compiler may raise anything; the caller reports it beside the variants that compiled
        figures = {"error": f"{type(error).__name__}: {error}"}
    return variant.name, arch, figures


def compile_shipped(
    architectures: Iterable[int] = ARCHITECTURES, only: Collection[str] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Variant name -> architecture -> figures, for everything that ships, or `only` "<name> on sm_<arch>", on all cores."""
    from .shipped import variants

    tasks = [
        (arch, index)
        for arch in architectures
        for index, variant in enumerate(variants(arch))
        if only is None or f"{variant.name} on sm_{arch}" in only
    ]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        for name, arch, figures in pool.map(resources_or_error, *zip(*tasks, strict=True)):
            found.setdefault(name, {})[str(arch)] = figures
    return found


def document(found: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What resources.json holds: the figures that predict occupancy, and the compiler that they are true for."""
    kept = ("registers", "shared_bytes", "programs_per_sm", "occupancy", "limited_by", "predicted_step_seconds")
    return {
        "triton": triton.__version__,
        "note": "Written by `python -m gdcore.kernels.compiled --write`. True for this version of Triton only.",
        "variants": {
            name: {arch: {key: figures[key] for key in kept if key in figures} for arch, figures in by_arch.items()}
            for name, by_arch in found.items()
        },
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gdcore.kernels.compiled", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, action="append", help="default: all")
    parser.add_argument("--write", action="store_true", help=f"store {RESOURCES.name} (needs all architectures)")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file instead of printing a table")
    parser.add_argument("--only", type=pathlib.Path, help="a file of lines <variant> on sm_<arch>")
    arguments = parser.parse_args()
    if arguments.write and (arguments.arch or arguments.only):
        parser.error("--write needs all variants, so it takes no --arch and no --only")
    only = set(arguments.only.read_text().splitlines()) if arguments.only else None
    found = compile_shipped(arguments.arch or ARCHITECTURES, only)
    if arguments.json:
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "variants": found}))
        return
    print(f"Triton {triton.__version__}")
    print(f"{'variant':58} arch  regs stack  shared  programs  occupancy  limited by")
    failed = False
    for name, by_arch in found.items():
        for arch, figures in by_arch.items():
            if "error" in figures:
                failed = True
                print(f"{name:58} {arch:>4}  {figures['error']}")
                continue
            print(
                f"{name:58} {arch:>4} {figures['registers']:5} {figures['stack_bytes']:5} {figures['shared_bytes']:7} "
                f"{figures['programs_per_sm']:9} {figures['occupancy']:9.0%}   {figures['limited_by']:14} "
                + " ".join(f"{name} {count}" for name, count in figures["instructions"].items())
            )
    if failed:
        raise SystemExit("some variants do not compile")
    if arguments.write:
        RESOURCES.write_text(json.dumps(document(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
