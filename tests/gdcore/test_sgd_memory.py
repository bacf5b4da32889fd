"""What the optimizer holds on to, what it lets go, and what a captured graph may read: with addresses in tables, memory is
the hazard. A graph's capture is acted here; tests/gdcore/test_sgd_cuda.py has real ones."""

import contextlib
import gc
import math
import weakref
from unittest import mock

import numpy as np
import pytest
import torch

import gdcore
from gdcore.kernels import sgd as kernels
from gdcore.sgd.triton import Stepper, _made_in_graph
from support import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="acts a capture, with tensors on the CPU")
TABLES = ("chunks", "tensors", "layouts", "grads", "groups", "steps", "grad_scale", "found_inf", "norm")


def parameters(*shapes, dtype=torch.float32):
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


@pytest.fixture
def capturing():
    """A context in which steps believe that a graph is captured; they must not touch pinned memory in it."""

    @contextlib.contextmanager
    def context():
        with (
            mock.patch.object(Stepper, "_capturing", lambda _: True),
            mock.patch.object(torch.Tensor, "pin_memory", side_effect=AssertionError("pinned memory in a capture")),
        ):
            yield

    return context


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_are_let_go(backend):
    with gdcore.use_backend(backend):
        params = parameters(50, (3, 4))
        optimizer = gdcore.SGD(params, lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.step()
        old = [weakref.ref(p.grad) for p in params]
        optimizer.zero_grad()
        gc.collect()
        assert [ref() for ref in old] == [None, None]


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_momentum_that_is_taken_away_is_let_go(backend):
    with gdcore.use_backend(backend):
        (p,) = parameters(50)
        optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9)
        optimizer.step()
        old = weakref.ref(optimizer.state[p]["momentum_buffer"])
        optimizer.state[p]["momentum_buffer"] = old().clone()
        gc.collect()
        assert old() is None


def test_momentum_of_another_type_in_the_same_memory_is_noticed():
    with gdcore.use_backend("triton"):
        (p,) = parameters(64)
        optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9)
        optimizer.step()
        whole = optimizer.state[p]["momentum_buffer"].fill_(7)
        narrow = torch.empty(0, dtype=torch.bfloat16).set_(whole.untyped_storage(), 0, (64,), (1,)).fill_(0)
        optimizer.state[p]["momentum_buffer"] = narrow
        optimizer.step()
        assert (whole[32:] == 7).all(), "wrote behind it"


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("steps", [(0, 1), (1, 0), (0, 1, 0), (0, 0, 1, 1, 0)], ids=str)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"momentum": 0.9}], ids=str)
def test_clipped_and_unclipped_steps_take_turns(options, steps, backend):
    start = [torch.randn(4, 4), torch.randn(4, 4)]
    found = []
    for ours in (True, False):
        params = [p.clone().requires_grad_() for p in start]
        with gdcore.use_backend(backend):
            optimizer = (
                gdcore.SGD(params, lr=0.1, max_norm=1.0, **options) if ours else torch.optim.SGD(params, 0.1, **options)
            )
            generator = torch.Generator().manual_seed(1)
            for large in steps:
                size = 10 if large else 0.01
                params[0].grad = torch.randn(4, 4, generator=generator) * size
                params[1].grad = (torch.randn(4, 4, generator=generator) * size).t()
                if not ours:
                    torch.nn.utils.clip_grad_norm_(params, 1.0)
                optimizer.step()
        found.append(torch.stack([p.detach() for p in params]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_one_gradient_for_two_is_read_twice_before_it_is_cleared(backend):
    with gdcore.use_backend(backend):
        params = parameters(300, 300)
        params[0].grad = params[1].grad = torch.ones(300)
        before = [p.detach().clone() for p in params]
        gdcore.SGD(params, lr=1.0, zero_grad=True).step()
        for p, old in zip(params, before, strict=True):
            torch.testing.assert_close(p.detach(), old - 1)
        assert not params[0].grad.any()


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_a_gradient_that_cannot_be_cleared_is_refused_before_the_step(backend):
    with gdcore.use_backend(backend):
        params = parameters(300, 300)
        params[1].grad = torch.ones(1).expand(300)
        before = [p.detach().clone() for p in params]
        with pytest.raises(RuntimeError, match="zero_grad=True cannot clear the gradient of parameter 1"):
            gdcore.SGD(params, lr=1.0, zero_grad=True).step()
        assert all(map(torch.equal, params, before))


@pytest.mark.parametrize("where", ["the launch", "the norm"])
def test_a_first_step_that_raises_leaves_nothing_to_save(where):
    with gdcore.use_backend("triton"):
        (p,) = parameters(64)
        optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9, max_norm=1.0)
        target = (kernels, "sgd_update") if where == "the launch" else (optimizer, "_norm")
        with mock.patch.object(*target, side_effect=RuntimeError("no")), pytest.raises(RuntimeError, match="no"):
            optimizer.step()
        assert optimizer.state_dict()["state"] == {}
        start, grad = p.detach().clone(), p.grad / p.grad.norm().clamp(min=1)
        optimizer.step()
        torch.testing.assert_close(p.detach(), start - 0.1 * grad)


def test_a_change_that_could_not_be_uploaded_is_not_forgotten():
    with gdcore.use_backend("triton"):
        p, q = parameters(8, (4, 4))
        optimizer = gdcore.SGD([p, q], lr=1.0)
        optimizer.step()
        p.grad, q.grad = torch.ones(8), torch.zeros(4, 4).t()  # another order: the tables are built again
        optimizer.param_groups[0]["lr"] = 100.0
        with mock.patch.object(Stepper, "_build", side_effect=RuntimeError("no memory")), pytest.raises(RuntimeError):
            optimizer.step()
        q.grad = torch.zeros(4, 4)
        before = p.detach().clone()
        optimizer.step()
        torch.testing.assert_close(p.detach(), before - 100)


def test_a_backend_is_refused_every_time():
    params = parameters(5)
    optimizer = gdcore.SGD(params, lr=0.1)
    before = params[0].detach().clone()
    with gdcore.use_backend("triton"), mock.patch.object(gdcore.backends, "interpreting", lambda: False):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="triton backend was asked for"):
                optimizer.step()
    assert torch.equal(params[0], before)


def test_an_absent_gradient_that_comes_back_builds_nothing():
    with gdcore.use_backend("triton"):
        params = parameters(5, 6, 7)
        optimizer = gdcore.SGD(params, lr=0.1, momentum=0.9)
        optimizer.step()
        with mock.patch.object(Stepper, "_build", side_effect=AssertionError("built again")):
            for absent in ([0], [1, 2], [], [2], [0, 1]):
                for i, p in enumerate(params):
                    p.grad = None if i in absent else torch.randn_like(p)
                optimizer.step()


# A graph that is captured keeps reading what its launch was given.


def relayout(optimizer, params):
    params[1].grad = params[1].grad.t().contiguous().t()


def new_state(optimizer, params):
    optimizer.state[params[0]]["momentum_buffer"] = optimizer.state[params[0]]["momentum_buffer"].clone()


def load(optimizer, params):
    optimizer.load_state_dict(optimizer.state_dict())


def add_group(optimizer, params):
    optimizer.add_param_group({"params": parameters(3)})


@pytest.mark.parametrize("change", [None, relayout, new_state, load, add_group])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_what_a_graph_reads_lives_as_long_as_the_optimizer(change, backend, capturing):
    with gdcore.use_backend("triton"):
        params = [*parameters(50), torch.nn.Parameter(torch.randn(6, 6).t())]
        params[1].grad = torch.randn(6, 6)
        optimizer = gdcore.SGD(params, lr=0.1, momentum=0.9)
        optimizer.step()
        read = {}

        def launch(*tables, **_):
            read.update(
                {name: weakref.ref(t if t._base is None else t._base) for name, t in zip(TABLES, tables, strict=True)}
            )

        with capturing(), mock.patch.object(kernels, "sgd_update", launch):
            for p in params:
                p.grad = p.grad.clone()
            optimizer.step()
    with gdcore.use_backend(backend):
        if change:
            change(optimizer, params)
        for _ in range(2):
            optimizer.step()
    gc.collect()
    assert len(read) == len(TABLES)
    assert [name for name, table in read.items() if table() is None] == []


def test_a_graph_has_tables_of_its_own(capturing):
    """A later step outside uploads other addresses; the graph must not see them, and the step not the graph's."""
    with gdcore.use_backend("triton"):
        (p,) = parameters(5)
        optimizer = gdcore.SGD([p], lr=1.0)
        optimizer.step()
        outside, inside = p.grad, torch.full((5,), 2.0)
        p.grad = inside
        given = {}
        real = kernels.sgd_update

        def launch(*tables, **options):
            given.update(tables=tables, options=options)
            real(*tables, **options)

        with capturing(), mock.patch.object(kernels, "sgd_update", launch):
            optimizer.step()
        p.grad = outside.fill_(3)
        before = p.detach().clone()
        optimizer.step()
        torch.testing.assert_close(p.detach(), before - 3)
        real(*given["tables"], **given["options"])  # the replay
        torch.testing.assert_close(p.detach(), before - 3 - 2)


def test_what_a_graph_makes_is_exact():
    """Addresses and the bits of numbers, over all of int64."""
    bits = np.array([-0.0, -1.0, math.pi, 5e-324]).view(np.int64).tolist()
    words = np.array([0, 1, -1, 2**53 + 1, 2**62 + 3, 2**63 - 1, -(2**63), *bits, *range(200), 0], dtype=np.int64)
    assert _made_in_graph(words, torch.device("cpu")).tolist() == words.tolist()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_first_step_in_a_capture_is_refused(momentum, capturing):
    """Nothing of it stays behind: the step after it is the first."""
    with gdcore.use_backend("triton"):
        params = parameters(64, (3, 5))
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        optimizer = gdcore.SGD(params, lr=0.1, momentum=momentum, dampening=0.5)
        stock = torch.optim.SGD(others, lr=0.1, momentum=momentum, dampening=0.5)
        with capturing(), pytest.raises(RuntimeError, match="take one step before the capture"):
            optimizer.step()
        assert all(map(torch.equal, params, others))
        assert optimizer.state_dict()["state"] == {}
        for _ in range(2):
            for p, q in zip(params, others, strict=True):
                q.grad = p.grad.clone()
            optimizer.step(), stock.step()
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p, q)


def test_captures_without_a_step_between_them(capturing):
    """As many as are wanted, each with its own gradients."""
    with gdcore.use_backend("triton"):
        (p,) = parameters(5)
        optimizer = gdcore.SGD([p], lr=1.0)
        optimizer.step()
        replays, real, kept = [], kernels.sgd_update, []
        for value in (1.0, 2.0, 4.0):
            p.grad = torch.full((5,), value)
            kept.append(p.grad)
            with (
                capturing(),
                mock.patch.object(kernels, "sgd_update", lambda *args, **named: replays.append((args, named))),
            ):
                optimizer.step()
        before = p.detach().clone()
        for i in (2, 0, 1, 0):
            real(*replays[i][0], **replays[i][1])
        torch.testing.assert_close(p.detach(), before - (4 + 1 + 2 + 1))


def test_a_refused_capture_harms_nothing(capturing):
    with gdcore.use_backend("triton"):
        (p,) = parameters(64)
        optimizer = gdcore.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        before, momentum = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
        with capturing(), pytest.raises(RuntimeError, match="take one step before the capture"):
            optimizer.step()
        assert torch.equal(p, before)
        optimizer.step()
        torch.testing.assert_close(p.detach(), before - 0.1 * (0.9 * momentum + 0.5 * p.grad))
