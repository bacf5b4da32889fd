"""What every kernel shares: the interpreter's exceptions, and Triton's names of the types."""

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


@triton.jit
def dot(a, b, acc, INPUT_PRECISION: tl.constexpr):
    """acc + a @ b. Interpreted, operands are widened first: NumPy has no bfloat16 and would multiply raw bits."""
    if INTERPRET:
        return acc + tl.dot(a.to(acc.dtype), b.to(acc.dtype), out_dtype=acc.dtype)
    return tl.dot(a, b, acc, input_precision=INPUT_PRECISION, out_dtype=acc.dtype)


@triton.jit
def narrow(values, DTYPE: tl.constexpr):
    """Rounded to the nearest number of DTYPE, which the interpreter does not do for bfloat16: it cuts."""
    if INTERPRET and DTYPE.is_bf16():
        bits = values.to(tl.float32).to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).to(tl.float32, bitcast=True)
        values = tl.where(tl.abs(values) < float("inf"), nearest, values.to(tl.float32))
    return values.to(DTYPE)
