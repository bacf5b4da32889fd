"""Real data: the declared sizes, no zeros where there should be data, the same every time."""

import pytest
import torch

from gdcore.bench import datasets, run_cases
from gdcore.bench.datasets import DATASETS, SIZES, TABLES


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_the_declared_sizes_and_are_not_zeros(name):
    x, y = TABLES[name]()
    assert (len(x), x.shape[1], y.shape[1]) == SIZES[name] and len(x) == len(y)
    assert x.dtype is y.dtype is torch.float32 and x.is_contiguous() and y.is_contiguous()
    assert bool(x.isfinite().all()) and x.std() > 0.1 and y.std() > 0.1
    assert x.count_nonzero() > 0.4 * x.numel(), "a digit's paper is white, all else is data"


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_trained_on_has_the_declared_sizes(name):
    data = DATASETS[name]()
    n, k, m = run_cases.SIZES[name]
    assert data.x.shape == (n, k) and data.y.shape == (n, m) and data.lr > 0
    assert data.x.std() > 0.1 and data.y.std() > 0.1
    if data.start is not None:
        assert data.start[0].shape == (m, k) and data.start[1].shape == (m,)


def test_a_photograph_s_pixel_is_next_to_its_neighbours():
    x, y = TABLES["photographs"]()
    assert torch.equal(x[1:100, :3], y[:99]) and torch.equal(x[:99, 3:6], y[1:100]), "left and right of it"
    assert torch.corrcoef(torch.stack([x[:, 9], y[:, 0]]))[0, 1] > 0.9


def test_patients_are_standardised():
    for part in TABLES["diabetes"]():
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-6, rtol=0)
        torch.testing.assert_close(part.std(0), torch.ones(part.shape[1]))


def test_held_out_digits_are_not_trained_on():
    data = datasets.digits()
    assert len(data.x) + len(data.x_validation) == SIZES["digits"][0]
    assert torch.equal(data.y.sum(1), torch.ones(len(data.y))) and set(data.labels_validation.tolist()) == set(
        range(10)
    )


def test_the_line_is_the_lesson_s():
    data = datasets.lesson()
    assert data.x[:, 0].abs().max() <= 1 and bool((data.x[:, 1] == 1).all())
    found = torch.linalg.lstsq(data.x, data.y).solution.flatten()
    torch.testing.assert_close(found, torch.tensor([3.0, 2.0]), atol=0.2, rtol=0)
