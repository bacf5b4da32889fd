"""Wide heads: gradients made in the forward pass, chunk by chunk, scaled in place, given away once, and computed anew."""

import itertools
import os
import statistics
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

import gdcore
from gdcore import chunks, ops, plan
from gdcore.autograd import LinearMSE
from gdcore.backends import Wanted, early, load, triton_chunked
from gdcore.backends.reference import oracle, relative_error
from gdcore.bench.memory import SETTINGS
from gdcore.devices import CPU, H200, INTERPRETED
from gdcore.kernels import configs
from support import DEVICE, DTYPES, NAMES, assert_parity, draw, leaves, run, stock

SUBSETS = [s for r in range(1, 5) for s in itertools.combinations(NAMES, r)]
CASES = [("streaming", s, DTYPES[i % 4]) for i, s in enumerate(SUBSETS)]
CASES += [("library", s, DTYPES[(i + 1) % 4]) for i, s in enumerate(SUBSETS[::2])]
CASES += [(path, NAMES, dtype) for path in ("library", "tiled", "streaming") for dtype in DTYPES[:3]]
CASES = list(dict.fromkeys(CASES))
ODD = (29, 13, 17)  # N, K, M: in chunks of 7 rows, the last has one


@pytest.fixture
def small_chunks(monkeypatch):
    """Every shape is wide, on the CPU too, and a chunk has seven rows."""
    for name, value in {"LARGE_BYTES": 1, "FULL_SPEED_ROWS": 7, "CHUNK_BYTES": 1, "WIDE_ROWS": 3, "_WHOLE": 1}.items():
        monkeypatch.setattr(chunks, name, value)
    monkeypatch.setattr(triton_chunked, "WIDE_ROWS", 3)
    monkeypatch.setattr(early, "_BLOCK", 20)
    for name, value in {"_STOCK_BYTES": 0, "_BLOCK_BYTES": 1, "_LEAST_ROWS": 14, "_SHORT_ROW": 1}.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(plan, "SLOWER", float("inf"))
    monkeypatch.setattr(plan, "_LONG_ROW", 8)
    monkeypatch.setattr(plan, "_BLOCK_COLUMNS", 5)
    plan.plan_for.cache_clear()
    yield
    plan.plan_for.cache_clear()


def chunked_plan(n, k, m, dtype, tiled):
    """A plan in chunks of seven rows, whatever the library would choose."""
    config = configs.product_config("forward", INTERPRETED.architecture, dtype, n, k, m) if tiled else None
    return plan.Plan(
        "triton", "chunked", "", INTERPRETED, n, k, m, dtype=dtype, config=config, chunk_rows=7, all_in_forward=True
    )


def in_chunks(tiled):
    """linear_mse on the chunked backend, on whatever device the tensors are."""

    def loss_of(input, weight, target, bias=None, *, reduction="mean"):
        wanted = Wanted(*(t is not None and t.requires_grad for t in (input, weight, target, bias)))
        made = chunked_plan(len(input), *reversed(weight.shape), input.dtype, tiled)
        return LinearMSE.apply(input, weight, target, bias, reduction, wanted, made, load("triton"))

    return loss_of


PATHS = {"streaming": gdcore.linear_mse, "library": in_chunks(False), "tiled": in_chunks(True)}
on_every_path = pytest.mark.parametrize("loss_of", PATHS, indirect=True)


@pytest.fixture
def loss_of(request, small_chunks):
    """linear_mse on a path that makes all gradients in the forward pass; without a name, on the one that is interpreted least."""
    name = getattr(request, "param", "streaming" if DEVICE == "cpu" else "library")
    if name == "streaming":
        if DEVICE != "cpu":
            pytest.skip("the tensors are on a GPU")
        with gdcore.use_backend("cpu"):
            yield gdcore.linear_mse
    else:
        yield PATHS[name]


@pytest.mark.parametrize(
    ("loss_of", "wanted", "dtype"),
    CASES,
    indirect=["loss_of"],
    ids=lambda v: "-".join(v) if isinstance(v, tuple) else str(v),
)
def test_every_subset_of_gradients_in_every_dtype(wanted, dtype, loss_of):
    reduction = "sum" if "weight" in wanted else "mean"
    upstream = torch.tensor(-3.5, device=DEVICE).to(dtype)
    assert_parity(loss_of, draw(*ODD, dtype, bias="bias" in wanted), wanted, reduction, upstream)


@on_every_path
@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 513, 5), (14, 3, 257)], ids=str)
def test_odd_shapes_and_strides(shape, loss_of):
    n, k, m = shape
    t = draw(*shape)
    t["input"] = torch.randn(k, 2 * n, device=DEVICE).t()[::2]
    t["target"] = torch.randn(n, 2 * m, device=DEVICE)[:, ::2]
    assert_parity(loss_of, t, grad_output=torch.tensor(0.3, device=DEVICE))


@on_every_path
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_a_target_of_another_dtype(dtypes, loss_of):
    t = draw(*ODD, dtypes[0], target_dtype=dtypes[1])
    assert_parity(loss_of, t, grad_output=torch.tensor(0.3, device=DEVICE))


def test_bias_of_half_precision_enters_unrounded(small_chunks):
    """Near convergence bf16(prediction) - target has lost its digits; the product in float32 has not."""
    for dtype in (torch.bfloat16, torch.float16):
        t = draw(*ODD, dtype)
        exact = F.linear(t["input"].double(), t["weight"].double(), t["bias"].double())
        t["target"] = exact.to(dtype)
        assert_parity(in_chunks(False), t, ("weight", "bias"))
        loss, _ = run(in_chunks(False), t, ("weight",), "sum")
        assert relative_error(loss, oracle(**t, reduction="sum")[0]) < 0.02


def test_a_precision_that_the_library_has_not_takes_the_kernels(small_chunks):
    made = plan.plan_for(29, 20, 520, device=INTERPRETED, wanted=Wanted(True, True), input_precision="tf32x3")
    assert made.path == "chunked"
    assert made.weight_config is not None
    t = draw(29, 20, 520, bias=False)
    wanted = Wanted(True, True)

    def loss_of(input, weight, target, bias=None, *, reduction="mean"):
        return LinearMSE.apply(input, weight, target, bias, reduction, wanted, made, load("triton"))

    assert_parity(loss_of, t, ("input", "weight"), grad_output=torch.tensor(0.3, device=DEVICE))


SCALES = {
    "gradients that underflow without their factor": (2.0**-14, 1.0, "mean", 2.0**15),
    "gradients that overflow without their factor": (300.0, 10.0, "sum", 2.0**-14),
}


@on_every_path
@pytest.mark.parametrize("case", SCALES)
def test_float16_gradients_beyond_its_range(case, loss_of):
    size, of_weight, reduction, upstream = SCALES[case]
    t = draw(64, 16, 500, torch.float16, bias=False)
    t["weight"] *= of_weight
    t["input"] *= 0.1
    t["weight"][:, 3] *= 2.0**-6  # a column of small gradients beside large ones
    t["target"] = (
        F.linear(t["input"].float(), t["weight"].float()) + size * torch.randn(64, 500, device=DEVICE)
    ).half()
    upstream = torch.tensor(upstream, device=DEVICE)
    _, exact = oracle(**t, reduction=reduction, grad_output=upstream)
    unscaled = exact["input"].abs().max().item() / upstream.item()
    assert unscaled > 65504 or unscaled < 2.0**-20
    _, gradients = run(loss_of, t, ("input", "weight", "target"), reduction, upstream.half())
    for name in gradients:
        assert relative_error(gradients[name], exact[name]) < 3e-3, name
    assert relative_error(gradients["input"][:, 3], exact["input"][:, 3]) < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_factor_that_is_a_power_of_two_is_exact(dtype, loss_of):
    """So that loss.backward(), and a GradScaler's, round once."""
    t = draw(*ODD, dtype, bias=False)
    one, two = (
        run(loss_of, t, ("input", "target"), "mean", torch.tensor(f, device=DEVICE).to(dtype)) for f in (1024.0, 8192.0)
    )
    for name in one[1]:
        assert torch.equal(8 * one[1][name], two[1][name])


@on_every_path
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["input", "target"])
def test_nan_and_inf_go_where_stocks_go(name, dtype, value, loss_of):
    t = draw(*ODD, dtype)
    t[name][9, 3] = value
    loss, ours = run(loss_of, t)
    expected, theirs = run(stock, t)
    assert torch.isfinite(loss) == torch.isfinite(expected)
    for each in ours:
        assert torch.equal(torch.isfinite(ours[each]), torch.isfinite(theirs[each])), each
        finite = torch.isfinite(theirs[each])
        torch.testing.assert_close(ours[each][finite], theirs[each][finite], rtol=2e-2, atol=1e-3)


@on_every_path
def test_runs_repeat_bitwise(loss_of):
    for dtype in (torch.float32, torch.bfloat16):
        t = draw(*ODD, dtype)
        one, other = (run(loss_of, t, grad_output=torch.tensor(0.3, device=DEVICE).to(dtype)) for _ in range(2))
        assert torch.equal(one[0], other[0])
        assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_second_backward_computes_anew(dtype, loss_of):
    t = leaves(draw(*ODD, dtype))
    loss = loss_of(t["input"], t["weight"], t["target"], t["bias"])
    (loss * -3.5).backward(retain_graph=True)
    first = {name: v.grad for name, v in t.items()}
    kept = {name: v.clone() for name, v in first.items()}
    for v in t.values():
        v.grad = None
    (loss * -7).backward()
    for name, v in t.items():
        assert torch.equal(first[name], kept[name]), "what was given away is the user's"
        torch.testing.assert_close(v.grad, 2 * kept[name])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@on_every_path
def test_what_becomes_grad_is_nobody_elses(loss_of):
    t = leaves(draw(*ODD))
    loss = loss_of(t["input"], t["weight"], t["target"], t["bias"])
    early_ones = loss.grad_fn.early
    pointers = {early_ones.grad_input.data_ptr(), early_ones.grad_weight.data_ptr(), early_ones.grad_target.data_ptr()}
    del early_ones
    loss.backward(retain_graph=True)
    assert {t[name].grad.data_ptr() for name in ("input", "weight", "target")} == pointers, "no copy"
    assert loss.grad_fn.early is None
    expected = t["input"].grad.clone()
    for v in t.values():
        v.grad.fill_(5)
    (again,) = torch.autograd.grad(loss, t["input"])
    torch.testing.assert_close(again, expected)


def test_gradients_asked_for_one_after_the_other(loss_of):
    t = leaves(draw(*ODD))
    loss = loss_of(t["input"], t["weight"], t["target"], t["bias"])
    _, expected = run(stock, {name: v.detach() for name, v in t.items()})
    for name in t:
        (found,) = torch.autograd.grad(loss, t[name], retain_graph=True)
        torch.testing.assert_close(found, expected[name])


@pytest.mark.parametrize("changed", NAMES)
def test_a_tensor_changed_between_the_passes(changed, loss_of):
    """An error where stock's is one in the first backward pass; in a second one, which needs them all, for every tensor."""

    def outcome(function, wanted):
        torch.manual_seed(3)
        t = leaves(draw(*ODD), wanted)
        loss = function(t["input"], t["weight"], t["target"], t["bias"])
        with torch.no_grad():
            t[changed].add_(1)
        try:
            loss.backward()
        except RuntimeError as error:
            return "modified by an inplace operation" in str(error)
        return t[wanted[0]].grad

    for wanted in (("input",), ("weight", "bias"), ("target",)):
        ours, theirs = outcome(loss_of, wanted), outcome(stock, wanted)
        if wanted == ("target",) and theirs is not True:
            continue  # stock needs less there
        if theirs is True:
            assert ours is True, wanted
        else:
            torch.testing.assert_close(ours, theirs)
    t = leaves(draw(*ODD))
    loss = loss_of(t["input"], t["weight"], t["target"], t["bias"])
    loss.backward(retain_graph=True)
    with torch.no_grad():
        t[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_double_backward_hooks_batched_gradients_and_transforms(loss_of):
    t = leaves(draw(9, 3, 5, torch.float64))
    if loss_of is gdcore.linear_mse:  # the kernels' interpreter takes seconds for it
        assert torch.autograd.gradcheck(loss_of, list(t.values()))
        assert torch.autograd.gradgradcheck(loss_of, list(t.values()))
    expected = torch.autograd.grad(stock(*t.values()), list(t.values()))
    with torch.autograd.graph.save_on_cpu():
        loss = loss_of(*t.values())
    for _ in range(2):
        for ours, theirs in zip(torch.autograd.grad(loss, list(t.values()), retain_graph=True), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    factors = torch.tensor([1.0, -2.0], dtype=torch.float64, device=DEVICE)
    (batched,) = torch.autograd.grad(loss_of(*t.values()), t["input"], factors, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack([expected[0], -2 * expected[0]]))
    checkpointed = torch.utils.checkpoint.checkpoint(loss_of, *t.values(), use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(checkpointed, list(t.values())), expected)


def test_no_grad_inference_mode_and_autocast(loss_of):
    t = draw(*ODD)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(**t), stock(**t))
    with torch.inference_mode():
        torch.testing.assert_close(loss_of(**t), stock(**t))
    if loss_of is not gdcore.linear_mse:
        return  # the chunked backend is called without the step that casts
    inputs, others = leaves(t), leaves(t)
    for function, operands in ((loss_of, inputs), (stock, others)):
        with torch.autocast(torch.device(DEVICE).type, dtype=torch.bfloat16):
            function(*operands.values()).backward()
    for name in inputs:
        assert inputs[name].grad.dtype is others[name].grad.dtype
        torch.testing.assert_close(inputs[name].grad, others[name].grad, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_in_chunks_is_a_step(dtype, momentum, small_chunks):
    t = draw(29, 20, 520, dtype)
    assert plan.plan_for(29, 20, 520, dtype=dtype, device=INTERPRETED, has_bias=True).path == "chunked"
    loss, exact = oracle(**t)
    before = {name: t[name].clone() for name in ("weight", "bias")}
    buffers = {}
    if momentum:
        buffers = {"momentum_buffer": torch.ones_like(t["weight"]), "bias_momentum_buffer": torch.ones_like(t["bias"])}
    with gdcore.use_backend("triton"):
        found = gdcore.linear_mse_sgd_(*t.values(), lr=0.5, momentum=momentum, weight_decay=0.1, **buffers)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    torch.testing.assert_close(found.double(), loss, **tolerance)
    for name, old in before.items():
        gradient = exact[name] + 0.1 * old.double() + momentum
        torch.testing.assert_close(t[name].double(), old.double() - 0.5 * gradient, **tolerance)


@pytest.mark.parametrize(
    ("name", "wanted", "dtype"),
    [
        ("cpu", ("input", "weight", "bias"), torch.float32),
        ("cpu", ("input", "weight", "bias"), torch.float16),
        ("cpu", NAMES, torch.bfloat16),
        ("triton", ("input", "weight", "bias"), torch.bfloat16),
        ("triton", NAMES, torch.float32),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, tuple) else str(v),
)
def test_the_operator_keeps_no_residual_where_none_is_needed(dtype, wanted, name, small_chunks, monkeypatch):
    if name == "cpu" and DEVICE != "cpu":
        pytest.skip("the tensors are on a GPU")
    monkeypatch.setattr(ops, "_LARGE_RESIDUAL", 1)
    t = draw(29, 13, 520, dtype)
    with gdcore.use_backend(name):
        sizes = [x.numel() for x in ops.linear_mse(*t.values(), "mean", *(n in wanted for n in NAMES))]
        kept = "target" in wanted or dtype is torch.float16
        assert sizes == [1, 29 * 520 * kept, 13 * 520, 520, 29 * 13 * (not kept)]
        operands = leaves(t, wanted)
        torch._dynamo.reset()
        compiled = torch.compile(lambda *a: gdcore.linear_mse(*a) * 0.3, fullgraph=True, backend="aot_eager")
        found = torch.autograd.grad(compiled(*operands.values()), [operands[n] for n in wanted])
        _, exact = oracle(**t, grad_output=torch.tensor(0.3, device=DEVICE))
        for n, gradient in zip(wanted, found, strict=True):
            assert relative_error(gradient, exact[n]) < {4: 1e-5}.get(dtype.itemsize, 2e-2), n
    if dtype is torch.float32:
        args = (t["input"], t["weight"], t["target"], t["bias"], "mean", *(n in wanted for n in NAMES))
        torch.library.opcheck(ops.linear_mse, args, test_utils=("test_schema", "test_faketensor"))


SIZES = chunks.Sizes(row=65_536, residual=65_536, fixed=1 << 30)


def test_rows_of_a_chunk():
    gib = 1 << 30
    assert chunks.rows_of_chunk(2000, SIZES, gib) == 2000, "less than LARGE_BYTES is never cut"
    assert chunks.rows_of_chunk(30_000, SIZES, None) == 30_000, "too little to save"
    assert chunks.rows_of_chunk(65_536, SIZES, None) == 16_384
    assert chunks.rows_of_chunk(65_537, SIZES, None) == 13_312, "five equal chunks, whole tiles"
    assert chunks.rows_of_chunk(65_536, SIZES, 64 * gib) == 16_384, "free memory decides only where there is little"
    assert chunks.rows_of_chunk(30_000, SIZES, 3 * gib) <= (2 * gib // 4) // 65_536, "a quarter of what is left"
    assert chunks.rows_of_chunk(65_536, SIZES, gib // 2) == 256, "the gradients alone do not fit: as little as can be"
    narrow = chunks.Sizes(row=1024, residual=1024, fixed=0)
    assert chunks.rows_of_chunk(10**6, narrow, None) >= (256 << 20) // 1024 * 0.9, "so many bytes at least"


def test_every_row_is_in_one_chunk():
    for n, rows in ((1, 7), (7, 7), (29, 7), (28, 7)):
        ranges = chunks.row_ranges(n, rows)
        assert [i for first, last in ranges for i in range(first, last)] == list(range(n))


def test_free_memory_is_asked_for_large_shapes_only_and_comes_in_powers_of_two(monkeypatch):
    asked = []
    device = torch.device("cuda", 0)
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: asked.append(d) or (5 << 30, 141 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d: 7 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 3 << 30)
    monkeypatch.setattr(chunks, "_known", {})
    capturing[0] = True
    assert chunks.free_bytes(device) is None, "nothing is known yet"
    assert not asked
    capturing[0] = False
    assert chunks.free_bytes(device) == 8 << 30, "5 that nobody has, 4 that the allocator holds unused"
    capturing[0] = True
    assert chunks.free_bytes(device) == 8 << 30
    assert asked == [device], "a capture asks nothing"
    assert chunks.free_bytes(torch.device("cpu")) is None


def test_the_plan_says_what_it_does_and_takes():
    n, k, m = 65_536, 1024, 32_768
    ample = plan.plan_for(n, 4096, m, device=H200, dtype=torch.bfloat16, wanted=Wanted(True, True), free_bytes=1 << 37)
    assert ample.path == "epilogue" and ample.workspace_bytes >= n * m * 2, "which is predicted to be faster"
    made = plan.plan_for(n, k, m, device=H200, dtype=torch.bfloat16, wanted=Wanted(True, True), free_bytes=1 << 33)
    assert (made.path, made.chunk_rows, made.store_residual, made.all_in_forward) == ("chunked", 16_384, False, True)
    assert made.workspace_bytes == 16_384 * m * 2 + m * k * 4  # a chunk of E, and dW in float32
    poor = plan.plan_for(n, k, m, device=H200, dtype=torch.bfloat16, wanted=Wanted(True, True), free_bytes=1 << 30)
    assert poor.path == "chunked" and poor.chunk_rows < 16_384
    assert poor.workspace_bytes <= 1 << 30
    assert plan.plan_for(8192, k, 8192, device=H200, dtype=torch.bfloat16).path != "chunked"
    assert plan.plan_for(n, k, m, device=H200, dtype=torch.bfloat16, reduction="none").path != "chunked"
    assert plan.plan_for(n, k, m, device=H200, keep_residual=True, wanted=Wanted(True)).store_residual
    shapes = ((n, k), (m, k), (n, m))
    x, w, y = (torch.empty(s, device="meta") for s in shapes)
    told = gdcore.explain(x, w.requires_grad_(), y, device="H200")
    assert "4 of 16384 rows" in told
    assert "N x M is large" in told
    assert sum(line.endswith("; taken") for line in told.split("\n")) == 1
    taken = next(line.split() for line in told.split("\n") if line.endswith("; taken"))
    assert taken[0] == "chunked" and f"in {taken[3]} launches:" in told and int(taken[3]) == 4 * len(told.plan.launches)
    assert f"floor      {told.plan.floor_seconds * 1e3:.3g} ms" in told
    assert not any(launch.what.startswith("E times c") for launch in told.plan.launches)  # the products apply c


@pytest.mark.parametrize(
    ("dtype", "target_dtype", "has_bias", "more"),
    [
        (torch.bfloat16, torch.bfloat16, True, 4096 * 32_768 * 4),  # X Wᵀ in float32, a part at a time
        (torch.float32, torch.float32, True, 0),
        (torch.float16, torch.float16, False, 65_536 * 4 + 16_384 * 4096 * 4),  # powers of rows, and a chunk of dX
    ],
    ids=str,
)
def test_what_half_types_take_more_is_in_the_plans_memory(dtype, target_dtype, has_bias, more):
    n, k, m = 65_536, 4096, 32_768
    options = {"device": H200, "dtype": dtype, "wanted": Wanted(True, True), "free_bytes": 1 << 33}
    made = plan.plan_for(n, k, m, **options, target_dtype=target_dtype, has_bias=has_bias)
    assert made.path == "chunked" and made.config is None
    sums = m * k * 4 if dtype.itemsize == 2 else 0
    assert made.workspace_bytes == made.chunk_rows * m * dtype.itemsize + sums + more


def test_on_a_cpu_only_short_rows_of_the_residual_are_kept():
    wanted = Wanted(True, True)
    for shape, everything in (((10**6, 64, 1), False), ((10**6, 64, 64), True), ((10**5, 2048, 300), True)):
        made = plan.plan_for(*shape, wanted=wanted)
        assert (made.all_in_forward, made.store_residual) == (everything, not everything)
    assert plan.plan_for(10**6, 64, 1, wanted=Wanted(target=True)).all_in_forward, "dY is as large as E"
    assert not plan.plan_for(10**6, 64, 64).all_in_forward, "a small dW is copied, and a second backward costs nothing"
    assert plan.plan_for(10**5, 4096, 4096).all_in_forward
    assert plan.plan_for(10**5, 4096, 4096, device=CPU._replace(sms=8)).workers == 1, "no dW of 64 MB for each"


MEMORY = """
import torch, gdcore

def status(field):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))

n, k, m = 5_000, 64, 20_000
wanted = "input", "weight", "target"
x, w, y = torch.randn(n, k), torch.randn(m, k), torch.randn(100, m).repeat(n // 100, 1)
t = {"input": x, "weight": w, "target": y}
for name in wanted:
    t[name].requires_grad_()
gdcore.linear_mse(x[:500].detach().requires_grad_(), w, y[:500].detach()).backward()  # threads and code
w.grad = None
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
loss = gdcore.linear_mse(x, w, y)
(loss * 3).backward()
plan = gdcore.explain(x, w, y).plan
gradients = sum(t[name].grad.nbytes for name in wanted)
print(status("VmHWM") - before - gradients, plan.workspace_bytes, 4 * n * m)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_the_peak_is_inputs_gradients_and_one_chunk():
    root = os.path.dirname(os.path.dirname(gdcore.__file__))
    answer = subprocess.run(
        [sys.executable, "-c", MEMORY],
        cwd=root,
        env=os.environ | SETTINGS,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    extra, predicted, matrix = map(int, answer.stdout.split())
    assert extra <= predicted + (16 << 20) < matrix / 10


@pytest.mark.skipif(DEVICE != "cpu", reason="times the streaming path")
def test_chunks_cost_little_time(one_thread):
    """Of one thread against plain products over all rows at once; measured alone the ratio is well below 1."""
    t = draw(4096, 64, 4096, bias=False)
    x, w, y = leaves(t, ("input", "weight")).values()

    def whole():
        e = torch.addmm(y, x.detach(), w.detach().t(), beta=-1)
        flat = e.view(-1)
        c = 2 / e.numel()
        return torch.dot(flat, flat) / e.numel(), (e.mul_(c) @ w.detach()), e.t() @ x.detach()

    def chunked():
        return torch.autograd.grad(gdcore.linear_mse(x, w, y), (x, w))

    ratios = []
    for _ in range(5):
        times = []
        for function in (whole, chunked):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
    assert statistics.median(ratios) < 1.5


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_peak_on_a_gpu(dtype, monkeypatch):
    monkeypatch.setattr(plan, "SLOWER", float("inf"))
    plan.plan_for.cache_clear()
    n, k, m = 65_536, 512, 16_384
    t = leaves(draw(n, k, m, dtype, bias=False), ("input", "weight"))
    x, w, y = t.values()
    made = gdcore.explain(x, w, y).plan
    assert made.path == "chunked"
    gdcore.linear_mse(x[:256], w, y[:256]).backward()
    x.grad = w.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    (gdcore.linear_mse(x, w, y) * 3).backward()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before - x.grad.nbytes - w.grad.nbytes
    assert extra <= made.workspace_bytes + (64 << 20) < n * m * dtype.itemsize / 2
    _, exact = oracle(x[:4096], w, y[:4096])
    loss = gdcore.linear_mse(x, w, y)
    upstream = loss.new_tensor(
        2.0**14 if dtype is torch.float16 else 1.0
    )  # a mean's gradients are below float16's range
    (found,) = torch.autograd.grad(loss, x, upstream)
    assert relative_error(found[:4096].double() / upstream.double() * n / 4096, exact["input"]) < 2e-2
