"""SGD inside what calls it: torch.compile, GradScaler, schedulers, autograd, the profiler, hooks."""

import copy
import itertools
import math

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import gdcore
from sgd_support import thinned
from support import DEVICE

BACKENDS = ["cpu", "triton", "reference"]


@pytest.fixture(params=BACKENDS, autouse=True)
def stepper(request):
    if request.param == "cpu" and DEVICE != "cpu":
        pytest.skip("the tensors are on a GPU")
    with gdcore.use_backend(request.param):
        yield request.param


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def two_models(dtype=torch.float32):
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).to(DEVICE, dtype)
    return model, copy.deepcopy(model)


def batches(n, dtype=torch.float32):
    return [
        (torch.randn(4, 5, device=DEVICE, dtype=dtype), torch.randn(4, 3, device=DEVICE, dtype=dtype)) for _ in range(n)
    ]


def loss_of(model, batch):
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])


def assert_equal_models(ours, theirs, tolerance=1e-5):
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


HYPER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


# torch.compile.


@pytest.mark.parametrize(
    ("stepper", "options"),
    [*((name, {"momentum": 0.9, "nesterov": True}) for name in BACKENDS), ("triton", {"zero_grad": True})],
    indirect=["stepper"],
    ids=str,
)
def test_a_compiled_training_step_trains_as_the_eager_one(options, dynamo):
    """Forward, backward and step in one compiled function."""
    model, twin = two_models()
    hyper = {name: value for name, value in options.items() if name != "zero_grad"}
    ours, theirs = (
        gdcore.SGD(model.parameters(), lr=0.1, **options),
        torch.optim.SGD(twin.parameters(), lr=0.1, **hyper),
    )

    @torch.compile(backend="aot_eager")
    def train(x, y):
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        ours.step()
        if not options.get("zero_grad"):
            ours.zero_grad()
        return loss

    for batch in batches(3):
        loss = loss_of(twin, batch)
        loss.backward()
        theirs.step()
        theirs.zero_grad()
        torch.testing.assert_close(train(*batch), loss, rtol=1e-5, atol=1e-6)
    assert_equal_models(model, twin)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["lr a float", "lr a tensor"])
def test_a_compiled_step_with_a_scheduler_follows_it(tensor_lr, dynamo):
    """The graph holds no rate: each step takes the one that the scheduler has set."""
    (p, q) = (torch.ones(20, device=DEVICE, requires_grad=True) for _ in range(2))
    lr = [torch.tensor(0.1, device=DEVICE) if tensor_lr else 0.1 for _ in range(2)]
    ours, theirs = gdcore.SGD([p], lr=lr[0], momentum=0.9), torch.optim.SGD([q], lr=lr[1], momentum=0.9, foreach=False)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (ours, theirs)]

    @torch.compile(backend="eager")
    def step():
        ours.step()
        schedules[0].step()

    for _ in range(4):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
        step()
        theirs.step(), schedules[1].step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert float(ours.param_groups[0]["lr"]) == pytest.approx(0.1 / 16)


def test_a_compiled_step_calls_hooks_and_closure(dynamo):
    p = torch.ones(4, device=DEVICE, requires_grad=True)
    optimizer = gdcore.SGD([p], lr=0.25)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        called.append("closure")
        return loss

    compiled = torch.compile(lambda: optimizer.step(closure), backend="eager")
    assert compiled().item() == 4.0
    assert called == ["before", "closure", "after"]
    assert torch.equal(p, torch.full_like(p, 0.5))


def test_compiling_step_itself_does_not_stop_an_eager_one(dynamo):
    p = torch.ones(4, device=DEVICE, requires_grad=True)
    optimizer = gdcore.SGD([p], lr=0.25)
    p.grad = torch.ones_like(p)
    torch.compile(optimizer.step, backend="eager")()
    optimizer.step()
    assert torch.equal(p, torch.full_like(p, 0.5))


# torch.amp.GradScaler.


def scaled_step(model, optimizer, scaler, batch, overflow=False, unscale=False):
    loss = scaler.scale(loss_of(model, batch))
    loss.backward()
    if overflow:
        next(model.parameters()).grad[0, 0] = math.inf
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


OVERFLOWS = {
    "overflow in the first step": (0, False),
    "overflow in the first step, unscale_ before": (0, True),
    "overflow in the third step": (2, False),
}
SCALED = [{}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}]


@pytest.mark.parametrize(
    ("stepper", "options", "when"),
    thinned(
        BACKENDS,
        itertools.product(SCALED, OVERFLOWS),
        lambda options, when: "dampening" in options or when == "overflow in the first step",
    ),
    indirect=["stepper"],
    ids=str,
)
def test_grad_scaler_end_to_end(options, when):
    """As torch's foreach=False SGD with a GradScaler; the scale halves with the overflow in both."""
    overflow, unscale = OVERFLOWS[when]
    model, twin = two_models()
    ours = gdcore.SGD(model.parameters(), lr=0.1, **options)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1, **options, foreach=False)
    scalers = [torch.amp.GradScaler(DEVICE, init_scale=1024.0) for _ in range(2)]
    for i, batch in enumerate(batches(3)):
        scaled_step(model, ours, scalers[0], batch, i == overflow, unscale)
        scaled_step(twin, theirs, scalers[1], batch, i == overflow, unscale)
        assert_equal_models(model, twin)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            saved = ours.state_dict()["state"], theirs.state_dict()["state"]
            assert saved[0].keys() == saved[1].keys()
            if options:
                momentum = [o.state.get(x, {}).get("momentum_buffer") for o, x in ((ours, p), (theirs, q))]
                if momentum[1] is not None:
                    torch.testing.assert_close(*momentum, rtol=1e-5, atol=1e-5)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 512


def test_grad_scaler_with_clipping_measures_unscaled_gradients():
    """Stock needs unscale_ and clip_grad_norm_ for it."""
    model, twin = two_models()
    ours, theirs = gdcore.SGD(model.parameters(), **HYPER, max_norm=0.5), torch.optim.SGD(twin.parameters(), **HYPER)
    scalers = [torch.amp.GradScaler(DEVICE, init_scale=256.0) for _ in range(2)]
    for batch in batches(3):
        scaled_step(model, ours, scalers[0], batch)
        scalers[1].scale(loss_of(twin, batch)).backward()
        scalers[1].unscale_(theirs)
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        scalers[1].step(theirs), scalers[1].update()
        theirs.zero_grad()
        torch.testing.assert_close(ours.grad_norm.float(), norm, rtol=1e-5, atol=0)
    assert_equal_models(model, twin)


@pytest.mark.parametrize(
    ("stepper", "options"),
    thinned(BACKENDS, [({},), ({"dampening": 0.5},), ({"nesterov": True, "max_norm": 1.0},)], bool),
    indirect=["stepper"],
    ids=str,
)
def test_a_state_saved_after_a_refused_first_step_is_that_of_no_step(options):
    """Momentum that was made for a step not taken is no momentum: with dampening its first step would be wrong."""
    model, twin = two_models()
    ours = gdcore.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=256.0)
    scaled_step(model, ours, scaler, batches(1)[0], overflow=True)
    saved = copy.deepcopy(ours.state_dict())
    assert saved["state"] == {}
    resumed = gdcore.SGD(twin.parameters(), lr=0.1, momentum=0.9, **options)
    resumed.load_state_dict(saved)
    hyper = {name: value for name, value in options.items() if name != "max_norm"}
    third = copy.deepcopy(twin)
    stock = torch.optim.SGD(third.parameters(), lr=0.1, momentum=0.9, **hyper, foreach=False)
    stock.load_state_dict(copy.deepcopy(saved))
    for batch in batches(2):
        for m, optimizer in ((model, ours), (twin, resumed), (third, stock)):
            loss_of(m, batch).backward()
            if optimizer is stock and "max_norm" in options:
                torch.nn.utils.clip_grad_norm_(m.parameters(), options["max_norm"])
            optimizer.step()
            optimizer.zero_grad()
    for p in (*ours.param_groups[0]["params"], *resumed.param_groups[0]["params"]):
        assert p.isfinite().all()
    assert_equal_models(model, twin, 1e-6)
    assert_equal_models(model, third)
    assert sorted(ours.state_dict()["state"]) == [0, 1, 2, 3]


def test_refused_steps_of_some_parameters_do_not_hide_the_momentum_of_others():
    """The last one joins in a step that is refused; then only its state is left out."""
    params = [torch.ones(5, device=DEVICE, requires_grad=True) for _ in range(3)]
    optimizer = gdcore.SGD(params, lr=0.1, momentum=0.9)
    for p in params[:2]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    params[2].grad = torch.full_like(params[2], math.inf)
    optimizer.found_inf = torch.ones((), device=DEVICE)
    optimizer.step()
    assert sorted(optimizer.state_dict()["state"]) == [0, 1]
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    params[2].grad = torch.ones_like(params[2])
    optimizer.step()
    assert sorted(optimizer.state_dict()["state"]) == [0, 1, 2]
    assert torch.equal(optimizer.state[params[2]]["momentum_buffer"], torch.ones(5, device=DEVICE))


def test_half_precision_with_grad_scaler_and_masters():
    """Overflow by itself: the first scale is so large that float16 gradients are infinite; training goes on."""
    model, _ = two_models(torch.float16)
    optimizer = gdcore.SGD(model.parameters(), lr=0.1, momentum=0.9, master_weights=True, max_norm=1.0)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**18)
    batch = batches(1, torch.float16)[0]
    first = loss_of(model, batch).item()
    before = [p.detach().clone() for p in model.parameters()]
    scaled_step(model, optimizer, scaler, batch)
    assert scaler.get_scale() == 2.0**17
    assert all(map(torch.equal, before, model.parameters()))
    for _ in range(10):
        scaled_step(model, optimizer, scaler, batch)
    assert loss_of(model, batch).item() < 0.9 * first
    assert all(p.isfinite().all() for p in model.parameters())


# autograd.


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1, "max_norm": 0.1}], ids=str
)
def test_a_step_counts_as_one_change_of_every_stepped_parameter(options):
    """Stale graphs raise; parameters without a gradient are unchanged, and their graphs can still be used."""
    stepped, absent = (torch.randn(5, device=DEVICE, requires_grad=True) for _ in range(2))
    optimizer = gdcore.SGD([stepped, absent], lr=0.1, **options)
    for _ in range(3):
        losses = [p.square().sum() for p in (stepped, absent)]
        versions = stepped._version, absent._version
        stepped.grad = torch.ones_like(stepped)
        grad_version = stepped.grad._version
        optimizer.step()
        assert stepped._version > versions[0]
        assert absent._version == versions[1]
        assert stepped.grad._version == grad_version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            losses[0].backward()
        torch.autograd.grad(losses[1], absent)


def test_a_step_inside_saved_tensor_hooks_packs_nothing():
    """It is no part of anybody's graph: nothing is saved for a backward pass, with gradients enabled."""
    p = torch.ones(5, device=DEVICE, requires_grad=True)
    optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.1, max_norm=1.0)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t), torch.enable_grad():
        for _ in range(2):
            p.grad = torch.ones_like(p)
            optimizer.step()
    assert packed == []
    assert p.is_leaf
    assert p.grad_fn is None
    assert not optimizer.state[p]["momentum_buffer"].requires_grad
    assert not optimizer.grad_norm.requires_grad


def test_gradients_that_are_part_of_a_graph_are_stepped_without_it():
    """backward(create_graph=True) leaves them."""
    p, q = (torch.arange(1.0, 6, device=DEVICE).requires_grad_() for _ in range(2))
    ours, theirs = gdcore.SGD([p], lr=0.01, momentum=0.9, max_norm=5.0), torch.optim.SGD([q], lr=0.01, momentum=0.9)
    for _ in range(2):
        for parameter, optimizer in ((p, ours), (q, theirs)):
            optimizer.zero_grad()
            (grad,) = torch.autograd.grad(parameter.pow(3).sum(), parameter, create_graph=True)
            parameter.grad = grad
            if optimizer is theirs:
                parameter.grad = grad.detach().clone()
                torch.nn.utils.clip_grad_norm_([q], 5.0)
            optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert not ours.state[p]["momentum_buffer"].requires_grad
    assert not ours.grad_norm.requires_grad


def test_steps_without_grad_mode_as_with_it():
    p = torch.ones(5, device=DEVICE, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = gdcore.SGD([p], lr=0.25, momentum=0.5)
    with torch.no_grad():
        optimizer.step()
    optimizer.step()
    assert torch.equal(p, torch.full_like(p, 1 - 0.25 * 2.5))
    assert torch.is_grad_enabled()


# The profiler and hooks.


def profiled(make):
    p = torch.ones(5, device=DEVICE, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = make(p)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    optimizer.step()
    return {event.key for event in profile.key_averages() if "Optimizer" in event.key}, p


def test_the_profiler_names_the_step_as_torchs():
    names, p = profiled(lambda p: gdcore.SGD([p], lr=0.25))
    assert names == profiled(lambda p: torch.optim.SGD([p], lr=0.25))[0] == {"Optimizer.step#SGD.step"}
    assert torch.equal(p, torch.full_like(p, 0.25))


def test_hooks_see_the_step_and_may_change_its_arguments():
    p = torch.ones(3, device=DEVICE, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = gdcore.SGD([p], lr=0.5)
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append((o, p[0].item()))),
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append((o, p[0].item()))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append("global")),
    ]
    optimizer.step()
    assert seen == [(optimizer, 1.0), (optimizer, 0.5), "global"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 3
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 7), {}))
    assert optimizer.step() == 7
