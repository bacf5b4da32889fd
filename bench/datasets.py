"""Real data: eleven thermometer readings, a line with noise, scikit-learn's diabetes table, handwritten digits, photographs."""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "data"
SIZES = {"diabetes": (442, 10, 1), "digits": (1_797, 64, 10), "photographs": (542_300, 24, 3)}  # N, K, M of TABLES


@dataclass(frozen=True, slots=True)
class Dataset:
    """A training problem. Validation data is None where the table is too small to split; `labels` turn outputs into classes."""

    x: Tensor  # (N, K)
    y: Tensor  # (N, M)
    lr: float
    start: tuple[Tensor, Tensor] | None = None  # weight (M, K) and bias (M,); default zeros
    x_validation: Tensor | None = None
    labels_validation: Tensor | None = None
    golden: dict = field(default_factory=dict)  # published figures of this very run


@functools.cache
def thermometer() -> Dataset:
    """Eleven readings of an unknown thermometer against Celsius, with the losses that this run is known to give."""
    known = json.loads((FOLDER / "thermometer.json").read_text(encoding="utf-8"))
    t_u, t_c = (torch.tensor(known[name]).unsqueeze(1) for name in ("t_u", "t_c"))
    start = torch.full((1, 1), known["start"]["w"]), torch.full((1,), known["start"]["b"])
    golden = known["scaled"] | {"tolerance": known["suggested_tolerance"]}
    return Dataset(0.1 * t_u, t_c, lr=known["scaled"]["lr"], start=start, golden=golden)


@functools.cache
def lesson() -> Dataset:
    """The first lesson on SGD: 100 points x = (u, 1), u uniform in (-1, 1), y = 3u + 2 and a little noise; guess (-1, 1)."""
    known = json.loads((FOLDER / "line.json").read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(known["n"], 2)
    x[:, 0].uniform_(-1, 1, generator=generator)
    y = x @ torch.tensor(known["a"]) + 0.25 * torch.randn(known["n"], generator=generator)
    return Dataset(x, y.unsqueeze(1), lr=known["lr"], start=(torch.tensor([known["guess"]]), torch.zeros(1)))


@functools.cache
def diabetes() -> Dataset:
    """442 patients, 10 measurements, progression of the disease a year later; all columns standardised."""
    x, y = TABLES["diabetes"]()
    return Dataset(x, y, lr=0.1)


@functools.cache
def digits() -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels against one-hot targets, a fifth held out; the largest output is the digit."""
    x, y = TABLES["digits"]()
    train = 1_437  # four fifths
    return Dataset(x[:train], y[:train], lr=0.3, x_validation=x[train:], labels_validation=y[train:].argmax(1))


@functools.cache
def _diabetes_table() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    x, y = (torch.tensor(part, dtype=torch.float64) for part in (table.data, table.target[:, None]))
    return tuple(((part - part.mean(0)) / part.std(0)).float() for part in (x, y))


@functools.cache
def _digits_table() -> tuple[Tensor, Tensor]:
    """In a random order, the same each time: the table is sorted by writer."""
    from sklearn.datasets import load_digits

    table = load_digits()
    order = torch.randperm(len(table.target), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(table.data, dtype=torch.float32) / 16)[order]
    return x, torch.nn.functional.one_hot(torch.tensor(table.target)[order], 10).float()


@functools.cache
def _photographs_table() -> tuple[Tensor, Tensor]:
    """Two photographs: each inner pixel's three colours from those of its eight neighbours, standardised together."""
    from sklearn.datasets import load_sample_images

    parts = []
    for image in load_sample_images().images:
        pixels = torch.tensor(image, dtype=torch.float32)
        pixels = (pixels - pixels.mean()) / pixels.std()
        height, width, _ = pixels.shape
        places = [(i, j) for i in (1, 0, 2) for j in (1, 0, 2)]  # the pixel itself first
        shifted = [pixels[i : i + height - 2, j : j + width - 2].reshape(-1, 3) for i, j in places]
        parts.append((torch.cat(shifted[1:], 1), shifted[0]))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


DATASETS = {"lesson": lesson, "thermometer": thermometer, "diabetes": diabetes, "digits": digits}
TABLES = {"diabetes": _diabetes_table, "digits": _digits_table, "photographs": _photographs_table}
