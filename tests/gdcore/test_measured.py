"""Measured times: what is read, what is refused with a warning, which row stands for a shape, and that it goes before the model."""

import copy
import json
import warnings

import pytest
import torch

from gdcore import measured, plan
from gdcore.backends import Wanted
from gdcore.cost import Asked
from gdcore.devices import A100, B200, H200
from gdcore.plan import plan_for

HALF = torch.bfloat16
ROW = {
    "gpu": "NVIDIA H200",
    "architecture": 90,
    "torch": "2.13.0",
    "triton": "3.7.1",
    "dtype": "bfloat16",
    "precision": "ieee",
    "n": 1_000_000,
    "k": 256,
    "m": 256,
    "wanted": ["weight"],
    "seconds": {"stock": 4e-3, "library": 1e-3, "tiled": 2e-3, "one_pass_tall": 3e-3},
    "date": "2026-01-02",
    "source": "bench/results/acted.json",
}


@pytest.fixture
def act(monkeypatch, tmp_path):
    """Writes a table of acted rows and has it read in place of the committed ones."""

    def with_rows(*rows):
        path = tmp_path / "acted.json"
        path.write_text(json.dumps({"schema": measured.SCHEMA, "rows": list(rows)}))
        measured.table.cache_clear()
        plan.plan_for.cache_clear()
        return path

    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    monkeypatch.delenv(measured.VARIABLE, raising=False)
    yield with_rows
    measured.table.cache_clear()
    plan.plan_for.cache_clear()


def at(n=1_000_000, k=256, m=256, device=H200, dtype=HALF, **more):
    return plan_for(n, k, m, device=device, dtype=dtype, **more)


def test_the_shipped_tables_can_be_read_and_name_their_sources():
    """Nothing is shipped until a GPU has measured it."""
    root = measured.FOLDER.parents[1]
    for path in measured.FOLDER.glob("*.json"):
        for row in measured.read(path):
            assert (root / row.source).is_file(), row


def test_the_fastest_measured_path_is_taken_whatever_is_predicted(act):
    assert at().path != "library", "else this shows nothing"
    act(ROW)
    found = at()
    assert found.path == "library"
    assert "measured: 1e+03 µs at 1000000 x 256 x 256 on NVIDIA H200, 2026-01-02" in found.why
    assert found.measured.seconds == ROW["seconds"]
    reasons = {other.path: other.why_not for other in found.alternatives}
    assert reasons["library"] == "" and reasons["tiled"] == "measured 2.00 times as long"
    act(ROW | {"seconds": {"stock": 4e-3, "tiled": 1e-3}})
    assert at().path == "tiled", "what was not measured is not taken where others were"


@pytest.mark.parametrize(
    ("call", "stands"),
    [
        ({}, True),
        ({"n": 1_999_999}, True),
        ({"n": 2_100_000}, False),
        ({"k": 129, "m": 500}, True),
        ({"k": 127}, False),
        ({"wanted": Wanted(bias=True), "has_bias": True}, True),
        ({"wanted": Wanted(input=True)}, False),
        ({"dtype": torch.float16}, False),
        ({"device": B200}, False),
        ({"device": A100}, False),
        ({"device": H200._replace(name="NVIDIA H200")}, True),
        ({"device": H200._replace(name="NVIDIA H100 80GB")}, False),
        ({"contiguous": False}, False),
        ({"target_dtype": torch.float32}, False),
        ({"reduction": "sum"}, True),
        ({"reduction": "none"}, False),
    ],
    ids=str,
)
def test_a_row_stands_for_its_neighbours_alone(act, call, stands):
    act(ROW)
    assert (at(**call).measured is not None) == stands


def test_of_several_rows_the_nearest_stands(act):
    act(ROW, ROW | {"n": 600_000, "seconds": {"stock": 1.0, "tiled": 0.5, "library": 0.7}})
    assert at(n=700_000).path == "tiled" and at(n=900_000).path == "library"


def test_a_measured_path_that_does_not_take_the_shape_is_not_taken(act):
    act(ROW | {"n": 100_000, "m": 400, "seconds": {"stock": 4e-3, "library": 2e-3, "one_pass_tall": 1e-3}})
    assert at(n=100_000, m=400).path == "one_pass_tall"
    beyond = at(n=100_000, m=600)
    assert beyond.path == "library" and beyond.measured is not None


WRONG = {
    "no row": 7,
    "more than there is": ROW | {"speed": 1},
    "less than there is": {name: value for name, value in ROW.items() if name != "date"},
    "unknown dtype": ROW | {"dtype": "int8"},
    "half in tf32": ROW | {"precision": "tf32"},
    "unknown path": ROW | {"seconds": {"stock": 1.0, "magic": 0.1}},
    "no stock": ROW | {"seconds": {"library": 1.0, "tiled": 0.1}},
    "stock alone": ROW | {"seconds": {"stock": 1.0}},
    "negative seconds": ROW | {"seconds": {"stock": 1.0, "tiled": -0.1}},
    "NaN seconds": ROW | {"seconds": {"stock": 1.0, "tiled": float("nan")}},
    "seconds as text": ROW | {"seconds": {"stock": 1.0, "tiled": "0.1"}},
    "no rows at all": ROW | {"n": 0},
    "a size as a float": ROW | {"k": 256.0},
    "true as a size": ROW | {"m": True},
    "unknown gradient": ROW | {"wanted": ["loss"]},
    "no date": ROW | {"date": "yesterday"},
    "no source": ROW | {"source": ""},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_refuses_its_file_with_one_warning_and_the_model_decides(act, name):
    path = act(copy.deepcopy(ROW) | {"n": 5}, WRONG[name])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert at().measured is None and at(n=5).measured is None
    (warning,) = caught
    assert issubclass(warning.category, measured.MeasuredTableWarning)
    assert str(path) in str(warning.message) and "row 1" in str(warning.message)


@pytest.mark.parametrize(
    "content", ["", "cut sho", "[]", '{"schema": "gdcore-measured/0", "rows": []}', "[" * 100_000], ids=str
)
def test_a_file_that_is_no_table_stops_nothing(act, content):
    act(ROW).write_text(content[:200_000])
    with pytest.warns(measured.MeasuredTableWarning):
        assert at().measured is None


def test_the_same_shape_twice_is_refused(act):
    act(ROW, ROW | {"wanted": ["weight", "bias"]})  # which cost alike
    with pytest.warns(measured.MeasuredTableWarning, match="twice"):
        assert at().measured is None


def test_a_file_of_ones_own_counts_too_and_all_can_be_switched_off(act, monkeypatch, tmp_path):
    act()
    own = tmp_path / "deep" / "own.json"
    own.parent.mkdir()
    own.write_text(json.dumps({"schema": measured.SCHEMA, "rows": [ROW]}))
    monkeypatch.setenv(measured.VARIABLE, str(own))
    assert at().measured is not None
    monkeypatch.setenv(measured.VARIABLE, "off")
    act(ROW)
    assert at().measured is None
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path / "missing.json"))
    act(ROW)
    with pytest.warns(measured.MeasuredTableWarning, match="No such file"):
        assert at().measured is not None, "one file's damage is not another's"
    monkeypatch.setenv(measured.VARIABLE, "~nobody-of-this-name/own.json")
    act(ROW)
    with pytest.warns(measured.MeasuredTableWarning, match="~nobody-of-this-name"):
        assert at().measured is not None


def test_what_is_written_is_what_is_read(tmp_path, act):
    (row,) = measured.read(act(ROW))
    assert measured.document([row])["rows"] == [ROW]
    asked = Asked(HALF, Wanted(), "mean", True, False)
    assert measured.nearest(H200, HALF, "ieee", (row.n, row.k, row.m), asked) == row
    assert hash(at()) is not None
