"""One shape in words: gdcore's own text, stock beside it, measured rows of the same shape, and what is no shape."""

import argparse
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import gdcore
from gdcore.bench import explain
from gdcore.bench.results import BadInput


def options(*arguments: str) -> Namespace:
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    return parser.parse_args(arguments)


def said(capsys, *arguments: str) -> str:
    assert explain.command(options(*arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shape", [(100, 2, 1), (3_000_000, 3, 1)], ids=["small", "large"])
def test_here_it_says_what_gdcore_says_of_real_tensors(capsys, shape):
    n, k, m = shape
    weight = torch.empty(m, k).requires_grad_()
    real = gdcore.explain(torch.empty(n, k), weight, torch.empty(n, m))
    assert said(capsys, *map(str, shape), "--device", "cpu").startswith(f"{real}\nstock      moves")


@pytest.mark.parametrize("device", ["A100", "H200", "B200"])
def test_a_gpu_is_planned_for_without_one_and_without_memory(capsys, device):
    text = said(capsys, str(10**15), "2", "1", "--device", device, "--dtype", "bfloat16", "--wanted", "weight,bias")
    assert "input 1000000000000000 x 2, weight 1 x 2, target 1000000000000000 x 1, bfloat16" in text
    assert "gradients  weight, bias\n" in text
    assert f" on {device}\n" in text
    assert "4.33x as fast (predicted)" in text  # 13 numbers a row in place of 3
    assert set(gdcore.devices.KNOWN) == {80, 90, 100}


def test_a_gpu_that_is_here_is_planned_for_as_it_is(monkeypatch):
    small = gdcore.devices.H200._replace(name="NVIDIA H200 slice", sms=16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gdcore.devices, "_describe_cuda", lambda device: small)
    plan = explain.explain(explain.question(options("10000000", "2", "1")), explain.device_named("here")).plan
    assert plan.device == small
    assert plan.programs < 16 * 32


@pytest.mark.parametrize(
    ("more", "numbers"),
    [
        (["--wanted", "none"], 2_000 + 1_000 + 2 + 4_000),
        (["--wanted", "none", "--reduction", "none"], 2_000 + 1_000 + 2 + 3_000),
        ([], 2 * (2_000 + 1_000 + 2) + 7_000),
        (["--wanted", "weight,target"], 2 * (2_000 + 1_000 + 2) + 10_000),
        (["--wanted", "weight,input"], 3 * (2_000 + 1_000 + 2) + 7_000),
    ],
)
def test_stocks_bytes_are_those_of_its_kernels(more, numbers):
    assert explain.question(options("1000", "2", "1", *more)).stock_moves == 4 * numbers


def test_where_stock_computes_no_gain_is_promised(capsys):
    text = said(capsys, "100", "2", "1", "--device", "cpu")
    assert "this shape is left to it: the same time (predicted)" in text
    assert "x as fast" not in text


def row(n: int, **more: object) -> dict:
    times = {"wall": {"p50": 0.002}}
    comparison = {"baseline": "eager", "speedup": 2.0, "low": 1.9, "high": 2.1, "verdict": "FASTER"}
    return {
        "kind": "linear_mse", "n": n, "k": 2, "m": 1, "column": "wall", "failed": None,
        "peers": {"gdcore": {"times": times}, "eager": {"times": {"wall": {"p50": 0.004}}}},
        "comparisons": {"wall": {"eager": comparison}},
    } | more  # fmt: skip


def test_measured_rows_of_the_same_shape_are_shown(capsys, monkeypatch):
    document = {
        "machine": {"device": "cpu", "cores": 2},
        "created": "2026-11-21T17:00:01+00:00",
        "cases": {
            "loss": row(100),
            "wrong": row(100, failed="weight is off", comparisons={}),
            "large": row(100, skipped="too large"),
            "alone": row(100, comparisons={}),
            "other": row(101),
            "step": {"kind": "sgd"},
        },
    }
    monkeypatch.setattr(explain.results, "read", {Path("FILE"): document}.__getitem__)
    text = said(capsys, "100", "2", "1", "--measured", "FILE")
    assert text.endswith(
        "measured   on CPU, 2 cores, 2026-11-21:\n"
        "  loss: gdcore 2.00 ms (wall), stock 4.00 ms: 2.00x as fast (1.90 to 2.10)\n"
        "  wrong: no figure, weight is off\n"
        "  large: no figure, too large\n"
        "  alone: gdcore 2.00 ms (wall), no figure of stock\n"
    )
    assert "nothing of this shape" in said(capsys, "7", "2", "1", "--measured", "FILE")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "1", "1"], "N is 0, it must be a whole number from 1"),
        (["1", "-3", "1"], "K is -3, it must be"),
        (["1", "1", "1.5"], "M is 1.5, it must be"),
        (["many", "1", "1"], "N is many, it must be"),
        ([str(2**63), "1", "1"], "N is 9223372036854775808, it must be"),
        ([str(2**62), "2", "1"], "input, N x K, would take"),
        (["4", "4", "4", "--dtype", "int8"], "--dtype 'int8' is unknown: it must be one of float32"),
        (["4", "4", "4", "--wanted", "weight,loss"], "--wanted 'loss' is unknown"),
        (["4", "4", "4", "--reduction", "max"], "--reduction 'max' is unknown"),
        (["4", "4", "4", "--device", "abacus"], "--device 'abacus' is unknown: it must be one of here, cpu, A100"),
        (["4", "4", "4", "--measured", "/no/such/file"], "cannot read"),
    ],
)
def test_what_cannot_be_explained_is_bad_input(arguments, message):
    with pytest.raises(BadInput) as raised:
        explain.command(options(*arguments))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
