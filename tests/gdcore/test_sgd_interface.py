"""gdcore.SGD where torch.optim.SGD is expected: errors, hooks, closures, groups, schedulers, saving, odd tensors."""

import copy
import io
import itertools
import pickle
from collections import defaultdict

import pytest
import torch
import torch.optim.optimizer as torch_hooks
from torch.optim import lr_scheduler

import gdcore
from sgd_support import Race, assert_same, loop, parameter, poisoned_memory, thinned, twin
from support import DEVICE, DTYPES

common = pytest.importorskip("torch.testing._internal.common_optimizers", reason="needs expecttest")
(INFO,) = (info for info in common.optim_db if info.optim_cls is torch.optim.SGD)
ERRORS = {case.optimizer_error_input.desc: case for case in INFO.optim_error_inputs_func("cpu", torch.float32)}
NAMES = ["cpu", "triton", "reference"] if DEVICE == "cpu" else ["triton", "reference"]


@pytest.fixture(params=NAMES)
def backend(request):
    """Every path that a step can take."""
    with gdcore.use_backend(request.param), poisoned_memory():
        yield request.param


def pair(*shapes, dtype=torch.float32, **options):
    """Ours and stock over equal parameters with equal gradients: (params, optimizer) twice."""
    p = [parameter(*shape, dtype=dtype) for shape in shapes]
    q = [twin(t) for t in p]
    return (p, gdcore.SGD(p, **copy.deepcopy(options))), (q, loop(q, **copy.deepcopy(options)))


def new_gradients(p, q):
    for a, b in zip(p, q, strict=True):
        a.grad, b.grad = (g := torch.randn(a.shape, device=DEVICE).to(a.dtype)), g.clone()


def outcome(function):
    """The error of a call, as (type, message); None where it does not raise."""
    try:
        function()
    except Exception as error:
        return type(error), str(error)
    return None


def groups_of(state_dict):
    """Without stock's choice between its own implementations."""
    return [{k: v for k, v in group.items() if k not in ("foreach", "fused")} for group in state_dict["param_groups"]]


# Construction.


@pytest.mark.parametrize("case", ERRORS)
def test_pytorchs_error_inputs(case):
    case = ERRORS[case]
    inputs = case.optimizer_error_input
    context = pytest.warns if issubclass(case.error_type, Warning) else pytest.raises
    with context(case.error_type, match=case.error_regex):
        gdcore.SGD([parameter(1, 1)] if inputs.params is None else inputs.params, **inputs.kwargs)


WRONG = {
    "lr": -0.1,
    "momentum": -0.5,
    "weight_decay": -1.0,
    "nesterov": True,
    "fused": True,
    "foreach": True,
    "differentiable": True,
    "dampening": 0.5,
}


@pytest.mark.parametrize("first", WRONG)
def test_the_first_of_two_errors_is_stocks(first):
    p = parameter(2)
    for second in WRONG:
        options = {first: WRONG[first], second: WRONG[second]}
        errors = [outcome(lambda make=make: make([p], **options)) for make in (gdcore.SGD, torch.optim.SGD)]  # noqa: B023
        assert errors[0] == errors[1], second


REFUSED = {
    "no parameters": ([], {}),
    "a tensor": (torch.ones(2), {}),
    "numbers": ([1.0], {}),
    "a non-leaf": ([torch.ones(2, requires_grad=True) * 2], {}),
    "a negative tensor lr": ([torch.ones(2)], {"lr": torch.tensor(-1.0)}),
    "lr of two elements": ([torch.ones(2)], {"lr": torch.ones(2)}),
    "lr of no element": ([torch.ones(2)], {"lr": torch.ones(0)}),
    "a negative tensor decay": ([torch.ones(2)], {"weight_decay": torch.tensor(-1.0)}),
    "lr that is text": ([torch.ones(2)], {"lr": "0.1"}),
    "nesterov with dampening": ([torch.ones(2)], {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    "an unknown group key": ([{"weights": [torch.ones(2)]}], {}),
    "a set": ([{"params": {torch.ones(2)}}], {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_stock_refuses(case):
    params, options = REFUSED[case]
    errors = [outcome(lambda make=make: make(params, **options)) for make in (gdcore.SGD, torch.optim.SGD)]
    assert errors[0] == errors[1]
    assert errors[0] is not None


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'betas'"):
        gdcore.SGD([parameter(2)], betas=0.9)


def test_options_by_position_defaults_and_groups_are_stocks():
    p = parameter(2)
    ours, stock = (make([p], 0.1, 0.9, 0.0, 0.2, True) for make in (gdcore.SGD, torch.optim.SGD))
    assert ours.defaults == stock.defaults
    assert ours.param_groups == stock.param_groups
    assert gdcore.SGD([p]).defaults == torch.optim.SGD([p]).defaults
    assert isinstance(ours, torch.optim.SGD)
    with pytest.raises(TypeError):
        gdcore.SGD([p], 0.1, 0.9, 0.0, 0.2, True, True)


@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.1, "momentum": 0.9}, {"foreach": True}, {"fused": True}, {"differentiable": True}], ids=str
)
def test_repr_is_stocks(options):
    params = [{"params": [parameter(2)]}, {"params": [parameter(2)], "lr": 0.3}]
    assert repr(gdcore.SGD(params, **options)) == repr(torch.optim.SGD(params, **options))


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}], ids=str)
def test_stocks_switches_change_nothing(options, backend):
    (p, ours), (q, stock) = pair((5,), (3, 2), lr=0.1, momentum=0.9, weight_decay=0.1)
    ours = gdcore.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, **options)
    for _ in range(3):
        new_gradients(p, q)
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b)


def test_parameters_by_name(backend):
    model = torch.nn.Linear(3, 2, device=DEVICE)
    twin_model = copy.deepcopy(model)
    ours, stock = gdcore.SGD(model.named_parameters(), lr=0.1), loop(twin_model.named_parameters(), lr=0.1)
    x = torch.randn(4, 3, device=DEVICE)
    for m, o in ((model, ours), (twin_model, stock)):
        m(x).sum().backward()
        o.step()
    assert_same(model.weight, twin_model.weight)
    assert groups_of(ours.state_dict()) == groups_of(stock.state_dict())
    assert ours.param_groups[0]["param_names"] == ["weight", "bias"]


# Hooks and closures.


def calls(make, register):
    """What hooks and closure see, in order."""
    p, log = parameter(3), []
    optimizer = make([p], lr=0.1)

    def hook(which):
        def log_call(o, args, kwargs):
            log.append((which, o is optimizer, args[0] is optimizer, len(args), list(kwargs), p.sum().item()))

        return log_call

    p.grad.fill_(1)
    optimizer.register_step_pre_hook(hook("pre"))
    optimizer.register_step_post_hook(hook("post"))
    register(torch_hooks.register_optimizer_step_pre_hook(hook("global pre")))
    register(torch_hooks.register_optimizer_step_post_hook(hook("global post")))
    for call in (
        lambda: optimizer.step(),
        lambda: optimizer.step(lambda: log.append("closure")),
        lambda: optimizer.step(closure=lambda: log.append("closure")),
    ):
        with torch.no_grad():
            p.copy_(torch.tensor([1.0, 2.0, 3.0]))
        call()
    return log


def test_hooks_are_called_as_stock_calls_them(backend):
    logs = []
    for make in (gdcore.SGD, loop):
        handles = []
        try:
            logs.append(calls(make, handles.append))
        finally:
            for handle in handles:
                handle.remove()
    assert logs[0] == logs[1]


def test_hooks_can_be_removed(backend):
    p, log = parameter(3), []
    optimizer = gdcore.SGD([p], lr=0.1)
    handle = optimizer.register_step_post_hook(lambda *_: log.append("post"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert log == ["post"]


@pytest.mark.parametrize("how", ["by position", "by name"])
def test_a_hook_may_give_the_closure(how, backend):
    optimizer = gdcore.SGD([parameter(3)], lr=0.1)

    def give(optimizer, args, kwargs):
        return ((args[0], lambda: 7), {}) if how == "by position" else (args, {"closure": lambda: 7})

    optimizer.register_step_pre_hook(give)
    assert optimizer.step() == 7


def test_a_hook_may_replace_the_closure(backend):
    optimizer = gdcore.SGD([parameter(3)], lr=0.1)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 2 * args[1]()), kwargs))
    assert optimizer.step(lambda: 4) == 8


def test_a_hook_that_returns_something_else_is_refused(backend):
    p = parameter(3)
    optimizer, start = gdcore.SGD([p], lr=0.1), p.detach().clone()
    optimizer.register_step_pre_hook(lambda o, args, kwargs: 3)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()
    assert torch.equal(p, start)


def test_a_hook_may_change_gradients_and_groups(backend):
    (p, ours), (q, stock) = pair((3,), lr=0.1, momentum=0.9)

    def change(optimizer, args, kwargs):
        optimizer.param_groups[0]["lr"] *= 0.5
        for t in optimizer.param_groups[0]["params"]:
            t.grad = t.grad * 2

    for optimizer in (ours, stock):
        optimizer.register_step_pre_hook(change)
    for _ in range(3):
        ours.step(), stock.step()
        assert_same(p[0], q[0])


def test_a_subclass_may_override_step(backend):
    class Noisy(gdcore.SGD):
        def step(self, closure=None):
            steps.append(1)
            return super().step(closure)

    steps = []
    (p, _), (q, stock) = pair((3,), lr=0.1)
    noisy = Noisy(p, lr=0.1)
    assert noisy.step(lambda: 5) == 5
    stock.step()
    assert_same(p[0], q[0])
    assert steps == [1]


def test_closures_evaluate_with_gradients_on(backend):
    (p, ours), (q, stock) = pair((3,), lr=0.1, momentum=0.9)
    for t, optimizer in ((p[0], ours), (q[0], stock)):

        def closure(t=t, optimizer=optimizer):
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = (t * t).sum()
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [optimizer.step(closure) for _ in range(4)]
            assert not torch.is_grad_enabled()
        assert losses[0] > losses[-1]
    assert_same(p[0], q[0])


def test_a_closure_may_add_a_group_and_replace_memory(backend):
    (p, ours), (q, stock) = pair((3,), lr=0.1, momentum=0.9)
    late = parameter(4)
    twins = {ours: late, stock: twin(late)}
    ours.step(), stock.step()
    for t, optimizer in ((p[0], ours), (q[0], stock)):

        def closure(t=t, optimizer=optimizer):
            optimizer.add_param_group({"params": [twins[optimizer]], "lr": 0.5})
            t.data = t.data * 2
            t.grad = torch.ones_like(t)

        optimizer.step(closure)
    assert_same(p[0], q[0])
    assert_same(late, twins[stock])


# Groups.


def test_groups_added_between_steps(backend):
    race = Race(
        [torch.randn(3, device=DEVICE), torch.randn(4, device=DEVICE)],
        [([0], {}), ([1], {"lr": 0.2})],
        lr=0.1,
        momentum=0.9,
    )
    for size in (5, 2049, 6):
        race.step([torch.randn_like(t) for t in race.params[0]])
        new = torch.randn(size, device=DEVICE).half()
        for params, optimizer, dtype in zip(
            race.params, race.optimizers, (new.dtype, new.dtype, torch.float64), strict=True
        ):
            params.append(new.clone().to(dtype).requires_grad_())
            optimizer.add_param_group({"params": params[-1:], "lr": 0.3, "momentum": 0.5, "weight_decay": 0.1})
    for _ in range(2):
        race.step([torch.randn_like(t) for t in race.params[0]])


def test_groups_edited_by_hand(backend):
    """Parameters put in, taken out and put into another order, groups exchanged: state stays with its parameter."""
    race = Race(
        [torch.randn(n, device=DEVICE) for n in (3, 4, 5, 6)], [([0, 1], {}), ([2], {"lr": 0.5})], lr=0.1, momentum=0.9
    )

    def step():
        here = {id(t) for group in race.ours.param_groups for t in group["params"]}
        race.step([torch.randn_like(p) if id(p) in here else None for p in race.params[0]])

    step()
    for edit in (
        lambda params, o: o.param_groups[0]["params"].reverse(),
        lambda params, o: o.param_groups[1]["params"].append(params[3]),
        lambda params, o: o.param_groups.reverse(),
        lambda params, o: o.param_groups[0]["params"].pop(0),
        lambda params, o: o.param_groups[1].update(params=[params[2], params[0]]),
        lambda params, o: o.param_groups.__setitem__(0, {**o.param_groups[0], "lr": 0.7}),
        lambda params, o: o.param_groups.pop(),
    ):
        for params, optimizer in zip(race.params, race.optimizers, strict=True):
            edit(params, optimizer)
        step()
        step()


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate:UserWarning")
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.5}, {"momentum": 0.9, "dampening": 0.3}], ids=str)
def test_a_parameter_that_stands_twice(options, backend):
    (p, _), (q, _) = pair((4,), (3,))
    ours, stock = gdcore.SGD([p[0], p[1], p[0]], lr=0.1, **options), loop([q[0], q[1], q[0]], lr=0.1, **options)
    for _ in range(3):
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("moment", ["from the start", "after a step"])
def test_two_parameters_over_one_memory(moment, backend):
    (p, ours), (q, stock) = pair((4,), (4,), (3,), lr=0.1, momentum=0.9, weight_decay=0.5)
    if moment == "after a step":
        ours.step(), stock.step()
    p[1].data, q[1].data = p[0].data, q[0].data
    if moment == "from the start":
        ours = gdcore.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5)
        assert any(name == "stock" for name, _ in ours._steppers), "programs of one launch would race"
    for _ in range(3):
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b)


def test_parameters_that_overlap(backend):
    """The order of their updates matters, and is that in which they stand."""
    bases = [(base := torch.randn(30, device=DEVICE)), base.clone()]
    slices = [slice(0, 10), slice(2, 18, 2), slice(4, 14)]
    p, q = ([base[s].detach().requires_grad_() for s in slices] for base in bases)
    ours, stock = gdcore.SGD(p, lr=0.1, weight_decay=0.5), loop(q, lr=0.1, weight_decay=0.5)
    for _ in range(2):
        new_gradients(p, q)
        ours.step(), stock.step()
        assert_same(*bases)


# Schedulers.

SCHEDULERS = {f"optim_db {i}": makers for i, makers in enumerate(INFO.scheduler_inputs)} | {
    "one cycle": [lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=8)],
    "cyclic": [lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.5, step_size_up=3)],
    "cosine": [lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3)],
    "lambda": [lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch))],
    "sequential": [
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.5)], [3]
        )
    ],
}


@pytest.mark.parametrize(
    ("backend", "case", "tensor_lr"),
    thinned(
        NAMES,
        itertools.product(SCHEDULERS, [False, True]),
        lambda case, tensor_lr: case in ("one cycle", "cyclic") or tensor_lr == (list(SCHEDULERS).index(case) % 2 == 0),
    ),
    indirect=["backend"],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler:UserWarning", "ignore::DeprecationWarning")
def test_schedulers(case, tensor_lr, backend):
    lr = torch.tensor(0.3, device=DEVICE) if tensor_lr else 0.3
    (p, ours), (q, stock) = pair((4,), lr=lr, momentum=0.9)
    schedulers = [[make(optimizer) for make in SCHEDULERS[case]] for optimizer in (ours, stock)]
    for step in range(5):
        new_gradients(p, q)
        ours.step(), stock.step()
        assert_same(p[0], q[0], 1e-5)
        for both in zip(*schedulers, strict=True):
            for scheduler in both:
                if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                    scheduler.step(float(step))
                else:
                    scheduler.step()
        assert float(ours.param_groups[0]["lr"]) == pytest.approx(float(stock.param_groups[0]["lr"]))
    if tensor_lr:
        assert isinstance(ours.param_groups[0]["lr"], torch.Tensor)


# Saving and copying.


def assert_same_state_dict(ours, stock):
    assert groups_of(ours) == groups_of(stock)
    assert ours["state"].keys() == stock["state"].keys()
    for i, entry in stock["state"].items():
        assert ours["state"][i].keys() == entry.keys()
        for name, value in entry.items():
            assert_same(ours["state"][i][name], value, 1e-6 if value.dtype.itemsize > 2 else 2e-2)


@pytest.mark.parametrize(
    ("backend", "dtype", "options"),
    thinned(
        NAMES,
        itertools.product(DTYPES, [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "maximize": True}]),
        lambda dtype, options: dtype is torch.float32 or (dtype is torch.bfloat16 and "nesterov" in options),
    ),
    indirect=["backend"],
    ids=str,
)
def test_a_run_changes_hands(dtype, options, backend):
    """Ours, stock, ours again, by way of a file; beside it stock all along."""
    (p, ours), (q, stock) = pair((4,), (3, 2), (2,), dtype=dtype, lr=0.1, weight_decay=0.1, **options)
    p[2].grad = q[2].grad = None
    tolerance = 1e-6 if dtype.itemsize > 2 else 3e-2
    current = ours
    for make in (gdcore.SGD, loop, gdcore.SGD, gdcore.SGD, loop):
        file = io.BytesIO()
        torch.save(current.state_dict(), file)
        file.seek(0)
        current = make(p, lr=9.0)
        current.load_state_dict(torch.load(file, weights_only=True))
        assert current.param_groups[0]["lr"] == 0.1
        for _ in range(2):
            new_gradients(p[:2], q[:2])
            current.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b, tolerance)
    assert groups_of(current.state_dict()) == groups_of(stock.state_dict())


def test_state_dicts_are_equal(backend):
    (_, ours), (_, stock) = pair((4,), (3, 2), lr=0.1, momentum=0.9)
    assert_same_state_dict(ours.state_dict(), stock.state_dict())
    for i in (0, 1, None, 1):
        for optimizer in (ours, stock):
            params = optimizer.param_groups[0]["params"]
            for j, t in enumerate(params):
                t.grad = torch.ones_like(t) if j == i else None
            optimizer.step()
        assert_same_state_dict(ours.state_dict(), stock.state_dict())


@pytest.mark.parametrize(
    ("backend", "how", "dtype"),
    thinned(
        NAMES,
        itertools.product(["pickle", "deepcopy", "torch.save"], [torch.float32, torch.bfloat16]),
        lambda how, dtype: dtype is torch.float32 or how == "deepcopy",
    ),
    indirect=["backend"],
    ids=str,
)
def test_copies_go_on_alone(how, dtype, backend):
    (p, ours), (q, stock) = pair((4,), (3, 2), dtype=dtype, lr=0.1, momentum=0.9, dampening=0.5)
    ours.step(), stock.step()
    before = [t.detach().clone() for t in p]
    if how == "deepcopy":
        other = copy.deepcopy(ours)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(ours))
    else:
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    others = other.param_groups[0]["params"]
    for _ in range(2):
        new_gradients(others, q)
        other.step(), stock.step()
    for a, b, old, mine in zip(others, q, before, p, strict=True):
        assert_same(a, b, 1e-6 if dtype is torch.float32 else 2e-2)
        assert torch.equal(mine, old)


def test_a_model_and_its_optimizer_are_copied_together(backend):
    model = torch.nn.Linear(3, 2, device=DEVICE)
    optimizer = gdcore.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3, device=DEVICE)).sum().backward()
    optimizer.step()
    model2, optimizer2 = copy.deepcopy((model, optimizer))
    assert optimizer2.param_groups[0]["params"][0] is model2.weight
    before = model.weight.detach().clone()
    model2(torch.ones(1, 3, device=DEVICE)).sum().backward()
    optimizer2.step()
    assert torch.equal(model.weight, before)
    assert not torch.equal(model2.weight, before)


def test_a_copy_has_no_hooks_as_stocks_has_none(backend):
    (_, ours), (_, stock) = pair((4,), lr=0.1)
    for optimizer in (ours, stock):
        optimizer.register_step_post_hook(print)
    assert len(copy.deepcopy(ours)._optimizer_step_post_hooks) == len(copy.deepcopy(stock)._optimizer_step_post_hooks)


def test_hooks_of_loading_and_saving(backend):
    """They see, change and replace what is loaded and saved, in stock's order."""
    logs = []
    for make in (gdcore.SGD, loop):
        p, log = parameter(3, dtype=torch.bfloat16), []
        p.grad.fill_(1)
        optimizer = make([p], lr=0.1, momentum=0.9)
        optimizer.step()
        optimizer.register_state_dict_pre_hook(lambda o, log=log: log.append("save pre"))
        optimizer.register_state_dict_post_hook(lambda o, d, log=log: log.append("save post") or {**d, "extra": 1})
        saved = optimizer.state_dict()

        def replace(o, d, log=log):
            log.append(("load pre", "extra" in d))
            groups = [{**d["param_groups"][0], "lr": 0.7}]
            return {"state": {0: {"momentum_buffer": torch.full((3,), 2.5, device=DEVICE)}}, "param_groups": groups}

        optimizer.register_load_state_dict_pre_hook(replace)
        optimizer.register_load_state_dict_post_hook(
            lambda o, log=log: log.append(("load post", o.param_groups[0]["lr"]))
        )
        optimizer.load_state_dict(saved)
        log.append([float(x) for x in optimizer.state[p]["momentum_buffer"]])
        logs.append(
            (
                log,
                len(optimizer._optimizer_load_state_dict_pre_hooks),
                len(optimizer._optimizer_load_state_dict_post_hooks),
            )
        )
    assert logs[0] == logs[1]


def test_a_hook_after_loading_sees_the_dtype_that_stays(backend):
    p, seen = parameter(3, dtype=torch.bfloat16), []
    optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.state[p]["momentum_buffer"].dtype))
    state = {0: {"momentum_buffer": torch.ones(3, device=DEVICE)}}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    assert seen == [torch.float32]


WRONG_DICTS = {
    "another number of groups": lambda d: {**d, "param_groups": d["param_groups"] * 2},
    "another number of parameters": lambda d: {**d, "param_groups": [{**d["param_groups"][0], "params": [0, 1, 2]}]},
}


@pytest.mark.parametrize("case", WRONG_DICTS)
def test_a_state_dict_that_does_not_fit_is_refused_as_stock_refuses(case, backend):
    (p, ours), (_, stock) = pair((3,), (2,), lr=0.1, momentum=0.9)
    ours.step(), stock.step()
    momentum = ours.state[p[0]]["momentum_buffer"]
    wrong = WRONG_DICTS[case](ours.state_dict())
    errors = [outcome(lambda o=o: o.load_state_dict(wrong)) for o in (ours, stock)]
    assert errors[0] == errors[1]
    assert errors[0][0] is ValueError
    assert ours.state[p[0]]["momentum_buffer"] is momentum
    assert not ours._optimizer_load_state_dict_pre_hooks
    assert not ours._optimizer_load_state_dict_post_hooks


def test_the_state_is_a_dictionary_as_stocks(backend):
    (p, ours), (q, stock) = pair((3,), (2,), lr=0.1, momentum=0.9)
    ours.step(), stock.step()
    for t, optimizer in ((p, ours), (q, stock)):
        assert list(optimizer.state) == t
        assert len(optimizer.state.copy()) == len(copy.copy(optimizer.state)) == 2
        assert len(copy.deepcopy(optimizer.state)) == len(dict(optimizer.state)) == len({**optimizer.state}) == 2
        assert optimizer.state["unknown"] == {}
        assert t[0] in optimizer.state


NOTES = {"text": "hello", "number": 3, "tensor": torch.tensor(4.0), "list": [1]}


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_notes_in_the_state_are_kept(dtype, note, backend):
    (p, ours), (q, stock) = pair((3,), dtype=dtype, lr=0.1, momentum=0.9, weight_decay=0.1)
    for t, optimizer in ((p[0], ours), (q[0], stock)):
        optimizer.state[t]["note"] = NOTES[note]
        optimizer.step(), optimizer.step()
    assert_same(p[0], q[0], 2e-2)
    assert ours.state[p[0]]["note"] is NOTES[note]


# Memory that is exchanged under the optimizer.


def half(t):
    t.grad = None
    t.data = t.data.half()


EXCHANGED = {
    "a copy": lambda t: setattr(t, "data", t.data.clone()),
    "other values": lambda t: setattr(t, "data", t.data * 2),
    "half precision": half,
    "another order": lambda t: setattr(t, "data", t.data.t().contiguous().t()),
    "another order of the same memory": lambda t: setattr(t, "data", t.data.t()),
    "gaps": lambda t: setattr(t, "data", torch.stack([t.data, t.data], 2)[..., 0]),
}


@pytest.mark.parametrize(
    ("backend", "case", "options"),
    thinned(
        NAMES,
        itertools.product(EXCHANGED, [{}, {"momentum": 0.9, "weight_decay": 0.1}]),
        lambda case, options: options or case in ("a copy", "another order of the same memory"),
    ),
    indirect=["backend"],
    ids=str,
)
def test_parameters_memory_is_exchanged(case, options, backend):
    (p, ours), (q, stock) = pair((3, 3), (2,), lr=0.1, **options)
    for _ in range(2):
        ours.step(), stock.step()
        EXCHANGED[case](p[0]), EXCHANGED[case](q[0])
        new_gradients(p, q)
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b, 1e-6 if case != "half precision" else 1e-2)


def test_a_parameter_of_another_size(backend):
    """Pruned, with everything that belongs to it."""
    (p, ours), (q, stock) = pair((4,), (3,), lr=0.1, momentum=0.9)
    ours.step(), stock.step()
    for t, optimizer in ((p[0], ours), (q[0], stock)):
        momentum = optimizer.state[t]["momentum_buffer"]
        t.grad, t.data = None, t.data[::2].clone()
        optimizer.state[t]["momentum_buffer"] = momentum[::2].clone()
    for _ in range(2):
        new_gradients(p, q)
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b)


def set_data(state, t):
    state[t]["momentum_buffer"].data = torch.full_like(t, 3.0)


BUFFERS = {
    "replaced": lambda state, t: state[t].update(momentum_buffer=torch.full_like(t.detach(), 3.0)),
    "written": lambda state, t: state[t]["momentum_buffer"].fill_(3.0),
    "memory exchanged": set_data,
    "removed": lambda state, t: state[t].pop("momentum_buffer"),
    "set to None": lambda state, t: state[t].update(momentum_buffer=None),
    "entry removed": lambda state, t: state.pop(t),
    "entry deleted": lambda state, t: state.__delitem__(t),
    "entry replaced": lambda state, t: state.__setitem__(t, {"momentum_buffer": torch.full_like(t.detach(), 3.0)}),
    "entry merged in": lambda state, t: state.__ior__({t: {"momentum_buffer": torch.full_like(t.detach(), 3.0)}}),
    "updated": lambda state, t: state.update({t: {"momentum_buffer": torch.full_like(t.detach(), 3.0)}}),
    "cleared": lambda state, t: state.clear(),
    "gapped": lambda state, t: state[t].update(momentum_buffer=torch.full_like(t.detach().repeat(2), 3.0)[::2]),
}


@pytest.mark.parametrize(
    ("backend", "case", "dtype"),
    thinned(
        NAMES,
        itertools.product(BUFFERS, [torch.float32, torch.bfloat16]),
        lambda case, dtype: dtype is torch.float32 or case in ("replaced", "entry removed"),
    ),
    indirect=["backend"],
    ids=str,
)
def test_momentum_is_exchanged(case, dtype, backend):
    (p, ours), (q, stock) = pair((5,), (3,), dtype=dtype, lr=0.1, momentum=0.9, dampening=0.5)
    for _ in range(2):
        new_gradients(p, q)
        ours.step(), stock.step()
        BUFFERS[case](ours.state, p[0]), BUFFERS[case](stock.state, q[0])
        new_gradients(p, q)
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b, 1e-5 if dtype is torch.float32 else 3e-2)


def test_momentum_kept_by_somebody_else_is_exchanged_later(backend):
    (p, ours), (q, stock) = pair((5,), lr=0.1, momentum=0.9)
    ours.step(), stock.step()
    kept, kept_stock = ours.state[p[0]], stock.state[q[0]]
    ours.step(), stock.step()
    for entry in (kept, kept_stock):
        entry["momentum_buffer"] = torch.full((5,), 3.0, device=DEVICE)
    ours.step(), stock.step()
    assert_same(p[0], q[0])


def test_a_new_state(backend):
    (p, ours), (q, stock) = pair((5,), lr=0.1, momentum=0.9, dampening=0.5)
    ours.step(), stock.step()
    ours.state, stock.state = defaultdict(dict), defaultdict(dict)
    for _ in range(2):
        new_gradients(p, q)
        ours.step(), stock.step()
        assert_same(p[0], q[0])


# Tensors that the kernels do not take.


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"maximize": True}], ids=str
)
def test_sparse_gradients(options, backend):
    """Sparse, dense and absent by turns, beside a parameter that is always dense. With nesterov stock cannot alternate."""
    (p, ours), (q, stock) = pair((4, 3), (3,), lr=0.1, **options)
    kinds = ["sparse", "sparse", "absent", "sparse"]
    if "nesterov" not in options:
        kinds = ["dense", *kinds, "dense"]
    for kind in kinds:
        new_gradients(p, q)
        for t in (p[0], q[0]):
            t.grad = {"dense": t.grad, "sparse": t.grad.to_sparse(1), "absent": None}[kind]
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b)


def test_sparse_gradients_of_an_embedding(backend):
    ours_model = torch.nn.Embedding(6, 3, sparse=True, device=DEVICE)
    stock_model = copy.deepcopy(ours_model)
    ours, stock = (
        gdcore.SGD(ours_model.parameters(), lr=0.1, momentum=0.9),
        loop(stock_model.parameters(), lr=0.1, momentum=0.9),
    )
    for _ in range(3):
        rows = torch.randint(6, (5,), device=DEVICE)
        for model, optimizer in ((ours_model, ours), (stock_model, stock)):
            optimizer.zero_grad()
            model(rows).square().sum().backward()
            optimizer.step()
        assert_same(ours_model.weight, stock_model.weight)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_parameters(dtype, options, backend):
    (p, ours), (q, stock) = pair((4,), (2, 3), (), dtype=dtype, lr=0.1, **options)
    real = parameter(5)
    real_q = twin(real)
    ours.add_param_group({"params": [real]}), stock.add_param_group({"params": [real_q]})
    for _ in range(3):
        new_gradients(p, q)
        ours.step(), stock.step()
        for a, b in zip([*p, real], [*q, real_q], strict=True):
            assert_same(a, b)


class Sub(torch.Tensor):
    pass


def test_tensor_subclasses(backend):
    p = torch.randn(4, device=DEVICE)
    q = p.clone().requires_grad_()
    p = p.as_subclass(Sub).requires_grad_()
    ours, stock = gdcore.SGD([p], lr=0.1, momentum=0.9), loop([q], lr=0.1, momentum=0.9)
    for _ in range(3):
        g = torch.randn(4, device=DEVICE)
        p.grad, q.grad = g.clone().as_subclass(Sub), g
        ours.step(), stock.step()
    assert_same(p.as_subclass(torch.Tensor), q)


def test_a_parameter_whose_elements_share_memory_is_refused_as_stock_refuses(backend):
    errors = []
    for make in (gdcore.SGD, loop):
        p = torch.randn(3, 1, device=DEVICE).expand(3, 4).detach().requires_grad_()
        p.grad = torch.ones(3, 4, device=DEVICE)
        errors.append(outcome(make([p], lr=0.1).step))
    assert errors[0] == errors[1]
    assert "more than one element" in errors[0][1]


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"momentum": 0.9, "nesterov": True}], ids=str)
@pytest.mark.parametrize("through", ["parameter", "lr", "weight_decay"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_gradients_through_a_differentiable_step(through, options, backend):
    """As stock's for-loop. What stock takes by itself on a GPU, foreach, raises: it changes what it has saved in place."""
    results = []
    start, factor = torch.randn(4, device=DEVICE), torch.randn(4, device=DEVICE)
    for make in (gdcore.SGD, loop):
        leaves = {
            "parameter": start.clone().requires_grad_(),
            "lr": torch.tensor(0.1, device=DEVICE, requires_grad=through == "lr"),
            "weight_decay": torch.tensor(0.5, device=DEVICE, requires_grad=through == "weight_decay"),
        }
        optimizer = make(
            [torch.nn.Parameter(start)],
            lr=leaves["lr"],
            weight_decay=leaves["weight_decay"],
            differentiable=True,
            **options,
        )
        param = leaves["parameter"].clone()
        optimizer.param_groups[0]["params"] = [param]
        for _ in range(2):
            param.grad = (factor * param).clone()
            optimizer.step()
        results.append((torch.autograd.grad(param.square().sum(), leaves[through])[0], param.detach()))
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])
    assert results[0][0].abs().sum() > 0


@pytest.mark.parametrize("name", ["master_weights", "stochastic_rounding", "max_norm", "zero_grad"])
def test_differentiable_with_what_cannot_be(name):
    with pytest.raises(RuntimeError, match=f"`differentiable` does not support `{name}`"):
        gdcore.SGD([parameter(2, dtype=torch.bfloat16)], differentiable=True, **{name: True})


def test_steps_in_inference_mode(backend):
    p, q = (torch.arange(4.0, device=DEVICE) for _ in range(2))
    with torch.inference_mode():
        p, q = p.clone(), q.clone()
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        ours, stock = gdcore.SGD([p], lr=0.1, momentum=0.9), loop([q], lr=0.1, momentum=0.9)
        ours.step(), stock.step()
        ours.step(), stock.step()
        assert_same(p, q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_default_dtype_does_not_matter(dtype, backend):
    (p, ours), (q, stock) = pair((4,), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for _ in range(2):
            ours.step(), stock.step()
    finally:
        torch.set_default_dtype(before)
    assert_same(p[0], q[0])


def test_frozen_parameters(backend):
    """Without requires_grad nothing arrives; a gradient that is there is taken all the same, as in stock."""
    (p, ours), (q, stock) = pair((4,), (3,), lr=0.1, momentum=0.9)
    for step in range(3):
        for t in (p, q):
            t[0].requires_grad_(step == 1)
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b)


def test_zero_grad(backend):
    (p, ours), (q, stock) = pair((4,), lr=0.1, momentum=0.9)
    for set_to_none in (False, True, False):
        ours.zero_grad(set_to_none), stock.zero_grad(set_to_none)
        assert (p[0].grad is None) == set_to_none
        ours.step(), stock.step()
        assert_same(p[0], q[0])
        new_gradients(p, q)


def test_the_profiler_sees_a_step(backend):
    optimizer = gdcore.SGD([parameter(3)], lr=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert "Optimizer.step#SGD.step" in {event.name for event in profile.events()}


# Steps that fail change nothing.


def shrink(optimizer, t):
    t.data = t.data[:1].clone()


def momentum(shape, **options):
    def put(optimizer, t):
        optimizer.state[t]["momentum_buffer"] = torch.ones(shape, **options)

    return put


def in_group(**changes):
    return lambda optimizer, t: optimizer.param_groups[1].update(changes)


FAILING = {
    "a gradient of another shape": (shrink, r"gradient of parameter 3 .*has shape \(3,\): it must be \(1,\)"),
    "momentum of another shape": (momentum((4,)), r"momentum_buffer of parameter 3 .*has shape \(4,\)"),
    "momentum that would broadcast": (momentum((1,)), r"momentum_buffer of parameter 3 .*has shape \(1,\)"),
    "momentum on another device": (momentum((3,), device="meta"), "momentum_buffer of parameter 3 .*is on meta"),
    "a sparse gradient and weight decay": (
        lambda optimizer, t: (in_group(weight_decay=0.1)(optimizer, t), setattr(t, "grad", t.grad.to_sparse())),
        "weight_decay",
    ),
    "no learning rate": (in_group(lr=None), None),
    "a learning rate of two elements": (in_group(lr=torch.tensor([0.1, 0.2], device=DEVICE)), None),
    "a weight decay of two elements": (in_group(weight_decay=torch.tensor([0.1, 0.2], device=DEVICE)), None),
    "a group without momentum": (lambda optimizer, t: optimizer.param_groups[1].pop("momentum"), None),
    "text for dampening": (in_group(dampening="none"), None),
}


@pytest.mark.parametrize(
    ("backend", "case", "started", "dtype"),
    thinned(
        NAMES,
        itertools.product(FAILING, [False, True], [torch.float32, torch.complex64]),
        lambda case, started, dtype: started or dtype is torch.float32,
    ),
    indirect=["backend"],
    ids=str,
)
def test_a_step_that_fails_changes_nothing(case, started, dtype, backend):
    """What is wrong belongs to the last parameter of the last group; those before it stay as they are."""
    break_it, words = FAILING[case]
    first = [parameter(3), parameter(5, dtype=torch.bfloat16), parameter(2, dtype=torch.complex64)]
    last = parameter(3, dtype=dtype)
    optimizer = gdcore.SGD([{"params": first}, {"params": [last]}], lr=0.1, momentum=0.9)
    if started:
        optimizer.step()
    break_it(optimizer, last)
    params = [*first, last]
    before = [(p.detach().clone(), p._version, p.grad.clone()) for p in params]
    state = {p: {k: v.clone() for k, v in entry.items()} for p, entry in optimizer.state.items()}
    with pytest.raises(Exception, match=words):
        optimizer.step()
    for p, (value, version, grad) in zip(params, before, strict=True):
        assert torch.equal(p, value)
        assert p._version == version
        assert p.grad.is_sparse or torch.equal(p.grad, grad)
    assert {p for p, entry in optimizer.state.items() if entry} == {p for p, entry in state.items() if entry}
    for p, entry in state.items():
        for name, value in entry.items():
            assert value.device.type == "meta" or torch.equal(optimizer.state[p][name], value)


def test_errors_call_a_parameter_by_its_name(backend):
    model = torch.nn.Linear(3, 2, device=DEVICE)
    optimizer = gdcore.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.state[model.bias]["momentum_buffer"] = torch.ones(5, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"momentum_buffer of bias \(\(2,\), torch.float32\)"):
        optimizer.step()


def test_a_mended_step_goes_on(backend):
    """After a step that failed, the next one does what the first would have done."""
    (p, ours), (q, stock) = pair((3,), (4,), lr=0.1, momentum=0.9, dampening=0.5)
    for _ in range(2):
        good = ours.state[p[1]].get("momentum_buffer")
        ours.state[p[1]]["momentum_buffer"] = torch.ones(5, device=DEVICE)
        with pytest.raises(RuntimeError):
            ours.step()
        ours.state[p[1]]["momentum_buffer"] = good
        ours.step(), stock.step()
        for a, b in zip(p, q, strict=True):
            assert_same(a, b)


def test_a_closure_that_raises(backend):
    p = parameter(3)
    optimizer, start = gdcore.SGD([p], lr=0.1, momentum=0.9), p.detach().clone()

    def closure():
        raise KeyError("data")

    with pytest.raises(KeyError, match="data"), torch.no_grad():
        optimizer.step(closure)
    assert torch.is_grad_enabled()
    assert torch.equal(p, start)
    assert not optimizer.state
