"""linear_mse against float64, relative to stock: every backend and path, over dtypes, shapes, strides and gradient subsets."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gdcore
from gdcore import cost, plan
from gdcore.backends import triton_library
from gdcore.kernels import configs
from gdcore.kernels.column_sums import column_sums
from support import DEVICE, DTYPES, NAMES, assert_parity, draw

SHAPES = [
    (100, 2, 1),  # the lesson
    (1, 1, 1),
    (130, 3, 1),  # odd K
    (67, 5, 3),
    (41, 100, 2),  # K not a power of two, too many for a thread
    (33, 64, 11),
    (70, 33, 20),  # tiled
    (19, 300, 17),
]


def ids(shape):
    return "N={} K={} M={}".format(*shape)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_loss_and_all_gradients(shape, dtype, bias, backend):
    assert_parity(gdcore.linear_mse, draw(*shape, dtype, bias))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(65, 9, 4), (30, 40, 20)], ids=ids)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_reductions_with_an_upstream_gradient(shape, reduction, dtype, backend):
    n, _, m = shape
    upstream = torch.randn((n, m) if reduction == "none" else (), device=DEVICE).to(dtype)
    assert_parity(gdcore.linear_mse, draw(*shape, dtype), reduction=reduction, grad_output=upstream)


@pytest.mark.parametrize("wanted", [c for r in range(5) for c in itertools.combinations(NAMES, r)], ids="-".join)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_the_wanted_gradients(wanted, reduction, backend):
    upstream = torch.randn(40, 3, device=DEVICE) if reduction == "none" else None
    assert_parity(gdcore.linear_mse, draw(40, 6, 3), wanted, reduction, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["c in the sums", "E times c"])
def test_the_bias_gradient_of_a_large_residual(scaled, dtype, monkeypatch):
    """Summed by our own kernel, where PyTorch's sum would take memory for another residual."""
    calls = []
    monkeypatch.setattr(configs, "COLUMN_SUMS_BYTES", 0)
    monkeypatch.setattr(cost, "scales_residual", lambda *_: scaled)
    monkeypatch.setattr(
        triton_library, "column_sums", lambda *args, **options: calls.append(1) or column_sums(*args, **options)
    )
    test_the_paths_of_large_shapes("library", dtype, NAMES, monkeypatch)
    assert calls


@pytest.mark.parametrize("path", ["tiled", "epilogue", "library"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wanted", [NAMES, ("weight",), ("bias",), ("input",), ()], ids="-".join)
def test_the_paths_of_large_shapes(path, dtype, wanted, monkeypatch):
    chosen = plan._cuda
    monkeypatch.setattr(plan, "_one_pass_family", lambda *_: (None, ""))
    monkeypatch.setattr(plan, "_cuda", lambda *a: plan.dataclasses.replace(chosen(*a), path=path, split=3))
    plan.plan_for.cache_clear()
    try:
        with gdcore.use_backend("triton"):
            assert_parity(gdcore.linear_mse, draw(70, 33, 20, dtype), wanted)
    finally:
        plan.plan_for.cache_clear()


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("target_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_target_of_another_dtype(narrow, target_dtype, backend):
    assert_parity(gdcore.linear_mse, draw(50, 7, 2, narrow, target_dtype=target_dtype))


def strided(tensor, kind):
    """The same values in another layout."""
    if kind == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "sliced":
        wide = tensor.new_zeros(*[2 * s for s in tensor.shape])
        view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
        return view.copy_(tensor)
    if kind == "expanded":
        return tensor[:1].expand_as(tensor)
    return tensor


KINDS = st.sampled_from(["contiguous", "transposed", "sliced", "expanded"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 90),
    k=st.integers(1, 40),
    m=st.integers(1, 24),
    dtype=st.sampled_from(DTYPES),
    kinds=st.tuples(KINDS, KINDS, KINDS),
    bias=st.booleans(),
    wanted=st.sets(st.sampled_from(NAMES)),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_any_shape_any_strides(backend, n, k, m, dtype, kinds, bias, wanted, reduction):
    tensors = draw(n, k, m, dtype, bias)
    for name, kind in zip(("input", "weight", "target"), kinds, strict=True):
        tensors[name] = strided(tensors[name], kind)
    assert_parity(gdcore.linear_mse, tensors, [name for name in NAMES if name in wanted], reduction)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 1, 5)], ids=str)
def test_leading_dimensions(lead, backend):
    assert_parity(gdcore.linear_mse, draw(lead, 6, 3))


def test_leading_dimensions_that_cannot_be_flattened_without_a_copy(backend):
    tensors = draw((4, 5), 6, 3)
    for name in ("input", "target"):
        tensors[name] = tensors[name].transpose(0, 1).contiguous().transpose(0, 1)
    assert_parity(gdcore.linear_mse, tensors)
    upstream = torch.randn(4, 5, 3, device=DEVICE)
    assert_parity(gdcore.linear_mse, tensors, reduction="none", grad_output=upstream)


@pytest.mark.parametrize("outputs", [None, 1, 3], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_matmul_mse(outputs, reduction, backend):
    shape = () if outputs is None else (outputs,)
    x, a = torch.randn(60, 5, device=DEVICE), torch.randn(5, *shape, device=DEVICE, requires_grad=True)
    y = torch.randn(60, *shape, device=DEVICE)
    loss = gdcore.matmul_mse(x, a, y, reduction=reduction)
    wide = a.detach().double().requires_grad_()
    squares = (x.double() @ wide - y.double()) ** 2
    exact = {"mean": squares.mean, "sum": squares.sum, "none": lambda: squares}[reduction]()
    upstream = torch.randn_like(loss)
    (gradient,) = torch.autograd.grad(loss, a, upstream)
    (exact_gradient,) = torch.autograd.grad(exact, wide, upstream.double())
    assert loss.shape == exact.shape
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("where", ["input", "weight", "target", "bias"])
@pytest.mark.parametrize("shape", [(60, 3, 2), (60, 20, 9), (60, 33, 20)], ids=ids)
def test_nan_and_inf_go_where_stock_sends_them(bad, where, shape, backend):
    from support import run, stock

    tensors = draw(*shape)
    tensors[where].view(-1)[-2] = bad
    (loss, gradients), (stock_loss, stock_gradients) = run(gdcore.linear_mse, tensors), run(stock, tensors)
    assert torch.isfinite(loss) == torch.isfinite(stock_loss)
    assert torch.isnan(loss) == torch.isnan(stock_loss)
    for name in NAMES:
        assert torch.equal(torch.isfinite(gradients[name]), torch.isfinite(stock_gradients[name])), name


def test_a_run_repeats_bitwise(backend):
    tensors = draw(900, 17, 3)
    from support import run

    first_loss, first = run(gdcore.linear_mse, tensors)
    for _ in range(3):
        loss, gradients = run(gdcore.linear_mse, tensors)
        assert torch.equal(loss, first_loss)
        assert all(torch.equal(gradients[name], first[name]) for name in NAMES)


def test_a_float16_gradient_does_not_underflow(backend):
    n = (
        40_000 if backend == "triton" else 400_000
    )  # the interpreter is slow; 2 / n is below float16's range all the same
    x = torch.ones(n, 1, dtype=torch.float16, device=DEVICE)
    w = torch.ones(1, 1, dtype=torch.float16, device=DEVICE, requires_grad=True)
    y = torch.full((n, 1), 1 - 2**-10, dtype=torch.float16, device=DEVICE)
    gdcore.linear_mse(x, w, y).backward()
    assert abs(w.grad.item() - 2 * 2**-10) < 1e-5


@pytest.mark.parametrize("shape", [(500, 64, 3), (200, 64, 20)], ids=ids)
def test_the_residual_keeps_its_digits_near_convergence(shape, backend):
    n, k, m = shape
    x = torch.randn(n, k, device=DEVICE).bfloat16()
    w = (torch.randn(m, k, device=DEVICE) / 8).bfloat16()
    y = (x.double() @ w.double().t()).bfloat16()
    exact = ((x.double() @ w.double().t() - y.double()) ** 2).mean()
    assert abs(gdcore.linear_mse(x, w, y).double() / exact - 1) < 0.02
