"""SGD on GPUs: CUDA graphs, tensors of more than 2³¹ elements, several devices, nothing that waits for the device."""

import copy
import gc
import math
import weakref

import pytest
import torch

import gdcore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

DEVICE = "cuda"
TOGETHER = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}
HYPER = {"plain": {}, "momentum": {"momentum": 0.9, "dampening": 0.3}, "together": TOGETHER}
SIZES = (1, 300, 2048, 5001)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


class Run:
    """Parameters with gradients in fixed memory, as a graph needs them, and stock's beside them."""

    def __init__(self, hyper, lr=0.1, dtype=torch.float32, **beyond):
        self.ours = [leaf(torch.randn(n, device=DEVICE).to(dtype)) for n in SIZES]
        self.theirs = [leaf(p) for p in self.ours]
        for p in (*self.ours, *self.theirs):
            p.grad = torch.zeros_like(p)
        self.lr = torch.tensor(lr, device=DEVICE)
        self.optimizer = gdcore.SGD(self.ours, lr=self.lr, **hyper, **beyond)
        self.stock = torch.optim.SGD(self.theirs, lr=lr, **hyper, foreach=False)

    def draw(self, factor=1.0):
        """New gradients in the same memory."""
        for p, q in zip(self.ours, self.theirs, strict=True):
            q.grad.copy_(torch.randn_like(q))
            p.grad.copy_(q.grad * factor)

    def set_lr(self, lr):
        self.lr.fill_(lr)
        self.stock.param_groups[0]["lr"] = lr

    def both(self, ours, factor=1.0):
        self.draw(factor)
        ours()
        self.stock.step()

    def assert_close(self, tolerance=2e-6):
        torch.cuda.synchronize()
        for p, q in zip(self.ours, self.theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
            momentum = self.stock.state.get(q, {}).get("momentum_buffer")
            if momentum is not None:
                torch.testing.assert_close(
                    self.optimizer.state[p]["momentum_buffer"], momentum, rtol=tolerance, atol=tolerance
                )


def captured(step):
    """A graph of one call; nothing of it has run."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


# Graphs.


@pytest.mark.parametrize("hyper", HYPER.values(), ids=HYPER)
def test_replays_follow_the_rate_and_the_gradients(hyper):
    run = Run(hyper)
    run.both(run.optimizer.step)
    graph = captured(run.optimizer.step)
    run.assert_close()
    for lr in (0.1, 0.02, 0.5):
        run.set_lr(lr)
        run.both(graph.replay)
    run.assert_close()


@pytest.mark.parametrize("hyper", HYPER.values(), ids=HYPER)
def test_eager_steps_and_replays_take_turns(hyper):
    """What a graph did, the next step outside it continues, and the other way round."""
    run = Run(hyper)
    run.both(run.optimizer.step)
    graph = captured(run.optimizer.step)
    for step in (graph.replay, run.optimizer.step, run.optimizer.step, graph.replay, run.optimizer.step):
        run.both(step)
    run.assert_close()


def test_eager_steps_after_a_capture_may_have_other_gradients_and_rates():
    """The graph keeps its own tables: an eager step in between does not change them."""
    run = Run(TOGETHER)
    run.both(run.optimizer.step)
    graph = captured(run.optimizer.step)
    run.both(graph.replay)
    kept = [p.grad for p in run.ours]
    for p in run.ours:
        p.grad = torch.zeros_like(p)
    run.optimizer.param_groups[0]["weight_decay"] = run.stock.param_groups[0]["weight_decay"] = 0.5
    run.both(run.optimizer.step)
    for p, grad in zip(run.ours, kept, strict=True):
        p.grad = grad
    run.stock.param_groups[0]["weight_decay"] = 0.02  # a number is part of the graph, as in torch
    run.both(graph.replay)
    run.assert_close()


@pytest.mark.parametrize("hyper", HYPER.values(), ids=HYPER)
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_first_step_in_a_capture_is_refused(hyper):
    """It says so and changes nothing: after a step outside the capture succeeds."""
    run = Run(hyper)
    before = [p.detach().clone() for p in run.ours]
    with pytest.raises(RuntimeError, match="take one step before the capture"):
        captured(run.optimizer.step)
    torch.cuda.synchronize()
    assert all(map(torch.equal, before, run.ours))
    run.both(run.optimizer.step)
    graph = captured(run.optimizer.step)
    for _ in range(3):
        run.both(graph.replay)
    run.both(run.optimizer.step)
    run.assert_close()


def test_two_graphs_of_one_optimizer():
    """Each with gradients in its own memory."""
    run = Run(TOGETHER)
    run.both(run.optimizer.step)
    first = captured(run.optimizer.step)
    grads = [p.grad for p in run.ours]
    others = [torch.zeros_like(p) for p in run.ours]
    for p, grad in zip(run.ours, others, strict=True):
        p.grad = grad
    second = captured(run.optimizer.step)
    for graph, memory in ((first, grads), (second, others), (second, others), (first, grads)):
        for p, grad in zip(run.ours, memory, strict=True):
            p.grad = grad
        run.both(graph.replay)
    run.assert_close()


def test_an_optimizer_may_be_collected_while_another_is_captured():
    """Python does so when it likes: what is freed then must not be of a kind that fails later."""
    gc.collect()
    first, second = Run(TOGETHER), Run(TOGETHER)
    for run in (first, second):
        run.both(run.optimizer.step)
    graph = captured(first.optimizer.step)
    first.both(graph.replay)
    first.assert_close()
    gone = weakref.ref(first.optimizer)
    del first, run

    def collect_and_step():
        gc.collect()
        second.optimizer.step()

    other = captured(collect_and_step)
    assert gone() is None
    for _ in range(3):
        torch.ones(40).pin_memory()
        second.both(other.replay)
    second.assert_close()


def test_two_optimizers_in_one_graph():
    runs = [Run(TOGETHER), Run({})]
    for run in runs:
        run.both(run.optimizer.step)
    graph = captured(lambda: [run.optimizer.step() for run in runs])
    for _ in range(2):
        for run in runs:
            run.draw()
        graph.replay()
        for run in runs:
            run.stock.step()
    for run in runs:
        run.assert_close()


def test_a_whole_training_step_in_a_graph():
    """Forward, backward and step; the gradients live in the graph's memory."""
    model = torch.nn.Sequential(torch.nn.Linear(9, 33), torch.nn.Tanh(), torch.nn.Linear(33, 1)).to(DEVICE)
    twin = copy.deepcopy(model)
    lr = torch.tensor(0.1, device=DEVICE)
    ours = gdcore.SGD(model.parameters(), lr=lr, **TOGETHER)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1, **TOGETHER, foreach=False)
    x = torch.randn(16, 9, device=DEVICE)

    def backward(network, optimizer):
        optimizer.zero_grad()
        network(x).square().mean().backward()

    def train():
        backward(model, ours)
        ours.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(stream)
    for _ in range(3):
        backward(twin, theirs), theirs.step()
    graph = captured(train)
    for rate in (0.1, 0.01, 0.2):
        x.copy_(torch.randn_like(x))
        lr.fill_(rate)
        theirs.param_groups[0]["lr"] = rate
        graph.replay()
        backward(twin, theirs), theirs.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hyper", HYPER.values(), ids=HYPER)
def test_found_inf_is_read_in_each_replay(hyper):
    """Refused or taken as the tensor says when the graph runs; the scale, too, is read then."""
    run = Run(hyper)
    run.both(run.optimizer.step)
    scale, found = torch.tensor(4.0, device=DEVICE), torch.tensor(0.0, device=DEVICE)
    run.optimizer.grad_scale, run.optimizer.found_inf = scale, found
    graph = captured(run.optimizer.step)
    for factor, refused in ((4.0, 0.0), (8.0, 2.0), (8.0, 0.0), (2.0, math.inf), (2.0, 0.0)):
        scale.fill_(factor), found.fill_(refused)
        if refused:
            before = [p.detach().clone() for p in run.ours]
            for p in run.ours:
                p.grad.fill_(math.inf)
            graph.replay()
            torch.cuda.synchronize()
            assert all(map(torch.equal, before, run.ours))
        else:
            run.both(graph.replay, factor)
    run.assert_close()


def test_clipping_and_zeroing_in_a_graph():
    run = Run(TOGETHER, max_norm=1.0, zero_grad=True)

    def clip_and_step(step):
        run.draw()
        step()
        norm = torch.nn.utils.clip_grad_norm_(run.theirs, 1.0)
        run.stock.step()
        torch.testing.assert_close(run.optimizer.grad_norm.float(), norm, rtol=1e-5, atol=0)
        assert all(p.grad.count_nonzero() == 0 for p in run.ours)

    clip_and_step(run.optimizer.step)
    graph = captured(run.optimizer.step)
    held = run.optimizer.grad_norm
    for _ in range(3):
        clip_and_step(graph.replay)
        assert run.optimizer.grad_norm is held
    run.assert_close(1e-5)


def test_masters_in_a_graph():
    run = Run({"momentum": 0.9}, lr=1e-3, dtype=torch.bfloat16, master_weights=True)
    exact = [leaf(p.float()) for p in run.ours]
    stock = torch.optim.SGD(exact, lr=1e-3, momentum=0.9, foreach=False)

    def both(step):
        run.draw()
        for p, q in zip(run.ours, exact, strict=True):
            q.grad = p.grad.float()
        step(), stock.step()

    both(run.optimizer.step)
    graph = captured(run.optimizer.step)
    for _ in range(4):
        both(graph.replay)
    torch.cuda.synchronize()
    for p, q in zip(run.ours, exact, strict=True):
        master = run.optimizer.state[p]["master_weight"]
        torch.testing.assert_close(master, q.detach(), rtol=2e-6, atol=2e-6)
        assert torch.equal(p, master.to(p.dtype))


def test_replays_round_with_new_random_numbers():
    """An eighth of a unit a step: with the same random numbers in each step an eighth of them would move each time."""
    steps, ulp = 32, torch.finfo(torch.bfloat16).eps
    p = leaf(torch.full((50_000,), 1.25, device=DEVICE, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    lr = torch.tensor(ulp / 8, device=DEVICE)
    optimizer = gdcore.SGD([p], lr=lr, maximize=True, stochastic_rounding=True)
    optimizer.step()
    graph = captured(optimizer.step)
    for _ in range(steps - 1):
        graph.replay()
    torch.cuda.synchronize()
    moved = (p.detach().double() - 1.25) / ulp
    deviation = math.sqrt(steps * (1 / 8) * (7 / 8))
    assert abs(moved.mean().item() - steps / 8) <= 6 * deviation / math.sqrt(len(p))
    assert abs(moved.std().item() / deviation - 1) <= 0.05


def test_a_scheduler_reaches_the_graph():
    run = Run({"momentum": 0.9})
    scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.5)
    run.both(run.optimizer.step)
    graph = captured(run.optimizer.step)
    for i in range(1, 4):
        scheduler.step()
        run.stock.param_groups[0]["lr"] = 0.1 * 0.5**i
        run.both(graph.replay)
    assert run.optimizer.param_groups[0]["lr"] is run.lr
    run.assert_close()


# Everything else that only a device shows.


@pytest.mark.parametrize("beyond", [{}, {"max_norm": 1.0}, {"zero_grad": True}], ids=str)
def test_a_step_does_not_wait_for_the_device(beyond):
    run = Run(TOGETHER, **beyond)
    run.optimizer.grad_scale, run.optimizer.found_inf = (torch.tensor(x, device=DEVICE) for x in (2.0, 0.0))
    run.draw()
    run.optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            run.optimizer.step()
        for p in run.ours:
            p.grad = p.grad.neg()
        run.optimizer.param_groups[0]["weight_decay"] = 0.1
        run.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{}, TOGETHER], ids=str)
def test_steps_run_on_the_current_stream(options):
    run = Run(options)
    stream = torch.cuda.Stream()
    for _ in range(3):
        run.draw()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # work that must be done before
            for p in run.ours:
                p.grad.mul_(2.0)
            run.optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        for q in run.theirs:
            q.grad.mul_(2.0)
        run.stock.step()
    run.assert_close()


@pytest.mark.parametrize("strided", [False, True], ids=["flat", "strided"])
def test_more_than_two_to_the_31_elements(strided):
    """The last element and those on both sides of 2³¹ are stepped as the first."""
    n = 2**31 + 4097
    if torch.cuda.mem_get_info()[0] < 4 * n * (2 if strided else 1) + 2**30:
        pytest.skip("needs more memory")
    memory = torch.ones(2 * n if strided else n, device=DEVICE, dtype=torch.bfloat16)
    p = memory[::2] if strided else memory
    p.requires_grad_()
    p = p if p.is_leaf else p.detach().requires_grad_()
    p.grad = torch.ones(n, device=DEVICE, dtype=torch.bfloat16)
    optimizer = gdcore.SGD([p], lr=0.25, max_norm=1e9)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(math.sqrt(n), rel=1e-6)
    for i in (0, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, n - 1):
        assert p[i].item() == 0.75
    pieces = p.detach().split(2**28)
    assert all((piece == 0.75).all().item() for piece in pieces)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("current", [0, 1])
def test_parameters_on_several_devices(current):
    """One norm for all; whichever device is the current one. The veto and the scale lie on one of them."""
    ours = [leaf(torch.randn(300, device=f"cuda:{i % 2}")) for i in range(4)] + [leaf(torch.randn(5))]
    theirs = [leaf(p) for p in ours]
    a, b = gdcore.SGD(ours, lr=0.1, **TOGETHER, max_norm=1.0), torch.optim.SGD(theirs, lr=0.1, **TOGETHER)
    with torch.cuda.device(current):
        for refused in (0.0, 1.0, 0.0):
            a.grad_scale, a.found_inf = torch.tensor(2.0, device="cuda:0"), torch.tensor(refused, device="cuda:0")
            grads = [torch.randn_like(q) for q in theirs]
            for p, q, g in zip(ours, theirs, grads, strict=True):
                p.grad, q.grad = g * 2, g.clone()
            a.step()
            if not refused:
                norm = math.sqrt(sum(g.double().square().sum().item() for g in grads))
                assert a.grad_norm.item() == pytest.approx(norm, rel=1e-6)
                for q in theirs:
                    q.grad.mul_(min(1.0, 1.0 / (norm + 1e-6)))
                b.step()
        assert torch.cuda.current_device() == current
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


def test_repeats_bit_for_bit():
    start = [torch.randn(n, device=DEVICE).bfloat16() for n in SIZES]
    grads = [[torch.randn_like(p) for p in start] for _ in range(3)]

    def trained():
        params = [leaf(p) for p in start]
        optimizer = gdcore.SGD(params, lr=0.1, **TOGETHER, max_norm=1.0, stochastic_rounding=True, seed=4)
        for step in grads:
            for p, g in zip(params, step, strict=True):
                p.grad = g.clone()
            optimizer.step()
        return params

    assert all(map(torch.equal, trained(), trained()))


def test_loaded_state_goes_to_the_parameters_device():
    """A checkpoint that was loaded onto the CPU."""
    run = Run({"momentum": 0.9})
    run.both(run.optimizer.step)
    saved = copy.deepcopy(run.optimizer.state_dict())
    for entry in saved["state"].values():
        entry["momentum_buffer"] = entry["momentum_buffer"].cpu()
    again = gdcore.SGD(run.ours, lr=0.1, momentum=0.9)
    again.load_state_dict(saved)
    run.optimizer = again
    run.both(again.step)
    run.assert_close()
