"""How much memory does a call need beyond its inputs? The peak during one call, as a difference; and whether there is so much.

On the CPU this is measured in a process of its own, in which freed memory goes back to the system at once
(MALLOC_MMAP_THRESHOLD_): elsewhere a peak once reached stays, since the allocator keeps what it has. That process,
`python -m gdcore.bench.memory`, reads cases and peers as JSON and prints a line for each.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import gdcore

from .cases import Case
from .machine import free_bytes
from .peers import COMPILERS, FOLDED, LIBRARY, OURS, Bind, as_tensor, in_one_line

LEAST_NUMBERS = 9 << 20  # of an N x M matrix, which is what stock needs: below, pages and libraries blur it
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS (now) or VmHWM (the highest so far)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_of(bind: Bind, operands: Any, device: torch.device) -> int:
    """Bytes that a call takes at its peak beyond what was held before: on CUDA before it was bound, since a graph takes its
    memory when it is captured; on the CPU before the call, since a compiler's own memory would hide everything else."""
    if device.type == "cuda":
        bind(operands)()  # what a compiler takes while it tries kernels out is not the call's
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        bind(operands)()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    call = bind(operands)
    call()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back to VmRSS
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


MATRICES = {
    OURS: 0,
    LIBRARY: 1,
    FOLDED: 1,
}  # N x M that a peer holds beside the target; stock has prediction and gradient


def tried(case: Any, peer: str, bind: Bind, operands: Any, device: torch.device) -> dict:
    """What a peer makes of a case of which only some rows were judged: {"results"}, or {"failure", "out_of_memory"}.

    The other rows repeat the judged ones, so that the mean loss and the weight's and bias's gradients are the same.

    On a CPU it is not tried where it must fail: the system would end this process, or another one.
    """
    needed, free = MATRICES.get(peer, 2) * case.sizes["target"] * case.dtype.itemsize, free_bytes(device)
    if device.type == "cpu" and free is not None and needed > free:
        why = f"it holds {needed / 2**30:.1f} GiB beside its inputs, {free / 2**30:.1f} GiB are free (predicted)"
        return {"failure": f"out of memory: {why}", "out_of_memory": True}
    try:
        names = ("loss", *case.wanted)
        found = dict(zip(names, bind(operands)(), strict=True))
    except (torch.OutOfMemoryError, MemoryError) as error:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return {"failure": f"out of memory: {in_one_line(error)}", "out_of_memory": True}
    return {"results": {name: as_tensor(found[name]).detach() for name in names if name in ("loss", "weight", "bias")}}


def measurable(row: Mapping) -> list[str]:
    """The peers of a row whose memory on the CPU can be measured and is worth it: those that gave right results, once."""
    if row["kind"] != "linear_mse" or row["op"] != "backward" or "skipped" in row:
        return []  # the loss alone takes less, a step the same
    if row["n"] * row["m"] < LEAST_NUMBERS:
        return []
    known = {"peak_bytes", "no_memory"}
    return [name for name, entry in row["peers"].items() if "times" in entry and not known & {*entry}]


def measure_apart(rows: Iterable[Mapping], seed: int) -> Iterable[tuple[int, str, dict]]:
    """(number of the row, peer, {"peak_bytes"} or {"no_memory": why}), one after the other, from a process of its own."""
    jobs = [[_arguments(row), measurable(row)] for row in rows]
    missing = [(number, peer) for number, (_, peers) in enumerate(jobs) for peer in peers]
    root = str(Path(gdcore.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "gdcore.bench.memory", str(seed)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **SETTINGS, "PYTHONPATH": path},
    ) as process:
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(jobs))
                process.stdin.close()
            for line in process.stdout:
                number, peer, found = json.loads(line)
                missing.remove((number, peer))
                yield number, peer, found
        finally:
            process.kill()
    yield from ((number, peer, {"no_memory": "the process that measures it ended"}) for number, peer in missing)


def _arguments(row: Mapping) -> dict:
    return {name: row[name] for name in ("regime", "n", "k", "m", "dtype", "wanted", "op", "data")} | {
        "judged": row.get("judged")
    }


def _case(arguments: Mapping) -> Case:
    wanted = tuple(arguments["wanted"]) or ("weight",)
    return Case(**{**arguments, "dtype": getattr(torch, arguments["dtype"]), "wanted": wanted})


def _answer(jobs: list, seed: int) -> None:
    """Prints a line for every peer of every case."""
    device = torch.device("cpu")
    for number, (arguments, peers) in enumerate(jobs):
        case = _case(arguments)
        operands = case.draw(device, seed)
        if set(COMPILERS) & set(peers):
            torch.compiler.reset()
        for peer in case.peers:
            if peer.name in peers:
                try:
                    found: dict[str, Any] = {"peak_bytes": peak_of(peer.prepare(case, device), operands, device)}
                except Exception as error:  # whatever a peer raises is its result
                    found = {"no_memory": in_one_line(error)}
                print(json.dumps([number, peer.name, found]), flush=True)


if __name__ == "__main__":
    _answer(json.load(sys.stdin), int(sys.argv[1]))
