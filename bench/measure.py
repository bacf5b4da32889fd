"""One case from beginning to end: operands, parity, and only then speed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import gdcore

from . import parity, timing
from .cases import Case, Tensors, dtype_name, make_tensors
from .ceilings import Ceilings
from .machine import free_bytes
from .peers import OURS, PEERS, Call, Peer, bind, in_one_line


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cases of a run share."""

    device: torch.device
    seed: int
    ceilings: Ceilings
    peers: Sequence[Peer] = PEERS


def measure_case(case: Case, setting: Setting) -> dict:
    """The case's row for the result file. `failed` says in words why gdcore got no speed figure, or is None."""
    row = {
        "regime": case.regime,
        "n": case.n,
        "k": case.k,
        "m": case.m,
        "dtype": dtype_name(case.dtype),
        "wanted": list(case.wanted),
    }
    free = free_bytes(setting.device)
    if free is not None and case.bytes_needed > free:
        return row | {"skipped": f"it takes about {case.bytes_needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"}
    try:
        tensors = make_tensors(case, setting.device, setting.seed)
        truth = parity.exact(case, tensors)
        stock = parity.stock(case, tensors)
    except torch.OutOfMemoryError as error:
        return row | {"skipped": in_one_line(error)}
    row["plan"] = _plan(tensors)
    row["floor_seconds"], row["bound_by"] = setting.ceilings.floor_seconds(case)
    row["peers"], calls = _check_all(case, setting.peers, tensors, truth, stock)
    del truth, stock
    row["failed"] = row["peers"][OURS].get("failure")
    return row | ({} if row["failed"] else _time_all(case, calls, row["peers"], setting))


def _plan(tensors: Tensors) -> dict:
    """What the library says it does for these tensors."""
    plan = gdcore.explain(tensors.input, tensors.weight, tensors.target, tensors.bias).plan
    return {
        "backend": plan.backend,
        "path": plan.path,
        "why": plan.why,
        "bytes": plan.bytes_read + plan.bytes_written,
        "flops": plan.flops,
        "workspace_bytes": plan.workspace_bytes,
    }


def _check_all(
    case: Case, peers: Sequence[Peer], tensors: Tensors, truth: parity.Named, stock: parity.Named
) -> tuple[dict[str, dict], dict[str, Call]]:
    """Every peer's parity, or why it has none; and the calls of those that passed."""
    entries, calls = {}, {}
    for peer in peers:
        try:
            call = bind(peer.prepare(), case, tensors)
            found = parity.check(case, call, truth, stock)
        except Exception as error:  # whatever a peer raises is its result
            entries[peer.name] = {"failure": in_one_line(error)}
            continue
        entries[peer.name] = {"parity": found.to_json()}
        if found.passed:
            calls[peer.name] = call
        else:
            entries[peer.name]["failure"] = "; ".join(found.failures)
    return entries, calls


def _time_all(case: Case, calls: dict[str, Call], entries: dict[str, dict], setting: Setting) -> dict:
    """Adds each peer's samples to its entry; returns gdcore's comparison with every peer, and with the fastest of them."""
    clock = timing.clock_for(case.regime, setting.device)
    samples = timing.interleave(calls, clock, seconds=case.seconds)
    for name, values in samples.items():
        entries[name] |= {"samples": values, **timing.quantiles(values)}
    comparisons = {
        name: timing.compare(samples[OURS], samples[name], name).to_json() for name in samples if name != OURS
    }
    best = min(comparisons.values(), key=lambda comparison: comparison["speedup"])
    return {"clock": clock.name, "comparisons": comparisons, "best": best}
