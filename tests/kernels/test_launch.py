"""launch() starts what Triton's own launch starts, with the same arguments: tried against a driver that only takes notes."""

import ast
import json
import pathlib

import pytest
import torch

import null_driver
from gdcore.kernels import launch as module

OPTIONS = {"num_warps", "num_stages", "maxnreg", "enable_fp_fusion", "launch_cooperative_grid"}
KERNELS = sorted(pathlib.Path(module.__file__).parent.glob("*.py"))
SCRIPT = pathlib.Path(null_driver.__file__).with_name("null_launches.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each check of the script says, from one process for all."""
    done = null_driver.run(SCRIPT, tmp_path_factory.mktemp("null_driver"))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton has a driver of its own")
@pytest.mark.skipif(null_driver.compiler() is None, reason="no C compiler: Triton cannot build its launcher")
@pytest.mark.parametrize(
    "check, least",
    [("table", 400), ("hooks", 1), ("names", 2), ("memory", 8), ("bound", 1), ("kernels", 20), ("replays", 34)],
)
def test_the_same_kernel_grid_stream_and_arguments(check, least, found):
    assert len(found[check]) >= least
    assert not {name: what for name, what in found[check].items() if what}


def test_interpreted_kernels_are_called_as_ever():
    called = []

    class Kernel:
        pre_run_hooks = ()

        def __getitem__(self, grid):
            return lambda *args, **named: called.append((grid, args, named))

    before = len(module._table)
    for _ in range(2):
        module.launch(Kernel(), (3,), 1, 2.0, BLOCK=16)
    assert called == [((3,), (1, 2.0), {"BLOCK": 16})] * 2
    assert len(module._table) == before


def named(path):
    """What the launches of a file give by name, in the call or in a dictionary that has an option of the compiler."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch":
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)
        elif isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            yield from keys if "num_warps" in keys and "signature" not in keys else ()


def test_only_constants_and_options_are_given_by_name():
    """The interpreter takes any argument by name, and a GPU's table would take a run-time one for a constant."""
    found = [(path.name, name) for path in KERNELS for name in named(path)]
    assert len(found) > 200
    assert not [(file, name) for file, name in found if not name.isupper() and name not in OPTIONS]
