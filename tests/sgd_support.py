"""What the tests of SGD share: the same run under our optimizer, under stock's loop and under stock's loop in float64."""

import contextlib
import copy

import torch

import gdcore
from support import DEVICE, EPSILON

WIDE = {torch.complex64: torch.complex128}


def thinned(backends, cases, few):
    """(backend, *case) for parametrize: every case on every backend, but interpreted kernels, which take their time, a few.

    Parameters
    ----------
    backends : list of str
        Values of an indirect fixture.
    cases : iterable of tuple
        The values of the other parameters.
    few : callable
        Of a case's values: whether the interpreter runs it.
    """
    cases = list(cases)
    return [(b, *case) for b in backends for case in cases if b != "triton" or DEVICE != "cpu" or few(*case)]


def loop(params, **options):
    """The reference: stock, one tensor after the other. Its fused version is what has the bugs."""
    return torch.optim.SGD(params, **{**options, "foreach": False, "fused": None})


@contextlib.contextmanager
def poisoned_memory():
    """Memory from torch.empty is NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def parameter(*shape, dtype=torch.float32, grad=True):
    """A fresh leaf, with a fresh gradient."""
    p = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
    if grad:
        p.grad = torch.randn(shape, device=DEVICE).to(dtype)
    return p


def twin(p):
    """A leaf of the same values and strides with a gradient of the same values."""
    q = p.detach().clone().requires_grad_()
    q.grad = None if p.grad is None else p.grad.clone()
    return q


def laid_out(tensor, layout):
    """The same values, arranged differently in memory."""
    if layout == "transposed":
        back = tuple(reversed(range(tensor.dim())))
        return tensor.permute(back).contiguous().permute(back)
    if layout == "gapped":
        base = tensor.new_empty(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1) if tensor.dim() else tensor.new_empty(3)
        view = base[..., 1::2] if tensor.dim() else base[1]
        return view.copy_(tensor)
    if layout == "offset":  # at an address that is no multiple of 16
        return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
    return tensor.contiguous()


class Race:
    """The same parameters three times; `step` gives all of them the same gradients, and compares.

    Parameters
    ----------
    tensors : list of Tensor
        The parameters; ours keep their layout.
    groups : list of (list of int, dict), optional
        Which of them are together, with which options. All in one group where it is not given.
    options
        Of the optimizer.
    """

    def __init__(self, tensors, groups=None, **options):
        groups = groups or [(list(range(len(tensors))), {})]
        self.params, self.optimizers = [], []
        for make, dtype in ((gdcore.SGD, None), (loop, None), (loop, torch.float64)):
            params = [t.detach() if make is gdcore.SGD else t.detach().clone() for t in tensors]
            if dtype is not None:
                params = [p.to(WIDE.get(p.dtype, dtype)) for p in params]
            params = [p.requires_grad_() for p in params]
            made = [{"params": [params[i] for i in places], **copy.deepcopy(more)} for places, more in groups]
            self.params.append(params)
            self.optimizers.append(make(made, **copy.deepcopy(options)))
        self.ours, self.stock, self.exact = self.optimizers
        self.sizes = {}  # what a number was made of may have been larger than what it is

    def everywhere(self, change):
        """Do something to each optimizer."""
        for optimizer in self.optimizers:
            change(optimizer)

    def step(self, grads, check=True):
        """One step; `None` is an absent gradient. Ours get the tensors themselves."""
        for run, params in enumerate(self.params):
            for p, g in zip(params, grads, strict=True):
                p.grad = g if g is None or run == 0 else g.clone().to(p.dtype)
        before = [None if g is None else g.clone() for g in grads]
        versions = [p._version for p in self.params[0]]
        self._measure(self.params[2], grads)
        for optimizer in self.optimizers:
            optimizer.step()
        for p, g, old, version in zip(self.params[0], grads, before, versions, strict=True):
            assert p.grad is g
            assert g is None or torch.equal(g, old), "the gradient was modified"
            if g is None:
                assert p._version == version
            elif p.numel():
                assert p._version > version, "autograd cannot notice the update"
        if check:
            self.check()

    def _measure(self, *lists):
        for tensors in lists:
            for i, t in enumerate(tensors):
                if t is not None:
                    self.sizes[i] = max(self.sizes.get(i, 0.0), t.detach().to(self.params[2][i].dtype).norm().item())

    def check(self):
        """Parameters and states: dtypes, shapes, presence as stock's; errors at most twice stock's."""
        for i, (p, q, r) in enumerate(zip(*self.params, strict=True)):
            assert_as_exact(p, q, r, f"parameter {i}", self.sizes.get(i, 0.0))
            # Looked at past the methods that notice it: a step of an optimizer whose state was seen goes another way.
            ours, stock, exact = (dict.get(o.state, t, {}) for o, t in zip(self.optimizers, (p, q, r), strict=True))
            assert ours.keys() == stock.keys(), f"state of parameter {i}: {ours.keys()} instead of {stock.keys()}"
            for name in stock:
                assert_as_exact(ours[name], stock[name], exact[name], f"{name} {i}", self.sizes.get(i, 0.0))


def assert_as_exact(ours, stock, exact, name, size=0.0):
    """Our error against float64 is at most twice stock's in the same dtype, plus an epsilon."""
    assert ours.dtype == stock.dtype, name
    assert ours.shape == stock.shape, name
    ours, stock, exact = (t.detach() for t in (ours, stock, exact))
    wide = exact.dtype
    limit = 2 * (stock.to(wide) - exact).norm() + EPSILON.get(ours.dtype, 2e-6) * max(exact.norm().item(), size)
    error = (ours.to(wide) - exact).norm()
    assert error <= limit, f"{name}: {error} > {limit}"


def assert_same(ours, stock, tolerance=1e-6):
    """Equal to the last digits, NaN and Inf in the same places."""
    assert ours.dtype == stock.dtype
    torch.testing.assert_close(ours.detach(), stock.detach(), rtol=tolerance, atol=tolerance, equal_nan=True)
