"""A call like two before it skips the questions and takes its launches from a tape: with the same result, and never for another kind."""

import gc
import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gdcore
import support
from gdcore import chunks, functional, plan, recall
from gdcore.backends import triton, triton_replay
from gdcore.kernels import tape
from support import DEVICE

SHAPES = {
    "rows": (50, 3, 1),
    "vector": (50, 40, 1),
    "vector, odd rows": (35, 37, 3),
    "dot": (64, 64, 8),
    "tall": (64, 64, 64),
    "tiled": (33, 300, 20),
}
WANTED = {"nothing": (), "dW": ("weight",), "dW, db": ("weight", "bias"), "all": ("input", "weight", "target", "bias")}


def draw(n, k, m, dtype=torch.float32, bias=False):
    return support.draw(n, k, m, dtype, bias)


def assert_bitwise(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other) and one.dtype is other.dtype and one.stride() == other.stride()


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    monkeypatch.setattr(plan, "_STOCK_NUMBERS_CUDA", 0)
    with gdcore.use_backend("triton"):
        yield


@pytest.fixture
def planned(monkeypatch):
    """The calls that were planned."""
    calls, plan_of = [], functional.plan_of
    monkeypatch.setattr(functional, "plan_of", lambda *a, **o: calls.append(a) or plan_of(*a, **o))
    return calls


def called(tensors, wanted=("weight",), reduction="mean"):
    """(loss, gradients)."""
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
    loss = gdcore.linear_mse(*leaves.values(), reduction=reduction)
    if not wanted:
        return (loss,)
    return loss, *torch.autograd.grad(loss, [leaves[name] for name in wanted], torch.full_like(loss, 0.5))


def anew(*args, **options):
    """The same, asked and planned."""
    recall.forget()
    return called(*args, **options)


def learnt(tensors, **options):
    """Two calls, after which the kind is known, one that is recorded, one from the tape."""
    recall.forget()
    for _ in range(4):
        called(tensors, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_third_call_is_not_planned_and_right(shape, dtype, wanted, reduction, planned):
    draws = [draw(*shape, dtype, bias="bias" in wanted) for _ in range(4)]
    found = [called(tensors, wanted=wanted, reduction=reduction) for tensors in draws]
    assert len(planned) == 2
    for tensors, ours in zip(draws[2:], found[2:], strict=True):  # recorded, and from the tape
        assert_bitwise(ours, anew(tensors, wanted=wanted, reduction=reduction))


def offset(tensor):
    """The same numbers at an odd address."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return memory[1:].view(tensor.shape).copy_(tensor)


OTHERS = {
    "columns first": lambda t: t | {"input": t["input"].t().contiguous().t()},
    "another number of rows": lambda t: t | {"input": t["input"][:-1], "target": t["target"][:-1]},
    "rows apart": lambda t: t | {"input": t["input"].repeat(1, 2)[:, : t["input"].shape[1]]},
    "another dtype": lambda t: {name: tensor.double() for name, tensor in t.items()},
    "a wider target": lambda t: t | {"target": t["target"].double()},
    "a bias": lambda t: t | {"bias": torch.randn_like(t["target"][0])},
    "another address": lambda t: t | {"input": offset(t["input"])},
    "a weight at another address": lambda t: t | {"weight": offset(t["weight"])},
    "leading dimensions": lambda t: t | {"input": t["input"][None], "target": t["target"][None]},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("shape", [SHAPES["rows"], SHAPES["vector"], SHAPES["dot"]], ids=str)
def test_other_tensors_are_not_taken_for_known_ones(shape, other):
    tensors = draw(*shape)
    learnt(tensors)
    changed = other(tensors)
    ours, back = called(changed), called(tensors)
    assert_bitwise(ours, anew(changed))
    assert_bitwise(back, anew(tensors))


@pytest.mark.parametrize("wanted", [("input",), ("weight", "input"), ("target",), ()], ids=str)
def test_another_gradient_is_another_kind(wanted):
    tensors = draw(*SHAPES["vector"])
    learnt(tensors)
    assert_bitwise(called(tensors, wanted=wanted), anew(tensors, wanted=wanted))


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_another_reduction_is_another_kind(reduction):
    tensors = draw(*SHAPES["vector"])
    learnt(tensors)
    assert_bitwise(called(tensors, reduction=reduction), anew(tensors, reduction=reduction))


@pytest.mark.parametrize("learnt_with", [True, False], ids=["learnt with gradients", "learnt without"])
def test_whether_gradients_are_recorded_is_asked_each_time(learnt_with):
    x, w, y = draw(*SHAPES["vector"]).values()
    w.requires_grad_()
    for _ in range(4):
        with torch.set_grad_enabled(learnt_with):
            assert gdcore.linear_mse(x, w, y).requires_grad is learnt_with
    with torch.set_grad_enabled(not learnt_with):
        assert gdcore.linear_mse(x, w, y).requires_grad is not learnt_with
    with torch.inference_mode():
        assert gdcore.linear_mse(x, w, y).is_inference()


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_each_pattern_of_addresses_is_recorded_once(bias):
    tensors = draw(*SHAPES["vector"], bias=bias)
    learnt(tensors)
    (call,) = recall._known.values()
    replays = call.backend.replays
    known = {**replays}
    assert list(known) == [(True,) * len(tensors)] and None not in known.values()
    called({name: tensor.clone() for name, tensor in tensors.items()})
    assert replays == known
    for place, name in enumerate(tensors):
        for _ in range(2):
            called(tensors | {name: offset(tensors[name])})
            called(tensors)
        pattern = tuple(other != place for other in range(len(tensors)))
        assert len(replays) == 2 + place and replays[pattern] is not None
    assert replays[(True,) * len(tensors)] is known[(True,) * len(tensors)]


def test_a_tensor_given_twice_stands_for_itself_alone():
    x, w, y = draw(30, 3, 3).values()
    for _ in range(4):
        gdcore.linear_mse(x, w, x)
    for target in (y, x, y):
        ours = gdcore.linear_mse(x, w, target)
        torch.testing.assert_close(ours, torch.nn.functional.mse_loss(x @ w.t(), target))


class Seen(BaseTorchFunctionMode):
    def __init__(self):
        self.functions = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.functions.append(function)
        return super().__torch_function__(function, types, args, kwargs)


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


SETTINGS = {
    "a backend by name": lambda: gdcore.use_backend("reference"),
    "a precision": lambda: gdcore.use_float32_precision("tf32x3"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "a mode of functions": Seen,
    "a mode of operators": Dispatched,
    "autocast": lambda: torch.autocast(DEVICE, dtype=torch.bfloat16),
    "dual numbers": forward_ad.dual_level,
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_setting_is_heeded(setting):
    x, w, y = draw(*SHAPES["dot"]).values()
    w.requires_grad_()
    for _ in range(4):
        gdcore.linear_mse(x, w, y)
    assert recall.recall(x, w, y, None, "mean") is not None
    with setting():
        assert recall.recall(x, w, y, None, "mean") is None
    assert recall.recall(x, w, y, None, "mean") is not None


def test_a_mode_of_functions_sees_the_call():
    x, w, y = draw(*SHAPES["dot"]).values()
    for _ in range(4):
        gdcore.linear_mse(x, w, y)
    with Seen() as mode:
        gdcore.linear_mse(x, w, y)
    assert gdcore.linear_mse in mode.functions


def test_transforms_are_heeded():
    x, w, y = draw(*SHAPES["dot"]).values()
    for _ in range(4):
        gdcore.linear_mse(x, w, y)
    loss, tangent = torch.func.jvp(lambda w: gdcore.linear_mse(x, w, y), (w,), (torch.ones_like(w),))
    assert tangent.shape == loss.shape == ()
    inside = []

    def row(one, target):
        inside.append(recall.recall(x, w, y, None, "mean"))
        return gdcore.linear_mse(one[None], w, target[None])

    assert torch.func.vmap(row)(x, y).shape == (len(x),)
    assert inside == [None]


def test_wrong_arguments_are_refused_as_ever():
    tensors = draw(*SHAPES["vector"])
    learnt(tensors)
    x, w, y = tensors.values()
    for wrong, error in (((x, w, y[:-1]), ValueError), ((x, w, None), TypeError), ((x, w.int(), y), RuntimeError)):
        with pytest.raises(error):
            gdcore.linear_mse(*wrong)
    with pytest.raises(ValueError):
        gdcore.linear_mse(x, w, y, reduction=["mean"])
    with pytest.raises(NotImplementedError):
        gdcore.linear_mse(x.to_sparse(), w, y)
    with pytest.raises(ValueError, match="median"):
        gdcore.linear_mse(x, w, y, reduction="median")
    with pytest.raises(TypeError):
        gdcore.linear_mse("x", w, y)


@pytest.mark.parametrize("shape", [SHAPES["vector"], SHAPES["tiled"]], ids=str)
def test_no_tensor_is_kept(shape):
    x, w, y = draw(*shape).values()
    w.requires_grad_()
    for _ in range(4):
        gdcore.linear_mse(x, w, y)
    assert recall.recall(x, w, y, None, "mean") is not None
    gone = [weakref.ref(tensor) for tensor in (x, w, y)]
    del x, w, y
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_kinds_in_turn_are_both_learnt(planned):
    x, w, y = draw(*SHAPES["vector"]).values()
    turned = x.t().contiguous().t()
    for _ in range(4):
        gdcore.linear_mse(x, w, y), gdcore.linear_mse(turned, w, y)
    assert len(planned) == 4


def test_what_the_guards_refuse_in_turn_is_not_learnt_again_and_again(planned, monkeypatch):
    x, w, y = draw(*SHAPES["vector"]).values()
    parameter, made, guards = torch.nn.Parameter(w, requires_grad=False), [], recall.guards_of
    monkeypatch.setattr(recall, "guards_of", lambda tensors: made.append(tensors) or guards(tensors))
    for _ in range(4):
        gdcore.linear_mse(x, w, y), gdcore.linear_mse(x, parameter, y)
    assert len(made) == 1 and len(planned) == 5


@pytest.mark.parametrize("arguments", ["the input is the target", "matmul_mse", "a wider target"])
def test_what_cannot_be_recalled_is_not_remembered(arguments):
    x, w, y = draw(40, 3, 3).values()
    for _ in range(3):
        if arguments == "matmul_mse":
            gdcore.matmul_mse(x, w.t(), y)
        elif arguments == "a wider target":
            gdcore.linear_mse(x, w, y.double())
        else:
            gdcore.linear_mse(x, w, x)
    assert not recall._known


def test_there_is_an_end_of_the_kinds(monkeypatch):
    x, w, y = draw(*SHAPES["vector"]).values()
    monkeypatch.setattr(recall, "_KINDS", 3)
    for n in range(2, 12):
        gdcore.linear_mse(x[:n], w, y[:n])
    assert 0 < len(recall._known) <= 3


@pytest.mark.parametrize("why", ["stock may take it", "free memory is asked"])
def test_a_plan_that_depends_on_the_moment_is_not_remembered(why, monkeypatch):
    tensors = draw(*SHAPES["vector"])
    if why == "stock may take it":
        monkeypatch.undo()
    else:
        monkeypatch.setattr(chunks, "LARGE_BYTES", 1)
    with gdcore.use_backend("triton"):
        for _ in range(3):
            called(tensors)
    assert not recall._known


@pytest.mark.parametrize("guards", [None, lambda *_: None], ids=["there are none", "they are called otherwise"])
def test_without_guards_every_call_is_planned(guards, monkeypatch, planned):
    if guards is None:
        monkeypatch.delattr("torch._C._dynamo.guards.TensorGuards")
    else:
        monkeypatch.setattr("torch._C._dynamo.guards.TensorGuards", guards)
    for _ in range(4):
        called(draw(*SHAPES["vector"]))
    assert len(planned) == 4


def test_a_graph_kept_for_a_second_backward_pass_and_a_second_derivative():
    tensors = draw(*SHAPES["vector"])
    learnt(tensors)
    x, w, y = tensors.values()
    w.requires_grad_()
    loss = gdcore.linear_mse(x, w, y)
    first, second = (torch.autograd.grad(loss, w, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    gradient = torch.autograd.grad(loss, w, create_graph=True)[0]
    hessian = torch.autograd.grad(gradient.sum(), w)[0]
    torch.testing.assert_close(hessian, (2 * x.t() @ x / len(x)).sum(0, keepdim=True), rtol=1e-4, atol=1e-4)


def test_a_profiler_sees_its_launches_and_records_nothing(monkeypatch):
    tensors = draw(*SHAPES["vector"])
    calls, forward = [], triton.forward
    monkeypatch.setattr(triton, "forward", lambda *a: calls.append(a) or forward(*a))
    recall.forget()
    found = []
    for hooked in (False, False, True, True, False, False, True, False):
        with monkeypatch.context() as patch:
            patch.setattr(triton_replay, "has_hooks", lambda hooked=hooked: hooked)
            found.append((called(tensors), len(calls)))
            calls.clear()
    assert [count for _, count in found] == [1, 1, 1, 1, 1, 0, 1, 0]
    for ours, _ in found:
        assert_bitwise(ours, found[0][0])


def test_an_error_while_recording_leaves_no_tape(monkeypatch):
    tensors = draw(*SHAPES["vector"])
    for _ in range(2):
        called(tensors)
    with monkeypatch.context() as patch:
        patch.setattr(triton, "from_sums", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            called(tensors)
    assert getattr(tape._thread, "tape", None) is None
    assert_bitwise(called(tensors), anew(tensors))


def test_a_tape_refuses_what_it_cannot_place():
    given, other = torch.zeros(3), torch.zeros(3)
    for args, can in (((given, 1), True), ((other, 1), False), ((1, 2.0, None), True)):

        def call(args=args):
            made = tape.empty((2,), dtype=torch.float32, device=given.device)
            tape.note(lambda *_: None, (*args, made))

        _, recorded = tape.recorded(call)
        assert (recorded.replay([given]) is not None) is can
    assert recorded.replay([given, given]) is None
    tape.note(lambda *_: None, (other,))  # nobody records
    assert len(recorded.launches) == 1


def test_a_replay_calls_with_the_new_tensors_and_the_old_numbers():
    given, calls = torch.zeros(3), []

    def call():
        made = tape.empty((2, 5), dtype=torch.float64, device=given.device)
        tape.note(lambda *args: calls.append(args), (given, made, 7, None, 0.5))

    _, recorded = tape.recorded(call)
    replay = recorded.replay([given])
    for _ in range(2):
        fresh = torch.ones(3)
        (out,) = replay(fresh)
        assert calls[-1][0] is fresh and calls[-1][1] is out and calls[-1][2:] == (7, None, 0.5)
        assert out.shape == (2, 5) and out.dtype is torch.float64
    assert calls[0][1] is not calls[1][1]
