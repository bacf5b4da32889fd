"""A result file's figures in the README: the text between two marks, and the pictures. Nothing there is typed by hand."""

import html
import os
from collections.abc import Mapping
from pathlib import Path

from . import figures, findings, tables, words
from .results import BadInput, read

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def pictures_of(page: Path) -> Path:
    """The folder for a page's pictures: docs/ beside a README, and for a page of another name one that has it: cpu/ beside cpu.md."""
    return page.parent / ("docs" if page.stem == "README" else page.stem)


def update(result: Path, readme: Path) -> list[Path]:
    """Writes the README's block and the pictures beside it; returns the paths written.

    Raises
    ------
    BadInput
        If the result file holds no figures, or the README lacks the marks.
    """
    document = read(result)
    if not words.timed(list(document["cases"].values())):
        raise BadInput(f"{result} holds no speed figures: nothing to show")
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {readme}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
    source = Path(os.path.relpath(result, readme.parent)).as_posix()
    changed = replaced(text, block(document, source), readme)
    try:
        folder = pictures_of(readme)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = figures.draw(document, folder)
        readme.write_text(changed, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write beside {readme}: {error.strerror}") from error
    return [readme, *pictures]


def replaced(text: str, new: str, name: object = "the text") -> str:
    """The text with what stands between the marks replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise BadInput(f"{name} must hold {BEGIN} and after it {END}, once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}{END}{rest.split(END)[1]}"


def shown(text: str) -> str:
    """What stands between the marks now."""
    return text.split(BEGIN)[1].split(END)[0].removeprefix("\n")


def block(document: Mapping, source: str) -> str:
    """The README's figures in Markdown; `source` is the result file as the README links it. Tables unfold at a click."""
    parts = [f"{provenance(document)} Every sample is in [{source}]({source})."]
    parts.append("\n".join(f"- {sentence}" for sentence in findings.headlines(document)))
    parts += [folded(table.title, markdown(table)) for table in tables.all_of(document)]
    if more := findings.details(document):
        parts.append(folded("Where predictions were off, and what has no figure", "\n".join(f"- {s}" for s in more)))
    return "\n\n".join(parts) + "\n"


def folded(title: str, content: str) -> str:
    """Markdown that shows its title until it is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>\n\n{content}\n\n</details>"


def provenance(document: Mapping) -> str:
    """Whose figures these are: device, versions, date, commit."""
    machine, versions = document["machine"], document["versions"]
    where = (
        f"{machine['gpu']}, driver {machine['driver']}"
        if machine["device"] == "cuda"
        else f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    )
    kind = "GPU" if machine["device"] == "cuda" else "CPU"
    software = f"torch {versions['torch']}, Triton {versions['triton'] or 'missing'}, gdcore {versions['gdcore']}"
    made = f"{document['created'][:10]}, commit {document['commit'] or 'none'}"
    return f"**{kind} figures**: {where}; {software}; {made}."


def markdown(table: tables.Table) -> str:
    """A table with its note, all columns but the first aligned to the right."""
    lines = [table.heads, ["---", *["---:"] * (len(table.heads) - 1)], *table.rows]
    drawn = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return drawn + (f"\n\n{table.note}" if table.note else "")
