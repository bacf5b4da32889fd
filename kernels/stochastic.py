"""Stochastic rounding of float32 to a half-precision type, with random bits from a counter.

A value between two neighbours of the narrow type becomes the upper one with a probability that equals its distance from
the lower one, so that the mean of many roundings is the value itself: updates too small for the narrow type are kept on
average, where rounding to nearest loses every one of them. Values that the narrow type holds stay what they are.

The bits come from Philox (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011): a pure function of (seed,
chunk, place, step), so a run repeats bit for bit and nothing but the step has to be stored. 16 bits a value: a call gives
four words, which serve eight values.
"""

import triton
import triton.language as tl

WORDS = tl.constexpr(8)  # values that one call of Philox serves


@triton.jit
def random_16_bits(seed, chunk, step, start, BLOCK: tl.constexpr):
    """BLOCK integers from 0 to 65535, for the numbers from `start` on of a tensor."""
    lanes = (tl.cast(start // WORDS, tl.int32) + tl.arange(0, BLOCK // WORDS)).to(tl.uint32)
    zeros = lanes * 0
    chunks = zeros + chunk.to(tl.uint32)
    steps = zeros + step.to(tl.uint32)
    a, b, c, d = tl.philox(seed, lanes, chunks, steps, zeros)
    low = tl.join(tl.join(a & 0xFFFF, b & 0xFFFF), tl.join(c & 0xFFFF, d & 0xFFFF))
    high = tl.join(tl.join(a >> 16, b >> 16), tl.join(c >> 16, d >> 16))
    return tl.reshape(tl.join(low, high), (BLOCK,)).to(tl.int32)


@triton.jit
def round_stochastically(x, random, DTYPE: tl.constexpr):
    """x, float32, as float32 numbers that DTYPE holds exactly.

    Random bits are added below the last bit that DTYPE keeps, and everything below it is cut off. float16 is finer than
    that near zero, where its numbers are the multiples of 2⁻²⁴.
    """
    bits = x.to(tl.int32, bitcast=True)
    if DTYPE.is_bf16():
        cut = ((bits + random) & ~0xFFFF).to(tl.float32, bitcast=True)
        largest = 3.3895313892515355e38
    else:
        cut = ((bits + (random >> 3)) & ~0x1FFF).to(tl.float32, bitcast=True)
        y = x * 16777216.0
        steps = tl.floor(y)
        steps += tl.where((y - steps) + random.to(tl.float32) * (1.0 / 65536.0) >= 1.0, 1.0, 0.0)
        cut = tl.where(tl.abs(x) < 6.103515625e-05, steps * (1.0 / 16777216.0), cut)
        largest = 65504.0
    # What rounds to a finite number must not leave the range by chance, and NaN and Inf are no numbers to add bits to.
    cut = tl.where(tl.abs(cut) > largest, tl.where(x > 0, largest, -largest), cut)
    return tl.where(tl.abs(x) <= largest, cut, x)
