"""Where it runs: what is known is said, what is not is None."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch

from gdcore.bench import machine

CPU = torch.device("cpu")


def test_this_machine_is_described():
    found = machine.describe_machine(CPU)
    assert found["device"] == "cpu" and found["cores"] >= 1 and found["threads"] == torch.get_num_threads()
    assert found["cpu"] and found["system"] and "gpu" not in found


def test_versions_of_what_is_missing_are_none(monkeypatch):
    def version(name):
        if name == "jax":
            raise machine.metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(machine.metadata, "version", version)
    found = machine.versions()
    assert found["jax"] is None and found["scikit-learn"] == found["triton"] == "1.2"
    assert found["torch"] == torch.__version__ and {"gdcore", "python", "numpy", "cuda"} <= set(found)


def test_free_memory_is_the_containers_where_that_is_less(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_first_field", lambda *_: "1000 kB")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path)
    assert machine.free_bytes(CPU) == 1_024_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert machine.free_bytes(CPU) == 1_024_000
    (tmp_path / "memory.max").write_text("2000\n")
    assert machine.free_bytes(CPU) == 1_500


def test_where_memory_cannot_be_known_it_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_first_field", lambda *_: None)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path)
    assert machine.free_bytes(CPU) is None


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"rev-parse": (0, "abc\n"), "status": (0, "")}, "abc"),
        ({"rev-parse": (0, "abc"), "status": (0, " M x")}, "abc+changes"),
        ({"rev-parse": (128, "")}, None),
    ],
    ids=["clean", "changed", "no repository"],
)
def test_the_commit_says_whether_there_are_changes(answers, expected, monkeypatch):
    def run(command, **_):
        part = next(answer for name, answer in answers.items() if name in command)
        return SimpleNamespace(returncode=part[0], stdout=part[1])

    monkeypatch.setattr(machine.subprocess, "run", run)
    assert machine.commit() == expected


def test_a_commit_is_short_or_absent():
    found = machine.commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{12}(\+changes)?", found)


def test_the_driver_s_version_is_a_number(monkeypatch):
    line = "NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5"
    monkeypatch.setattr(machine, "_first_field", lambda *_: line)
    assert machine._driver() == "550.54.15"
    monkeypatch.setattr(machine, "_first_field", lambda *_: None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine._driver() is None
