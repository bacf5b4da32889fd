"""What the tests share: fresh inputs, and parity against float64 relative to stock."""

import torch
import torch.nn.functional as F

from gdcore.backends.reference import oracle

# Without a GPU the same tests run on the CPU, the kernels interpreted.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPSILON = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = list(EPSILON)
NAMES = ("input", "weight", "target", "bias")


def draw(lead, k, m, dtype=torch.float32, bias=True, target_dtype=None, device=DEVICE):
    """Fresh tensors for linear_mse by name; lead is N or a tuple of leading dimensions."""
    lead = (lead,) if isinstance(lead, int) else tuple(lead)
    tensors = {
        "input": torch.randn(*lead, k, device=device).to(dtype),
        "weight": (torch.randn(m, k, device=device) / max(k, 1) ** 0.5).to(dtype),
        "target": torch.randn(*lead, m, device=device).to(target_dtype or dtype),
    }
    if bias:
        tensors["bias"] = torch.randn(m, device=device).to(dtype)
    return tensors


def leaves(tensors, wanted=NAMES):
    """The same tensors (strides kept) as leaves, of which the wanted ones require a gradient."""
    return {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}


def run(function, tensors, wanted=NAMES, reduction="mean", grad_output=None):
    """Loss and wanted gradients by name."""
    inputs = leaves(tensors, wanted)
    loss = function(inputs["input"], inputs["weight"], inputs["target"], inputs.get("bias"), reduction=reduction)
    names = [name for name in inputs if name in wanted]
    gradients = torch.autograd.grad(loss, [inputs[name] for name in names], grad_output) if names else []
    return loss.detach(), dict(zip(names, gradients, strict=True))


def stock(input, weight, target, bias=None, *, reduction="mean"):
    """F.mse_loss of one dtype: on CUDA its backward pass refuses two."""
    prediction = F.linear(input, weight, bias)
    dtype = torch.promote_types(prediction.dtype, target.dtype)
    return F.mse_loss(prediction.to(dtype), target.to(dtype), reduction=reduction)


def assert_parity(function, tensors, wanted=NAMES, reduction="mean", grad_output=None):
    """Our error against float64 is at most twice stock's in the same dtype, plus an epsilon; dtypes and shapes are stock's.

    The epsilon is relative to the result and, an eighth of it, to what the result would be if none of its terms cancelled:
    by chance stock may hit a cancelling sum exactly.
    """
    wanted = [name for name in wanted if name in tensors]
    exact_loss, exact = oracle(**tensors, reduction=reduction, grad_output=grad_output)
    sizes = {name: -t.abs() if name == "target" else t.abs() for name, t in tensors.items()}
    size_loss, size = oracle(
        **sizes, reduction=reduction, grad_output=None if grad_output is None else grad_output.abs()
    )
    loss, gradients = run(function, tensors, wanted, reduction, grad_output)
    stock_loss, stock_gradients = run(stock, tensors, wanted, reduction, grad_output)
    results = {"loss": (loss, stock_loss, exact_loss, size_loss)}
    results |= {name: (gradients[name], stock_gradients[name], exact[name], size[name]) for name in wanted}
    for name, (ours, theirs, reference, uncancelled) in results.items():
        assert ours.dtype == theirs.dtype, name
        assert ours.shape == theirs.shape, name
        epsilon = max(EPSILON[tensors["input"].dtype], EPSILON[ours.dtype])
        limit = 2 * distance(theirs, reference) + epsilon * (reference.norm() + uncancelled.norm() / 8)
        assert distance(ours, reference) <= limit, f"{name}: {distance(ours, reference)} > {limit}"


def distance(value, reference):
    return (value.double() - reference).norm()
