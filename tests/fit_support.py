"""What the tests of `fit` share: the eager loop that it replaces, in any dtype, and error relative to that loop in float32."""

import functools
import types

import pytest
import torch

from support import DEVICE, EPSILON

METHODS = ["resident", *["grid"] * (DEVICE == "cuda"), "steps", "stream", "gram"]  # of a full batch on this device
on_cpu = functools.partial(pytest.mark.skipif, DEVICE == "cuda")  # for what only the CPU has


def problem(n, k, m=None, dtype=torch.float32, noise=0.5, device=DEVICE):
    """x (n, k) and y (n,) or (n, m), with an answer and noise about it."""
    x = torch.randn(n, k, device=device).to(dtype)
    y = x.double() @ torch.randn(k, *([] if m is None else [m]), dtype=torch.float64, device=device) / k**0.5
    return x, (y + 0.3 + noise * torch.randn_like(y)).to(dtype)


def loop(
    x, y, *, lr, steps, dtype=torch.float64, momentum=0.0, weight_decay=0.0, init=None, intercept=False, batches=None
):
    """The run with autograd and torch.optim.SGD, a step at a time; `batches` holds the row numbers of each step."""
    x, y = x.detach().to(dtype), y.detach().to(dtype)
    coef, bias = init if isinstance(init, tuple) else (init, None)
    coef = x.new_zeros(x.shape[1], *y.shape[1:]) if coef is None else coef.to(x).clone()
    bias = x.new_zeros(y.shape[1:]) if bias is None else bias.to(x).clone()
    parameters = [p.requires_grad_() for p in ([coef, bias] if intercept else [coef])]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, foreach=False)
    losses, trajectory = [], [_packed(parameters)]
    for step in range(steps):
        rows = slice(None) if batches is None else batches[step]
        optimizer.zero_grad()
        loss = (((x[rows] @ coef) + bias - y[rows]) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        trajectory.append(_packed(parameters))
    return types.SimpleNamespace(
        coef=coef.detach(),
        intercept=bias.detach() if intercept else None,
        losses=torch.stack(losses),
        trajectory=torch.stack(trajectory),
    )


def _packed(parameters):
    """Coefficients, and the intercepts after them: (R,) or (R, M)."""
    return torch.cat([p.detach().reshape(-1, *parameters[0].shape[1:]) for p in parameters])


def assert_as_stock(result, x, y, slack=1.0, **options):
    """Our error against float64 is at most twice that of the eager loop in float32, plus a few roundings.

    A loss is the square of a difference: what rounding can do to it is of the order sqrt(loss · mean square of y).
    The result may be on another device than the data.
    """
    slack *= 2 if result.losses.is_cuda else 1  # sums are added in an order of the GPU's own
    exact = loop(x, y, **options)
    wide = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    stock = loop(x, y, dtype=wide, **options)
    epsilon = slack * EPSILON[wide]
    size = y.double().square().mean() + exact.losses.max()
    limit = (stock.losses - exact.losses).abs().div(exact.losses).max()
    error = (result.losses.to(x.device).double() - exact.losses).abs() - epsilon * (
        exact.losses + (exact.losses * size).sqrt()
    )
    assert result.losses.shape == exact.losses.shape
    assert (error <= 2 * limit * exact.losses).all(), f"losses are off by up to {error.max():.2e}"
    for name in ("coef", "intercept", "trajectory"):
        ours, reference = getattr(result, name), getattr(exact, name)
        if name == "trajectory" and ours is None:
            continue
        assert (ours is None) == (reference is None), name
        if ours is not None:
            assert ours.dtype == wide, name
            assert ours.shape == reference.shape, name
            off = (ours.to(x.device).double() - reference).norm()
            most = 2 * (getattr(stock, name).double() - reference).norm() + epsilon * (1 + exact.trajectory.norm())
            assert off <= most, f"{name} is off by {off:.2e} > {most:.2e}"


def assert_bitwise(one, other, steps=None):
    """The same run, bit for bit; of `other` only the first steps, if so many are given."""
    steps = len(other.losses) if steps is None else steps
    assert torch.equal(one.losses, other.losses[:steps])
    if steps == len(other.losses):
        assert torch.equal(one.coef, other.coef)
        assert (one.intercept is None) == (other.intercept is None)
        assert one.intercept is None or torch.equal(one.intercept, other.intercept)
    if one.trajectory is not None and other.trajectory is not None:
        assert torch.equal(one.trajectory, other.trajectory[: steps + 1])
