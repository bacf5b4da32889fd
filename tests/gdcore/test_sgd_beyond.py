"""What SGD does beyond torch.optim.SGD: clipping, unscaling, float32 masters, stochastic rounding, zeroed gradients."""

import copy
import functools
import itertools
import math

import pytest
import torch

import gdcore
from sgd_support import thinned
from support import DEVICE, EPSILON

HALF = [torch.float16, torch.bfloat16]
STEPPERS = ["cpu", "triton", "reference"]
MOMENTUM = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02}
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
    "maximize": {"maximize": True, "weight_decay": 0.02},
    "clipped": {"momentum": 0.9, "max_norm": 2.0},
    "masters": {"momentum": 0.9, "master_weights": True},
    "masters, clipped": {"master_weights": True, "max_norm": 2.0, "maximize": True},
    "stochastic": {"stochastic_rounding": True},
    "stochastic, momentum": {"stochastic_rounding": True, "momentum": 0.9, "nesterov": True, "max_norm": 2.0},
}


@pytest.fixture(params=STEPPERS, autouse=True)
def stepper(request):
    """Every way to step; inside it optimizers are made and stepped."""
    if request.param == "cpu" and DEVICE != "cpu":
        pytest.skip("the tensors are on a GPU")
    with gdcore.use_backend(request.param):
        yield request.param


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def mixed(dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64)):
    """Leaves of several sizes and types."""
    return [leaf(normal(n, dtype=dtype)) for n, dtype in zip((5, 300, 7, 2049), dtypes, strict=True)]


def snapshot(optimizer, params):
    return [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())


def assert_same(ours, theirs):
    """Bit for bit, through lists and dictionaries."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    else:
        assert ours == theirs


def give(params, grads, factor=1.0):
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g * factor


# Clipping by the norm of all gradients.


def stock_clipped(params, max_norm):
    present = [p for p in params if p.grad is not None]
    return torch.nn.utils.clip_grad_norm_(present, max_norm)


@pytest.mark.parametrize(
    ("stepper", "hyper", "max_norm"),
    thinned(
        STEPPERS,
        itertools.product([{"lr": 0.1}, MOMENTUM, MOMENTUM | {"nesterov": True, "maximize": True}], [0.0, 0.5, 1e9]),
        lambda hyper, max_norm: max_norm == 0.5 or hyper is MOMENTUM,
    ),
    indirect=["stepper"],
    ids=str,
)
def test_clipping_equals_clip_grad_norm(hyper, max_norm):
    """Several groups, gradients absent in turn; the gradients stay what they are."""
    ours, theirs = [[leaf(normal(n)) for n in (3, 2049, 60)] for _ in range(2)]
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    groups = lambda p: [{"params": p[:2]}, {"params": p[2:], "lr": 0.01}]  # noqa: E731
    a, b = gdcore.SGD(groups(ours), **hyper, max_norm=max_norm), torch.optim.SGD(groups(theirs), **hyper, foreach=False)
    for step in range(3):
        grads = [None if i == step else normal(*p.shape) for i, p in enumerate(ours)]
        give(ours, grads), give(theirs, grads)
        norm = stock_clipped(theirs, max_norm)
        a.step(), b.step()
        assert a.grad_norm.dtype is torch.float64
        assert a.grad_norm.shape == ()
        exact = math.sqrt(sum(g.double().square().sum().item() for g in grads if g is not None))
        assert abs(a.grad_norm.item() - exact) <= 2 * abs(norm.item() - exact) + 1e-6 * exact
        for p, g in zip(ours, grads, strict=True):
            assert g is None or torch.equal(p.grad, g)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)
        if "momentum" in hyper:
            torch.testing.assert_close(
                a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"], rtol=2e-6, atol=2e-6
            )


def test_clips_all_dtypes_together():
    """Against float64; the norm is that of all four tensors."""
    ours = mixed()
    exact = [leaf(p.double()) for p in ours]
    a = gdcore.SGD([{"params": ours[:1]}, {"params": ours[1:], "momentum": 0.9}], lr=0.1, max_norm=1.5)
    b = torch.optim.SGD([{"params": exact[:1]}, {"params": exact[1:], "momentum": 0.9}], lr=0.1, foreach=False)
    for _ in range(2):
        grads = [normal(*p.shape, dtype=p.dtype) for p in ours]
        give(ours, grads), give(exact, [g.double() for g in grads])
        norm = stock_clipped(exact, 1.5)
        a.step(), b.step()
        torch.testing.assert_close(a.grad_norm, norm, rtol=1e-6, atol=0)
    for p, q in zip(ours, exact, strict=True):
        torch.testing.assert_close(p.double(), q, rtol=EPSILON[p.dtype], atol=max(EPSILON[p.dtype], 1e-6))


def test_a_small_norm_clips_nothing():
    """Bit for bit the step without max_norm."""
    p = normal(700)
    ours, theirs = leaf(p), leaf(p)
    a, b = gdcore.SGD([ours], **MOMENTUM, max_norm=1e6), gdcore.SGD([theirs], **MOMENTUM)
    for _ in range(3):
        grads = [normal(700)]
        give([ours], grads), give([theirs], grads)
        a.step(), b.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_gradients_that_are_no_numbers_are_clipped_as_stock_does(bad):
    """Of an infinite norm the factor is 0: finite gradients vanish, Inf becomes NaN. NaN spreads to everything."""
    ours = [leaf(normal(n)) for n in (9, 260)]
    theirs = [leaf(p) for p in ours]
    a, b = gdcore.SGD(ours, lr=0.1, momentum=0.9, max_norm=1.0), torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    grads = [normal(9), normal(260)]
    grads[1][259] = bad
    give(ours, grads), give(theirs, grads)
    norm = stock_clipped(theirs, 1.0)
    a.step(), b.step()
    assert_same(a.grad_norm.float(), norm)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_the_norm_of_large_float16_gradients_is_finite():
    """60,000 is a float16; the sum of its squares, and the norm of 300 of them, are none."""
    p = leaf(normal(300, dtype=torch.float16))
    before = p.detach().double()
    p.grad = torch.full_like(p, 60000.0)
    optimizer = gdcore.SGD([p], lr=1.0, max_norm=1.0)
    optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm.item(), 60000 * math.sqrt(300), rtol=1e-4, atol=0)
    torch.testing.assert_close(p.double(), before - 1 / math.sqrt(300), rtol=2e-3, atol=2e-3)


def test_the_norm_without_a_gradient_is_zero():
    params = [leaf(normal(4)), leaf(normal(0, 3))]
    before = params[0].detach().clone()
    optimizer = gdcore.SGD(params, lr=0.1, momentum=0.9, max_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm.item() == 0
    params[1].grad = normal(0, 3)
    optimizer.step()
    assert optimizer.grad_norm.item() == 0
    assert torch.equal(params[0], before)


def test_clips_gradients_of_any_layout():
    """A gradient in the parameter's order, in another, and one whose neighbours in memory are NaN."""
    ours = [leaf(normal(4, 3, 5, 5).to(memory_format=torch.channels_last)) for _ in range(3)]
    theirs = [leaf(p.detach().contiguous()) for p in ours]
    a, b = gdcore.SGD(ours, **MOMENTUM, max_norm=1.0), torch.optim.SGD(theirs, **MOMENTUM, foreach=False)
    for _ in range(2):
        grads = [normal(4, 3, 5, 5) for _ in ours]
        give(theirs, grads)
        wide = torch.full((4, 3, 5, 10), math.nan, device=DEVICE)
        wide[..., ::2] = grads[2]
        laid = [grads[0].to(memory_format=torch.channels_last), grads[1], wide[..., ::2]]
        for p, g in zip(ours, laid, strict=True):
            p.grad = g
        norm = stock_clipped(theirs, 1.0)
        a.step(), b.step()
        torch.testing.assert_close(a.grad_norm.float(), norm, rtol=1e-6, atol=0)
        assert wide[..., 1::2].isnan().all()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.contiguous(), q.contiguous(), rtol=2e-6, atol=2e-6)


def test_clips_sparse_gradients_together_with_dense_ones():
    """They are stepped in different ways, but the norm is one."""
    ours = [leaf(normal(6, 3)), leaf(normal(50))]
    theirs = [leaf(p) for p in ours]
    a, b = gdcore.SGD(ours, lr=0.1, max_norm=1.0), torch.optim.SGD(theirs, lr=0.1)
    dense = normal(50)
    sparse = torch.sparse_coo_tensor([[1, 4, 1]], normal(3, 3), (6, 3), device=DEVICE)
    give(ours, [sparse, dense]), give(theirs, [sparse.to_dense(), dense])
    norm = stock_clipped(theirs, 1.0)
    a.step(), b.step()
    torch.testing.assert_close(a.grad_norm.float(), norm, rtol=1e-6, atol=0)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)


def test_clipping_can_change_from_step_to_step():
    p, q = (leaf(torch.ones(40, device=DEVICE)) for _ in range(2))
    a, b = gdcore.SGD([p], lr=0.1, max_norm=1.0), torch.optim.SGD([q], lr=0.1)
    for max_norm in (1.0, 0.25, 100.0):
        grads = [normal(40)]
        give([p], grads), give([q], grads)
        a.max_norm = max_norm
        stock_clipped([q], max_norm)
        a.step(), b.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


# Scaled gradients and refused steps.


def made(options, dtype=torch.bfloat16, **more):
    params = [leaf(normal(n, dtype=d)) for n, d in ((200, dtype), (33, torch.float32))]
    return params, gdcore.SGD(params, lr=0.1, **options, **more)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [(options, HALF[i % 2]) for i, options in enumerate(OPTIONS.values())],
    ids=[f"{name}, {HALF[i % 2]}" for i, name in enumerate(OPTIONS)],
)
def test_scaled_gradients_step_as_unscaled_ones(options, dtype):
    """A power of two: nothing is rounded in scaling. The scaled gradients stay as they are."""
    scale = 8.0
    params, optimizer = made(options, dtype)
    twins = [leaf(p) for p in params]
    twin = gdcore.SGD(twins, lr=0.1, **options)
    for _ in range(2):
        grads = [normal(*p.shape, dtype=p.dtype) for p in params]
        give(params, grads, scale), give(twins, grads)
        before = [p.grad.clone() for p in params]
        optimizer.grad_scale = torch.tensor(scale, device=DEVICE)
        optimizer.found_inf = torch.zeros((), device=DEVICE)
        optimizer.step(), twin.step()
        assert_same([p.grad for p in params], before)
        if twin.grad_norm is not None:
            torch.testing.assert_close(optimizer.grad_norm, twin.grad_norm, rtol=1e-6, atol=0)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=EPSILON[p.dtype], atol=EPSILON[p.dtype])
        for name, value in twin.state[q].items():
            ours = optimizer.state[p][name]
            assert ours.dtype is value.dtype
            torch.testing.assert_close(ours, value, rtol=EPSILON[value.dtype], atol=EPSILON[value.dtype])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_refused_step_leaves_no_trace(options):
    """Parameters, momentum, masters and random numbers are afterwards as if it had never been asked for.

    Refused before the first step and after it, for an Inf and for something else.
    """
    params, optimizer = made(options)
    twins = [leaf(p) for p in params]
    twin = gdcore.SGD(twins, lr=0.1, **options)
    for step, found in enumerate((2.0, math.nan)):
        grads = [normal(*p.shape, dtype=p.dtype) for p in params]
        optimizer.grad_scale = torch.tensor(4.0, device=DEVICE)
        before = snapshot(optimizer, params)
        optimizer.found_inf = torch.tensor(found, device=DEVICE)
        give(params, [torch.full_like(g, math.inf) for g in grads])
        optimizer.step()
        after = snapshot(optimizer, params)
        if step == 0:  # masters may have been made: they are the parameters
            for entry in after[1]["state"].values():
                assert entry.keys() <= {"master_weight"}
            after[1]["state"] = {}
        assert_same(after, before)
        assert all(p.grad.isinf().all() for p in params)
        optimizer.found_inf = torch.zeros((), device=DEVICE)
        give(params, grads, 4.0), give(twins, grads)
        twin.grad_scale, twin.found_inf = torch.ones((), device=DEVICE), torch.zeros((), device=DEVICE)
        optimizer.step(), twin.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=EPSILON[p.dtype], atol=EPSILON[p.dtype])
        assert optimizer.state[p].keys() == twin.state[q].keys()
        for name, value in twin.state[q].items():
            torch.testing.assert_close(optimizer.state[p][name], value, rtol=EPSILON[p.dtype], atol=EPSILON[p.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_scale_and_veto_may_be_of_any_floating_type_and_of_one_element(dtype):
    p, q = leaf(torch.ones(9, device=DEVICE)), leaf(torch.ones(9, device=DEVICE))
    a, b = gdcore.SGD([p], lr=0.1, momentum=0.9), torch.optim.SGD([q], lr=0.1, momentum=0.9)
    for found in (1, 0, 0):
        g = normal(9)
        p.grad, q.grad = g * 16, g.clone()
        a.grad_scale = torch.full((1,), 16.0, dtype=dtype, device=DEVICE)
        a.found_inf = torch.full((1,), float(found), dtype=dtype, device=DEVICE)
        a.step()
        if not found:
            b.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_large_float16_gradients_are_unscaled_without_overflow():
    """Scaling comes before weight decay and momentum, in float32: 60,000 / 65,536 is no overflow anywhere."""
    p = leaf(torch.ones(5, device=DEVICE, dtype=torch.float16))
    p.grad = torch.full_like(p, 60000.0)
    optimizer = gdcore.SGD([p], lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.1)
    optimizer.grad_scale = torch.tensor(65536.0, device=DEVICE)
    optimizer.step()
    expected = 1 - 0.5 * (60000 / 65536 + 0.1) * 1.9
    torch.testing.assert_close(p.double(), torch.full_like(p, expected, dtype=torch.float64), rtol=0, atol=2e-3)


# float32 masters.


MASTER_OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.02},
    "nesterov": {"momentum": 0.9, "nesterov": True, "dampening": 0, "maximize": True},
    "clipped": {"momentum": 0.8, "dampening": 0.5, "max_norm": 1.0},
}


@pytest.mark.parametrize(
    ("stepper", "case", "dtype"),
    thinned(
        STEPPERS,
        itertools.product(MASTER_OPTIONS, HALF),
        lambda case, dtype: dtype is HALF[list(MASTER_OPTIONS).index(case) // 2],
    ),
    indirect=["stepper"],
    ids=str,
)
def test_masters_step_as_float32_parameters_do(case, dtype):
    """The master is the float32 run; the parameter is the master, rounded to nearest. A step of 1e-4 is not lost."""
    options, shapes = MASTER_OPTIONS[case], [(260,), (6, 5)]
    params = [leaf(normal(*shape, dtype=dtype)) for shape in shapes] + [leaf(normal(11))]
    exact = [leaf(p.float()) for p in params]
    hyper = {name: value for name, value in options.items() if name != "max_norm"}
    a = gdcore.SGD(params, lr=1e-4, **options, master_weights=True)
    b = torch.optim.SGD(exact, lr=1e-4, **hyper, foreach=False)
    for step in range(4):
        grads = [None if step == i else normal(*p.shape, dtype=p.dtype) for i, p in enumerate(params)]
        give(params, grads), give(exact, [None if g is None else g.float() for g in grads])
        if "max_norm" in options:
            stock_clipped(exact, options["max_norm"])
        a.step(), b.step()
        for p, g in zip(params, grads, strict=True):
            assert g is None or torch.equal(p.grad, g)
    for p, q in zip(params[:2], exact, strict=False):
        master = a.state[p]["master_weight"]
        assert master.dtype is torch.float32
        torch.testing.assert_close(master, q.detach(), rtol=2e-6, atol=2e-6)
        assert torch.equal(p, master.to(dtype))
        if "momentum" in options:
            assert a.state[p]["momentum_buffer"].dtype is torch.float32
            torch.testing.assert_close(
                a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"], rtol=2e-6, atol=2e-6
            )
    torch.testing.assert_close(params[2], exact[2], rtol=2e-6, atol=2e-6)
    assert "master_weight" not in a.state[params[2]]


def written(how, model):
    """Write the parameter from outside; what it is now."""
    value = torch.linspace(-3, 3, 200, device=DEVICE, dtype=model.w.dtype)
    kept = value.clone()
    if how == "copy_":
        with torch.no_grad():
            model.w.copy_(value)
    elif how == "load_state_dict":
        model.load_state_dict({"w": value})
    elif how == "p.data=":
        model.w.data = value
    elif how == "p.data= of another layout":
        model.w.data = torch.stack([value, value], 1)[:, 0]
    elif how == "p.data.copy_":
        model.w.data.copy_(value)
    return kept


WRITING = ["copy_", "load_state_dict", "p.data=", "p.data= of another layout", "p.data.copy_"]


@pytest.mark.parametrize(
    ("stepper", "how", "dtype", "momentum"),
    thinned(
        STEPPERS,
        [(how, *kind) for how in WRITING for kind in ((torch.float16, 0.9), (torch.bfloat16, 0))],
        lambda how, dtype, momentum: momentum or how in ("copy_", "p.data="),
    ),
    indirect=["stepper"],
    ids=str,
)
def test_masters_follow_what_something_else_writes(how, dtype, momentum):
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(normal(200, dtype=dtype))
    optimizer = gdcore.SGD(model.parameters(), lr=2.0**-10, momentum=momentum, master_weights=True)
    for _ in range(2):
        model.w.grad = torch.full_like(model.w, 0.25)
        optimizer.step()
    master = optimizer.state[model.w]["master_weight"].clone()
    value = written(how, model)
    expected = torch.where(master.to(dtype) == value, master, value.float())  # what it shows already is no change
    velocity = optimizer.state[model.w]["momentum_buffer"].clone() if momentum else 0.0
    for _ in range(2):
        model.w.grad = torch.full_like(model.w, 0.25)
        optimizer.step()
        velocity = momentum * velocity + 0.25
        expected = expected - 2.0**-10 * velocity
        torch.testing.assert_close(optimizer.state[model.w]["master_weight"], expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(model.w, optimizer.state[model.w]["master_weight"].to(dtype))


def test_masters_follow_only_where_something_was_written():
    """One element is written: the others' fractions, which the parameter does not show, are kept."""
    p = leaf(torch.ones(300, device=DEVICE, dtype=torch.bfloat16))
    optimizer = gdcore.SGD([p], lr=2.0**-12, master_weights=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    with torch.no_grad():
        p[17] = 5.0
    optimizer.step()
    master = optimizer.state[p]["master_weight"]
    expected = torch.full_like(master, 1 - 2.0**-11)
    expected[17] = 5 - 2.0**-12
    assert torch.equal(master, expected)


def test_masters_and_float32_momentum_are_saved_and_loaded_as_they_are():
    """A run that is saved and loaded goes on bit for bit; the fraction that the parameter does not show is there."""
    options = {"lr": 1e-3, "momentum": 0.9, "master_weights": True}
    params = [leaf(normal(n, dtype=torch.bfloat16)) for n in (5, 260)]
    a = gdcore.SGD(params, **options)
    grads = [[normal(*p.shape, dtype=p.dtype) for p in params] for _ in range(5)]
    for step in range(3):
        give(params, grads[step])
        a.step()
    saved = copy.deepcopy(a.state_dict())
    for entry in saved["state"].values():
        assert sorted(entry) == ["master_weight", "momentum_buffer"]
        assert {value.dtype for value in entry.values()} == {torch.float32}
    twins = [leaf(p) for p in params]
    b = gdcore.SGD(twins, **options)
    b.load_state_dict(saved)
    assert_same(b.state_dict(), saved)
    for step in (3, 4):
        for optimizer, those in ((a, params), (b, twins)):
            give(those, grads[step])
            optimizer.step()
    assert_same([p.detach() for p in params], [p.detach() for p in twins])
    assert_same(a.state_dict(), b.state_dict())


def test_masters_start_from_stocks_state_and_stock_from_theirs():
    p = leaf(normal(40, dtype=torch.bfloat16))
    stock = torch.optim.SGD([p], lr=0.1, momentum=0.9, foreach=False)
    p.grad = normal(40, dtype=torch.bfloat16)
    stock.step()
    ours = gdcore.SGD([p], lr=0.1, momentum=0.9, master_weights=True)
    ours.load_state_dict(copy.deepcopy(stock.state_dict()))
    before, velocity = p.detach().float(), stock.state[p]["momentum_buffer"].float()
    ours.step()
    expected = before - 0.1 * (0.9 * velocity + p.grad.float())
    torch.testing.assert_close(ours.state[p]["master_weight"], expected, rtol=1e-6, atol=1e-2)
    stock.load_state_dict(copy.deepcopy(ours.state_dict()))
    stock.step()
    assert p.isfinite().all()


def test_masters_of_parameters_that_are_no_numbers():
    """NaN and Inf in the parameter stay, and do not spread."""
    p = leaf(normal(64, dtype=torch.float16))
    with torch.no_grad():
        p[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9, master_weights=True)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p[:3].isnan().tolist() == [True, False, False]
    assert p[1:3].tolist() == [math.inf, -math.inf]
    assert p[3:].isfinite().all()


# Stochastic rounding.


@functools.cache
def every_number(dtype):
    """The finite ones, in order, as float64."""
    grid = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).double()
    return grid[grid.isfinite()].unique().to(DEVICE)


def neighbours(x, dtype):
    """The numbers of a type next below and above (or at) a float64."""
    grid = every_number(dtype)
    below = grid[(torch.searchsorted(grid, x, right=True) - 1).clamp(min=0)]
    above = grid[torch.searchsorted(grid, x).clamp(max=len(grid) - 1)]
    return below, above


def start(where, dtype, n):
    """(parameter, gradient, lr) whose step ends between two numbers of the type."""
    if where == "ordinary":
        return normal(n, dtype=dtype), normal(n, dtype=dtype), 2.0**-9
    if where == "subnormal":
        tiny = 2.0**-24 if dtype is torch.float16 else 2.0**-133
        return (torch.randint(-1023, 1024, (n,), device=DEVICE) * tiny).to(dtype), normal(n, dtype=dtype), tiny
    ulp = 32.0 if dtype is torch.float16 else 2.0**120
    largest = torch.finfo(dtype).max
    sign = torch.randint(0, 2, (n,), device=DEVICE) * 2 - 1
    base = sign * (largest - ulp * torch.randint(1, 5, (n,), device=DEVICE).double())
    return base.to(dtype), (ulp * torch.rand(n, device=DEVICE)).to(dtype), 1.0


def skip_what_the_interpreter_converts_wrongly(stepper):
    if stepper == "triton" and DEVICE == "cpu":
        pytest.skip("Triton's interpreter does not convert subnormal numbers to bfloat16")


@pytest.mark.parametrize("where", ["ordinary", "subnormal", "near the largest"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_stochastic_rounding_goes_to_a_neighbour_and_keeps_the_mean(dtype, where, stepper):
    """6 standard deviations: of all runs one in 500 million fails by chance."""
    if where == "subnormal" and dtype is torch.bfloat16:
        skip_what_the_interpreter_converts_wrongly(stepper)
    value, grad, lr = start(where, dtype, 8_300 if stepper == "triton" and DEVICE == "cpu" else 200_001)
    p = leaf(value)
    p.grad = grad.clone()
    gdcore.SGD([p], lr=lr, stochastic_rounding=True, seed=torch.randint(2**31, ()).item()).step()
    exact = (value.float() - lr * grad.float()).double()
    below, above = neighbours(exact, dtype)
    got = p.detach().double()
    assert ((got == below) | (got == above)).all()
    between = below < above
    gap = (above - below)[between]
    up = ((exact - below)[between] / gap).double()
    error = ((got - exact)[between] / gap).sum()
    assert between.sum() > len(value) // 2
    assert abs(error) <= 6 * (up * (1 - up)).sum().sqrt()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_stochastic_rounding_moves_by_steps_that_are_too_small(dtype):
    """An eighth of a unit a step: to nearest nothing would move. Steps are independent of each other."""
    ulp = torch.finfo(dtype).eps
    steps, n = 16, 2048
    p = leaf(torch.full((n,), 1.25, device=DEVICE, dtype=dtype))
    optimizer = gdcore.SGD([p], lr=ulp / 8, stochastic_rounding=True, maximize=True)
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    moved = (p.detach().double() - 1.25) / ulp
    mean, deviation = steps / 8, math.sqrt(steps * (1 / 8) * (7 / 8))
    assert abs(moved.mean().item() - mean) <= 6 * deviation / math.sqrt(n)
    assert abs(moved.std().item() / deviation - 1) <= 0.15


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_numbers_of_the_type_stay_what_they_are(dtype, stepper):
    """All 65,536 of them, Inf and NaN among them, with a gradient of zero."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).to(DEVICE)
    if stepper == "triton" and DEVICE == "cpu":  # the interpreter does not convert subnormal numbers to bfloat16
        normal_or_not_finite = ~(every.float().abs() < torch.finfo(dtype).tiny) | (every == 0)
        every = every[normal_or_not_finite][::7]
    p = leaf(every)
    p.grad = torch.zeros_like(p)
    gdcore.SGD([p], lr=1.0, stochastic_rounding=True).step()
    assert_same(p.detach(), every)


def test_float16_subnormals_stay_what_they_are():
    """A million roundings of exact values: not one by chance."""
    n = 1_000_000 if DEVICE == "cuda" or gdcore.backends.chosen() != "triton" else 10_000  # kernels/: the worst case
    every = ((torch.arange(n, device=DEVICE) % 2048 - 1024) * 2.0**-24).half()
    p = leaf(every)
    p.grad = torch.zeros_like(p)
    gdcore.SGD([p], lr=1.0, stochastic_rounding=True).step()
    assert (p != every).sum().item() == 0


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_is_no_number_or_too_large_rounds_as_to_nearest(dtype):
    largest = torch.finfo(dtype).max
    p = leaf(torch.tensor([1.0, 1.0, 1.0, largest, -largest, largest, -largest] * 300, device=DEVICE, dtype=dtype))
    g = [math.nan, math.inf, -math.inf, -largest, largest, 0.0, 0.0] * 300
    p.grad = torch.tensor(g, device=DEVICE, dtype=dtype)
    exact = (p.detach().float() - p.grad.float()).to(dtype)
    gdcore.SGD([p], lr=1.0, stochastic_rounding=True).step()
    assert_same(p.detach(), exact)


def rounded(seed, steps=2, sizes=(2048 + 260, 300)):
    params = [leaf(torch.ones(n, device=DEVICE, dtype=torch.bfloat16)) for n in sizes]
    optimizer = gdcore.SGD(params, lr=2.0**-9, stochastic_rounding=True, seed=seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    return [p.detach() for p in params]


def test_a_seed_repeats_bit_for_bit_and_another_does_not():
    first = rounded(5)
    assert_same(first, rounded(5))
    assert not torch.equal(first[0], rounded(6)[0])


def test_tensors_chunks_and_steps_have_their_own_random_numbers():
    first, second = rounded(1, steps=1)
    assert not torch.equal(first[:300], second)
    assert not torch.equal(first[:260], first[2048:])
    ups = first != 1
    assert 0.3 < ups[:256].float().mean().item() < 0.7
    assert not torch.equal(ups[:256], ups[256:512])


def test_the_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    rounded(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("zero_grad", [False, True])
def test_momentum_that_begins_after_rounded_steps_starts_with_the_gradient(zero_grad, monkeypatch):
    """Fresh memory holds NaN: a first step that reads its momentum shows."""
    empty_like = torch.empty_like

    def poisoned(*args, **options):
        return empty_like(*args, **options).fill_(math.nan)

    p = leaf(torch.ones(300, device=DEVICE, dtype=torch.bfloat16))
    optimizer = gdcore.SGD([p], lr=0.5, stochastic_rounding=True, zero_grad=zero_grad)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.5
    p.grad = torch.ones_like(p)
    monkeypatch.setattr(torch, "empty_like", poisoned)
    optimizer.step()
    assert torch.equal(p, torch.zeros_like(p))
    assert torch.equal(optimizer.state[p]["momentum_buffer"], torch.ones_like(p))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_momentum_of_rounded_parameters_has_their_dtype(dtype):
    """It costs no memory beside torch's; loaded float32 momentum stays float32."""
    p = leaf(normal(30, dtype=dtype))
    optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9, stochastic_rounding=True)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].dtype is dtype


# Gradients set to zero.


@pytest.mark.parametrize(
    ("stepper", "case"),
    thinned(STEPPERS, zip(OPTIONS), lambda case: case not in ("momentum", "maximize", "clipped", "masters")),
    indirect=["stepper"],
)
def test_zero_grad_steps_as_without_it_and_leaves_zeros(case):
    options = OPTIONS[case]
    params, optimizer = made(options, zero_grad=True)
    twins = [leaf(p) for p in params]
    twin = gdcore.SGD(twins, lr=0.1, **options)
    for step in range(3):
        grads = [None if i == step else normal(*p.shape, dtype=p.dtype) for i, p in enumerate(params)]
        give(params, grads), give(twins, grads)
        held = [p.grad for p in params]
        optimizer.step(), twin.step()
        for p, grad in zip(params, held, strict=True):
            assert p.grad is grad
            assert grad is None or grad.count_nonzero() == 0
    assert_same(snapshot(optimizer, params)[0], snapshot(twin, twins)[0])
    for p, q in zip(params, twins, strict=True):
        assert_same(dict(optimizer.state[p]), dict(twin.state[q]))


def test_zero_grad_also_where_the_step_is_refused():
    params, optimizer = made({"momentum": 0.9, "max_norm": 1.0}, zero_grad=True)
    before = snapshot(optimizer, params)
    give(params, [torch.full_like(p, math.inf) for p in params])
    optimizer.found_inf = torch.ones((), device=DEVICE)
    optimizer.step()
    assert_same(snapshot(optimizer, params), before)
    assert all(p.grad.count_nonzero() == 0 for p in params)


def test_zero_grad_writes_the_gradient_and_nothing_beside_it():
    """Of a gradient that is every other column of something, only those columns; NaN becomes zero too."""
    p = leaf(normal(30, 7))
    wide = torch.full((30, 14), 3.0, device=DEVICE)
    p.grad = wide[:, ::2]
    p.grad[3, 3] = math.nan
    gdcore.SGD([p], lr=0.1, zero_grad=True).step()
    assert wide[:, ::2].count_nonzero() == 0
    assert (wide[:, 1::2] == 3).all()


def test_zero_grad_accumulates_afresh_and_frees_nothing():
    """The training loop needs no optimizer.zero_grad()."""
    p = leaf(normal(20))
    q = leaf(p)
    a, b = gdcore.SGD([p], lr=0.1, momentum=0.9, zero_grad=True), torch.optim.SGD([q], lr=0.1, momentum=0.9)
    for _ in range(4):
        x = normal(20)
        b.zero_grad()
        (p * x).square().sum().backward(), (q * x).square().sum().backward()
        a.step(), b.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_autograd_notices_gradients_that_were_zeroed():
    """A gradient saved for a backward pass is not silently replaced by zeros."""
    p = leaf(normal(20))
    p.grad = normal(20)
    scale = torch.ones((), device=DEVICE, requires_grad=True)
    x = torch.ones(20, device=DEVICE, requires_grad=True)
    loss = (p.grad * scale * x).sum()
    gdcore.SGD([p], lr=0.1, zero_grad=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("hyper", [{}, {"weight_decay": 0.1}, {"maximize": True}], ids=str)
def test_gradients_are_left_alone_without_zero_grad(hyper, foreach):
    """With nesterov torch's own foreach functions add the momentum to the gradient itself."""
    p = leaf(normal(50))
    g = normal(50)
    p.grad = g.clone()
    optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9, nesterov=True, foreach=foreach, **hyper)
    for _ in range(2):
        optimizer.step()
        assert torch.equal(p.grad, g)


# Refusals.


@pytest.mark.parametrize("max_norm", [-1.0, -1e-9, -math.inf, math.nan], ids=str)
def test_refuses_a_max_norm_that_is_none(max_norm):
    with pytest.raises(ValueError, match="max_norm"):
        gdcore.SGD([leaf(normal(2))], lr=0.1, max_norm=max_norm)


@pytest.mark.parametrize("name", ["master_weights", "stochastic_rounding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_refuses_half_precision_options_without_half_precision(name, dtype):
    with pytest.raises(ValueError, match=rf"{name}.*{dtype}"):
        gdcore.SGD([leaf(normal(2, dtype=dtype))], lr=0.1, **{name: True})
    gdcore.SGD([leaf(normal(2, dtype=dtype)), leaf(normal(2, dtype=torch.bfloat16))], lr=0.1, **{name: True})


def test_refuses_masters_and_stochastic_rounding_together():
    with pytest.raises(ValueError, match="master_weights and stochastic_rounding"):
        gdcore.SGD([leaf(normal(2, dtype=torch.float16))], lr=0.1, master_weights=True, stochastic_rounding=True)


@pytest.mark.parametrize(
    "option", [{"max_norm": 1.0}, {"master_weights": True}, {"stochastic_rounding": True}, {"zero_grad": True}], ids=str
)
def test_refuses_what_cannot_be_differentiated(option):
    with pytest.raises(RuntimeError, match=f"differentiable.*{next(iter(option))}"):
        gdcore.SGD([leaf(normal(2, dtype=torch.float16))], lr=0.1, differentiable=True, **option)


def test_a_step_that_raises_changes_nothing():
    """Neither parameters, state nor gradients, also of the tensors before the one that cannot be stepped."""
    params, optimizer = made({"momentum": 0.9, "max_norm": 1.0, "master_weights": True}, zero_grad=True)
    give(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    give(params, [torch.ones_like(p) for p in params])
    optimizer.state[params[1]]["momentum_buffer"] = torch.zeros(5, device=DEVICE)
    before = snapshot(optimizer, params)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert_same(snapshot(optimizer, params), before)
    assert all((p.grad == 1).all() for p in params)
