"""Result files: atomic, versioned, resumable; what is wrong with one is said in a line."""

import json
import os

import pytest

from gdcore.bench.results import SCHEMA, BadInput, Results, read, write

HERE = {"machine": {"cpu": "one"}, "versions": {"torch": "2"}}


def new(path) -> Results:
    results = Results.new(path, profile="smoke", seed=0, commit=None, **HERE)
    results.save()
    return results


def test_every_row_is_on_disk_as_soon_as_it_is_put(tmp_path):
    results = new(tmp_path / "deep" / "a.json")
    results.put("cases", {"samples": [1.0, float("inf")]}, "first")
    found = read(results.path)
    assert found["schema"] == SCHEMA and found["cases"] == {"first": {"samples": [1.0, "inf"]}}
    assert os.listdir(results.path.parent) == ["a.json"], "nothing temporary is left"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    results = new(tmp_path / "a.json")
    before = results.path.read_text()
    with pytest.raises(TypeError):
        results.put("cases", {"row": object()}, "bad")
    assert results.path.read_text() == before and os.listdir(tmp_path) == ["a.json"]


def test_resuming_keeps_what_is_there(tmp_path):
    new(tmp_path / "a.json").put("cases", {"n": 1}, "first")
    again = Results.resumed(tmp_path / "a.json", tmp_path / "b.json", profile=None, **HERE)
    again.put("cases", {"n": 2}, "second")
    assert list(read(tmp_path / "b.json")["cases"]) == ["first", "second"]
    assert list(read(tmp_path / "a.json")["cases"]) == ["first"]


def test_figures_of_two_machines_never_share_a_file(tmp_path):
    new(tmp_path / "a.json")
    with pytest.raises(BadInput, match="its cpu is 'one', this one is 'two'"):
        Results.resumed(tmp_path / "a.json", tmp_path / "a.json", profile=None, **HERE | {"machine": {"cpu": "two"}})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "schema None"),
        (json.dumps({"schema": "gdcore-bench/0"}), "must be 'gdcore-bench/2'"),
        (json.dumps({"schema": SCHEMA, "cases": []}), "not a complete result file"),
    ],
    ids=["broken", "no object", "another schema", "parts missing"],
)
def test_foreign_files_are_refused(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BadInput, match=said):
        read(tmp_path / "a.json")


def test_a_missing_file_and_an_impossible_folder_are_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        read(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        write(tmp_path / "file" / "a.json", {})
