"""A plan in words."""

import torch
from torch import Tensor

from . import autocast, devices
from .backends import Wanted, backend_for, stock_may_win
from .kernels.configs import rows_per_tile
from .plan import Plan, plan_for
from .validation import check_linear_mse


class Explanation(str):
    """Text that shows itself as text, with the plan it tells as `.plan`."""

    plan: Plan

    def __repr__(self) -> str:
        return str(self)


def explain(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    reduction: str = "mean",
    device: str | None = None,
) -> Explanation:
    """How ``linear_mse`` computes these arguments: path, why, bytes, FLOPs, floor.

    Parameters
    ----------
    input, weight, target, bias, reduction
        As for linear_mse. Only shapes, dtypes, strides, devices and requires_grad are looked at; "meta" tensors will do.
    device : {"A100", "H200", "B200"}, optional
        Plan for this GPU in place of the tensors' device; none is needed.

    Returns
    -------
    Explanation
        A str, with the attribute ``plan``. All figures in it are predictions, none is measured.

    Raises
    ------
    ValueError
        Unknown device; otherwise as linear_mse.
    """
    input, weight, target, bias = autocast.cast(input, weight, target, bias)
    check_linear_mse(input, weight, target, bias, reduction)
    known = {d.name: d for d in devices.KNOWN.values()}
    if device is not None and device not in known:
        raise ValueError(
            f"{device!r} is not a device that can be planned for: it must be one of {', '.join(map(repr, known))}"
        )
    wanted = Wanted(
        input.requires_grad, weight.requires_grad, target.requires_grad, bias is not None and bias.requires_grad
    )
    backend = "triton" if device or input.device.type == "meta" else backend_for(input.device)
    on = known[device or "H200"] if device or input.device.type == "meta" else None
    plan = plan_of(backend, input, weight, target, bias, reduction, wanted, on)
    text = Explanation(_words(plan, wanted, reduction, backend))
    text.plan = plan
    return text


def plan_of(
    backend: str,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    wanted: Wanted,
    device: devices.Device | None = None,
) -> Plan:
    """The plan for these tensors, on their own device unless another is given."""
    m, k = weight.shape
    return plan_for(
        target.numel() // m if m else 0,
        k,
        m,
        dtype=input.dtype,
        target_dtype=target.dtype,
        wanted=wanted,
        reduction=reduction,
        device=device or devices.describe(input.device, interpreted=backend == "triton"),
        contiguous=input.is_contiguous() and target.is_contiguous(),
        has_bias=bias is not None,
        may_be_stock=stock_may_win(),
        input_precision=float32_precision() if backend == "triton" and input.dtype is torch.float32 else "ieee",
    )


def float32_precision() -> str:
    """How torch is set to multiply float32 on CUDA: "tf32" or "ieee"."""
    found = _PRECISION("cuda", "matmul") if _PRECISION else torch.backends.cuda.matmul.fp32_precision
    return "tf32" if found == "tf32" else "ieee"


# Every call on CUDA asks; torch's own property gets here through ten calls of Python.
_PRECISION = getattr(torch._C, "_get_fp32_precision_getter", None)


def _words(plan: Plan, wanted: Wanted, reduction: str, backend: str) -> str:
    gradients = [name for name, is_wanted in wanted._asdict().items() if is_wanted]
    lines = [
        f"linear_mse: input {plan.n} x {plan.k}, weight {plan.m} x {plan.k}, target {plan.n} x {plan.m}, "
        f"{str(plan.dtype).removeprefix('torch.')}, reduction={reduction!r}",
        f"gradients  {', '.join(gradients) or 'none: the loss alone'}",
        f"path       {plan.path} on {plan.device.name}"
        if backend != "reference"
        else "path       stock PyTorch (the reference backend)",
        f"why        {plan.why}",
        f"moves      {_si(plan.bytes_read)}B read, {_si(plan.bytes_written)}B written, {_si(plan.flops)}FLOP "
        "(forward and backward, predicted)",
        f"memory     {_si(plan.workspace_bytes)}B beside arguments and gradients (predicted)",
    ]
    if plan.path == "streaming":
        lines.append(f"blocks     {min(plan.block_rows, plan.n)} rows a worker, {plan.device.sms} workers")
    if plan.floor_seconds is not None:
        bound = "arithmetic" if plan.compute_seconds > plan.memory_seconds else "memory"
        lines.append(
            f"floor      {plan.floor_seconds * 1e6:.3g} µs, bound by {bound} ({_si(plan.device.bandwidth)}B/s, "
            f"{_si(plan.device.rate(plan.dtype, plan.input_precision))}FLOP/s; predicted)"
        )
    if plan.compiled is not None:
        lines += _launch_words(plan)
    return "\n".join(lines)


def _launch_words(plan: Plan) -> list[str]:
    config, made = plan.config, plan.compiled
    assert config is not None and made is not None
    sizes = {"rows": config.block_n, "features": config.block_k, "outputs": config.block_m}
    if plan.programs:
        sizes["rows"] = rows_per_tile(plan.path.removeprefix("one_pass_"), config, plan.k, plan.dtype)
    tile = " x ".join(f"{size} {name}" for name, size in sizes.items() if size)
    grid = f", {plan.programs} programs" if plan.programs else ""
    origin, run = (", tuned on this machine", "") if plan.tuned else ("", ", not run")
    return [
        f"tile       {tile}, {config.num_warps} warps, {config.num_stages} stage{'s' * (config.num_stages != 1)}{grid}{origin}",
        f"compiled   {made['registers']} registers, {_si(made['shared_bytes'])}B shared memory, "
        f"{made['programs_per_sm']} programs a multiprocessor, occupancy {made['occupancy']:.0%} "
        f"(from compiled code for sm_{plan.device.architecture}{run}: {made['variant']})",
    ]


def _si(value: float) -> str:
    """1.23 G and the like, with a trailing space before the unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or prefix == "T":
            return f"{value:.3g} {prefix}"
        value /= 1000
    raise AssertionError
