"""Every row of the contract: what is refused, with which error, in which words; and nothing is modified."""

import pytest
import torch

import gdcore
from support import DEVICE


def tensors(**changes):
    t = {
        "input": torch.randn(5, 3, device=DEVICE),
        "weight": torch.randn(2, 3, device=DEVICE),
        "target": torch.randn(5, 2, device=DEVICE),
        "bias": torch.randn(2, device=DEVICE),
    }
    return t | changes


def r(*shape):
    return torch.randn(shape, device=DEVICE)


REFUSED = {
    "weight of other features": (
        {"weight": r(2, 4)},
        RuntimeError,
        r"input of shape \(5, 3\) and weight of shape \(2, 4\)",
    ),
    "one-dimensional weight": ({"weight": r(3)}, RuntimeError, r"weight has shape \(3,\).*matmul_mse"),
    "three-dimensional weight": ({"weight": r(1, 2, 3)}, RuntimeError, r"weight has shape \(1, 2, 3\)"),
    "0-d input": ({"input": r()}, RuntimeError, "input is a 0-d tensor"),
    "target without the output dimension": ({"target": r(5)}, ValueError, r"target has shape \(5,\).*\(5, 2\)"),
    "target that would broadcast": ({"target": r(5, 1)}, ValueError, r"target has shape \(5, 1\).*\(5, 2\)"),
    "target of one row": ({"target": r(1, 2)}, ValueError, r"target has shape \(1, 2\).*\(5, 2\)"),
    "target of other rows": ({"target": r(4, 2)}, ValueError, r"target has shape \(4, 2\)"),
    "target of more dimensions": ({"target": r(1, 5, 2)}, ValueError, r"target has shape \(1, 5, 2\)"),
    "transposed target": ({"target": r(2, 5)}, ValueError, r"target has shape \(2, 5\)"),
    "0-d target": ({"target": r()}, ValueError, r"target has shape \(\)"),
    "bias of another length": ({"bias": r(3)}, RuntimeError, r"bias has shape \(3,\), it must be \(2,\)"),
    "bias that would broadcast": ({"bias": r(1)}, RuntimeError, r"bias has shape \(1,\), it must be \(2,\)"),
    "float64 input, float32 weight": (
        {"input": r(5, 3).double()},
        RuntimeError,
        "weight has dtype torch.float32.*float64",
    ),
    "bfloat16 bias": ({"bias": r(2).bfloat16()}, RuntimeError, "bias has dtype torch.bfloat16"),
    "integer input": ({"input": r(5, 3).long()}, NotImplementedError, "torch.int64: input"),
    "integer target": ({"target": r(5, 2).int()}, NotImplementedError, "torch.int32: target"),
    "boolean target": ({"target": r(5, 2) > 0}, NotImplementedError, "torch.bool: target"),
    "complex weight": ({"weight": r(2, 3).to(torch.complex64)}, NotImplementedError, "torch.complex64: weight"),
    "sparse input": (
        {"input": r(5, 3).to_sparse()},
        NotImplementedError,
        "input has layout torch.sparse_coo.*to_dense",
    ),
    "sparse target": ({"target": r(5, 2).to_sparse()}, NotImplementedError, "target has layout torch.sparse_coo"),
    "tensors on two devices": (
        {"target": torch.empty(5, 2, device="meta")},
        RuntimeError,
        "same device.*target is on meta",
    ),
    "a list": ({"input": [[1.0, 2.0, 3.0]]}, TypeError, "input must be a Tensor, not list"),
    "an array": ({"target": r(5, 2).cpu().numpy()}, TypeError, "target must be a Tensor, not ndarray"),
    "no weight": ({"weight": None}, TypeError, "weight must be a Tensor, not NoneType"),
    "a number for a bias": ({"bias": 1.0}, TypeError, "bias must be a Tensor, not float"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_refused_with_a_clear_error(case, backend):
    changes, error, words = REFUSED[case]
    t = tensors(**changes)
    dense = [
        v for v in t.values() if isinstance(v, torch.Tensor) and v.layout is torch.strided and v.device.type != "meta"
    ]
    before = [(v, v.clone(), v._version) for v in dense]
    with gdcore.use_backend(backend), pytest.raises(error, match=words):
        gdcore.linear_mse(t["input"], t["weight"], t["target"], t["bias"])
    assert all(torch.equal(v, copy) and v._version == version for v, copy, version in before)


@pytest.mark.parametrize("reduction", ["avg", "MEAN", None, 3, True])
def test_unknown_reductions(reduction):
    t = tensors()
    with pytest.raises(ValueError, match="is not a valid value for reduction"):
        gdcore.linear_mse(t["input"], t["weight"], t["target"], reduction=reduction)
    with pytest.raises(ValueError, match="is not a valid value for reduction"):
        gdcore.matmul_mse(t["input"], t["weight"].t(), t["target"], reduction=reduction)


def test_reduction_is_passed_by_name():
    t = tensors()
    with pytest.raises(TypeError):
        gdcore.linear_mse(t["input"], t["weight"], t["target"], t["bias"], "sum")


MATMUL_REFUSED = {
    "a of other features": ((r(5, 3), r(4), r(5)), RuntimeError, r"x of shape \(5, 3\) and a of shape \(4,\)"),
    "three-dimensional a": ((r(5, 3), r(3, 2, 1), r(5)), RuntimeError, r"a has shape \(3, 2, 1\)"),
    "0-d a": ((r(5, 3), r(), r(5)), RuntimeError, r"a has shape \(\)"),
    "column y against vector a": ((r(5, 3), r(3), r(5, 1)), ValueError, r"y has shape \(5, 1\).*\(5,\)"),
    "vector y against matrix a": ((r(5, 3), r(3, 1), r(5)), ValueError, r"y has shape \(5,\).*\(5, 1\)"),
    "another dtype": ((r(5, 3), r(3).half(), r(5)), RuntimeError, "a has dtype torch.float16"),
    "complex y": ((r(5, 3), r(3), r(5).to(torch.complex64)), NotImplementedError, "torch.complex64: y"),
    "a list": ((r(5, 3), [1.0, 2.0, 3.0], r(5)), TypeError, "a must be a Tensor, not list"),
}


@pytest.mark.parametrize("case", MATMUL_REFUSED)
def test_matmul_mse_refuses(case):
    args, error, words = MATMUL_REFUSED[case]
    with pytest.raises(error, match=words):
        gdcore.matmul_mse(*args)


def test_stock_would_have_broadcast_what_we_refuse():
    """Why the shape of the target is strict: stock warns and returns the mean over an N x N matrix."""
    prediction, target = r(5, 1), r(5)
    with pytest.warns(UserWarning, match="Using a target size"):
        wrong = torch.nn.functional.mse_loss(prediction, target)
    assert not torch.isclose(wrong, ((prediction[:, 0] - target) ** 2).mean())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_zero_features_and_zero_outputs_are_like_stock(reduction):
    for n, k, m in ((5, 0, 2), (5, 3, 0), (0, 0, 0)):
        x, w, y, b = r(n, k), r(m, k).requires_grad_(), r(n, m), r(m)
        ours = gdcore.linear_mse(x, w, y, b, reduction=reduction)
        stock = torch.nn.functional.mse_loss(torch.nn.functional.linear(x, w, b), y, reduction=reduction)
        torch.testing.assert_close(ours, stock, equal_nan=True)


def test_module_refuses():
    with pytest.raises(ValueError, match="reduction"):
        gdcore.LinearMSELoss(3, 2, reduction="avg")
    with pytest.raises(TypeError, match=r"must be an nn\.Linear, not Conv1d"):
        gdcore.LinearMSELoss.from_linear(torch.nn.Conv1d(1, 1, 1))
    with pytest.raises(ValueError, match="target has shape"):
        gdcore.LinearMSELoss(3, 2, device=DEVICE)(r(5, 3), r(5))


def test_backend_and_device_names():
    with pytest.raises(ValueError, match="'cuda' is not a backend"), gdcore.use_backend("cuda"):
        pass
    t = tensors()
    with pytest.raises(ValueError, match="'H300' is not a device"):
        gdcore.explain(t["input"], t["weight"], t["target"], device="H300")
