"""One case from beginning to end on the CPU: parity before speed, nobody dropped silently, verdicts no finer than the noise."""

import json

import pytest
import torch

from gdcore.backends import reference
from gdcore.bench import cases, linear_peers, measure
from gdcore.bench.cases import Case
from gdcore.bench.ceilings import Ceilings
from gdcore.bench.measure import Setting, measure_case
from gdcore.bench.peers import AGAIN, COMPILED, FUNCTIONAL, JAX, LIBRARY, OURS, STOCK, TUNED, LeftOut, Peer
from gdcore.bench.timing import compare

pytestmark = pytest.mark.usefixtures("quick")
CPU = torch.device("cpu")
SETTING = Setting(CPU, seed=0, ceilings=Ceilings(1e10, 1e10, {"float32": 1e11}))
TINY = Case("D", 40, 6, 3, wanted=("input", "weight"), seconds=0.0)


def peer(name: str, change=None, **more) -> Peer:
    """Stock under another name, its results changed."""

    def prepare(case, device):
        def bind(tensors):
            call = linear_peers.bound(case, tensors, reference.linear_mse)
            return call if change is None else lambda: change(*call())

        return bind

    return Peer(name, name, prepare, **more)


def raising(error: Exception) -> Peer:
    def prepare(case, device):
        raise error

    return Peer("other", "other", prepare)


@pytest.fixture
def among(monkeypatch):
    """Replaces the peers by stock, one other, and gdcore; measures."""

    def run(other: Peer, ours: Peer | None = None, case: Case = TINY, setting: Setting = SETTING) -> dict:
        monkeypatch.setattr(linear_peers, "PEERS", (peer(STOCK), other, ours or peer(OURS)))
        return measure_case(case, setting)

    return run


def test_a_row_has_everything():
    row = measure_case(TINY, SETTING)
    assert (row["kind"], row["op"], row["regime"], row["label"]) == ("linear_mse", "backward", "D", "40 × 6 × 3")
    assert (row["bytes"], row["flops"]) == (TINY.minimal_bytes, TINY.flops) and row["bound_by"] == "memory"
    assert row["floor_seconds"] == pytest.approx(row["bytes"] / 1e10)
    assert row["plan"]["flops"] >= row["flops"] and row["plan"]["predicted_seconds"] > 0 and row["plan"]["why"]
    assert row["failed"] is None and row["clocks"] is None and row["column"] == "wall" and row["problems"] == []
    timed = {name for name, entry in row["peers"].items() if "times" in entry}
    assert timed == {STOCK, LIBRARY, OURS} and set(row["comparisons"]["wall"]) == timed - {OURS}
    for name in timed:
        times = row["peers"][name]["times"]["wall"]
        assert len(times["samples"]) == 5 and 0 < times["p20"] <= times["p50"] <= times["p80"]
        assert set(row["peers"][name]["parity"]["errors"]) == {"loss", "input", "weight"}
    assert json.loads(json.dumps(row)) == row, "a row is plain data"


def test_nobody_is_dropped_silently():
    row = measure_case(TINY, SETTING)
    assert list(row["peers"]) == [peer.name for peer in linear_peers.PEERS]
    for entry in row["peers"].values():
        assert len({"times", "left_out", "failure"} & set(entry)) == 1 and entry["what"]
    assert row["peers"][TUNED]["left_out"] == "this profile does not compile it for this case; --peer max-autotune does"


def test_the_same_once_more_is_the_noise_and_no_peer():
    row = measure_case(TINY, SETTING)
    assert set(row["noise"]["wall"]) == {"speedup", "low", "high"}
    assert AGAIN not in row["peers"] and AGAIN not in row["comparisons"]["wall"]


@pytest.mark.parametrize(
    ("change", "blamed"),
    [
        (lambda loss, dx, dw: (loss, dx, dw * 1.001), "weight is off"),
        (lambda loss, dx, dw: (loss, -dx, dw), "input is off"),
        (lambda loss, dx, dw: (loss * float("nan"), dx, dw), "loss is off by nan"),
        (lambda loss, dx, dw: (loss.double(), dx, dw), "loss has dtype"),
        (lambda loss, dx, dw: (loss, dx), "ValueError"),
    ],
    ids=["dW by a thousandth", "dX has the wrong sign", "NaN", "dtype", "one result too few"],
)
def test_a_wrong_peer_gets_no_speed(among, change, blamed):
    row = among(peer("other", change))
    assert row["peers"]["other"]["failure"].startswith(blamed) and "times" not in row["peers"]["other"]
    assert row["failed"] is None and set(row["comparisons"]["wall"]) == {STOCK}


def test_where_gdcore_is_wrong_nobody_gets_a_speed(among):
    row = among(peer("other"), ours=peer(OURS, lambda loss, dx, dw: (loss, dx, 2 * dw)))
    assert row["failed"].startswith("weight is off by 1.0e+00")
    assert not any("times" in entry for entry in row["peers"].values()) and "comparisons" not in row


@pytest.mark.parametrize(
    ("error", "key", "said"),
    [
        (RuntimeError("no such thing\nsecond line"), "failure", "RuntimeError: no such thing"),
        (LeftOut("not on Sundays"), "left_out", "not on Sundays"),
        (torch.OutOfMemoryError("too large"), "failure", "OutOfMemoryError: too large"),
    ],
    ids=["failure", "left out", "memory"],
)
def test_a_peer_that_raises_says_why(among, error, key, said):
    row = among(raising(error))
    assert row["peers"]["other"] == {"what": "other", key: said} and row["failed"] is None


def test_a_missing_compiler_is_reported(no_compiler):
    row = measure_case(TINY, Setting(CPU, 0, SETTING.ceilings, only=(COMPILED, FUNCTIONAL)))
    for name in (COMPILED, FUNCTIONAL):
        assert row["peers"][name]["failure"] == "RuntimeError: No working C++ compiler found"
    assert row["failed"] is None and STOCK in row["comparisons"]["wall"]


def test_an_error_while_all_are_timed_is_told_and_ends_no_run(among, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(measure, "interleave", full)
    row = among(peer("other"))
    assert row["peers"]["other"]["no_time"] == {"wall": "OutOfMemoryError: full"}
    assert row["failed"] == "OutOfMemoryError: full" and row["comparisons"] == {} and row["explained"] is None


def test_a_peer_that_fails_only_when_it_is_timed_is_told(among):
    calls = []

    def late(*found):
        calls.append(1)
        if len(calls) > cases.STEPS:
            raise RuntimeError("late")
        return found

    row = among(peer("other", late))
    assert row["peers"]["other"]["no_time"] == {"wall": "RuntimeError: late"}
    assert row["failed"] is None and "other" not in row["comparisons"]["wall"]


def test_another_algorithm_is_shown_but_is_not_the_best(among, monkeypatch):
    monkeypatch.setattr(Case, "score", lambda self, found: 0.5, raising=False)
    times = {STOCK: 2.0, "other": 0.1, OURS: 1.0, AGAIN: 1.0}
    monkeypatch.setattr(measure, "interleave", lambda calls, *_, **__: {name: [times[name]] * 5 for name in calls})
    row = among(peer("other", lambda *found: (0 * found[0], *found[1:]), comparable=False))
    assert row["peers"]["other"]["score"] == 0.5 and "parity" not in row["peers"]["other"]
    assert row["comparisons"]["wall"]["other"]["speedup"] == pytest.approx(0.1)
    assert row["best"]["wall"]["baseline"] == STOCK and row["best"]["wall"]["speedup"] == 2.0


def test_the_best_is_the_fastest_right_peer(among, monkeypatch):
    times = {STOCK: 2.0, "other": 1.5, OURS: 1.0, AGAIN: 1.0}
    monkeypatch.setattr(measure, "interleave", lambda calls, *_, **__: {name: [times[name]] * 5 for name in calls})
    best = among(peer("other"))["best"]["wall"]
    assert (best["baseline"], best["speedup"], best["verdict"]) == ("other", 1.5, "FASTER")


@pytest.mark.parametrize(
    ("again", "expected"), [(1.0, "FASTER"), (1.08, "SAME"), (1 / 1.08, "SAME")], ids=["quiet", "slower", "faster"]
)
def test_what_is_within_the_noise_is_the_same(again, expected):
    found = {"comparisons": {}, "best": {}, "noise": {}}
    measure._compare(found, "wall", {OURS: [1.0] * 9, STOCK: [1.05] * 9}, [again] * 9, {STOCK: {}})
    assert compare([1.0] * 9, [1.05] * 9, STOCK).verdict == "FASTER"
    assert found["comparisons"]["wall"][STOCK]["verdict"] == found["best"]["wall"]["verdict"] == expected
    assert found["noise"]["wall"]["speedup"] == pytest.approx(again)


def test_only_the_peers_that_are_asked_for_run_and_stock_and_gdcore_always():
    row = measure_case(TINY, Setting(CPU, 0, SETTING.ceilings, only=(LIBRARY,)))
    assert [name for name, entry in row["peers"].items() if "times" in entry] == [STOCK, LIBRARY, OURS]
    assert {row["peers"][name]["left_out"] for name in (COMPILED, JAX)} == {"not asked for"}
    row = measure_case(TINY, Setting(CPU, 0, SETTING.ceilings, only=(JAX,)))
    assert "times" not in row["peers"][LIBRARY]


def test_compilers_run_where_the_profile_has_them_or_they_are_asked_for_and_while_there_is_time(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    some = Case("D", 10, 2, 1, compilers=(COMPILED,), seconds=0.0)
    entries = measure_case(some, SETTING)["peers"]
    assert "times" in entries[COMPILED] and "this profile" in entries[TUNED]["left_out"]
    entries = measure_case(some, SETTING.at(0.5, False))["peers"]
    assert entries[COMPILED]["left_out"] == "the profile's time was used up before it could be compiled"
    asked = Setting(CPU, 0, SETTING.ceilings, only=(TUNED,), compile=False)
    assert "times" in measure_case(some, asked)["peers"][TUNED], "what is asked for by name is compiled"


def test_pace_shortens_the_timing(among, monkeypatch):
    seconds = []

    def interleaved(calls, clock, seconds_left):
        seconds.append(seconds_left)
        return {name: [1.0] * 3 for name in calls}

    monkeypatch.setattr(
        measure, "interleave", lambda calls, clock, seconds, after_round: interleaved(calls, clock, seconds)
    )
    case = Case("D", 40, 6, 3, wanted=("input", "weight"), seconds=4.0)
    for pace in (1.0, 0.3):
        among(peer("other"), case=case, setting=SETTING.at(pace, True))
    assert seconds == pytest.approx([4.0, 1.2])


def test_a_case_that_is_too_large_is_skipped_in_words():
    row = measure_case(Case("C", 10**7, 10**6, 10**6), SETTING)
    assert "GiB are free" in row["skipped"] and row["n"] == 10**7 and "peers" not in row


SOME = Case("F", 600, 6, 30, wanted=("input", "weight"), seconds=0.0, judged=60)


def test_parity_of_some_rows_and_then_of_all():
    row = measure_case(SOME, SETTING)
    assert row["failed"] is None and "times" in row["peers"][STOCK] and "times" in row["peers"][LIBRARY]
    assert row["judged"] == 60 and row["n"] == 600
    x, _, y, _ = SOME.draw(CPU, 0)
    assert torch.equal(y[:60], y[540:]) and not torch.equal(x[:60], x[1:61])


def test_a_peer_that_is_wrong_only_over_all_rows_is_found(among):
    wrong = peer("other", lambda loss, dx, dw: (loss, dx, dw * (1 + (len(dx) > 60))))
    row = among(wrong, case=SOME)
    assert row["peers"]["other"]["failure"].startswith("over all rows weight is off")


def test_a_peer_without_memory_for_all_rows_is_told_so_and_the_others_go_on(among, monkeypatch):
    def short(*results):
        if len(results[1]) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 GiB")
        return results

    row = among(peer("other", short), case=SOME)
    assert row["peers"]["other"]["out_of_memory"] and "48.00 GiB" in row["peers"]["other"]["failure"]
    assert row["failed"] is None and "times" in row["peers"][OURS]
    held = 2 * 4 * 600 * 30
    monkeypatch.setattr(measure.memory, "free_bytes", lambda device: held - 1)
    row = among(peer(LIBRARY), case=SOME)
    assert "(predicted)" in row["peers"][STOCK]["failure"] and row["peers"][STOCK]["out_of_memory"]
    assert "times" in row["peers"][LIBRARY] and "times" in row["peers"][OURS], "they hold less"
    json.dumps(row)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), ImportError("No module named 'sklearn'")], ids=repr
)
def test_operands_that_cannot_be_had_skip_the_case(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(cases, "make_tensors", fail)
    row = measure_case(TINY, SETTING)
    assert row["skipped"] == f"{type(error).__name__}: {error}" and "peers" not in row and row["dtype"] == "float32"


def test_unknown_free_memory_skips_nothing(monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: None)
    assert "skipped" not in measure_case(TINY, SETTING)


def test_a_compiled_step_is_right_for_real():
    """The only test here that compiles: loss, gradients and update in one graph."""
    case = Case("D", 60, 3, 1, op="step", wanted=("weight", "bias"), seconds=0.0)
    row = measure_case(case, Setting(CPU, 0, SETTING.ceilings, only=(FUNCTIONAL,)))
    entry = row["peers"][FUNCTIONAL]
    assert "times" in entry, entry
    assert set(entry["parity"]["errors"]) == {"loss", "weight", "bias"} and FUNCTIONAL in row["comparisons"]["wall"]


def compared(ours, again, **others):
    found = {"comparisons": {}, "best": {}, "noise": {}}
    samples = {OURS: ours, **others}
    measure._compare(found, "wall", samples, again, {name: {} for name in samples})
    return found


def test_the_best_is_whoever_is_hardest_to_beat_and_not_the_least_median():
    """One is 7 % faster but too noisy to tell, the other is 5 % faster for sure."""
    noisy = [0.7, 1.4, 0.93, 0.8, 1.2] * 4
    found = compared([1.0] * 20, [1.0] * 20, compile=noisy, library=[0.95] * 20)
    assert found["comparisons"]["wall"]["compile"]["verdict"] == "UNSURE"
    assert found["best"]["wall"]["baseline"] == "library" and found["best"]["wall"]["verdict"] == "SLOWER"


def test_faster_than_the_best_is_faster_than_everyone():
    found = compared([1.0] * 5, [1.0] * 5, eager=[1.2] * 5, library=[0.95, 1.5, 1.31, 0.9, 1.6])
    assert found["comparisons"]["wall"]["eager"]["verdict"] == "FASTER"
    assert found["best"]["wall"]["baseline"] == "library" and found["best"]["wall"]["verdict"] == "UNSURE"


def test_faster_must_lie_beyond_what_gdcore_differs_from_itself_by():
    again = [0.8, 1.3, 1.0, 0.9, 1.2] * 4
    assert compared([1.0] * 20, [1.0] * 20, eager=[1.1] * 20)["best"]["wall"]["verdict"] == "FASTER"
    noisy = compared([1.0] * 20, again, eager=[1.1] * 20)
    assert noisy["noise"]["wall"]["high"] > 1.1 and noisy["best"]["wall"]["verdict"] != "FASTER"


def test_gdcores_own_other_path_is_no_peer_to_beat():
    found = compared([1.0] * 9, [1.0] * 9, eager=[2.0] * 9, **{"gdcore steps": [0.5] * 9})
    assert found["best"]["wall"]["baseline"] == "eager" and "gdcore steps" in found["comparisons"]["wall"]
