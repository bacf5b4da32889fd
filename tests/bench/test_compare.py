"""Two runs compared: what is a regression, what is only reported, and what a machine in another state must not decide."""

import copy
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from gdcore.bench import changes, compare
from gdcore.bench.changes import BETTER, REGRESSION, SAME, UNJUDGED, UNSURE
from gdcore.bench.results import BadInput

PARITY = {"errors": {}, "stock_errors": {}, "worst_ratio": 1.0, "passed": True, "failures": []}


def peer(seconds: float, rounds: int = 9, noise: float = 0.005) -> dict:
    steps = np.random.default_rng(int(seconds * 1e9)).permutation(np.linspace(-noise, noise, rounds))
    samples = (seconds * (1 + steps)).tolist()
    return {"parity": copy.deepcopy(PARITY), "times": {"wall": {"samples": samples, "p50": seconds}}, "peak_bytes": 4e6}


def document(**cases: dict) -> dict:
    """A run of cases, each given by its peers."""
    rows = {
        name: {"kind": "sgd" if "for-loop" in peers else "linear_mse", "peers": peers, "failed": None}
        for name, peers in cases.items()
    }
    machine, versions = {"cpu": "AMD EPYC", "threads": 2}, {"gdcore": "0.1.0", "torch": "2.13.0"}
    return {
        "machine": machine, "versions": versions, "cases": rows,
        "created": "now", "commit": None, "profile": "quick",
    }  # fmt: skip


def run(ours: float = 0.01, stock: float = 0.02, baseline: str = "eager", **more: float) -> dict:
    return document(case={"gdcore": peer(ours, **more), baseline: peer(stock, **more)})


def only(before: dict, after: dict, threshold: float = 0.05, **options: str) -> changes.Finding:
    (finding,) = changes.compare(before, after, threshold=threshold, **options)
    return finding


@pytest.mark.parametrize("baseline", ["eager", "for-loop"])
@pytest.mark.parametrize(
    ("ours", "stock", "noise", "verdict"),
    [
        pytest.param(0.012, 0.02, 0.005, REGRESSION, id="slower, stock as before"),
        pytest.param(0.012, 0.024, 0.005, SAME, id="slower as the whole machine"),
        pytest.param(0.010, 0.015, 0.005, REGRESSION, id="as before on a faster machine"),
        pytest.param(0.008, 0.02, 0.005, BETTER, id="faster"),
        pytest.param(0.0104, 0.02, 0.005, SAME, id="within the threshold"),
        pytest.param(0.011, 0.02, 0.2, UNSURE, id="too noisy"),
    ],
)
def test_times_are_judged_relative_to_stock_in_the_same_run(ours, stock, noise, verdict, baseline):
    finding = only(run(baseline=baseline, noise=noise), run(ours, stock, baseline, noise=noise))
    assert finding.verdict == verdict
    assert finding.absolute.value == pytest.approx(ours / 0.01, rel=0.01 + noise)
    assert finding.relative.value == pytest.approx(ours / 0.01 * 0.02 / stock, rel=0.01 + noise)
    assert finding.relative.low <= finding.relative.value <= finding.relative.high


def test_the_threshold_is_the_users():
    before, after = run(), run(0.011)
    assert only(before, after, threshold=0.05).verdict == REGRESSION
    assert only(before, after, threshold=0.2).verdict == SAME


def test_rounds_of_one_run_belong_together_and_rounds_of_two_do_not():
    slow = np.array([1.0, 1.0, 1.0, 3.0, 3.0])  # moments in which the machine took three times as long
    together = changes.ratio_of(slow, slow, 2 * slow, 2 * slow)
    assert (together.low, together.value, together.high) == (1, 1, 1)
    apart = changes.ratio_of(slow, slow)
    assert apart.low < 0.5
    assert apart.high > 2


def test_a_single_sample_has_no_interval_and_decides_nothing():
    finding = only(run(), run(0.02, rounds=1))
    assert finding.verdict == UNJUDGED
    assert "fewer than 3 samples" in finding.why


@pytest.mark.parametrize(("torch", "verdict"), [("2.13.0", REGRESSION), ("2.14.0", UNJUDGED)])
def test_without_stock_absolute_times_decide_only_where_they_are_comparable(torch, verdict):
    before, after = run(), run(0.012)
    del after["cases"]["case"]["peers"]["eager"]
    after["versions"]["torch"] = torch
    finding = only(before, after)
    assert (finding.verdict, finding.relative) == (verdict, None)


def _fails_parity(row: dict) -> None:
    row["peers"]["gdcore"]["parity"] |= {"passed": False, "failures": ["weight is off by 1e-2"]}
    del row["peers"]["gdcore"]["times"]
    row["failed"] = "weight is off by 1e-2"


def _raises(row: dict) -> None:
    row["peers"]["gdcore"] = {"failure": "RuntimeError: no such kernel"}
    row["failed"] = "RuntimeError: no such kernel"


def _skipped(row: dict) -> None:
    del row["peers"]
    row["skipped"] = "it takes about 70 GiB"


def _left_out(row: dict) -> None:
    row["peers"]["gdcore"] = {"left_out": "not in this profile"}


def _no_column(row: dict) -> None:
    row["peers"]["gdcore"] |= {"times": {}, "no_time": {"wall": "cannot be captured"}}


def _wrong_training(row: dict) -> None:
    row["problems"] = ["the loss is 2 % off"]


@pytest.mark.parametrize(
    ("change", "what", "verdict", "why"),
    [
        (_fails_parity, "parity", REGRESSION, "weight is off by 1e-2"),
        (_wrong_training, "parity", REGRESSION, "the loss is 2 % off"),
        (_raises, "wall", REGRESSION, "RuntimeError: no such kernel"),
        (_skipped, "wall", UNJUDGED, "it takes about 70 GiB"),
        (_left_out, "wall", UNJUDGED, "not in this profile"),
        (_no_column, "wall", UNJUDGED, "cannot be captured"),
    ],
)
def test_what_is_right_or_measured_no_more(change, what, verdict, why):
    before, after = run(), run()
    change(after["cases"]["case"])
    worst = changes.compare(before, after, threshold=0.05)[0]
    assert (worst.what, worst.verdict, worst.why) == (what, verdict, why)
    again = changes.compare(after, copy.deepcopy(after), threshold=0.05) if change is _wrong_training else []
    assert all(finding.verdict == SAME for finding in again)  # it was wrong before, too


@pytest.mark.parametrize(
    ("before_bytes", "after_bytes", "verdicts"),
    [
        pytest.param(100 << 20, 110 << 20, {"memory": REGRESSION, "wall": SAME}, id="much more"),
        pytest.param(1 << 18, 1 << 19, {"wall": SAME}, id="twice as much of little"),
        pytest.param(1 << 30, (1 << 30) + (8 << 20), {"wall": SAME}, id="1 % more"),
    ],
)
def test_memory_that_grew(before_bytes, after_bytes, verdicts):
    before, after = run(), run()
    for runs, size in ((before, before_bytes), (after, after_bytes)):
        runs["cases"]["case"]["peers"]["gdcore"]["peak_bytes"] = size
    assert {f.what: f.verdict for f in changes.compare(before, after, threshold=0.05)} == verdicts


def _command(monkeypatch, before: dict, after: dict, **options) -> int:
    monkeypatch.setattr(compare.results, "read", {Path("A"): before, Path("B"): after}.__getitem__)
    given = {"before": Path("A"), "after": Path("B"), "threshold": 5.0, "column": None, "peer": "gdcore"}
    return compare.command(Namespace(**given | options))


def test_the_command_says_the_worst_first_and_counts(monkeypatch, capsys):
    before = document(fine={"gdcore": peer(0.01), "eager": peer(0.02)}, gone={}, bad=run()["cases"]["case"]["peers"])
    after = document(fine=before["cases"]["fine"]["peers"], bad=run(0.02)["cases"]["case"]["peers"], new={})
    after["machine"]["threads"] = 4
    after["versions"]["gdcore"] = "0.2.0"
    assert _command(monkeypatch, before, after) == 1
    said = capsys.readouterr().out
    assert "DIFFERENT: threads 2 before, 4 after. Absolute times of the two are not comparable" in said
    assert "only before: gone" in said
    assert "only after: new" in said
    assert said.index(" bad ") < said.index(" fine ")
    assert "100 % more time, relative to stock" in said.replace("\n", " ")
    assert said.rstrip().endswith("2 comparisons: 1 regression beyond 5 % and 1 same.")


@pytest.mark.parametrize(("options", "status"), [({}, 1), ({"threshold": 150.0}, 0), ({"peer": "eager"}, 0)])
def test_the_exit_status_says_whether_something_regressed(monkeypatch, options, status):
    assert _command(monkeypatch, run(), run(0.02), **options) == status


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"column": "replay"}, "has figures of 'gdcore' in the column 'replay'"),
        ({"peer": "jax"}, "has figures of 'jax'"),
        ({"threshold": 0.0}, "must be a percentage above 0"),
        ({"threshold": float("nan")}, "must be a percentage above 0"),
    ],
)
def test_what_cannot_be_compared_is_bad_input(monkeypatch, options, said):
    with pytest.raises(BadInput, match=said):
        _command(monkeypatch, run(), run(), **options)


def test_files_without_a_common_case_or_that_are_missing_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no case in common"):
        changes.compare(document(one={}), document(other={}), threshold=0.05)
    missing = Namespace(before=tmp_path / "no", after=tmp_path / "none", threshold=5.0, column=None, peer="gdcore")
    with pytest.raises(BadInput, match="cannot read"):
        compare.command(missing)
