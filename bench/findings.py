"""What a run found, in sentences: where gdcore is faster, the same, where a peer wins; parity, noise, memory, surprises."""

from collections.abc import Mapping, Sequence

from . import words
from .peers import LIBRARY, OURS, SKLEARN
from .timing import DEVICE, WALL
from .words import best, duration, label, listed, size, stock_of, times

VERDICTS = (
    ("SAME", "The same speed as"),
    ("UNSURE", "Too noisy to tell from"),
    ("SLOWER", "Slower than"),
)
WAITING = 1.5  # times as long as its kernels takes a call whose host is the limit
BUSY = 0.4  # of the cores: above, other work shows in what is measured
SUBJECTS = {"linear_mse": "linear_mse", "sgd": "A step of gdcore.SGD", "run": "Training"}


def findings(document: Mapping) -> list[str]:
    """All of them, in the order in which a reader asks."""
    return [*headlines(document), *details(document)]


def headlines(document: Mapping) -> list[str]:
    """What was found."""
    rows = list(document["cases"].values())
    return [
        *_unfinished(document),
        *_parity(rows),
        *(sentence for kind in SUBJECTS for sentence in _speed(kind, words.of_kind(document, kind))),
        *_host_bound(rows),
        *_noise(rows),
        *busy(document),
        *_memory(words.of_kind(document, "linear_mse")),
        *_runs(words.of_kind(document, "run")),
        *_host(document["host"]),
        *_clocks(rows),
        *filter(None, [words.how_predictions_held(document)]),
    ]


def details(document: Mapping) -> list[str]:
    """Where a prediction was off, and what has no figure, each with the reason."""
    rows = list(document["cases"].values())
    return [*(f"{label(row)}: {row['explained']}" for row in rows if row.get("explained")), *_without(rows)]


def _span(ratios: Sequence[float]) -> str:
    return times(ratios[0]) if len(ratios) == 1 else f"{times(min(ratios))} to {times(max(ratios))}"


def _speed(kind: str, rows: list[Mapping]) -> list[str]:
    """Against stock and against the best of all peers; every loss by name."""
    rows = words.timed(rows)
    if not rows:
        return []
    compared = [(row, words.against(row)) for row in rows]
    compared = [(row, found) for row, found in compared if found]
    faster = [found["speedup"] for _, found in compared if found["verdict"] == "FASTER"]
    sentences = []
    if faster:
        sentences.append(
            f"{SUBJECTS[kind]}: faster than stock in {len(faster)} of {len(compared)} cases, {_span(faster)}."
        )
    if kind != "sgd":
        sentences += _by_verdict(kind, compared, "stock")
    others = [(row, best(row)) for row in rows if row["column"] in row["best"]]
    won = [found["speedup"] for _, found in others if found["verdict"] == "FASTER"]
    if won:
        sentences.append(
            f"{SUBJECTS[kind]}: faster than every right peer in {len(won)} of {len(others)} cases, {_span(won)}."
        )
    beaten = [(row, found) for row, found in others if found["verdict"] == "SLOWER"]
    if not others:
        return sentences
    if beaten:
        cases = [
            f"{label(row)} ({words.TITLES[c['baseline']]}; gdcore has {times(c['speedup'])} of its speed)"
            for row, c in beaten
        ]
        sentences.append(f"{SUBJECTS[kind]}: a peer wins at {listed(cases)}.")
    else:
        sentences.append(
            f"{SUBJECTS[kind]}: no peer wins beyond the noise, in {len(others)} case{'s' * (len(others) != 1)}."
        )
    return sentences


def _by_verdict(kind: str, compared: list[tuple[Mapping, Mapping]], whom: str) -> list[str]:
    sentences = []
    for verdict, opening in VERDICTS:
        found = [f"{label(row)} ({times(c['speedup'])})" for row, c in compared if c["verdict"] == verdict]
        if found:
            sentences.append(f"{SUBJECTS[kind]}: {opening[0].lower()}{opening[1:]} {whom} at {listed(found)}.")
    return sentences


def _parity(rows: list[Mapping]) -> list[str]:
    checked = [row for row in rows if "skipped" not in row]
    failed = [row for row in checked if row["failed"]]
    sentences = []
    if checked:
        sentences.append(
            f"Parity with float64: {len(checked) - len(failed)} of {len(checked)} cases pass "
            "(every result at most twice as far off as stock's, plus rounding)."
        )
    sentences += [f"PARITY OR SPEED FAILS at {label(row)}: {row['failed']}." for row in failed]
    return sentences + [f"{label(row)}: {problem}." for row in rows for problem in row.get("problems", ())]


def _unfinished(document: Mapping) -> list[str]:
    if document["finished"]:
        return []
    done = len(document["cases"])
    return [f"The run is not finished: it has {done} case{'s' * (done != 1)} of its profile."]


def _host_bound(rows: list[Mapping]) -> list[str]:
    """Where stock is the faster one end to end though it keeps the GPU for longer."""
    found = []
    for row in words.timed(rows):
        by_wall = row["comparisons"].get(WALL, {}).get(stock_of(row))
        ours = row["peers"][OURS]["times"]
        waits = row["column"] == DEVICE and WALL in ours and ours[WALL]["p50"] > WAITING * ours[DEVICE]["p50"]
        if waits and by_wall and by_wall["verdict"] == "SLOWER":
            found.append(f"{label(row)} ({times(by_wall['speedup'])})")
    if not found:
        return []
    return [
        f"One call after another, the host's part and all, stock is faster at {listed(found)}: there the host takes longer to "
        "launch gdcore's kernels than the GPU takes to run them. A CUDA graph has no such part."
    ]


def _noise(rows: list[Mapping]) -> list[str]:
    """The A/A runs."""
    off = [abs(row["noise"][row["column"]]["speedup"] - 1) for row in words.timed(rows)]
    if not off:
        return []
    return [
        f"Noise floor: gdcore against itself, the same way, differs by {100 * sorted(off)[len(off) // 2]:.1f} % in the "
        f"middle case and {100 * max(off):.1f} % in the worst; FASTER and SLOWER must lie beyond the 95 % interval of that."
    ]


def busy(document: Mapping) -> list[str]:
    """Other processes while a run began: on a CPU they take what is measured."""
    busy, cores = document.get("busy_cores"), document["machine"]["cores"]
    if document["machine"]["device"] != "cpu" or not busy or busy < BUSY * cores:
        return []
    return [
        f"Other work kept {busy:.1f} of {cores} cores busy when this began: these are times of a disturbed machine."
    ]


def _memory(rows: list[Mapping]) -> list[str]:
    known = [row for row in rows if all("peak_bytes" in row.get("peers", {}).get(n, {}) for n in (stock_of(row), OURS))]
    known = sorted(known, key=lambda row: row["peers"][stock_of(row)]["peak_bytes"])[-3:]
    sentences = []
    for row in known:
        stock, ours = (size(row["peers"][name]["peak_bytes"]) for name in (stock_of(row), OURS))
        hand = row["peers"].get(LIBRARY, {}).get("peak_bytes")
        by_hand = "" if hand is None else f", by hand {size(hand)}"
        sentences.append(f"Extra memory of one call at {label(row)}: stock {stock}{by_hand}, gdcore {ours}.")
    return sentences


def _runs(rows: list[Mapping]) -> list[str]:
    sentences = []
    for row in words.timed(rows):
        stock, ours = words.timing(row, stock_of(row)), words.timing(row, OURS)
        if not stock:
            continue
        errors = row["peers"][OURS]["parity"]["errors"]
        path = row["plan"]["path"]
        sentences.append(
            f"Training on {label(row)}: {duration(stock['p50'])} with stock, {duration(ours['p50'])} with gdcore"
            + (f", which leaves it to stock ({row['plan']['why']})" if path == "stock" else f" ({path} path)")
            + f"; losses within {words.difference(float(errors['losses']))} of float64's; {row['metric']} "
            f"{_score(row, stock_of(row))} and {_score(row, OURS)}."
        )
        if words.timing(row, SKLEARN):
            sentences.append(
                f"scikit-learn's SGDRegressor, another algorithm, takes {words.median(row, SKLEARN)} for as many epochs on "
                f"{row['data']} and reaches {row['metric']} {_score(row, SKLEARN)}."
            )
    return sentences


def _score(row: Mapping, peer: str) -> str:
    return f"{float(row['peers'][peer]['score']):.4f}"  # a file has NaN as a string


def _host(host: Mapping) -> list[str]:
    if "failure" in host:
        return [f"No host times: {host['failure']}."]
    pairs = [_pair(found["peers"]) for found in host.get("rows", {}).values()]
    ratios = [stock / ours for stock, ours in pairs if ours]
    if not ratios:
        return []
    slower = [name for name, found in host["rows"].items() if (p := _pair(found["peers"]))[1] > p[0]]
    return [
        "From a call to its launch, Triton's own launcher left out, which every launch of gdcore pays on top, gdcore keeps the host "
        f"{_span([1 / r for r in ratios])} as long as stock"
        + (f"; longer at {listed(slower)}." if slower else "; longer nowhere.")
    ]


def _pair(peers: Mapping) -> tuple[float, float]:
    """(stock's median, gdcore's)."""
    stock = next(found["p50"] for name, found in peers.items() if name != OURS)
    return stock, peers[OURS]["p50"]


def _clocks(rows: list[Mapping]) -> list[str]:
    return [
        f"The GPU held back at {label(row)}: {row['clocks']['throttled']}."
        for row in rows
        if row.get("clocks") and row["clocks"]["throttled"]
    ]


def _without(rows: list[Mapping]) -> list[str]:
    """Peers that failed or were left out, and cases that were skipped."""
    sentences, absent = [], {}
    for row in rows:
        for name, entry in row.get("peers", {}).items():
            why = entry.get("failure") or entry.get("no_time", {}).get(row.get("column"))
            if name != OURS and why:
                sentences.append(f"{words.TITLES[name]} has no figure at {label(row)}: {why}.")
            if "no_memory" in entry:
                absent.setdefault((f"The memory of {words.TITLES[name]} is not known", entry["no_memory"]), []).append(
                    row
                )
            if "left_out" in entry:
                absent.setdefault((f"{words.TITLES[name]} was left out", entry["left_out"]), []).append(row)
    for (what, why), without in absent.items():
        where = label(without[0]) if len(without) == 1 else f"{len(without)} of {len(rows)} cases"
        sentences.append(f"{what} at {where}: {why}.")
    return sentences + [f"Skipped: {label(row)}: {row['skipped']}." for row in rows if "skipped" in row]
