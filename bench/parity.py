"""Is it right? Each peer's results against float64, next to stock's own error.

The test: our error <= 2 x stock's error + a floor for the dtype. Speed is not measured where it fails.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from gdcore.backends import reference

from .peers import Named

FACTOR = 2.0
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def largest_error(value: Tensor, exact: Tensor) -> float:
    """The largest difference over the largest value: in a norm over many numbers, one that was left out would not show."""
    if not exact.numel():
        return 0.0
    difference, size = (value.double() - exact.double()).abs().max().item(), exact.double().abs().max().item()
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def _worst(numbers: Iterable[float]) -> float | None:
    """The largest; a NaN is worse than any."""
    return max(numbers, key=lambda number: (number != number, number), default=None)


def _hidden(name: str, value: Tensor, exact: Tensor, stock: Tensor) -> list[str]:
    """What a norm hides: numbers that are wrong among many that are right, in a sentence."""
    error, theirs = largest_error(value, exact), largest_error(stock, exact)
    limit = FACTOR * theirs + FLOOR[stock.dtype]
    if error <= limit:
        return []
    return [
        f"{name} is off by {error:.1e} of its largest number in one place (stock {theirs:.1e}, allowed {limit:.1e})"
    ]


def judge(kind: str, found: Named, truth: Named, stock: Named) -> dict:
    """A peer's `parity` entry: relative errors against float64 of every result, its own and stock's, and what is wrong in words.

    An optimizer step has as many results as tensors: of those, the entry keeps the worst.
    """
    measure = largest_error if kind == "sgd" else reference.relative_error
    errors, stock_errors, failures = {}, {}, []
    for name, exact in truth.items():
        value = found[name]
        alike = value.shape == exact.shape
        error, theirs = measure(value, exact) if alike else float("inf"), measure(stock[name], exact)
        errors[name], stock_errors[name] = error, theirs
        limit = FACTOR * theirs + FLOOR[stock[name].dtype]
        if value.dtype != stock[name].dtype:
            failures.append(f"{name} has dtype {value.dtype}, stock's has {stock[name].dtype}")
        if not error <= limit:  # a NaN fails too
            failures.append(f"{name} is off by {error:.1e} (stock {theirs:.1e}, allowed {limit:.1e})")
        elif measure is not largest_error:
            failures += _hidden(name, value, exact, stock[name])
    ratios = [errors[name] / theirs for name, theirs in stock_errors.items() if theirs]
    if kind == "sgd":
        if len(failures) > 1:
            failures = [f"wrong for {len(failures)} of {len(errors)} tensors: {failures[0]}"]
        errors, stock_errors = ({"parameters": _worst(part.values())} for part in (errors, stock_errors))
    return {
        "errors": errors,
        "stock_errors": stock_errors,
        "worst_ratio": _worst(ratios),
        "passed": not failures,
        "failures": failures,
    }
