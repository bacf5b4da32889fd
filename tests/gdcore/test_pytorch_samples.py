"""PyTorch's own sample inputs for nn.functional.linear and nn.functional.mse_loss, run through linear_mse."""

import pytest
import torch
import torch.nn.functional as F

import gdcore
from support import DEVICE

methods = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason="needs expecttest")
SAMPLES = {info.name: info for info in methods.op_db if info.name in ("nn.functional.linear", "nn.functional.mse_loss")}
DTYPES = [torch.float64, torch.float32]


def compare(input, weight, target, bias=None, **options):
    """Ours against stock: values and all gradients."""
    tensors = [t for t in (input, weight, target, bias) if t is not None]
    ours_in, stock_in = ([t.detach().clone().requires_grad_() for t in tensors] for _ in range(2))
    ours = gdcore.linear_mse(*ours_in, **options)
    x, w, y, *b = stock_in
    stock = F.mse_loss(F.linear(x, w, *b), y, **options)
    assert ours.dtype == stock.dtype
    torch.testing.assert_close(ours, stock, equal_nan=True)
    upstream = torch.randn_like(stock)
    for a, b in zip(
        torch.autograd.grad(ours, ours_in, upstream), torch.autograd.grad(stock, stock_in, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_of_linear(dtype, backend):
    seen = 0
    for sample in SAMPLES["nn.functional.linear"].sample_inputs(DEVICE, dtype):
        input, weight, *bias = sample.input, *sample.args
        if weight.dim() != 2:  # one output without a dimension of its own: matmul_mse's, not linear_mse's
            with pytest.raises(RuntimeError, match="matmul_mse"):
                gdcore.linear_mse(input, weight, F.linear(input, weight, *bias))
            continue
        target = torch.randn(*input.shape[:-1], weight.shape[0], dtype=dtype, device=DEVICE)
        compare(input, weight, target, *bias)
        seen += 1
    assert seen > 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_of_mse_loss(dtype, backend):
    seen = refused = 0
    for sample in SAMPLES["nn.functional.mse_loss"].sample_inputs(DEVICE, dtype):
        prediction, target, options = sample.input, sample.args[0], dict(sample.kwargs)
        if prediction.dim() < 1:
            continue
        identity = torch.eye(prediction.shape[-1], dtype=dtype, device=DEVICE)
        if prediction.shape != target.shape:  # stock broadcasts these, with a warning
            with pytest.raises(ValueError, match="target has shape"):
                gdcore.linear_mse(prediction, identity, target, **options)
            refused += 1
            continue
        compare(prediction, identity, target, **options)
        seen += 1
    assert seen > 3


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_pytorchs_samples_are_there(name):
    assert list(SAMPLES[name].sample_inputs("cpu", torch.float32))
