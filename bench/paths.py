"""`paths`: time every path of a shape beside stock, on this machine's GPU, and keep the medians where plans look for them.

For each shape: parity of every path with float64 on a few rows, then samples of all paths and of stock, interleaved, on the
device clock. A row of the table is written as soon as it is known, so Ctrl-C loses one shape at most, and the same command
goes on. Samples go to a file of their own, which the rows name as their source. Nothing is launched by --list.
"""

import argparse
import datetime
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gdcore import measured
from gdcore.autograd import LinearMSE
from gdcore.backends import Wanted, load, reference
from gdcore.devices import Device
from gdcore.measured import STOCK, Row
from gdcore.plan import Plan, every_path, plan_for

from . import parity
from .cases import Case, dtype_name, regime_of
from .linear_peers import bound
from .peers import Call
from .results import BadInput, write
from .words import duration, listed, times

MINUTES = 10.0
SECONDS = 1.5  # of samples for each shape
FEW_ROWS = 1027  # odd, and few enough that one row too few or twice shows in the loss
INTERRUPTED = 130
SAMPLES = "gdcore-paths/1"
DTYPES = ("bfloat16", "float16", "float32", "float64")
# Shapes at which the prediction is close, or wrong by more than any other would cost: tall ones, then the large products.
SIZES = (
    *((n, k, k) for k in (64, 128, 256, 512) for n in (10_000, 100_000, 1_000_000)),
    (1_000_000, 256, 32),
    (1_000_000, 512, 64),
    (1_000_000, 64, 512),
    (1_000_000, 256, 16),
    *((8_192, k, k) for k in (1_024, 2_048, 4_096, 8_192)),
    (1_024, 4_096, 4_096),
    (128, 4_096, 4_096),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One shape, and what is asked of it."""

    case: Case
    input_precision: str

    def plans(self, device: Device) -> tuple[Plan, ...]:
        case = self.case
        wanted = Wanted(*(name in case.wanted for name in Wanted._fields))
        return every_path(
            case.n,
            case.k,
            case.m,
            dtype=case.dtype,
            wanted=wanted,
            device=device,
            has_bias="bias" in case.wanted,
            input_precision=self.input_precision,
        )

    def predicted(self, device: Device) -> dict[str, float]:
        """Seconds by path, stock's too."""
        case, plan = self.case, self.plans(device)[0]
        wanted = Wanted(*(name in case.wanted for name in Wanted._fields))
        chosen = plan_for(
            case.n,
            case.k,
            case.m,
            dtype=case.dtype,
            wanted=wanted,
            device=plan.device,
            has_bias="bias" in case.wanted,
            input_precision=self.input_precision,
        )
        return {other.path: other.seconds for other in chosen.alternatives}

    def __str__(self) -> str:
        case = self.case
        precision = "" if self.input_precision == "ieee" else f" {self.input_precision}"
        return f"{case.n:,} × {case.k:,} × {case.m:,} {dtype_name(case.dtype)}{precision}, {listed(case.wanted)}"


@dataclass(frozen=True)
class Tools:
    """What measuring does to the world; tests put others in place."""

    bind: Callable[[Job, Sequence[Plan]], Mapping[str, Call]]  # draws tensors; a call for stock and for every path
    check: Callable[[Job, Plan], str | None]  # why a path is wrong, on a few rows
    measure: Callable[[Mapping[str, Call], float], Mapping[str, Sequence[float]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `paths`."""
    parser.add_argument(
        "--list", action="store_true", help="what would be measured, with predicted times; needs no GPU"
    )
    parser.add_argument("--device", help="with --list: for A100, H200 (the default) or B200")
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help="default: bfloat16 and float32; may be repeated"
    )
    parser.add_argument(
        "--size",
        action="append",
        metavar="NxKxM",
        help="rows x features x outputs; may be repeated (default: a selection)",
    )
    parser.add_argument(
        "--precision", choices=("ieee", "tf32"), default="ieee", help="of float32 products (default: ieee)"
    )
    parser.add_argument("--input-gradient", action="store_true", help="for a loss whose input wants a gradient too")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="begin nothing after so long (default: %(default)g)"
    )
    parser.add_argument("--again", action="store_true", help="measure what is in the table already once more")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the table (default: gdcore's own, of a checkout)")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="default: bench/results/paths-<gpu>-<date>.json")


def command(options: argparse.Namespace) -> int:
    """Runs `paths`, or `paths --list`.

    Returns
    -------
    int
        0; 1 where a path gave wrong results; 130 where it was interrupted: what had been measured by then is kept.

    Raises
    ------
    BadInput
        No CUDA device that the kernels run on, no place for the table, or options that cannot be.
    """
    if not (math.isfinite(options.minutes) and options.minutes > 0):
        raise BadInput(f"--minutes is {options.minutes}: it must be more than 0")
    if options.device and not options.list:
        raise BadInput("--device goes with --list: what is measured is the GPU that is here")
    todo = jobs(options)
    return _list(options, todo) if options.list else _measure(options, todo)


def jobs(options: argparse.Namespace) -> list[Job]:
    """What is asked for, each once."""
    wanted = ("input", "weight") if options.input_gradient else ("weight",)
    found: dict[Job, None] = {}
    for name in options.dtype or DTYPES[:1] + DTYPES[2:3]:
        dtype = getattr(torch, name)
        precision = options.precision if dtype is torch.float32 else "ieee"
        for n, k, m in [_size(text) for text in options.size] if options.size else SIZES:
            found[Job(Case(regime_of(n, k, m), n, k, m, dtype=dtype, wanted=wanted), precision)] = None
    return list(found)


def _size(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d{0,11}(x[1-9]\d{0,11}){2}", text):
        raise BadInput(f"--size is {text!r}: it must be rows x features x outputs, such as 1000000x256x256")
    n, k, m = map(int, text.split("x"))
    return n, k, m


def _list(options: argparse.Namespace, todo: Sequence[Job]) -> int:
    from gdcore import devices

    known = {device.name: device for device in devices.KNOWN.values()}
    name = options.device or "H200"
    if name not in known:
        raise BadInput(f"--device {name!r} is unknown: it must be one of {', '.join(known)}")
    print(f"{len(todo)} shapes, predicted for one {name}; nothing is run.")
    for job in todo:
        told = sorted(job.predicted(known[name]).items(), key=lambda pair: pair[1])
        print(f"  {job}: {', '.join(f'{path} {duration(seconds)}' for path, seconds in told)}")
    return 0


def _measure(options: argparse.Namespace, todo: Sequence[Job]) -> int:
    from gdcore import devices
    from gdcore.backends import backend_for

    from . import machine
    from .timing import DeviceClock, interleave

    if not torch.cuda.is_available():
        raise BadInput("paths needs a CUDA device, and there is none here; paths --list shows what would be measured")
    here = torch.device("cuda", torch.cuda.current_device())
    if backend_for(here) != "triton":
        raise BadInput("gdcore's kernels do not run on this GPU or were switched off, so there is nothing to measure")
    device = devices.describe(here)._replace(tuned=None)  # the shipped configurations: the table is for everybody
    slug = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    table = Table(
        options.out or default_table(slug),
        options.samples or Path("bench") / "results" / f"paths-{slug}-{today}.json",
        {"machine": machine.describe_machine(here), "versions": machine.versions(), "commit": machine.commit()},
    )
    clock = DeviceClock(here)
    tools = Tools(
        lambda job, plans: calls_of(job, plans, here),
        lambda job, plan: why_wrong(job, plan, here),
        lambda calls, seconds: interleave(calls, clock, seconds=seconds),
    )
    print(f"{device.name}: {len(todo)} shapes, about {options.minutes:g} min at most; the table is {table.path}")
    try:
        wrong, left = run(todo, device, table, tools, print, minutes=options.minutes, again=options.again)
    except KeyboardInterrupt:
        print(f"Interrupted. {len(table.rows)} rows are in {table.path}. The same command goes on.")
        return INTERRUPTED
    if left:
        print(f"The time is spent. {left} shapes are left: the same command goes on with them.")
    print(
        f"{len(table.rows)} rows in {table.path}, samples in {table.samples}. Programs that start from now on use them."
    )
    return 1 if wrong else 0


def default_table(slug: str) -> Path:
    """gdcore's own folder, where this is a checkout; an installed package is left alone."""
    if not (measured.FOLDER.parents[1] / "setup.py").is_file():
        raise BadInput(
            f"gdcore is installed: name a file by --out, and let {measured.VARIABLE} name it for your programs"
        )
    return measured.FOLDER / f"{slug}.json"


class Table:
    """The table and the samples it rests on, both replaced in one step after every shape."""

    def __init__(self, path: Path, samples: Path, about: Mapping[str, Any]) -> None:
        """
        Raises
        ------
        BadInput
            A file that is there is no such table, or no such samples, or cannot be read.
        """
        self.path, self.samples = path, samples
        self.rows: dict[tuple, Row] = {}
        self.document: dict[str, Any] = {"schema": SAMPLES, **about, "shapes": {}}
        try:
            if path.exists():
                self.rows = {measured.key_of(row): row for row in measured.read(path)}
            if samples.exists():
                found = json.loads(samples.read_text(encoding="utf-8"))
                if (
                    not isinstance(found, dict)
                    or found.get("schema") != SAMPLES
                    or not isinstance(found.get("shapes"), dict)
                ):
                    raise ValueError("it holds no samples of paths")
                different = [name for name in about if found.get(name) != about[name]]
                if different:
                    raise ValueError(f"its {different[0]} is another one: name another file by --samples")
                self.document = found
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise BadInput(f"cannot go on with {path} and {samples}: {what}") from error

    def has(self, row: Row) -> bool:
        return measured.key_of(row) in self.rows

    def put(self, job: Job, row: Row, samples: Mapping[str, Sequence[float]], left_out: Mapping[str, str]) -> None:
        """Samples first: a row always has what it rests on."""
        self.document["shapes"][str(job)] = {"samples": {name: list(taken) for name, taken in samples.items()}}
        if left_out:
            self.document["shapes"][str(job)]["left_out"] = dict(left_out)
        write(self.samples, self.document)
        self.rows[measured.key_of(row)] = row
        write(self.path, measured.document(self.rows.values()))


def run(
    todo: Sequence[Job],
    device: Device,
    table: Table,
    tools: Tools,
    say: Callable[[str], object],
    *,
    minutes: float,
    again: bool = False,
) -> tuple[int, int]:
    """Measures shape after shape until the time is spent; returns how many paths were wrong and how many shapes are left.

    Raises
    ------
    KeyboardInterrupt
        As it comes; every row until then is in the files.
    """
    until, wrong, left = time.monotonic() + 60 * minutes, 0, 0
    for number, job in enumerate(todo, 1):
        place = f"[{number}/{len(todo)}] {job}: "
        if table.has(_row(job, device, {}, table.samples)) and not again:
            say(f"{place}is in the table")
            continue
        if time.monotonic() >= until:
            left += 1
            continue
        try:
            plans = {plan.path: plan for plan in job.plans(device)}
            reasons = {path: tools.check(job, plan) for path, plan in plans.items()}
            left_out = {path: reason for path, reason in reasons.items() if reason}
            wrong += len(left_out)
            right = [plan for path, plan in plans.items() if path not in left_out]
            samples = tools.measure(tools.bind(job, right), SECONDS) if right else {}
        except Exception as error:  # no memory for this shape, say: go on with the next
            say(f"{place}not measured: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        if right:
            medians = {path: _median(taken) for path, taken in samples.items()}
            table.put(job, _row(job, device, medians, table.samples), samples, left_out)
            say(place + _told(medians, job.predicted(device)))
        for path, reason in left_out.items():
            say(f"    {path} is left out: {reason}")
    return wrong, left


def _told(medians: Mapping[str, float], predicted: Mapping[str, float]) -> str:
    fastest = sorted(medians, key=medians.__getitem__)
    told = [f"{path} {duration(medians[path])} (predicted {duration(predicted[path])})" for path in fastest]
    return f"{', '.join(told)}; {times(medians[STOCK] / medians[fastest[0]])} as fast as stock"


def _median(samples: Sequence[float]) -> float:
    return float(sorted(samples)[len(samples) // 2])


def _row(job: Job, device: Device, medians: Mapping[str, float], samples: Path) -> Row:
    import triton

    case = job.case
    return Row(
        device.name,
        device.architecture,
        torch.__version__,
        triton.__version__,
        case.dtype,
        job.input_precision,
        case.n,
        case.k,
        case.m,
        Wanted(*(name in case.wanted for name in Wanted._fields)),
        tuple(medians.items()),
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        samples.as_posix(),
    )


def _function(plan: Plan) -> Callable[..., torch.Tensor]:
    """linear_mse by one plan."""

    def by_plan(input, weight, target, bias):
        wanted = Wanted(*(t is not None and t.requires_grad for t in (input, weight, target, bias)))
        return LinearMSE.apply(input, weight, target, bias, "mean", wanted, plan, load("triton"))

    return by_plan


def calls_of(job: Job, plans: Sequence[Plan], device: torch.device) -> dict[str, Call]:
    """Loss and gradients of the same tensors, by stock and by every path; each has been called once."""
    tensors = job.case.draw(device, 0)
    calls = {STOCK: bound(job.case, tensors, reference.linear_mse)}
    calls |= {plan.path: bound(job.case, tensors, _function(plan)) for plan in plans}
    for call in calls.values():
        call()
    return calls


def why_wrong(job: Job, plan: Plan, device: torch.device) -> str | None:
    """Why a path's results are not as near to float64 as stock's, on a few rows; None where they are."""
    case = job.case
    few = Case(case.regime, min(case.n, FEW_ROWS), case.k, case.m, dtype=case.dtype, wanted=case.wanted)
    tensors = few.draw(device, 0)

    def results(function: Callable[..., torch.Tensor], operands: Any) -> dict:
        return few.results(lambda given: bound(few, given, function), operands)

    truth = results(reference.linear_mse, few.widened(tensors))
    stock = results(reference.linear_mse, tensors)
    of_few = next((p for p in Job(few, job.input_precision).plans(plan.device) if p.path == plan.path), plan)
    try:
        found = results(_function(of_few), tensors)
    except Exception as error:  # a launch may fail in any way, and then it is no path
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    judged = parity.judge("linear_mse", found, truth, stock)
    return None if judged["passed"] else "; ".join(judged["failures"])
