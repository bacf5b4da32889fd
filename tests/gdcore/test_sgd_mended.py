"""What stock's fused SGD gets wrong, shown where it can be, and right here."""

import copy
import itertools
import pickle

import pytest
import torch

import gdcore
from sgd_support import Race, assert_same, loop, parameter, poisoned_memory, thinned, twin
from support import DEVICE, DTYPES


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_memory():
        yield


def fused(params, **options):
    return torch.optim.SGD(params, fused=True, **options)


def scaled_step(optimizer, scale=8.0, found=0.0):
    """As GradScaler does it."""
    optimizer.grad_scale = None if scale is None else torch.tensor(scale, device=DEVICE)
    optimizer.found_inf = torch.tensor(found, device=DEVICE)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


BACKENDS = ["cpu", "triton"]
VETOES = [1.0, 2.0, 0.5, 3e-45, float("inf"), float("nan")]


@pytest.mark.parametrize(
    ("backend", "dtype", "momentum", "found"),
    thinned(
        BACKENDS,
        itertools.product([torch.float32, torch.bfloat16], [0, 0.9], VETOES),
        lambda dtype, momentum, found: (dtype is torch.float32) == (momentum != 0),
    ),
    indirect=["backend"],
    ids=str,
)
def test_any_found_inf_but_zero_refuses_the_step(found, momentum, dtype, backend):
    p = parameter(9, dtype=dtype)
    ours = gdcore.SGD([p], lr=0.1, momentum=momentum, weight_decay=0.1)
    scaled_step(ours)
    before, state = p.detach().clone(), copy.deepcopy(ours.state_dict())
    p.grad = torch.full_like(p, float("inf"))
    scaled_step(ours, found=found)
    assert torch.equal(p, before)
    if momentum:
        assert torch.equal(ours.state[p]["momentum_buffer"], state["state"][0]["momentum_buffer"])


@pytest.mark.parametrize("found", [2.0, 0.5])
def test_stock_takes_the_step_where_found_inf_is_not_one(found):
    p = parameter(5)
    p.grad.fill_(float("inf"))
    scaled_step(fused([p], lr=0.1), found=found)
    assert not torch.isfinite(p).any()


def test_several_devices_say_found_inf_with_their_sum(backend):
    """GradScaler adds up what it found on each device."""
    p = parameter(5)
    start = p.detach().clone()
    scaled_step(gdcore.SGD([p], lr=0.1), found=1.0 + 1.0)
    assert torch.equal(p, start)


FIRST = [
    ({"momentum": 0.9}, 3),
    ({"momentum": 0.9, "dampening": 0.5}, 1),
    ({"momentum": 0.9, "dampening": 0.5}, 3),
    ({"momentum": 0.9, "nesterov": True}, 1),
]


@pytest.mark.parametrize(
    ("backend", "dtype", "options", "refused"),
    thinned(
        BACKENDS,
        [(dtype, *case) for dtype in (torch.float32, torch.float16, torch.bfloat16) for case in FIRST],
        lambda dtype, options, refused: dtype is not torch.float16,
    ),
    indirect=["backend"],
    ids=str,
)
def test_first_step_that_overflows_leaves_no_momentum(dtype, options, refused, backend):
    """The next step is the first: dampening does not touch it, and nothing of an uninitialised buffer is in it."""
    p = parameter(9, dtype=dtype)
    q = twin(p)
    ours, stock = gdcore.SGD([p], lr=0.1, **options), loop([q], lr=0.1, **options)
    for _ in range(refused):
        p.grad = torch.full_like(p, float("inf"))
        scaled_step(ours, found=1.0)
    assert ours.state_dict()["state"] == {}
    for _ in range(2):
        q.grad = torch.randn_like(q)
        p.grad = q.grad * 8
        scaled_step(ours)
        stock.step()
        assert_same(p, q, 1e-6 if dtype is torch.float32 else 2e-2)
    assert ours.state_dict()["state"].keys() == stock.state_dict()["state"].keys()


def test_stocks_momentum_is_uninitialised_after_a_first_step_that_overflows():
    p = parameter(5)
    optimizer = fused([p], lr=0.1, momentum=0.9)
    scaled_step(optimizer, found=1.0)
    scaled_step(optimizer, found=0.0)
    assert torch.isnan(p).all()


def reloaded(optimizer):
    fresh = gdcore.SGD(optimizer.param_groups[0]["params"], lr=0.1, momentum=0.9, dampening=0.5)
    fresh.load_state_dict(optimizer.state_dict())
    return fresh


CARRIED = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "state_dict": reloaded,
    "added group": lambda optimizer: optimizer.add_param_group({"params": [parameter(3, grad=False)]}) or optimizer,
}


@pytest.mark.parametrize("how", CARRIED)
def test_a_first_step_that_was_refused_stays_untaken(how, backend):
    """Wherever the optimizer is carried before the next step, dampening does not touch that one."""
    p = parameter(5)
    q = twin(p)
    ours = gdcore.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
    scaled_step(ours, found=1.0)
    ours = CARRIED[how](ours)
    p = ours.param_groups[0]["params"][0]
    stock = loop([q], lr=0.1, momentum=0.9, dampening=0.5)
    for _ in range(2):
        p.grad, q.grad = (g := torch.randn_like(q)), g.clone()
        ours.step(), stock.step()
        assert_same(p, q)


@pytest.mark.parametrize("gradient", ["sparse", "dense"])
def test_a_first_step_that_was_refused_stays_untaken_elsewhere(gradient, backend):
    """Also where something else takes the next step: another backend, or what takes sparse gradients."""
    p = parameter(5)
    q = twin(p)
    ours, stock = (make([t], lr=0.1, momentum=0.9, dampening=0.5) for make, t in ((gdcore.SGD, p), (loop, q)))
    scaled_step(ours, found=1.0)
    if gradient == "sparse":
        p.grad = p.grad.to_sparse()
        ours.step()
    else:
        with gdcore.use_backend("reference"):
            ours.step()
    stock.step()
    assert_same(p, q)


def test_momentum_loaded_after_a_refused_first_step_is_saved(backend):
    p = parameter(5)
    ours = gdcore.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
    scaled_step(ours, found=1.0)
    momentum = torch.randn(5, device=DEVICE)
    ours.load_state_dict({**ours.state_dict(), "state": {0: {"momentum_buffer": momentum}}})
    assert torch.equal(ours.state_dict()["state"][0]["momentum_buffer"], momentum)


def test_momentum_put_in_after_a_refused_first_step_is_saved_and_used(backend):
    p = parameter(5)
    q = twin(p)
    ours, stock = (make([t], lr=0.1, momentum=0.9, dampening=0.5) for make, t in ((gdcore.SGD, p), (loop, q)))
    scaled_step(ours, found=1.0)
    momentum = torch.randn(5, device=DEVICE)
    ours.state[p]["momentum_buffer"], stock.state[q]["momentum_buffer"] = momentum.clone(), momentum.clone()
    assert torch.equal(ours.state_dict()["state"][0]["momentum_buffer"], momentum)
    ours.step(), stock.step()
    assert_same(p, q)


def test_only_what_was_refused_starts_anew(backend):
    """One parameter has momentum, another gets its first gradient in a step that is refused."""
    p, late = parameter(5), parameter(2049, grad=False)
    q, late_q = twin(p), twin(late)
    ours, stock = (
        make(t, lr=0.1, momentum=0.9, dampening=0.5) for make, t in ((gdcore.SGD, [p, late]), (loop, [q, late_q]))
    )
    ours.step(), stock.step()
    late.grad = torch.full_like(late, float("inf"))
    scaled_step(ours, found=1.0)
    assert ours.state_dict()["state"].keys() == {0}
    for _ in range(2):
        late.grad, late_q.grad = (g := torch.randn_like(late)), g.clone()
        ours.step(), stock.step()
        assert_same(p, q)
        assert_same(late, late_q)
    assert ours.state_dict()["state"].keys() == {0, 1}


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=["plain", "momentum"])
@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled by hand"])
def test_a_real_scaler(unscale, options, backend):
    """Overflow in the first and in a later step; the parameters end where stock's do that saw the other steps."""
    p = parameter(7, grad=False)
    q = p.detach().clone().requires_grad_()
    ours, stock = gdcore.SGD([p], lr=0.1, **options), loop([q], lr=0.1, **options)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
    for step in range(5):
        overflow = step in (0, 3)
        x = torch.randn(7, device=DEVICE)
        ours.zero_grad(), stock.zero_grad()
        scaler.scale((p * x).sum() * (float("inf") if overflow else 1)).backward()
        if unscale:
            scaler.unscale_(ours)
        scaler.step(ours)
        scaler.update()
        if not overflow:
            (q * x).sum().backward()
            stock.step()
        assert_same(p, q)
    assert scaler.get_scale() == 2.0**8


@pytest.mark.parametrize(
    ("backend", "dtype"),
    thinned(BACKENDS, zip(DTYPES), lambda dtype: dtype in (torch.float32, torch.bfloat16)),
    indirect=["backend"],
    ids=str,
)
def test_a_parameter_that_gets_its_first_gradient_late(dtype, backend):
    tensors = [torch.randn(3, device=DEVICE).to(dtype) for _ in range(3)]
    race = Race(tensors, lr=0.3, momentum=0.9, dampening=0.5)
    for step in range(5):
        race.step([torch.randn_like(t) if step >= 2 * i else None for i, t in enumerate(tensors)])


def test_stock_fails_on_a_parameter_that_gets_its_first_gradient_late():
    p, late = parameter(3), parameter(3, grad=False)
    optimizer = fused([p, late], lr=0.1, momentum=0.9)
    optimizer.step()
    late.grad = torch.randn_like(late)
    with pytest.raises(TypeError):
        optimizer.step()


def load(make, dtype):
    """An optimizer of bfloat16 parameters that has loaded momentum of another dtype."""
    p = parameter(64, dtype=torch.bfloat16)
    source = make([p], lr=0.1, momentum=0.9)
    source.state[p]["momentum_buffer"] = torch.full((64,), 1 + 2.0**-12, device=DEVICE, dtype=dtype)
    target = make([p], lr=0.1, momentum=0.9)
    target.load_state_dict(source.state_dict())
    return p, target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wide_momentum_of_narrow_parameters_is_loaded_as_it_is(dtype, backend):
    p, ours = load(gdcore.SGD, dtype)
    momentum = ours.state[p]["momentum_buffer"]
    assert momentum.dtype is dtype
    assert (momentum == 1 + 2.0**-12).all()
    p.grad.zero_()
    ours.step()
    assert ours.state[p]["momentum_buffer"] is momentum
    torch.testing.assert_close(momentum, torch.full_like(momentum, 0.9 * (1 + 2.0**-12)), rtol=1e-6, atol=0)


def test_stock_rounds_the_momentum_that_it_loads():
    p, stock = load(torch.optim.SGD, torch.float32)
    assert stock.state[p]["momentum_buffer"].dtype is torch.bfloat16


MODIFYING = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "maximize": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize(
    ("backend", "dtype", "options", "scale"),
    thinned(
        BACKENDS,
        itertools.product([torch.float32, torch.bfloat16], MODIFYING, [None, 8.0]),
        lambda dtype, options, scale: (dtype is torch.float32) == (scale is not None),
    ),
    indirect=["backend"],
    ids=str,
)
def test_gradients_are_not_modified(dtype, options, scale, backend):
    p = parameter(257, dtype=dtype)
    optimizer = gdcore.SGD([p], lr=0.1, **options)
    for _ in range(2):
        p.grad = torch.randn_like(p)
        grad, version = p.grad.clone(), p.grad._version
        scaled_step(optimizer, scale)
        assert torch.equal(p.grad, grad)
        assert p.grad._version == version


@pytest.mark.parametrize("name", ["cpu", "triton", "reference"])
def test_gradients_are_not_modified_by_a_weight_decay_that_requires_a_gradient(name):
    if name == "cpu" and DEVICE != "cpu":
        pytest.skip("the tensors are on a GPU")
    p = parameter(5)
    grad = p.grad.clone()
    with gdcore.use_backend(name):
        gdcore.SGD([p], lr=0.1, weight_decay=torch.tensor(0.5, device=DEVICE, requires_grad=True)).step()
    assert torch.equal(p.grad, grad)


def test_stock_modifies_gradients_that_it_unscales():
    p = parameter(5)
    grad = p.grad.clone()
    scaled_step(fused([p], lr=0.1))
    assert torch.equal(p.grad, grad / 8)


def loss_and_step(make, dtype=torch.float32, **options):
    p = parameter(5, dtype=dtype)
    loss = (p * p).sum()
    make([p], lr=0.1, **options).step()
    return loss


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autograd_notices_the_update(dtype, options, backend):
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_and_step(gdcore.SGD, dtype, **options).backward()


def test_autograd_does_not_notice_stocks_fused_update():
    loss_and_step(fused).backward()


def test_every_step_is_noticed_and_absent_gradients_are_none(backend):
    p, q = parameter(5), parameter(5)
    optimizer = gdcore.SGD([p, q], lr=0.1, momentum=0.9)
    for step in range(4):
        q.grad = None if step % 2 else torch.randn_like(q)
        versions = p._version, q._version
        optimizer.step()
        assert p._version > versions[0]
        assert (q._version > versions[1]) == (q.grad is not None)


def order_mismatch(make):
    p = torch.randn(2, 3, 4, 4, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
    q = p.detach().clone().requires_grad_()
    p.grad = torch.randn(2, 3, 4, 4, device=DEVICE)
    q.grad = p.grad.clone()
    make([p], lr=0.1).step()
    loop([q], lr=0.1).step()
    return p, q


def test_gradients_in_another_order_than_the_parameter(backend):
    assert_same(*order_mismatch(gdcore.SGD))


def test_stock_mixes_up_gradients_in_another_order_or_refuses_them():
    """The one on the CPU, the other on a GPU."""
    if DEVICE == "cpu":
        p, q = order_mismatch(fused)
        assert (p - q).abs().max() > 0.01
    else:
        with pytest.raises(RuntimeError, match="check_fast_path_restrictions"):
            order_mismatch(fused)


def half_steps(make, dtype):
    p = parameter(100, dtype=dtype)
    q = twin(p)
    make([p], lr=0.1, momentum=0.9).step()
    loop([q], lr=0.1, momentum=0.9).step()
    return p, q


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, backend):
    assert_same(*half_steps(gdcore.SGD, dtype), 1e-2)


@pytest.mark.skipif(DEVICE != "cpu", reason="stock is wrong on the CPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_stock_leaves_elements_of_half_precision_unchanged(dtype):
    p, q = half_steps(fused, dtype)
    assert ((p - q).abs() > 0.01).float().mean() > 0.5


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_default_device_does_not_matter(device, backend):
    """Parameters need not be where new tensors are put."""
    tensors = [torch.randn(5, device=DEVICE).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    race = Race(tensors, lr=0.1, momentum=0.9)
    grads = [torch.randn_like(t) for t in tensors]
    with torch.device(device):
        race.step(grads)
        race.step(grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.5, "maximize": True},
    ],
    ids=str,
)
def test_half_precision_on_the_cpu_is_the_for_loop_to_the_last_bit(dtype, options):
    """With a rounding more or fewer, momentum drifts from it by whole units in the last place within a few steps.

    Where a large tensor is cut, PyTorch's vectors end elsewhere, and a few of their last numbers are rounded once less.
    """
    params = [torch.randn(size).to(dtype).requires_grad_() for size in (7, 5_001, 300_000)]
    others = [p.detach().clone().requires_grad_() for p in params]
    with gdcore.use_backend("auto"):
        ours = gdcore.SGD(params, lr=1e-2, **options)
        stock = torch.optim.SGD(others, lr=1e-2, foreach=False, **options)
        for _ in range(7):
            for p, q in zip(params, others, strict=True):
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
            ours.step()
            stock.step()
    for p, q in zip(params, others, strict=True):
        for found, expected in ((p, q), (ours.state[p]["momentum_buffer"], stock.state[q]["momentum_buffer"])):
            assert (found != expected).sum() <= p.numel() // 10_000
