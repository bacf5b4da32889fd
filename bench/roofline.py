"""What bounds a case, and whether the plan's prediction holds: bytes and FLOPs against this run's measured ceilings."""

from collections.abc import Mapping

import torch

from gdcore.plan import Plan
from gdcore.training import RunPlan

from . import words
from .ceilings import Ceilings
from .peers import OURS

SURPRISE = 1.5  # a prediction that is off by more gets a sentence
CALL_SECONDS = {"cpu": 100e-6, "cuda": 50e-6}  # a call with autograd takes about as long with nothing to compute
CACHE_BYTES = 64 << 20  # of the last level: operands that fit need not come from memory


def predicted_seconds(plan: Plan | RunPlan, dtype: torch.dtype, ceilings: Ceilings) -> float:
    """On a GPU the plan's own model, path by path, or step by step. Else its bytes and FLOPs at the measured rates, whichever
    takes longer; of a run all of them; calls and launches are not in it.
    """
    if isinstance(plan, Plan) and plan.predicted_seconds is not None:
        return plan.predicted_seconds
    if isinstance(plan, RunPlan) and plan.predicted_step_seconds is not None:
        return plan.spec.steps * plan.predicted_step_seconds
    by_bytes = plan.bytes_read / ceilings.read + plan.bytes_written / ceilings.copy
    return max(by_bytes, plan.flops / ceilings.rate(dtype))


def explained(row: Mapping, device_type: str) -> str | None:
    """A sentence where gdcore's time and the plan's prediction differ by more than SURPRISE; None where they agree."""
    predicted = row["plan"]["predicted_seconds"]
    measured = row["peers"][OURS]["times"][row["column"]]["p50"]
    ratio = measured / predicted
    if 1 / SURPRISE <= ratio <= SURPRISE:
        return None
    return (
        f"Measured {words.duration(measured)}, predicted {words.duration(predicted)}: {words.times(ratio)}; "
        f"{_why(row, ratio, predicted / row.get('updates', 1), device_type)}."
    )


def _why(row: Mapping, ratio: float, predicted: float, device_type: str) -> str:
    """The likeliest reason. It is a guess from the numbers, and says so where it cannot be more."""
    if ratio < 1:
        if row["column"] == "device":
            return "the plan counts more than was moved, or the ceilings were measured in a slower moment"
        if row["plan"]["bytes"] <= CACHE_BYTES:
            return "the operands fit in the cache, the ceiling is main memory's"
        return "parts of the data are still in the cache when they are read again, the plan counts them twice"
    if predicted < CALL_SECONDS[device_type] and row["column"] == "wall":
        return "calls cost more than the work itself: autograd, dispatch and launches"
    if row["bound_by"] == "memory":
        return (
            "probably arithmetic of the narrow product: with so few columns it runs far below the square product's rate, "
            "and bytes alone do not bound it"
        )
    return "probably the shape of the products: they run below the square product's rate"
