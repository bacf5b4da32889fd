"""The command line from end to end: bad input, broken functions, interruption, resumption, a whole small run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gdcore
from gdcore.backends import reference
from gdcore.bench import runner
from gdcore.bench.__main__ import main
from gdcore.bench.results import SCHEMA

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "huge"], "unknown profile 'huge': it must be one of quick, smoke"),
        (["--only", "nothing-like-this", "--profile", "smoke"], "matches 'nothing-like-this'; there are: tiny-"),
        (["--profile", "smoke", "--out", "FILE/x.json"], "cannot write"),
        (["--resume", "none.json"], "cannot read"),
        (["--resume", "FILE"], "must be 'gdcore-bench/2'"),
        (["readme", "FILE"], "must be 'gdcore-bench/2'"),
        (["--frobnicate"], "unrecognized arguments"),
        (["readme"], "required"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line_and_status_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text(json.dumps({"schema": "another/9"}))
    try:
        status = run(*arguments)
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2
    assert len(captured.err.splitlines()) == 1 and said in captured.err
    assert os.listdir() == ["FILE"], "nothing is left behind"


def test_a_wrong_function_gets_no_speed_and_status_1(tmp_path, monkeypatch, capsys, no_compiler):
    monkeypatch.setattr(gdcore, "linear_mse", lambda *operands: 1.001 * reference.linear_mse(*operands))
    out = tmp_path / "a.json"
    assert run("--profile", "smoke", "--only", "tiny", "--out", out) == 1
    (row,) = json.loads(out.read_text())["cases"].values()
    assert "loss is off" in row["failed"] and "weight is off" in row["failed"]
    assert "comparisons" not in row and all("samples" not in peer for peer in row["peers"].values())
    assert "PARITY FAILS at 100 × 2 × 1" in capsys.readouterr().out


def test_a_function_that_raises_is_a_failure_too(tmp_path, monkeypatch, no_compiler):
    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gdcore, "linear_mse", broken)
    out = tmp_path / "a.json"
    assert run("--profile", "smoke", "--only", "tiny", "--out", out) == 1
    (row,) = json.loads(out.read_text())["cases"].values()
    assert row["failed"] == "RuntimeError: no such kernel"


def test_a_peer_that_fails_is_reported_not_dropped(tmp_path, capsys, no_compiler):
    out = tmp_path / "a.json"
    assert run("--profile", "smoke", "--only", "tiny", "--out", out) == 0
    (row,) = json.loads(out.read_text())["cases"].values()
    assert row["peers"]["compile"] == {"failure": "RuntimeError: No working C++ compiler found"}
    assert set(row["comparisons"]) == {"eager"} and len(row["peers"]["gdcore"]["samples"]) >= 5
    assert "torch.compile gave no figure at 100 × 2 × 1" in capsys.readouterr().out


def test_a_case_too_big_for_the_memory_is_skipped_in_words(tmp_path, monkeypatch, capsys, no_compiler):
    monkeypatch.setattr("gdcore.bench.measure.free_bytes", lambda device: 1000)
    assert run("--profile", "smoke", "--only", "tiny", "--out", tmp_path / "a.json") == 0
    assert "Skipped: 100 × 2 × 1: it takes about" in capsys.readouterr().out


def test_an_interrupt_loses_nothing_and_resume_goes_on(tmp_path, monkeypatch, capsys, no_compiler):
    measured = []
    real = runner.measure_case

    def interrupted(case, setting):
        if measured:
            raise KeyboardInterrupt
        measured.append(case.name)
        return real(case, setting)

    out = tmp_path / "a.json"
    monkeypatch.setattr(runner, "measure_case", interrupted)
    assert run("--profile", "smoke", "--only", "*-float32-*", "--out", out) == 130
    said = capsys.readouterr().out
    assert f"Saved in {out}" in said and f"--resume {out}" in said
    first = json.loads(out.read_text())
    assert list(first["cases"]) == measured and first["finished"] is None

    again = []
    monkeypatch.setattr(runner, "measure_case", lambda case, setting: again.append(case.name) or real(case, setting))
    assert run("--resume", out, "--only", "*-float32-*") == 0
    last = json.loads(out.read_text())
    assert measured[0] not in again and set(last["cases"]) == {*measured, *again} and last["finished"]
    assert last["cases"][measured[0]] == first["cases"][measured[0]]


def test_resuming_with_another_profile_is_refused(tmp_path, capsys, no_compiler):
    out = tmp_path / "a.json"
    assert run("--profile", "smoke", "--only", "tiny", "--out", out) == 0
    before = out.read_text()
    assert run("--resume", out, "--profile", "quick") == 2
    assert "has the profile 'smoke', not 'quick'" in capsys.readouterr().err
    assert run("--resume", out, "--only", "nothing-like-this") == 2
    assert out.read_text() == before, "a refused run changes nothing"


def test_a_whole_small_run_in_a_process_of_its_own(tmp_path):
    out = tmp_path / "a.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "gdcore.bench", "--profile", "smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["schema"] == SCHEMA and found["finished"]
    for row in found["cases"].values():
        assert {"eager", "compile", "gdcore"} == set(row["peers"]) and row["failed"] is None
        assert len(row["peers"]["gdcore"]["samples"]) >= 5
    assert found["memory"] and found["predicted"] and len(found["training"]) == 4
    for words in ("CPU figures", "PREDICTED", "Parity", "What this run found", "Training on digits"):
        assert words in done.stdout or found["machine"]["device"] == "cuda"
