"""Bytes that a path takes beside arguments and gradients."""

from typing import TYPE_CHECKING

import torch

from .backends import Wanted
from .cost import Asked, Sizes, scales_residual, sizes_of, sums_by_kernel

if TYPE_CHECKING:  # plan imports this module
    from .plan import Plan

# Of a prediction in the accumulator's dtype beside half-precision operands: more is made in parts.
WIDE_BYTES = 256 << 20


def workspace_of(plan: "Plan", asked: Asked) -> int:
    """Bytes beside arguments and gradients on CUDA at the worst moment, the chunked path's apart."""
    n, k, m, wanted = plan.n, plan.k, plan.m, asked.wanted
    s = sizes_of(plan, asked)
    stored = s.e if plan.store_residual else 0
    if plan.path == "stock":
        return 2 * s.e
    if plan.path == "library":
        half = plan.dtype.itemsize == 2
        forward = min(n * m * s.wide, WIDE_BYTES) + stored if half else s.e
        return max(forward, stored + _beside_gradients(plan, asked, s))
    if plan.path == "epilogue":
        return stored + _beside_gradients(plan, asked, s)
    if plan.path.startswith("one_pass"):
        blocks = -(-m // plan.config.block_m) if plan.path == "one_pass_tall" else 1
        parts = plan.programs // blocks
        sums = 1 + (m + m * k if wanted.weight or wanted.bias else 0)
        partial = parts * sums * s.wide if parts > 1 or blocks > 1 else 0
        late = asked._replace(wanted=Wanted(wanted.input and plan.input_config is None, False, False, False))
        return stored + max(partial, _beside_gradients(plan, late, s))
    split = plan.split if plan.products_config is None else plan.products_split
    return stored + (split * (m * k + m) * s.wide if split > 1 and (wanted.weight or wanted.bias) else 0)


def _beside_gradients(plan: "Plan", asked: Asked, s: Sizes) -> int:
    """Of the library's products of E: c E, or one after the other c W or float16's wide dX, and what dW is before its c."""
    wanted = asked.wanted
    if not (wanted.input or wanted.weight or wanted.bias):
        return 0
    # What PyTorch's sum takes depends on M: for half as many numbers as E has to twice as many.
    by_torch = wanted.bias and not sums_by_kernel(plan, asked, s)
    sums = 2 * plan.n * plan.m * s.wide * by_torch
    if scales_residual(plan, asked):
        return s.e + sums
    late = plan.m * plan.k * s.wide * wanted.weight
    if wanted.input and plan.dtype is not torch.float16:
        late = max(late, s.dw)
    elif wanted.input and plan.input_config is None:
        late = max(late, plan.n * plan.k * s.wide)
    return max(late, sums)
