"""A result file's figures in the README: the text between two marks, and the picture. Nothing there is typed by hand."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import sgd_words, words
from .peers import COMPILED, FUSED, OURS, STOCK
from .results import BadInput, read

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PICTURE = Path("docs") / "speed.svg"
COLOURS = {COMPILED: "#9aa5b1", OURS: "#d1495b"}


def update(result: Path, readme: Path) -> list[Path]:
    """Writes the README's block and the pictures beside it; returns the paths written.

    Raises
    ------
    BadInput
        If the result file is no finished one, or the README lacks the marks.
    """
    document = read(result)
    if not words.timed(list(document["cases"].values())):
        raise BadInput(f"{result} holds no speed figures: nothing to show")
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot read {readme}: {error.strerror}") from error
    source = Path(os.path.relpath(result, readme.parent)).as_posix()
    changed = replaced(text, block(document, source), readme)
    pictures = [readme.parent / PICTURE, (readme.parent / PICTURE).with_suffix(".png")]
    try:
        pictures[0].parent.mkdir(parents=True, exist_ok=True)
        for path in pictures:
            draw(document, path)
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
    """The README's figures in Markdown; `source` is the result file as the README links it."""
    rows = list(document["cases"].values())
    parts = [
        f"{provenance(document)} Every sample is in [{source}]({source}).",
        speed_table(rows),
        "\n".join(f"- {sentence}" for sentence in words.findings(document)),
    ]
    if document["sgd"]:
        lines = [sgd_words.cells(row) for row in document["sgd"].values()]
        parts.append(f"**One step of the optimizer**:\n\n{markdown_table(sgd_words.HEADS, lines)}")
        parts.append("\n".join(f"- {sentence}" for sentence in sgd_words.findings(document)))
    if document["sgd_host"]:
        what = f"**From `step()` to the launch**, {document['sgd_host']['tensors']} tensors, the launch left out"
        parts.append(f"{what}:\n\n{markdown_table(sgd_words.HOST_HEADS, sgd_words.host_cells(document['sgd_host']))}")
    if document["training"]:
        parts.append(training_table(list(document["training"].values())))
    if document["predicted"]:
        parts.append(predicted_table(document["predicted"]))
    return "\n\n".join(parts) + "\n"


def provenance(document: Mapping) -> str:
    """Whose figures these are: device, versions, date, commit."""
    machine, versions = document["machine"], document["versions"]
    where = (
        machine["gpu"]
        if machine["device"] == "cuda"
        else f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    )
    kind = "GPU" if machine["device"] == "cuda" else "CPU"
    software = f"torch {versions['torch']}, Triton {versions['triton'] or 'missing'}, gdcore {versions['gdcore']}"
    made = f"{document['created'][:10]}, commit {document['commit'] or 'none'}"
    return f"**{kind} figures**: {where}; {software}; {made}."


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, all columns but the first aligned to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def speed_table(rows: Sequence[Mapping]) -> str:
    """Medians of loss and gradients, and the verdict against stock; cases without figures say why."""
    lines = []
    for row in rows:
        if not row.get("comparisons"):
            why = row.get("skipped") or row.get("failed")
            lines.append([words.shape(row), words.wanted(row), "", "", "", "", "", "", why])
            continue
        against = row["comparisons"][STOCK]
        peers = [row["peers"].get(name, {}) for name in (STOCK, COMPILED, OURS)]
        medians = [words.duration(peer["p50"]) if "p50" in peer else "failed" for peer in peers]
        lines.append(
            [
                words.shape(row),
                words.wanted(row),
                row["plan"]["path"],
                *medians,
                f"{words.times(against['speedup'])} ({against['low']:.2f} to {against['high']:.2f})",
                words.times(row["best"]["speedup"]),
                against["verdict"].lower(),
            ]
        )
    heads = [
        "N × K × M",
        "gradients",
        "path",
        "stock",
        "torch.compile",
        "gdcore",
        "against stock (95 %)",
        "against the best",
        "verdict",
    ]
    return markdown_table(heads, lines)


def training_table(rows: Sequence[Mapping]) -> str:
    """Stock and fused side by side on real data."""
    lines = []
    for row in rows:
        if "unavailable" in row:
            continue
        runs = [row[name] for name in (STOCK, FUSED, OURS)]
        stock, fused, _ = runs
        lines.append(
            [
                f"{row['dataset']} ({row['what']})",
                f"{row['updates']:,}",
                f"{stock['final_loss']:.6g}",
                f"{fused['final_loss']:.6g}",
                f"{row['metric']} {stock['score']:.4f}",
                f"{fused['score']:.4f}",
                *(words.duration(run["seconds"]) for run in runs),
                row["path"]["name"],
            ]
        )
    heads = [
        "training on real data",
        "updates",
        "last loss, stock",
        "fused",
        "accuracy or R², stock",
        "fused",
        "time, stock",
        "fused",
        "gdcore",
        "gdcore's path",
    ]
    return markdown_table(heads, lines)


def predicted_table(rows: Sequence[Mapping]) -> str:
    """Floors on a GPU that was not there."""
    lines = [
        [
            words.shape(row),
            words.wanted(row),
            row["path"],
            words.size(row["bytes"]),
            words.size(row["stock_bytes"]),
            words.duration(row["floor_seconds"]),
            words.duration(row["stock_floor_seconds"]),
            row["bound_by"],
        ]
        for row in words.shown_predictions(rows)
    ]
    heads = ["N × K × M", "gradients", "path", "moves", "stock moves", "floor", "stock's floor", "bound by"]
    return f"**Predicted, not measured**, for one {rows[0]['device']}:\n\n{markdown_table(heads, lines)}"


def draw(document: Mapping, path: Path) -> None:
    """Speed-up against stock as bars, one pair a case; the same file for the same figures."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = words.timed(list(document["cases"].values()))
    machine = document["machine"]
    with matplotlib.rc_context(
        {"svg.hashsalt": "gdcore", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(8, 1.3 + 0.48 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for offset, name in ((-0.19, OURS), (0.19, COMPILED)):
            ratios = [_ratio(row, name) for row in rows]
            places = [place + offset for place in range(len(rows))]
            bars = axes.barh(
                places,
                [ratio or 0.0 for ratio in ratios],
                height=0.36,
                color=COLOURS[name],
                label=words.TITLES[name],
            )
            texts = [words.times(ratio) if ratio else "failed" for ratio in ratios]
            axes.bar_label(bars, texts, padding=3, fontsize=8, color="#333333")
        axes.axvline(1, color="#333333", linewidth=1, linestyle="--", zorder=0, label="stock")
        axes.set_yticks(range(len(rows)), [words.label(row) for row in rows])
        axes.invert_yaxis()
        axes.margins(x=0.08)
        axes.set_xlabel("times as fast as stock PyTorch: loss and gradients, longer is faster")
        title = f"linear + MSE, N × K × M  ({words.device_label(machine)})"
        axes.set_title(title, loc="left", fontweight="bold", pad=24)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.2)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _ratio(row: Mapping, name: str) -> float | None:
    """How many times as fast as stock a peer is; None where it has no figure."""
    peer = row["peers"].get(name, {})
    return row["peers"][STOCK]["p50"] / peer["p50"] if "p50" in peer else None
