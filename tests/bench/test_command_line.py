"""The command line from end to end: bad input, help, missing libraries, wrong functions, a whole small run, pytest-benchmark."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gdcore
from gdcore.backends import reference
from gdcore.bench import compare, machine, runner
from gdcore.bench.__main__ import COMMANDS, main
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.measure import measure_case
from gdcore.bench.results import SCHEMA, write

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "device_here", lambda: CPU)


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


@pytest.fixture
def real_cases(monkeypatch, no_compiler) -> None:
    """Cases are measured, but not what the machine can do, and nothing is compiled."""
    monkeypatch.setattr(runner.ceilings, "measure", lambda *_, small: Ceilings(1e10, 1e10, {"float32": 1e11}))


def everything() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.fixture
def files(make) -> None:
    """Result files that can be gone on with here, and many that cannot."""
    here = {"machine": machine.describe_machine(CPU), "versions": machine.versions(), "finished": None}
    good = make.document([make.row()], **here)
    for name, document in {
        "GOOD": good,
        "ELSEWHERE": make.document(),
        "ROW": good | {"cases": {"one": 5}},
        "PARTS": {"schema": SCHEMA, "cases": {}},
        "PROFILE": good | {"profile": "huge"},
        "SELECTED": good | {"selection": {"colour": ["red"]}},
        "SIZED": good | {"selection": {"size": ["0x0x0"]}},
        "OTHER": {"schema": "another/9"},
    }.items():
        write(Path(name), document)
    Path("CUT").write_bytes(Path("GOOD").read_bytes()[:500])
    Path("FOLDER").mkdir()


BAD = {
    "--profile huge": "unknown profile 'huge': it must be one of quick, full, smoke",
    "--regime A,Z": "unknown regime 'Z': it must be one of A, B, C, D, F",
    "--op fly": "unknown op 'fly': it must be one of forward, backward, step, sgd, run, host, predicted",
    "--dtype int8": "unknown dtype 'int8': it must be one of float64",
    "--peer numpy": "unknown peer 'numpy': it must be one of eager, compile",
    "--peer ,": "argument --peer: it must name at least one",
    "--regime ,": "argument --regime: it must name at least one",
    "--size=": "argument --size: it must name at least one",
    "--size 0x2x1": "N, K and M must be at least 1",
    "--size -1": "size '-1' must be three whole numbers",
    "--size=-1x2x3": "size '-1x2x3' must be three whole numbers",
    "--size 1e9": "size '1e9' must be three whole numbers, as in 100000x16x1",
    "--size axbxc": "size 'axbxc' must be three whole numbers",
    "--size 1x1x1,2x2": "size '2x2' must be three whole numbers",
    f"--size {1 << 40}x{1 << 40}x1": "at most 2^62 numbers",
    "--size 10x2x1 --op sgd": "nothing in profile smoke matches",
    "--only nothing-like-this": "'nothing-like-this'; there are: tiny-",
    "--regime C": "nothing in profile smoke matches",
    "--seed abc": "argument --seed: invalid int value: 'abc'",
    "--seed -1": "--seed is -1, it must be a whole number from 0 to 2^63 - 1",
    f"--seed {1 << 63}": "it must be a whole number from 0 to 2^63 - 1",
    "--out FOLDER": "cannot write FOLDER",
    "--out GOOD": "GOOD exists: go on with it by --resume, or give another --out",
    "--out GOOD/x.json": "cannot write GOOD/x.json",
    "--out /proc/none/x.json": "cannot write /proc/none/x.json",
    "--frobnicate": "unrecognized arguments: --frobnicate",
    "measure": "unrecognized arguments: measure",
}
BAD_RESUMES = {
    "--resume none.json": "cannot read none.json: No such file",
    "--resume FOLDER": "cannot read FOLDER: Is a directory",
    "--resume CUT": "CUT is not a result file: it is not JSON",
    "--resume OTHER": f"OTHER has the schema 'another/9', it must be '{SCHEMA}'",
    "--resume PARTS": "PARTS is not a complete result file: created, profile, selection, seed",
    "--resume ROW": "ROW is not a result file: one is malformed",
    "--resume ELSEWHERE": "ELSEWHERE cannot be resumed here: its cpu is 'A CPU', this one is",
    "--resume PROFILE": "unknown profile 'huge'",
    "--resume SELECTED": "selection is none",
    "--resume SIZED": "size '0x0x0'",
    "--resume GOOD --profile quick": "GOOD has the profile 'smoke', not 'quick'",
    "--resume GOOD --seed 0": "--seed cannot change when a run is resumed",
    "--resume GOOD --only nothing-like-this": "'nothing-like-this'; there are:",
    "--resume GOOD --out FOLDER": "cannot write FOLDER",
    "report OTHER": "OTHER has the schema",
    "readme OTHER": "OTHER has the schema",
    "readme GOOD --readme none.md": "cannot read none.md",
    "readme": "the following arguments are required: RESULT.json",
    "compare OTHER GOOD": "OTHER has the schema",
}


@pytest.mark.parametrize("arguments", [*BAD, *BAD_RESUMES])
def test_bad_input_is_one_line_and_status_2_and_changes_nothing(arguments, files, fake_work, capsys):
    said, before = (BAD | BAD_RESUMES)[arguments], everything()
    profile = ["--profile", "smoke"] if arguments in BAD and "--profile" not in arguments else []
    assert run(*arguments.split(), *profile) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("gdcore.bench") and said in captured.err
    assert not fake_work and everything() == before


def test_a_good_file_is_gone_on_with(files, fake_work):
    assert run("--resume", "GOOD", "--op", "sgd") == 0 and fake_work[0] == "ceilings"


def test_without_a_name_the_file_goes_into_a_folder_that_git_ignores(fake_work, capsys):
    assert run("--profile", "smoke", "--only", "plain") == 0
    (path,) = Path("bench-results").glob("*.json")
    assert f"Saved in {path}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command, capsys):
    assert run(*command.split(), "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: gdcore.bench") and len(said.splitlines()) > 5


def test_an_interrupt_of_any_command_is_status_130(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "command", interrupted)
    assert run("compare", "a.json", "b.json") == 130


def test_a_missing_module_that_is_no_extra_is_not_explained_away(monkeypatch):
    def broken(_):
        raise ModuleNotFoundError("No module named 'gdcore.bench.gone'", name="gdcore.bench.gone")

    monkeypatch.setattr(compare, "command", broken)
    with pytest.raises(ModuleNotFoundError):
        run("compare", "a.json", "b.json")


def test_a_terminal_without_our_signs_does_not_end_a_run(monkeypatch, fake_work):
    page = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(page, encoding="ascii"))
    assert run("--profile", "smoke", "--out", "a.json") == 0
    sys.stdout.flush()
    assert b"100 ? 2 ? 1" in page.getvalue()


def test_a_wrong_function_gets_no_speed_and_status_1(monkeypatch, capsys, real_cases):
    monkeypatch.setattr(gdcore, "linear_mse", lambda *operands: 1.001 * reference.linear_mse(*operands))
    assert run("--profile", "smoke", "--only", "*loss", "--out", "a.json") == 1
    (row,) = json.loads(Path("a.json").read_text())["cases"].values()
    assert "loss is off" in row["failed"] and "comparisons" not in row
    assert all("times" not in peer for peer in row["peers"].values()) and row["peers"]["eager"]["parity"]["passed"]
    said = capsys.readouterr().out
    assert "FAILS at 3,000 × 16 × 17 (loss): loss is off" in said and "FAILS" in said and "faster" not in said


def test_a_function_that_raises_is_a_failure_and_a_failing_peer_is_not_dropped(monkeypatch, capsys, real_cases):
    def broken(*_):
        raise RuntimeError("no such kernel")

    real = gdcore.linear_mse
    monkeypatch.setattr(gdcore, "linear_mse", broken)
    asked = ("--profile", "smoke", "--only", "*loss", "--peer", "compile")
    assert run(*asked, "--out", "a.json") == 1
    (row,) = json.loads(Path("a.json").read_text())["cases"].values()
    assert row["failed"] == "RuntimeError: no such kernel"
    monkeypatch.setattr(gdcore, "linear_mse", real)
    capsys.readouterr()
    assert run(*asked, "--out", "b.json") == 0
    (row,) = json.loads(Path("b.json").read_text())["cases"].values()
    assert row["peers"]["compile"]["failure"] == "RuntimeError: No working C++ compiler found"
    assert set(row["comparisons"]["wall"]) == {"eager"} and len(row["peers"]["gdcore"]["times"]["wall"]["samples"]) >= 5
    said = capsys.readouterr().out
    assert "torch.compile has no figure at 3,000 × 16 × 17 (loss): RuntimeError: No working C++ compiler found." in said
    assert "by hand was left out" in said and "failed" in said


def test_a_case_too_big_for_the_memory_is_skipped_in_words(monkeypatch, capsys, fake_work):
    monkeypatch.setattr("gdcore.bench.measure.free_bytes", lambda device: 1000)
    monkeypatch.setattr(runner, "measure_case", measure_case)
    assert run("--profile", "smoke", "--out", "a.json", "--size", f"{1 << 60}x1x1,100x2x1") == 0
    said = capsys.readouterr().out
    assert "Skipped: 100 × 2 × 1: it takes about 0.0 GiB, 0.0 GiB are free." in said
    assert "Skipped: 1,152,921,504,606,846,976 × 1 × 1: it takes about" in said


def python(*arguments: str, **more: object) -> subprocess.CompletedProcess:
    ours = ("TRITON_INTERPRET", "PYTEST_")  # benchmarks are off in a process of several that share a suite
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )


MISSING = """
import sys
from gdcore.bench.__main__ import main
sys.modules["matplotlib"] = None
try:
    main(["--help"])
except SystemExit as done:
    print(done.code, file=sys.stderr)
print(main(["readme", "x.json"]), file=sys.stderr)
for name in [name for name in sys.modules if name.split(".")[0] == "rich" or name.startswith("gdcore.bench")]:
    del sys.modules[name]
sys.modules["rich"] = None
import gdcore
for name in list(vars(gdcore.bench)):
    if not name.startswith("__"):
        delattr(gdcore.bench, name)
print(main(["--profile", "smoke"]), file=sys.stderr)
"""


def test_a_missing_library_is_a_hint():
    said = python("-c", MISSING).stderr.splitlines()
    needs = "is not installed; the benchmark needs: pip install 'gdcore[bench]'"
    assert said == ["0", f"gdcore.bench: matplotlib {needs}", "2", f"gdcore.bench: rich {needs}", "2"]


def test_a_whole_small_run_in_a_process_of_its_own(tmp_path):
    out = tmp_path / "a.json"
    asked = ["--op", "backward,sgd,run,predicted", "--only", "*[!0mv]"]  # without two optimizers and a case
    done = python("-m", "gdcore.bench", "--profile", "smoke", *asked, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["schema"] == SCHEMA and found["finished"] and found["ceilings"]["read"] > 0
    assert {row["kind"] for row in found["cases"].values()} == {"linear_mse", "sgd", "run"}
    for name, row in found["cases"].items():
        assert row["failed"] is None and row["problems"] == [] and found["attempts"][name] == 1
        for peer in row["peers"].values():
            assert {"times", "left_out"} & {*peer}, peer
        for times in row["peers"]["gdcore"]["times"].values():
            assert len(times["samples"]) >= 5 and 0 < times["p20"] <= times["p50"] <= times["p80"]
    assert "times" in found["cases"]["tiny-100x2x1-float32-dW"]["peers"]["compile"]
    assert found["predicted"] and all(row["predicted"] is True for row in found["predicted"])
    for words in ("Parity", "PREDICTED", "What this run found", "Training on lesson", "JAX"):
        assert words in done.stdout, words


def test_pytest_benchmark_runs_the_same_cases(tmp_path):
    out = tmp_path / "b.json"
    quick = [
        "--benchmark-max-time=0.02",
        "--benchmark-min-rounds=2",
        f"--benchmark-json={out}",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = python("-m", "pytest", "bench/", "--benchmark-only", "-k", "3000x16x17", *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {each["extra_info"]["peer"]: each for each in json.loads(out.read_text())["benchmarks"]}
    assert len(found) == 3 and "skipped" in done.stdout
    for peer, each in found.items():
        info = each["extra_info"]
        assert info["parity"]["passed"] and info["times"]["wall"]["p50"] > 0 and info["bytes"] > 0
        assert (info["gdcore"]["wall"] is None) == peer.startswith("gdcore")
        assert each["group"] == "tall-3000x16x17-float32-loss" and each["stats"]["rounds"] >= 2


def test_pytest_benchmark_gives_no_speed_where_parity_fails(make):
    from gdcore.bench import test_speed as suite

    case, peers = suite.PAIRS[0][0], dict.fromkeys(peer.name for _, peer in suite.PAIRS)
    by_name = {peer.name: peer for each, peer in suite.PAIRS if each is case}
    assert {"eager", "gdcore"} <= {*peers}
    row = make.wrong(make.row())
    with pytest.raises(AssertionError, match="loss is off"):
        suite.test_speed(None, {case: row}, case, by_name["gdcore"])
    with pytest.raises(pytest.skip.Exception, match="loss is off"):
        suite.test_speed(None, {case: row}, case, by_name["eager"])
    untimed = make.row()
    untimed["peers"]["library"] = {"what": "l", "no_time": {"wall": "RuntimeError: no"}}
    untimed["peers"]["jax"] = {"what": "j", "left_out": "JAX is not installed"}
    untimed["peers"]["compile"] = {"what": "c", "failure": "RuntimeError: no compiler"}
    for name, why in {"library": "RuntimeError: no", "jax": "not installed", "compile": "no compiler"}.items():
        with pytest.raises(pytest.skip.Exception, match=why):
            suite.test_speed(None, {case: untimed}, case, by_name[name])
    with pytest.raises(pytest.skip.Exception, match="9 GiB"):
        suite.test_speed(None, {case: {"skipped": "9 GiB"}}, case, by_name["gdcore"])
