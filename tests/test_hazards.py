"""What is made of racecheck's report: a store's hazards with itself are counted, everything else fails."""

import io
import sys

import hazards
import pytest

HARMLESS = """\
seed 1 on a GPU
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at one_pass_vector_kernel+0xac0 in one_pass_vector.py:77
=========     and Write access at one_pass_vector_kernel+0xac0 in one_pass_vector.py:77 [21 hazards]
=========
========= Error: Race reported between Write access at run_kernel+0x10 in run_tile.py:92
=========     and Write access at run_kernel+0x10 in run_tile.py:92 [4 hazards]
=========
========= Error: Race reported between Write access at one_pass_vector_kernel+0xac0 in one_pass_vector.py:77
=========     and Write access at one_pass_vector_kernel+0xac0 in one_pass_vector.py:77 [1 hazard]
=========
all right
"""
END = "========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)\n"
RACE = """\
========= Error: Race reported between {0} access at kernel+0x{1} in file.py:77
=========     and {2} access at kernel+0x{3} in file.py:77 [2 hazards]
"""


def judged(text, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return hazards.main()


def test_stores_of_equal_numbers_are_counted(monkeypatch, capsys):
    assert judged(HARMLESS + END, monkeypatch) == 0
    told = capsys.readouterr().out
    assert "22 hazards of one store of equal numbers with itself at one_pass_vector_kernel+0xac0" in told
    assert "26 harmless, 0 others" in told
    assert told.startswith("seed 1 on a GPU\nall right\n")


def test_a_report_without_hazards(monkeypatch):
    assert judged("========= COMPUTE-SANITIZER\nall right\n" + END, monkeypatch) == 0


@pytest.mark.parametrize(
    "race",
    [
        RACE.format("Write", "10", "Write", "20"),
        RACE.format("Write", "10", "Read", "10"),
        RACE.format("Read", "10", "Write", "20"),
        RACE.format("Write", "10", "Write", "10").replace(" [2 hazards]", ""),
        RACE.format("Write", "10", "Write", "10") + "=========     and Read access at kernel+0x30 in file.py:78 [2 hazards]\n",
        RACE.format("Write", "10", "Write", "10").splitlines()[0] + "\n",
        "========= Error: Potential WAW hazard detected at __shared__ 0x0 in block (0, 0, 0)\n",
        "========= Target application returned an error\n",
    ],
    ids=["two stores", "write and read", "read and write", "no count", "third access", "cut short", "another report", "failed"],
)  # fmt: skip
def test_any_other_hazard_fails_and_is_printed(race, monkeypatch, capsys):
    assert judged(HARMLESS + race + END, monkeypatch) == 1
    told = capsys.readouterr().out
    assert "HAZARD" in told
    assert "1 others" in told


@pytest.mark.parametrize(
    "text", ["", HARMLESS, "compute-sanitizer: not found\n"], ids=["nothing", "no summary", "no tool"]
)
def test_a_report_without_its_end_fails(text, monkeypatch, capsys):
    assert judged(text, monkeypatch) == 1
    assert "did not come to its end" in capsys.readouterr().out
