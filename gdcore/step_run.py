"""Who computes a checked step of linear_mse_sgd_, and that choice as a torch.library operator, for torch.compile."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import autocast
from .backends import Wanted, backend_for, load, reference
from .explanation import plan_of
from .guards import PLAIN
from .overlap import any_shared
from .plan import Plan, stock_wins_on_cpu
from .update import Update
from .validation import check_rate, check_written, has_memory


def run_checked(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, update: Update, written: dict[str, Tensor]
) -> Tensor:
    """The loss before the update. Weight and bias may be wider than input: autocast casts what multiplies."""
    buffers = written.get("momentum_buffer"), written.get("bias_momentum_buffer")
    given = (input, target, *written.values())
    if torch._C._are_functorch_transforms_active() or any(type(tensor) not in PLAIN for tensor in given):
        backend = "reference"
    elif torch.compiler.is_compiling():
        numbers = input.numel() + target.numel()
        if not (input.is_cpu and stock_wins_on_cpu(numbers, input.dtype, target.dtype, "mean")):
            rate = update.lr if isinstance(update.lr, Tensor) else None
            number = 0.0 if rate is not None else update.lr
            return _operator(input, weight, target, bias, *buffers, rate, number, *update[1:])
        backend = "reference"
    else:
        backend, update = _backend(input, target, written), _with_own_rate(update, written)
    return _run(backend, input, weight, target, bias, update, *buffers)


def _with_own_rate(update: Update, written: dict[str, Tensor]) -> Update:
    """The update with a rate that no update changes: a number on the CPU, a copy where it lies in an updated tensor."""
    lr = update.lr
    if not isinstance(lr, Tensor) or not has_memory(lr):
        return update
    if lr.is_cpu:
        return update._replace(lr=lr.item())
    return update._replace(lr=lr.clone()) if any_shared((lr,), [*written.values()]) else update


def _backend(input: Tensor, target: Tensor, written: dict[str, Tensor]) -> str:
    """Who computes; "reference" are plain operations, for what is empty, or in a mode or of a kind that kernels do not know."""
    backend = backend_for(input.device)
    stock = (
        backend == "reference"
        # An unscaled residual of a wider target may pass 65504, and the products of float16 operands take it as float16.
        or (backend == "triton" and input.dtype is torch.float16 and target.dtype in (torch.float32, torch.bfloat16))
        or input.numel() == 0
        or target.numel() == 0
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(tensor.is_neg() for tensor in (input, target, *written.values()))
        # A program may be reading where another one writes: plain operations are done with a tensor before they change it.
        or (has_memory(input) and any_shared((input, target), [*written.values()]))
    )
    return "reference" if stock else backend


def step_plan(backend: str, input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Plan:
    """The plan of a step on matrices. Small ones too have it from the kernels: a step is few launches, and stock's are many."""
    return plan_of(backend, input, weight, target, bias, "mean", Wanted(bias=bias is not None), small_to_stock=False)


def _run(
    backend: str,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    update: Update,
    momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    **options: Tensor,
) -> Tensor:
    if target.dtype is torch.float64 and input.dtype is not torch.float64:  # stock's loss is float64, so all of it is
        input = input.double()
    if isinstance(update.lr, Tensor):
        update = update._replace(lr=update.lr.reshape(()))
    x, y = (t if t.dim() == 2 else t.reshape(-1, t.shape[-1]) for t in (input, target))
    plan = None
    if backend != "reference":
        plan = step_plan(backend, x, weight, y, bias)
    with autocast.off(input):
        step = reference.step if backend == "reference" else load(backend).step
        return step(x, weight, y, bias, update, momentum_buffer, bias_momentum_buffer, plan, **options)


@torch.library.custom_op(
    "gdcore::linear_mse_sgd_", mutates_args=("weight", "bias", "momentum_buffer", "bias_momentum_buffer")
)
def _operator(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    rate: Tensor | None,  # the learning rate, or None
    lr: float,  # which it is then
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> Tensor:
    """linear_mse_sgd_, checked, for torch.compile."""
    update = Update(lr if rate is None else rate, momentum, dampening, weight_decay, nesterov, maximize)
    check_rate(update.lr, weight)  # while a graph is traced, tensors have neither values nor addresses
    named = {
        "weight": weight,
        "bias": bias,
        "momentum_buffer": momentum_buffer,
        "bias_momentum_buffer": bias_momentum_buffer,
    }
    written = {name: tensor for name, tensor in named.items() if tensor is not None}
    check_written(written)
    backend, update = _backend(input, target, written), _with_own_rate(update, written)
    # Compiled graphs keep no tensor of ours alive between calls, so the stream's own counter is not for them.
    options = {"counter": load(backend).new_counter(input.device)} if backend == "triton" else {}
    with torch.no_grad():
        return _run(backend, input, weight, target, bias, update, momentum_buffer, bias_momentum_buffer, **options)


@_operator.register_fake
def _(input, weight, target, bias, momentum_buffer, bias_momentum_buffer, rate, lr, momentum, dampening, decay, n, m):
    return target.new_empty((), dtype=torch.promote_types(input.dtype, target.dtype))
