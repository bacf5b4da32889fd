"""Without a GPU the kernels are interpreted. Triton decides that when a kernel is decorated, so it is set before any import of it."""

import os
import random

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from gdcore import recall

SEED = int(os.environ.setdefault("GDCORE_SEED", str(random.SystemRandom().randrange(2**31))))  # of all processes


# Files with hundreds of like cases: of these a run of the whole suite takes a random fifth, another one each time, and of
# the kernels that ship it compiles a random tenth.
# GDCORE_ALL=1 takes all, and so does naming a file.
SAMPLED = {
    "gdcore": (
        "test_autograd.py",
        "test_each_path.py",
        "test_fit.py",
        "test_fit_batches.py",
        "test_fit_chip.py",
        "test_fit_refusals.py",
        "test_parity.py",
        "test_plan_boundaries.py",
        "test_recall.py",
        "test_sgd_beyond.py",
        "test_step.py",
        "test_wide.py",
    ),
    "kernels": (
        "test_backward_products.py",
        "test_backward_weight.py",
        "test_forward.py",
        "test_forward_descriptors.py",
        "test_one_pass.py",
        "test_one_pass_tall.py",
        "test_product_configs.py",
        "test_run_batches.py",
        "test_run_grid.py",
        "test_run_resident.py",
        "test_sgd.py",
        "test_step.py",
    ),
}
FEW = 6  # cases of one test that are all taken
COMPILED = ("test_compiled.py", "test_compiled_amd.py")  # a kernel takes a second or more


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Processes side by side: two on a CPU, whose caches and memory more of them would fight for; one beside a GPU."""
    return 0 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def pytest_report_header():
    return f"fresh inputs: GDCORE_SEED={SEED} repeats them; GDCORE_ALL=1 takes every case of tests with very many"


def pytest_collection_modifyitems(config, items):
    if config.option.file_or_dir or os.environ.get("GDCORE_ALL") == "1":
        return
    cases, kernels = {}, {}
    for item in items:
        if item.path.name in COMPILED and "name" in getattr(getattr(item, "callspec", None), "params", {}):
            kernels.setdefault(item.path, {}).setdefault(item.callspec.params["name"], []).append(item)
        elif item.path.name in SAMPLED.get(item.path.parent.name, ()):
            cases.setdefault((item.path, item.originalname), []).append(item)
    left_out = set()
    for same in cases.values():
        if len(same) > FEW:
            left_out.update(random.Random(SEED).sample(same, 4 * (len(same) - FEW) // 5))
    for by_name in kernels.values():
        for name in random.Random(SEED).sample(sorted(by_name), 9 * len(by_name) // 10):
            left_out.update(by_name[name])
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(SEED)
    recall.forget()  # of calls in other tests, which may have been planned otherwise
