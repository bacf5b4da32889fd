"""Without a GPU the kernels are interpreted. Triton decides that when a kernel is decorated, so it is set before any import of it."""

import os
import random

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

SEED = int(os.environ.get("GDCORE_SEED", random.SystemRandom().randrange(2**31)))


def pytest_report_header():
    return f"fresh inputs: GDCORE_SEED={SEED} repeats them"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(SEED)
