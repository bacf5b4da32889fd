"""Is it right? Each peer's loss and gradients against float64, next to stock's own error.

The test: our error <= 2 x stock's error + a floor for the dtype. Speed is not measured where it fails.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gdcore.backends import reference

from .cases import Case, Tensors
from .peers import Call, bind

Named = dict[str, Tensor]  # a call's outputs by name: loss, then the wanted gradients
FACTOR = 2.0
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True, slots=True)
class Parity:
    """Relative errors against float64 of the loss and each gradient: one peer's, and stock's."""

    errors: dict[str, float]
    stock_errors: dict[str, float]
    failures: list[str]  # in words, one for each result that is not good enough

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def worst_ratio(self) -> float | None:
        """The largest error in units of stock's, over results in which stock errs at all."""
        ratios = [
            self.errors[name] / stock for name, stock in self.stock_errors.items() if stock and name in self.errors
        ]
        return max(ratios, default=None)

    def to_json(self) -> dict:
        return {**asdict(self), "passed": self.passed, "worst_ratio": self.worst_ratio}


def exact(case: Case, tensors: Tensors) -> Named:
    """Loss and wanted gradients in float64, by name, from the stock composition."""
    operands = [tensors.input, tensors.weight, tensors.target, tensors.bias]
    widened = Tensors(*(None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in operands))
    return named(case, bind(reference.linear_mse, case, widened)())


def stock(case: Case, tensors: Tensors) -> Named:
    """Loss and wanted gradients in the case's own dtype, from the stock composition."""
    return named(case, bind(reference.linear_mse, case, tensors)())


def named(case: Case, outputs: tuple[Tensor, ...]) -> Named:
    """A call's outputs by name: loss, then the wanted gradients."""
    return dict(zip(("loss", *case.wanted), (t.detach() for t in outputs), strict=True))


def errors_of(outputs: Named, truth: Named) -> dict[str, float]:
    """Relative error of each output; a wrong shape counts as an infinite one."""
    return {
        name: reference.relative_error(outputs[name], value) if outputs[name].shape == value.shape else float("inf")
        for name, value in truth.items()
    }


def check(case: Case, call: Call, truth: Named, stock_outputs: Named) -> Parity:
    """Runs the call twice: the second result is judged, so that state left by the first would show."""
    call()
    outputs = named(case, call())
    errors, stock_errors = errors_of(outputs, truth), errors_of(stock_outputs, truth)
    failures = []
    for name, error in errors.items():
        limit = FACTOR * stock_errors[name] + FLOOR[case.dtype]
        if outputs[name].dtype != stock_outputs[name].dtype:
            failures.append(f"{name} has dtype {outputs[name].dtype}, stock's has {stock_outputs[name].dtype}")
        if not error <= limit:  # a NaN fails too
            failures.append(f"{name} is off by {error:.1e} (stock {stock_errors[name]:.1e}, allowed {limit:.1e})")
    return Parity(errors, stock_errors, failures)
