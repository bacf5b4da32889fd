"""What the tests of the kernels of whole runs share: the run as a plain torch loop, and error relative to it in float32."""

import itertools

import torch

from gdcore.kernels.configs import Config, accumulator_dtype
from product_support import normal
from support import DEVICE

EPSILON = {torch.float64: 1e-12, torch.float32: 2e-6}
FULL = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "intercept": True}
OPTIONS = [
    {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay, "intercept": intercept}
    for momentum, weight_decay, intercept in itertools.product((0.0, 0.9), (0.0, 0.05), (False, True))
]


def options_id(options):
    return " ".join(f"{name}={value}" for name, value in options.items())


def shape_id(shape):
    return "N={} K={} M={}".format(*shape)


def power_of_2(number):
    return 1 << (number - 1).bit_length()


def tile(n, k, num_warps=1):
    """The smallest tile that holds so many rows and columns."""
    return Config(block_n=power_of_2(n), block_k=power_of_2(k), num_warps=num_warps)


def problem(n, k, m, dtype=torch.float32):
    """X and Y with an answer, and noise about it."""
    x = normal(n, k, dtype=dtype)
    y = x.double() @ torch.randn(k, m, dtype=torch.float64, device=DEVICE) / k**0.5
    return x, (y + 0.3 + 0.5 * torch.randn_like(y)).to(dtype)


def start(x, y, intercept, zero=True):
    """The state before the first step."""
    shape = (2, x.shape[1] + intercept, y.shape[1])
    state = torch.zeros(shape) if zero else torch.randn(shape)
    return state.to(accumulator_dtype(x.dtype)).to(DEVICE)


def loop(x, y, state, batches, *, lr, momentum, weight_decay, intercept, dtype):
    """(state, losses, trajectory): gradient descent step by step over these row numbers, in a dtype."""
    x, y, (w, v) = x.to(dtype), y.to(dtype), state.to(dtype)
    if intercept:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    losses, trajectory = [], []
    for rows in batches:
        e = x[rows] @ w - y[rows]
        losses.append((e * e).mean())
        trajectory.append(w)
        g = 2 / e.numel() * (x[rows].t() @ e)
        if weight_decay:
            g = g + weight_decay * w
        if momentum:
            v = g = momentum * v + g
        w = w - lr * g
    return torch.stack([w, v]), torch.stack(losses), torch.stack(trajectory)


def launch(kernel, x, y, state, steps, *, record=True, **options):
    """(state, losses, trajectory) of one launch, into memory that is NaN; without momentum, beside memory that is NaN."""
    halves = 1 + (options["momentum"] != 0)
    out, given = torch.full_like(state, torch.nan), state.clone()
    given[halves:] = torch.nan
    losses = state.new_full((steps,), torch.nan)
    trajectory = state.new_full((steps, *state.shape[1:]), torch.nan) if record else None
    kernel(
        x, y, state_in=given[:halves], state_out=out[:halves], losses=losses, trajectory=trajectory, steps=steps, **options
    )  # fmt: skip
    assert torch.equal(given[:halves], state[:halves]) or state.isnan().any(), "state_in was written"
    assert out[halves:].isnan().all(), "a momentum that there is not was written"
    out[halves:] = state[halves:]
    return out, losses, trajectory


def assert_near(ours, x, y, state, batches, **options):
    """Our error against float64 is at most twice that of the loop in the accumulator's dtype, plus a few roundings."""
    exact = loop(x, y, state, batches, dtype=torch.float64, **options)
    theirs = loop(x, y, state, batches, dtype=state.dtype, **options)
    for name, mine, stock, reference in zip(("state", "losses", "trajectory"), ours, theirs, exact, strict=True):
        if mine is None:
            continue
        assert mine.dtype == state.dtype
        assert mine.shape == reference.shape
        error, limit = ((value.double() - reference).norm() for value in (mine, stock))
        limit = 2 * limit + EPSILON[state.dtype] * (reference.norm() + 1)
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e}"


def assert_equal(first, second):
    for name, one, other in zip(("state", "losses", "trajectory"), first, second, strict=True):
        assert torch.equal(one, other), name


def joined(first, second):
    """Two launches, the second from where the first ended, as one."""
    return second[0], *(torch.cat(pair) for pair in zip(first[1:], second[1:], strict=True))


def kinds(values):
    """0 where finite, 1 where infinite, 2 where NaN."""
    return values.isinf() + 2 * values.isnan()


def full_batch(steps):
    """All rows in every step."""
    return [slice(None)] * steps
