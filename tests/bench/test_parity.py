"""Parity: right results pass, wrong ones do not, in every way a result can be wrong."""

import pytest
import torch

from gdcore.backends import reference
from gdcore.bench import parity
from gdcore.bench.cases import make_tensors
from gdcore.bench.peers import bind


def checked(case, function):
    tensors = make_tensors(case, torch.device("cpu"), 0)
    truth, stock = parity.exact(case, tensors), parity.stock(case, tensors)
    return parity.check(case, bind(function, case, tensors), truth, stock)


def test_float64_truth_is_the_formula(case):
    tensors = make_tensors(case, torch.device("cpu"), 0)
    x, w, y = (t.detach().double() for t in (tensors.input, tensors.weight, tensors.target))
    residual, scale = x @ w.T - y, 2 / (case.n * case.m)
    truth = parity.exact(case, tensors)
    for name, value in {
        "loss": residual.square().mean(),
        "weight": scale * residual.T @ x,
        "input": scale * residual @ w,
    }.items():
        torch.testing.assert_close(truth[name], value)


def test_stock_passes_its_own_test(case):
    found = checked(case, reference.linear_mse)
    assert found.passed and found.worst_ratio == 1.0


class Wrong(torch.autograd.Function):
    """Right loss, and gradients that are spoiled."""

    @staticmethod
    def forward(ctx, spoil, input, weight, target, bias):
        ctx.save_for_backward(input, weight, target)
        ctx.spoil = spoil
        return reference.linear_mse(input, weight, target, bias)

    @staticmethod
    def backward(ctx, grad_output):
        input, weight, target = ctx.saved_tensors
        residual = (input @ weight.T - target) * (2 / target.numel()) * grad_output
        return None, *ctx.spoil(residual @ weight, residual.T @ input), None, None


@pytest.mark.parametrize(
    ("spoil", "blamed"),
    [
        (lambda dx, dw: (dx, dw * 1.001), "weight"),
        (lambda dx, dw: (dx * float("nan"), dw), "input"),
        (lambda dx, dw: (-dx, dw), "input"),
        (lambda dx, dw: (dx, torch.zeros_like(dw)), "weight"),
    ],
    ids=["dW off by a thousandth", "dX is NaN", "dX has the wrong sign", "dW is zero"],
)
def test_spoiled_gradients_fail_by_name(case, spoil, blamed):
    found = checked(case, lambda *operands: Wrong.apply(spoil, *operands))
    assert not found.passed and all(failure.startswith(blamed) for failure in found.failures)


def test_a_loss_in_another_dtype_fails(case):
    found = checked(case, lambda *operands: reference.linear_mse(*operands).double())
    assert any("dtype" in failure for failure in found.failures)


def test_a_loss_of_another_shape_fails(case):
    found = checked(case, lambda *operands: reference.linear_mse(*operands).expand(1, 1).sum(0))
    assert any("inf" in failure for failure in found.failures)


def test_state_left_by_the_first_call_shows(case):
    calls = []

    def drifting(*operands):
        calls.append(1)
        return reference.linear_mse(*operands) * (1 + 0.5 * (len(calls) - 1))

    assert not checked(case, drifting).passed
