"""The optimizer's rows as tables and sentences, for the console and the README alike."""

from collections.abc import Mapping

from . import words
from .peers import COMPILED, OURS
from .sgd import FOREACH, LOOP, STOCK_FUSED

PEERS = (LOOP, FOREACH, STOCK_FUSED, COMPILED)
TITLES = {LOOP: "for-loop", FOREACH: "foreach", STOCK_FUSED: "fused", COMPILED: "compiled", OURS: "gdcore"}
HEADS = ("tensors, options", *TITLES.values(), "against the best (95 %)", "verdict", "of the floor")
HOST_HEADS = ("options, gradients", "stock fused", "gdcore", "times as fast")


def label(row: Mapping) -> str:
    """ResNet-50, momentum."""
    return f"{row['what']}, {row['options']}"


def cells(row: Mapping) -> list[str]:
    """One line of the table of steps."""
    if not row.get("comparisons"):
        return [label(row), *[""] * (len(HEADS) - 2), row.get("skipped") or row.get("failed") or ""]
    best = row["best"]
    return [
        label(row),
        *(_median(row["peers"].get(name)) for name in TITLES),
        f"{words.times(best['speedup'])} of {TITLES[best['baseline']]} ({best['low']:.2f} to {best['high']:.2f})",
        best["verdict"].lower(),
        words.share(row["floor_seconds"] / row["peers"][OURS]["p50"]),
    ]


def _median(peer: Mapping | None) -> str:
    if peer is None:
        return ""
    if "p50" in peer:
        return words.duration(peer["p50"])
    return "wrong" if "parity" in peer else "failed"


def host_cells(host: Mapping) -> list[list[str]]:
    """The table of what a step keeps the host."""
    lines = []
    for name, found in host["microseconds"].items():
        stock, ours = found["fused"]["p50"], found["gdcore"]["p50"]
        lines.append([name, f"{stock:.0f} µs", f"{ours:.0f} µs", words.times(stock / ours)])
    return lines


def findings(document: Mapping) -> list[str]:
    """What the rows show, in sentences."""
    rows = words.timed(list(document["sgd"].values()))
    sentences = []
    for verdict, opening in (
        ("FASTER", "faster than the best right implementation of torch.optim.SGD"),
        ("SAME", "the same"),
        ("UNSURE", "too noisy to tell"),
        ("SLOWER", "slower"),
    ):
        found = [row for row in rows if row["best"]["verdict"] == verdict]
        if found:
            named = [f"{label(row)} ({words.times(row['best']['speedup'])})" for row in found]
            sentences.append(f"A step of gdcore.SGD is {opening} at {words.listed(named)}.")
    for row in document["sgd"].values():
        for name, peer in row.get("peers", {}).items():
            if "failure" in peer:
                sentences.append(f"{TITLES[name]} gave no figure at {label(row)}: {peer['failure']}.")
    sentences += [f"Skipped: {label(row)}: {row['skipped']}." for row in document["sgd"].values() if "skipped" in row]
    if document["sgd_host"]:
        ours = [found["gdcore"]["p50"] for found in document["sgd_host"]["microseconds"].values()]
        stock = [found["fused"]["p50"] for found in document["sgd_host"]["microseconds"].values()]
        sentences.append(
            f"From step() to the launch for {document['sgd_host']['tensors']} tensors on this host: gdcore "
            f"{min(ours):.0f} to {max(ours):.0f} µs, stock's fused SGD {min(stock):.0f} to {max(stock):.0f} µs."
        )
    return sentences
