"""What every kernel shares: the interpreter's two exceptions, and the accumulator's type."""

import torch
import triton
import triton.language as tl

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)

TRITON_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype is torch.float64 else torch.float32


@triton.jit
def dot(a, b, acc, INPUT_PRECISION: tl.constexpr):
    """acc + a @ b. Interpreted, operands are widened first: NumPy has no bfloat16 and would multiply raw bits."""
    if INTERPRET:
        return acc + tl.dot(a.to(acc.dtype), b.to(acc.dtype), out_dtype=acc.dtype)
    return tl.dot(a, b, acc, input_precision=INPUT_PRECISION, out_dtype=acc.dtype)
