"""LinearMSELoss is an nn.Linear with its loss."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import gdcore
from support import DEVICE


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_exchanges_its_state_with_linear(bias):
    linear = torch.nn.Linear(6, 3, bias=bias, device=DEVICE)
    head = gdcore.LinearMSELoss(6, 3, bias, device=DEVICE)
    assert list(head.state_dict()) == list(linear.state_dict())
    head.load_state_dict(linear.state_dict())
    x, y = torch.randn(20, 6, device=DEVICE), torch.randn(20, 3, device=DEVICE)
    torch.testing.assert_close(head.predict(x), linear(x))
    torch.testing.assert_close(head(x, y), F.mse_loss(linear(x), y))
    linear.load_state_dict(gdcore.LinearMSELoss(6, 3, bias, device=DEVICE).state_dict())


def test_initialised_as_linear():
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 3)
    torch.manual_seed(0)
    head = gdcore.LinearMSELoss(6, 3)
    assert torch.equal(head.weight, linear.weight)
    assert torch.equal(head.bias, linear.bias)


def test_from_linear_shares_parameters():
    linear = torch.nn.Linear(6, 3, device=DEVICE).eval()
    head = gdcore.LinearMSELoss.from_linear(linear, reduction="sum")
    assert head.weight is linear.weight
    assert head.bias is linear.bias
    assert head.reduction == "sum"
    assert not head.training
    head(torch.randn(4, 6, device=DEVICE), torch.randn(4, 3, device=DEVICE)).backward()
    assert linear.weight.grad is not None


def test_copies_pickles_and_moves():
    head = gdcore.LinearMSELoss(6, 3, reduction="sum")
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), head.double()):
        assert other.reduction == "sum"
        assert torch.equal(other.weight.float(), head.weight.float())
    assert "in_features=6, out_features=3, bias=True, reduction='sum'" in repr(head)


def test_trains(backend):
    x = torch.randn(500, 4, device=DEVICE)
    y = x @ torch.randn(4, 2, device=DEVICE) + 1
    head = gdcore.LinearMSELoss(4, 2, device=DEVICE)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = head(x, y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4
