"""The README's figures: made from a result file, the same each time, and the committed ones are what the committed file gives."""

import re
from pathlib import Path

import pytest

from gdcore.bench import figures, readme, tables
from gdcore.bench.__main__ import main
from gdcore.bench.findings import findings
from gdcore.bench.results import BadInput, read, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, make, monkeypatch) -> Path:
    def draw(document, pictures):
        (pictures / "speed.svg").write_text("<svg/>")
        return [pictures / "speed.svg"]

    monkeypatch.setattr(figures, "draw", draw)
    rows = [make.row("1,000 × 2 × 1"), {"kind": "sgd", "label": "large", "skipped": "it takes | about 9 GiB"}]
    write(tmp_path / "bench" / "results" / "cpu.json", make.document(rows))
    (tmp_path / "README.md").write_text(f"# before\n\n{readme.BEGIN}\nold\n{readme.END}\n\nafter\n")
    return tmp_path


def update(folder: Path) -> dict[str, bytes]:
    paths = readme.update(folder / "bench" / "results" / "cpu.json", folder / "README.md")
    return {path.name: path.read_bytes() for path in paths}


def test_writing_twice_changes_nothing(folder):
    first = update(folder)
    assert set(first) == {"README.md", "speed.svg"} and (folder / "docs" / "speed.svg").exists()
    assert update(folder) == first


def test_the_block_names_its_source_and_shows_every_case_and_finding(folder):
    update(folder)
    text = (folder / "README.md").read_text()
    assert text.startswith("# before\n") and text.endswith("after\n") and "old" not in text
    for expected in (
        "[bench/results/cpu.json](bench/results/cpu.json)",
        "**CPU figures**: A CPU, 2 cores, 2 threads; torch 2.13.0, Triton missing, gdcore 0.1.0; 2026-01-02, commit abc.",
        "| 1,000 × 2 × 1 | streaming | 40.0 ms | 10.0 ms | 4.00x (3.92 to 4.08) | 4.00x of stock | faster | 50 % |",
        "it takes \\| about 9 GiB |",
        *findings(read(folder / "bench" / "results" / "cpu.json")),
    ):
        assert expected in text, expected


def test_a_readme_elsewhere_still_finds_its_source(folder):
    (folder / "docs").mkdir()
    (folder / "docs" / "page.md").write_text(f"{readme.BEGIN}{readme.END}")
    readme.update(folder / "bench" / "results" / "cpu.json", folder / "docs" / "page.md")
    assert "(../bench/results/cpu.json)" in (folder / "docs" / "page.md").read_text()
    assert (folder / "docs" / "page" / "speed.svg").exists() and not (folder / "docs" / "speed.svg").exists()


def test_gpu_figures_are_called_so(make):
    document = make.document()
    document["machine"] |= {"device": "cuda", "gpu": "H200", "driver": "570"}
    assert readme.provenance(document).startswith("**GPU figures**: H200, driver 570; torch 2.13.0")


def test_pipes_and_empty_notes_make_no_columns():
    table = tables.Table("T", ["a", "b"], [["x | y", "1"]])
    assert readme.markdown(table) == "| a | b |\n| --- | ---: |\n| x \\| y | 1 |"
    assert readme.markdown(tables.Table("T", ["a"], [["x"]], "note")).endswith("| x |\n\nnote")


@pytest.mark.parametrize(
    "text", ["none", f"{readme.END} {readme.BEGIN}", f"{readme.BEGIN} {readme.BEGIN} {readme.END}", readme.BEGIN]
)
def test_a_readme_without_the_marks_is_refused_and_left_alone(folder, text, capsys):
    (folder / "README.md").write_text(text)
    arguments = ["readme", str(folder / "bench" / "results" / "cpu.json"), "--readme", str(folder / "README.md")]
    assert main(arguments) == 2
    assert "must hold" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == text and not (folder / "docs").exists()


@pytest.mark.parametrize("place", ["none.md", "docs/", "binary.md"])
def test_a_readme_that_cannot_be_read_is_refused(folder, place):
    (folder / "docs").mkdir()
    (folder / "binary.md").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot read"):
        readme.update(folder / "bench" / "results" / "cpu.json", folder / place)


def test_a_readme_is_left_alone_where_the_pictures_cannot_be_written(folder):
    before = (folder / "README.md").read_text()
    (folder / "docs").write_text("a file")
    with pytest.raises(BadInput, match="cannot write beside"):
        update(folder)
    assert (folder / "README.md").read_text() == before


def test_a_file_without_figures_is_refused(folder, make):
    for number, rows in enumerate([[], [make.wrong(make.row())]]):
        write(folder / f"{number}.json", make.document(rows))
        with pytest.raises(BadInput, match="no speed figures"):
            readme.update(folder / f"{number}.json", folder / "README.md")


@pytest.mark.parametrize("page", ["README.md", "docs/cpu.md"])
def test_the_committed_figures_are_what_the_committed_file_gives(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = readme.shown(text)
    source = re.search(r"\(((?:\.\./)?bench/results/[^)]+\.json)\)", shown)
    assert source, "the page names no committed result file: run python -m gdcore.bench readme FILE"
    assert shown == readme.block(read((ROOT / page).parent / source[1]), source[1])
