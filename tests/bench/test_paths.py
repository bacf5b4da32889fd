"""The command that measures paths, with no GPU: what it would do, that it resumes, that a wrong path gets no figure."""

import argparse
import json

import pytest
import torch

from gdcore import measured
from gdcore.bench import paths
from gdcore.bench.paths import Job, Table, Tools
from gdcore.bench.results import BadInput
from gdcore.devices import H200, INTERPRETED
from support import DEVICE

GPU = H200._replace(name="NVIDIA Acted H200")
ABOUT = {"machine": {"gpu": GPU.name}, "versions": {"torch": "2"}, "commit": "abc"}


def options(*arguments):
    parser = argparse.ArgumentParser()
    paths.add_arguments(parser)
    return parser.parse_args(arguments)


def two_jobs():
    return paths.jobs(options("--size", "1000000x256x256", "--size", "8192x4096x4096", "--dtype", "bfloat16"))


def acted(seconds, wrong=(), stop_at=None, log=None):
    """Timers and checks that do as they are told; seconds by path."""

    def bind(job, plans):
        if log is not None:
            log.append(job)
        if stop_at is not None and len(log) > stop_at:
            raise KeyboardInterrupt
        return {"stock": None, **{plan.path: None for plan in plans}}

    def measure(calls, budget):
        return {path: [seconds.get(path, 1e-3)] * 5 for path in calls}

    return Tools(bind, lambda job, plan: "loss is off by 1e-02" if plan.path in wrong else None, measure)


def test_the_list_has_every_size_with_predictions_and_runs_nothing(capsys):
    assert paths.command(options("--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nothing is run" in lines[0] and len(lines) == 1 + 2 * len(paths.SIZES)
    assert all("stock " in line and "library " in line for line in lines[1:])
    assert any("one_pass_tall" in line for line in lines)
    paths.command(options("--list", "--device", "B200", "--size", "100x3x1", "--dtype", "float64", "--input-gradient"))
    assert "100 × 3 × 1 float64, input and weight: one_pass_rows" in capsys.readouterr().out


def test_what_is_measured_becomes_rows_that_plans_take(tmp_path):
    said, table = [], Table(tmp_path / "gpu.json", tmp_path / "samples.json", ABOUT)
    seconds = {"stock": 2e-3, "tiled": 5e-4, "epilogue": 8e-4, "library": 9e-4, "one_pass_tall": 7e-4}
    tools = acted(seconds)
    assert paths.run(two_jobs(), GPU, table, tools, said.append, minutes=1) == (0, 0)
    rows = measured.read(tmp_path / "gpu.json")
    assert [(row.n, row.gpu, row.source) for row in rows] == [
        (1_000_000, GPU.name, (tmp_path / "samples.json").as_posix()),
        (8192, GPU.name, (tmp_path / "samples.json").as_posix()),
    ]
    assert rows[0].seconds == seconds
    assert "tiled 500 µs (predicted " in said[0] and "4.00x as fast as stock" in said[0]
    document = json.loads((tmp_path / "samples.json").read_text())
    assert document["machine"] == ABOUT["machine"] and len(document["shapes"]) == 2
    assert all(shape["samples"]["stock"] == [2e-3] * 5 for shape in document["shapes"].values())


def test_ctrl_c_keeps_what_was_measured_and_the_same_command_goes_on(tmp_path):
    files, log, said = (tmp_path / "gpu.json", tmp_path / "samples.json"), [], []
    with pytest.raises(KeyboardInterrupt):
        paths.run(two_jobs(), GPU, Table(*files, ABOUT), acted({}, stop_at=1, log=log), said.append, minutes=1)
    assert len(measured.read(files[0])) == 1
    log.clear()
    paths.run(two_jobs(), GPU, Table(*files, ABOUT), acted({}, log=log), said.append, minutes=1)
    assert len(log) == 1 and any("is in the table" in line for line in said)
    assert len(measured.read(files[0])) == 2
    paths.run(two_jobs(), GPU, Table(*files, ABOUT), acted({}, log=log), said.append, minutes=1, again=True)
    assert len(log) == 3 and len(measured.read(files[0])) == 2


def test_a_wrong_path_is_left_out_and_a_shape_without_memory_is_passed_over(tmp_path):
    said, table = [], Table(tmp_path / "gpu.json", tmp_path / "samples.json", ABOUT)
    wrong, left = paths.run(two_jobs(), GPU, table, acted({}, wrong=("tiled",)), said.append, minutes=1)
    assert (wrong, left) == (2, 0)
    assert all("tiled" not in row.seconds for row in table.rows.values())
    assert any("tiled is left out: loss is off" in line for line in said)

    def no_memory(job, plans):
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")

    said.clear()
    tools = acted({})
    paths.run(two_jobs(), GPU, table, Tools(no_memory, tools.check, tools.measure), said.append, minutes=1, again=True)
    assert all(line.endswith("not measured: OutOfMemoryError: CUDA out of memory") for line in said)
    assert paths.run(two_jobs(), GPU, table, tools, said.append, minutes=0, again=True) == (0, 2)


@pytest.mark.parametrize("shape", ["40x5x3", "33x20x18"])
def test_every_path_is_called_and_checked_as_the_library_launches_it(shape):
    """Interpreted where there is no GPU: the calls that would be timed give stock's results."""
    (job,) = paths.jobs(options("--size", shape, "--dtype", "float32", "--input-gradient"))
    plans = job.plans(INTERPRETED)
    assert {plan.path for plan in plans} >= {"tiled", "library"} and len(plans) >= 2
    device = torch.device(DEVICE)
    assert {plan.path: paths.why_wrong(job, plan, device) for plan in plans} == {plan.path: None for plan in plans}
    calls = paths.calls_of(job, plans, device)
    results = {name: call() for name, call in calls.items()}
    for found in results.values():
        for ours, theirs in zip(found, results["stock"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_path_that_is_wrong_is_found_out(monkeypatch):
    (job,) = paths.jobs(options("--size", "40x20x18", "--dtype", "float32"))
    plan = next(plan for plan in job.plans(INTERPRETED) if plan.path == "tiled")
    right = paths._function

    def off(made):
        return lambda *tensors: right(made)(*tensors) * 1.001

    monkeypatch.setattr(paths, "_function", off)
    assert "loss is off" in paths.why_wrong(job, plan, torch.device(DEVICE))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "0"], "more than 0"),
        (["--size", "10x2"], "rows x features x outputs"),
        (["--device", "H200"], "goes with --list"),
        (["--list", "--device", "abacus"], "must be one of A100"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(BadInput, match=words):
        paths.command(options(*arguments))


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="there is none here"):
        paths.command(options())


def test_files_of_another_kind_or_machine_are_not_written_over(tmp_path):
    table, samples = tmp_path / "gpu.json", tmp_path / "samples.json"
    table.write_text("my notes")
    with pytest.raises(BadInput, match="damaged"):
        Table(table, samples, ABOUT)
    table.unlink()
    samples.write_text(json.dumps({"schema": paths.SAMPLES, **ABOUT, "commit": "another", "shapes": {}}))
    with pytest.raises(BadInput, match="commit is another one"):
        Table(table, samples, ABOUT)
    assert not table.exists()


def test_an_installed_package_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "gdcore" / "measured")
    with pytest.raises(BadInput, match="--out"):
        paths.default_table("gpu")
    (tmp_path / "setup.py").touch()
    assert paths.default_table("gpu") == tmp_path / "gdcore" / "measured" / "gpu.json"


def test_a_job_says_what_it_is():
    (job,) = paths.jobs(options("--size", "10x2x1", "--dtype", "float32", "--precision", "tf32"))
    assert isinstance(job, Job) and str(job) == "10 × 2 × 1 float32 tf32, weight"
