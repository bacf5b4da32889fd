"""Result files: atomic, versioned, resumable; what is wrong with one is said in a line."""

import json
import os
import signal

import pytest

from gdcore.bench import results as results_module
from gdcore.bench.results import SCHEMA, BadInput, Results, read, write

HERE = {"machine": {"cpu": "one", "device": "cpu"}, "versions": {"torch": "2"}}


def new(path) -> Results:
    results = Results.new(path, profile="smoke", selection={}, seed=0, commit=None, **HERE)
    results.save()
    return results


def test_every_row_is_on_disk_as_soon_as_it_is_put(tmp_path, make):
    results = new(tmp_path / "deep" / "a.json")
    results.put("cases", make.row(floor_seconds=float("inf"), bytes=float("nan")), "first")
    found = read(results.path)
    assert found["schema"] == SCHEMA and list(found["cases"]) == ["first"]
    assert (found["cases"]["first"]["floor_seconds"], found["cases"]["first"]["bytes"]) == ("inf", "nan")
    assert os.listdir(results.path.parent) == ["a.json"], "nothing temporary is left"


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("broken", "how", "raised"),
    [("fsync", _full, BadInput), ("replace", _full, BadInput), ("fsync", _interrupt, KeyboardInterrupt)],
    ids=["the disk is full", "the folder is full", "Ctrl-C"],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, broken, how, raised):
    results = new(tmp_path / "a.json")
    before = results.path.read_bytes()
    monkeypatch.setattr(os, broken, how)
    with pytest.raises(raised):
        results.put("cases", {}, "bad")
    assert results.path.read_bytes() == before and os.listdir(tmp_path) == ["a.json"]


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    results = new(tmp_path / "a.json")
    before = results.path.read_bytes()
    with pytest.raises(TypeError):
        results.put("cases", {"row": object()}, "bad")
    assert results.path.read_bytes() == before and os.listdir(tmp_path) == ["a.json"]


def test_an_interrupt_after_the_replacement_stays_an_interrupt(tmp_path, monkeypatch):
    real = os.replace

    def replace_then_interrupt(*paths):
        real(*paths)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", replace_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_error_without_a_reason_is_still_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(results_module.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("odd")))
    with pytest.raises(BadInput, match=r"cannot write .*: odd"):
        write(tmp_path / "a.json", {})


def test_resuming_keeps_what_is_there_bit_for_bit(tmp_path, make):
    row = make.row(seconds={"eager": 0.1 + 0.2, "gdcore": 1 / 3})
    new(tmp_path / "a.json").put("cases", row, "first")
    before = (tmp_path / "a.json").read_bytes()
    again = Results.resumed(tmp_path / "a.json", tmp_path / "b.json", profile=None, commit=None, **HERE)
    again.put("cases", make.row(), "second")
    assert read(tmp_path / "b.json")["cases"] == {"first": row, "second": make.row()}
    assert (tmp_path / "a.json").read_bytes() == before, "the source is only read"


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"machine": {"cpu": "two", "device": "cpu"}}, "its cpu is 'one', this one is 'two'"),
        ({"machine": {"cpu": "one", "device": "cpu", "gpu": "H200"}}, "its gpu is None, this one is 'H200'"),
        ({"machine": {"device": "cpu"}}, "its cpu is 'one', this one is None"),
        ({"versions": {"torch": "3"}}, "its torch is '2', this one is '3'"),
        ({"commit": "abc"}, "its commit is None, this one is 'abc'"),
    ],
    ids=["another processor", "a GPU more", "less known", "another torch", "another commit"],
)
def test_figures_of_two_machines_or_versions_never_share_a_file(tmp_path, here, said):
    new(tmp_path / "a.json")
    with pytest.raises(BadInput, match=said):
        Results.resumed(tmp_path / "a.json", tmp_path / "a.json", **{"profile": None, "commit": None, **HERE, **here})


MISSING = ("created", "profile", "selection", "seed", "machine", "versions", "cases", "host", "predicted", "attempts")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *[(lambda d, name=name: d.pop(name), f"{name} missing or malformed") for name in MISSING],
        *[(lambda d, name=name: d.update({name: 1.5}), f"{name} missing or malformed") for name in MISSING],
        (lambda d: d.update(cases=[]), "cases missing or malformed"),
        (lambda d: d.update(ceilings=[]), "ceilings is malformed"),
        (lambda d: d["attempts"].update(one="twice"), "one is malformed"),
        (lambda d: d["cases"].update(one=5), "one is malformed"),
        (lambda d: d["cases"]["case-0"].pop("label"), "case-0 is malformed"),
        (lambda d: d["cases"]["case-0"].update(kind="other"), "case-0 is malformed"),
        (lambda d: d["cases"]["case-0"].pop("peers"), "case-0 is malformed"),
        (lambda d: d["cases"]["case-0"]["peers"].update(eager=[]), "case-0 is malformed"),
        (lambda d: d.update(schema="gdcore-bench/2"), f"has the schema 'gdcore-bench/2', it must be '{SCHEMA}'"),
        (lambda d: d.pop("schema"), "has the schema None"),
    ],
)
def test_a_document_that_is_none_is_refused(tmp_path, make, change, said):
    document = make.document([make.row()])
    change(document)
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match=said):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b"[" * 100_000], ids=lambda b: repr(b[:9])
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"not JSON|schema None"):
        read(tmp_path / "a.json")


def test_every_cut_of_a_file_is_refused(tmp_path, make):
    write(tmp_path / "a.json", make.document([make.row()]))
    whole = (tmp_path / "a.json").read_text()
    for part in range(0, len(whole) - 2, 97):
        (tmp_path / "a.json").write_text(whole[:part])
        with pytest.raises(BadInput, match="not JSON"):
            read(tmp_path / "a.json")


def test_missing_files_and_impossible_places_are_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        read(tmp_path / "none.json")
    with pytest.raises(BadInput, match="cannot read"):
        read(tmp_path)
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for place in ("file/a.json", ".", "pipe"):  # a pipe or a device must not be replaced by a file
        with pytest.raises(BadInput, match="cannot write"):
            write(tmp_path / place, {})
    with pytest.raises(BadInput, match="cannot write"):
        write(tmp_path / ("x" * 300), {})
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"] and (tmp_path / "pipe").is_fifo()
