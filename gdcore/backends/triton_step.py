"""A whole SGD step on the Triton kernels: which of them is the plan's choice, and each path updates as late as it must."""

import torch
from torch import Tensor

from ..kernels.loss import loss as loss_of
from ..kernels.one_pass_step import one_pass_step
from ..kernels.step import Step
from ..plan import Plan, accumulator_dtype, updated_by_last_program
from ..update import Update, apply_
from . import triton_chunked, triton_library, triton_tiled
from .common import in_dtype, on_device_of, wide_product
from .triton_tall import launch_of

_counters: dict[tuple[int, int], Tensor] = {}  # (device, stream) -> one zero: launches of one stream do not overlap


def new_counter(device: torch.device) -> Tensor:
    """One int32 zero, which every step that is given it leaves zero. Steps that may run at the same time need one each."""
    return torch.zeros(1, dtype=torch.int32, device=device)


def _counter(device: torch.device) -> Tensor:
    """The current stream's counter. A CUDA graph gets its own: it may be replayed on another stream, beside anything."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return new_counter(device)
    key = device.index, torch.cuda.current_stream(device).cuda_stream
    if key not in _counters:
        _counters[key] = new_counter(device)
    return _counters[key]


def step(
    input: Tensor,  # (N, K)
    weight: Tensor,  # (M, K)
    target: Tensor,  # (N, M)
    bias: Tensor | None,  # (M,)
    update: Update,
    momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    plan: Plan,
    counter: Tensor | None = None,
) -> Tensor:
    """Loss before the update of weight, bias and buffers, as every backend's `step`; does not synchronise.

    `counter`: of new_counter, for a caller who captures many steps in one CUDA graph, where each would else set its own.
    """
    loss_dtype = torch.promote_types(torch.promote_types(input.dtype, target.dtype), weight.dtype)
    if not update.momentum:
        momentum_buffer = bias_momentum_buffer = None
    elif bias is None:
        bias_momentum_buffer = None
    with on_device_of(input):
        if plan.path == "chunked":
            buffers = momentum_buffer, bias_momentum_buffer
            return triton_chunked.step(input, weight, target, bias, update, *buffers, plan)
        # Weights wider than half-precision rows are read as they are where no tensor core multiplies them.
        mixed = weight.dtype is not input.dtype
        if plan.path in ("library", "stock") or (mixed and not _takes_wide_weights(plan, weight.dtype)):
            return _through_library(
                input, weight, target, bias, update, momentum_buffer, bias_momentum_buffer, loss_dtype
            )
        n, m = target.shape
        if not plan.path.startswith("one_pass"):
            residual = input.new_empty(n, m, dtype=loss_dtype)
            loss = triton_tiled.forward(
                input, weight, target, bias, plan, loss_scale=1 / (n * m), residual=residual, squares=None
            )
            if plan.path == "epilogue" and _fold_(update, weight, momentum_buffer, residual, input, n * m):
                _update_bias(update, bias, bias_momentum_buffer, residual, n * m)
                return in_dtype(loss, loss_dtype)
        scale = (-2 if update.maximize else 2) / (n * m)
        v, bias_v = _laid_out_as(weight, momentum_buffer), _laid_out_as(bias, bias_momentum_buffer)
        lr, mu, tau, decay, nesterov, _ = update
        what = Step(weight, bias, v, bias_v, lr, mu, tau, decay, nesterov)
        if plan.path.startswith("one_pass"):
            one_launch = plan.path != "one_pass_tall" and plan.programs > 1 and updated_by_last_program(plan)
            loss = input.new_empty((), dtype=loss_dtype)
            config, programs = launch_of(plan, input, target)
            one_pass_step(
                plan.path.removeprefix("one_pass_"),
                input,
                target,
                loss,
                what,
                config=config,
                programs=programs,
                loss_scale=1 / (n * m),
                grad_scale=scale,
                counter=None if not one_launch else _counter(input.device) if counter is None else counter,
                input_precision=plan.input_precision,
            )
        else:
            triton_tiled.update(residual, input, what, plan, scale=scale)
        _written_by_kernels(weight, bias, momentum_buffer, bias_momentum_buffer)
        if v is not momentum_buffer:
            momentum_buffer.copy_(v)
        if bias_v is not bias_momentum_buffer:
            bias_momentum_buffer.copy_(bias_v)
        return in_dtype(loss, loss_dtype)


def _takes_wide_weights(plan: Plan, dtype: torch.dtype) -> bool:
    return plan.path in ("one_pass_rows", "one_pass_vector") and dtype is accumulator_dtype(plan.dtype)


def _laid_out_as(tensor: Tensor | None, buffer: Tensor | None) -> Tensor | None:
    """The buffer, or a copy of it with the tensor's strides: kernels address both by the same offsets."""
    if buffer is None or tensor is None or buffer.stride() == tensor.stride():
        return buffer
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=buffer.dtype, device=buffer.device)
    return copy.copy_(buffer)


def _written_by_kernels(*tensors: Tensor | None) -> None:
    """Tell autograd, which sees only what PyTorch's own operations write."""
    torch.autograd.graph.increment_version([t for t in tensors if t is not None and not t.is_inference()])


def _through_library(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    update: Update,
    momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    loss_dtype: torch.dtype,
) -> Tensor:
    """E from the library's product, its loss in one pass, and the update in the second product or behind it.

    Also where weight and bias are wider or narrower than the product's operands: autocast, or a float64 target.
    """
    n, m = target.shape
    wide = accumulator_dtype(input.dtype)
    operand = in_dtype(weight, input.dtype)
    offset = None if bias is None else in_dtype(bias, input.dtype)
    residual, loss = _residual_and_loss(input, operand, target, offset, n * m)
    if not _fold_(update, weight, momentum_buffer, residual, input, n * m):
        grad_weight = wide_product(residual.t(), in_dtype(input, residual.dtype), wide).mul_(2 / (n * m))
        apply_(update, weight, grad_weight, momentum_buffer)
    _update_bias(update, bias, bias_momentum_buffer, residual, n * m)
    return in_dtype(loss, loss_dtype)


def _update_bias(update: Update, bias: Tensor | None, buffer: Tensor | None, residual: Tensor, count: int) -> None:
    if bias is not None:
        gradient = triton_library.bias_gradient(residual, None, 2 / count, accumulator_dtype(residual.dtype))
        apply_(update, bias, gradient, buffer)


def _residual_and_loss(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """What is added in the library's epilogue has its operands' dtype; with half types anything more is formed wide."""
    wide = accumulator_dtype(input.dtype)
    if input.dtype is wide:
        start = in_dtype(target, wide)
        residual = torch.addmm(start if bias is None else start - bias, input, weight.t(), beta=-1)
    elif target.dtype is input.dtype and bias is None:
        residual = torch.addmm(target, input, weight.t(), beta=-1)
    else:
        residual = wide_product(input, weight.t(), wide).sub_(target)
        if bias is not None:
            residual.add_(bias)
    return residual, loss_of(residual, loss_scale=1 / count)


def _fold_(
    update: Update, weight: Tensor, momentum_buffer: Tensor | None, residual: Tensor, input: Tensor, count: int
) -> bool:
    """The update inside the product EᵀX, where it has that form; says whether it was made."""
    lr, mu, tau, decay, nesterov, maximize = update
    if not weight.dtype is residual.dtype is input.dtype or nesterov:
        return False
    scale = (-2 if maximize else 2) / count
    if momentum_buffer is None:
        # With a factor of 0 the library leaves the product out, also if it is NaN.
        if isinstance(lr, Tensor) or lr == 0:
            return False
        weight.addmm_(residual.t(), input, beta=1 - lr * decay, alpha=-lr * scale)
        return True
    if tau == 1 or weight.dtype.itemsize == 2:  # a half momentum would be rounded before it is used
        return False
    momentum_buffer.addmm_(residual.t(), input, beta=mu, alpha=(1 - tau) * scale)
    if decay:
        momentum_buffer.add_(weight, alpha=(1 - tau) * decay)
    if isinstance(lr, Tensor):
        weight.addcmul_(momentum_buffer, lr.to(weight.dtype), value=-1)
    else:
        weight.sub_(momentum_buffer, alpha=lr)
    return True
