"""gdcore.SGD against stock's loop: PyTorch's own inputs and others, every dtype, layout and size, on every backend."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gdcore
from gdcore.sgd import cpu
from sgd_support import Race, assert_same, laid_out, loop, parameter, poisoned_memory, thinned
from support import DEVICE, DTYPES

common = pytest.importorskip("torch.testing._internal.common_optimizers", reason="needs expecttest")
(INFO,) = (info for info in common.optim_db if info.optim_cls is torch.optim.SGD)
OPTIONS = {case.desc: case.kwargs for case in INFO.optim_inputs_func(device=DEVICE)} | {
    "everything": {"lr": 0.3, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.5},
    "everything, nesterov": {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.5, "nesterov": True, "maximize": True},
    "large steps": {"lr": 0.5},
    "large decay": {"lr": 0.3, "weight_decay": 0.5, "maximize": True},
    "negative dampening": {"lr": 0.3, "momentum": 0.5, "dampening": -1.0},
    "learning rate 0": {"lr": 0.0, "momentum": 0.9},
}
BACKENDS = ["cpu", "triton"]


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_memory():
        yield


def fresh(tensors):
    return [torch.randn_like(t) for t in tensors]


@pytest.mark.parametrize(
    ("backend", "case", "dtype"),
    thinned(  # half types of every case: in test_many_groups_of_mixed_dtypes
        BACKENDS,
        itertools.product(OPTIONS, DTYPES),
        lambda case, dtype: dtype is torch.float32 or case.startswith("everything"),
    ),
    indirect=["backend"],
    ids=str,
)
def test_six_steps_with_late_and_absent_gradients(case, dtype, backend):
    tensors = [torch.randn(shape, device=DEVICE).to(dtype) for shape in ((), (3, 2), (0, 3))]
    race = Race(tensors, **OPTIONS[case])
    for step in range(6):
        grads = fresh(tensors)
        if step == 2:
            grads = [None] * 3
        elif step in (0, 3, 4):
            grads[1] = None
        race.step(grads)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    thinned(BACKENDS, zip(DTYPES), lambda dtype: dtype in (torch.float32, torch.bfloat16)),
    indirect=["backend"],
    ids=str,
)
def test_sizes_around_a_chunk(dtype, backend):
    """What the kernels do there, and just below, is tested with them; this is about how tensors are cut."""
    tensors = [torch.randn(n, device=DEVICE).to(dtype) for n in (1, 2048, 2049, 4100)]
    race = Race(tensors, **OPTIONS["everything"])
    for _ in range(2):
        race.step(fresh(tensors))


@pytest.mark.skipif(DEVICE != "cpu", reason="the tensors are on a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_numbers_than_the_cpu_takes_at_a_time(dtype, monkeypatch):
    """Blocks of the widening path: tensors cut, tensors gathered, along whichever dimension is the longest."""
    monkeypatch.setattr(cpu, "_BLOCK", 64)
    shapes = [(71,), (5,), (3, 50), (50, 3), (2, 2), (200,), (64,), (1, 65), (2, 3, 40), ()]
    layouts = ["contiguous", "gapped", "transposed"]
    tensors = [laid_out(torch.randn(shape).to(dtype), layouts[i % 3]) for i, shape in enumerate(shapes)]
    race = Race(tensors, **OPTIONS["everything"])
    for step in range(3):
        grads = [laid_out(torch.randn(shape).to(dtype), layouts[(i + step) % 3]) for i, shape in enumerate(shapes)]
        race.step(grads)


LAYOUTS = ["contiguous", "transposed", "gapped", "offset", "channels_last"]
SHAPES = st.one_of(st.lists(st.integers(0, 5), max_size=3).map(tuple), st.just((2, 3, 2, 3)), st.just((257,)))


@st.composite
def layouts_of_a_run(draw):
    """Some parameters, and for each step the layout of each gradient."""
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=2))
    params = [(shape, draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(DTYPES))) for shape in shapes]
    grad = st.sampled_from([*LAYOUTS, "expanded", "absent"])
    steps = [[draw(grad) for _ in shapes] for _ in range(3)]
    return params, steps, draw(st.sampled_from(sorted(OPTIONS)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=layouts_of_a_run())
def test_layouts(run, backend):
    params, steps, case = run
    tensors = [laid_out(torch.randn(shape, device=DEVICE).to(dtype), layout) for shape, layout, dtype in params]
    race = Race(tensors, **OPTIONS[case])
    for layouts in steps:
        grads = []
        for (shape, _, dtype), layout in zip(params, layouts, strict=True):
            grad = torch.randn(shape, device=DEVICE).to(dtype)
            if layout == "absent":
                grad = None
            elif layout == "expanded":
                grad = torch.randn((1,) * len(shape), device=DEVICE).to(dtype).expand(shape)
            else:
                grad = laid_out(grad, layout)
            grads.append(grad)
        race.step(grads)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("contiguous", {"lr": 0.3}),
        ("contiguous", {"lr": 0.3, "momentum": 0.9}),
        ("transposed", {"lr": 0.3, "momentum": 0.9}),
        ("gapped", {"lr": 0.3, "momentum": 0.9}),
    ],
    ids=["contiguous, plain", "contiguous", "transposed", "gapped"],
)
def test_gradients_of_changing_strides_at_one_address(layout, options, backend):
    """As an allocator hands them out: the address says nothing about the order of what lies there."""
    race = Race([laid_out(torch.randn(3, 3, 3, device=DEVICE), layout)], **options)
    memory = torch.empty(27, device=DEVICE)
    orders = list(itertools.permutations(range(3)))
    for order in [*orders, orders[3], orders[0], orders[3]]:
        memory.copy_(torch.randn(27))
        race.step([memory.view(3, 3, 3).permute(order)])


def test_gradients_that_change_between_gapped_and_dense_at_one_address(backend):
    race = Race([torch.randn(4, 3, device=DEVICE)], lr=0.3, momentum=0.9)
    memory = torch.empty(40, device=DEVICE)
    for stride in ((3, 1), (6, 2), (6, 1), (0, 0), (3, 1), (0, 1), (1, 0), (1, 4), (7, 2)):
        memory.copy_(torch.randn(40))
        race.step([memory.as_strided((4, 3), stride)])


def test_gradients_of_changing_dtype_at_one_address(backend):
    """Every number is a multiple of 1/16 below 4, which bfloat16 holds: whatever is rounded where, nothing is lost."""
    p = (torch.arange(8, device=DEVICE) / 4).bfloat16().requires_grad_()
    q = p.detach().clone().requires_grad_()
    p.grad_dtype = q.grad_dtype = None
    ours, stock = gdcore.SGD([p], lr=0.5, momentum=0.5), loop([q], lr=0.5, momentum=0.5)
    memory = torch.ones(8, device=DEVICE)
    for wide in (False, True, False, True):
        memory.fill_(1)
        half = memory.view(torch.bfloat16)[:8]
        grad = memory if wide else half.fill_(1)
        p.grad, q.grad = grad, grad.clone()
        ours.step(), stock.step()
        assert torch.equal(p, q)


def test_gradients_at_ever_new_addresses_and_alignments(backend):
    tensors = [torch.randn(2048, device=DEVICE).half(), torch.randn(100, device=DEVICE)]
    race = Race(tensors, lr=0.3, momentum=0.9)
    for step in range(4):
        race.step([laid_out(g, "offset" if step % 2 else "contiguous") for g in fresh(tensors)])


def test_many_groups_of_mixed_dtypes(backend):
    """Groups that differ in every option, in each of them a wide dtype and a half one."""
    tensors, groups = [], []
    for i, case in enumerate(sorted(OPTIONS)):
        groups.append(([2 * i, 2 * i + 1], {"lr": 0.05 * i} | OPTIONS[case]))
        tensors += [torch.randn(5 + i, device=DEVICE).to(DTYPES[j]) for j in (i % 2, 2 + i // 2 % 2)]
    race = Race(tensors, groups)
    for step in range(3):
        race.step([g if step or i % 3 else None for i, g in enumerate(fresh(tensors))])


def test_one_long_tensor_beside_many_short_ones(backend):
    tensors = [torch.randn(n, device=DEVICE) for n in (*range(6), 4100, *range(6, 10))]
    race = Race(tensors, lr=0.3, momentum=0.9)
    for _ in range(2):
        race.step(fresh(tensors))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "one element"])
@pytest.mark.parametrize("device", sorted({"cpu", DEVICE}))
def test_tensor_learning_rate(shape, dtype, device, backend):
    """Written in place, replaced, and its memory exchanged: every step sees the current value."""
    p = parameter(5)
    q = p.detach().clone().requires_grad_()
    lr = torch.full(shape, 2, device=device).to(dtype)
    ours, stock = (
        gdcore.SGD([p], lr=lr, momentum=0.9, weight_decay=0.1),
        loop([q], lr=2.0, momentum=0.9, weight_decay=0.1),
    )

    def rates():
        yield 2
        lr.fill_(3)
        yield 3
        lr.fill_(1)
        yield 1
        ours.param_groups[0]["lr"] = torch.full(shape, 4, device=device).to(dtype)
        yield 4
        ours.param_groups[0]["lr"] = 0.5
        yield 0.5

    for rate in rates():
        stock.param_groups[0]["lr"] = float(rate)
        p.grad, q.grad = (g := torch.randn_like(p)), g.clone()
        ours.step(), stock.step()
        assert_same(p, q, 1e-5)
    assert ours.defaults["lr"] is lr


def test_tensor_learning_rate_whose_memory_is_exchanged(backend):
    race = Race([torch.randn(5, device=DEVICE)], lr=torch.tensor(0.5, device=DEVICE))
    for rate in (0.5, 0.25, 0.125):
        for optimizer in race.optimizers:
            optimizer.param_groups[0]["lr"].data = torch.tensor(rate, device=DEVICE)
        race.step([torch.randn(5, device=DEVICE)])


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_tensor_weight_decay(dtype, momentum, backend):
    race = Race(
        [torch.randn(5, device=DEVICE).to(dtype)],
        lr=0.3,
        momentum=momentum,
        weight_decay=torch.tensor(0.0, dtype=torch.float64, device=DEVICE),
    )
    for decay in (0.0, 0.5, 0.25, 0.0, 0.5):
        race.everywhere(lambda o, decay=decay: o.param_groups[0]["weight_decay"].fill_(decay))
        race.step(fresh(race.params[0]))


EDITS = {
    "learning rate": [{"lr": 0.5}, {"lr": 0.1}, {"lr": 1}],
    "weight decay": [{"weight_decay": 0}, {"weight_decay": 0.5}, {"weight_decay": 0.1}, {"weight_decay": 0}],
    "momentum": [{"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.5}, {"momentum": 0.9}],
    "dampening": [{"momentum": 0.9}, {"dampening": 0.5}, {"dampening": 0.0}],
    "nesterov": [{"momentum": 0.9}, {"nesterov": True}, {"nesterov": False}],
    "maximize": [{"maximize": True}, {"maximize": False}, {"maximize": True, "momentum": 0.9}, {"maximize": False}],
}


@pytest.mark.parametrize(
    ("backend", "edits", "dtype"),
    thinned(
        BACKENDS,
        itertools.product(EDITS, [torch.float32, torch.float16]),
        lambda edits, dtype: dtype is torch.float32 or edits == "momentum",
    ),
    indirect=["backend"],
    ids=str,
)
def test_groups_edited_between_steps(edits, dtype, backend):
    tensors = [torch.randn(5, device=DEVICE).to(dtype) for _ in range(2)]
    race = Race(tensors, [([0], {}), ([1], {})], lr=0.3)
    for edit in EDITS[edits]:
        race.everywhere(lambda o, edit=edit: o.param_groups[1].update(edit))
        race.step(fresh(tensors))
    race.step(fresh(tensors))


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
def test_state_that_somebody_looks_at(seen, backend):
    """Steps differ by whether anybody can have changed the momentum; the results do not."""
    tensors = [torch.randn(5, device=DEVICE), torch.randn(5, device=DEVICE).half()]
    race = Race(tensors, lr=0.3, momentum=0.9)
    for _ in range(4):
        race.step(fresh(tensors))
        if seen:
            assert all(race.ours.state[p]["momentum_buffer"].shape == (5,) for p in race.params[0])


@pytest.mark.parametrize(
    ("dtype", "state"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def test_momentum_of_another_dtype(dtype, state, backend):
    p = parameter(2049, dtype=dtype)
    q = p.detach().clone().requires_grad_()
    ours, stock = (o([t], lr=0.3, momentum=0.9, weight_decay=0.1) for o, t in ((gdcore.SGD, p), (loop, q)))
    start = torch.randn(2049, device=DEVICE).to(state)
    ours.state[p]["momentum_buffer"], stock.state[q]["momentum_buffer"] = start.clone(), start.clone()
    for _ in range(2):
        p.grad, q.grad = (g := torch.randn_like(p)), g.clone()
        ours.step(), stock.step()
    narrow = dtype if dtype.itemsize < state.itemsize else state
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[narrow]
    assert_same(p, q, tolerance)
    assert_same(ours.state[p]["momentum_buffer"], stock.state[q]["momentum_buffer"], tolerance)


@pytest.mark.parametrize(
    ("backend", "dtype", "options"),
    thinned(
        BACKENDS,
        itertools.product(
            [torch.float64, torch.float32, torch.bfloat16],
            [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.1}],
        ),
        lambda dtype, options: dtype is not torch.float64,
    ),
    indirect=["backend"],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_nan_and_inf_go_where_stocks_go(options, dtype, backend):
    values = torch.tensor([0.0, 1.0, float("inf"), -float("inf"), float("nan")], device=DEVICE)
    start, grad = torch.cartesian_prod(values, values).to(dtype).unbind(1)
    p, q = (start.clone().requires_grad_() for _ in range(2))
    ours, stock = gdcore.SGD([p], lr=0.5, **options), loop([q], lr=0.5, **options)
    for _ in range(3):
        p.grad, q.grad = grad.clone(), grad.clone()
        ours.step(), stock.step()
        assert_same(p, q, 2e-2)


def test_nothing_but_empty_tensors(backend):
    race = Race([torch.randn(0, device=DEVICE), torch.randn(3, 0, device=DEVICE)], lr=0.1, momentum=0.9)
    for _ in range(2):
        race.step(fresh(race.params[0]))


def test_no_gradients_at_all(backend):
    race = Race([torch.randn(5, device=DEVICE)], lr=0.1, momentum=0.9)
    race.step([None])
    race.step([None])
    race.step([torch.randn(5, device=DEVICE)])
    race.step([None])
    race.step([torch.randn(5, device=DEVICE)])


def test_steps_repeat_bit_for_bit(backend):
    start, grads = torch.randn(4100, device=DEVICE), [torch.randn(4100, device=DEVICE) for _ in range(3)]
    ends = []
    for _ in range(2):
        p = start.clone().requires_grad_()
        optimizer = gdcore.SGD([p], lr=0.3, momentum=0.9, weight_decay=0.1)
        for grad in grads:
            p.grad = grad
            optimizer.step()
        ends.append(p)
    assert torch.equal(*ends)


@pytest.mark.skipif(DEVICE != "cpu", reason="the tensors are on a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backends_may_change_between_steps(dtype):
    tensors = [torch.randn(5, device=DEVICE).to(dtype), torch.randn(2049, device=DEVICE).to(dtype)]
    race = Race(tensors, **OPTIONS["everything"])
    names = ["triton", "cpu", "reference", "triton", "triton", "reference", "cpu", "cpu", "triton"]
    for i, name in enumerate(names):
        with gdcore.use_backend(name):
            race.step([g if i > 1 or j else None for j, g in enumerate(fresh(tensors))])
            assert [key[0] for key in race.ours._steppers] == ["stock" if name == "reference" else name]
