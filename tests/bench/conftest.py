"""What the benchmark's tests share: a small case, and a stand-in for compilation, which takes seconds."""

import pytest
import torch

from gdcore.bench.cases import Case


@pytest.fixture
def case() -> Case:
    return Case("B", 40, 6, 3, wanted=("input", "weight"), seconds=0.02)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile fails as it does where no compiler is installed."""

    def fail(function):
        def call(*_: object):
            raise RuntimeError("No working C++ compiler found\nsecond line")

        return call

    monkeypatch.setattr(torch, "compile", fail)
