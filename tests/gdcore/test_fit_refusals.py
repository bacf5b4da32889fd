"""What `fit` refuses: the type of the error, that it names the argument, and that nothing was computed or written before."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gdcore
from fit_support import problem
from gdcore.training import Engine

X, Y = torch.randn(20, 3), torch.randn(20)
NUMBERS = {"lr": 0.1, "steps": 3}
NOT_FINITE = (float("nan"), float("inf"), -float("inf"))

REFUSED = {
    **{f"lr = {v}": ({"lr": v}, ValueError, "^lr is .* finite and not negative") for v in (*NOT_FINITE, -0.1)},
    **{f"momentum = {v}": ({"momentum": v}, ValueError, "^momentum is .* finite") for v in (*NOT_FINITE, -0.1)},
    **{f"weight_decay = {v}": ({"weight_decay": v}, ValueError, "^weight_decay is") for v in (*NOT_FINITE, -0.1)},
    **{f"{name} = '1'": ({name: "1"}, TypeError, f"^{name} must be a number, not str") for name in ("lr", "momentum")},
    **{f"{name} = True": ({name: True}, TypeError, f"^{name} must be a number") for name in ("lr", "weight_decay")},
    **{f"{name} = None": ({name: None}, TypeError, f"^{name} must be") for name in ("lr", "momentum", "steps", "seed")},
    "lr = 1e300 in float32": ({"lr": 1e300}, ValueError, "^lr is 1e\\+300, .* too large for .*float32"),
    "lr = 2e38 in float32": ({"lr": 2e38}, ValueError, "^lr is 2e\\+38, .* too large"),
    "weight_decay = 1e39 in float32": ({"weight_decay": 1e39}, ValueError, "^weight_decay is 1e\\+39, .* too large"),
    "momentum = 1e39 in float32": ({"momentum": 1e39}, ValueError, "^momentum is 1e\\+39, .* too large"),
    "lr of two elements": ({"lr": torch.ones(2)}, ValueError, "^lr is a tensor of shape \\(2,\\).* one element"),
    "lr a tensor of NaN": ({"lr": torch.tensor(torch.nan)}, ValueError, "^lr is nan"),
    "lr a complex tensor": ({"lr": torch.tensor(1j)}, TypeError, "^lr must be a number, not complex"),
    "steps = 0": ({"steps": 0}, ValueError, "^steps is 0, it must be at least 1"),
    "steps = -3": ({"steps": -3}, ValueError, "^steps is -3, it must be at least 1"),
    "steps = 2.0": ({"steps": 2.0}, TypeError, "^steps must be an int, not float"),
    "steps = True": ({"steps": True}, TypeError, "^steps must be an int, not bool"),
    "batch_size = 0": ({"batch_size": 0}, ValueError, "^batch_size is 0, it must be at least 1"),
    "batch_size = 21 of 20 rows": ({"batch_size": 21}, ValueError, "^batch_size is 21, .* at most .* rows, 20"),
    "batch_size = 2.5": ({"batch_size": 2.5}, TypeError, "^batch_size must be an int"),
    "seed = -1": ({"seed": -1}, ValueError, "^seed is -1, it must be at least 0"),
    "seed = 2**128": ({"seed": 1 << 128}, ValueError, "^seed is .* less than 2\\*\\*128"),
    "seed = 0.5": ({"seed": 0.5}, TypeError, "^seed must be an int"),
    "method = 'newton'": ({"method": "newton"}, ValueError, "^'newton' is not a method.*'auto'.*'gram'"),
    "method = None": ({"method": None}, ValueError, "^None is not a method"),
    "method = 'grid' on a CPU": ({"method": "grid"}, ValueError, "^method='grid' cannot .* GPUs"),
    "method = 'gram' with mini-batches": (
        {"method": "gram", "batch_size": 5},
        ValueError,
        "^method='gram'.*batch_size",
    ),
    "x a number": ({"x": 3}, TypeError, "^x must be a Tensor or a numpy array, not int"),
    "x None": ({"x": None}, TypeError, "^x must be a Tensor or a numpy array, not NoneType"),
    "y a list": ({"y": [1.0] * 20}, TypeError, "^y must be a Tensor or a numpy array, not list"),
    "y missing": ({"y": None}, TypeError, "^y is missing"),
    "x of one dimension": ({"x": X[:, 0]}, ValueError, "^x has shape \\(20,\\).*x.unsqueeze\\(1\\)"),
    "x of three dimensions": ({"x": X[None]}, ValueError, "^x has shape \\(1, 20, 3\\)"),
    "y too short": ({"y": Y[:19]}, ValueError, "^y has shape \\(19,\\), it must be \\(20,\\)"),
    "y of three dimensions": ({"y": Y[:, None, None]}, ValueError, "^y has shape \\(20, 1, 1\\)"),
    "y of no dimension": ({"y": Y[0]}, ValueError, "^y has shape \\(\\)"),
    "no rows": ({"x": X[:0], "y": Y[:0]}, ValueError, "^there is nothing to learn from: x has shape \\(0, 3\\)"),
    "no features": ({"x": X[:, :0]}, ValueError, "^there is nothing to learn from: x has shape \\(20, 0\\)"),
    "no outputs": ({"y": Y[:, None][:, :0]}, ValueError, "^there is nothing to learn from"),
    "x of whole numbers": ({"x": X.int()}, NotImplementedError, "x must have dtype float64"),
    "y of whole numbers": ({"y": Y.long()}, NotImplementedError, "y must have dtype float64"),
    "x complex": ({"x": X.to(torch.complex64)}, NotImplementedError, "x must have dtype float64"),
    "x sparse": ({"x": X.to_sparse()}, NotImplementedError, "^x has layout torch.sparse_coo"),
    "x an array of whole numbers": ({"x": np.ones((20, 3), int)}, NotImplementedError, "x must have dtype float64"),
    "x an array of objects": ({"x": np.full((20, 3), None)}, TypeError, "^x cannot be taken from numpy"),
    "x in another byte order": ({"x": np.ones((20, 3), ">f4")}, ValueError, "^x cannot be taken from numpy"),
    "y an array backwards": ({"y": np.ones(20, "f4")[::-1]}, ValueError, "^y cannot be taken from numpy"),
    "x and y on two devices": ({"y": Y.to("meta")}, RuntimeError, "same device.* x is on cpu and y is on meta"),
    "init too short": ({"init": torch.zeros(2)}, ValueError, "^init's coef has shape \\(2,\\), it must be \\(3,\\)"),
    "init of two dimensions": ({"init": torch.zeros(3, 1)}, ValueError, "^init's coef has shape \\(3, 1\\)"),
    "init for two outputs": (
        {"init": torch.zeros(3), "y": torch.zeros(20, 2)},
        ValueError,
        "^init's coef has shape \\(3,\\), it must be \\(3, 2\\)",
    ),
    "init of three parts": ({"init": (X[0], Y[0], Y[0])}, ValueError, "^init has 3 parts"),
    "init with an intercept that is not fitted": (
        {"init": (X[0], Y[0])},
        ValueError,
        "^init has an intercept, but none",
    ),
    "init with a wrong intercept": (
        {"init": (X[0], Y[:1]), "intercept": True},
        ValueError,
        "^init's intercept has shape \\(1,\\), it must be \\(\\)",
    ),
    "init complex": ({"init": torch.zeros(3) * 1j}, TypeError, "^init's coef must be a dense tensor of real numbers"),
    "init sparse": ({"init": torch.zeros(3).to_sparse()}, TypeError, "^init's coef must be a dense tensor"),
    "init a complex array": ({"init": np.zeros(3) * 1j}, TypeError, "^init's coef must be an array of real numbers"),
    "init a word": ({"init": "zeros"}, TypeError, "^init's coef must be an array of real numbers"),
    "init an object": ({"init": object()}, TypeError, "^init's coef must be an array of real numbers"),
    "init ragged": ({"init": [[1.0], [2.0, 3.0]]}, TypeError, "^init's coef must be an array of real numbers"),
    "batches and y": ({"x": [(X, Y)]}, ValueError, "^with an iterable of batches there is no y"),
    "batches and batch_size": ({"x": [(X, Y)], "y": None, "batch_size": 5}, ValueError, "no batch_size"),
    "batches and suggest_lr": ({"x": [(X, Y)], "y": None, "suggest_lr": True}, ValueError, "no suggest_lr"),
    "batches and method = 'gram'": ({"x": [(X, Y)], "y": None, "method": "gram"}, ValueError, "no iterable"),
    "batches and method = 'resident'": (
        {"x": [(X, Y)], "y": None, "method": "resident"},
        ValueError,
        "^method='resident' cannot .* iterable of batches",
    ),
    "no batches": ({"x": [], "y": None}, ValueError, "^the iterable of batches is empty"),
    "batches that are tensors": ({"x": [X, Y], "y": None}, TypeError, "batch 0 is of type Tensor"),
    "batches of three things": ({"x": [(X, Y, Y)], "y": None}, TypeError, "batch 0 is 3 things"),
    "a word for batches": ({"x": "xy", "y": None}, TypeError, "batch 0 is of type str"),
    "batches of lists": (
        {"x": [([1.0], [2.0])], "y": None},
        TypeError,
        "^x must be a Tensor or a numpy array, not list",
    ),
    "a batch of two lengths": ({"x": [(X, Y[:5])], "y": None}, ValueError, "^y has shape \\(5,\\)"),
    "an empty batch": ({"x": [(X[:0], Y[:0])], "y": None}, ValueError, "^there is nothing to learn from"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_computed(name, monkeypatch):
    def started(self, *_):
        raise AssertionError("a run was started")

    monkeypatch.setattr(Engine, "__init__", started)
    more, error, message = REFUSED[name]
    arguments = {"x": X, "y": Y, **NUMBERS, **more}
    tensors = [t for t in (arguments["x"], arguments["y"], arguments.get("init")) if isinstance(t, torch.Tensor)]
    tensors = [t for t in tensors if t.layout is torch.strided and t.device.type != "meta"]
    before = [(t.clone(), t._version) for t in tensors]
    with pytest.raises(error, match=message) as caught:
        gdcore.fit(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert type(caught.value) is error
    assert all(torch.equal(t, old) and t._version == version for t, (old, version) in zip(tensors, before, strict=True))


def test_what_is_just_allowed_is_not_refused():
    x, y = problem(20, 3)
    gdcore.fit(x, y, lr=0, steps=1, batch_size=20, momentum=0, weight_decay=0, seed=(1 << 128) - 1)
    gdcore.fit(x, y, lr=1e38, steps=1, batch_size=1, momentum=1e38, weight_decay=1e38, seed=0)
    gdcore.fit(x.double(), y, lr=1e300, steps=1)


def test_data_is_only_named():
    with pytest.raises(TypeError):
        gdcore.fit(X, Y, 0.1, 3)
    with pytest.raises(TypeError, match="lr"):
        gdcore.fit(X, Y, steps=3)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.lists(st.integers(0, 4), max_size=4),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_shapes_are_learnt_from_or_refused_by_name(x_shape, y_shape, batch_size):
    x, y = torch.randn(x_shape), torch.randn(y_shape)
    fitting = len(x_shape) == 2 and len(y_shape) in (1, 2) and y_shape[0] == x_shape[0] and 0 not in x_shape + y_shape
    if fitting and (batch_size is None or batch_size <= x_shape[0]):
        result = gdcore.fit(x, y, lr=0.01, steps=2, batch_size=batch_size, intercept=True)
        assert result.coef.shape == (x_shape[1], *y_shape[1:])
        assert result.intercept.shape == tuple(y_shape[1:])
        return
    with pytest.raises(ValueError, match=r"shape|batch_size") as caught:
        gdcore.fit(x, y, lr=0.01, steps=2, batch_size=batch_size)
    said = str(caught.value)
    assert str(tuple(x_shape)) in said or str(tuple(y_shape)) in said or said.startswith("batch_size")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(0, 3), max_size=2), st.booleans())
def test_shapes_of_the_start_are_taken_or_refused_by_name(coef_shape, intercept_shape, single):
    x, y = torch.randn(6, 3), torch.randn(6) if single else torch.randn(6, 2)
    init = (torch.randn(coef_shape), torch.randn(intercept_shape))
    wanted = ((3,), ()) if single else ((3, 2), (2,))
    if (tuple(coef_shape), tuple(intercept_shape)) == wanted:
        result = gdcore.fit(x, y, lr=0.0, steps=1, init=init, intercept=True)
        assert torch.equal(result.coef, init[0])
        assert torch.equal(result.intercept, init[1])
        return
    with pytest.raises(ValueError, match=r"^init's (coef|intercept) has shape"):
        gdcore.fit(x, y, lr=0.0, steps=1, init=init, intercept=True)
