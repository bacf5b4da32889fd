"""How much memory does a call need beyond its inputs? The peak during one call, as a difference.

On the CPU every figure comes from a fresh process, since a peak once reached stays in the statistics and freed
memory stays in the allocator: `python -m gdcore.bench.memory N K M PEER` prints one as JSON.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import gdcore

from .cases import Case, make_tensors
from .peers import OURS, PEERS, STOCK, bind, in_one_line

# The second has twice the rows of the first: what grows with N doubles, what is O(block) stays.
SHAPES = ((500_000, 64, 64), (1_000_000, 64, 64))
SMOKE_SHAPES = ((100_000, 16, 16),)
MEASURED = (STOCK, OURS)
TIMEOUT = 120


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS (now) or VmHWM (the highest so far)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_here(case: Case, peer: str, device: torch.device, seed: int = 0) -> int:
    """Bytes that one call of a peer takes at its peak beyond what was held before it. Warmed up on a small case."""
    function = next(p for p in PEERS if p.name == peer).prepare()
    small = Case(case.regime, 64, case.k, case.m, case.dtype, case.wanted)
    bind(function, small, make_tensors(small, device, seed))()
    call = bind(function, case, make_tensors(case, device, seed))
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back to VmRSS
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _measure_in_fresh_process(shape: tuple[int, int, int], peer: str) -> dict:
    root = str(Path(gdcore.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "gdcore.bench.memory", *map(str, shape), peer]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"no answer within {TIMEOUT} s"}
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return json.loads(done.stdout)


def measure(device: torch.device, *, small: bool = False) -> list[dict]:
    """One row a shape: the peak of stock and of gdcore, with a failure in words where there is no figure."""
    shapes = SMOKE_SHAPES if small else SHAPES
    jobs = [(shape, peer) for shape in shapes for peer in MEASURED]
    if device.type == "cuda":
        peaks = [_measure_or_say(shape, peer, device) for shape, peer in jobs]
    else:
        with ThreadPoolExecutor(max_workers=2) as pool:
            peaks = list(pool.map(lambda job: _measure_in_fresh_process(*job), jobs))
    found = dict(zip(jobs, peaks, strict=True))
    return [
        {"n": n, "k": k, "m": m, "output_bytes": 4 * n * m, **{peer: found[(n, k, m), peer] for peer in MEASURED}}
        for n, k, m in shapes
    ]


def _measure_or_say(shape: tuple[int, int, int], peer: str, device: torch.device) -> dict:
    try:
        return {"peak_bytes": measure_here(Case("B", *shape), peer, device)}
    except Exception as error:  # whatever a peer raises is its result
        return {"failure": in_one_line(error)}


if __name__ == "__main__":
    *sizes, name = sys.argv[1:]
    print(json.dumps(_measure_or_say(tuple(map(int, sizes)), name, torch.device("cpu"))))
