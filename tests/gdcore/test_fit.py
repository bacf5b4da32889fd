"""A whole run in one call: against the eager loop that it replaces, in float64, relative to that loop in float32."""

import itertools
import json
import pathlib
import time

import numpy as np
import pytest
import torch

import gdcore
from fit_support import METHODS, assert_as_stock, assert_bitwise, loop, on_cpu, problem
from gdcore.training import cpu
from sgd_support import laid_out
from support import DEVICE, DTYPES

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = pathlib.Path(gdcore.__file__).parent.parent / "bench" / "data"
THERMOMETER = json.loads((DATA / "thermometer.json").read_text())
LINE = json.loads((DATA / "line.json").read_text())
SHAPES = [(1, 1, None), (1, 3, 2), (7, 1, None), (100, 2, None), (100, 2, 1), (250, 5, 3), (64, 33, None), (5, 20, 4)]
OPTIONS = [
    {"momentum": momentum, "weight_decay": weight_decay, "intercept": intercept}
    for momentum, weight_decay, intercept in itertools.product((0.0, 0.9), (0.0, 0.05), (False, True))
]
each_method = pytest.mark.parametrize("method", METHODS)


def shape_id(shape):
    n, k, m = shape
    return f"{n} rows of {k} with targets ({n}{'' if m is None else f', {m}'})"


def options_id(options):
    return ", ".join(f"{name}={value}" for name, value in options.items())


def half_way(x, y):
    """A learning rate at which every direction converges, the steepest by half in each step."""
    outputs = y[0].numel()
    return 0.5 * outputs * len(x) / (2 * torch.linalg.matrix_norm(x.double(), 2).square().item() + len(x))


@each_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_error_is_at_most_twice_the_eager_loops(shape, dtype, method):
    x, y = problem(*shape, dtype)
    options = {"lr": half_way(x, y), "steps": 12}
    result = gdcore.fit(x, y, method=method, record_trajectory=True, **options)
    assert result.plan.method == method
    assert_as_stock(result, x, y, **options)


@each_method
@pytest.mark.parametrize("options", OPTIONS, ids=options_id)
@pytest.mark.parametrize("shape", [(100, 2, None), (37, 5, 3)], ids=shape_id)
def test_every_combination_of_options(shape, options, method):
    x, y = problem(*shape)
    init = torch.randn(shape[1], *y.shape[1:])
    init = (init, torch.randn(y.shape[1:])) if options["intercept"] else init
    options = {**options, "lr": half_way(x, y), "steps": 15, "init": init}
    result = gdcore.fit(x, y, method=method, record_trajectory=True, **options)
    assert_as_stock(result, x, y, **options)


@pytest.mark.parametrize("backend", ["reference", "cpu" if DEVICE == "cpu" else "triton"])
@pytest.mark.parametrize("batch_size", [None, 30], ids=["full batch", "mini-batches"])
def test_the_backend_that_was_chosen_computes(backend, batch_size):
    x, y = problem(100, 3)
    with gdcore.use_backend(backend):
        result = gdcore.fit(x, y, lr=0.1, steps=8, intercept=True, batch_size=batch_size)
    assert (result.plan.backend, result.plan.method) == (backend, "steps" if backend == "reference" else "resident")
    other = gdcore.fit(x, y, lr=0.1, steps=8, intercept=True, batch_size=batch_size)
    torch.testing.assert_close(result.coef, other.coef)
    torch.testing.assert_close(result.losses, other.losses)


@pytest.mark.parametrize("method", ["auto", "stream"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_data_larger_than_the_cache(dtype, method, every_shape_fused):
    x, y = problem(5000, 4, 2, dtype)
    options = {"lr": 0.3, "steps": 5, "momentum": 0.5, "weight_decay": 0.1, "intercept": True}
    result = gdcore.fit(x, y, method=method, record_trajectory=True, **options)
    assert result.plan.method == {"auto": "steps" if DEVICE == "cpu" else "grid", "stream": "stream"}[method]
    assert_as_stock(result, x, y, **options)


def test_a_pass_in_many_blocks_leaves_no_row_out(monkeypatch):
    from gdcore.training import Table

    x, y = problem(1000, 3)
    monkeypatch.setattr(Table, "block_bytes", property(lambda _: 16 * 37, lambda *_: None))
    for method in ("stream", "gram"):
        result = gdcore.fit(x, y, lr=0.1, steps=5, method=method, intercept=True)
        assert_as_stock(result, x, y, lr=0.1, steps=5, intercept=True)


def test_a_loss_of_many_rows_has_all_digits():
    """A dot product in float32 would be five times as far off."""
    for _ in range(4):
        x, y = torch.randn(500_000, 1, device=DEVICE), torch.rand(500_000, device=DEVICE) + 0.5
        result = gdcore.fit(x, y, lr=0.2, steps=2, method="resident" if DEVICE == "cpu" else "grid")
        limit = 3e-7 if DEVICE == "cpu" else 4e-7
        assert result.losses[0].item() == pytest.approx(y.double().square().mean().item(), rel=limit)
    assert_as_stock(result, x, y, lr=0.2, steps=2)


@pytest.mark.parametrize("dtypes", list(itertools.permutations(DTYPES, 2)), ids=lambda pair: "x {}, y {}".format(*pair))
def test_x_and_y_of_different_dtypes(dtypes):
    x, y = problem(40, 3)
    x, y = x.to(dtypes[0]), y.to(dtypes[1])
    for method in METHODS:
        result = gdcore.fit(x, y, lr=0.1, steps=6, method=method, record_trajectory=True)
        assert_as_stock(result, x, y, lr=0.1, steps=6)


@each_method
@pytest.mark.parametrize("layout", ["transposed", "gapped", "offset", "expanded"])
def test_any_strides(layout, method):
    x, y = problem(50, 4, 3)
    if layout == "expanded":
        x, y = x[:, :1].expand(50, 4), y[:, :1].expand(50, 3)
    else:
        x, y = laid_out(x, layout), laid_out(y, layout)
    for batch_size in (None, 17) if method not in ("gram", "grid") else (None,):
        options = {"lr": 0.05, "steps": 6, "intercept": True, "method": method, "batch_size": batch_size}
        result, other = gdcore.fit(x, y, **options), gdcore.fit(x.contiguous(), y.contiguous(), **options)
        if DEVICE == "cpu" or batch_size or method in ("resident", "grid"):
            assert_bitwise(result, other)
        else:  # another kernel may read them
            torch.testing.assert_close(result.losses, other.losses)
            torch.testing.assert_close(result.coef, other.coef)


COEF = [[0.5, -1.0], [2.0, 0.25], [1.5, 3.0]]
INITS = {
    "a tensor": (torch.tensor(COEF), None),
    "a wider tensor": (torch.tensor(COEF, dtype=torch.float64), None),
    "a transposed tensor": (torch.tensor(COEF).t().contiguous().t(), None),
    "a tensor of whole numbers": (torch.tensor(COEF).int(), None),
    "a tensor that requires a gradient": (torch.tensor(COEF).requires_grad_(), None),
    "an array": (np.array(COEF), None),
    "an array that cannot be written": (np.broadcast_to(np.float32(1.5), (3, 2)), None),
    "an array in another byte order": (np.array(COEF, dtype=">f4"), None),
    "an array backwards": (np.array(COEF)[::-1], None),
    "lists": (COEF, None),
    "coefficients alone in a pair": ((torch.tensor(COEF), None), None),
    "a pair": ((torch.tensor(COEF), torch.tensor([1.0, 2.0])), [1.0, 2.0]),
    "a list of a tensor and a tensor": ([torch.tensor(COEF), torch.tensor([1.0, 2.0])], [1.0, 2.0]),
    "a pair of lists": ((COEF, [1.0, 2.0]), [1.0, 2.0]),
    "an intercept alone in a pair": ((None, np.array([1.0, 2.0])), [1.0, 2.0]),
    "nothing": (None, None),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", INITS)
def test_the_start_may_be(name):
    x, y = problem(30, 3, 2)
    init, intercept = INITS[name]
    coef = init[0] if intercept is not None or isinstance(init, tuple) else init
    coef = torch.zeros(3, 2) if coef is None else torch.tensor(coef.tolist() if hasattr(coef, "tolist") else coef)
    expected = torch.cat([coef, torch.tensor([intercept or [0.0, 0.0]])]).to(DEVICE)
    result = gdcore.fit(x, y, lr=0.1, steps=2, init=init, intercept=True, record_trajectory=True)
    assert torch.equal(result.trajectory[0], expected)
    assert_as_stock(result, x, y, lr=0.1, steps=2, init=(expected[:3], expected[3]), intercept=True)


def test_the_start_of_a_single_target():
    x, y = problem(30, 2)
    for init in (torch.tensor([1.0, -2.0]), [1.0, -2.0], (1, -2), [np.float32(1), np.float32(-2)], np.array([1, -2])):
        result = gdcore.fit(x, y, lr=0.1, steps=1, init=init, record_trajectory=True)
        assert result.trajectory[0].tolist() == [1.0, -2.0]
    result = gdcore.fit(x, y, lr=0.1, steps=1, init=([1.0, -2.0], 3.0), intercept=True, record_trajectory=True)
    assert result.trajectory[0].tolist() == [1.0, -2.0, 3.0]


@each_method
@pytest.mark.parametrize("batch_size", [None, 8], ids=["full batch", "mini-batches"])
def test_no_argument_is_modified(method, batch_size):
    if method in ("gram", "grid") and batch_size:
        pytest.skip(f"{method} is for full batches")
    x, y = problem(20, 3, dtype=torch.float64)
    init = (torch.randn(3, dtype=torch.float64), torch.randn((), dtype=torch.float64))
    arguments = [x, y, *init]
    before, versions = [t.clone() for t in arguments], [t._version for t in arguments]
    result = gdcore.fit(
        x, y, lr=0.1, steps=5, momentum=0.9, init=init, intercept=True, method=method, batch_size=batch_size
    )
    result.coef.zero_(), result.intercept.zero_(), result.losses.zero_()
    assert all(torch.equal(t, old) for t, old in zip(arguments, before, strict=True))
    assert [t._version for t in arguments] == versions


@each_method
def test_autograd_takes_no_part(method):
    x, y = (t.requires_grad_() for t in problem(20, 3))
    result = gdcore.fit(x, y, lr=0.1, steps=2, init=torch.zeros(3, requires_grad=True), method=method)
    assert not any(t.requires_grad for t in (result.coef, result.losses))
    assert x.grad is None
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        assert_bitwise(gdcore.fit(x, y, lr=0.1, steps=2, method=method), result)


@each_method
def test_arrays_give_what_tensors_give(method):
    x, y = problem(30, 3, 2, device="cpu")
    options = {"lr": 0.1, "steps": 4, "method": method, "intercept": True, "device": DEVICE}
    expected = gdcore.fit(x.to(DEVICE), y.to(DEVICE), **options)
    assert_bitwise(gdcore.fit(x.numpy(), y.numpy(), **options), expected)
    assert_bitwise(gdcore.fit(x.numpy(), y, **options), expected)
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    assert_bitwise(gdcore.fit(frozen, y, **options), expected)


def test_numbers_of_other_types():
    x, y = problem(30, 3)
    expected = gdcore.fit(x, y, lr=0.125, steps=4, batch_size=7, seed=3, momentum=0.5)
    result = gdcore.fit(
        x,
        y,
        lr=torch.tensor([0.125]),
        steps=np.int64(4),
        batch_size=np.int32(7),
        seed=np.uint8(3),
        momentum=np.float32(0.5),
    )
    assert_bitwise(result, expected)


# What comes back


@each_method
@pytest.mark.parametrize("intercept", [False, True], ids=["without intercept", "with intercept"])
@pytest.mark.parametrize("m", [None, 1, 3], ids=["targets (N,)", "targets (N, 1)", "targets (N, 3)"])
def test_shapes_of_the_result(m, intercept, method):
    x, y = problem(20, 4, m)
    result = gdcore.fit(x, y, lr=0.1, steps=6, intercept=intercept, method=method, record_trajectory=True)
    outputs = () if m is None else (m,)
    assert result.coef.shape == (4, *outputs)
    assert result.losses.shape == (6,)
    assert result.trajectory.shape == (7, 4 + intercept, *outputs)
    assert torch.equal(result.trajectory[-1][:4], result.coef)
    if intercept:
        assert result.intercept.shape == outputs
        assert torch.equal(result.trajectory[-1][4], result.intercept)
    else:
        assert result.intercept is None
    assert (result.interrupted, result.suggested_lr, result.diverged_at) == (False, None, None)
    last = result.trajectory[-1].clone()
    result.coef.add_(1)
    assert torch.equal(result.trajectory[-1], last), "coef shares memory with the trajectory"


@each_method
def test_the_result_is_contiguous_and_no_part_of_anything_larger(method):
    x, y = problem(20, 4, 3)
    coef = gdcore.fit(x, y, lr=0.1, steps=6, method=method).coef
    assert coef.is_contiguous() and not coef._is_view()
    assert coef.untyped_storage().nbytes() == coef.numel() * coef.itemsize


@each_method
def test_a_trajectory_changes_nothing_and_a_run_repeats_to_the_bit(method):
    x, y = problem(50, 3)
    options = {"lr": 0.1, "steps": 300, "momentum": 0.5, "intercept": True, "method": method}
    first, second = gdcore.fit(x, y, **options), gdcore.fit(x, y, **options, record_trajectory=True)
    assert first.trajectory is None
    assert_bitwise(first, second)
    assert_bitwise(second, gdcore.fit(x, y, **options, record_trajectory=True))


@each_method
def test_a_shorter_run_is_the_beginning_of_a_longer_one(method):
    x, y = problem(50, 3)
    options = {"lr": 0.1, "momentum": 0.5, "intercept": True, "method": method, "record_trajectory": True}
    whole = gdcore.fit(x, y, steps=300, **options)
    for steps in (1, 2, 255, 256, 257):
        part = gdcore.fit(x, y, steps=steps, **options)
        assert_bitwise(part, whole, steps)
        assert torch.equal(part.trajectory[-1][:3], part.coef)


@each_method
def test_each_loss_is_from_before_its_update(method):
    x, y = problem(50, 3)
    result = gdcore.fit(x, y, lr=0.1, steps=5, method=method, record_trajectory=True)
    expected = [((x.double() @ w - y.double()) ** 2).mean() for w in result.trajectory.double()[:-1]]
    torch.testing.assert_close(result.losses.double(), torch.stack(expected), rtol=1e-6, atol=0)


@each_method
def test_a_learning_rate_of_zero_stays_at_the_start(method):
    x, y = problem(50, 3)
    init = torch.randn(3, device=DEVICE)
    result = gdcore.fit(x, y, lr=0, steps=3, init=init, method=method, momentum=0.5, weight_decay=0.5)
    assert torch.equal(result.coef, init)
    assert (result.losses == result.losses[0]).all()


# Runs that diverge


@each_method
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.5}, {"weight_decay": 0.5}], ids=lambda o: options_id(o) or "plain"
)
def test_divergence_is_a_result_as_stocks_is(options, method):
    x, y = problem(64, 3)
    options = {**options, "lr": 40.0, "steps": 60, "intercept": True}
    result = gdcore.fit(x, y, method=method, **options)
    finite = torch.isfinite(loop(x, y, dtype=torch.float32, **options).losses)
    stock = int((~finite).nonzero()[0])
    assert abs(result.diverged_at - stock) <= 1
    assert result.losses[result.diverged_at] == torch.inf
    assert torch.isfinite(result.losses[: result.diverged_at]).all()
    assert not torch.isfinite(result.losses[result.diverged_at :]).any()
    assert not result.interrupted


@each_method
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["NaN", "infinity"])
@pytest.mark.parametrize("where", ["x", "y"])
def test_data_that_is_not_finite_diverges_at_once(where, value, method):
    x, y = problem(64, 3)
    {"x": x, "y": y}[where].view(-1)[5] = value
    result = gdcore.fit(x, y, lr=0.1, steps=4, method=method)
    assert result.diverged_at == 0
    assert result.losses.shape == (4,)
    assert not torch.isfinite(result.coef).any() or not torch.isfinite(result.losses).any()


@each_method
def test_only_the_last_update_may_leave_the_range(method):
    x, y = torch.tensor([[1e10]], device=DEVICE), torch.tensor([1.0], device=DEVICE)
    result = gdcore.fit(x, y, lr=1e30, steps=1, method=method)
    assert torch.isfinite(result.losses).all()
    assert not torch.isfinite(result.coef).all()
    assert result.diverged_at == 1
    x, y = torch.tensor([[0.0]], device=DEVICE), torch.tensor([1e10], device=DEVICE)
    result = gdcore.fit(x, y, lr=1e30, steps=1, method=method, intercept=True)
    assert result.coef == 0
    assert result.diverged_at == 1


# Known runs


def thermometer(steps, method, scale=0.1, **options):
    t_u, t_c = (torch.tensor(THERMOMETER[name], device=DEVICE) for name in ("t_u", "t_c"))
    start = THERMOMETER["start"]
    return gdcore.fit(
        scale * t_u[:, None], t_c, lr=1e-2, steps=steps, init=([start["w"]], start["b"]), intercept=True, method=method,
        **options,
    )  # fmt: skip


@each_method
def test_the_thermometer_after_a_hundred_epochs(method):
    golden = THERMOMETER["scaled"]
    result = thermometer(100, method)
    for epoch, loss in golden["loss_at_epoch"].items():
        assert result.losses[int(epoch) - 1].item() == pytest.approx(loss, rel=1e-5), epoch
    assert result.coef.item() == pytest.approx(golden["after_100"]["w"], rel=1e-4)
    assert result.intercept.item() == pytest.approx(golden["after_100"]["b"], rel=1e-4)


@each_method
def test_the_thermometer_after_five_thousand_epochs(method):
    golden = THERMOMETER["scaled"]
    result = thermometer(5000, method)
    assert result.losses[-1].item() == pytest.approx(golden["loss_at_epoch_5000"], rel=1e-5)
    assert result.coef.item() == pytest.approx(golden["after_5000"]["w"], rel=1e-4)
    assert result.intercept.item() == pytest.approx(golden["after_5000"]["b"], rel=1e-4)


@each_method
def test_the_thermometer_diverges_in_the_epoch_where_stock_does(method):
    result = thermometer(15, method, scale=1.0)
    assert result.losses[0].item() == pytest.approx(THERMOMETER["initial"]["loss"], rel=1e-5)
    # Elsewhere the sum of squares leaves the range; from sums of products in float64 it is their mean.
    epoch = THERMOMETER["diverges"]["inf_at_epoch_float32"]
    assert result.diverged_at == epoch - (method != "gram") or (DEVICE == "cuda" and result.diverged_at == epoch)
    assert result.losses[result.diverged_at] == torch.inf


@pytest.mark.parametrize("method", ["resident", "gram"])
def test_a_long_run_ends_at_ordinary_least_squares(method):
    golden = THERMOMETER["ordinary_least_squares_scaled"]
    result = thermometer(4000, method, momentum=0.9)
    assert result.coef.item() == pytest.approx(golden["w"], rel=1e-5)
    assert result.intercept.item() == pytest.approx(golden["b"], rel=1e-5)
    assert result.losses[-1].item() == pytest.approx(golden["loss"], rel=1e-5)


@pytest.mark.parametrize("batch_size", [None, LINE["mini_batch"]], ids=["full batch", "mini-batches"])
@pytest.mark.parametrize("noise", ["uniform_noise", "normal_noise_0.25"])
def test_the_lesson_finds_its_line(noise, batch_size):
    """Over some seeds the first and last loss and the parameters lie where 300 recorded seeds put them."""
    golden = LINE["over_300_seeds"][noise]
    parameters = []
    for seed in range(8):
        x = torch.ones(LINE["n"], 2)
        x[:, 0].uniform_(-1, 1)
        y = x @ torch.tensor(LINE["a"])
        y += torch.rand_like(y) if noise == "uniform_noise" else 0.25 * torch.randn_like(y)
        options = {"lr": LINE["lr"], "steps": LINE["steps"], "init": LINE["guess"], "seed": seed}
        result = gdcore.fit(x.to(DEVICE), y.to(DEVICE), batch_size=batch_size, **options)
        low, high = golden["first_loss_range"]
        assert 0.7 * low < result.losses[0] < 1.3 * high
        assert result.losses[-1] < 3 * golden["final_loss_mean"]
        parameters.append(result.coef.cpu())
    mean = torch.stack(parameters).mean(0)
    assert (mean - torch.tensor(golden["params_mean"])).abs().max() < 0.1


# Speed


def lesson(x, y, lr, steps):
    """The eager loop, as everybody writes it first."""
    a = torch.zeros(2, requires_grad=True)
    losses = []
    for _ in range(steps):
        loss = ((x @ a - y) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            a.sub_(lr * a.grad)
            a.grad.zero_()
        losses.append(loss.detach())
    return torch.stack(losses), a.detach()


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


@on_cpu(reason="the clock is the host's")
def test_five_times_as_fast_as_the_eager_loop():
    """Of runs in turns the fastest each, so that what else the machine does matters little."""
    x, y = problem(100, 2)
    runs = [lambda: lesson(x, y, 0.1, 100), lambda: gdcore.fit(x, y, lr=0.1, steps=100)]
    for _ in range(5):
        times = [[seconds(run) for run in runs] for _ in range(25)]
        eager, ours = (min(column) for column in zip(*times, strict=True))
        if eager >= 5 * ours:
            return
    pytest.fail(f"fit takes {1e3 * ours:.2f} ms, the eager loop {1e3 * eager:.2f} ms: {eager / ours:.1f} times as much")


@on_cpu(reason="the CPU's engine")
def test_batches_are_gathered_to_the_same_places_again(monkeypatch):
    """Views are made once for all epochs."""
    made = []
    batch = cpu.CacheRun._batch
    monkeypatch.setattr(cpu.CacheRun, "_batch", lambda self, *parts: made.append(0) or batch(self, *parts))
    x, y = problem(100, 2)
    gdcore.fit(x, y, lr=0.1, steps=1000, batch_size=10)
    assert len(made) <= 64
