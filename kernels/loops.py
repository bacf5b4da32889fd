"""What one step of a whole run costs, read from the machine code of its loop: nothing here is measured.

    python -m gdcore.kernels.loops [--arch 90]

A run is one launch, so its time is that of its loop over steps. What is in the loop is counted, and its time predicted twice:

in order    The warps of one scheduler play the loop, whichever can issue first. A warp issues its instructions in the order
            of the code, each when the results that it reads are there (LATENCY) and its unit is free (THROUGHPUT); at a
            barrier all wait. The other three schedulers are taken to do the same. The wait of the grid's barrier goes
            round POLLS times. Of STEPS steps, all after the second count.
serial      Every instruction waits for the one before it; the other warps of the scheduler add their issue cycles.
            An upper bound for code whose memory accesses take no longer than LATENCY says.

The latencies are the slow end of what is published for these chips, the clock the low end. Both times are PREDICTIONS.
"""

import argparse
import collections
from collections.abc import Iterable
from typing import Any

import triton

from .compiled import ARCHITECTURES, Variant
from .sass import Instruction, StepLoop, disassemble, step_loop

CLOCK = 1.7e9  # Hz
SCHEDULERS = 4  # of a multiprocessor
POLLS = 2  # rounds of the wait at the grid's barrier: one that comes too early, one that sees the last arrival
STEPS = 8

# Cycles from issue until a result can be read, by the longest prefix of the opcode that stands here.
L2_TRIP = 510  # 300 ns
MEMORY_TRIP = 1190  # 700 ns
LATENCY = {
    "": 6,  # arithmetic
    "ISETP": 13, "FSETP": 13, "DSETP": 22, "PLOP3": 13, "R2P": 13, "P2R": 13, "VOTE": 13, "UISETP": 13,
    "U": 12, "R2UR": 13, "S2R": 40, "S2UR": 40, "CS2R": 20, "LDC": 40, "ULDC": 40, "LDCU": 40,
    "D": 22, "F2F": 30, "F2I": 30, "I2F": 30, "MUFU": 40, "POPC": 30, "FLO": 30,
    "SHFL": 25, "REDUX": 30, "LDS": 30, "STS": 30, "LDSM": 33, "STSM": 33, "BAR": 30, "WARPSYNC": 10, "BRA": 10,
    "LDG": MEMORY_TRIP, "STG": 10, "ATOMG": L2_TRIP, "RED": 10, "MEMBAR": L2_TRIP, "ERRBAR": 10, "CCTL": 30,
    "FENCE": L2_TRIP,
}  # fmt: skip
# Cycles for which an instruction of one warp keeps its unit busy, where it is more than the one of issuing it.
# Shuffles and shared memory serve one warp a cycle for the four schedulers together.
SHARED_UNIT = ("SHFL", "LDS", "STS", "LDSM", "STSM", "REDUX")
THROUGHPUT = {
    80: dict.fromkeys(SHARED_UNIT, 4) | {"F": 2, "D": 4, "MUFU": 8},
    90: dict.fromkeys(SHARED_UNIT, 4) | {"D": 2, "MUFU": 8},
    100: dict.fromkeys(SHARED_UNIT, 4) | {"D": 4, "MUFU": 8},
}


def figure(table: dict[str, int], name: str, default: int) -> int:
    """The entry of the longest prefix of `name`."""
    return table[max(prefixes, key=len)] if (prefixes := [key for key in table if name.startswith(key)]) else default


def unit_of(name: str) -> str:
    """Instructions of one unit wait for each other: shuffles and shared memory, and on 80 all of float32."""
    return "shared" if name in SHARED_UNIT else name[0] if name[0] in "FD" else name


def latency(instruction: Instruction) -> int:
    """Cycles until the result is there. Loads past L1 or for the whole GPU are of what was just written: they hit L2."""
    if instruction.name == "LDG" and "STRONG" in instruction.modifiers:
        return L2_TRIP
    return figure(LATENCY, instruction.name, 6)


def unrolled(loop: StepLoop) -> list[Instruction]:
    """One step as it is executed, branches taken to be not taken and inner loops POLLS times."""
    order = []
    for i, instruction in enumerate(loop.body):
        order.append(instruction)
        for first, last in loop.inner:
            if i == last:
                order += loop.body[first : last + 1] * (POLLS - 1)
    return order


def in_order_cycles(loop: StepLoop, arch: int, num_warps: int) -> int:
    """The model "in order" above, in cycles."""
    code = unrolled(loop)
    mine = -(-num_warps // SCHEDULERS)
    ready: list[collections.defaultdict[str, int]] = [collections.defaultdict(int) for _ in range(mine)]
    place, free, unit_free, ends = [0] * mine, [0] * mine, collections.defaultdict(int), [[] for _ in range(mine)]
    waiting: set[int] = set()
    scheduler = 0
    while any(len(done) < STEPS for done in ends):
        # The earliest time at which a warp could issue its next instruction; of equals, the warp that is furthest behind.
        best = None
        for warp in range(mine):
            if warp in waiting or len(ends[warp]) == STEPS:
                continue
            instruction = code[place[warp]]
            unit = unit_of(instruction.name)
            operands = (ready[warp][name] for name in instruction.reads | instruction.writes)
            start = max(free[warp], scheduler, unit_free[unit], *operands, 0)
            if best is None or (start, len(ends[warp]), place[warp]) < best[:3]:
                best = start, len(ends[warp]), place[warp], warp, instruction, unit
        start, _, _, warp, instruction, unit = best
        scheduler, free[warp] = start + 1, start + 1
        unit_free[unit] = start + figure(THROUGHPUT[arch], instruction.name, 1)
        for name in instruction.writes:
            ready[warp][name] = start + latency(instruction)
        if instruction.name in ("MEMBAR", "BRA", "FENCE"):
            free[warp] = start + latency(instruction)
        if instruction.name == "BAR":
            waiting.add(warp)
            free[warp] = start + latency(instruction)
            if len(waiting) == mine:
                for other in waiting:
                    free[other] = free[warp]
                waiting.clear()
        place[warp] += 1
        if place[warp] == len(code):
            place[warp] = 0
            ends[warp].append(start)
    return (max(done[-1] for done in ends) - max(done[1] for done in ends)) // (STEPS - 2)


def serial_cycles(loop: StepLoop, arch: int, num_warps: int) -> int:
    """The model "serial" above, in cycles."""
    code = unrolled(loop)
    others = -(-num_warps // SCHEDULERS) - 1
    return sum(latency(i) + others * figure(THROUGHPUT[arch], i.name, 1) for i in code)


def predict_step(variant: Variant, arch: int) -> dict[str, Any]:
    """What is in the loop over steps of a run's kernel, and how long a step should take.

    Parameters
    ----------
    variant : Variant
        Of a kernel of run_*.py.
    arch : int
        Compute capability, major * 10 + minor. No GPU is needed, and none is asked.

    Returns
    -------
    dict
        name, arch, instructions (in the loop), counts (by opcode), and two predictions, in seconds: predicted_seconds
        (in order) and predicted_serial_seconds (upper bound).
    """
    loop = step_loop(disassemble(variant, arch))
    return {
        "name": variant.name,
        "arch": arch,
        "instructions": len(loop.body),
        "counts": loop.counts(),
        "predicted_seconds": in_order_cycles(loop, arch, variant.config.num_warps) / CLOCK,
        "predicted_serial_seconds": serial_cycles(loop, arch, variant.config.num_warps) / CLOCK,
    }


def print_table(architectures: Iterable[int]) -> None:
    """One line for each variant and architecture."""
    from .shipped_runs import run_variants

    shown = ("SHFL", "BAR", "LDS", "STS", "LDG", "STG", "ATOMG")
    print(f"Triton {triton.__version__}; microseconds a step are PREDICTED from the machine code, none is measured")
    print(f"{'variant':58} arch  in order  serial  instructions  " + "".join(f"{name:>6}" for name in shown))
    for arch in architectures:
        for variant in run_variants(arch):
            found = predict_step(variant, arch)
            print(
                f"{found['name']:58} {arch:4} {found['predicted_seconds'] * 1e6:9.2f} "
                f"{found['predicted_serial_seconds'] * 1e6:7.2f} {found['instructions']:13}  "
                + "".join(f"{found['counts'].get(name, 0):6}" for name in shown)
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gdcore.kernels.loops", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, action="append", help="default: all")
    print_table(parser.parse_args().arch or ARCHITECTURES)


if __name__ == "__main__":
    main()
