"""What is in the loop over steps of the compiled kernels, and the model that predicts its time."""

import json
import os
import subprocess
import sys

import pytest

from gdcore.kernels import loops
from gdcore.kernels.loops import LATENCY, in_order_cycles, latency, serial_cycles
from gdcore.kernels.sass import INSTRUCTION, instruction_of, step_loop

COMPILE = """
import json, sys
from gdcore.kernels.loops import predict_step
from gdcore.kernels.shipped_runs import run_variants
found = {variant.name: predict_step(variant, 90) for variant in run_variants(90) if variant.name in sys.argv[1:]}
print(json.dumps(found))
"""
LESSON = "run_resident float32 N=100 K=2 M=1"
BOUNDS = {  # seconds a step, predicted
    LESSON: 2e-6,
    "run_resident bfloat16 N=100 K=2 M=1 momentum": 2e-6,
    "run_batches float32 N=64 K=2 M=1": 2e-6,
    "run_grid float32 N=100000 K=16 M=1 momentum": 5e-6,
}
GRID = "run_grid float32 N=100000 K=16 M=1 momentum"


@pytest.fixture(scope="module")
def found():
    """The loops of four variants, from a process that does not interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", COMPILE, *BOUNDS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_step_is_predicted_to_take_no_longer_than_it_may(found, name):
    assert 5e-8 < found[name]["predicted_seconds"] <= BOUNDS[name]
    assert found[name]["predicted_seconds"] <= found[name]["predicted_serial_seconds"]


@pytest.mark.parametrize("name", [name for name in BOUNDS if "grid" not in name])
def test_one_warp_exchanges_nothing_through_shared_memory(found, name):
    counts = found[name]["counts"]
    assert not {"BAR", "LDS", "STS", "LDSM", "STSM", "ATOMG", "RED", "MEMBAR"} & counts.keys()
    assert counts["STG"] == 1  # the loss: so the loop is one step
    assert counts["SHFL"] == 20  # five rounds for each of loss, intercept and two weights


def test_a_resident_step_reads_nothing_from_memory(found):
    assert "LDG" not in found[LESSON]["counts"]


def test_a_batch_is_read_in_the_step_before(found):
    counts = found["run_batches float32 N=64 K=2 M=1"]["counts"]
    assert counts["LDG"] == 6  # of each lane's two rows: number, x, y


def test_the_grids_step_has_one_arrival_and_one_wait(found):
    counts = found[GRID]["counts"]
    assert counts.get("ATOMG", 0) + counts.get("ATOM", 0) == 1
    assert "RED" not in counts
    assert counts["MEMBAR"] == 1
    assert counts["LDG"] == 5  # the counter; of all programs: loss, intercept, and two vectors of the weights
    assert counts["STG"] == 4  # of this program: weights, loss, intercept; the step's loss


def sass(*lines):
    """Lines of SASS as nvdisasm prints them; those with a dot are labels."""
    text = ""
    for i, line in enumerate(lines):
        text += f"{line}:\n" if line.startswith(".L") else f"        /*{16 * i:04x}*/   {line} ;\n"
    return text


def instruction(text):
    return instruction_of(INSTRUCTION.search(sass(text)))


@pytest.mark.parametrize(
    ("text", "reads", "writes"),
    [
        ("FFMA R4, R5, R6.reuse, -R7", "R5 R6 R7", "R4"),
        ("@!P0 FADD R4, R4, |R6|", "P0 R4 R6", "R4"),
        ("SHFL.BFLY PT, R9, R8, 0x10, 0x1f", "R8", "R9"),
        ("ISETP.GE.AND P0, PT, R2, R3, P1", "R2 R3 P1", "P0"),
        ("LOP3.LUT P2, RZ, R5, 0x1, RZ, 0xc0, !PT", "R5", "P2"),
        ("LDG.E.64.STRONG.GPU R2, desc[UR6][R10.64+0x8]", "UR6 R10 R11", "R2 R3"),
        ("LDS.128 R4, [R8+UR4]", "R8 UR4", "R4 R5 R6 R7"),
        ("STG.E.64 desc[UR4][R2.64], R8", "UR4 R2 R3 R8 R9", ""),
        ("@P5 ATOMG.E.ADD.64.STRONG.GPU PT, R2, desc[UR18][R4.64], R6", "P5 UR18 R4 R5 R6", "R2 R3"),
        ("DFMA R4, R6, R8, R10", "R6 R7 R8 R9 R10 R11", "R4 R5"),
        ("IMAD.WIDE R2, R3, 0x4, R4", "R3 R4", "R2 R3"),
        ("R2P PR, R5, 0x3", "R5", "P0 P1 P2 P3 P4 P5 P6"),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "", ""),
        ("FADD2 R4, R6, R8", "R6 R7 R8 R9", "R4 R5"),
    ],
)
def test_an_instructions_operands(text, reads, writes):
    assert instruction(text).reads == set(reads.split())
    assert instruction(text).writes == set(writes.split())


def test_loads_for_the_whole_gpu_hit_l2():
    assert latency(instruction("LDG.E.STRONG.GPU R2, desc[UR6][R10.64]")) == loops.L2_TRIP
    assert latency(instruction("LDG.E R2, desc[UR6][R10.64]")) == loops.MEMORY_TRIP


CHAIN = ("FADD R1, R1, R2", "FADD R1, R1, R2", "@P0 BRA `(.L_x_1)")


def test_the_loop_is_the_longest_and_the_one_around():
    code = sass("MOV R1, R2", ".L_x_0", "NOP", "@P1 BRA `(.L_x_0)", ".L_x_1", "FADD R1, R1, R2", ".L_x_2", "LDG.E R3, [R4.64]",
                "@P2 BRA `(.L_x_2)", "BRA `(.L_x_9)", ".L_x_9", "@P0 BRA `(.L_x_1)", "EXIT", ".L_x_3", "BRA `(.L_x_3)")  # fmt: skip
    loop = step_loop(code)
    assert loop.counts() == {"BRA": 3, "FADD": 1, "LDG": 1}
    assert loop.inner == ((1, 2),)
    with pytest.raises(ValueError, match="no loop"):
        step_loop(sass("MOV R1, R2", ".L_x_3", "BRA `(.L_x_3)"))


def test_the_model_counts_by_hand():
    add, branch = LATENCY[""], LATENCY["BRA"]
    chain = step_loop(sass(".L_x_1", *CHAIN))
    assert serial_cycles(chain, 90, 1) == 2 * add + branch
    # The branch issues behind the second addition; the next step may start when it is done.
    assert in_order_cycles(chain, 90, 1) == add + 1 + branch
    independent = step_loop(sass(".L_x_1", "FADD R1, R3, R2", "FADD R4, R3, R2", CHAIN[2]))
    assert in_order_cycles(independent, 90, 1) == 2 + branch
    # Two warps of one scheduler fill each other's waits; one more pays issue slots alone.
    assert in_order_cycles(chain, 90, 8) <= in_order_cycles(chain, 90, 4) + 3
    assert serial_cycles(chain, 90, 8) == 2 * add + branch + 3


def test_the_wait_goes_round_several_times_and_barriers_hold_all_warps():
    lines = (
        ".L_x_1",
        "BAR.SYNC 0x0",
        ".L_x_2",
        "LDG.E.STRONG.GPU R3, [R4.64]",
        "FADD R5, R3, R3",
        "@P2 BRA `(.L_x_2)",
        CHAIN[2],
    )
    loop = step_loop(sass(*lines))
    once = loops.L2_TRIP + LATENCY[""] + LATENCY["BRA"]
    assert serial_cycles(loop, 90, 4) == LATENCY["BAR"] + loops.POLLS * once + LATENCY["BRA"]
    assert in_order_cycles(loop, 90, 4) >= loops.POLLS * loops.L2_TRIP
    assert in_order_cycles(loop, 90, 16) < 2 * in_order_cycles(loop, 90, 4)


def test_a_scheduler_issues_one_instruction_a_cycle():
    lines = [f"{name} R{10 + i}, R1, R2" for i, name in enumerate(["FADD", "IADD3"] * 10)]
    loop = step_loop(sass(".L_x_1", *lines, CHAIN[2]))
    assert in_order_cycles(loop, 90, 4) == 20 + LATENCY["BRA"]
    assert in_order_cycles(loop, 90, 16) >= 4 * 21


def test_a_barrier_keeps_warps_from_filling_each_others_waits():
    chain = ["FADD R1, R1, R2"] * 20
    unit = [f"MUFU.RCP R{10 + i}, R3" for i in range(10)]
    apart = in_order_cycles(step_loop(sass(".L_x_1", *chain, "BAR.SYNC 0x0", *unit, "BAR.SYNC 0x0", CHAIN[2])), 90, 8)
    assert apart >= 20 * LATENCY[""] + 2 * 10 * loops.THROUGHPUT[90]["MUFU"]
    together = in_order_cycles(step_loop(sass(".L_x_1", *chain, *unit, CHAIN[2])), 90, 8)
    assert together < apart - 2 * LATENCY["BAR"]
