"""The peers of linear_mse: each is right, each takes real steps, and none leaves traces. torch.compile is the identity here."""

from functools import cache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gdcore.bench import by_hand, linear_peers, parity
from gdcore.bench.cases import STEPS, Case, Named, Tensors
from gdcore.bench.peers import (
    COMPILED,
    FOLDED,
    FUNCTIONAL,
    GRAPH,
    GRAPHED_COMPILED,
    JAX,
    LIBRARY,
    NAMES,
    OURS,
    STOCK,
    TUNED,
    LeftOut,
    Peer,
)

pytestmark = pytest.mark.usefixtures("quiet")
CPU = torch.device("cpu")
PEERS = {peer.name: peer for peer in linear_peers.PEERS}
HERE = [STOCK, COMPILED, TUNED, FUNCTIONAL, LIBRARY, FOLDED, OURS]
SHAPES = [(1, 1, 1), (1, 5, 3), (7, 1, 3), (257, 13, 5)]
ASKED = {
    "loss": ("forward", ("weight", "bias")),
    "dW": ("backward", ("weight",)),
    "dX, dW, db": ("backward", ("input", "weight", "bias")),
    "step": ("step", ("weight",)),
    "step with bias": ("step", ("weight", "bias")),
}


@pytest.fixture(autouse=True)
def _not_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)


@cache
def given(case: Case) -> tuple[Tensors, Named, Named]:
    """Operands, float64's results and stock's."""
    operands, oracle = case.draw(CPU, 0), PEERS[STOCK].prepare(case, CPU)
    return operands, case.results(oracle, case.widened(operands)), case.results(oracle, operands)


def formula(case: Case, operands: Tensors) -> Named:
    """Formulas in float64."""
    x, w, y, b = (None if t is None else t.detach().double() for t in operands)
    for _ in range(STEPS if case.op == "step" else 1):
        e = x @ w.T + (0 if b is None else b) - y
        scale = 2 / e.numel()
        gradients = {"weight": scale * e.T @ x, "input": scale * e @ w, "bias": scale * e.sum(0)}
        loss = e.square().mean()
        if case.op == "step":
            w = w - case.lr * gradients["weight"]
            b = None if b is None else b - case.lr * gradients["bias"]
    found = {"weight": w, "bias": b} if case.op == "step" else gradients
    return {"loss": loss, **({} if case.op == "forward" else {name: found[name] for name in case.wanted})}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("asked", ASKED)
def test_float64_is_the_formula(shape, asked):
    op, wanted = ASKED[asked]
    operands, truth, _ = given(Case("A", *shape, op=op, wanted=wanted))
    for name, value in formula(Case("A", *shape, op=op, wanted=wanted), operands).items():
        torch.testing.assert_close(truth[name], value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("asked", ASKED)
def test_every_peer_is_right_and_leaves_the_operands_as_they_were(asked, shape, dtype):
    op, wanted = ASKED[asked]
    case = Case("A", *shape, op=op, wanted=wanted, dtype=dtype)
    operands, truth, stock = given(case)
    before = [None if t is None else t.detach().clone() for t in operands]
    for name in HERE:
        if (name == FUNCTIONAL and op == "forward") or (name == FOLDED and op != "step"):
            continue
        found = parity.judge("linear_mse", case.results(PEERS[name].prepare(case, CPU), operands), truth, stock)
        assert found["passed"], (name, found["failures"])
        for start, now in zip(before, operands, strict=True):
            assert start is None or (torch.equal(start, now.detach()) and now.grad is None), name


@pytest.mark.parametrize("name", HERE)
def test_a_step_subtracts_the_learning_rate_times_the_gradient(name):
    case = Case("D", 50, 3, 2, op="step", wanted=("weight", "bias"), dtype=torch.float64)
    operands = case.draw(CPU, 1)
    loss, gradients = linear_peers.reference.oracle(*operands)
    start = operands.weight.detach().clone(), operands.bias.detach().clone()
    found = PEERS[name].prepare(case, CPU)(operands)()
    torch.testing.assert_close(found[0].detach(), loss)
    torch.testing.assert_close(operands.weight.detach(), start[0] - case.lr * gradients["weight"])
    torch.testing.assert_close(operands.bias.detach(), start[1] - case.lr * gradients["bias"])


@pytest.mark.parametrize("wanted", [("weight",), ("weight", "bias")], ids=str)
def test_gdcores_step_is_one_call_that_records_nothing(wanted, monkeypatch):
    calls, real = [], linear_peers.gdcore.linear_mse_sgd_
    monkeypatch.setattr(linear_peers.gdcore, "linear_mse_sgd_", lambda *a, **k: calls.append(a) or real(*a, **k))
    case = Case("D", 50, 3, 2, op="step", wanted=wanted)
    operands = case.draw(CPU, 0)
    found = PEERS[OURS].prepare(case, CPU)(operands)()
    assert len(calls) == 1 and not found[0].requires_grad and len(found) == 1 + len(wanted)
    assert all(t is getattr(operands, name) for t, name in zip(found[1:], wanted, strict=True))


def drifting(case, device):
    """Right the first time."""
    calls = []

    def call(tensors):
        loss, *rest = linear_peers.bound(case, tensors, linear_peers.reference.linear_mse)()
        calls.append(1)
        return loss * (1 + 0.1 * (len(calls) - 1)), *rest

    return lambda tensors: lambda: call(tensors)


def test_state_left_by_the_first_call_shows(case):
    operands, truth, stock = given(case)
    found = parity.judge("linear_mse", case.results(drifting(case, CPU), operands), truth, stock)
    assert not found["passed"] and found["failures"][0].startswith("loss is off by 2.0e-01")


def test_a_peer_that_fails_halfway_leaves_the_operands_as_they_were():
    case = Case("D", 50, 3, 2, op="step")
    operands = case.draw(CPU, 0)
    start = operands.weight.detach().clone()

    def spoil():
        operands.weight.detach().fill_(7)
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        case.results(lambda tensors: spoil, operands)
    assert torch.equal(operands.weight.detach(), start)


def test_too_few_results_are_an_error(case):
    with pytest.raises(ValueError, match="zip"):
        case.results(lambda tensors: lambda: (torch.ones(()),), case.draw(CPU, 0))


@pytest.mark.parametrize(
    ("name", "op", "why"),
    [
        (GRAPH, "backward", "CUDA graphs exist on CUDA devices only"),
        (GRAPHED_COMPILED, "backward", "CUDA graphs, which are what this mode adds, exist on CUDA devices only"),
        (FUNCTIONAL, "forward", "there is no gradient to take"),
    ],
)
def test_what_does_not_exist_here_says_why(name, op, why):
    with pytest.raises(LeftOut, match=f"^{why}$"):
        PEERS[name].prepare(Case("D", 10, 2, 1, op=op), CPU)


@pytest.mark.parametrize(
    ("peer", "mode"), [(COMPILED, None), (TUNED, "max-autotune"), (GRAPHED_COMPILED, "reduce-overhead")]
)
def test_each_mode_is_the_one_that_its_name_says(peer, mode, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: asked.append((function, mode)) or function)
    PEERS[peer].prepare(Case("D", 10, 2, 1), torch.device("cuda"))
    assert asked == [(linear_peers.reference.linear_mse, mode)]


def test_the_functional_peer_compiles_loss_gradients_and_update_as_one_function(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    case = Case("D", 10, 2, 1, op="step")
    operands = case.draw(CPU, 0)
    bind = PEERS[FUNCTIONAL].prepare(case, CPU)
    assert len(compiled) == 1 and compiled[0].__name__ == "step"
    start = operands.weight.detach().clone()
    compiled[0](*(None if t is None else t.detach() for t in operands))
    assert not torch.equal(operands.weight.detach(), start), "the update is inside"
    assert bind(operands)()[1].data_ptr() == operands.weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ASKED)
def test_the_library_composition_holds_on_a_gpu_too(asked, dtype):
    """Types, shapes and devices alone: tensors without storage need no GPU."""
    op, wanted = ASKED[asked]
    case = Case("A", 9, 4, 2, dtype=dtype, op=op, wanted=wanted)
    with FakeTensorMode():
        shapes = ((9, 4), (2, 4), (9, 2), (2,))
        drawn = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
        found = PEERS[LIBRARY].prepare(case, torch.device("cuda"))(Tensors(*drawn[: 3 + ("bias" in wanted)]))()
    sizes = {"input": (9, 4), "weight": (2, 4), "bias": (2,)}
    assert [tuple(t.shape) for t in found] == [(), *(sizes[name] for name in wanted if op != "forward")]
    assert all(t.dtype is dtype and t.device.type == "cuda" for t in found)


@pytest.mark.parametrize(("peer", "expected"), [(LIBRARY, ["addmm", "mm"]), (FOLDED, ["addmm", "addmm_"])])
def test_the_compositions_by_hand_are_the_fewest_calls(peer, expected, monkeypatch):
    """A step without bias: one product makes the residual, one the gradient, or with the update folded in no gradient."""
    case = Case("D", 50, 3, 2, op="step")
    calls = []
    for owner, name in ((torch, "addmm"), (torch, "mm"), (torch.Tensor, "addmm_")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k))
    PEERS[peer].prepare(case, CPU)(case.draw(CPU, 0))()
    assert calls == expected


def test_the_loss_by_hand_is_as_exact_as_stocks_over_millions():
    """One dot over so many numbers is off by 1e-4."""
    residual = torch.randn(4_000_000, 1)
    exact = residual.double().square().mean().item()
    assert abs(by_hand.mean_square(residual).item() / exact - 1) < 1e-6


def test_stock_s_optimizer_is_fused_only_where_that_is_right():
    for dtype, fused in ((torch.float32, True), (torch.bfloat16, False)):
        optimizer = linear_peers.stock_sgd([torch.zeros(3, dtype=dtype, requires_grad=True)], lr=0.5)
        assert optimizer.defaults["fused"] is fused and optimizer.defaults["lr"] == 0.5


def test_peers_have_names_that_can_be_asked_for_and_words():
    assert list(PEERS) == [STOCK, COMPILED, TUNED, GRAPHED_COMPILED, FUNCTIONAL, LIBRARY, FOLDED, GRAPH, JAX, OURS]
    assert set(PEERS) <= set(NAMES)
    assert all(isinstance(peer, Peer) and peer.what and peer.comparable for peer in PEERS.values())
