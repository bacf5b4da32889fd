"""Machine code as data: the loop over steps of a whole run's kernel, and what each of its instructions reads and writes.

The loop is the longest backward branch; a backward branch within it is the wait of the grid's barrier.
"""

import collections
import re
import tempfile
from dataclasses import dataclass

from .compiled import Variant, compile_kernel, tool

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<name>[A-Z]\w*)(?P<rest>[^;]*);")
LABEL = re.compile(r"^\s*(\.L_[\w.]+):")
TARGET = re.compile(r"\((\.L_[\w.]+)\)")
OPERAND = re.compile(r"\b(U?R)(\d+)(\.64)?\b|\b(U?P\d)\b")
WITHOUT_RESULT = re.compile(r"ST|BAR|BRA|BSSY|BSYNC|EXIT|MEMBAR|ERRBAR|CCTL|NOP|WARPSYNC|RED$|DEPBAR")
TWO_REGISTERS = re.compile(r"D(?!EPBAR)|CS2R$|F(ADD|MUL|FMA)2")


@dataclass(frozen=True)
class Instruction:
    """One line of SASS: its opcode, and the registers and predicates that it reads and writes."""

    name: str  # "FFMA"
    modifiers: str  # ".E.64"
    reads: frozenset[str]
    writes: frozenset[str]


@dataclass(frozen=True)
class StepLoop:
    """The loop over steps: its instructions, and the parts of them that are loops again (first, last)."""

    body: tuple[Instruction, ...]
    inner: tuple[tuple[int, int], ...]

    def counts(self) -> dict[str, int]:
        """Opcode -> how often it stands in the loop."""
        return dict(sorted(collections.Counter(instruction.name for instruction in self.body).items()))


def registers(operand: str, wide: int) -> list[str]:
    """The registers and predicates named in an operand; `wide` consecutive ones for each register."""
    found = []
    for kind, number, pair, predicate in OPERAND.findall(operand):
        if predicate:
            found.append(predicate)
        else:
            found += [f"{kind}{int(number) + i}" for i in range(2 if pair else wide)]
    return found


def instruction_of(match: re.Match[str]) -> Instruction:
    """Results stand first: predicates, then at most one register."""
    name, rest = match["name"], match["rest"]
    modifiers, _, text = rest.partition(" ")
    operands = [part.strip() for part in text.split(",")] if text.strip() else []
    wide = 4 if ".128" in modifiers else 1
    if wide == 1 and (".64" in modifiers or ".WIDE" in modifiers or TWO_REGISTERS.match(name)):
        wide = 2
    results = 0
    if not WITHOUT_RESULT.match(name):
        while results < len(operands) and re.fullmatch(r"U?P[\dT]|PR", operands[results]):
            results += 1
        if results < len(operands) and not re.search(r"SETP|PLOP3|R2P", name):
            results += 1
    writes = [f"P{i}" for i in range(7)] if operands[:1] == ["PR"] else []
    reads = registers(match["guard"] or "", 1)
    for i, operand in enumerate(operands):
        if i < results:
            writes += registers(operand, wide)
        else:
            stored = name.startswith("ST") and i == len(operands) - 1
            reads += registers(operand, wide if stored or TWO_REGISTERS.match(name) else 1)
    return Instruction(name, modifiers, frozenset(reads), frozenset(writes))


def step_loop(sass: str) -> StepLoop:
    """The longest loop of a kernel's SASS, as nvdisasm -c prints it."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    loops = []
    for line in sass.splitlines():
        if match := LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := INSTRUCTION.search(line):
            target = TARGET.search(match["rest"])
            if match["name"] == "BRA" and target and target[1] in labels:
                loops.append((labels[target[1]], len(instructions)))
            instructions.append(instruction_of(match))
    loops = [(first, last) for first, last in loops if last > first]  # a branch to itself pads the code
    if not loops:
        raise ValueError("the code has no loop")
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    inner = [(a - first, b - first) for a, b in loops if first <= a and b < last]
    return StepLoop(tuple(instructions[first : last + 1]), tuple(inner))


def disassemble(variant: Variant, arch: int) -> str:
    """SASS of a variant, with labels."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_kernel(variant, arch).asm["cubin"])
        file.flush()
        return tool("nvdisasm", "-c", "-ndf", file.name)
