"""A run from beginning to end with pieces that answer at once: what is done and saved when, and what an interrupt leaves."""

import errno
import json
import os
import signal
from contextlib import suppress

import pytest
import torch

from gdcore.bench import machine, runner, timing
from gdcore.bench.__main__ import main
from gdcore.bench.cases import Case
from gdcore.bench.peers import TUNED
from gdcore.bench.results import BadInput, Results, read
from gdcore.bench.selection import Selection, choose

SMOKE = [case.name for case in choose("smoke", "cpu", Selection())]
KINDS = "step,run,host,predicted"  # of the quick profile: with extra memory, but not so many
FEW = [case.name for case in choose("quick", "cpu", Selection(op=tuple(KINDS.split(","))))]


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "device_here", lambda: torch.device("cpu"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "a.json"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_everything_is_done_in_order_and_marked_as_finished(fake_work, out, capsys):
    assert run("--profile", "smoke", "--out", out) == 0
    assert fake_work == ["ceilings", *SMOKE, "predicted"], "host times are not worth the seconds here"
    document = read(out)
    assert list(document["cases"]) == SMOKE and document["finished"] and set(document["attempts"].values()) == {1}
    said = capsys.readouterr().out
    assert f"[1/{len(SMOKE) + 2}]" in said and "s left" in said and f"report {out}" in said


@pytest.mark.parametrize(
    ("profile", "last"), [("quick", ["memory", "host", "predicted"]), ("smoke", ["predicted"])], ids=["quick", "smoke"]
)
def test_what_comes_after_the_cases(fake_work, out, profile, last):
    run("--profile", profile, "--out", out)
    assert fake_work[-len(last) - 1 :][1:] == last and fake_work[-len(last) - 1].startswith("run-")


@pytest.mark.parametrize("asked", [("--op", "host"), ("--only", "host")], ids=" ".join)
def test_host_times_are_measured_in_smoke_when_asked_for(fake_work, out, asked):
    assert run("--profile", "smoke", "--out", out, *asked) == 0
    assert fake_work == ["host"] and read(out)["host"]["rows"]


def failing(monkeypatch, module, name: str, at: int, error: object = KeyboardInterrupt) -> None:
    """The function raises at its at-th call."""
    real, calls = getattr(module, name), []

    def call(*arguments, **more):
        calls.append(1)
        if len(calls) == at:
            if error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise error
        return real(*arguments, **more)

    monkeypatch.setattr(module, name, call)


PIECES = {
    "the ceilings": (runner.ceilings, "measure", 1, 0),
    "the first case": (runner, "measure_case", 1, 0),
    "a middle case": (runner, "measure_case", 4, 3),
    "the last case": (runner, "measure_case", len(FEW), -1),
    "extra memory": (runner.memory, "measure_apart", 1, None),
    "host": (runner.host, "measure", 1, None),
    "predicted": (runner.predict, "table", 1, None),
    "the summary": (runner.console, "summary", 1, None),
}


@pytest.mark.parametrize("piece", PIECES)
def test_an_interrupt_loses_nothing_and_resume_goes_on(fake_work, monkeypatch, out, capsys, piece):
    module, function, at, measured = PIECES[piece]
    with monkeypatch.context() as broken:
        failing(broken, module, function, at)
        assert run("--op", KINDS, "--out", out) == 130
    first, said = read(out), capsys.readouterr().out
    assert list(first["cases"]) == (FEW if measured is None else FEW[:measured])
    assert f"saved: {len(first['cases'])} case" in said and f"Saved in {out}" in said
    assert bool(first["finished"]) == (piece == "the summary")
    if not first["finished"]:
        assert f"Go on with: python -m gdcore.bench --resume {out}" in said
    assert set(first["attempts"].values()) <= {0, 1}, "an interrupt is no death"
    fake_work.clear()
    assert run("--resume", out) == 0
    last = read(out)
    assert list(last["cases"]) == FEW and last["finished"] and last["host"] and last["predicted"]
    assert not set(fake_work) & set(first["cases"]), "nothing is measured twice"
    assert {name: last["cases"][name] for name in first["cases"]} == first["cases"]
    assert set(last["attempts"].values()) == {1}


def test_an_interrupt_while_a_row_is_saved_loses_nothing(fake_work, monkeypatch, out, capsys):
    with monkeypatch.context() as broken:
        failing(broken, os, "fsync", 4)  # the empty file, the ceilings, an attempt, the row
        assert run("--profile", "smoke", "--out", out) == 130
    assert list(read(out)["cases"]) == SMOKE[:1] and "saved: 1 case." in capsys.readouterr().out


def test_an_interrupt_that_a_compiler_swallows_ends_the_run_after_its_case(fake_work, monkeypatch, out):
    def deaf(case, setting, real=runner.measure_case):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return real(case, setting)

    monkeypatch.setattr(runner, "measure_case", deaf)
    assert run("--profile", "smoke", "--out", out) == 130 and list(read(out)["cases"]) == SMOKE[:1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_ignored_stays_ignored(fake_work, monkeypatch, out):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            runner.ceilings,
            "measure",
            lambda *_, small, real=runner.ceilings.measure: signal.raise_signal(signal.SIGINT) or real(small=small),
        )
        assert run("--profile", "smoke", "--out", out) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_before_anything_was_saved_names_no_file(fake_work, monkeypatch, out, capsys):
    failing(monkeypatch, os, "fsync", 1)
    assert run("--profile", "smoke", "--out", out) == 130
    assert not out.exists() and "saved" not in capsys.readouterr().out.lower()


def test_a_full_disk_is_one_line_and_leaves_what_was_saved(fake_work, monkeypatch, out, capsys):
    failing(monkeypatch, os, "fsync", 6, OSError(errno.ENOSPC, "No space left on device"))
    assert run("--profile", "smoke", "--out", out) == 2
    said = capsys.readouterr()
    assert said.err == f"gdcore.bench: cannot write {out}: No space left on device\n"
    assert list(read(out)["cases"]) == SMOKE[:1] and os.listdir() == ["a.json"]


def killed(*arguments: object) -> int:
    """The signal that a process of its own, a copy of this one, dies of; 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            run(*arguments)
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_a_case_in_which_the_process_died_twice_is_not_begun_a_third_time(fake_work, monkeypatch, out, capsys):
    measure_case = runner.measure_case

    def deadly(case, setting):
        if case.name == SMOKE[1]:
            os.kill(os.getpid(), signal.SIGKILL)  # what a system out of memory does
        return measure_case(case, setting)

    monkeypatch.setattr(runner, "measure_case", deadly)
    assert killed("--profile", "smoke", "--out", out) == signal.SIGKILL
    first = read(out)
    assert list(first["cases"]) == SMOKE[:1] and first["attempts"] == {SMOKE[0]: 1, SMOKE[1]: 1}
    assert killed("--resume", out) == signal.SIGKILL
    assert read(out)["attempts"][SMOKE[1]] == 2
    assert killed("--resume", out) == 0
    last = read(out)
    assert list(last["cases"]) == SMOKE and last["cases"][SMOKE[0]] == first["cases"][SMOKE[0]]
    died = last["cases"][SMOKE[1]]["skipped"]
    assert died == "the process died here 2 times"
    assert run("--resume", out) == 0 and f"(step: dW, db): {died}." in capsys.readouterr().out


def test_an_error_of_our_own_counts_as_a_death_so_that_resuming_gets_past_it(fake_work, monkeypatch, out):
    failing(monkeypatch, runner, "measure_case", 1, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run("--profile", "smoke", "--out", out)
    assert read(out)["attempts"] == {SMOKE[0]: 1} and not read(out)["finished"]


def test_resuming_elsewhere_leaves_the_source_alone(fake_work, out, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        failing(broken, runner, "measure_case", 3)
        run("--profile", "smoke", "--seed", "7", "--out", out)
    before = out.read_bytes()
    assert run("--resume", out, "--out", tmp_path / "b.json") == 0
    first, last = json.loads(before), read(tmp_path / "b.json")
    assert out.read_bytes() == before and last["seed"] == 7 and last["created"] == first["created"]
    assert list(last["cases"])[:2] == list(first["cases"]) and list(last["cases"]) == SMOKE


def test_resuming_goes_on_with_the_files_selection_unless_told_otherwise(fake_work, out):
    run("--profile", "smoke", "--op", "sgd", "--only", "plain", "--out", out)
    assert run("--resume", out) == 0 and len(read(out)["cases"]) == 1
    fake_work.clear()
    assert run("--resume", out, "--op", "sgd") == 0
    assert fake_work[1:] == ["sgd-3-small-momentum", "sgd-3-small-nesterov"]
    assert read(out)["selection"]["only"] == "plain"


def test_a_finished_file_is_only_shown_again(fake_work, out, capsys):
    run("--profile", "smoke", "--op", "sgd,host,predicted", "--out", out)
    before = read(out)["cases"]
    assert before and {"host", "predicted"} < {*fake_work}
    fake_work.clear()
    assert run("--resume", out) == 0
    assert not fake_work and read(out)["cases"] == before and "What this run found" in capsys.readouterr().out


def test_the_seed_and_the_peers_asked_for_reach_every_case(fake_work, monkeypatch, out):
    settings, real = [], runner.measure_case
    monkeypatch.setattr(runner, "measure_case", lambda case, setting: settings.append(setting) or real(case, setting))
    run("--profile", "smoke", "--seed", "5", "--peer", "library,compile", "--out", out)
    assert {(s.seed, s.only, s.pace, s.compile) for s in settings} == {(5, ("library", "compile"), 1.0, True)}


def test_memory_goes_into_the_rows_and_what_could_not_be_measured_says_so(fake_work, monkeypatch, out, make, capsys):
    def one_then_death(rows, seed):
        yield 0, "eager", {"peak_bytes": 4096}
        raise BrokenPipeError

    monkeypatch.setattr(runner.memory, "LEAST_NUMBERS", 0)
    monkeypatch.setattr(runner, "measure_case", lambda case, setting: make.row(op=case.op) | case.describe())
    monkeypatch.setattr(runner.memory, "measure_apart", one_then_death)
    assert run("--out", out, "--only", "tiny-100x2x1-float32-dW") == 0
    first = next(iter(read(out)["cases"].values()))["peers"]
    assert first["eager"]["peak_bytes"] == 4096 and "died" in first["gdcore"]["no_memory"]
    said = capsys.readouterr().out
    assert "1 call; the process died before 1 more" in said and "The memory of gdcore is not known" in said
    failing(monkeypatch, runner.memory, "measure_apart", 1)
    assert run("--resume", out) == 0, "what killed the process is not tried again"


def test_memory_that_an_interrupt_left_out_is_measured_when_resumed_and_once(fake_work, monkeypatch, out, make):
    def measured(rows, seed):
        yield from ((number, peer, {"peak_bytes": 1}) for number, row in enumerate(rows) for peer in row["peers"])

    monkeypatch.setattr(runner.memory, "LEAST_NUMBERS", 0)
    monkeypatch.setattr(runner, "measure_case", lambda case, setting: make.row(op=case.op) | case.describe())
    with monkeypatch.context() as broken:
        failing(broken, runner.memory, "measure_apart", 1)
        assert run("--out", out, "--only", "tiny") == 130
    monkeypatch.setattr(runner.memory, "measure_apart", measured)
    assert run("--resume", out) == 0
    for row in read(out)["cases"].values():
        assert all(
            entry.get("peak_bytes") == (1 if row["op"] == "backward" else None) for entry in row["peers"].values()
        )
    failing(monkeypatch, runner.memory, "measure_apart", 1)
    assert run("--resume", out) == 0


@pytest.mark.parametrize("error", [RuntimeError("no kernels"), OSError("no process"), ValueError("no JSON")], ids=str)
def test_without_host_times_the_run_goes_on_and_says_so(fake_work, monkeypatch, out, error, capsys):
    failing(monkeypatch, runner.host, "measure", 1, error)
    assert run("--profile", "smoke", "--op", "host", "--out", out) == 0
    assert (
        str(error) in read(out)["host"]["failure"]
        and f"No host times: {type(error).__name__}: {error}" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({"failed": "loss is off"}, 1),
        ({"problems": ["gdcore: losses are off"]}, 1),
        ({"skipped": "too big"}, 0),
    ],
    ids=["all right", "parity", "published figures", "skipped"],
)
def test_the_exit_status_is_1_where_something_is_wrong(fake_work, monkeypatch, out, make, change, status):
    row = make.wrong(make.row()) if "failed" in change else make.row()
    monkeypatch.setattr(runner, "measure_case", lambda case, setting: row | change)
    assert run("--profile", "smoke", "--only", "tiny", "--out", out) == status


def test_nothing_chosen_is_refused_by_name(out, tmp_path):
    results = Results.new(out, profile="smoke", selection={}, seed=0, machine={}, versions={}, commit=None)
    with pytest.raises(
        BadInput, match=r"matches regime 'C', only 'x'; there are: tiny-100x2x1-float32-dW, .*run-lesson"
    ):
        runner.Run(results, torch.device("cpu"), Selection(regime=("C",), only="x"), None).pieces()


class Time:
    """Seconds that pass when told."""

    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(
    ("left", "pace", "may_compile"),
    [
        (200.0, 1.0, True),
        (110.0, 1.0, True),
        (91.0, 0.81, True),  # less what is compiled
        (89.0, 0.89, False),
        (10.0, 0.3, False),
        (-5.0, 0.3, False),
    ],
)
def test_the_clock_takes_time_from_each_case_and_stops_compiling_where_it_runs_out(
    monkeypatch, left, pace, may_compile
):
    time = Time(monkeypatch)
    clock = runner.Clock(300.0, 150.0)
    assert clock.spend(50.0) == (1.0, True)
    time.now += 300.0 - left
    assert clock.spend(10.0, 10.0) == (pytest.approx(pace), may_compile)


def test_the_clock_counts_what_is_still_to_be_done(monkeypatch):
    time = Time(monkeypatch)
    clock = runner.Clock(10.0, 20.0)
    assert clock.spend(15.0) == (0.5, False)
    time.now += 5.0
    assert clock.spend(5.0) == (1.0, True) and clock.spend(0.0) == (1.0, True)


def test_without_a_limit_there_is_always_time():
    assert runner.Clock(None, 1e9).spend(1.0) == (1.0, True)


def test_a_profiles_promise_is_for_all_of_it(fake_work, out, monkeypatch):
    limits, real = [], runner.Clock
    monkeypatch.setattr(runner, "Clock", lambda limit, expected: limits.append(limit) or real(limit, expected))
    run("--out", out)
    run("--out", out.with_name("b.json"), "--only", "tiny")
    assert limits == [100.0, None]


def test_the_clock_reaches_every_case(fake_work, out, monkeypatch):
    settings, real = [], runner.measure_case
    monkeypatch.setattr(runner, "measure_case", lambda case, setting: settings.append(setting) or real(case, setting))
    monkeypatch.setattr(runner, "limit_seconds", lambda profile, device_type: 0.0)
    run("--profile", "smoke", "--out", out)
    assert {(setting.pace, setting.compile) for setting in settings} == {(0.3, False)}


def test_compiling_is_expected_to_take_time():
    case = Case("D", 100, 2, 1)
    assert (
        0
        == runner.compiling_seconds(("graph",))
        < runner.compiling_seconds(("compile",))
        < runner.compiling_seconds((TUNED,))
    )
    assert runner.expected_seconds(case, torch.device("cuda")) > case.seconds
