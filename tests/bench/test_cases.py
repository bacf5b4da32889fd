"""Cases: names, selection, hand counts of bytes and FLOPs, reproducible operands."""

import pytest
import torch

from gdcore.bench.cases import PROFILES, Case, make_tensors, matches, select


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("profile", PROFILES)
def test_names_are_keys(profile, device_type):
    names = [case.name for case in select(profile, device_type)]
    assert len(set(names)) == len(names)
    assert names or profile == "sgd"  # which is the optimizer alone


def test_the_cpu_profile_holds_the_promised_sizes():
    shapes = {(case.n, case.k, case.m) for case in select("quick", "cpu")}
    assert shapes >= {
        (100, 2, 1),
        (1000, 10, 1),
        (10_000_000, 2, 1),
        (2_000_000, 64, 1),
        (500_000, 256, 1),
        (500_000, 64, 64),
        (65_536, 512, 512),
        (8_192, 2_048, 2_048),
    }
    assert any(case.dtype is torch.bfloat16 for case in select("quick", "cpu"))
    assert any("input" in case.wanted for case in select("quick", "cpu"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(None, True), ("skinny", True), ("SKINNY*dW", True), ("*x64x*", True), ("tall", False), ("skinny-*-dX", False)],
    ids=str,
)
def test_patterns_are_parts_or_globs(pattern, expected):
    assert matches(Case("A", 1000, 64, 1).name, pattern) is expected


def test_hand_counts_of_bytes_and_flops():
    assert Case("A", 10, 3, 2).minimal_bytes == 4 * (10 * 3 + 2 * 3 + 10 * 2 + 2 * 3)
    both = Case("B", 10, 3, 2, dtype=torch.bfloat16, wanted=("input", "weight", "bias"))
    assert both.minimal_bytes == 2 * (10 * 3 + 2 * 3 + 10 * 2 + 2 + 10 * 3 + 2 * 3 + 2)
    assert Case("A", 10, 3, 2, wanted=()).flops == 2 * 10 * 3 * 2
    assert Case("A", 10, 3, 2).flops == 2 * 2 * 10 * 3 * 2
    assert both.flops == 3 * 2 * 10 * 3 * 2


def test_the_same_seed_draws_the_same_operands(case):
    first, again, other = (make_tensors(case, torch.device("cpu"), seed) for seed in (0, 0, 1))
    assert torch.equal(first.input, again.input) and not torch.equal(first.input, other.input)
    assert first.input.requires_grad and first.weight.requires_grad and not first.target.requires_grad
    assert first.input.std() > 0.5, "operands must never be zeros"
