"""Several programs of run_grid at once on the CPU: a process for each, on shared memory, interpreted, with random delays.

The interpreter runs programs one after another, which a barrier would wait for forever. Here each process is one program:
it is told which one, and its workspace, counter and results are everyone's. To be called where kernels are interpreted.
"""

import multiprocessing
import os
import pathlib
import random
import time
from types import SimpleNamespace

import torch
from triton.runtime.interpreter import interpreter_builder

from gdcore.kernels import run_grid as module
from gdcore.kernels.configs import Config

PROGRAMS, STEPS = 3, 8
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "intercept": True}
CONFIG = Config(block_n=16, block_k=4, num_warps=1)


def shared(*shape, dtype=torch.float32, fill=torch.nan):
    return torch.full(shape, fill, dtype=dtype).share_memory_()


def one_program(kernel, program):
    """The kernel, of which a launch runs this program only."""
    set_dim, set_idx = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
    interpreter_builder.set_grid_dim = lambda *_: set_dim(PROGRAMS, 1, 1)
    interpreter_builder.set_grid_idx = lambda *_: set_idx(program, 0, 0)
    return type("OneProgram", (), {"__getitem__": lambda self, grid: kernel[(1,)]})()


def delayed(name):
    """Now and then an access takes as long as the others need for a whole step, so that programs meet in any order."""
    access = getattr(interpreter_builder, name)

    def slow(*arguments):
        if random.random() < 0.1:
            time.sleep(0.1)
        return access(*arguments)

    setattr(interpreter_builder, name, slow)


def work(program, tensors, workspace, counter):
    """One program of the launch."""
    random.seed(f"{os.environ.get('GDCORE_SEED')} {program}")
    delayed("create_masked_load")
    delayed("create_masked_store")
    module.INTERPRET = False
    module.run_grid_kernel = one_program(module.run_grid_kernel, program)
    module.torch = SimpleNamespace(
        empty=lambda shape, **_: workspace.view(shape), zeros=lambda *_, **__: counter, int64=torch.int64
    )
    module.run_grid(**tensors, steps=STEPS, config=CONFIG, programs=PROGRAMS, **OPTIONS)


def main(folder):
    """Run, and write arguments and results to <folder>/results.pt."""
    torch.set_num_threads(1)
    torch.manual_seed(int(os.environ.get("GDCORE_SEED", 0)))
    n, k, m = 41, 3, 2
    tensors = {
        "input": torch.randn(n, k).share_memory_(),
        "target": torch.randn(n, m).share_memory_(),
        "state_in": shared(2, k + 1, m, fill=0.0),
        "state_out": shared(2, k + 1, m),
        "losses": shared(STEPS),
        "trajectory": shared(STEPS, k + 1, m),
    }
    workspace = shared(2 * PROGRAMS * module.sums_length(m, CONFIG.block_k))
    counter = shared(1, dtype=torch.int64, fill=0)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=work, args=(program, tensors, workspace, counter), daemon=True)
        for program in range(PROGRAMS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0, "a program waits for ever, or failed"
    assert counter.item() == PROGRAMS * STEPS
    torch.save(tensors, pathlib.Path(folder) / "results.pt")
