"""The search for one kernel at one size: compile, drop, check, time beside what ships, keep what is faster."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gdcore.backends import Forward, Wanted
from gdcore.devices import Device
from gdcore.kernels.compiled import Chip
from gdcore.kernels.configs import Config
from gdcore.plan import Plan
from gdcore.tuned_format import RESOURCES

from ..timing import Comparison, compare
from ..words import duration, times
from .candidates import Job, candidates, words
from .compile import Figures, entry_of, why_dropped
from .table import TableFile

DEFAULT = "default"
FINALISTS = 3  # that are timed for long
HEAT_SECONDS, FINAL_SECONDS = 0.5, 2.0
FEW_ROWS = 1027  # odd, and few enough that one row too few or twice shows in the loss
LOSS_TOLERANCE = {torch.float64: 1e-10}  # others: float32 sums, in another order
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
TF32_TOLERANCE = 5e-3

Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Tools:
    """What the search does to the world; tests put others in place."""

    compile: Callable[[Job, Sequence[Config]], Iterable[Figures]]
    bind: Callable[
        [Job], Callable[[Job, Plan], Call]
    ]  # draws a job's tensors; then (the job or fewer rows, plan) -> call
    measure: Callable[[Mapping[str, Call], float], Mapping[str, Sequence[float]]]  # (calls, seconds) -> samples
    chip: Chip


@dataclass
class Outcome:
    """What came of a job."""

    job: Job
    default: Config
    winner: Config | None = None  # None: what ships stays
    figures: Figures = field(default_factory=dict)  # of the winner
    comparison: Comparison | None = None  # of the fastest candidate with the default
    seconds: float = 0.0  # of what was chosen
    default_seconds: float = 0.0
    tried: int = 0
    dropped: list[tuple[Config, str]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """What the table keeps of it, beside the key."""
        won, c = self.winner, self.comparison
        return {
            "config": None if won is None else asdict(won),
            "compiled": None if won is None else {name: self.figures[name] for name in RESOURCES},
            "seconds": self.seconds,
            "default_seconds": self.default_seconds,
            "speedup": None if c is None else [c.low, c.speedup, c.high],  # of the fastest candidate, chosen or not
            "tuned_at": [self.job.n, self.job.k, self.job.m],
        }


def search(job: Job, device: Device, tools: Tools, limit: int | None = None) -> Outcome:
    """The fastest configuration that gives the shipped one's results, if it is faster beyond doubt.

    Parameters
    ----------
    device : Device
        Its own table is not looked at.
    limit : int, optional
        Most candidates, what ships included.

    Raises
    ------
    Exception
        Whatever the shipped configuration raises: then there is nothing to compare with.
    """
    configs = candidates(job, device, limit)
    outcome = Outcome(job, configs[0], tried=len(configs))
    made = dict(zip(configs, tools.compile(job, configs), strict=True))
    bound = tools.bind(job)
    few = replace(job, n=min(job.n, FEW_ROWS))
    default = bound(job, job.plan(device))
    expected = [(job, default()), (few, bound(few, few.plan(device))())]
    calls: dict[str, Call] = {DEFAULT: default}
    by_name = {words(config): config for config in configs[1:]}
    for name, config in by_name.items():
        reason = why_dropped(job, config, made[config], configs[0], made[configs[0]], tools.chip)
        if reason is None:
            entry = entry_of(job, config, made[config])
            call = bound(job, job.plan(device, entry))
            reason = _why_wrong(
                [(which, bound(which, which.plan(device, entry)), result) for which, result in expected]
            )
        if reason is None:
            calls[name] = call
        else:
            outcome.dropped.append((config, reason))
    if len(calls) > FINALISTS + 1:
        samples = tools.measure(calls, HEAT_SECONDS)
        best = sorted((name for name in calls if name != DEFAULT), key=lambda name: _median(samples[name]))[:FINALISTS]
        calls = {DEFAULT: default, **{name: calls[name] for name in best}}
    samples = tools.measure(calls, FINAL_SECONDS)  # fresh ones: those of the heat chose the finalists
    outcome.seconds = outcome.default_seconds = _median(samples[DEFAULT])
    if len(calls) > 1:
        name = min((name for name in calls if name != DEFAULT), key=lambda name: _median(samples[name]))
        outcome.comparison = compare(samples[name], samples[DEFAULT], DEFAULT)
        if outcome.comparison.verdict == "FASTER":
            outcome.winner, outcome.figures = by_name[name], made[by_name[name]]
            outcome.seconds = _median(samples[name])
    return outcome


def _median(samples: Sequence[float]) -> float:
    return float(sorted(samples)[len(samples) // 2])


def _why_wrong(checks: Iterable[tuple[Job, Call, tuple[Tensor, ...]]]) -> str | None:
    """Why a candidate's results are not the default's, on all rows and on a few; None where they are."""
    for job, call, expected in checks:
        try:
            found = call()
        except Exception as error:  # a launch may fail in any way, and then it is no candidate
            return f"cannot be launched: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            tolerance = TF32_TOLERANCE if job.input_precision == "tf32" else TOLERANCE[job.dtype]
            if job.family not in ("backward_input", "backward_weight") and number == 0:
                tolerance = LOSS_TOLERANCE.get(job.dtype, 1e-4)
            difference = relative_difference(ours, theirs)
            if not difference <= tolerance:
                return (
                    f"wrong at {job.n:,} rows: result {number} differs by {difference:.1e} of the largest number in it"
                )
    return None


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest number; NaN anywhere is NaN."""
    if ours.dtype is not torch.float64:
        ours, theirs = ours.float(), theirs.float()
    largest = theirs.abs().max().item()
    return (ours - theirs).abs().max().item() / (largest or 1.0)


class Operands:
    """Random tensors of a job on a device, and calls of the library's own launch code on them. All outputs are fresh."""

    def __init__(self, job: Job, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(job.dtype)

        self.input, self.target = normal(job.n, job.k), normal(job.n, job.m)
        self.weight, self.bias = normal(job.m, job.k) / job.k**0.5, normal(job.m)
        self.residual = normal(job.n, job.m) if job.family in ("backward_input", "backward_weight") else None
        self.one = torch.ones((), device=device)

    def __call__(self, job: Job, plan: Plan) -> Call:
        """One launch on the first rows of the tensors, as many as the job has."""
        from gdcore.backends import triton as kernels

        input, target = self.input[: job.n], self.target[: job.n]
        if self.residual is None:

            def forward() -> tuple[Tensor, ...]:
                made = kernels.forward(input, self.weight, target, self.bias, "mean", job.wanted, plan)
                return tuple(output for output in made if output is not None)

            return forward
        saved = Forward(self.one, self.residual[: job.n])
        wanted = (
            Wanted(True, False, False, False) if job.family == "backward_input" else Wanted(False, True, False, True)
        )

        def backward() -> tuple[Tensor, ...]:
            made = kernels.backward(self.one, input, self.weight, target, saved, "mean", wanted, plan)
            return tuple(output for output in made if output is not None)

        return backward


def run(
    jobs: Sequence[Job],
    device: Device,
    table: TableFile,
    tools: Tools,
    say: Callable[[str], None],
    *,
    minutes: float,
    again: bool = False,
    limit: int | None = None,
) -> list[Job]:
    """Tunes job after job until the time is spent; returns those that are left.

    Raises
    ------
    KeyboardInterrupt
        As it comes; every entry found until then is in the file.
    """
    until = time.monotonic() + 60 * minutes
    left: list[Job] = []
    for number, job in enumerate(jobs, 1):
        if job.key(device) in table.rows and not again:
            say(f"[{number}/{len(jobs)}] {job}: is in the table")
            continue
        if time.monotonic() >= until:
            left.append(job)
            continue
        try:
            outcome = search(job, device, tools, limit)
        except (
            Exception
        ) as error:  # the shipped configuration failed at this size (no memory, say): go on with the next
            say(f"[{number}/{len(jobs)}] {job}: not tuned: {type(error).__name__}: {error}")
            continue
        table.put(job, outcome.row())
        for line in told(outcome, f"[{number}/{len(jobs)}] "):
            say(line)
    return left


def told(outcome: Outcome, prefix: str = "") -> list[str]:
    """An outcome in words: what was chosen, how much faster, and results that were wrong."""
    timed = outcome.tried - len(outcome.dropped)
    if outcome.winner is not None and outcome.comparison is not None:
        c = outcome.comparison
        found = (
            f"{words(outcome.winner)}: {duration(outcome.seconds)}, {times(c.speedup)} faster than the shipped "
            f"{words(outcome.default)} ({times(c.low)} to {times(c.high)})"
        )
    else:
        found = f"the shipped {words(outcome.default)} stays ({duration(outcome.default_seconds)})"
    lines = [f"{prefix}{outcome.job}: {outcome.tried} candidates, {timed} timed; {found}"]
    wrong = [(config, reason) for config, reason in outcome.dropped if reason.startswith(("wrong", "cannot"))]
    return lines + [f"    {words(config)}: {reason}" for config, reason in wrong]
