"""What a run is asked to do, checked: nothing has been computed or written when one of these errors is raised."""

import math
import numbers
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.configs import accumulator_dtype
from ..validation import check_tensors
from . import group

METHODS = ("auto", "resident", "grid", "steps", "gram", "stream")
_MOST_SEED = 1 << 128  # Philox's keys


@dataclass(frozen=True, slots=True)
class Spec:
    """The run in numbers. Parameters are one matrix (R, M): K rows of coefficients, and the intercepts if there are any."""

    n: int  # rows of this process; 0 where batches come from an iterable
    k: int
    m: int
    dtype: torch.dtype  # that is calculated in
    steps: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int | None = None
    intercept: bool = False
    seed: int = 0
    record: bool = False

    def __post_init__(self) -> None:
        most = torch.finfo(self.dtype).max / 2  # twice a learning rate scales a gradient
        for name in ("lr", "momentum", "weight_decay"):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}, which is too large for a run in {self.dtype}")

    @property
    def parameter_rows(self) -> int:
        return self.k + self.intercept

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.n // self.batch_size) if self.batch_size else 1


def check_numbers(
    lr: Any, steps: Any, batch_size: Any, momentum: Any, weight_decay: Any, seed: Any, method: Any
) -> float:
    """lr as a float; raises for what cannot be."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr is a tensor of shape {tuple(lr.shape)}, it must have one element")
        lr = lr.item()
    for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}, it must be finite and not negative")
    for name, value, least in (("steps", steps, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value is None and name == "batch_size":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name} is {value}, it must be at least {least}")
    if seed >= _MOST_SEED:
        raise ValueError(f"seed is {seed}, it must be less than 2**128")
    if method not in METHODS:
        raise ValueError(f"{method!r} is not a method: it must be one of {', '.join(map(repr, METHODS))}")
    return float(lr)


def is_batches(x: Any) -> bool:
    """Whether x is an iterable of batches, and not data itself."""
    return not isinstance(x, (Tensor, np.ndarray)) and isinstance(x, Iterable)


def as_tensor(name: str, data: Any) -> Tensor:
    """A tensor over the same memory; a memory-mapped file is not read."""
    if isinstance(data, Tensor):
        return data.detach()
    if not isinstance(data, np.ndarray):
        raise TypeError(f"{name} must be a Tensor or a numpy array, not {type(data).__name__}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written
        try:
            return torch.from_numpy(np.asarray(data))
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{name} cannot be taken from numpy ({error}): pass a contiguous copy in native order"
            ) from error


def check_data(x: Tensor, y: Tensor) -> None:
    """x (N, K), y (N,) or (N, M). Of several processes one may have no rows."""
    check_tensors({"x": x, "y": y})
    if x.dim() != 2:
        hint = "; for a single feature pass x.unsqueeze(1)" if x.dim() == 1 else ""
        raise ValueError(f"x has shape {tuple(x.shape)}, it must be (rows, features){hint}")
    if y.dim() not in (1, 2) or y.shape[0] != x.shape[0]:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, it must be ({x.shape[0]},) or ({x.shape[0]}, outputs): a row for each of x's, "
            f"which has shape {tuple(x.shape)}"
        )
    if 0 in (*x.shape[1:], *y.shape[1:]) or (len(x) == 0 and not group.is_shared()):
        raise ValueError(f"there is nothing to learn from: x has shape {tuple(x.shape)}, y {tuple(y.shape)}")


def run_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """float64 if the data is, else float32."""
    return accumulator_dtype(torch.promote_types(x.dtype, y.dtype))


def starting_point(init: Any, intercept: bool, y: Tensor, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The first parameters, (R, M), in memory of their own."""
    m = 1 if y.dim() == 1 else y.shape[1]
    if init is None:
        return torch.zeros(k + intercept, m, dtype=dtype, device=device)
    coef, bias = init, None
    if _has_parts(init):
        if len(init) != 2:
            raise ValueError(f"init has {len(init)} parts, it must be coef or (coef, intercept)")
        coef, bias = init
    if bias is not None and not intercept:
        raise ValueError("init has an intercept, but none is fitted: pass intercept=True, or init=coef")
    start = torch.empty(k + intercept, m, dtype=dtype, device=device)
    parts = [("coef", coef, start[:k] if intercept else start, (k, *y.shape[1:]))]
    if intercept:
        parts.append(("intercept", bias, start[k:], tuple(y.shape[1:])))
    for name, value, place, shape in parts:
        if value is None:
            place.zero_()
            continue
        value = value.detach() if isinstance(value, Tensor) else _from_array(name, value)
        if value.is_complex() or value.layout is not torch.strided:
            raise TypeError(f"init's {name} must be a dense tensor of real numbers, not {value.dtype}, {value.layout}")
        if value.shape != shape:
            raise ValueError(f"init's {name} has shape {tuple(value.shape)}, it must be {shape}")
        place.copy_(value.reshape(place.shape))
    return start


def _has_parts(init: Any) -> bool:
    """Whether init is (coef, intercept), and not the numbers of coef, or lists of them."""
    if not isinstance(init, (tuple, list)) or all(isinstance(part, numbers.Real) for part in init):
        return False
    return isinstance(init, tuple) or not all(isinstance(part, list) for part in init)


def _from_array(name: str, value: Any) -> Tensor:
    """A copy of what numpy takes for an array of real numbers."""
    try:
        array = np.array(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"init's {name} must be an array of real numbers ({error})") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"init's {name} must be an array of real numbers, not {type(value).__name__} of {array.dtype}")
    return torch.from_numpy(array.astype(np.float64, order="C"))
