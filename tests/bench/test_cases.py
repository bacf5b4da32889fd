"""Cases: names, what the profiles promise, hand counts of bytes and FLOPs, reproducible operands."""

import math
from itertools import pairwise

import pytest
import torch

from gdcore.bench import datasets, profiles, run_cases, sgd_cases
from gdcore.bench.cases import OPS, REGIMES, Case, Tensors, make_tensors, matches, regime_of
from gdcore.bench.peers import COMPILERS

CPU = torch.device("cpu")
DEVICES, NAMES = ("cpu", "cuda"), ("smoke", "quick", "full")


@pytest.mark.parametrize("device_type", DEVICES)
@pytest.mark.parametrize("profile", NAMES)
def test_names_are_keys(profile, device_type):
    cases = (
        *profiles.PROFILES[profile][device_type],
        *sgd_cases.PROFILES[profile](device_type),
        *run_cases.PROFILES[profile],
    )
    names = [case.name for case in cases]
    assert len(set(names)) == len(names) >= 8
    assert not any(" " in name for name in names), "a shell glob and --only take names as they are"


@pytest.mark.parametrize("device_type", DEVICES)
def test_the_full_profile_covers_what_is_promised(device_type):
    cases = profiles.PROFILES["full"][device_type]
    assert {case.regime for case in cases} == set(REGIMES), "every regime"
    assert {case.op for case in cases} == set(OPS), "the loss, its gradients and a whole step"
    assert {case.dtype for case in cases} >= {torch.float32, torch.bfloat16, torch.float16}
    assert {name for case in cases for name in case.compilers} == set(COMPILERS), "every compiler somewhere"
    assert {"diabetes", "photographs"} <= {case.data for case in cases}, "real data"
    assert {("weight",), ("input", "weight"), ("weight", "bias")} <= {case.wanted for case in cases}
    odd = [case for case in cases if case.n % 2 and case.k % 2]
    assert odd, "sizes that no tile divides"
    tiny, largest = min(case.minimal_bytes for case in cases), max(case.minimal_bytes for case in cases)
    assert tiny < 1 << 12 and largest > 1 << 27


@pytest.mark.parametrize("device_type", DEVICES)
def test_the_quick_profile_is_expected_to_end_in_time(device_type):
    cases = profiles.PROFILES["quick"][device_type]
    spent = sum(case.seconds + 3.0 * len(case.compilers) for case in cases)
    assert spent < profiles.limit_seconds("quick", device_type) < 120
    assert profiles.limit_seconds("full", "cpu") is None


@pytest.mark.parametrize("device_type", DEVICES)
def test_a_real_table_has_the_case_s_sizes(device_type):
    for case in (*profiles.PROFILES["quick"][device_type], *profiles.PROFILES["full"][device_type]):
        assert case.data == "normal" or (case.n, case.k, case.m) == datasets.SIZES[case.data]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(None, True), ("skinny", True), ("SKINNY*dW", True), ("*x64x*", True), ("tall", False), ("skinny-*-dX", False)],
    ids=str,
)
def test_patterns_are_parts_or_globs(pattern, expected):
    assert matches(Case("A", 1000, 64, 1).name, pattern) is expected


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Case("A", 10, 2, 1), "skinny-10x2x1-float32-dW"),
        (Case("A", 10, 2, 1, op="forward"), "skinny-10x2x1-float32-loss"),
        (Case("D", 10, 2, 1, op="step", wanted=("weight", "bias")), "tiny-10x2x1-float32-dW+db-step"),
        (Case("D", 442, 10, 1, data="diabetes"), "tiny-442x10x1-float32-dW-diabetes"),
    ],
    ids=["gradient", "loss", "step", "real data"],
)
def test_names_say_what_is_measured(case, name):
    assert case.name == name


X, W, Y, B = 10 * 3, 2 * 3, 10 * 2, 2  # numbers in the operands of 10 x 3 x 2


@pytest.mark.parametrize(
    ("more", "numbers", "products"),
    [
        ({}, X + W + Y + W, 2),
        ({"op": "forward"}, X + W + Y, 1),
        ({"op": "step"}, X + W + Y + W, 2),
        ({"wanted": ("weight", "bias")}, X + W + Y + B + W + B, 2),
        ({"wanted": ("weight", "bias"), "op": "forward"}, X + W + Y + B, 1),
        ({"wanted": ("input", "weight", "bias")}, X + W + Y + B + X + W + B, 3),
        ({"wanted": ("input",)}, X + W + Y + X, 2),
        ({"wanted": ("bias",)}, X + W + Y + B + B, 1),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_hand_counts_of_bytes_and_flops(more, numbers, products, dtype):
    case = Case("A", 10, 3, 2, dtype=dtype, **more)
    assert case.minimal_bytes == numbers * dtype.itemsize
    assert case.flops == products * 2 * 10 * 3 * 2
    assert case.bytes_needed > case.minimal_bytes + 8 * numbers, "and float64 copies beside"


@pytest.mark.parametrize("op", OPS)
def test_the_same_seed_draws_the_same_operands(op):
    case = Case("B", 400, 6, 3, wanted=("input", "weight"), op=op)
    first, again, other = (make_tensors(case, CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(first.input, again.input) and not torch.equal(first.input, other.input)
    assert first.input.requires_grad == first.weight.requires_grad == (op != "forward")
    assert not first.target.requires_grad and first.bias is None
    for operand in (first.input, first.target):
        assert operand.std() > 0.5 and operand.count_nonzero() > 0.99 * operand.numel(), "never zeros"
    assert (first.input @ first.weight.T).detach().std().item() == pytest.approx(1, abs=0.5), (
        "predictions are of the targets' size"
    )


def test_wide_operands_are_the_same_numbers_and_want_the_same_gradients():
    case = Case("B", 5, 4, 3, dtype=torch.bfloat16, wanted=("weight", "bias"))
    narrow = case.draw(CPU, 0)
    wide = case.widened(narrow)
    for name in Tensors._fields:
        one, other = getattr(narrow, name), getattr(wide, name)
        assert other.dtype is torch.float64 and other.is_leaf and torch.equal(one.double(), other)
        assert one.requires_grad == other.requires_grad


@pytest.mark.parametrize(
    ("shape", "regime"),
    [
        ((100, 2, 1), "D"),
        ((10**6, 64, 1), "A"),
        ((10**9, 256, 16), "A"),
        ((10**6, 257, 1), "B"),
        ((10**6, 64, 64), "B"),
        ((8192, 2048, 2048), "C"),
        ((65_536, 1024, 32_768), "F"),
    ],
    ids=str,
)
def test_a_size_of_the_user_s_own_gets_a_regime(shape, regime):
    assert regime_of(*shape) == regime


@pytest.mark.parametrize("shape", [(1, 1, 1), (100, 2, 1), (9, 64, 1), (64, 64, 64)], ids=str)
def test_steps_of_the_case_s_learning_rate_go_downhill(shape):
    case = Case("D", *shape, op="step", dtype=torch.float64)
    operands = case.draw(CPU, 0)
    call = case.peers[0].prepare(case, CPU)(operands)
    losses = [call()[0].item() for _ in range(6)]
    assert all(after < before for before, after in pairwise(losses)) and math.isfinite(losses[-1])
