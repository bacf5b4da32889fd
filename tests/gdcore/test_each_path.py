"""Each path by itself, interpreted where there is no GPU: whatever the plan would choose, it gives stock's results or better."""

import dataclasses
import itertools

import pytest
import torch

from gdcore import devices, plan, workspace
from gdcore.autograd import LinearMSE
from gdcore.backends import Wanted, load, reference
from gdcore.kernels.configs import Config
from gdcore.plan import Plan, plan_for
from gdcore.update import Update
from support import DEVICE, DTYPES, NAMES, assert_parity, draw, run

GPU = devices.INTERPRETED


def by(path, reduction="mean", **fields):
    """linear_mse on one path: of the plan, what is left to the path alone."""

    def linear_mse(input, weight, target, bias=None, *, reduction="mean"):
        wanted = Wanted(*(t is not None and t.requires_grad for t in (input, weight, target, bias)))
        asked = plan.Asked(target.dtype, wanted, reduction, False, bias is not None)
        n, k, m = *input.shape, weight.shape[0]
        base = plan.Plan("triton", "", "", GPU, n, k, m, dtype=input.dtype)
        if path == "epilogue":  # also of operands for which no plan offers it: by pointers
            config = plan.paths.offered(base, asked._replace(contiguous=True), "forward_descriptors")
            made = dataclasses.replace(plan.paths.epilogue(base, asked, config), **fields)
            return LinearMSE.apply(input, weight, target, bias, reduction, wanted, made, load("triton"))
        family = plan._one_pass_family(base, False) if reduction != "none" else (None, "")
        made = next(p for p in plan.paths.candidates(base, asked, *family) if p.path == path)
        made = dataclasses.replace(made, **fields)
        if not any(wanted):
            return load("triton").forward(input, weight, target, bias, reduction, wanted, made).loss
        return LinearMSE.apply(input, weight, target, bias, reduction, wanted, made, load("triton"))

    return linear_mse


SUBSETS = [(), ("weight",), ("input",), ("bias",), ("target",)]


@pytest.mark.parametrize(
    ("path", "dtype", "wanted"),
    [
        *(("library", dtype, ("input",)) for dtype in (torch.float16, torch.bfloat16)),
        *(("library", torch.bfloat16, wanted) for wanted in (("weight",), ("bias",))),
        *(("one_pass_tall", torch.float32, wanted) for wanted in SUBSETS),
        *(("one_pass_tall", dtype, NAMES) for dtype in (torch.float16, torch.bfloat16)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_gradients_one_by_one(path, dtype, wanted):
    bias = "bias" in wanted or len(wanted) == 0
    tensors = draw(70, 33, 20, dtype, bias=bias)
    tensors["target"] = tensors["target"].t().contiguous().t()
    assert_parity(by(path), tensors, wanted, "sum" if len(wanted) == 1 else "mean", torch.tensor(3.0).to(DEVICE, dtype))


@pytest.mark.parametrize(
    ("dtype", "wanted"), [(torch.float32, ("weight",)), (torch.float16, NAMES), (torch.bfloat16, ())], ids=str
)
def test_the_library_path_without_a_reduction(dtype, wanted):
    tensors = draw(30, 40, 17, dtype)
    assert_parity(by("library"), tensors, wanted, "none", torch.randn(30, 17, device=DEVICE).to(dtype))


GRADIENTS = [c for r in range(1, 5) for c in itertools.combinations(NAMES, r)]


@pytest.mark.parametrize("shape", [(70, 33, 20), (300, 48, 32), (20, 64, 48)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_gradient_behind_the_epilogue(shape, dtype):
    """On descriptors and, where K or M does not allow them, on pointers; with many rows, c enters in W and dW, with few in E."""
    for wanted in GRADIENTS:
        tensors = draw(*shape, dtype, bias="bias" in wanted or len(wanted) == 2)
        upstream = torch.tensor(3.0).to(DEVICE, dtype)
        assert_parity(by("epilogue"), tensors, wanted, "sum" if len(wanted) == 1 else "mean", upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(30, 40, 17), (40, 48, 32)], ids=str)
def test_the_epilogue_path_without_a_reduction(shape, dtype):
    for wanted in (("weight",), ("input", "bias"), NAMES):
        upstream = torch.randn(shape[0], shape[2], device=DEVICE).to(dtype)
        assert_parity(by("epilogue"), draw(*shape, dtype), wanted, "none", upstream)


@pytest.mark.parametrize("path", ["library", "epilogue"])
def test_a_float16_input_gradient_is_the_librarys_or_the_tiled_kernels(path, monkeypatch):
    from gdcore.backends import triton_library

    calls, real = [], triton_library.backward_input
    monkeypatch.setattr(triton_library, "backward_input", lambda *a, **o: calls.append(a) or real(*a, **o))
    tensors = draw(40, 48, 32, torch.float16)
    assert_parity(by(path, input_config=None), tensors)
    assert not calls
    assert_parity(by(path, input_config=Config(32, 32, 32, 4, 2)), tensors)
    assert len(calls) == 1


def test_the_epilogue_path_takes_tensors_that_its_descriptors_do_not():
    for dtype in (torch.bfloat16, torch.float16):
        tensors = draw(40, 48, 32, dtype)
        tensors["target"] = tensors["target"].t().contiguous().t()
        tensors["weight"] = tensors["weight"].t().contiguous().t()
        assert_parity(by("epilogue"), tensors)


def test_a_wide_prediction_is_made_in_parts(monkeypatch):
    tensors = draw(20, 20, 18, torch.bfloat16)
    whole, _ = run(by("library"), tensors)
    monkeypatch.setattr(workspace, "WIDE_BYTES", 7 * 18 * 4)
    assert_parity(by("library"), tensors)
    assert_parity(by("library"), tensors, (), "none")
    torch.testing.assert_close(run(by("library"), tensors)[0], whole)


@pytest.mark.parametrize("path", ["library", "epilogue"])
@pytest.mark.parametrize("n", [10, 300], ids=["c enters in E", "c enters beside it"])
@pytest.mark.parametrize("wanted", [("weight",), ("input",)], ids="-".join)
def test_a_second_backward_pass_has_the_same_gradients(n, wanted, path):
    tensors = {name: t.requires_grad_(name in wanted) for name, t in draw(n, 40, 17).items()}
    loss = by(path)(*tensors.values())
    leaf = tensors[wanted[0]]
    first, second = (torch.autograd.grad(loss, leaf, torch.tensor(2.0, device=DEVICE), retain_graph=True) for _ in "12")
    assert torch.equal(first[0], second[0])


def test_the_input_gradient_of_a_skinny_shape_may_be_the_library_s():
    """Of one output the tiled kernel would multiply 31 columns of nothing; a float16 one is not made of c W, which underflows."""
    made = plan_for(10**6, 8, 2, wanted=Wanted(True, True), device=devices.H200)
    assert made.path == "one_pass_rows" and made.input_config is None
    assert "W times c" in {launch.what for launch in made.launches}
    for dtype in DTYPES:
        assert_parity(by("one_pass_vector", input_config=None), draw(40, 20, 2, dtype), NAMES)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_what_is_not_a_number_stays_none(bad):
    tensors = draw(40, 33, 20)
    tensors["target"][3, 4] = bad
    for path in ("library", "epilogue", "one_pass_tall"):
        loss, gradients = run(by(path), tensors)
        assert not torch.isfinite(loss)
        assert not torch.isfinite(gradients["input"][3]).any() and torch.isfinite(gradients["input"][:3]).all()
        assert torch.isnan(gradients["weight"][4]).any() or not torch.isfinite(gradients["weight"][4]).all()
        assert torch.isfinite(gradients["weight"][:4]).all() and torch.isfinite(gradients["bias"][:4]).all()


def test_more_rows_than_the_tall_kernel_counts_go_elsewhere():
    from gdcore.kernels.one_pass_tall import MAX_ROWS

    assert plan.TALL_ROWS == MAX_ROWS
    taken = [plan_for(n, 64, 64, dtype=torch.bfloat16, device=devices.B200).path for n in (MAX_ROWS, MAX_ROWS + 1)]
    assert taken[0] == "one_pass_tall" != taken[1]


@pytest.mark.parametrize("update", [Update(0.1), Update(0.1, 0.9, 0.0, 0.01, True), Update(0.1, 0.9, maximize=True)])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_whole_step_on_the_tall_path(update, bias):
    tensors = draw(70, 33, 20, bias=bias)
    operands = [tensors["input"], tensors["weight"], tensors["target"], tensors.get("bias")]
    buffers = [torch.randn_like(tensors[name]) if name in tensors else None for name in ("weight", "bias")]
    copies = [[None if t is None else t.clone() for t in group] for group in (operands, buffers)]
    wanted = Wanted(bias=bias)
    plans = plan.every_path(70, 33, 20, dtype=torch.float32, wanted=wanted, device=GPU, has_bias=bias)
    made = next(p for p in plans if p.path == "one_pass_tall")
    assert "two launches" in plan.update_in_words(made)
    with torch.no_grad():
        loss = load("triton").step(*operands, update, *buffers, made)
        expected = reference.step(*copies[0], update, *copies[1])
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(operands + buffers * bool(update.momentum), copies[0] + copies[1], strict=False):
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_transposed_weight_reaches_the_descriptors_that_its_plan_counts_on(monkeypatch):
    """matmul_mse's weight is a transpose, which no descriptor takes as it lies."""
    from gdcore.backends import triton_tiled

    calls = []
    real = triton_tiled.forward_descriptors
    monkeypatch.setattr(triton_tiled, "forward_descriptors", lambda *a, **o: calls.append(a) or real(*a, **o))
    t = draw(40, 32, 48, torch.bfloat16, bias=False)
    weight = t["weight"].t().contiguous().t()
    config = Config(32, 32, 32, 4, 2)
    made = Plan("triton", "tiled", "", GPU, 40, 32, 48, dtype=torch.bfloat16, config=config, forward_config=config)
    options = {"loss_scale": 1.0, "residual": None, "squares": None}
    found = triton_tiled.forward(t["input"], weight, t["target"], None, made, **options)
    residual = t["input"].double() @ weight.double().t() - t["target"].double()
    assert calls
    torch.testing.assert_close(found.double(), (residual**2).sum(), rtol=1e-5, atol=0)
