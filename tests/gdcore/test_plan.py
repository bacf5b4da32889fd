"""The plan: the path of every shape, and bytes and FLOPs against counts by hand. No GPU is needed."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gdcore
from gdcore import cost, devices, rates, workspace
from gdcore.backends import NOTHING, Wanted
from gdcore.devices import A100, B200, CPU, H200
from gdcore.plan import every_path, plan_for

ONLY_WEIGHT = Wanted(False, True, False, False)
EVERYTHING = Wanted(True, True, True, True)
FLOAT32 = 4


def on_h200(n, k, m, **options):
    return plan_for(n, k, m, device=H200, **options)


@pytest.mark.parametrize(
    ("shape", "path"),
    [
        ((100, 2, 1), "one_pass_rows"),
        ((10**8, 2, 1), "one_pass_rows"),
        ((1000, 16, 2), "one_pass_rows"),
        ((1000, 16, 3), "one_pass_vector"),
        ((1000, 17, 1), "one_pass_vector"),
        ((1000, 256, 4), "one_pass_vector"),
        ((1000, 64, 5), "one_pass_dot"),
        ((1000, 100, 16), "one_pass_dot"),
        ((10**6, 64, 16), "library"),  # in float32, of so many rows
        ((1000, 513, 1), "library"),
    ],
    ids=str,
)
def test_paths_of_skinny_shapes_on_a_gpu(shape, path):
    assert on_h200(*shape).path == path


def test_products_limited_by_arithmetic_are_the_librarys():
    assert on_h200(8192, 4096, 4096).path == "library"
    assert on_h200(8192, 4096, 4096, has_bias=True).path == "library"
    assert on_h200(8192, 4096, 4096, dtype=torch.float64).path == "library"


def test_what_the_librarys_product_would_round_stays_with_the_kernels():
    """Its operands would be a residual wider than they are, rounded; and it has no products of three in TF32."""
    shape, half = (8192, 4096, 4096), torch.bfloat16
    assert on_h200(*shape, dtype=half, target_dtype=torch.float32, may_be_stock=False).path == "tiled"
    assert on_h200(*shape, input_precision="tf32x3").path == "tiled"
    assert on_h200(*shape, target_dtype=half).path == "library"
    for family in ("epilogue", "library"):
        assert family in {other.path for other in on_h200(*shape, dtype=half).alternatives}
        assert family not in {other.path for other in on_h200(*shape, input_precision="tf32x3").alternatives}


def test_many_rows_of_up_to_512_take_one_pass_on_tensor_cores():
    tall = on_h200(10**6, 128, 128, dtype=torch.bfloat16)
    assert tall.path == "one_pass_tall"
    blocks = -(-128 // tall.config.block_m)
    assert tall.programs % blocks == 0 and tall.programs <= H200.sms * tall.resident
    stock = next(other for other in tall.alternatives if other.path == "stock")
    assert tall.predicted_seconds < stock.seconds / 2
    # Every part of the rows leaves K x M partial sums: few rows make few parts.
    few = every_path(2000, 128, 128, dtype=torch.bfloat16, wanted=ONLY_WEIGHT, device=H200)
    assert next(made for made in few if made.path == "one_pass_tall").programs < tall.programs


def test_a_path_that_is_predicted_to_be_little_faster_than_the_library_is_not_taken():
    """Little is a tenth, and less where the products' factors were measured."""
    plan = on_h200(1000, 256, 16)
    seconds = {other.path: other.seconds for other in plan.alternatives}
    assert seconds["one_pass_dot"] < seconds["library"] < 1.1 * seconds["one_pass_dot"]
    assert plan.path == "library"
    plan = on_h200(8192, 4096, 4096, dtype=torch.bfloat16)
    seconds = {other.path: other.seconds for other in plan.alternatives}
    assert seconds["tiled"] < seconds["library"] < 1.1 * seconds["tiled"]
    assert plan.path == "tiled"
    measured = [rates.trusted_to(device, torch.float16, "ieee") for device in (A100, H200, B200)]
    assert measured == [1.10, 1.02, 1.10] and rates.trusted_to(H200, torch.float32, "tf32") == 1.10


def test_the_epilogue_path_is_offered_where_its_product_is_on_descriptors():
    def offered(n, k, m, device=H200, **options):
        return "epilogue" in {other.path for other in plan_for(n, k, m, device=device, **options).alternatives}

    half, shape = torch.bfloat16, (8192, 2048, 2048)
    assert offered(*shape, dtype=half) and offered(*shape, input_precision="tf32") and offered(*shape, B200, dtype=half)
    assert not offered(*shape) and not offered(*shape, dtype=torch.float64) and not offered(*shape, A100, dtype=half)
    assert not offered(8192, 2047, 2048, dtype=half) and not offered(*shape, dtype=half, contiguous=False)
    assert not offered(*shape, dtype=half, wanted=NOTHING) and not offered(
        *shape, dtype=half, wanted=Wanted(target=True, weight=False)
    )


HALF, WIDE = 2, 4


@pytest.mark.parametrize("n", [8192, 1024], ids=["c in W and dW", "c in E"])
def test_bytes_of_the_epilogue_path_by_hand(n):
    k, m, wanted = 2048, 2048, Wanted(True, True)
    plan = next(
        p for p in every_path(n, k, m, dtype=torch.bfloat16, wanted=wanted, device=H200) if p.path == "epilogue"
    )
    x, y, e, w = n * k * HALF, n * m * HALF, n * m * HALF, m * k * HALF
    config = plan.forward_config
    partials = -(-n // config.block_n) * -(-m // config.block_m) * WIDE
    read = (x + w + y) + partials + WIDE  # the product; the sum; the loss in its type
    written = (e + partials) + WIDE + HALF
    if n > k:
        wide = m * k * WIDE
        read, written = read + w + (e + w) + (e + x) + wide, written + w + x + wide + w
        assert plan.workspace_bytes == e + wide
    else:
        read, written = read + e + (e + w) + (e + x), written + e + x + w
        assert plan.workspace_bytes == 2 * e
    assert (plan.bytes_read, plan.bytes_written) == (read, written)
    assert plan.flops == 3 * (2 * n * k * m) + 3 * n * m


@pytest.mark.parametrize("path", ["library", "epilogue"])
def test_memory_of_float16_gradients_by_hand(path):
    """c enters behind both products: dX in float32, then dW, never together. X Wᵀ of the library is a float32 part."""
    n, k, m, e = 8192, 1024, 512, 8192 * 512 * HALF
    forward = {"library": n * m * WIDE, "epilogue": 0}[path]
    for wanted, late in (
        (Wanted(True, True), n * k * WIDE),
        (Wanted(False, True), m * k * WIDE),
        (Wanted(True, False), n * k * WIDE),
    ):
        plans = every_path(n, k, m, dtype=torch.float16, wanted=wanted, device=H200)
        made = dataclasses.replace(next(p for p in plans if p.path == path), input_config=None)
        asked = cost.Asked(torch.float16, wanted, "mean", True, False)
        assert workspace.workspace_of(made, asked) == e + max(forward, late)


@pytest.mark.parametrize("input_precision", ["ieee", "tf32", "tf32x3"])
def test_three_products_of_tf32_take_three_times_as_long_as_one(input_precision):
    rate = {"ieee": 52e12, "tf32": 390e12, "tf32x3": 130e12}[input_precision]
    assert H200.rate(torch.float32, input_precision) == rate
    assert H200.rate(torch.bfloat16, input_precision) == 780e12
    plan = on_h200(2048, 2048, 2048, input_precision=input_precision)
    assert plan.compute_seconds == pytest.approx(plan.flops / rate)


@pytest.mark.parametrize(
    ("capability", "architecture"), [((7, 5), 80), ((8, 6), 80), ((9, 0), 90), ((10, 3), 100), ((12, 0), 80)], ids=str
)
def test_every_gpu_has_a_table(capability, architecture, monkeypatch):
    class Properties:
        name, multi_processor_count, shared_memory_per_block_optin = "GPU", 10, 101_376
        major, minor = capability

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    devices._describe_cuda.cache_clear()
    assert devices.describe(torch.device("cuda", 7)).architecture == architecture
    devices._describe_cuda.cache_clear()


@pytest.mark.parametrize(
    ("shape", "options", "path"),
    [
        ((1000, 10, 1), {}, "stock"),
        ((1000, 10, 1), {"dtype": torch.float64}, "stock"),
        ((1000, 10, 1), {"dtype": torch.bfloat16}, "one_pass_rows"),  # of which stock rounds the prediction
        ((1000, 10, 1), {"may_be_stock": False}, "one_pass_rows"),
        ((1000, 10, 1), {"small_to_stock": False}, "one_pass_rows"),
        ((1000, 10, 1), {"target_dtype": torch.float64}, "one_pass_rows"),
        ((100_000, 10, 1), {}, "one_pass_rows"),
        ((600, 600, 600), {}, "library"),  # few numbers, many products
    ],
    ids=str,
)
def test_what_costs_the_host_more_than_the_gpu_goes_to_stock(shape, options, path):
    assert on_h200(*shape, **{"small_to_stock": True, **options}).path == path


def test_explain_leaves_small_shapes_to_stock():
    x, w, y = (torch.empty(shape, device="meta") for shape in ((1000, 10), (1, 10), (1000, 1)))
    told = gdcore.explain(x, w, y, device="H200")
    assert told.plan.path == "stock" and "host" in told


def test_a_gpu_is_planned_with_its_own_memory_and_clock(monkeypatch):
    class H100:  # as PyTorch describes one; 3.05 TB/s and 788 TFLOP/s were measured on it
        name, multi_processor_count, shared_memory_per_block_optin = "NVIDIA H100 80GB HBM3", 132, 232_448
        major, minor, clock_rate, memory_clock_rate, memory_bus_width = 9, 0, 1_980_000, 2_619_000, 5120

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: H100)
    devices._describe_cuda.cache_clear()
    found = devices.describe(torch.device("cuda", 7))
    devices._describe_cuda.cache_clear()
    assert found.bandwidth == pytest.approx(3.05e12, rel=0.03)
    assert found.rate(torch.bfloat16, "ieee") == pytest.approx(788e12, rel=0.03)
    assert found.rate(torch.float32, "ieee") == pytest.approx(51.7e12, rel=0.03)


@pytest.mark.parametrize("shape", [(0, 2, 1), (5, 0, 1), (5, 2, 0)], ids=str)
def test_nothing_to_compute(shape):
    assert on_h200(*shape).path == "stock"


def test_rows_need_contiguous_tensors():
    assert on_h200(1000, 3, 1, contiguous=False).path == "one_pass_vector"


def test_no_reduction_forms_the_squares_between_the_products():
    assert on_h200(10**6, 2, 1, reduction="none").path == "library"
    assert on_h200(64, 608, 608, dtype=torch.bfloat16, reduction="none").path == "tiled"


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_tiny_shapes_and_full_results_are_stocks_on_a_cpu(reduction):
    assert plan_for(100, 2, 1, reduction=reduction).path == "stock"
    assert plan_for(10**7, 2, 1, reduction=reduction).path == ("stock" if reduction == "none" else "streaming")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_never_go_to_stock_which_rounds_the_prediction(dtype):
    assert plan_for(100, 2, 1, dtype=dtype).path == "streaming"


def test_bytes_of_the_one_pass_kernel_by_hand():
    n, k, m = 10**6, 2, 1
    plan = on_h200(n, k, m, wanted=ONLY_WEIGHT)
    sums, gradient = (1 + m + m * k) * FLOAT32, m * k * FLOAT32  # loss, db and dW of every program
    partials = plan.programs * sums
    assert (
        plan.bytes_read == n * (k + m) * FLOAT32 + m * k * FLOAT32 + partials + gradient
    )  # the last: times grad_output
    assert plan.bytes_written == partials + sums + gradient
    assert plan.workspace_bytes == partials
    assert plan.flops == 2 * (2 * n * k * m) + 3 * n * m
    assert not plan.store_residual


def test_bytes_of_the_one_pass_kernel_with_every_gradient_by_hand():
    n, k, m = 10**6, 8, 2
    plan = on_h200(n, k, m, wanted=EVERYTHING, has_bias=True)
    assert plan.path == "one_pass_rows"
    x, y, e, w = n * k * FLOAT32, n * m * FLOAT32, n * m * FLOAT32, m * k * FLOAT32
    parameters, sums = (m * k + m) * FLOAT32, (1 + m + m * k) * FLOAT32
    partials = plan.programs * sums
    # The pass; the ordered sum; both times grad_output; c W for dX, and dX = E (c W); dY = -c E.
    assert plan.bytes_read == (x + y + parameters) + partials + parameters + w + (e + w) + e
    assert plan.bytes_written == (partials + e) + sums + parameters + w + x + y
    assert plan.flops == 3 * (2 * n * k * m) + 3 * n * m


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("wanted", [NOTHING, ONLY_WEIGHT], ids=["loss alone", "weight"])
def test_bytes_of_the_library_path_by_hand(wanted, has_bias):
    n, k, m = 4096, 4096, 4096
    plan = on_h200(n, k, m, wanted=wanted, has_bias=has_bias)
    assert plan.path == "library"
    assert plan.split == 1
    x, y, e, w = n * k * FLOAT32, n * m * FLOAT32, n * m * FLOAT32, m * k * FLOAT32
    partials = 1024 * FLOAT32
    read = (x + w) + (e + y + has_bias * m * FLOAT32) + partials  # the product; the pass over it; the sum
    written = e + partials + FLOAT32
    if wanted.weight:  # E, times c, and dW
        read, written = read + e + (e + x), written + e + e + w
    assert plan.bytes_read == read
    assert plan.bytes_written == written
    assert plan.workspace_bytes == e + wanted.weight * e


def test_bytes_of_the_stock_composition_by_hand():
    n, k, m = 1000, 8, 2
    plan = plan_for(n, k, m, wanted=ONLY_WEIGHT)
    x, y, p, w = (count * FLOAT32 for count in (n * k, n * m, n * m, m * k))
    assert plan.path == "stock"
    assert plan.bytes_read == (x + w) + (p + y) + (p + y) + (p + x)  # linear, loss, the loss's gradient, dW
    assert plan.bytes_written == p + p + w  # the prediction, its gradient, dW


def test_the_loss_alone_moves_the_data_once_and_stores_nothing():
    plan = plan_for(10**7, 4, 1, wanted=NOTHING)
    assert plan.bytes_read == 10**7 * 5 * FLOAT32 + 4 * FLOAT32
    assert plan.bytes_written == 0
    assert not plan.store_residual


def test_the_floor_is_the_larger_of_memory_and_arithmetic():
    memory, arithmetic = on_h200(10**8, 2, 1), on_h200(8192, 8192, 8192, dtype=torch.bfloat16)
    assert memory.floor_seconds == memory.memory_seconds > memory.compute_seconds
    assert arithmetic.floor_seconds == arithmetic.compute_seconds > arithmetic.memory_seconds
    assert memory.floor_seconds == pytest.approx(10**8 * 3 * FLOAT32 / 4.3e12, rel=0.01)
    assert plan_for(100, 2, 1, device=CPU).floor_seconds is None


@pytest.mark.parametrize("n", [100, 10**6, 10**7])
def test_a_wave_has_no_more_programs_than_are_launched(n):
    plan = plan_for(n, 2, 1, device=H200)
    launch = plan.launches[0]
    assert launch.slots <= plan.programs and launch.waves == launch.tiles / plan.programs >= 1


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(1, 10**9),
    k=st.integers(1, 20_000),
    m=st.integers(1, 20_000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    wanted=st.builds(Wanted, *[st.booleans()] * 4),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    device=st.sampled_from([A100, H200, B200, CPU]),
    contiguous=st.booleans(),
)
def test_no_shape_falls_between_two_paths(n, k, m, dtype, wanted, reduction, device, contiguous):
    plan = plan_for(n, k, m, dtype=dtype, wanted=wanted, reduction=reduction, device=device, contiguous=contiguous)
    assert plan.why
    assert plan.bytes_read >= n * k * dtype.itemsize
    assert plan.flops >= 2 * n * k * m
    if device is CPU:
        assert plan.path in ("stock", "streaming")
        assert plan.block_rows >= 1
        return
    if plan.path.startswith("one_pass"):
        assert plan.config is not None
        assert plan.programs >= 1
        assert plan.grad_in_forward
        assert plan.store_residual == (wanted.input or wanted.target)
    elif plan.path == "chunked":
        assert 0 < plan.chunk_rows < n
    elif plan.path == "stock":
        assert dtype.itemsize == 2, "of others ours is never far behind"
    else:
        assert plan.path in ("tiled", "epilogue", "library")
        assert plan.store_residual == any(wanted)
        assert plan.split >= 1
    assert 0 < plan.predicted_seconds < float("inf")


def test_explain_says_it_in_words():
    x, w, y = (
        torch.empty(10**6, 2, device="meta"),
        torch.empty(1, 2, device="meta"),
        torch.empty(10**6, 1, device="meta"),
    )
    told = gdcore.explain(x, w.requires_grad_(), y, device="H200")
    assert isinstance(told, str)
    assert repr(told) == str(told)
    assert told.plan.path == "one_pass_rows"
    for words in (
        "one_pass_rows on H200",
        "loss and gradient from one read",
        "12 MB read",
        "bound by memory",
        "predicted  10.2 µs, most of it launches, in 3 launches:",
        "tiles in",
        "library",
        "times as long",
    ):
        assert words in told, told


def test_explain_tells_of_the_cpu_too():
    told = gdcore.explain(torch.empty(2_000_000, 3), torch.randn(2, 3).requires_grad_(), torch.empty(2_000_000, 2))
    assert "streaming on CPU" in told
    workers = told.plan.workers
    assert f"rows a worker, {workers} worker{'s' if workers > 1 else ''}" in told
    assert "stock" in gdcore.explain(torch.randn(4, 3), torch.randn(2, 3), torch.randn(4, 2))


def test_explain_refuses_what_linear_mse_refuses():
    with pytest.raises(ValueError, match="target has shape"):
        gdcore.explain(torch.randn(4, 3), torch.randn(2, 3), torch.randn(4))
