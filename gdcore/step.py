"""One training step of a linear model in one call: forward, backward and SGD update, with no gradient in between."""

import numpy as np
import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import autocast
from .step_run import run_checked
from .step_small import small_step
from .update import Update
from .validation import check_buffer, check_linear_mse, check_rate, check_update, check_written


def linear_mse_sgd_(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffer: Tensor | None = None,
    bias_momentum_buffer: Tensor | None = None,
) -> Tensor:
    """One step of gradient descent on ``F.mse_loss(F.linear(input, weight, bias), target)``, in place; returns the loss.

    Parameters
    ----------
    input : Tensor (..., K)
        float64, float32, float16 or bfloat16, any strides; leading dimensions are flattened to N rows.
    weight : Tensor (M, K)
        Of input's dtype, any strides, whether it requires a gradient or not. Updated.
    target : Tensor (..., M)
        Of any floating dtype; must have exactly the shape of the prediction.
    bias : Tensor (M,), optional
        Of input's dtype. Updated.
    lr : float or Tensor
        The learning rate. A tensor has one element, float32 or float64, and lies on weight's device; on CUDA it is read
        there, without synchronisation, and its value is not checked.
    momentum, dampening, weight_decay : float
        As torch.optim.SGD's, with one parameter group for weight and bias: the decay is the bias's too.
    nesterov, maximize : bool
        As torch.optim.SGD's.
    momentum_buffer : Tensor (M, K), optional
        Needed if momentum is not 0, else ignored. Of weight's dtype, or float32 for half precision. Updated. Zeros to
        begin with; but with dampening stock's first step takes the gradient undamped: there, begin with the first
        gradient as the buffer to have the same numbers.
    bias_momentum_buffer : Tensor (M,), optional
        The same for bias.

    Returns
    -------
    Tensor
        The loss before the update, 0-d, detached, of stock's dtype: promote(input, target), float32 or wider in autocast.

    Raises
    ------
    ValueError
        lr, momentum or weight_decay that is negative, infinite or NaN; nesterov without momentum or with dampening; lr of
        more than one element; a buffer that is missing or of another shape; target of another shape than the prediction;
        two of the updated tensors in the same memory.
    RuntimeError
        Shapes that cannot be multiplied; dtypes or devices that differ; an updated tensor whose elements share memory
        (``expand``), or made in inference mode and updated outside of it.
    NotImplementedError (a RuntimeError)
        Integer, complex or sparse tensors.
    TypeError
        Arguments of other types.
        Nothing has been modified when an error is raised.

    Notes
    -----
    With E = X Wᵀ + b − Y and c = 2 / (N M), as torch.optim.SGD orders it (Sutskever et al., 2013, with its conventions):
    g = ±c EᵀX + λ W;  v ← μ v + (1 − τ) g;  W ← W − lr (g + μ v if nesterov, else v, else g), and so for b with Σₙ E.
    All of it in float32 (float64 for float64), rounded once as it is stored. No gradient is stored, no ``.grad`` is
    touched, nothing is recorded for autograd, and version counters move as for any operation in place.

    On CUDA a skinny shape (K <= 256, M <= 16) is one launch, or two where it takes very many partial sums, and moves
    N (K + M) numbers once; larger shapes update in the epilogue of the second product, and move the residual, N M
    numbers, twice. float16 operands with a float32 target, as float16 autocast makes them, take plain operations in
    float32 there. Results are bitwise the same from run to run. Half-precision
    weights that no update can move by half a last place stay as they are; gdcore.SGD has stochastic rounding and master
    weights for that.
    """
    options = (momentum, dampening, weight_decay, nesterov, maximize)
    buffers = (momentum_buffer, bias_momentum_buffer)
    if (loss := small_step(input, weight, target, bias, lr, options, buffers)) is not None:
        return loss
    tensors = (input, weight, target, bias, lr, *buffers)
    if has_torch_function(tensors):
        names = (
            "momentum",
            "dampening",
            "weight_decay",
            "nesterov",
            "maximize",
            "momentum_buffer",
            "bias_momentum_buffer",
        )
        rest = dict(zip(names, (*options, *buffers), strict=True))
        return handle_torch_function(linear_mse_sgd_, tensors, input, weight, target, bias, lr=lr, **rest)
    update = Update(*(float(n) if isinstance(n, np.number) else n for n in (lr, *options)))
    check_update(update)
    x, w, y, b = autocast.cast(input, weight, target, bias)
    check_linear_mse(x, w, y, b, "mean")
    check_rate(update.lr, weight)
    written = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    if momentum:
        for (name, tensor), buffer in zip(list(written.items()), buffers, strict=False):
            buffer_name = "momentum_buffer" if name == "weight" else "bias_momentum_buffer"
            check_buffer(buffer_name, buffer, name, tensor)
            written[buffer_name] = buffer
    check_written(written)
    with torch.no_grad():
        return run_checked(x, weight, y, bias, update, written)
