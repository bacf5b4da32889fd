"""The optimizer's kernels by their launch functions, with tables made by hand."""

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from gdcore.kernels import sgd
from gdcore.kernels.configs import SGD_BLOCK
from gdcore.kernels.sgd_norm import squared_norm
from gdcore.kernels.stochastic import random_16_bits, round_stochastically
from product_support import poison
from support import DEVICE, DTYPES, EPSILON

HALF = [torch.float16, torch.bfloat16]
SIZES = [1, 255, SGD_BLOCK - 1, SGD_BLOCK, SGD_BLOCK + 1]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


class Entry:
    """A parameter with its gradient and, where there are any, momentum and master."""

    def __init__(self, p, g, v=None, m=None, *, group=0, stochastic=False, strided=False):
        self.p, self.g, self.v, self.m = p, g, v, m
        self.group, self.strided = group, strided
        there = [t for t in (p, g, v, m) if t is not None]
        aligned = all(t.data_ptr() % 16 == 0 for t in there)
        grad = p.dtype if g is None else g.dtype
        self.kind = sgd.Kind(p.dtype, grad, None if v is None else v.dtype, m is not None, stochastic, strided, aligned)

    def layout(self):
        """Dimensions, then for each from the last on its size and the four strides."""
        numbers = [self.p.dim()]
        for dim in reversed(range(self.p.dim())):
            strides = [0 if t is None else t.stride(dim) for t in (self.p, self.g, self.v, self.m)]
            numbers += [self.p.shape[dim], *strides]
        return numbers


class Tables:
    """What the launch functions take, for some entries; kept, so that several steps can be launched."""

    def __init__(self, entries, groups):
        self.entries = entries
        rows = np.zeros((len(entries), sgd.TENSOR_COLUMNS.value), dtype=np.int64)
        kinds, layouts, chunks = [], [0], []
        for i, entry in enumerate(entries):
            if entry.kind not in kinds:
                kinds.append(entry.kind)
            rows[i, sgd.PARAM.value] = entry.p.data_ptr()
            rows[i, sgd.MOMENTUM.value] = 0 if entry.v is None else entry.v.data_ptr()
            rows[i, sgd.MASTER.value] = 0 if entry.m is None else entry.m.data_ptr()
            rows[i, sgd.NUMEL.value] = entry.p.numel()
            rows[i, sgd.FIRST_CHUNK.value] = len(chunks)
            rows[i, sgd.KIND.value] = kinds.index(entry.kind)
            rows[i, sgd.GROUP.value] = entry.group
            if entry.strided:
                rows[i, sgd.LAYOUT.value] = len(layouts)
                layouts += entry.layout()
            chunks += [i] * -(-entry.p.numel() // SGD_BLOCK)
        self.kinds = ";".join(map(str, kinds))
        self.chunks = torch.tensor(chunks, dtype=torch.int32, device=DEVICE)
        self.rows = torch.from_numpy(rows).to(DEVICE)
        self.layouts = torch.tensor(layouts, device=DEVICE)
        self.steps = torch.zeros(len(chunks), dtype=torch.int32, device=DEVICE)
        self.groups = torch.from_numpy(np.stack([group_row(**group) for group in groups])).to(DEVICE)

    def grads(self):
        return torch.tensor([0 if e.g is None else e.g.data_ptr() for e in self.entries], device=DEVICE)

    def norm(self):
        return squared_norm(self.chunks, self.rows, self.layouts, self.grads(), kinds=self.kinds)

    def step(self, *, scale=1.0, found=0.0, norm=0.0, max_norm=math.inf, seed=0, zero_grad=False):
        numbers = [torch.tensor([x], device=DEVICE, dtype=torch.float32) for x in (scale, found, norm)]
        sgd.sgd_update(
            self.chunks, self.rows, self.layouts, self.grads(), self.groups, self.steps, *numbers,
            max_norm=max_norm, seed=seed, kinds=self.kinds, zero_grad=zero_grad,
        )  # fmt: skip


def group_row(lr=0.1, decay=0.0, mu=0.0, dampening=0.0, nesterov=False, maximize=False):
    row = np.zeros(sgd.GROUP_COLUMNS.value, dtype=np.int64)
    floats = row.view(np.float64)
    for column, value in ((sgd.LR.value, lr), (sgd.DECAY.value, decay)):
        if isinstance(value, torch.Tensor):
            row[column + 1 : column + 3] = value.data_ptr(), value.dtype is torch.float64
        else:
            floats[column] = value
    floats[sgd.MU.value], floats[sgd.UNDAMPED.value] = mu, 1 - dampening
    floats[sgd.NESTEROV.value], floats[sgd.SIGN.value] = nesterov, -1.0 if maximize else 1.0
    return row


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def unknown(tensor, dtype=None):
    """Momentum before the first step: nobody has written it."""
    return torch.full_like(tensor, math.nan, dtype=dtype)


def stocks(ps, grads, hyper, steps=1):
    """What torch's for-loop makes of it in float64: parameters and momentum."""
    params = [p.detach().double().requires_grad_() for p in ps]
    optimizer = torch.optim.SGD(params, **hyper, foreach=False)
    for _ in range(steps):
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.double()
        optimizer.step()
    return params, [optimizer.state.get(p, {}).get("momentum_buffer") for p in params]


def assert_near(ours, exact, dtype):
    tolerance = 2 * EPSILON[dtype] if dtype is not torch.float64 else 1e-14
    torch.testing.assert_close(ours.double(), exact.double(), rtol=tolerance, atol=tolerance, check_stride=False)


# The update.


@pytest.mark.parametrize(
    ("has_momentum", "dtype"),
    [(False, torch.float32), *((True, dtype) for dtype in DTYPES)],
    ids=lambda x: {False: "plain", True: "momentum"}.get(x, str(x)),
)
def test_updates_every_size_once_and_nothing_beside(has_momentum, dtype):
    """Two steps; behind each tensor in memory lies another number that must stay."""
    wide = [normal(n + 1, dtype=dtype) for n in SIZES]
    ps, grads = [w[:-1] for w in wide], [normal(n, dtype=dtype) for n in SIZES]
    start, guards = [p.clone() for p in ps], [w[-1].item() for w in wide]
    momenta = [unknown(p) if has_momentum else None for p in ps]
    tables = Tables(
        [Entry(*row) for row in zip(ps, grads, momenta, strict=True)],
        [{"lr": 0.1, "decay": 0.03, "mu": 0.9 * has_momentum, "dampening": 0.4}],
    )
    hyper = {"lr": 0.1, "weight_decay": 0.03, "momentum": 0.9 * has_momentum, "dampening": 0.4}
    exact, exact_momenta = stocks(start, grads, hyper, steps=2)
    tables.step(), tables.step()
    for p, v, q, u in zip(ps, momenta, exact, exact_momenta, strict=True):
        assert_near(p, q, dtype)
        if has_momentum:
            assert_near(v, u, dtype)
    assert [w[-1].item() for w in wide] == guards
    assert (tables.steps == 2).all()


@pytest.mark.parametrize("grad", DTYPES[1:], ids=lambda d: f"gradient {d}")
@pytest.mark.parametrize("momentum", [None, *DTYPES], ids=lambda d: f"momentum {d}")
@pytest.mark.parametrize("param", HALF, ids=lambda d: f"parameter {d}")
def test_every_kind_of_tensor(param, momentum, grad):
    """Types that differ among a parameter, its gradient and its momentum; nesterov."""
    p, g = normal(100, dtype=param), normal(100, dtype=grad)
    v = None if momentum is None else unknown(p, momentum)
    hyper = {"lr": 0.1, "momentum": 0 if momentum is None else 0.9, "nesterov": momentum is not None}
    (exact,), _ = stocks([p], [g], hyper)
    Tables([Entry(p, g, v)], [{"lr": 0.1, "mu": hyper["momentum"], "nesterov": hyper["nesterov"]}]).step()
    assert_near(p, exact, param)
    if v is not None:
        assert_near(v, g, max(momentum, grad, key=EPSILON.get))


def test_many_kinds_and_groups_in_one_launch():
    """Each tensor takes its own branch and its own hyperparameters."""
    groups = [
        {"lr": 0.1},
        {"lr": 0.01, "mu": 0.5, "maximize": True},
        {"lr": 1.0, "decay": 0.5, "mu": 0.9, "nesterov": True},
    ]
    ps = [normal(n, dtype=d) for n, d in zip((7, 2049, 300, 5), DTYPES, strict=True)] + [normal(40)]
    grads = [normal(p.numel(), dtype=p.dtype) for p in ps]
    places = [0, 1, 2, 1, 2]
    hypers = [
        {"lr": 0.1},
        {"lr": 0.01, "momentum": 0.5, "maximize": True},
        {"lr": 1.0, "weight_decay": 0.5, "momentum": 0.9, "nesterov": True},
    ]
    expected = [stocks([p], [g], hypers[i])[0][0] for p, g, i in zip(ps, grads, places, strict=True)]
    entries = [Entry(p, g, None if i == 0 else unknown(p), group=i) for p, g, i in zip(ps, grads, places, strict=True)]
    tables = Tables(entries, groups)
    assert tables.kinds.count(";") >= 3
    tables.step()
    for p, q in zip(ps, expected, strict=True):
        assert_near(p, q, p.dtype)


def views(shape, layout, dtype=torch.float32):
    """A tensor of this shape in memory that is NaN elsewhere, and that memory."""
    if layout == "transposed":
        memory = normal(*reversed(shape), dtype=dtype)
        return memory.permute(*reversed(range(len(shape)))), memory
    if layout == "gapped":
        memory = torch.full((shape[0] * 2, *shape[1:-1], shape[-1] * 3), math.nan, device=DEVICE, dtype=dtype)
        view = memory[::2, ..., 1::3]
        view.copy_(normal(*shape, dtype=dtype))
        return view, memory
    memory = normal(*shape, dtype=dtype)
    return memory, memory


LAYOUTS = ["dense", "transposed", "gapped"]


@pytest.mark.parametrize(
    ("param", "grad", "shape"),
    [(param, grad, (3, 1, 5)) for param in LAYOUTS for grad in LAYOUTS]
    + [(param, grad, (3, 2, 7, 49)) for param, grad in zip(LAYOUTS, LAYOUTS[1:] + LAYOUTS[:1], strict=True)],
    ids=str,
)
def test_layouts_may_differ(param, grad, shape):
    """Every tensor in an order of its own, also of more than one chunk; what lies between the elements stays NaN."""
    p, memory = views(shape, param)
    g, _ = views(shape, grad)
    v, v_memory = views(shape, "gapped")
    hyper = {"lr": 0.1, "momentum": 0.9}
    (exact,), (velocity,) = stocks([p], [g], hyper, steps=2)
    tables = Tables([Entry(p, g, v, strided=True)], [{"lr": 0.1, "mu": 0.9}])
    nans = memory.isnan().sum(), v_memory.isnan().sum()
    tables.step(), tables.step()
    assert_near(p, exact, torch.float32)
    assert_near(v, velocity, torch.float32)
    assert (memory.isnan().sum(), v_memory.isnan().sum()) == nans


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_tensors_may_begin_anywhere(offset):
    p, g = normal(2100 + offset)[offset:], normal(2100 + offset)[offset:]
    entry = Entry(p, g)
    assert not entry.kind.aligned
    (exact,), _ = stocks([p], [g], {"lr": 0.1})
    Tables([entry], [{"lr": 0.1}]).step()
    assert_near(p, exact, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rates_are_read_from_memory(dtype):
    """Written between two launches with the same tables, as a replayed graph sees it."""
    lr, decay = (torch.tensor([x], dtype=dtype, device=DEVICE) for x in (0.5, 0.0))
    p, g = torch.ones(10, device=DEVICE), torch.ones(10, device=DEVICE)
    tables = Tables([Entry(p, g)], [{"lr": lr, "decay": decay}])
    tables.step()
    assert torch.equal(p, torch.full_like(p, 0.5))
    lr.fill_(0.25), decay.fill_(2.0)
    tables.step()
    assert torch.equal(p, torch.zeros_like(p))


def test_tensors_without_a_gradient_are_left_alone():
    p, q = normal(2049), normal(5)
    v = unknown(p)
    before = p.clone()
    tables = Tables([Entry(p, None, v), Entry(q, normal(5), unknown(q))], [{"mu": 0.9}])
    tables.step(zero_grad=True)
    assert torch.equal(p, before)
    assert v.isnan().all()
    assert tables.steps.tolist() == [0, 0, 1]


@pytest.mark.parametrize("found", [1.0, 2.0, -1.0, math.inf, math.nan], ids=str)
def test_a_refused_first_step_leaves_momentum_of_zero_and_stays_the_first(found):
    p, g = normal(2049), normal(2049)
    v, before = unknown(p), p.clone()
    tables = Tables([Entry(p, g, v)], [{"mu": 0.9, "dampening": 0.5}])
    tables.step(found=found)
    assert torch.equal(p, before)
    assert v.count_nonzero() == 0
    assert tables.steps.count_nonzero() == 0
    tables.step()
    assert torch.equal(v, g)  # not dampened: it is the first


@pytest.mark.parametrize("norm", [0.5, 4.0, 0.0, math.inf, math.nan], ids=str)
def test_scale_and_clip(norm):
    """Of a norm below max_norm nothing is clipped; one that is NaN makes everything NaN."""
    p, g = normal(300), normal(300)
    start = p.double()
    clip = 2.0 / (norm + 1e-6)
    exact = start - 0.1 * g.double() / 8 * (1.0 if clip > 1 else clip)
    Tables([Entry(p, g)], [{"lr": 0.1}]).step(scale=8.0, norm=norm, max_norm=2.0)
    torch.testing.assert_close(p.double(), exact, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_weight_decay_of_zero_leaves_infinite_parameters():
    p = torch.tensor([math.inf, 1.0], device=DEVICE)
    Tables([Entry(p, torch.ones(2, device=DEVICE))], [{"lr": 0.5}]).step()
    assert p.tolist() == [math.inf, 0.5]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_masters_are_stepped_and_followed(dtype):
    """The parameter is the master, rounded to nearest; where it is not, somebody has written it."""
    p, g = normal(2100, dtype=dtype), normal(2100, dtype=dtype)
    hidden = p.float() * (1 + torch.finfo(dtype).eps / 5)
    m = torch.where(hidden.to(dtype) == p, hidden, p.float())
    m[:100] += 7.0
    start = torch.where(m.to(dtype) == p, m, p.float())
    v = unknown(p, torch.float32)
    Tables([Entry(p, g, v, m)], [{"lr": 1e-3, "mu": 0.9}]).step()
    torch.testing.assert_close(m, start - 1e-3 * g.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(p, m.to(dtype))
    assert torch.equal(v, g.float())


@pytest.mark.parametrize("found", [0.0, 1.0])
@pytest.mark.parametrize("strided", [False, True])
def test_gradients_are_zeroed(strided, found):
    wide = torch.full((60, 80), 3.0, device=DEVICE)
    g = wide[:, ::2] if strided else normal(60, 40)
    p = normal(60, 40)
    before = p.clone()
    Tables([Entry(p, g, strided=strided)], [{"lr": 0.1}]).step(found=found, zero_grad=True)
    assert g.count_nonzero() == 0
    assert (wide[:, 1::2] == 3).all()
    assert torch.equal(p, before) == bool(found)


def test_launches_repeat_bit_for_bit():
    values = [normal(2300, dtype=d) for d in DTYPES]
    grads = [normal(2300, dtype=d) for d in DTYPES]

    def twice():
        ps = [value.clone() for value in values]
        entries = [Entry(p, g, unknown(p), stochastic=p.dtype in HALF) for p, g in zip(ps, grads, strict=True)]
        tables = Tables(entries, [{"mu": 0.9, "decay": 0.1}])
        tables.step(seed=9), tables.step(seed=9)
        return ps

    assert all(map(torch.equal, twice(), twice()))


# The norm.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_adds_every_gradient_once(dtype):
    grads = [normal(n, dtype=dtype) for n in SIZES]
    grads[2] = None
    ps = [normal(n, dtype=dtype) for n in SIZES]
    tables = Tables([Entry(p, g) for p, g in zip(ps, grads, strict=True)], [{}])
    total = tables.norm()
    exact = sum(g.double().square().sum() for g in grads if g is not None)
    assert total.shape == (1,)
    assert total.dtype is torch.float64
    torch.testing.assert_close(total[0], exact, rtol=1e-14 if dtype is torch.float64 else 1e-6, atol=0)
    assert torch.equal(total, tables.norm())


def test_norm_of_many_types_and_layouts():
    shape = (30, 20)
    grads = [views(shape, layout, dtype)[0] for layout in LAYOUTS for dtype in DTYPES]
    entries = [Entry(normal(*shape, dtype=g.dtype), g, strided=True) for g in grads] + [Entry(normal(3), normal(3))]
    exact = sum(e.g.double().square().sum() for e in entries)
    torch.testing.assert_close(Tables(entries, [{}]).norm()[0], exact, rtol=1e-6, atol=0)


def test_norm_of_more_chunks_than_programs(monkeypatch):
    """A program takes every so-many-th."""
    monkeypatch.setattr("gdcore.kernels.sgd_norm.SGD_NORM_PROGRAMS", 3)
    g = normal(7 * SGD_BLOCK + 5)
    tables = Tables([Entry(normal(*g.shape), g), Entry(normal(9), normal(9))], [{}])
    exact = sum(e.g.double().square().sum() for e in tables.entries)
    torch.testing.assert_close(tables.norm()[0], exact, rtol=1e-6, atol=0)


def test_norm_without_any_gradient_is_zero():
    assert Tables([Entry(normal(5), None), Entry(normal(2049), None)], [{}]).norm().item() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_norm_of_what_is_no_number(bad):
    g = normal(2050)
    g[2049] = bad
    torch.testing.assert_close(Tables([Entry(normal(2050), g)], [{}]).norm().item(), bad, equal_nan=True)


def test_norm_of_float16_does_not_overflow():
    g = torch.full((300,), 60000.0, device=DEVICE, dtype=torch.float16)
    exact = g.double().square().sum()
    torch.testing.assert_close(Tables([Entry(g.clone(), g)], [{}]).norm()[0], exact, rtol=1e-6, atol=0)


# Stochastic rounding.


@triton.jit
def rounding_kernel(x_ptr, random_ptr, out_ptr, n, HALF_TYPE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    random = tl.load(random_ptr + offsets, mask=mask, other=0)
    tl.store(out_ptr + offsets, round_stochastically(x, random, HALF_TYPE), mask=mask)


@triton.jit
def bits_kernel(out_ptr, seed, step, start, BLOCK: tl.constexpr):
    chunk = tl.program_id(0)
    values = random_16_bits(seed, chunk, step, start, BLOCK)
    tl.store(out_ptr + chunk * BLOCK + tl.arange(0, BLOCK), values)


def rounded(x, random, dtype):
    """float32 in, float32 out, the random bits given."""
    x = x.float().to(DEVICE).contiguous()
    random = torch.broadcast_to(torch.as_tensor(random, dtype=torch.int32), x.shape).contiguous().to(DEVICE)
    out = torch.full_like(x, math.nan)
    half = tl.float16 if dtype is torch.float16 else tl.bfloat16
    block = 4096 if DEVICE == "cuda" else 2**16  # what costs the interpreter time is the number of programs
    rounding_kernel[(-(-x.numel() // block),)](x, random, out, x.numel(), HALF_TYPE=half, BLOCK=block)
    return out


def every(dtype):
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    return values[values.isfinite()].unique()


@pytest.mark.parametrize("random", [0, 1, 2**15, 2**16 - 2, 2**16 - 1])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rounding_keeps_every_number_of_the_type(dtype, random):
    """Also with the largest random bits."""
    numbers = every(dtype)
    assert torch.equal(rounded(numbers, random, dtype).cpu(), numbers)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rounding_goes_up_for_as_many_random_bits_as_the_distance_says(dtype):
    """Between neighbours all over the type, a quarter of the way: exactly for the last quarter of the random bits."""
    numbers = every(dtype).double()
    i = torch.randint(0, len(numbers) - 1, (500,))
    below, above = numbers[i], numbers[i + 1]
    x = (below + (above - below) / 4).float()
    exact = x.double() == below + (above - below) / 4
    x, below, above = x[exact], below[exact], above[exact]
    for random, up in ((0, 0), (3 * 2**14 - 8, 0), (3 * 2**14 + 8, 1), (2**16 - 1, 1)):
        # of a negative number the distance is counted from the other side: to the larger magnitude, or upwards
        got = rounded(x, random, dtype).cpu().double()
        mirrored = rounded(x, 2**16 - 1 - random, dtype).cpu().double()
        target = above if up else below
        positive = x > 0
        assert torch.equal(got[positive], target[positive])
        assert ((got == target) | (mirrored == target) | (got == above) | (got == below)).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_mean_over_all_random_bits_is_the_number(dtype):
    """No chance in it: each of the 65,536 values once."""
    random = torch.arange(2**16)
    tiny, largest = 2.0**-24 if dtype is torch.float16 else 2.0**-133, torch.finfo(dtype).max
    ulp = torch.finfo(dtype).eps
    for x in (1 + 0.3 * ulp, -1 - 0.3 * ulp, 700.3 * tiny, -700.3 * tiny, 0.3 * tiny, 100.7, largest * (1 - 0.7 * ulp)):
        number = torch.full((2**16,), x, dtype=torch.float32)
        got = rounded(number, random, dtype).double()
        gap = (got.max() - got.min()).item()
        assert len(got.unique()) == 2
        assert abs(got.mean().item() - number[0].double().item()) <= gap / 4096


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rounding_leaves_the_range_only_where_rounding_to_nearest_does(dtype):
    largest = torch.finfo(dtype).max
    beyond = largest * (1 + torch.finfo(dtype).eps)
    x = torch.tensor([largest, -largest, math.inf, -math.inf, math.nan, beyond, -beyond])
    got = rounded(x, 2**16 - 1, dtype).to(dtype)
    torch.testing.assert_close(got.cpu(), x.to(dtype), equal_nan=True, rtol=0, atol=0)


def bits(seed=0, step=0, start=0, chunks=4, block=1024):
    out = torch.full((chunks * block,), -1, dtype=torch.int32, device=DEVICE)
    bits_kernel[(chunks,)](out, seed, step, torch.tensor(start).item(), BLOCK=block)
    return out.view(chunks, block)


def test_random_bits_are_uniform():
    """Within 6 standard deviations in the mean, the variance and every bit."""
    values = bits(seed=3, chunks=16).double()
    n = values.numel()
    assert values.min() >= 0
    assert values.max() < 2**16
    assert abs(values.mean() - (2**16 - 1) / 2) <= 6 * 2**16 / math.sqrt(12 * n)
    for bit in range(16):
        share = (values.int() >> bit & 1).double().mean()
        assert abs(share - 0.5) <= 3 / math.sqrt(n)
    assert abs(torch.corrcoef(torch.stack([values[:, :-1].flatten(), values[:, 1:].flatten()]))[0, 1]) <= 6 / math.sqrt(
        n
    )


def test_random_bits_differ_by_seed_step_chunk_and_place_alone():
    same = bits(seed=1, step=2)
    assert torch.equal(same, bits(seed=1, step=2))
    for other in (bits(seed=2, step=2), bits(seed=1, step=3)):
        assert (same == other).double().mean() < 0.01
    assert (same[0] == same[1]).double().mean() < 0.01
    assert (same[0, :512] == same[0, 512:]).double().mean() < 0.01
    assert len(same.unique()) > 0.95 * same.numel() * (1 - same.numel() / 2**17)


def test_random_bits_of_a_place_do_not_depend_on_how_many_are_drawn_at_once():
    """A tail that goes a few numbers at a time is rounded as a part of a whole chunk would be."""
    whole = bits(block=1024)
    parts = [bits(start=start, block=256) for start in range(256, 1024, 256)]
    assert torch.equal(whole[:, 256:], torch.cat(parts, 1))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_stochastic_updates_keep_the_mean(dtype):
    """Through sgd_update, whole chunks and tails: a third of the way up, a third of the numbers go up."""
    n, ulp = 3 * SGD_BLOCK + 700, torch.finfo(dtype).eps
    p, g = torch.ones(n, device=DEVICE, dtype=dtype), torch.ones(n, device=DEVICE, dtype=dtype)
    tables = Tables([Entry(p, g, stochastic=True)], [{"lr": ulp / 4, "maximize": True}])
    tables.step(seed=11)
    ups = (p == 1 + ulp).double()
    assert ((p == 1) | (p == 1 + ulp)).all()
    assert abs(ups.mean().item() - 0.25) <= 6 * math.sqrt(0.25 * 0.75 / n)
    before = p.clone()
    tables.step(seed=11, found=1.0)
    assert torch.equal(p, before)
    assert (tables.steps == 1).all()
