"""One case from beginning to end: operands, parity, and only then speed and memory."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import memory, parity
from .ceilings import Ceilings
from .gpu_clocks import Clocks
from .linear_peers import captured, leaves_of_their_own
from .machine import free_bytes
from .peers import (
    AGAIN,
    COMPILERS,
    FOREACH,
    GRAPHED_COMPILED,
    JAX,
    LOOP,
    OURS,
    STOCK,
    TUNED,
    VARIANTS,
    Bind,
    Call,
    LeftOut,
    Named,
    Peer,
    Workload,
    in_one_line,
)
from .roofline import explained, predicted_seconds
from .timing import (
    DEVICE,
    MARGIN,
    REPLAY,
    WALL,
    DeviceClock,
    ReplayClock,
    Replays,
    WallClock,
    compare,
    headline,
    interleave,
    quantiles,
)

MOST_SETS = 6  # of inputs that replays rotate over
HARDEST = ("SLOWER", "UNSURE", "SAME", "FASTER")  # verdicts, the hardest to beat first


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cases of a run share."""

    device: torch.device
    seed: int
    ceilings: Ceilings
    only: tuple[str, ...] | None = None  # peers asked for by name; None: all that the profile has
    pace: float = 1.0  # of each case's seconds: less where the profile's time runs out
    compile: bool = True  # whether there is time left to compile

    def at(self, pace: float, may_compile: bool) -> "Setting":
        """The same at another pace."""
        return replace(self, pace=pace, compile=may_compile)


def measure_case(case: Workload, setting: Setting) -> dict:
    """The case's row for the result file. `failed` says in words why gdcore got no speed figure, or is None."""
    row: dict[str, Any] = {"kind": case.kind, "op": case.op, "regime": case.regime, **case.describe()}
    row["stock"] = (
        STOCK if case.kind != "sgd" else FOREACH if setting.device.type == "cuda" else LOOP
    )  # torch's defaults
    free = free_bytes(setting.device)
    if free is not None and case.bytes_needed > free:
        return row | {"skipped": f"it takes about {case.bytes_needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"}
    try:
        operands = case.draw(setting.device, setting.seed)
        only_some = getattr(case, "judged", None) is not None
        judged, part = case.judged_part(operands) if only_some else (case, operands)
        oracle = case.peers[0].prepare(judged, setting.device)
        wide = case.widened(part)
        truth = case.results(oracle, wide)
        del wide
        stock = case.results(oracle, part)
    except (torch.OutOfMemoryError, MemoryError, ImportError) as error:  # or the data set's library is missing
        return row | {"skipped": in_one_line(error)}
    except RuntimeError as error:
        if "alloc" not in str(error):  # as the CPU's allocator says it
            raise
        return row | {"skipped": in_one_line(error)}
    floor, bound_by = setting.ceilings.floor_seconds(case)
    row |= {"bytes": case.minimal_bytes, "flops": case.flops, "floor_seconds": floor, "bound_by": bound_by}
    row |= _plan(case, operands, setting.ceilings) | {"peers": {}, "problems": []}
    binds = {}
    if set(COMPILERS) & set(case.compilers if setting.only is None else setting.only):
        torch.compiler.reset()  # else code from the case before would be made generic in its shapes
    for peer in case.peers:
        entry, bind = _check(judged, peer, setting, part, truth, stock)
        if bind is not None and only_some:
            bind = peer.prepare(case, setting.device)
            entry |= memory.tried(case, peer.name, bind, operands, setting.device)
            if (found := entry.pop("results", None)) is not None:
                whole = parity.judge(case.kind, found, *({name: t[name] for name in found} for t in (truth, stock)))
                if not whole["passed"]:
                    entry["failure"] = "over all rows " + "; ".join(whole["failures"])
            bind = None if "failure" in entry else bind
        row["peers"][peer.name] = entry
        if peer.name in (*VARIANTS, OURS):
            row["problems"] += [f"{peer.name}: {problem}" for problem in entry.get("problems", ())]
        if bind is not None:
            binds[peer.name] = bind
    del truth, stock, part
    row["failed"] = row["peers"][OURS].get("failure")
    if OURS not in binds:
        return row
    if setting.device.type == "cuda":
        for name, bind in binds.items():
            row["peers"][name] |= _memory(name, bind, operands, setting.device)
    return row | _time_all(case, binds, row, operands, setting)


def _plan(case: Workload, operands: Any, ceilings: Ceilings) -> dict:
    """What the library says that it does for these operands, and how long that would take here."""
    plan = case.plan(operands)
    if plan is None:
        return {}
    return {
        "plan": {
            "backend": plan.backend,
            "path": plan.path,
            "why": plan.why,
            "bytes": plan.bytes_read + plan.bytes_written,
            "flops": plan.flops,
            "workspace_bytes": plan.workspace_bytes,
            "predicted_seconds": predicted_seconds(plan, case.dtype, ceilings),
        }
    }


def _check(
    case: Workload, peer: Peer, setting: Setting, operands: Any, truth: Named, stock: Named
) -> tuple[dict, Bind | None]:
    """A peer's entry, with its parity or why it has none; and how to call it, if it is right."""
    entry: dict[str, Any] = {"what": peer.what}
    try:
        _may_run(case, peer.name, setting)
        bind = peer.prepare(case, setting.device)
        found = case.results(bind, operands)
        if not peer.comparable:
            return entry | {"score": case.score(found), "another_algorithm": True}, bind
        entry["parity"] = parity.judge(case.kind, found, truth, stock)
        if case.kind == "run":
            entry |= {"score": case.score(found), "problems": case.problems(found)}
    except LeftOut as reason:
        return entry | {"left_out": str(reason)}, None
    except Exception as error:  # whatever a peer raises is its result
        return entry | {"failure": in_one_line(error)}, None
    if entry["parity"]["passed"]:
        return entry, bind
    return entry | {"failure": "; ".join(entry["parity"]["failures"])}, None


def _memory(name: str, bind: Bind, operands: Any, device: torch.device) -> dict:
    """{"peak_bytes"}, or {"no_memory"} and why."""
    if name == JAX:
        return {"no_memory": "JAX has a memory pool of its own"}
    if name in (TUNED, GRAPHED_COMPILED):
        return {"no_memory": "its CUDA graph holds its memory since it was compiled"}
    try:
        return {"peak_bytes": memory.peak_of(bind, operands, device)}
    except Exception as error:  # whatever a peer raises is its result
        return {"no_memory": in_one_line(error)}


def _may_run(case: Workload, peer: str, setting: Setting) -> None:
    """Raises LeftOut for a peer that this run, or this case of its profile, does without."""
    if setting.only is not None and peer not in (*setting.only, case.peers[0].name, OURS):
        raise LeftOut("not asked for")
    if peer in COMPILERS and setting.only is None:
        if peer not in case.compilers:
            raise LeftOut(f"this profile does not compile it for this case; --peer {peer} does")
        if not setting.compile:
            raise LeftOut("the profile's time was used up before it could be compiled")


def _time_all(case: Workload, binds: dict[str, Bind], row: dict, operands: Any, setting: Setting) -> dict:
    """Adds each peer's samples to its entry; returns gdcore's comparison with every peer, the fastest of them, and itself."""
    device, clocks = setting.device, Clocks(setting.device)
    found: dict[str, Any] = {"comparisons": {}, "best": {}, "noise": {}}
    columns = (WALL,) if device.type == "cpu" or case.kind == "run" else (DEVICE, REPLAY, WALL)
    for column in columns:
        try:
            sets = _sets(case, operands, setting) if column == REPLAY else [operands]
            calls = _calls(column, {**binds, AGAIN: binds[OURS]}, sets, row["peers"])
            if not calls:
                continue
            clock = {WALL: WallClock, DEVICE: DeviceClock, REPLAY: ReplayClock}[column](device)
            share = case.seconds * setting.pace / len(columns)
            samples = interleave(calls, clock, seconds=share, after_round=clocks.look)
        except Exception as error:  # memory for all of them at once, most likely
            for name in binds:
                row["peers"][name].setdefault("no_time", {})[column] = in_one_line(error)
            continue
        del calls, sets  # graphs hold the memory of all their results
        again = samples.pop(AGAIN, None)
        for name, values in samples.items():
            row["peers"][name].setdefault("times", {})[column] = {"samples": values, **quantiles(values)}
        if OURS in samples and again:
            _compare(found, column, samples, again, row["peers"])
    column = found["column"] = headline(case.regime, case.kind, device)
    if column not in found["noise"]:
        row["failed"] = row["peers"][OURS].get("no_time", {}).get(column, "it could not be timed")
        return found | {"clocks": clocks.report(), "explained": None}
    said = explained(row | found, device.type) if "plan" in row else None
    return found | {"clocks": clocks.report(), "explained": said}


def _calls(column: str, binds: dict[str, Bind], sets: list, peers: dict[str, dict]) -> dict[str, Call]:
    """What is timed in a column; a peer that cannot be says why in its entry."""
    calls = {}
    for name, bind in binds.items():
        try:
            if name == JAX and column != WALL:
                raise LeftOut("JAX launches on streams of its own: only end-to-end times compare")
            if name in (TUNED, GRAPHED_COMPILED) and column == REPLAY:
                raise LeftOut("it replays CUDA graphs of its own, which cannot be captured in another")
            calls[name] = _replays(bind, sets) if column == REPLAY else bind(sets[0])
            calls[name]()
        except Exception as error:  # whatever a peer raises is its result
            if name in peers:
                why = str(error) if isinstance(error, LeftOut) else in_one_line(error)
                peers[name].setdefault("no_time", {})[column] = why
            calls.pop(name, None)
    return calls


def _replays(bind: Bind, sets: list) -> Replays:
    """The call on each set of inputs as a graph; a peer that is one already keeps its own."""
    kept = []
    for operands in sets:
        call = bind(operands)
        kept.append((call, getattr(call, "graph", None)) if hasattr(call, "graph") else (call, *captured(call)))
    return Replays([entry[1] for entry in kept], kept)


def _sets(case: Workload, operands: Any, setting: Setting) -> list:
    """The operands and as many more as together pass twice the cache, but MOST_SETS at most, within a quarter of the free memory."""
    cache = torch.cuda.get_device_properties(setting.device).L2_cache_size
    wanted = min(MOST_SETS, 1 + math.ceil(2 * cache / max(1, case.minimal_bytes)))
    affordable = (free_bytes(setting.device) or 0) // (4 * max(1, case.bytes_needed))
    count = 1 if case.minimal_bytes > 4 * cache else max(1, min(wanted, 1 + affordable))
    first = leaves_of_their_own(operands) if case.kind == "linear_mse" else operands
    return [first, *(case.draw(setting.device, setting.seed + i) for i in range(1, count))]


def _compare(found: dict, column: str, samples: dict, again: list[float], peers: dict[str, dict]) -> None:
    """gdcore against every peer, and the one that is hardest to beat: `best`.

    FASTER and SLOWER must lie beyond what gdcore, sampled twice, seems to differ from itself by. `best` is SLOWER if any right
    peer is, and FASTER only if all are; within a verdict it is the peer with the least speed-up.
    """
    itself = compare(samples[OURS], again, AGAIN)
    margin = max(MARGIN, itself.high, 1 / itself.low)
    found["noise"][column] = {name: getattr(itself, name) for name in ("speedup", "low", "high")}
    comparisons = {
        name: compare(samples[OURS], values, name, margin).to_json() for name, values in samples.items() if name != OURS
    }
    found["comparisons"][column] = comparisons
    others = [c for name, c in comparisons.items() if name not in VARIANTS and not peers[name].get("another_algorithm")]
    if others:
        found["best"][column] = min(others, key=lambda other: (HARDEST.index(other["verdict"]), other["speedup"]))
