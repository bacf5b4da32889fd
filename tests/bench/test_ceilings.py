"""Ceilings: what sets a case's floor, and that measuring gives plausible numbers."""

import pytest
import torch

from gdcore.bench import ceilings
from gdcore.bench.cases import Case
from gdcore.bench.ceilings import Ceilings

KNOWN = Ceilings(read=1e9, copy=2e9, product={"float32": 1e9, "bfloat16": 1e8})


def test_few_outputs_are_bound_by_memory_and_many_by_arithmetic():
    skinny, square = Case("A", 1000, 2, 1), Case("C", 100, 100, 100)
    assert KNOWN.floor_seconds(skinny) == (pytest.approx(skinny.minimal_bytes / 1e9), "memory")
    assert KNOWN.floor_seconds(square) == (pytest.approx(4e6 / 1e9), "arithmetic")


def test_an_emulated_half_type_is_no_excuse():
    assert KNOWN.rate(torch.bfloat16) == KNOWN.rate(torch.float32) == 1e9


def test_measured_ceilings_are_plausible():
    found = ceilings.measure(torch.device("cpu"), {torch.float32, torch.bfloat16}, small=True)
    assert set(found.product) == {"float32", "bfloat16"}
    assert 1e8 < found.read < 1e13 and 1e8 < found.copy < 1e13 and 1e8 < found.product["float32"] < 1e14
