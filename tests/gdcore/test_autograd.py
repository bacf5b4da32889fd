"""linear_mse inside autograd: second backward, double backward, in-place changes, hooks, transforms."""

import pytest
import torch
import torch.nn.functional as F

import gdcore
from support import DEVICE, draw, leaves


def loss_of(tensors, **options):
    return gdcore.linear_mse(tensors["input"], tensors["weight"], tensors["target"], tensors.get("bias"), **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gradcheck_and_gradgradcheck(reduction, bias, backend):
    inputs = list(leaves(draw(6, 3, 2, torch.float64, bias)).values())

    def function(*args):
        return gdcore.linear_mse(*args, reduction=reduction)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_a_second_backward_adds_the_same_gradient_once_more(backend):
    t = leaves(draw(65, 5, 2))
    loss = loss_of(t)
    (loss * -3.5).backward(retain_graph=True)
    first = {name: v.grad.clone() for name, v in t.items()}
    (loss * -3.5).backward()
    for name, v in t.items():
        torch.testing.assert_close(v.grad, 2 * first[name])


def test_changing_grad_in_place_does_not_reach_into_a_second_backward(backend):
    t = leaves(draw(65, 5, 2))
    loss = loss_of(t)
    loss.backward(retain_graph=True)
    first = t["weight"].grad.clone()
    t["weight"].grad.zero_()
    loss.backward()
    torch.testing.assert_close(t["weight"].grad, first)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(65, 5, 2), (40, 33, 20)], ids=str)
def test_the_loss_may_be_changed_in_place(shape, reduction, backend):
    """Gradient accumulation often writes loss /= steps."""
    t = leaves(draw(*shape))
    s = {name: v.detach().clone().requires_grad_() for name, v in t.items()}
    loss = loss_of(t, reduction=reduction)
    loss /= 4
    loss.sum().backward()
    stock = F.mse_loss(F.linear(s["input"], s["weight"], s["bias"]), s["target"], reduction=reduction)
    stock /= 4
    stock.sum().backward()
    for name in t:
        torch.testing.assert_close(t[name].grad, s[name].grad)


@pytest.mark.parametrize("changed", ["input", "weight"])
@pytest.mark.parametrize("wanted", [("weight", "bias"), ("input", "weight"), ("input",)], ids="-".join)
def test_a_tensor_changed_between_forward_and_backward_is_an_error_only_where_stock_needs_it(wanted, changed, backend):
    def outcome(function):
        torch.manual_seed(3)
        t = leaves(draw(30, 5, 2), wanted)
        loss = function(t)
        with torch.no_grad():
            t[changed].add_(1)
        try:
            loss.backward()
        except RuntimeError as error:
            return "modified by an inplace operation" in str(error)
        return t[wanted[0]].grad

    ours = outcome(loss_of)
    stock = outcome(lambda t: F.mse_loss(F.linear(t["input"], t["weight"], t["bias"]), t["target"]))
    if stock is True:
        assert ours is True
    else:
        torch.testing.assert_close(ours, stock)


def test_a_changed_weight_is_an_error_when_a_graph_is_created(backend):
    t = leaves(draw(30, 5, 2), ("weight",))
    loss = loss_of(t)
    with torch.no_grad():
        t["weight"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, t["weight"], create_graph=True)


def test_under_no_grad_only_the_loss_is_computed(backend, monkeypatch):
    from gdcore import backends

    seen = []
    module = backends.load(backend)
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *args: seen.append(forward(*args)) or seen[-1])
    t = leaves(draw(30, 5, 2))
    with torch.no_grad():
        loss = loss_of(t)
    assert not loss.requires_grad
    assert not any(part is not None for part in seen[0][1:])


def test_inputs_are_not_modified_and_hooks_fire(backend):
    t = leaves(draw(30, 5, 2))
    before = {name: (v.detach().clone(), v._version) for name, v in t.items()}
    seen = []
    t["weight"].register_hook(lambda gradient: seen.append(gradient.shape))
    loss_of(t).backward()
    assert seen == [(2, 5)]
    for name, (value, version) in before.items():
        assert torch.equal(t[name], value)
        assert t[name]._version == version


def test_a_non_leaf_target_gets_its_gradient(backend):
    t = leaves(draw(30, 5, 2))
    loss = gdcore.linear_mse(t["input"], t["weight"], t["target"].sigmoid(), t["bias"])
    stock = F.mse_loss(F.linear(t["input"], t["weight"], t["bias"]), t["target"].sigmoid())
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(t.values())), torch.autograd.grad(stock, list(t.values())), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_one_tensor_in_two_roles(backend):
    a = torch.randn(6, 6, device=DEVICE, requires_grad=True)
    ours = torch.autograd.grad(gdcore.linear_mse(a, a, a), a)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(F.mse_loss(F.linear(a, a), a), a)[0])


def test_function_transforms_and_forward_mode(backend):
    t = draw(30, 5, 2)

    def ours(w):
        return gdcore.linear_mse(t["input"], w, t["target"], t["bias"])

    def stock(w):
        return F.mse_loss(F.linear(t["input"], w, t["bias"]), t["target"])

    w, tangent = t["weight"], torch.randn_like(t["weight"])
    torch.testing.assert_close(torch.func.grad(ours)(w), torch.func.grad(stock)(w))
    torch.testing.assert_close(torch.func.jvp(ours, (w,), (tangent,)), torch.func.jvp(stock, (w,), (tangent,)))
    many = torch.stack([w, 2 * w])
    torch.testing.assert_close(torch.func.vmap(ours)(many), torch.func.vmap(stock)(many))


def test_saved_tensor_hooks_see_the_tensors(backend):
    t = leaves(draw(30, 5, 2))
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: packed.append(v) or v, lambda v: v):
        loss = loss_of(t)
    loss.backward()
    assert packed


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_an_empty_batch_is_like_stock(reduction, dtype, backend):
    t = leaves(draw(0, 3, 2, dtype))
    s = {name: v.detach().clone().requires_grad_() for name, v in t.items()}
    ours = loss_of(t, reduction=reduction)
    stock = F.mse_loss(F.linear(s["input"], s["weight"], s["bias"]), s["target"], reduction=reduction)
    torch.testing.assert_close(ours, stock, equal_nan=True)
    ours.sum().backward()
    stock.sum().backward()
    for name in t:
        torch.testing.assert_close(t[name].grad, s[name].grad, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(65, 9, 4), (40, 33, 20)], ids=str)
def test_autocast_is_stocks(dtype, shape, backend):
    t = leaves(draw(*shape))
    s = {name: v.detach().clone().requires_grad_() for name, v in t.items()}
    kind = torch.device(DEVICE).type
    with torch.autocast(kind, dtype=dtype):
        ours = loss_of(t)
        stock = F.mse_loss(F.linear(s["input"], s["weight"], s["bias"]), s["target"])
        assert ours.dtype == stock.dtype
        ours.backward()  # inside: the products of the backward pass are not cast a second time
    stock.backward()
    exact = {name: v.detach().double().requires_grad_() for name, v in t.items()}
    F.mse_loss(F.linear(exact["input"], exact["weight"], exact["bias"]), exact["target"]).backward()
    for name in t:
        assert t[name].grad.dtype == s[name].grad.dtype
        difference = [(v[name].grad.double() - exact[name].grad).norm() / exact[name].grad.norm() for v in (t, s)]
        assert difference[0] <= 2 * difference[1] + 1e-2, name


def test_gradients_from_another_thread(backend):
    import threading

    t = leaves(draw(30, 5, 2))
    loss = loss_of(t)
    errors = []

    def work():
        try:
            loss.backward()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not errors
    assert t["weight"].grad is not None


def test_inference_mode_and_inference_tensors(backend):
    t = draw(300, 5, 2, torch.bfloat16)
    with torch.inference_mode():
        assert loss_of(t, reduction="none").shape == (300, 2)
        bias = torch.randn(2, device=DEVICE).bfloat16()
    weight = t["weight"].requires_grad_()
    gdcore.linear_mse(t["input"], weight, t["target"], bias).backward()
    assert torch.isfinite(weight.grad).all()


def test_a_lazily_negated_tensor_keeps_its_sign(backend):
    t = draw(40, 3, 2)
    negated = torch.randn(40, 3, dtype=torch.complex64, device=DEVICE).conj().imag
    assert negated.is_neg()
    ours = gdcore.linear_mse(negated, t["weight"], t["target"])
    torch.testing.assert_close(ours, F.mse_loss(F.linear(negated.resolve_neg(), t["weight"]), t["target"]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_function_depends_on_its_input(backend):
    t = draw(40, 3, 2, torch.bfloat16)
    traced = torch.jit.trace(lambda x: gdcore.linear_mse(x, t["weight"], t["target"]), (t["input"],), check_trace=False)
    assert traced(3 * t["input"]) != traced(t["input"])


def test_dispatch_modes_see_the_products(backend):
    from torch.utils.flop_counter import FlopCounterMode

    t = draw(40, 3, 2, torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        loss_of(t)
    assert counter.get_total_flops() == 2 * 40 * 3 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_residual_of_a_wider_target_stays_finite(dtype, backend):
    """float16 operands and a float32 target are what float16 autocast makes; bfloat16 has float32's range."""
    for k in (3, 32, 300):
        t = draw(64, k, 8, torch.float16, bias=False)
        target, weight = torch.full((64, 8), 1e5, dtype=dtype, device=DEVICE), t["weight"].requires_grad_()
        (ours,) = torch.autograd.grad(gdcore.linear_mse(t["input"], weight, target), weight)
        assert torch.isfinite(ours).all()
