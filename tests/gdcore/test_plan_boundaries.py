"""On either side of every boundary between two paths: exactly one of them, legal and predicted; and there the results are right."""

import itertools
import math
import random

import pytest
import torch

import gdcore
from gdcore.backends import Wanted
from gdcore.devices import A100, B200, H200
from gdcore.kernels import configs
from gdcore.kernels.configs import TALL_LIMIT
from gdcore.paths import NEAR
from gdcore.plan import plan_for
from gdcore.rates import TRUSTED
from support import DTYPES, NAMES, assert_parity, draw

EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 2047, 2048, 2049)
ROWS = (1, 2, 63, 64, 65, 1000, 100_000, 10_000_000)
WANTED = [Wanted(*flags) for flags in itertools.product((False, True), repeat=4)]
PRECISIONS = {torch.float32: ("ieee", "tf32", "tf32x3")}
ONE_PASS = {"rows": (16, 4), "vector": (256, 4), "dot": (256, 16), "tall": (TALL_LIMIT, TALL_LIMIT)}


def asked(random):
    """A call at random: boundary sizes and others in between."""
    dtype = random.choice(DTYPES)
    k, m = (random.choice(EDGES) if random.random() < 0.8 else random.randint(1, 5000) for _ in range(2))
    wanted = random.choice(WANTED)
    return {
        "n": random.choice(ROWS) if random.random() < 0.8 else int(2 ** random.uniform(0, 30)),
        "k": k,
        "m": m,
        "dtype": dtype,
        "target_dtype": random.choice([None, None, None, torch.float32]) if dtype.itemsize == 2 else None,
        "wanted": wanted,
        "reduction": random.choice(["mean", "mean", "sum", "none"]),
        "device": random.choice([A100, H200, B200]),
        "contiguous": random.random() < 0.7,
        "has_bias": wanted.bias or random.random() < 0.3,
        "input_precision": random.choice(PRECISIONS.get(dtype, ("ieee",))),
    }


def check_config(plan, call):
    """The configuration that is launched is one that the path's kernel takes."""
    config, family = plan.config, plan.path.removeprefix("one_pass_")
    if plan.path.startswith("one_pass"):
        most_k, most_m = ONE_PASS[family]
        assert plan.k <= most_k and plan.m <= most_m and call["reduction"] != "none"
        assert family != "rows" or call["contiguous"]
        blocks = -(-plan.m // config.block_m) if family == "tall" else 1
        assert plan.programs >= 1 and plan.programs % blocks == 0
        tiles = -(-plan.n // configs.rows_per_tile(family, config, plan.k, plan.dtype))
        assert plan.programs // blocks <= tiles, "a program without rows"
        assert plan.programs <= max(blocks, plan.device.sms * plan.resident), "more than one wave of a persistent grid"
        if family in ("dot", "tall"):
            assert config.block_k >= plan.k and min(config.block_n, config.block_k, config.block_m) >= 16
        assert plan.grad_in_forward and plan.store_residual == (call["wanted"].input or call["wanted"].target)
    elif plan.path not in ("chunked", "stock"):
        assert 1 <= plan.split <= -(-plan.n // plan.weight_config.block_n)
        assert plan.store_residual == any(call["wanted"])
        for made in (plan.config, plan.weight_config, plan.input_config):
            if made is not None:
                blocks = (made.block_n, made.block_k, made.block_m)
                assert all(block >= 16 and block & (block - 1) == 0 for block in blocks)
    if plan.compiled is not None:
        assert plan.compiled["shared_bytes"] <= plan.device.shared_memory and plan.compiled["programs_per_sm"] >= 1


def test_every_call_has_one_path_that_can_be_launched_and_is_predicted_not_to_lose_to_stock():
    seed = random.randrange(2**32)
    source, slower = random.Random(seed), []
    for _ in range(1500):
        call = asked(source)
        plan = plan_for(**call)
        told = f"seed {seed}: {call}"
        assert plan.path in {f"one_pass_{family}" for family in ONE_PASS} | {
            "tiled",
            "epilogue",
            "library",
            "chunked",
            "stock",
        }, told
        assert sum(not other.why_not for other in plan.alternatives) == 1, told
        taken = next(other for other in plan.alternatives if not other.why_not)
        assert plan.path in (taken.path, "chunked"), told
        assert plan.launches and all(0 < launch.seconds < math.inf for launch in plan.launches), told
        assert 0 < plan.predicted_seconds < math.inf and plan.bytes_read > 0 and plan.flops > 0, told
        check_config(plan, call)
        stock = next(other.seconds for other in plan.alternatives if other.path == "stock")
        same = call["dtype"].itemsize > 2 and call["input_precision"] != "tf32x3"  # stock computes what was asked for
        if taken.seconds > (TRUSTED if same else NEAR) * stock:
            slower.append((taken.seconds / stock, told, taken.path))
    assert not slower, max(slower)


def test_half_types_are_left_to_stock_where_it_is_clearly_faster_and_only_if_that_is_allowed():
    """What it costs not to round: a prediction in float32, and in float16 sums before c is applied. Mostly it is a gain."""
    source, ratios, left = random.Random(0), [], 0
    for _ in range(400):
        call = asked(source) | {"dtype": source.choice([torch.float16, torch.bfloat16]), "target_dtype": None}
        call |= {"input_precision": "ieee", "reduction": "mean"}
        ours, plan = plan_for(**call, may_be_stock=False), plan_for(**call)
        times = {other.path: other.seconds for other in ours.alternatives}
        taken = next(other.path for other in ours.alternatives if not other.why_not)
        ratios.append(times[taken] / times["stock"])
        assert ours.path != "stock"
        assert (plan.path == "stock") == (ratios[-1] > NEAR), call
        left += plan.path == "stock"
    assert sorted(ratios)[len(ratios) // 2] < 1
    assert 0 < left < 60


STRADDLING = [
    *((9, k, 1) for k in (16, 17, 256, 257)),
    *((9, 5, m) for m in (4, 5, 16, 17)),
    *((n, 31, 33) for n in (1, 63, 64, 65)),
    (1, 513, 257),
    (3, 512, 17),
    (3, 513, 2),
    (2, 17, 512),
    (2, 17, 513),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", STRADDLING, ids="N={0[0]} K={0[1]} M={0[2]}".format)
def test_results_are_right_on_either_side(shape, dtype):
    """Interpreted, by whatever path the plan takes; every second one from transposed memory, for the gradient of one argument."""
    tensors = draw(*shape, dtype, bias=sum(shape) % 3 > 0)
    if sum(shape) % 2:
        tensors["input"], tensors["target"] = (tensors[name].t().contiguous().t() for name in ("input", "target"))
    with gdcore.use_backend("triton"):
        assert_parity(gdcore.linear_mse, tensors, NAMES if sum(shape) % 4 else ("weight",))
