"""Stochastic rounding on the CPU: the formulas of kernels/stochastic.py with PyTorch's random numbers."""

import torch
from torch import Tensor


def round_stochastically(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """float32 to float16 or bfloat16, up or down with probabilities that keep the mean.

    Parameters
    ----------
    x : Tensor
        float32, any shape. Not modified.
    dtype : torch.dtype
        torch.float16 or torch.bfloat16.
    generator : torch.Generator
        On the CPU: the bits are drawn there, whatever the device of `x`.

    Returns
    -------
    Tensor
        In `dtype`. Numbers that `dtype` holds, NaN and Inf stay what they are; nothing finite becomes infinite that
        rounding to nearest would not make so.
    """
    random = torch.randint(1 << 16, x.shape, generator=generator, dtype=torch.int32, device="cpu").to(x.device)
    bits = x.contiguous().view(torch.int32)
    largest = torch.finfo(dtype).max
    if dtype is torch.bfloat16:
        cut = ((bits + random) & ~0xFFFF).view(torch.float32)
    else:
        cut = ((bits + (random >> 3)) & ~0x1FFF).view(torch.float32)
        below = torch.floor(x * 2.0**24)
        near_zero = (below + ((x * 2.0**24 - below) + random * 2.0**-16 >= 1)) * 2.0**-24
        cut = torch.where(x.abs() < 2.0**-14, near_zero, cut)
    return torch.where(x.abs() <= largest, cut.clamp(-largest, largest), x).to(dtype)
