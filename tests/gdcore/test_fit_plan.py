"""How a run is computed: every decision and every refusal of `plan_run`, in words and in bytes counted by hand. No GPU is needed."""

import dataclasses

import pytest
import torch

import gdcore
from gdcore import devices
from gdcore.kernels import run_configs
from gdcore.plan import plan_for, update_in_words
from gdcore.training import plan as run_plan
from gdcore.training.plan import BATCHES, FILE, LAUNCH_SECONDS, plan_run
from gdcore.training.spec import Spec

CPU = devices.CPU._replace(sms=2)
GPUS = {"A100": devices.A100, "H200": devices.H200, "B200": devices.B200}


def spec(n=100, k=2, m=1, dtype=torch.float32, steps=10, **more):
    return Spec(n=n, k=k, m=m, dtype=dtype, steps=steps, lr=0.1, **more)


SMALL, LARGE = spec(), spec(n=10_000_000)
MINI, LARGE_MINI = spec(batch_size=64), spec(n=10_000_000, batch_size=5_000_000)

DECISIONS = {
    "small data on a CPU": (SMALL, CPU, "cpu", {}, "resident", "the data fits in the cache"),
    "small data on a CPU, asked for": (SMALL, CPU, "cpu", {"method": "resident"}, "resident", "fits in the cache"),
    "mini-batches on a CPU": (MINI, CPU, "cpu", {}, "resident", "mini-batches fit in the cache"),
    "small batches of large data": (spec(n=10_000_000, batch_size=64), CPU, "cpu", {}, "resident", "mini-batches fit"),
    "large data on a CPU": (LARGE, CPU, "cpu", {}, "steps", "do not fit in the cache"),
    "large batches on a CPU": (LARGE_MINI, CPU, "cpu", {}, "steps", "do not fit in the cache"),
    "steps, asked for": (SMALL, CPU, "cpu", {"method": "steps"}, "steps", "asked for"),
    "stream, asked for": (SMALL, CPU, "cpu", {"method": "stream"}, "stream", "asked for: the rows pass by in blocks"),
    "gram, asked for": (SMALL, CPU, "cpu", {"method": "gram"}, "gram", "asked for: sums of products from one pass"),
    "gram of a file": (SMALL, CPU, "cpu", {"method": "gram", "source": FILE}, "gram", "asked for"),
    "gram of several processes": (SMALL, CPU, "cpu", {"method": "gram", "shared": True}, "gram", "asked for"),
    "gram on a GPU": (LARGE, devices.H200, "triton", {"method": "gram"}, "gram", "asked for"),
    "a file": (SMALL, CPU, "cpu", {"source": FILE}, "stream", "the rows come from a memory-mapped file"),
    "a file of several processes": (SMALL, CPU, "cpu", {"source": FILE, "shared": True}, "stream", "memory-mapped file"),
    "batches": (spec(n=0), CPU, "cpu", {"source": BATCHES}, "stream", "the rows come from an iterable of batches"),
    "batches, stream asked for": (spec(n=0), CPU, "cpu", {"source": BATCHES, "method": "stream"}, "stream", "iterable"),
    "several processes": (SMALL, CPU, "cpu", {"shared": True}, "steps", "the processes add their sums in every step"),
    "several processes on GPUs": (SMALL, devices.H200, "triton", {"shared": True}, "steps", "add their sums"),
    "plain PyTorch": (SMALL, CPU, "reference", {}, "steps", "plain PyTorch, a step at a time"),
    "the interpreter, small": (SMALL, devices.INTERPRETED, "triton", {}, "resident", "registers of one program"),
    "the interpreter, large": (LARGE, devices.INTERPRETED, "triton", {}, "steps", "the interpreter runs programs one after"),
}  # fmt: skip
for name, gpu in GPUS.items():
    DECISIONS |= {
        f"small data on {name}": (SMALL, gpu, "triton", {}, "resident", "registers of one program: all steps in one launch"),
        f"more data on {name}": (spec(n=300_000), gpu, "triton", {}, "grid", "registers of all multiprocessors"),
        f"grid on {name}, asked for": (spec(n=3000), gpu, "triton", {"method": "grid"}, "grid", "one cooperative launch"),
        f"large data on {name}": (LARGE, gpu, "triton", {}, "steps", "registers of all multiprocessors: one fused launch"),
        f"mini-batches on {name}": (MINI, gpu, "triton", {}, "resident", "a mini-batch fits in one program"),
        f"large batches on {name}": (LARGE_MINI, gpu, "triton", {}, "steps", "mini-batches do not stay on the chip"),
        f"many outputs on {name}": (spec(m=17), gpu, "triton", {}, "steps", "do not fit in one program's registers"),
    }  # fmt: skip

REFUSALS = {
    "gram with mini-batches": (MINI, CPU, "cpu", {"method": "gram"}, "'gram' is for full batches.*no batch_size"),
    "gram with an iterable": (spec(n=0), CPU, "cpu", {"method": "gram", "source": BATCHES}, "no iterable"),
    "grid on a CPU": (SMALL, CPU, "cpu", {"method": "grid"}, "method='grid' cannot do this run: a grid .* for GPUs"),
    "resident for large data on a CPU": (LARGE, CPU, "cpu", {"method": "resident"}, "rows of a step do not fit in the cache"),
    "resident in plain PyTorch": (SMALL, CPU, "reference", {"method": "resident"}, "the reference backend has no such kernel"),
    "grid in plain PyTorch": (SMALL, CPU, "reference", {"method": "grid"}, "the reference backend has no such kernel"),
    "resident for large data on a GPU": (
        LARGE, devices.H200, "triton", {"method": "resident"}, "'resident'.*do not fit in one program's registers$",
    ),
    "grid for large data on a GPU": (
        LARGE, devices.H200, "triton", {"method": "grid"}, "'grid'.* run: the data does not fit in the registers of all",
    ),
    "grid for mini-batches": (MINI, devices.H200, "triton", {"method": "grid"}, "'grid'.*mini-batches do not stay on the chip"),
    "grid in the interpreter": (SMALL, devices.INTERPRETED, "triton", {"method": "grid"}, "'grid'.*cannot meet at a barrier"),
    **{f"{method} for a file": (SMALL, CPU, "cpu", {"method": method, "source": FILE}, f"'{method}'.*takes method='stream'")
       for method in ("resident", "grid", "steps")},
    **{f"{method} for several processes": (SMALL, CPU, "cpu", {"method": method, "shared": True}, f"'{method}'.*'steps' or 'gram'")
       for method in ("resident", "grid")},
}  # fmt: skip


@pytest.mark.parametrize("name", DECISIONS)
def test_decision(name):
    what, device, backend, options, method, why = DECISIONS[name]
    found = plan_run(what, device, backend, **options)
    assert found.method == found.path == method
    assert why in found.why
    assert (found.backend, found.device, found.spec) == (backend, device, what)
    assert (found.config is None) == (backend == "cpu" or method not in ("resident", "grid"))


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name):
    what, device, backend, options, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        plan_run(what, device, backend, **options)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_gram_is_never_chosen_unasked(backend):
    device = CPU if backend != "triton" else devices.H200
    for n in (1, 10**3, 10**5, 10**7, 10**9):
        assert plan_run(spec(n=n), device, backend).method != "gram"


def test_the_cache_is_counted_in_numbers_that_are_calculated_with():
    rows = run_plan._CACHE_NUMBERS // 4  # of two features, a column of ones and a target
    for dtype in (torch.float32, torch.float64):
        for n, method in ((rows, "resident"), (rows + 1, "steps")):
            assert plan_run(spec(n=n, dtype=dtype, intercept=True), CPU, "cpu").method == method
            assert plan_run(spec(n=10 * rows, batch_size=n, dtype=dtype, intercept=True), CPU, "cpu").method == method


@pytest.mark.parametrize("gpu", GPUS)
def test_configurations_are_those_of_the_table(gpu):
    device = GPUS[gpu]
    shape = (2, 1, torch.float32, device.architecture)
    one = plan_run(SMALL, device, "triton")
    assert (one.config, one.programs) == (run_configs.resident_config(100, *shape), 1)
    batches = plan_run(MINI, device, "triton")
    assert (batches.config, batches.programs) == (run_configs.batches_config(64, *shape), 1)
    many = plan_run(spec(n=300_000), device, "triton")
    assert (many.config, many.programs) == run_configs.grid_config(300_000, *shape, device.sms)
    assert 1 < many.programs <= device.sms


# Bytes and FLOPs


def test_cost_of_a_resident_run_by_hand():
    found = plan_run(spec(n=100, k=3, m=2, steps=7), devices.H200, "triton", dtypes=(torch.bfloat16, torch.float32))
    assert found.bytes_read == 100 * (3 * 2 + 2 * 4)  # once
    assert found.bytes_written == 7 * 4 + 3 * 2 * 4  # losses, coefficients
    assert found.flops == 7 * 4 * 100 * 3 * 2
    recorded = plan_run(
        spec(n=100, k=3, m=2, steps=7, record=True, intercept=True, dtype=torch.float64),
        CPU,
        "cpu",
        dtypes=(torch.float64, torch.float64),
    )
    assert recorded.bytes_written == 7 * 8 + 4 * 2 * 8 + 8 * 4 * 2 * 8  # and 8 states of 4 rows of 2
    assert recorded.bytes_read == 100 * 5 * 8


def test_cost_of_a_grid_by_hand():
    found = plan_run(spec(n=300_000, steps=50), devices.H200, "triton")
    assert found.bytes_read == 300_000 * 3 * 4


def test_cost_of_mini_batches_by_hand():
    for device, backend in ((CPU, "cpu"), (devices.H200, "triton")):
        found = plan_run(spec(n=1000, k=3, m=2, steps=7, batch_size=50), device, backend)
        assert found.bytes_read == 7 * 50 * 5 * 4
        assert found.flops == 7 * 4 * 50 * 3 * 2


def test_cost_of_gram_by_hand():
    found = plan_run(spec(n=1000, k=3, m=2, steps=7), CPU, "cpu", method="gram", dtypes=(torch.bfloat16, torch.float32))
    assert found.bytes_read == 1000 * (3 * 2 + 2 * 4)
    assert found.flops == 2 * 1000 * 5 * 5 + 7 * 2 * 3 * 3 * 2
    assert found.workspace_bytes == 2 * 8 * 5 * 5 + 4 * 8 * 7 * 3 * 2, (
        "sums merged; four of the size of a chunk's steps"
    )


@pytest.mark.parametrize("device", [CPU, devices.H200], ids=["on a CPU", "on a GPU"])
def test_cost_of_steps_is_that_of_as_many_steps(device):
    backend = "cpu" if device is CPU else "triton"
    found = plan_run(spec(n=10_000_000, k=4, m=17, steps=9, intercept=True), device, backend)
    wanted = gdcore.backends.Wanted(weight=True, bias=True)
    step = plan_for(10_000_000, 4, 17, dtype=torch.float32, wanted=wanted, device=device, has_bias=True)
    assert found.step_path.startswith(step.path)
    assert found.step_path.endswith(f"({update_in_words(step)})") == (device is not CPU)
    assert found.bytes_read == 9 * step.bytes_read
    assert found.flops == 9 * step.flops
    assert found.workspace_bytes == step.workspace_bytes
    if device is CPU:
        assert found.predicted_step_seconds is None
    else:
        assert found.predicted_step_seconds == step.floor_seconds + LAUNCH_SECONDS


@pytest.mark.parametrize("more", [{"batch_size": 5_000_000}, {"source": FILE}], ids=["mini-batches", "a file"])
def test_no_time_is_predicted_where_the_host_takes_part(more):
    source = {"source": more.pop("source")} if "source" in more else {}
    found = plan_run(spec(n=10_000_000, k=4, m=17, steps=9, **more), devices.H200, "triton", **source)
    assert found.predicted_step_seconds is None


def test_half_precision_rows_are_counted_as_they_are():
    kinds = torch.bfloat16, torch.bfloat16
    found = plan_run(spec(n=10_000_000, k=64, m=1, steps=9), devices.H200, "triton", dtypes=kinds)
    assert found.method == "steps" and 9 * 1e7 * 65 * 2 <= found.bytes_read < 9 * 1e7 * 65 * 2.1


def test_steps_of_plain_pytorch():
    found = plan_run(spec(n=100, k=3, m=2, steps=7), CPU, "reference", dtypes=(torch.bfloat16, torch.float32))
    assert found.step_path == "stock PyTorch"
    assert found.bytes_read == 7 * 100 * (3 * 2 + 2 * 4)


# Words


WORDS = {
    "small data": (
        SMALL, CPU, "cpu", {},
        ["fit: x 100 x 2, 1 output, full batch, 10 steps in float32", "method     resident on CPU",
         "why        the data fits in the cache", "moves      1,200 bytes read, 48 written, 8,000 FLOPs (predicted)"],
        ["tile", "a step  "],
    ),
    "mini-batches of two outputs": (
        spec(m=2, batch_size=32, dtype=torch.float64), devices.H200, "triton", {},
        ["2 outputs, mini-batches of 32, 10 steps in float64", "method     resident on H200", "tile       32 rows x 2 features",
         "1 program"],
        ["programs"],
    ),
    "many programs": (
        spec(n=300_000), devices.H200, "triton", {}, ["method     grid on H200", "rows x 2 features", " programs"], ["each step"],
    ),
    "steps": (
        LARGE, devices.H200, "triton", {}, ["method     steps on H200, each step by ", "a step     ", " µs (predicted)"], ["tile"],
    ),
    "batches": (
        spec(n=0), CPU, "cpu", {"source": BATCHES},
        ["fit: x ? x 2, 1 output, batches as they come, 10 steps", "moves      what the batches hold, once",
         "why        the rows come from an iterable of batches"],
        ["FLOPs"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_in_words(name):
    what, device, backend, options, said, unsaid = WORDS[name]
    text = str(plan_run(what, device, backend, **options))
    for words in said:
        assert words in text
    for words in unsaid:
        assert words not in text


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan_run(SMALL, CPU, "cpu").method = "gram"


def test_the_result_carries_its_plan():
    x, y = torch.randn(50, 3).half(), torch.randn(50, 2, dtype=torch.float64)
    found = gdcore.fit(x, y, lr=0.1, steps=4).plan
    assert found.spec == Spec(n=50, k=3, m=2, dtype=torch.float64, steps=4, lr=0.1)
    assert found.bytes_read == 50 * (3 * 2 + 2 * 8)
    assert found.device.kind == "cpu"
