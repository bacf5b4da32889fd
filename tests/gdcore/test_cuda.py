"""What only a GPU shows of linear_mse and linear_mse_sgd_: repeats, graphs, peak memory, more than 2³¹ numbers, streams."""

import fcntl
import pathlib
import tempfile
import threading

import pytest
import torch

import gdcore
from cuda_support import CASES, HALF, Case, assert_same, captured
from gdcore.backends.reference import oracle, relative_error
from support import DEVICE, NAMES, leaves, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

REPEATS = 100
OPTIONS = {"plain": {"lr": 0.05}, "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}}


@pytest.fixture(params=CASES)
def case(request, monkeypatch):
    """One of every path, which linear_mse and linear_mse_sgd_ take."""
    CASES[request.param].force(monkeypatch)
    return CASES[request.param]


def everything(tensors):
    """Loss and all gradients, as a list."""
    loss, gradients = run(gdcore.linear_mse, tensors)
    return [loss, *gradients.values()]


def start(tensors, momentum):
    """What a step writes: copies of weight and bias, and zeros for their momenta."""
    written = {name: tensors[name].clone() for name in ("weight", "bias")}
    if momentum:
        written["momentum_buffer"] = torch.zeros_like(tensors["weight"])
        written["bias_momentum_buffer"] = torch.zeros_like(tensors["bias"])
    return written


def stepped(tensors, written, **options):
    """The loss of a step, and what it wrote."""
    loss = gdcore.linear_mse_sgd_(tensors["input"], target=tensors["target"], **written, **options)
    return [loss, *written.values()]


def test_linear_mse_repeats_bit_for_bit(case):
    tensors = case.draw()
    first = everything(tensors)
    for _ in range(REPEATS):
        assert_same(everything(tensors), first)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_repeats_bit_for_bit(case, options):
    tensors = case.draw()
    first = stepped(tensors, start(tensors, "momentum" in options), **options)
    for _ in range(REPEATS):
        assert_same(stepped(tensors, start(tensors, "momentum" in options), **options), first)


# Graphs.


def refill(fixed, fresh):
    with torch.no_grad():
        for name, tensor in fresh.items():
            fixed[name].copy_(tensor)


def test_a_graph_of_forward_and_backward_follows_its_inputs(case):
    fixed = leaves(case.draw())

    def work():
        loss = gdcore.linear_mse(*(fixed[name] for name in NAMES))
        return [loss.detach(), *torch.autograd.grad(loss, list(fixed.values()))]

    graph, written = captured(work)
    for _ in range(3):
        fresh = case.draw()
        refill(fixed, fresh)
        graph.replay()
        assert_same(written, everything(fresh), bitwise=case.is_ours)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_graph_of_a_step_goes_on_from_where_the_last_one_ended(case, options):
    fixed = case.draw()
    mine = start(fixed, "momentum" in options)
    graph, replayed = captured(lambda: stepped(fixed, mine, **options))
    expected = start(fixed, "momentum" in options)
    refill(mine, expected)
    for _ in range(3):
        refill(fixed, case.draw())
        graph.replay()
        assert_same(replayed, stepped(fixed, expected, **options), bitwise=case.is_ours)


def test_a_graph_of_linear_mse_and_the_optimizer(case):
    fixed = case.draw()
    runs = []
    for _ in range(2):
        params = [fixed[name].clone().requires_grad_() for name in ("weight", "bias")]
        runs.append((params, gdcore.SGD(params, lr=torch.tensor(0.05, device=DEVICE), momentum=0.9)))

    def train(params, optimizer):
        optimizer.zero_grad()
        loss = gdcore.linear_mse(fixed["input"], params[0], fixed["target"], params[1])
        loss.backward()
        optimizer.step()
        return [loss.detach(), *(p.detach() for p in params)]

    graph, replayed = captured(lambda: train(*runs[0]))
    for _ in range(2):
        train(*runs[1])
    for _ in range(3):
        fresh = case.draw()
        refill(fixed, {name: fresh[name] for name in ("input", "target")})
        graph.replay()
        assert_same(replayed, train(*runs[1]), bitwise=case.is_ours)


# Memory.

PEAKS = {
    "vector": Case("one_pass_vector", 200_000, 64, 4),
    "dot": Case("one_pass_dot", 200_000, 64, 16, HALF),
    "tall": Case("one_pass_tall", 200_000, 64, 64, HALF),
    "tall float32": Case("one_pass_tall", 200_000, 64, 64),
    "tiled": Case("tiled", 200_000, 64, 64),
    "descriptors": Case("descriptors", 200_000, 64, 64, HALF),
    "epilogue": Case("epilogue", 200_000, 64, 64, HALF),
    "epilogue float16": Case("epilogue", 200_000, 64, 64, torch.float16, (("input_config", None),)),
    "library": Case("library", 200_000, 64, 64),
    "library bfloat16": Case("library", 200_000, 64, 64, HALF),
    "library float16": Case("library", 200_000, 64, 64, torch.float16, (("input_config", None),)),
    "chunked": Case("chunked", 200_000, 64, 64, fields=(("chunk_rows", 16_384),)),
    "chunked bfloat16": Case("chunked", 200_000, 64, 64, HALF, (("chunk_rows", 16_384),)),
    "as planned": None,
    "as planned, bfloat16": None,
}
SLACK = 1 << 20  # of sums, rounded sizes, and gradients of weight and bias in float32 on the way


@pytest.mark.parametrize("wanted", [("weight", "bias"), NAMES], ids="-".join)
@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_is_what_the_plan_claims(name, wanted, monkeypatch):
    case = PEAKS[name] or Case("", 200_000, 64, 64, HALF if "bfloat16" in name else torch.float32)
    if case.path:
        case.force(monkeypatch)
    inputs = leaves(case.draw(), wanted)
    everything(inputs)  # code, and what the library keeps for itself
    if case.path:
        flags = gdcore.backends.Wanted(*(inputs[i].requires_grad for i in ("input", "weight", "target", "bias")))
        made = case.plan("triton", *(inputs[i] for i in NAMES), "mean", flags)
    else:
        made = gdcore.explain(*(inputs[i] for i in NAMES)).plan
    measured = [inputs[i] for i in NAMES if i in wanted]
    for _ in range(2):  # the second time with warm allocator and plan
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        gradients = torch.autograd.grad(gdcore.linear_mse(*(inputs[i] for i in NAMES)), measured)
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before - sum(g.nbytes for g in gradients)
        del gradients
    assert extra <= made.workspace_bytes + SLACK, made.path
    matrix = case.n * case.m * case.dtype.itemsize
    if made.workspace_bytes < matrix // 4:
        assert extra < matrix // 2, "the plan says that there is no N x M temporary"


# More numbers than 32 bits count.

LARGE = {
    "rows": Case("one_pass_rows", 2**30 + 77, 2, 1, HALF),
    "vector": Case("one_pass_vector", 2**25 + 77, 64, 1, HALF),
    "dot": Case("one_pass_dot", 2**25 + 77, 64, 8, HALF),
    "tall": Case("one_pass_tall", 2**25 + 77, 64, 64, HALF),
    "tiled": Case("tiled", 2**25 + 77, 64, 64, HALF),
    "descriptors": Case("descriptors", 2**25 + 77, 64, 64, HALF),
    "epilogue": Case("epilogue", 2**25 + 77, 64, 64, HALF),
    "library": Case("library", 2**25 + 77, 64, 64, HALF),
    "chunked": Case("chunked", 2**25 + 77, 64, 64, HALF, (("chunk_rows", 2**21),)),
    "tiled, wide": Case("tiled", 2**17 + 77, 64, 2**14, HALF),
    "descriptors, wide": Case("descriptors", 2**17 + 77, 64, 2**14, HALF),
    "epilogue, wide": Case("epilogue", 2**17 + 77, 64, 2**14, HALF),
    "library, wide": Case("library", 2**17 + 77, 64, 2**14, HALF),
    "chunked, wide": Case("chunked", 2**17 + 77, 64, 2**14, HALF, (("chunk_rows", 2**14),)),
}
TAIL = 150  # rows that are not zero, on both sides of 2³¹ numbers


@pytest.fixture(params=LARGE)
def large(request, monkeypatch):
    """X, Y, or both of more than 2³¹ numbers, zero but for the last rows. One test at a time, whatever runs beside it."""
    case = LARGE[request.param]
    matrices = case.n * (2 * case.k + 4 * case.m) * case.dtype.itemsize  # X, dX; Y, dY, E, c E
    with open(pathlib.Path(tempfile.gettempdir()) / "gdcore-large-tests", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            if torch.cuda.mem_get_info()[0] < matrices + (3 << 30):
                pytest.skip("needs more memory")
        case.force(monkeypatch)
        ends = Case(case.path, TAIL, case.k, case.m, case.dtype).draw()
        del ends["bias"]
        tensors = dict(ends)
        for name in ("input", "target"):
            tensors[name] = torch.zeros(case.n, ends[name].shape[1], dtype=case.dtype, device=DEVICE)
            tensors[name][-TAIL:] = ends[name]
        yield case, tensors, ends
        del tensors
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def assert_is_the_tails(gradient, exact):
    """The last rows are what these rows alone would have, and all others zero."""
    assert relative_error(gradient[-TAIL:], exact) < 2e-2
    for part in gradient[:-TAIL].split(2**31 // gradient.shape[1] // 8):
        assert not part.any()


@pytest.mark.parametrize("wanted", [("weight",), ("input", "weight"), ("target",)], ids="-".join)
def test_linear_mse_beyond_two_to_the_31(large, wanted):
    _, tensors, ends = large
    exact_loss, exact = oracle(**ends, reduction="sum")
    loss, gradients = run(gdcore.linear_mse, tensors, wanted, reduction="sum")
    assert relative_error(loss, exact_loss) < 2e-2
    for name, gradient in gradients.items():
        if name == "weight":
            assert relative_error(gradient, exact[name]) < 2e-2
        else:
            assert_is_the_tails(gradient, exact[name])


def test_a_step_beyond_two_to_the_31(large):
    case, tensors, ends = large
    exact_loss, exact = oracle(**ends, reduction="sum")
    weight = tensors["weight"].clone()
    numbers = case.n * case.m
    rate = 0.1 / exact["weight"].abs().max().item()
    loss = gdcore.linear_mse_sgd_(tensors["input"], weight, tensors["target"], lr=rate * numbers)
    assert relative_error(loss.double() * numbers, exact_loss) < 2e-2
    assert relative_error(weight, tensors["weight"].double() - rate * exact["weight"]) < 2e-2
    assert relative_error(tensors["weight"], weight.double()) > 2e-2, "the step can be seen"


# Streams.


def assert_no_synchronisation(work):
    work()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device(case):
    tensors = case.draw()
    upstream = torch.tensor(3.0, device=DEVICE, dtype=case.dtype)
    written, rate = start(tensors, True), torch.tensor(0.05, device=DEVICE)
    assert_no_synchronisation(lambda: run(gdcore.linear_mse, tensors))
    assert_no_synchronisation(lambda: run(gdcore.linear_mse, tensors, grad_output=upstream))
    assert_no_synchronisation(lambda: stepped(tensors, written, **OPTIONS["momentum"]))
    assert_no_synchronisation(lambda: stepped(tensors, written, lr=rate))


def test_nothing_waits_where_free_memory_is_asked_for():
    tensors = Case("", 16_384, 64, 16_384, HALF).draw()
    assert_no_synchronisation(lambda: run(gdcore.linear_mse, tensors, ("input", "weight")))


def test_work_is_done_in_the_order_of_its_stream(case):
    tensors = case.draw()
    expected = everything({name: tensor * 2 for name, tensor in tensors.items()})
    expected += stepped(tensors | {"input": tensors["input"] * 2}, start(tensors, False), lr=0.05)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what follows must not overtake it
        doubled = {name: tensor.mul(2) for name, tensor in tensors.items()}
        found = everything(doubled)
        found += stepped(tensors | {"input": doubled["input"]}, start(tensors, False), lr=0.05)
        for tensor in doubled.values():
            tensor.fill_(torch.nan)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same(found, expected, bitwise=case.is_ours)


def test_two_threads_on_two_streams(case):
    drawn = [case.draw() for _ in range(2)]
    expected = [everything(t) + stepped(t, start(t, True), **OPTIONS["momentum"]) for t in drawn]
    torch.cuda.synchronize()
    failures = []

    def work(i):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    found = everything(drawn[i]) + stepped(drawn[i], start(drawn[i], True), **OPTIONS["momentum"])
                    assert_same(found, expected[i], bitwise=case.is_ours)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_small_calls_are_stocks_own_and_in_a_graph_the_kernels():
    """Where the host has more to do than the GPU, in which nothing but launches can be saved.

    With a gradient: the loss alone is as fast by the library's product and the pass behind it.
    """
    x, w, y = (
        torch.randn(1000, 10, device=DEVICE),
        torch.randn(1, 10, device=DEVICE, requires_grad=True),
        torch.randn(1000, 1, device=DEVICE),
    )

    def kernels(call):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        return {event.key for event in profile.key_averages()}

    def loss():
        return gdcore.linear_mse(x, w, y)

    assert torch.equal(loss(), torch.nn.functional.mse_loss(torch.nn.functional.linear(x, w), y))
    assert not any("one_pass" in name for name in kernels(loss))
    with gdcore.use_backend("triton"):
        assert any("one_pass" in name for name in kernels(loss))
    graph, _ = captured(loss)
    assert any("one_pass" in name for name in kernels(graph.replay))
