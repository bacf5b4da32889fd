"""Known runs reproduced: the thermometer, and the line y = 3x + 2 of the first lesson."""

import json
import pathlib

import pytest
import torch

import gdcore
from support import DEVICE

DATA = pathlib.Path(gdcore.__file__).parent.parent / "bench" / "data"
THERMOMETER = json.loads((DATA / "thermometer.json").read_text())
LINE = json.loads((DATA / "line.json").read_text())


def descend(x, y, steps, lr):
    w = torch.tensor([[THERMOMETER["start"]["w"]]], device=DEVICE, requires_grad=True)
    b = torch.tensor([THERMOMETER["start"]["b"]], device=DEVICE, requires_grad=True)
    losses, first = [], None
    for _ in range(steps):
        loss = gdcore.linear_mse(x, w, y, b)
        gradients = torch.autograd.grad(loss, (w, b))
        first = first or (loss.item(), *(g.item() for g in gradients))
        with torch.no_grad():
            for parameter, gradient in zip((w, b), gradients, strict=True):
                parameter.sub_(lr * gradient)
        losses.append(loss.item())
    return losses, w.item(), b.item(), first


def thermometer(scale=1.0):
    t_u, t_c = (torch.tensor(THERMOMETER[name], device=DEVICE)[:, None] for name in ("t_u", "t_c"))
    return scale * t_u, t_c


def test_first_loss_and_gradient(backend):
    golden = THERMOMETER["initial"]
    _, _, _, (loss, grad_w, grad_b) = descend(*thermometer(), steps=1, lr=0.0)
    assert loss == pytest.approx(golden["loss"], rel=1e-5)
    assert grad_w == pytest.approx(golden["grad_w"], rel=1e-5)
    assert grad_b == pytest.approx(golden["grad_b"], rel=1e-5)


def test_a_hundred_epochs(backend):
    golden = THERMOMETER["scaled"]
    losses, w, b, _ = descend(*thermometer(0.1), steps=100, lr=golden["lr"])
    for epoch, loss in golden["loss_at_epoch"].items():
        assert losses[int(epoch) - 1] == pytest.approx(loss, rel=1e-5), epoch
    assert w == pytest.approx(golden["after_100"]["w"], rel=1e-4)
    assert b == pytest.approx(golden["after_100"]["b"], rel=1e-4)


def test_five_thousand_epochs():
    golden = THERMOMETER["scaled"]
    losses, w, b, _ = descend(*thermometer(0.1), steps=5000, lr=golden["lr"])
    assert losses[-1] == pytest.approx(golden["loss_at_epoch_5000"], rel=1e-5)
    assert w == pytest.approx(golden["after_5000"]["w"], rel=1e-4)
    assert b == pytest.approx(golden["after_5000"]["b"], rel=1e-4)


def test_too_large_a_step_diverges_as_recorded(backend):
    golden = THERMOMETER["diverges"]
    losses, *_ = descend(*thermometer(), steps=golden["inf_at_epoch_float32"], lr=golden["lr"])
    assert all(loss < float("inf") for loss in losses[:-1])
    assert losses[-1] == float("inf")


@pytest.mark.parametrize("noise", ["uniform_noise", "normal_noise_0.25"])
def test_the_lesson_finds_its_line(noise, backend):
    """Over a few seeds the first and last loss and the parameters lie where 300 recorded seeds put them."""
    golden = LINE["over_300_seeds"][noise]
    parameters, first = [], []
    for _ in range(3):
        x = torch.ones(LINE["n"], 2, device=DEVICE)
        x[:, 0].uniform_(-1, 1)
        y = x @ torch.tensor(LINE["a"], device=DEVICE)
        y += torch.rand_like(y) if noise == "uniform_noise" else 0.25 * torch.randn_like(y)
        a = torch.tensor(LINE["guess"], device=DEVICE, requires_grad=True)
        for step in range(LINE["steps"]):
            loss = gdcore.matmul_mse(x, a, y)
            if step == 0:
                first.append(loss.item())
            loss.backward()
            with torch.no_grad():
                a.sub_(LINE["lr"] * a.grad)
                a.grad.zero_()
        parameters.append(a.detach().cpu())
        assert loss.item() < 2 * golden["final_loss_mean"]
    low, high = golden["first_loss_range"]
    assert all(0.8 * low < loss < 1.2 * high for loss in first)
    mean = torch.stack(parameters).mean(0)
    assert (mean - torch.tensor(golden["params_mean"])).abs().max() < 0.15
