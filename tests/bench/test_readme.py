"""The README's figures: made from a result file, the same each time, and the committed ones are what the committed file gives."""

import re
from pathlib import Path

import pytest

from gdcore.bench import readme
from gdcore.bench.__main__ import main
from gdcore.bench.results import BadInput, read, write

ROOT = Path(__file__).parents[2]


def document() -> dict:
    """A finished run by hand."""
    against = {"baseline": "eager", "speedup": 4.0, "low": 3.9, "high": 4.1, "verdict": "FASTER"}
    parity = {"errors": {"loss": 1e-8}, "stock_errors": {"loss": 2e-8}, "passed": True, "worst_ratio": 0.5}
    peers = {
        "eager": {"p20": 0.03, "p50": 0.04, "p80": 0.05, "parity": parity},
        "compile": {"failure": "RuntimeError: no compiler"},
        "gdcore": {"p20": 0.009, "p50": 0.01, "p80": 0.02, "parity": parity},
    }
    shape = {"n": 1000, "k": 2, "m": 1, "dtype": "float32", "wanted": ["weight"]}
    row = {
        **shape,
        "peers": peers,
        "plan": {"path": "streaming"},
        "failed": None,
        "floor_seconds": 0.005,
        "comparisons": {"eager": against},
        "best": against,
    }
    run = {"final_loss": 0.5, "score": 0.9, "seconds": 0.1, "loss_difference": 1e-7}
    return {
        "schema": "gdcore-bench/2",
        "created": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:00+00:00",
        "profile": "quick",
        "seed": 0,
        "machine": {"cpu": "A CPU", "cores": 2, "threads": 2, "device": "cpu"},
        "versions": {"gdcore": "0.1.0", "torch": "2.13.0", "triton": None},
        "commit": "abc",
        "ceilings": None,
        "cases": {"one": row, "two": {**shape, "n": 2000, "skipped": "it takes about 9 GiB"}},
        "memory": [
            {"n": 10, "k": 2, "m": 1, "output_bytes": 40, "eager": {"peak_bytes": 4096}, "gdcore": {"peak_bytes": 1024}}
        ],
        "predicted": [],
        "sgd": {},
        "sgd_host": {},
        "training": {
            "digits": {
                "dataset": "digits",
                "what": "small",
                "updates": 10,
                "metric": "accuracy",
                "path": {"name": "streaming", "why": "it is faster"},
                "first_loss": 1.0,
                "problems": [],
                "eager": run,
                "gdcore": run,
                "fused": run,
            }
        },
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "bench" / "results" / "cpu.json", document())
    (tmp_path / "README.md").write_text(f"# before\n\n{readme.BEGIN}\nold\n{readme.END}\n\nafter\n")
    return tmp_path


def update(folder: Path) -> dict[str, bytes]:
    paths = readme.update(folder / "bench" / "results" / "cpu.json", folder / "README.md")
    return {path.name: path.read_bytes() for path in paths}


def test_writing_twice_changes_nothing(folder):
    first = update(folder)
    assert set(first) == {"README.md", "speed.svg", "speed.png"} and all(first.values())
    assert update(folder) == first


def test_the_block_names_its_source_and_shows_every_case(folder):
    update(folder)
    text = (folder / "README.md").read_text()
    assert text.startswith("# before\n") and text.endswith("after\n") and "old" not in text
    for expected in (
        "(bench/results/cpu.json)",
        "**CPU figures**: A CPU, 2 cores, 2 threads; torch 2.13.0, Triton missing, gdcore 0.1.0; 2026-01-02, commit abc.",
        "| 1,000 × 2 × 1 | dW | streaming | 40.0 ms | failed | 10.0 ms | 4.00x (3.90 to 4.10) | 4.00x | faster |",
        "it takes about 9 GiB",
        "accuracy 0.9000",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    "text", ["none", f"{readme.END} {readme.BEGIN}", f"{readme.BEGIN} {readme.BEGIN} {readme.END}"]
)
def test_a_readme_without_the_marks_is_refused_and_left_alone(folder, text, capsys):
    (folder / "README.md").write_text(text)
    arguments = ["readme", str(folder / "bench" / "results" / "cpu.json"), "--readme", str(folder / "README.md")]
    assert main(arguments) == 2
    assert "must hold" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == text


def test_a_file_without_figures_is_refused(folder):
    empty = document() | {"cases": {}}
    write(folder / "empty.json", empty)
    with pytest.raises(BadInput, match="no speed figures"):
        readme.update(folder / "empty.json", folder / "README.md")


def test_the_committed_figures_are_what_the_committed_file_gives():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.shown(text)
    source = re.search(r"\((bench/results/[^)]+\.json)\)", shown)
    assert source, "the README names no committed result file: run python -m gdcore.bench readme FILE"
    assert shown == readme.block(read(ROOT / source[1]), source[1])
