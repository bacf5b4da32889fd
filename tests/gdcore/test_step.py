"""linear_mse_sgd_: stock's loop step by step, what is refused and left alone, and every path that may compute it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gdcore
from gdcore import devices, plan, step_run
from gdcore.backends import Wanted, cpu, load, reference
from gdcore.kernels import configs, table
from gdcore.kernels.configs import Config
from gdcore.update import Update
from product_support import laid_out
from support import DEVICE, DTYPES, draw
from support import stock as stock_loss

OPTIONS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "momentum and decay": {"momentum": 0.5, "weight_decay": 0.1},
    "dampening": {"momentum": 0.5, "dampening": 0.3},
    "dampening and decay": {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "maximize": {"maximize": True, "momentum": 0.3, "weight_decay": 0.1},
    "maximize with nesterov": {"maximize": True, "momentum": 0.3, "nesterov": True},
}
EXTREME = [(7, 1, 1), (1, 3, 2), (1, 1, 1), (65, 3, 1), (33, 17, 5), (40, 20, 24)]


def buffers_for(t, options, dtype=None):
    if not options.get("momentum"):
        return {}
    found = {"momentum_buffer": torch.zeros_like(t["weight"], dtype=dtype)}
    if "bias" in t:
        found["bias_momentum_buffer"] = torch.zeros_like(t["bias"], dtype=dtype)
    return found


def copied(t, dtype=None):
    return {name: v.clone() if dtype is None else v.to(dtype) for name, v in t.items()}


def ours(t, steps, lr=0.05, buffer_dtype=None, buffers=None, **options):
    """Losses; t's weight and bias are updated."""
    buffers = buffers_for(t, options, buffer_dtype) if buffers is None else buffers
    return torch.stack([gdcore.linear_mse_sgd_(**t, lr=lr, **options, **buffers) for _ in range(steps)])


def stock(t, steps, lr=0.05, **options):
    """The loop that is replaced; with dampening every step damps, as ours with a buffer of zeros."""
    params = [t[name].requires_grad_() for name in ("weight", "bias") if name in t]
    optimizer, losses = torch.optim.SGD(params, lr=lr, foreach=False, **options), []
    if options.get("dampening"):
        for p in params:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    for _ in range(steps):
        loss = stock_loss(t["input"], t["weight"], t["target"], t.get("bias"))
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for p in params:
        p.requires_grad_(False)
    return torch.stack(losses)


def assert_equal_to_stock(t, steps=3, factor=2, buffer_dtype=None, **options):
    """Our error against float64 is at most twice stock's, plus an epsilon of the dtype."""
    exact, theirs, mine = copied(t, torch.float64), copied(t), copied(t)
    losses = {
        name: run(tensors, steps, **options)
        for name, run, tensors in (("exact", stock, exact), ("stock", stock, theirs))
    }
    found = ours(mine, steps, buffer_dtype=buffer_dtype, **options)
    assert found.dtype == losses["stock"].dtype
    epsilon = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    for name in ("loss", *(name for name in ("weight", "bias") if name in t)):
        a, b, c = (
            (found, losses["stock"], losses["exact"]) if name == "loss" else (mine[name], theirs[name], exact[name])
        )
        assert a.dtype == b.dtype
        error, other = ((v.double() - c).norm() for v in (a, b))
        widest = max(epsilon[a.dtype], epsilon[t["input"].dtype])
        assert error <= factor * other + widest * (c.norm() + 0.1), f"{name}: {error} (stock {other})"
    assert torch.equal(mine["input"], t["input"])
    assert torch.equal(mine["target"], t["target"])


@pytest.fixture(params=["auto", "cpu", "triton", "reference"])
def any_backend(request):
    if request.param == "cpu" and DEVICE != "cpu":
        pytest.skip("the tensors are on a GPU")
    with gdcore.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_stocks_loop(options, any_backend):
    assert_equal_to_stock(draw(33, 3, 2), **OPTIONS[options])
    assert_equal_to_stock(draw(40, 20, 24, bias=False), **OPTIONS[options])


@pytest.mark.parametrize("shape", EXTREME, ids=str)
def test_equals_stocks_loop_for_extreme_shapes(shape, any_backend):
    assert_equal_to_stock(draw(*shape), momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_stocks_loop_in_every_dtype(dtype, any_backend):
    for shape in ((33, 3, 2), (40, 20, 24)):
        assert_equal_to_stock(draw(*shape, dtype), momentum=0.5, weight_decay=0.1)
    if dtype.itemsize == 2:
        assert_equal_to_stock(draw(33, 3, 2, dtype), momentum=0.5, buffer_dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target", [torch.float64, torch.float32], ids=["float64 target", "float32 target"])
def test_a_wider_target_widens_the_loss(dtype, target, any_backend):
    t = draw(33, 3, 2, dtype, target_dtype=target)
    assert_equal_to_stock(t, momentum=0.5)
    assert gdcore.linear_mse_sgd_(**t, lr=0.1).dtype is target


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_residual_beyond_float16_is_not_cut(target, any_backend):
    t = draw(40, 20, 24, torch.float16, target_dtype=target)
    t["target"] *= 1e6
    mine = copied(t)
    assert ours(mine, 1, lr=1e-4).isfinite().all()
    exact = copied(t, torch.float64)
    stock(exact, 1, lr=1e-4)
    torch.testing.assert_close(mine["weight"].double(), exact["weight"], rtol=2e-3, atol=2e-2)


def test_leading_dimensions_are_rows(any_backend):
    assert_equal_to_stock(draw((3, 5), 3, 2))
    assert_equal_to_stock(draw((), 3, 2))


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
@pytest.mark.parametrize("which", ["input", "weight", "target", "bias", "buffers"])
def test_any_strides(which, layout, any_backend):
    for n, k, m in ((33, 3, 2), (40, 20, 24)):
        t, expected = draw(n, k, m), None
        for name in ("dense", which):
            mine = copied(t)
            buffers = buffers_for(t, {"momentum": 0.9})
            places = buffers if name == "buffers" else mine if name in mine else {}
            for key in [name] if name in mine else list(places):
                v = places[key]
                places[key] = laid_out(v, layout) if v.dim() == 2 else laid_out(v[None], layout)[0]
            loss = ours(mine, 2, momentum=0.9, buffers=buffers)
            found = (loss, mine["weight"], mine["bias"], *buffers.values())
            if expected is not None:
                for a, b in zip(found, expected, strict=True):
                    torch.testing.assert_close(a, b)
            expected = found


def test_repeats_are_bitwise_equal(any_backend):
    for shape in ((700, 3, 2), (90, 20, 24)):
        t = draw(*shape)
        first, second = copied(t), copied(t)
        assert torch.equal(ours(first, 3, momentum=0.9), ours(second, 3, momentum=0.9))
        assert torch.equal(first["weight"], second["weight"]) and torch.equal(first["bias"], second["bias"])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("options", ["plain", "nesterov"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("where", ["input", "weight", "target", "bias"])
def test_nan_and_inf_go_where_stock_sends_them(where, value, options, any_backend):
    t = draw(9, 3, 2)
    t[where].view(-1)[1] = value
    mine, theirs = copied(t), copied(t)
    losses = ours(mine, 2, **OPTIONS[options]), stock(theirs, 2, **OPTIONS[options])
    torch.testing.assert_close(*losses, equal_nan=True)
    for name in ("weight", "bias"):
        torch.testing.assert_close(mine[name], theirs[name], equal_nan=True)


@pytest.mark.parametrize("options", ["plain", "weight decay", "dampening"])
@pytest.mark.parametrize("shape", [(0, 3, 2), (5, 0, 2), (5, 3, 0), (0, 0, 0)], ids=str)
def test_empty_shapes_are_like_stock(shape, options, any_backend):
    t = draw(*shape)
    mine, theirs = copied(t), copied(t)
    torch.testing.assert_close(ours(mine, 2, **OPTIONS[options]), stock(theirs, 2, **OPTIONS[options]), equal_nan=True)
    for name in ("weight", "bias"):
        torch.testing.assert_close(mine[name], theirs[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)], ids=str)
def test_the_rate_may_be_a_tensor(shape, dtype, any_backend):
    for size in ((33, 3, 2), (40, 20, 24)):
        t = draw(*size)
        expected, mine = copied(t), copied(t)
        ours(expected, 2, lr=0.0625, momentum=0.5)
        ours(mine, 2, lr=torch.full(shape, 0.0625, dtype=dtype, device=DEVICE), momentum=0.5)
        torch.testing.assert_close(mine["weight"], expected["weight"])
        torch.testing.assert_close(mine["bias"], expected["bias"])


@pytest.mark.parametrize("grad", ["grad mode", "no_grad", "inference mode"])
@pytest.mark.parametrize("requires_grad", [True, False], ids=["leaf", "plain tensor"])
def test_nothing_is_recorded_and_versions_move(requires_grad, grad, any_backend):
    t = draw(33, 3, 2)
    if requires_grad:
        t = {name: torch.nn.Parameter(v) for name, v in t.items()}
        t["weight"].grad = torch.ones_like(t["weight"])
    buffers = buffers_for(t, {"momentum": 0.9})
    written = [t["weight"], t["bias"], *buffers.values()]
    context = {"grad mode": torch.enable_grad, "no_grad": torch.no_grad, "inference mode": torch.inference_mode}[grad]
    with context():
        for _ in range(2):
            versions = [v._version for v in written]
            loss = gdcore.linear_mse_sgd_(**t, lr=0.1, momentum=0.9, **buffers)
            assert torch.is_grad_enabled() == (grad == "grad mode")
            assert loss.shape == () and not loss.requires_grad and loss.grad_fn is None
            assert all(v._version > before for v, before in zip(written, versions, strict=True))
            assert t["input"]._version == t["target"]._version == 0
    assert all(v.grad_fn is None and v.requires_grad == requires_grad for v in (t["weight"], t["bias"]))
    assert t["bias"].grad is None
    assert not requires_grad or bool((t["weight"].grad == 1).all())


def test_a_backward_pass_after_the_step_is_told_of_it(any_backend):
    t = draw(33, 3, 2)
    t["weight"].requires_grad_()
    t["input"].requires_grad_()
    loss = F.mse_loss(F.linear(t["input"], t["weight"]), t["target"])
    gdcore.linear_mse_sgd_(**t, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_momentum_buffers_are_ignored_without_momentum(any_backend):
    t = draw(33, 3, 2)
    buffer = torch.full((7,), math.nan, device=DEVICE)
    version = buffer._version
    gdcore.linear_mse_sgd_(**t, lr=0.1, momentum_buffer=buffer, bias_momentum_buffer=buffer)
    assert buffer.isnan().all() and buffer._version == version
    assert t["weight"].isfinite().all()


def view_of(t, name):
    """A buffer that lies inside another tensor that is updated."""
    return t[name].view(-1)[: t["bias"].numel()]


REFUSED = {
    "a target without the output dimension": (lambda t: {"target": t["target"][:, 0]}, ValueError, "target has shape"),
    "a weight of other features": (lambda t: {"weight": t["weight"][:, :2]}, RuntimeError, "cannot be multiplied"),
    "a weight of another dtype": (lambda t: {"weight": t["weight"].double()}, RuntimeError, "weight has dtype"),
    "an integer input": (lambda t: {"input": t["input"].long()}, NotImplementedError, "torch.int64: input"),
    "a list": (lambda t: {"weight": [[1.0, 2.0, 3.0]] * 2}, TypeError, "weight must be a Tensor"),
    "a negative rate": (lambda t: {"lr": -0.1}, ValueError, "Invalid learning rate: lr is -0.1, it must be finite"),
    "a rate that is NaN": (lambda t: {"lr": math.nan}, ValueError, "Invalid learning rate"),
    "an infinite rate": (lambda t: {"lr": math.inf}, ValueError, "Invalid learning rate"),
    "a rate that is text": (lambda t: {"lr": "0.1"}, TypeError, "lr must be a number, not str"),
    "a rate that is a flag": (lambda t: {"lr": True}, TypeError, "lr must be a number, not bool"),
    "two rates": (lambda t: {"lr": torch.ones(2, device=DEVICE)}, ValueError, "Tensor lr must be 1-element"),
    "an integer rate": (lambda t: {"lr": torch.ones((), dtype=torch.int64, device=DEVICE)}, RuntimeError, "lr has dtype"),
    "a rate elsewhere": (lambda t: {"lr": torch.ones((), device="meta")}, RuntimeError, "same device.*lr is on meta"),
    "negative momentum": (lambda t: {"momentum": -0.9}, ValueError, "Invalid momentum value: momentum is -0.9"),
    "momentum that is NaN": (lambda t: {"momentum": math.nan}, ValueError, "Invalid momentum value"),
    "momentum that is a tensor": (lambda t: {"momentum": torch.tensor(0.9)}, TypeError, "momentum must be a number"),
    "infinite momentum": (lambda t: {"momentum": math.inf}, ValueError, "Invalid momentum value"),
    "infinite dampening": (lambda t: {"dampening": math.inf}, ValueError, "Invalid dampening value"),
    "negative decay": (lambda t: {"weight_decay": -0.1}, ValueError, "Invalid weight_decay value"),
    "infinite decay": (lambda t: {"weight_decay": math.inf}, ValueError, "Invalid weight_decay value"),
    "nesterov without momentum": (lambda t: {"momentum": 0.0, "nesterov": True}, ValueError, "Nesterov momentum requires"),
    "nesterov with dampening": (lambda t: {"nesterov": True, "dampening": 0.1}, ValueError, "Nesterov momentum requires"),
    "no buffer": (lambda t: {"momentum_buffer": None}, ValueError, "momentum_buffer is None: with momentum it must be"),
    "no buffer for the bias": (lambda t: {"bias_momentum_buffer": None}, ValueError, "bias_momentum_buffer is None"),
    "a buffer that is a list": (lambda t: {"momentum_buffer": [0.0]}, TypeError, "momentum_buffer must be a Tensor"),
    "a buffer of another shape": (
        lambda t: {"momentum_buffer": torch.zeros(3, 2, device=DEVICE)}, ValueError, r"momentum_buffer has shape \(3, 2\)",
    ),
    "a buffer of another dtype": (
        lambda t: {"momentum_buffer": torch.zeros(2, 3, dtype=torch.float64, device=DEVICE)}, RuntimeError, "has dtype",
    ),
    "a half buffer": (
        lambda t: {"momentum_buffer": torch.zeros(2, 3, dtype=torch.float16, device=DEVICE)}, RuntimeError, "has dtype",
    ),
    "a narrower buffer": (
        lambda t: {name: v.double() for name, v in t.items() if hasattr(v, "double") and name != "momentum_buffer"},
        RuntimeError, "momentum_buffer has dtype torch.float32, it must have weight's dtype, torch.float64",
    ),
    "a buffer elsewhere": (
        lambda t: {"bias_momentum_buffer": torch.zeros(2, device="meta")}, RuntimeError, "bias_momentum_buffer is on meta",
    ),
    "a sparse buffer": (
        lambda t: {"momentum_buffer": torch.zeros(2, 3, device=DEVICE).to_sparse()}, NotImplementedError, "layout",
    ),
    "a weight of overlapping rows": (
        lambda t: {"weight": torch.randn(4, device=DEVICE).as_strided((2, 3), (1, 1))}, RuntimeError, "single memory location",
    ),
    "an expanded weight": (lambda t: {"weight": t["weight"][:1].expand(2, 3)}, RuntimeError, "single memory location"),
    "an expanded bias": (lambda t: {"bias": t["bias"][:1].expand(2)}, RuntimeError, "bias of shape.*single memory location"),
    "an expanded buffer": (
        lambda t: {"momentum_buffer": torch.zeros(1, 3, device=DEVICE).expand(2, 3)}, RuntimeError, "momentum_buffer of",
    ),
    "the weight as its own buffer": (lambda t: {"momentum_buffer": t["weight"]}, ValueError, "weight and momentum_buffer"),
    "one buffer inside the other": (
        lambda t: {"bias_momentum_buffer": view_of(t, "momentum_buffer")}, ValueError, "share memory, and both are updated",
    ),
    "a bias inside the weight": (lambda t: {"bias": view_of(t, "weight")}, ValueError, "weight and bias share memory"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_refused_with_a_clear_error_and_nothing_is_modified(case, backend):
    change, error, words = REFUSED[case]
    t = draw(9, 3, 2)
    t |= {"lr": 0.1, "momentum": 0.9, **buffers_for(t, {"momentum": 0.9})}
    with gdcore.use_backend(backend):
        for v in ("warm", "refused"):  # what the first step has been found to be must not let the second one pass
            if v == "warm":
                gdcore.linear_mse_sgd_(**t)
                before = {name: (x.clone(), x._version) for name, x in t.items() if isinstance(x, torch.Tensor)}
                continue
            with pytest.raises(error, match=words):
                gdcore.linear_mse_sgd_(**(t | change(t)))
    for name, (copy, version) in before.items():
        assert torch.equal(t[name], copy) and t[name]._version == version


@pytest.mark.parametrize("name", ["weight", "bias", "momentum_buffer"])
def test_a_tensor_of_inference_mode_is_not_updated_outside_of_it(name, any_backend):
    t = draw(9, 3, 2)
    t |= buffers_for(t, {"momentum": 0.9})
    with torch.inference_mode():
        t[name] = t[name].clone()
    before = copied(t)
    with pytest.raises(RuntimeError, match=f"{name} was made in inference mode"):
        gdcore.linear_mse_sgd_(**t, lr=0.1, momentum=0.9)
    assert all(torch.equal(t[key], before[key]) for key in t)
    with torch.inference_mode():
        gdcore.linear_mse_sgd_(**t, lr=0.1, momentum=0.9)
    assert not torch.equal(t[name], before[name])


def test_parameters_in_one_piece_of_memory_are_separate(any_backend):
    memory, t = torch.randn(16, device=DEVICE), draw(9, 3, 2)
    expected = copied(t)
    t["weight"] = memory[:6].view(2, 3).copy_(t["weight"])
    t["bias"] = memory[6:8].copy_(t["bias"])
    columns = torch.zeros(2, 8, device=DEVICE)  # interleaved with each other
    buffers = {"momentum_buffer": columns[:, ::2][:, :3], "bias_momentum_buffer": columns[:, 7]}
    ours(t, 2, momentum=0.9, buffers=buffers)
    ours(expected, 2, momentum=0.9)
    torch.testing.assert_close(t["weight"], expected["weight"])
    torch.testing.assert_close(t["bias"], expected["bias"])


@pytest.mark.parametrize("which", ["input", "target", "lr"])
def test_what_is_read_may_share_memory_with_what_is_written(which, any_backend):
    t = draw(2, 3, 2)
    lr = torch.full((), 0.05, device=DEVICE)
    expected = copied(t)
    if which == "input":
        t["input"] = t["weight"]
        expected["input"] = t["weight"].clone()
    elif which == "target":
        t["target"] = t["weight"][:, :2]
        expected["target"] = t["target"].clone()
    else:
        t["bias"][1] = expected["bias"][1] = 0.05
        lr = t["bias"][1]
    ours(t, 1, lr=lr)
    ours(expected, 1, lr=0.05)
    torch.testing.assert_close(t["weight"], expected["weight"])
    torch.testing.assert_close(t["bias"], expected["bias"])


def test_kernels_never_read_what_they_write():
    """A program may read where another one has written: the interpreter runs them in turn, a GPU does not."""
    t = draw(3, 3, 3)
    separate, written = t["target"].clone(), {"weight": t["weight"], "bias": t["bias"]}
    with gdcore.use_backend("triton"):
        assert step_run._backend(t["input"], separate, written) == "triton"
        assert step_run._backend(t["weight"], separate, written) == "reference"
        assert step_run._backend(t["input"], t["weight"], written) == "reference"
        assert step_run._backend(t["input"], t["bias"].expand(3, 3), written) == "reference"


@pytest.mark.parametrize("shape", [(33, 3, 2), (33, 20, 5), (40, 20, 24)], ids=str)
def test_products_never_mix_dtypes(shape, monkeypatch):
    """Tensor cores take operands of one type; the interpreter widens both and would not notice."""
    from gdcore.backends import triton_step

    taken, real = [], triton_step._through_library
    monkeypatch.setattr(triton_step, "_through_library", lambda *a: taken.append(a) or real(*a))
    t = draw(*shape)
    with gdcore.use_backend("triton"):
        with torch.autocast(DEVICE, torch.bfloat16):
            gdcore.linear_mse_sgd_(**t, lr=0.1)
        gdcore.linear_mse_sgd_(**(t | {"target": t["target"].double()}), lr=0.1)
        by_library = 1 if shape == (33, 3, 2) else 2  # without tensor cores float32 weights meet bfloat16 rows
        assert len(taken) == by_library
        gdcore.linear_mse_sgd_(**t, lr=0.1)
    assert len(taken) == by_library


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(33, 3, 2), (40, 20, 24)], ids=str)
def test_autocast_updates_the_weight_that_was_given(shape, dtype, any_backend):
    if DEVICE == "cpu" and dtype is torch.float16 and any_backend == "triton":
        pytest.skip("float16 in autocast leaves a float32 target: stock")
    t = draw(*shape)
    mine, theirs, buffers = copied(t), copied(t), {}
    for _ in range(2):  # a context for each step: within one, stock computes with the first step's cast weight
        with torch.autocast(DEVICE, dtype=dtype):
            loss = ours(mine, 1, buffers=buffers)
            expected = stock(theirs, 1)
    assert loss.dtype is expected.dtype is torch.float32
    assert mine["weight"].dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)
    for name in ("weight", "bias"):
        torch.testing.assert_close(mine[name] - t[name], theirs[name] - t[name], rtol=0.05, atol=2e-3)
        assert not torch.equal(mine[name], mine[name].to(dtype).float()), "the master's digits are kept"


def test_functorch_modes_and_subclasses_take_plain_operations():
    class Plain(torch.Tensor):
        pass

    t = draw(9, 3, 2)
    expected, mine = copied(t), copied(t)
    loss = ours(expected, 1)
    mine["weight"] = mine["weight"].as_subclass(Plain)
    torch.testing.assert_close(torch.as_tensor(ours(mine, 1)).as_subclass(torch.Tensor), loss)
    torch.testing.assert_close(mine["weight"].as_subclass(torch.Tensor), expected["weight"])

    stacks = {name: torch.stack([v, v]) for name, v in copied(t).items()}
    losses = torch.vmap(lambda x, w, y, b: gdcore.linear_mse_sgd_(x, w, y, b, lr=0.05))(*stacks.values())
    torch.testing.assert_close(losses, loss.expand(2))
    torch.testing.assert_close(stacks["weight"][1], expected["weight"])

    given = copied(t)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(v) for name, v in given.items()}
        assert gdcore.linear_mse_sgd_(**fakes, lr=0.05).shape == ()
    torch.testing.assert_close(ours(copied(t), 1), loss)


@pytest.mark.parametrize("rate", ["number", "tensor"])
@pytest.mark.parametrize("fused", [True, False], ids=["to the operator", "to plain operations"])
def test_compiles_without_a_graph_break(fused, rate, monkeypatch):
    if fused:
        monkeypatch.setattr(plan, "_STOCK_BYTES", 0)
        plan.plan_for.cache_clear()
    elif DEVICE != "cpu":
        pytest.skip("only the CPU leaves small shapes to plain operations while it compiles")
    torch._dynamo.reset()
    t = draw(70, 5, 3)
    lr = 0.05 if rate == "number" else torch.tensor(0.05, device=DEVICE)
    buffers, mine, expected = buffers_for(t, {"momentum": 0.9}), copied(t), copied(t)
    mine = {name: torch.nn.Parameter(v) if name in ("weight", "bias") else v for name, v in mine.items()}
    graphs = []

    def spy(graph, _):
        graphs.append(str(graph.code))
        return graph.forward

    def step(x, w, y, b, v, bv):
        return gdcore.linear_mse_sgd_(
            x * 1, w, y, b, lr=lr, momentum=0.9, weight_decay=0.1, momentum_buffer=v, bias_momentum_buffer=bv
        ) + 1  # fmt: skip

    for backend in (spy, "aot_eager"):
        versions = mine["weight"]._version
        compiled = torch.compile(step, fullgraph=True, backend=backend)
        loss = compiled(*mine.values(), *buffers.values())
        assert not loss.requires_grad
        assert mine["weight"]._version > versions
    assert ("gdcore.linear_mse_sgd_" in graphs[0]) == fused
    losses = ours(expected, 2, momentum=0.9, weight_decay=0.1)
    torch.testing.assert_close(loss - 1, losses[1])
    torch.testing.assert_close(mine["weight"].detach(), expected["weight"])
    torch.testing.assert_close(mine["bias"].detach(), expected["bias"])
    plan.plan_for.cache_clear()


def test_opcheck():
    t = draw(6, 3, 2)
    buffers = torch.zeros(2, 3, device=DEVICE), torch.zeros(2, device=DEVICE)
    for args in (
        (t["input"], t["weight"], t["target"], t["bias"], *buffers, None, 0.1, 0.9, 0.0, 0.1, True, False),
        (
            t["input"],
            t["weight"],
            t["target"],
            None,
            None,
            None,
            torch.tensor(0.1, device=DEVICE),
            0.0,
            0.0,
            0.0,
            0.0,
            False,
            True,
        ),
    ):
        torch.library.opcheck(step_run._operator, args)


def test_the_operator_takes_a_counter_of_its_own(monkeypatch):
    """What a compiled graph allocates belongs to it: a counter kept for the stream must not come from there."""
    backend, seen = load("triton"), []
    monkeypatch.setattr(backend, "step", lambda *args, counter=None: seen.append(counter) or args[0].new_zeros(()))
    t = draw(6, 3, 2)
    with gdcore.use_backend("triton"):
        step_run._operator(
            t["input"], t["weight"], t["target"], None, None, None, None, 0.1, 0.0, 0.0, 0.0, False, False
        )
    assert seen[0].tolist() == [0] and seen[0].dtype is torch.int32


# Each path of the kernels, by a plan that asks for it.


def on_path(t, update, buffers, **fields):
    x, w, y = t["input"], t["weight"], t["target"]
    made = plan.plan_for(*x.shape, w.shape[0], dtype=x.dtype, device=devices.H200, wanted=Wanted(bias="bias" in t))
    made = plan.dataclasses.replace(made, **fields)
    with torch.no_grad():
        return load("triton").step(x, w, y, t.get("bias"), update, *buffers, made)


SMALL, WHOLE = Config(16, 16, 16, 4, 2), Config(16, 32, 16, 4, 2)  # one_pass_dot has all of K in a tile
PATHS = {
    "library": {"path": "library", "split": 1},
    "epilogue": {"path": "epilogue", "config": SMALL, "weight_config": SMALL, "split": 1},
    "epilogue, parts": {"path": "epilogue", "config": SMALL, "weight_config": SMALL, "split": 3},
    "tiled": {"path": "tiled", "config": SMALL, "weight_config": SMALL, "split": 1},
    "parts": {"path": "tiled", "config": SMALL, "weight_config": SMALL, "split": 3},
    "one launch": {"path": "one_pass_dot", "config": WHOLE, "programs": 3},
    "a single program": {"path": "one_pass_dot", "config": WHOLE, "programs": 1},
    "two launches": {"path": "one_pass_dot", "config": WHOLE, "programs": 3},
}
PATH_OPTIONS = {
    **OPTIONS,
    "all damped": {"momentum": 0.9, "dampening": 1.0},
    "maximize plain": {"maximize": True},
}


@pytest.mark.parametrize("options", PATH_OPTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_makes_the_same_step(path, options, monkeypatch):
    if path == "two launches":
        monkeypatch.setattr(plan, "LAST_PROGRAM_BYTES", 0)
    t = draw(40, 20, 5)
    update = Update(0.05, **PATH_OPTIONS[options])
    buffers = [torch.randn_like(t["weight"]), torch.randn_like(t["bias"])]
    expected, expected_buffers = copied(t), [b.clone() for b in buffers]
    with torch.no_grad():
        loss = reference.step(*(expected[n] for n in ("input", "weight", "target", "bias")), update, *expected_buffers)
    for lr in (0.05, torch.tensor(0.05, device=DEVICE)):
        mine, mine_buffers = copied(t), [b.clone() for b in buffers]
        versions = [v._version for v in (mine["weight"], mine["bias"], *mine_buffers)]
        found = on_path(mine, update._replace(lr=lr), mine_buffers, **PATHS[path])
        torch.testing.assert_close(found, loss)
        written = [mine["weight"], mine["bias"], *mine_buffers]
        if not update.momentum:
            assert all(torch.equal(a, b) for a, b in zip(mine_buffers, buffers, strict=True))
            written, versions = written[:2], versions[:2]
        for a, b in zip(written, [expected["weight"], expected["bias"], *expected_buffers], strict=False):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert all(v._version > before for v, before in zip(written, versions, strict=True))


def placed(tensor, offset):
    """The same values, dense, in memory that begins `offset` numbers behind a multiple of 16 bytes."""
    flat = tensor.new_empty(tensor.numel() + 64)
    first = -flat.data_ptr() // tensor.itemsize % 16 + offset
    return flat[first : first + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize(
    ("dtype", "k", "architecture", "which", "taken"),
    [
        (torch.bfloat16, 48, 90, None, "descriptors"),
        (torch.float16, 48, 100, None, "descriptors"),
        (torch.bfloat16, 48, 80, None, "pointers"),
        (torch.float32, 48, 90, None, "pointers"),
        (torch.bfloat16, 40, 90, None, "unaligned"),
        (torch.bfloat16, 48, 90, "input", "unaligned"),
        (torch.bfloat16, 48, 90, "weight", "unaligned"),
        (torch.bfloat16, 48, 90, "transposed weight", "unaligned"),
    ],
)
def test_the_update_follows_the_product_that_these_tensors_allow(dtype, k, architecture, which, taken, monkeypatch):
    """On descriptors only where rows are aligned, and with a smaller tile where they are not."""
    from gdcore.backends import triton_tiled

    calls = []
    for name in ("forward_descriptors", "backward_weight_step", "backward_weight_step_descriptors"):
        real = getattr(triton_tiled, name)
        monkeypatch.setattr(
            triton_tiled,
            name,
            lambda *a, real=real, name=name, **o: calls.append((name, o["config"])) or real(*a, **o),
        )
    options = "plain" if architecture == 100 else "momentum and decay"
    t = draw(40, k, 32, dtype)
    exact = copied(t, torch.float64)
    for name, tensor in t.items():
        t[name] = placed(tensor, int(name == which))
    if which == "transposed weight":
        t["weight"] = laid_out(t["weight"], "transposed")
    update = Update(0.05, **OPTIONS[options])
    on_device = devices.KNOWN[architecture]
    large = Config(32, 128, 128, 8, 3)
    made = plan.plan_for(40, k, 32, dtype=dtype, device=on_device, wanted=Wanted(bias=True))
    offered = Config(32, 32, 32, 4, 2) if architecture >= 90 else None
    made = plan.dataclasses.replace(
        made, path="tiled", config=SMALL, weight_config=large, forward_config=offered, split=1
    )
    buffers = {name: torch.zeros_like(t[name]) for name in ("weight", "bias")}
    with torch.no_grad():
        loss = load("triton").step(
            t["input"], t["weight"], t["target"], t["bias"], update, buffers["weight"], buffers["bias"], made
        )
    expected = stock(exact, 1, lr=0.05, **OPTIONS[options])[0]
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
    for name in ("weight", "bias"):
        torch.testing.assert_close(t[name].double(), exact[name], rtol=tolerance, atol=tolerance)
    (name, config) = calls[-1]
    assert (name == "backward_weight_step_descriptors") == (taken == "descriptors")
    on_descriptors = taken != "unaligned" or k == 40 or which == "transposed weight"
    assert ("forward_descriptors" in dict(calls)) == (offered is not None and on_descriptors)
    if taken != "descriptors":
        whole = config.block_k * config.block_m
        assert whole == (4096 if taken == "unaligned" else 128 * 128)


@pytest.mark.parametrize("which", [None, "input", "target"])
@pytest.mark.parametrize("architecture", [80, 90])
def test_rows_at_odd_addresses_have_a_configuration_of_their_own(which, architecture, monkeypatch):
    """On GPUs with little shared memory the one for aligned rows would not fit."""
    from gdcore.backends import triton, triton_step

    n, k, m, calls = 70, 136, 72, []
    sums = torch.zeros(1 + m + m * k, device=DEVICE)
    monkeypatch.setattr(triton, "ONE_PASS", {"one_pass_tall": lambda *a, **o: calls.append(o) or sums})
    monkeypatch.setattr(triton_step, "one_pass_step", lambda *a, **o: calls.append(o))
    t = {name: placed(tensor, int(name == which)) for name, tensor in draw(n, k, m, torch.bfloat16).items()}
    bare = plan.Plan("triton", "", "", devices.KNOWN[architecture], n, k, m, dtype=torch.bfloat16)
    asked = plan.Asked(torch.bfloat16, Wanted(bias=True), "mean", True, True)
    made = next(p for p in plan.paths.candidates(bare, asked, "tall", "") if p.path == "one_pass_tall")
    tensors = [t[name] for name in ("input", "weight", "target", "bias")]
    with torch.no_grad():
        load("triton").forward(*tensors, "mean", Wanted(bias=True), made)
        load("triton").step(*tensors, Update(0.05), None, None, made)
    row = configs.tall_row(architecture, torch.bfloat16, k, m, "ieee", aligned=which is None)
    assert len(calls) == 2
    for options in calls:
        assert options["config"] == table.lookup(*row)
        assert options["programs"] % -(-m // options["config"].block_m) == 0 < options["programs"]


@pytest.mark.parametrize("target", [None, torch.float32], ids=["half target", "float32 target"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("options", ["plain", "momentum and decay"])
def test_the_library_path_in_half_precision(options, bias, target):
    t = draw(40, 20, 5, torch.bfloat16, bias=bias, target_dtype=target)
    update = Update(0.5, **OPTIONS[options])
    buffers = [torch.randn_like(t[name]) if name in t else None for name in ("weight", "bias")]
    expected, theirs = copied(t), [None if b is None else b.clone() for b in buffers]
    with torch.no_grad():
        operands = (expected["input"], expected["weight"], expected["target"], expected.get("bias"))
        loss = reference.step(*operands, update, *theirs)
    found = on_path(t, update, buffers, **PATHS["library"])
    assert found.dtype is loss.dtype
    torch.testing.assert_close(found, loss, rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(t["weight"], expected["weight"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("path", ["library", "epilogue"])
def test_the_library_folds_the_update_into_its_product(path, monkeypatch):
    calls = []
    real = torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *a, **k: calls.append(k) or real(*a, **k))
    t = draw(40, 20, 5, bias=False)
    on_path(t, Update(0.5, weight_decay=0.1), (None, None), **PATHS[path])
    assert calls == [{"beta": 1 - 0.5 * 0.1, "alpha": -0.5 * 2 / 200}]
    buffer = torch.zeros_like(t["weight"])
    on_path(t, Update(0.5, 0.9, 0.25, maximize=True), (buffer, None), **PATHS[path])
    assert calls[1] == {"beta": 0.9, "alpha": -0.75 * 2 / 200}


@pytest.mark.parametrize(
    ("dtype", "update", "by"),
    [
        (torch.bfloat16, Update(0.05), "library"),
        (torch.float16, Update(0.05, weight_decay=0.1), "library"),
        (torch.float32, Update(0.05, 0.9), "library"),
        (torch.bfloat16, Update(0.05, 0.9), "tiled"),  # a half momentum would be rounded before it is used
        (torch.float32, Update(0.05, 0.9, nesterov=True), "tiled"),
        (torch.float32, Update(0.05, 0.9, 1.0), "tiled"),
        (torch.bfloat16, Update(torch.tensor(0.05, device=DEVICE)), "tiled"),
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_step_of_the_epilogue_path_ends_in_the_librarys_product_or_in_ours(dtype, update, by, bias, monkeypatch):
    from gdcore.backends import triton_tiled

    calls, real = [], triton_tiled.update
    monkeypatch.setattr(triton_tiled, "update", lambda *a, **o: calls.append(a) or real(*a, **o))
    t = draw(40, 48, 32, dtype, bias=bias)
    exact = copied(t, torch.float64)
    buffers = [torch.randn_like(t[name]) if name in t and update.momentum else None for name in ("weight", "bias")]
    theirs = [None if b is None else b.double() for b in buffers]
    operands = (exact["input"], exact["weight"], exact["target"], exact.get("bias"))
    with torch.no_grad():
        lr = update.lr.double() if isinstance(update.lr, torch.Tensor) else update.lr
        loss = reference.step(*operands, update._replace(lr=lr), *theirs)
    descriptors = {"forward_config": Config(32, 32, 32, 4, 2)} if dtype.itemsize == 2 else {}
    found = on_path(t, update, buffers, **PATHS["epilogue"], **descriptors)
    assert bool(calls) == (by == "tiled")
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), loss, rtol=tolerance, atol=0)
    written = [("weight", t["weight"], exact["weight"]), ("weight's momentum", buffers[0], theirs[0])]
    if bias:
        written += [("bias", t["bias"], exact["bias"]), ("bias's momentum", buffers[1], theirs[1])]
    for name, ours, expected in written:
        if ours is not None:
            torch.testing.assert_close(
                ours.double(), expected, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("path", PATHS)
def test_factors_of_zero_still_spread_nan(path):
    t = draw(40, 20, 5)
    t["input"][0, 0] = math.nan
    mine = copied(t)
    on_path(mine, Update(0.0), (None, None), **PATHS[path])
    assert mine["weight"].isnan().any(), "a rate of 0"
    mine, buffers = copied(t), [torch.zeros_like(t["weight"]), torch.zeros_like(t["bias"])]
    on_path(mine, Update(0.1, 0.9, 1.0), buffers, **PATHS[path])
    assert mine["weight"].isnan().any() and buffers[0].isnan().any(), "a gradient that is damped to 0"


@pytest.mark.parametrize(("lr", "tau", "folded"), [(0.1, 0.5, True), (0.0, 0.0, False), (0.1, 1.0, False)], ids=str)
def test_the_library_gets_no_factor_of_zero(lr, tau, folded, monkeypatch):
    """With one it leaves the product out, also where that is NaN."""
    calls, real = [], torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *a, **k: calls.append(k) or real(*a, **k))
    t = draw(40, 20, 5, bias=False)
    buffer = torch.zeros_like(t["weight"]) if tau else None
    on_path(t, Update(lr, 0.9 if tau else 0.0, tau), (buffer, None), **PATHS["library"])
    assert bool(calls) == folded


@pytest.mark.parametrize("count", [1, 1 << 15, (1 << 15) + 1, 4_000_000])
def test_a_small_step_keeps_every_digit(count):
    x, y, w = torch.randn(count, 1), torch.randn(count, 1), torch.zeros(1, 1)
    exact = y.double().square().mean().item()
    loss = cpu.small_step(x, w, y, None, 0.0, 0.0, 0.0, 0.0, False, False, None, None)
    assert abs(loss.item() / exact - 1) < 1e-6


class Passing(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_a_small_step_is_the_one_that_small_tensors_take(monkeypatch):
    if DEVICE != "cpu":
        pytest.skip("the tensors are on a GPU")
    taken = []
    real = cpu.small_step
    monkeypatch.setattr(cpu, "small_step", lambda *a: taken.append(a) or real(*a))
    t = draw(9, 3, 2)
    for options in OPTIONS.values():
        ours(t, 2, **options)
    assert len(taken) == 2 * len(OPTIONS)
    large = draw(700_000, 5, 2)
    ours(large, 1)
    with gdcore.use_backend("cpu"):
        ours(t, 1)
    with torch.autocast("cpu", torch.bfloat16):
        ours(t, 1)
    with Passing():
        ours(t, 1)
    assert len(taken) == 2 * len(OPTIONS)


def test_small_steps_of_other_kinds_are_not_taken_for_the_last_one():
    """Each differs from the step before in one thing; all are looked at anew."""
    base = draw(9, 3, 2)
    for changed in (
        draw(8, 3, 2), draw(9, 4, 2), draw(9, 3, 1), draw(9, 3, 2, torch.float64), draw(9, 3, 2, bias=False),
        draw(9, 3, 2, torch.bfloat16), {name: v.requires_grad_() for name, v in draw(9, 3, 2).items()},
    ):  # fmt: skip
        ours(copied(base), 1)
        mine = {name: v.detach().clone().requires_grad_(v.requires_grad) for name, v in changed.items()}
        exact = copied({name: v.detach() for name, v in changed.items()}, torch.float64)
        loss = ours(mine, 1)
        assert not loss.requires_grad
        torch.testing.assert_close(loss.double(), stock(exact, 1), rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(mine["weight"].detach().double(), exact["weight"], rtol=2e-2, atol=2e-2)


def test_where_the_compilers_guards_are_missing_every_step_is_looked_at(monkeypatch):
    from gdcore import step_small

    monkeypatch.setattr(step_small, "guards_of", lambda _: None)
    step_small._known.clear()
    for options in OPTIONS.values():
        assert_equal_to_stock(draw(9, 3, 2), **options)
    assert not step_small._known


def test_the_plan_says_where_the_update_is_made(monkeypatch):
    def told(n, k, m, **how):
        return plan.update_in_words(plan.plan_for(n, k, m, device=how.pop("device", devices.H200), **how))

    assert "one launch" in told(10**6, 2, 1)
    assert "one launch" in told(20_000, 64, 1)
    assert "two launches" in told(10**6, 256, 4)
    half, wide = torch.bfloat16, torch.float32
    assert "epilogue" in told(8192, 4096, 4096, dtype=half, target_dtype=wide)
    assert "parts" in told(8192, 512, 512, dtype=half, target_dtype=wide)
    assert "library's product, W - lr c EᵀX, or by the tiled kernels" in told(8192, 2048, 2048, dtype=half)
    assert "library" in told(8192, 4096, 4096)
    assert "complete" in told(100, 2, 1, device=devices.CPU)
    made = plan.plan_for(10**6, 64, 1, device=devices.H200)
    bytes_needed = made.programs * (1 + 1 + 64) * 4
    monkeypatch.setattr(plan, "LAST_PROGRAM_BYTES", bytes_needed)
    assert plan.updated_by_last_program(made)
    monkeypatch.setattr(plan, "LAST_PROGRAM_BYTES", bytes_needed - 1)
    assert not plan.updated_by_last_program(made)
    wide = plan.plan_for(10**6, 64, 1, dtype=torch.float64, device=devices.H200)
    monkeypatch.setattr(plan, "LAST_PROGRAM_BYTES", wide.programs * 66 * 8 - 1)
    assert not plan.updated_by_last_program(wide), "float64 sums are twice as long"


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_and_options(data):
    n, k, m = (data.draw(st.integers(1, most), name) for most, name in ((60, "N"), (40, "K"), (20, "M")))
    options = OPTIONS[data.draw(st.sampled_from(tuple(OPTIONS)), "options")]
    t = draw(n, k, m, bias=data.draw(st.booleans(), "bias"))
    with gdcore.use_backend(
        data.draw(st.sampled_from(["auto", "cpu", "triton"] if DEVICE == "cpu" else ["auto"]), "backend")
    ):
        assert_equal_to_stock(t, steps=2, **options)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64], ids=lambda kind: kind.__name__)
def test_numbers_of_numpy_are_numbers(kind, any_backend):
    first = draw(9, 3, 2)
    second = copied(first)
    ours(first, 1, lr=kind(1), momentum=kind(1), weight_decay=kind(0))
    ours(second, 1, lr=1.0, momentum=1.0, weight_decay=0.0)
    assert torch.equal(first["weight"], second["weight"])


@pytest.mark.skipif(DEVICE != "cpu", reason="planned for the interpreter")
@pytest.mark.parametrize("shape", [(40, 3, 2), (50, 40, 3)], ids=["rows", "vector"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_kernels_take_float32_weights_with_half_precision_rows(shape, dtype):
    """As a run keeps its parameters: they are read unrounded, and so is the loss."""
    t = draw(*shape)
    rows = {"input": t["input"].to(dtype), "target": t["target"].to(dtype)}
    exact = copied(t | rows, torch.float64)
    n, k, m = shape
    found = plan.plan_for(n, k, m, dtype=dtype, wanted=Wanted(bias=True), device=devices.INTERPRETED)
    with gdcore.use_backend("triton"), torch.no_grad():
        loss = load("triton").step(
            rows["input"], t["weight"], rows["target"], t["bias"], Update(0.1), None, None, found
        )  # fmt: skip
    expected = ours(exact, 1, lr=0.1)
    assert loss.dtype is torch.float32 and abs(loss.item() / expected.item() - 1) < 1e-6
    for name in ("weight", "bias"):
        assert reference.relative_error(t[name], exact[name]) < 1e-6


def test_interleaved_memory_is_looked_at_in_inference_mode_too():
    with torch.inference_mode():
        both = torch.randn(2, 6)
        t = {"input": torch.randn(9, 3), "weight": both[:, :3], "target": torch.randn(9, 2)}
        gdcore.linear_mse_sgd_(**t, lr=0.1, momentum=0.9, momentum_buffer=both[:, 3:])


def test_a_compiled_step_refuses_shared_memory_too():
    @torch.compile
    def step(x, w, y, v):
        return gdcore.linear_mse_sgd_(x, w, y, lr=0.1, momentum=0.9, momentum_buffer=v)

    w = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="share memory"):
        step(torch.zeros(3_000_000, 3), w[:1], torch.zeros(3_000_000, 1), w.view(-1)[:3].view(1, 3))


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA streams and graphs")
class TestOnCuda:
    def test_counters_belong_to_a_stream_and_return_to_zero(self):
        from gdcore.backends import triton_step

        t = draw(100_000, 3, 2)
        streams = [torch.cuda.Stream() for _ in range(2)]
        for stream in streams:
            with torch.cuda.stream(stream):
                stream.wait_stream(torch.cuda.default_stream())
                ours(copied(t), 5)
        torch.cuda.synchronize()
        keys = {(t["input"].device.index, s.cuda_stream) for s in streams}
        assert keys <= set(triton_step._counters)
        assert all(counter.item() == 0 for counter in triton_step._counters.values())

    @pytest.mark.parametrize("shape", [(100_000, 3, 2), (1000, 300, 100)], ids=str)
    def test_a_captured_step_replays(self, shape):
        t = draw(*shape)
        mine, expected, lr = copied(t), copied(t), torch.tensor(0.05, device=DEVICE)
        warm = copied(t)
        ours(warm, 2, lr=lr)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = gdcore.linear_mse_sgd_(**mine, lr=lr)
        for _ in range(3):
            graph.replay()
        losses = ours(expected, 3, lr=lr)
        torch.testing.assert_close(loss, losses[-1])
        torch.testing.assert_close(mine["weight"], expected["weight"])

    def test_no_synchronisation(self):
        t = draw(1000, 3, 2)
        lr = torch.tensor(0.05, device=DEVICE)
        ours(t, 1, lr=lr)
        torch.cuda.set_sync_debug_mode("error")
        try:
            ours(t, 2, lr=lr)
        finally:
            torch.cuda.set_sync_debug_mode("default")
