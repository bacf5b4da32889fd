"""Real data for training: eleven thermometer readings, scikit-learn's diabetes table and its handwritten digits."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

THERMOMETER = Path(__file__).parent / "data" / "thermometer.json"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A training problem. Validation data is None where the table is too small to split; `labels` turn outputs into classes."""

    name: str
    what: str
    x: Tensor  # (N, K)
    y: Tensor  # (N, M)
    lr: float
    epochs: int
    batch: int | None = None  # None: every update sees all rows
    start: tuple[Tensor, Tensor] | None = None  # weight (M, K) and bias (M,); default zeros
    x_validation: Tensor | None = None
    labels: Tensor | None = None  # (N,)
    labels_validation: Tensor | None = None
    golden: dict = field(default_factory=dict)  # published figures of this very run


def thermometer(device: torch.device) -> Dataset:
    """Eleven readings of an unknown thermometer against Celsius, with the losses that this run is known to give."""
    known = json.loads(THERMOMETER.read_text(encoding="utf-8"))
    t_u, t_c = (torch.tensor(known[name], device=device).unsqueeze(1) for name in ("t_u", "t_c"))
    start = known["start"]
    return Dataset(
        name="thermometer",
        what="11 readings, full batch",
        x=0.1 * t_u,
        y=t_c,
        lr=known["scaled"]["lr"],
        epochs=5_000,
        start=(torch.full((1, 1), start["w"], device=device), torch.full((1,), start["b"], device=device)),
        golden=known["scaled"] | {"tolerance": known["suggested_tolerance"]},
    )


def diabetes(device: torch.device) -> Dataset:
    """442 patients, 10 measurements, progression of the disease a year later; all columns standardised."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    x, y = (torch.tensor(part, dtype=torch.float64) for part in (table.data, table.target[:, None]))
    x, y = ((part - part.mean(0)) / part.std(0) for part in (x, y))
    return Dataset("diabetes", "442 x 10, full batch", x.float().to(device), y.float().to(device), lr=0.1, epochs=1_000)


def digits(device: torch.device) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels against one-hot targets; the predicted digit is the largest output."""
    return _digits(device, "digits", "1437 x 64 to 10 outputs, batches of 64", lr=0.3, epochs=40, batch=64)


def digits_full_batch(device: torch.device) -> Dataset:
    """The same digits, all of them in every update."""
    return _digits(device, "digits-full", "1437 x 64 to 10 outputs, full batch", lr=0.3, epochs=400)


def _digits(device: torch.device, name: str, what: str, *, lr: float, epochs: int, batch: int | None = None) -> Dataset:
    from sklearn.datasets import load_digits

    table = load_digits()
    order = torch.randperm(len(table.target), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(table.data, dtype=torch.float32) / 16)[order].to(device)
    labels = torch.tensor(table.target)[order].to(device)
    y = torch.nn.functional.one_hot(labels, 10).float()
    train = 1_437  # four fifths
    return Dataset(
        name,
        f"{what}, {len(x) - train} held out",
        x[:train],
        y[:train],
        lr=lr,
        epochs=epochs,
        batch=batch,
        x_validation=x[train:],
        labels=labels[:train],
        labels_validation=labels[train:],
    )


DATASETS = {"thermometer": thermometer, "diabetes": diabetes, "digits": digits, "digits-full": digits_full_batch}
