"""Operands of asynchronous matrix instructions that are read into registers too; what ships is checked in test_compiled.py."""

import os
import subprocess
import sys

import pytest

KERNEL = """
import sys
import triton, triton.language as tl
from gdcore.kernels.buffers import read_twice
from gdcore.kernels.compiled import Variant, compile_kernel
from gdcore.kernels.configs import Config

@triton.jit
def both(a_ptr, b_ptr, out_ptr, N, BLOCK: tl.constexpr, AGAIN: tl.constexpr):
    offsets = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    product = tl.zeros((BLOCK, BLOCK), tl.float32)
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, N, BLOCK):
        ptrs = a_ptr + start * BLOCK + offsets
        a = tl.load(ptrs)
        sums += (tl.load(ptrs, eviction_policy="evict_last") if AGAIN else a).to(tl.float32)
        product = tl.dot(tl.trans(a), tl.load(b_ptr + start * BLOCK + offsets), product)
    tl.store(out_ptr + offsets, product + tl.sum(sums, axis=0)[None, :])

@triton.jit
def by_descriptors(a_desc, b_desc, out_ptr, N, BLOCK: tl.constexpr, AGAIN: tl.constexpr):
    product = tl.zeros((BLOCK, BLOCK), tl.float32)
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, N, BLOCK):
        a = a_desc.load([start, 0])
        sums += (a_desc.load([start + tl.program_id(2), 0]) if AGAIN else a).to(tl.float32)
        product = tl.dot(a.T, b_desc.load([start, 0]), product)
    offsets = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + offsets, product + tl.sum(sums, axis=0)[None, :])

block = "tensordesc<bf16[64, 64]>"
pointers = {"a_ptr": "*bf16", "b_ptr": "*bf16", "out_ptr": "*fp32"}
constants = {"BLOCK": 64, "AGAIN": sys.argv[1] == "twice"}
config = Config(block_n=64, num_warps=4, num_stages=3)
made = Variant("both", both, {**pointers, "N": "i32"}, constants, config, divisible_by_16=tuple(pointers))
if sys.argv[2] == "descriptors":
    arguments = {"a_desc": block, "b_desc": block, "out_ptr": "*fp32", "N": "i32"}
    made = Variant("both", by_descriptors, arguments, constants, config, divisible_by_16=("out_ptr",))
print(len(read_twice(compile_kernel(made, 90).asm["ttgir"])))
"""


@pytest.mark.parametrize("operands", ["pointers", "descriptors"])
@pytest.mark.parametrize(("loads", "found"), [("once", 1), ("twice", 0)], ids=["loaded once", "loaded twice"])
def test_an_operand_that_is_also_summed_is_found(loads, found, operands, tmp_path):
    script = tmp_path / "both.py"  # a kernel's source must be in a file
    script.write_text(KERNEL)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script, loads, operands], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == found
