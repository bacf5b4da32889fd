"""Ceilings: what sets a case's floor, and that measuring gives plausible numbers."""

import pytest
import torch

from gdcore.bench import ceilings
from gdcore.bench.cases import Case
from gdcore.bench.ceilings import Ceilings

CPU = torch.device("cpu")
KNOWN = Ceilings(read=1e9, copy=2e9, product={"float32": 1e9, "bfloat16": 1e8})


def test_few_outputs_are_bound_by_memory_and_many_by_arithmetic():
    skinny, square = Case("A", 1000, 2, 1), Case("C", 100, 100, 100)
    assert KNOWN.floor_seconds(skinny) == (pytest.approx(skinny.minimal_bytes / 1e9), "memory")
    assert KNOWN.floor_seconds(square) == (pytest.approx(4e6 / 1e9), "arithmetic")


def test_an_emulated_half_type_is_no_excuse():
    assert KNOWN.rate(torch.bfloat16) == KNOWN.rate(torch.float32) == 1e9


def test_a_wide_type_has_its_own_rate_alone():
    assert Ceilings(1, 1, {"float32": 1e9, "float64": 1e8}).rate(torch.float64) == 1e8


def test_measured_ceilings_are_plausible(quiet):
    found = ceilings.measure(CPU, {torch.float32, torch.bfloat16}, small=True)
    assert set(found.product) == {"float32", "bfloat16"}
    assert 1e7 < found.read < 1e13 and 1e7 < found.copy < 1e13 and 1e7 < found.product["float32"] < 1e14
    assert Ceilings(**found.to_json()) == found


def test_bytes_and_flops_are_counted_by_hand(monkeypatch):
    """Every sample takes a second: then the rates are the counts."""

    class Clock:
        def __init__(self, device):
            pass

        def sample(self, call, repeats):
            call()
            return 1.0

    monkeypatch.setattr(ceilings, "WallClock", Clock)
    monkeypatch.setattr(ceilings, "calibrate", lambda *_: (1, 1.0))
    products = []
    monkeypatch.setattr(torch, "mm", lambda a, b: products.append((a.dtype, a.std().item())))
    found = ceilings.measure(CPU, {torch.float64}, small=True)
    assert (found.read, found.copy) == (3 << 20, 3 << 20), "an update in place reads two and writes one"
    assert found.product == dict.fromkeys(("float32", "float64"), 2 * 256**3)
    assert {dtype for dtype, _ in products} == {torch.float32, torch.float64}
    assert all(spread > 0.9 for _, spread in products), "products of zeros run at a higher clock"
