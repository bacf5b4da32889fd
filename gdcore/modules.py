"""nn.Module around linear_mse."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .functional import linear_mse
from .validation import REDUCTIONS


class LinearMSELoss(nn.Module):
    """A linear layer with its mean squared error: ``forward(input, target)`` is the loss, ``predict(input)`` the prediction.

    Parameters
    ----------
    in_features, out_features : int
        K and M.
    bias : bool
    reduction : {"mean", "sum", "none"}
    device, dtype
        Of the parameters.

    Attributes
    ----------
    weight : Parameter (M, K)
    bias : Parameter (M,) or None
        Initialised as nn.Linear's; the state_dict's keys are nn.Linear's too, so either loads the other's.

    Raises
    ------
    ValueError
        Unknown reduction.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"{reduction!r} is not a valid value for reduction: it must be one of 'mean', 'sum', 'none'"
            )
        self.in_features, self.out_features, self.reduction = in_features, out_features, reduction
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/√K, as nn.Linear."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, reduction: str = "mean") -> "LinearMSELoss":
        """A loss that shares its parameters with ``linear``: training one trains the other."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        head = cls(linear.in_features, linear.out_features, linear.bias is not None, reduction=reduction, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head.train(linear.training)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input (..., K) against target (..., M)."""
        return linear_mse(input, self.weight, target, self.bias, reduction=self.reduction)

    def predict(self, input: Tensor) -> Tensor:
        """input @ weight.T + bias, of shape (..., M)."""
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        has_bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}, reduction={self.reduction!r}"
