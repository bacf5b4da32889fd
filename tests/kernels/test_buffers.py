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

pointers = {"a_ptr": "*bf16", "b_ptr": "*bf16", "out_ptr": "*fp32"}
constants = {"BLOCK": 64, "AGAIN": sys.argv[1] == "twice"}
config = Config(block_n=64, num_warps=4, num_stages=3)
made = Variant("both", both, {**pointers, "N": "i32"}, constants, config, divisible_by_16=tuple(pointers))
print(len(read_twice(compile_kernel(made, 90).asm["ttgir"])))
"""


@pytest.mark.parametrize(("loads", "found"), [("once", 1), ("twice", 0)], ids=["loaded once", "loaded twice"])
def test_an_operand_that_is_also_summed_is_found(loads, found, tmp_path):
    script = tmp_path / "both.py"  # a kernel's source must be in a file
    script.write_text(KERNEL)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script, loads], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == found
