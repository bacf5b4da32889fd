"""What the tests of the tiled products share: layouts, poisoned memory, and error relative to stock's."""

import functools

import torch

from gdcore.kernels.configs import Config
from support import DEVICE, EPSILON

# Small tiles, so that small shapes have several in every direction.
SMALL = Config(block_n=16, block_k=16, block_m=16, num_warps=4, num_stages=2)
SHAPES = [(1, 1, 1), (7, 1, 3), (5, 3, 1), (33, 20, 18), (130, 2, 1), (48, 32, 64)]
LAYOUTS = ["dense", "transposed", "sliced", "expanded"]


def shape_id(shape):
    return "N={} K={} M={}".format(*shape)


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def laid_out(tensor, layout):
    """The same values in another layout, among memory that is NaN; expanded: the first row's values in every row."""
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "sliced":
        wide = torch.full(
            (2 * tensor.shape[0] + 1, 3 * tensor.shape[1] + 1), torch.nan, dtype=tensor.dtype, device=tensor.device
        )
        view = wide[1::2, 1::3]
        view.copy_(tensor)
        return view
    return tensor[:1].expand_as(tensor) if layout == "expanded" else tensor


def poison(monkeypatch):
    """Fresh memory holds NaN: what a kernel fails to write, or reads before it writes, shows."""
    empty = torch.empty

    @functools.wraps(empty)
    def poisoned(*size, **options):
        return empty(*size, **options).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", poisoned)


def assert_near(ours, stock, exact, magnitude, what=""):
    """Our error against float64 is at most twice stock's, plus the dtype's epsilon of the terms' magnitude.

    The magnitude is the result with every operand replaced by its absolute value: where terms cancel, an error that is
    small beside them may be large beside their sum, for stock as for us, and by chance for one and not for the other.
    """
    error, theirs = (torch.linalg.vector_norm(value.double() - exact).item() for value in (ours, stock))
    limit = 2 * theirs + EPSILON[stock.dtype] * torch.linalg.vector_norm(magnitude).item()
    assert ours.shape == exact.shape, what
    assert error <= limit, f"{what}: {error:.2e} > {limit:.2e}"
