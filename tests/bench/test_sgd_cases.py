"""The optimizer's step as a case: sizes, hand counts, parity of every implementation after a step and two more."""

import math

import pytest
import torch

import gdcore
from gdcore.bench import parity, sgd_cases, sgd_peers
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.measure import Setting, measure_case
from gdcore.bench.peers import COMPILED, FOREACH, LOOP, NAMES, OURS, STOCK_FUSED
from gdcore.bench.sgd_cases import OPTIONS, SgdCase, resnet50

pytestmark = pytest.mark.usefixtures("quick")
CPU = torch.device("cpu")
SETTING = Setting(CPU, seed=0, ceilings=Ceilings(1e10, 2e10, {"float32": 1e11}))
PEERS = {peer.name: peer for peer in sgd_peers.PEERS}


def small(options: str = "momentum", dtype: torch.dtype = torch.float32, shapes=((301,), (3, 4), (), (0,))) -> SgdCase:
    return SgdCase("small", shapes, options, (dtype,) * len(shapes), seconds=0.0)


def test_resnet50_is_that_network():
    assert len(resnet50()) == 161
    assert sum(map(math.prod, resnet50())) == 25_557_032


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_the_full_profile_has_every_size_and_option_and_a_compiled_step(device_type):
    cases = sgd_cases.full(device_type)
    assert {case.numel for case in cases if len(case.shapes) == 1} == {10**power for power in range(3, 10)}
    assert {case.options for case in cases} == set(OPTIONS)
    assert {"ResNet-50", "1000 x 1e3", "ResNet-50 mixed"} <= {case.what for case in cases}
    for profile in (cases, sgd_cases.quick(device_type)):
        assert any(case.compilers == (COMPILED,) for case in profile)
        assert any(len(set(case.dtypes)) == 2 for case in profile), "mixed types"


@pytest.mark.parametrize(("options", "accesses", "flops"), [("plain", 3, 2), ("momentum", 5, 4), ("nesterov", 5, 8)])
def test_least_bytes_are_counted_by_type(options, accesses, flops):
    case = SgdCase("two", ((10,), (4, 5)), options, (torch.float32, torch.bfloat16))
    assert case.minimal_bytes == accesses * (10 * 4 + 20 * 2)
    assert case.flops == flops * 30 and case.numel == 30
    assert case.bytes_needed > case.minimal_bytes
    assert SETTING.ceilings.floor_seconds(case) == (case.minimal_bytes / 2e10, "memory"), "read and written: copy"


def by_hand(case: SgdCase, start: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Three steps in float64."""
    w, v = start.double(), None
    for _ in range(sgd_cases.STEPS):
        g = grad.double() + case.settings.get("weight_decay", 0.0) * w
        if "momentum" in case.settings:
            v = g if v is None else 0.9 * v + g
            g = g + 0.9 * v if "nesterov" in case.settings else v
        w = w - sgd_peers.LR * g
    return w


@pytest.mark.parametrize("name", [LOOP, FOREACH, STOCK_FUSED, OURS])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_implementation_takes_the_steps_of_the_formula(options, name):
    case = small(options, torch.float64)
    operands = case.draw(CPU, 0)
    for _ in range(2):  # the second time from the same start
        found = case.results(PEERS[name].prepare(case, CPU), operands)
        for value, start, grad in zip(found.values(), operands.start, operands.grads, strict=True):
            torch.testing.assert_close(value, by_hand(case, start, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_has_parity_and_speed_of_everyone(options, dtype):
    case = small(options, dtype)
    row = measure_case(case, SETTING)
    assert row["failed"] is None and row["regime"] is None and "plan" not in row and row["explained"] is None
    assert list(row["peers"]) == [LOOP, FOREACH, STOCK_FUSED, COMPILED, OURS] and set(row["peers"]) <= set(NAMES)
    assert "this profile does not compile it" in row["peers"][COMPILED]["left_out"]
    assert set(row["peers"][OURS]["parity"]["errors"]) == {"parameters"}
    assert row["label"] == f"small, {options}" and row["numel"] == 314 and row["tensors"] == 4
    timed = {name for name, entry in row["peers"].items() if "times" in entry}
    assert timed >= {LOOP, FOREACH, OURS} and set(row["comparisons"]["wall"]) == timed - {OURS}


def test_what_is_wrong_gets_no_speed():
    """PyTorch's fused kernel leaves elements of half-precision tensors unchanged on the CPU."""
    entry = measure_case(small(dtype=torch.bfloat16, shapes=((1_001,), (1_003,))), SETTING)["peers"][STOCK_FUSED]
    if "failure" not in entry:
        pytest.skip("this PyTorch's fused kernel is right")
    assert "wrong for 2 of 2 tensors: tensor 0 (1001,) is off" in entry["failure"] and "times" not in entry


@pytest.mark.parametrize(
    ("name", "which"), [(LOOP, {"foreach": False}), (FOREACH, {"foreach": True}), (STOCK_FUSED, {"fused": True})]
)
def test_each_implementation_is_the_one_that_its_name_says(name, which):
    case = small()
    step = PEERS[name].prepare(case, CPU)(case.draw(CPU, 0))
    defaults = step.__self__.defaults
    assert {key: defaults[key] for key in which} == which and defaults["momentum"] == 0.9


def test_one_element_that_is_left_out_shows():
    case = small(shapes=((10_000,),))
    operands = case.draw(CPU, 0)
    stock = case.results(PEERS[LOOP].prepare(case, CPU), operands)
    truth = case.results(PEERS[LOOP].prepare(case, CPU), case.widened(operands))

    def forgetful(drawn):
        step = gdcore.SGD(drawn.params, lr=sgd_peers.LR, **case.settings).step
        last = drawn.start[0][-1].clone()

        def call():
            step()
            drawn.params[0].detach()[-1] = last

        return call

    assert not parity.judge("sgd", case.results(forgetful, operands), truth, stock)["passed"]


def test_every_compiled_optimizer_starts_from_an_empty_cache(monkeypatch):
    """Each is compiled anew, and past a limit of those torch.compile runs eagerly without a word in any result."""
    did = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: did.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda function: did.append("compile") or function)
    case = small()
    operands = case.draw(CPU, 0)
    bind = PEERS[COMPILED].prepare(case, CPU)
    for _ in range(3):
        bind(operands)
    assert did == ["reset", "compile"] * 3


def test_the_same_seed_draws_the_same_tensors_and_none_is_zero():
    first, again, other = (small().draw(CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(first.params[0], again.params[0]) and torch.equal(first.grads[0], again.grads[0])
    assert not torch.equal(first.params[0], other.params[0])
    assert first.params[0].std() > 0.5 and first.grads[0].std() > 0.5 and first.params[0].grad is first.grads[0]
