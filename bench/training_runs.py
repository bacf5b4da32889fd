"""A training run as a user would write it, with stock and with gdcore: one line differs. Same losses? Same accuracy?"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

import gdcore

from .datasets import DATASETS, Dataset
from .peers import FUSED, OURS, STOCK, LossFunction, in_one_line

# The same arithmetic in another order differs in the last digits, and a run carries that along.
LOSS_TOLERANCE = 1e-4


def stock_loss(x: Tensor, w: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """The line that a user has today."""
    return F.mse_loss(F.linear(x, w, b), y)


def fused_loss(x: Tensor, w: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """gdcore's own code even where it would leave so small a shape to stock."""
    with gdcore.use_backend("triton" if x.is_cuda else "cpu"):
        return gdcore.linear_mse(x, w, y, b)


@dataclass(frozen=True, slots=True)
class Run:
    """What one training run gives: the loss before each update, the final parameters, and the seconds it took."""

    losses: Tensor
    weight: Tensor  # (M, K)
    bias: Tensor  # (M,)
    seconds: float


def batches(data: Dataset, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The data of every update: all rows, or shuffled mini-batches, the same ones for the same seed."""
    if data.batch is None:
        for _ in range(data.epochs):
            yield data.x, data.y
        return
    generator = torch.Generator().manual_seed(seed)
    for _ in range(data.epochs):
        for rows in torch.randperm(len(data.x), generator=generator).split(data.batch):
            rows = rows.to(data.x.device)
            yield data.x[rows], data.y[rows]


def train(loss_function: LossFunction, data: Dataset, seed: int) -> Run:
    """Plain gradient descent."""
    if data.start is not None:
        w, b = (t.clone().requires_grad_() for t in data.start)
    else:
        w = data.x.new_zeros(data.y.shape[1], data.x.shape[1], requires_grad=True)
        b = data.x.new_zeros(data.y.shape[1], requires_grad=True)
    losses = []
    start = time.perf_counter()
    for x, y in batches(data, seed):
        loss = loss_function(x, w, y, b)
        loss.backward()
        with torch.no_grad():
            w.sub_(data.lr * w.grad)
            b.sub_(data.lr * b.grad)
        w.grad = b.grad = None
        losses.append(loss.detach())
    found = torch.stack(losses).cpu()  # waits for the device
    return Run(found, w.detach(), b.detach(), time.perf_counter() - start)


def score(run: Run, data: Dataset) -> tuple[str, float]:
    """Accuracy on the held-out rows where there are classes, else the share of variance explained (R²)."""
    if data.labels is not None:
        x, labels = (data.x, data.labels) if data.x_validation is None else (data.x_validation, data.labels_validation)
        return "accuracy", (F.linear(x, run.weight, run.bias).argmax(1) == labels).double().mean().item()
    residual = F.linear(data.x, run.weight, run.bias) - data.y
    return "R²", 1 - (residual.double().square().sum() / (data.y - data.y.mean(0)).double().square().sum()).item()


def path_of(data: Dataset) -> dict[str, str]:
    """Which path gdcore takes for one update, and why: tiny batches it leaves to stock."""
    rows = data.batch or len(data.x)
    weight = data.x.new_empty(data.y.shape[1], data.x.shape[1], requires_grad=True)
    bias = data.x.new_empty(data.y.shape[1], requires_grad=True)
    plan = gdcore.explain(data.x[:rows], weight, data.y[:rows], bias).plan
    return {"name": plan.path, "why": plan.why}


def golden_difference(run: Run, golden: dict) -> dict[str, float]:
    """The largest relative differences from published losses and parameters, those that this run reaches."""
    losses = {int(epoch): loss for epoch, loss in golden["loss_at_epoch"].items()} | {
        5_000: golden["loss_at_epoch_5000"]
    }
    reached = {epoch: loss for epoch, loss in losses.items() if epoch <= len(run.losses)}
    differences = {"losses": max(abs(run.losses[epoch - 1].item() / loss - 1) for epoch, loss in reached.items())}
    after = golden.get(f"after_{len(run.losses)}")
    if after:
        found = {"w": run.weight.item(), "b": run.bias.item()}
        differences["parameters"] = max(abs(found[name] / value - 1) for name, value in after.items())
    return differences


def side_by_side(data: Dataset, seed: int, repeats: int = 3, budget: float = 4.0) -> dict:
    """Trains with stock, with gdcore as it chooses and with its fused path, in turns, and compares.

    The seconds are each one's least of at most `repeats` runs, none started after `budget` seconds.
    """
    functions = {STOCK: stock_loss, OURS: gdcore.linear_mse, FUSED: fused_loss}
    runs: dict[str, list[Run]] = {name: [] for name in functions}
    start = time.perf_counter()
    while len(runs[STOCK]) < repeats and (not runs[STOCK] or time.perf_counter() - start < budget):
        for name, function in functions.items():
            runs[name].append(train(function, data, seed))
    stock = runs[STOCK][0]
    metric = score(stock, data)[0]
    row = {
        "dataset": data.name,
        "what": data.what,
        "updates": len(stock.losses),
        "metric": metric,
        "path": path_of(data),
        "first_loss": stock.losses[0].item(),
    }
    for name, found in runs.items():
        row[name] = {
            "final_loss": found[0].losses[-1].item(),
            "score": score(found[0], data)[1],
            "seconds": min(run.seconds for run in found),
            "sample_seconds": [run.seconds for run in found],
            "loss_difference": ((found[0].losses - stock.losses).abs() / stock.losses.abs()).max().item(),
        }
    problems = []
    for name in (OURS, FUSED):
        if not row[name]["loss_difference"] <= LOSS_TOLERANCE:
            problems.append(
                f"{name}: losses differ by up to {row[name]['loss_difference']:.1e} (allowed {LOSS_TOLERANCE:.0e})"
            )
        if abs(row[STOCK]["score"] - row[name]["score"]) > 1e-3:
            problems.append(f"{name}: {metric} differs: {row[STOCK]['score']:.4f} and {row[name]['score']:.4f}")
    if data.golden:
        tolerance = data.golden["tolerance"]
        for name, found in runs.items():
            differences = row[name]["golden_difference"] = golden_difference(found[0], data.golden)
            for what, limit in (("losses", tolerance["loss_rtol"]), ("parameters", tolerance["params_rtol"])):
                if not differences.get(what, 0.0) <= limit:
                    problems.append(f"{name}: {what} are off the published ones by {differences[what]:.1e}")
    return row | {"problems": problems}


def run_dataset(name: str, device: torch.device, seed: int, *, small: bool = False) -> dict:
    """One row of the training table; in words why not, where the data is not there (scikit-learn missing)."""
    try:
        data = DATASETS[name](device)
    except ImportError as error:
        return {"dataset": name, "unavailable": in_one_line(error), "problems": []}
    if small:
        data = replace(data, epochs=100 if data.batch is None else 2)
    return side_by_side(data, seed, repeats=1 if small else 3)
