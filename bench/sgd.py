"""The optimizer against torch.optim.SGD's three implementations and a compiled step: parity first, then speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import gdcore

from . import timing
from .machine import free_bytes
from .measure import Setting
from .parity import FACTOR, FLOOR
from .peers import COMPILED, OURS, in_one_line
from .sgd_cases import OPTIONS, SgdCase, describe, draw

LOOP, FOREACH, STOCK_FUSED = "for-loop", "foreach", "fused"
LR = 0.05  # large enough that an element that was left out shows in half precision
STEPS = 3  # that parity is judged after: the first, and two with momentum

Maker = Callable[[list[Tensor], dict], Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Stepper:
    """An implementation: from parameters and options to a call that takes one step."""

    name: str
    make: Maker


def _stock(**which: bool) -> Maker:
    return lambda params, options: torch.optim.SGD(params, lr=LR, **options, **which).step


def _compiled(params: list[Tensor], options: dict) -> Callable[[], object]:
    torch.compiler.reset()  # what was compiled for another case counts towards its limit
    optimizer = torch.optim.SGD(params, lr=LR, **options)
    return torch.compile(optimizer.step)


STEPPERS = (
    Stepper(LOOP, _stock(foreach=False)),
    Stepper(FOREACH, _stock(foreach=True)),
    Stepper(STOCK_FUSED, _stock(fused=True)),
    Stepper(COMPILED, _compiled),
    Stepper(OURS, lambda params, options: gdcore.SGD(params, lr=LR, **options).step),
)


def measure_case(case: SgdCase, setting: Setting, steppers: Sequence[Stepper] = STEPPERS) -> dict:
    """The case's row for the result file. `failed` says in words why gdcore got no speed figure, or is None."""
    row = describe(case)
    steppers = [stepper for stepper in steppers if case.compiled or stepper.name != COMPILED]
    needed, free = case.bytes_needed(len(steppers)), free_bytes(setting.device)
    if free is not None and needed > free:
        return row | {"skipped": f"it takes about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"}
    try:
        params, grads = draw(case, setting.device, setting.seed)
        calls, entries = check_all(case, steppers, params, grads)
    except torch.OutOfMemoryError as error:
        return row | {"skipped": in_one_line(error)}
    row |= {"peers": entries, "floor_seconds": case.minimal_bytes / setting.ceilings.copy}
    row["failed"] = entries[OURS].get("failure")
    if row["failed"]:
        return row
    clock = timing.clock_for("A", setting.device)
    samples = timing.interleave(calls, clock, seconds=case.seconds)
    for name, values in samples.items():
        entries[name] |= {"samples": values, **timing.quantiles(values)}
    found = {name: timing.compare(samples[OURS], samples[name], name).to_json() for name in samples if name != OURS}
    best = min(found.values(), key=lambda comparison: comparison["speedup"])
    return row | {"clock": clock.name, "comparisons": found, "best": best}


def check_all(
    case: SgdCase, steppers: Sequence[Stepper], params: list[Tensor], grads: list[Tensor]
) -> tuple[dict[str, Callable[[], object]], dict[str, dict]]:
    """The calls of those that are right, and every one's parity or why it has none.

    All step the same tensors, one after the other: where in memory a copy happens to lie makes several per cent.
    """
    options = OPTIONS[case.options]
    exact = _after_steps(_stock(foreach=False), [p.double() for p in params], [g.double() for g in grads], options)[1]
    shared = [p.clone() for p in params]

    def run(make: Maker) -> tuple[Callable[[], object], list[Tensor]]:
        with torch.no_grad():
            torch._foreach_copy_(shared, params)
        return _after_steps(make, shared, grads, options)

    stock = _errors(run(_stock(foreach=False))[1], exact)
    calls, entries = {}, {}
    for stepper in steppers:
        try:
            call, after = run(stepper.make)
        except Exception as error:  # whatever a peer raises is its result
            entries[stepper.name] = {"failure": in_one_line(error)}
            continue
        errors = _errors(after, exact)
        limits = [FACTOR * theirs + FLOOR[dtype] for theirs, dtype in zip(stock, case.dtypes, strict=True)]
        ratio = max((ours / theirs for ours, theirs in zip(errors, stock, strict=True) if theirs), default=None)
        entries[stepper.name] = {"parity": {"error": max(errors), "stock_error": max(stock), "worst_ratio": ratio}}
        bad = [i for i, (error, limit) in enumerate(zip(errors, limits, strict=True)) if not error <= limit]
        if bad:
            i = max(bad, key=lambda i: errors[i])
            entries[stepper.name]["failure"] = (
                f"wrong for {len(bad)} of {len(errors)} tensors: number {i} {case.shapes[i]} is off by {errors[i]:.1e} "
                f"(for-loop {stock[i]:.1e}, allowed {limits[i]:.1e})"
            )
        else:
            calls[stepper.name] = call
    return calls, entries


def _after_steps(
    make: Maker, params: list[Tensor], grads: list[Tensor], options: dict
) -> tuple[Callable[[], object], list[Tensor]]:
    """A step's call, and what it makes of the parameters in STEPS steps, in place."""
    for p, g in zip(params, grads, strict=True):
        p.requires_grad_().grad = g
    call = make(params, options)
    for _ in range(STEPS):
        call()
    return call, [p.detach().clone() for p in params]


def _errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Relative error of each tensor: largest difference over largest value."""
    pairs = zip(found, exact, strict=True)
    return [((ours.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300)).item() for ours, truth in pairs]
