"""A plan in words."""

import torch
from torch import Tensor

from . import autocast, chunks, devices
from .backends import Wanted, backend_for, stock_may_win
from .cost import Alternative
from .kernels.configs import rows_per_tile
from .launches import bound_of
from .plan import Plan, plan_for, stock_wins_on_cuda
from .precision import float32_precision
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
    keep_residual: bool = False,
    may_be_stock: bool | None = None,
    small_to_stock: bool = True,
) -> Plan:
    """The plan for these tensors, on their own device unless another is given."""
    m, k = weight.shape
    is_large = input.is_cuda and device is None and target.numel() * input.dtype.itemsize >= chunks.LARGE_BYTES
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
        may_be_stock=stock_may_win() if may_be_stock is None else may_be_stock,
        keep_residual=keep_residual,
        free_bytes=chunks.free_bytes(input.device) if is_large else None,
        small_to_stock=small_to_stock and host_is_slower(input, target, target.numel() * k, device),
        input_precision=float32_precision() if backend == "triton" and input.dtype is torch.float32 else "ieee",
    )


def host_is_slower(input: Tensor, target: Tensor, products: int, device: devices.Device | None = None) -> bool:
    """Whether a GPU has less to do in this call than the host, and no graph is captured, which would spare the host.

    `device`: planned for that one, wherever the tensors are.
    """
    return (
        stock_wins_on_cuda(input.numel() + target.numel(), products, input.dtype)
        and float32_precision() != "tf32x3"  # which stock has not
        and (device is not None or (input.is_cuda and not torch.cuda.is_current_stream_capturing()))
    )


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
        columns = f" x {plan.block_columns} outputs" if plan.block_columns else ""
        lines.append(
            f"blocks     {min(plan.block_rows, plan.n)} rows{columns} a worker, "
            f"{plan.workers} worker{'s' * (plan.workers != 1)}"
        )
    if plan.chunk_rows:
        lines.append(f"chunks     {-(-plan.n // plan.chunk_rows)} of {plan.chunk_rows} rows")
    if plan.floor_seconds is not None:
        bound = "arithmetic" if plan.compute_seconds > plan.memory_seconds else "memory"
        lines.append(
            f"floor      {_time(plan.floor_seconds)}, bound by {bound} ({_si(plan.device.bandwidth)}B/s, "
            f"{_si(plan.device.rate(plan.dtype, plan.input_precision))}FLOP/s; predicted)"
        )
    if plan.compiled is not None:
        lines += _launch_words(plan)
    if plan.launches and backend != "reference":
        lines += _predicted_words(plan)
    return "\n".join(lines)


def _launch_words(plan: Plan) -> list[str]:
    config, made = plan.forward_config or plan.config, plan.compiled
    assert config is not None and made is not None
    sizes = {"rows": config.block_n, "features": config.block_k, "outputs": config.block_m}
    if plan.programs:
        sizes["rows"] = rows_per_tile(plan.path.removeprefix("one_pass_"), config, plan.k, plan.dtype)
    tile = " x ".join(f"{size} {name}" for name, size in sizes.items() if size)
    grid = f", {_count(plan.programs, 'program', 'programs')}" if plan.programs else ""
    origin, run = (", tuned on this machine", "") if plan.tuned else ("", ", not run")
    return [
        f"tile       {tile}, {config.num_warps} warps, {config.num_stages} stage{'s' * (config.num_stages != 1)}{grid}{origin}",
        f"compiled   {made['registers']} registers, {_si(made['shared_bytes'])}B shared memory, "
        f"{made['programs_per_sm']} programs a multiprocessor, occupancy {made['occupancy']:.0%} "
        f"(from compiled code for sm_{plan.device.architecture}{run}: {made['variant']})",
    ]


def _predicted_words(plan: Plan) -> list[str]:
    """The launches of the chosen path, and every other path beside it. A model's times rank paths that differ by a half."""
    seconds = plan.predicted_seconds
    assert seconds is not None
    bound = bound_of(plan.launches)
    count = len(plan.launches) * (-(-plan.n // plan.chunk_rows) if plan.chunk_rows else 1)
    lines = [f"predicted  {_time(seconds)}, most of it {_BOUNDS[bound]}, in {_count(count, 'launch', 'launches')}:"]
    for launch in plan.launches:
        waves = f", {_count(launch.tiles, 'tile', 'tiles')} in {launch.waves:.3g} waves" if launch.slots else ""
        lines.append(f"  {launch.what:<26} {_time(launch.seconds):>8}  {_BOUNDS[launch.bound]}{waves}")
    if plan.alternatives:
        lines.append("paths      predicted for forward and backward, the fastest first:")
    others = list(plan.alternatives)
    if plan.path == "chunked":  # comes after the choice between the others, in place of the one that was taken
        others = [o._replace(why_not=o.why_not or "keeps numbers of size N x M, which chunks do not") for o in others]
        others = sorted([*others, Alternative(plan.path, seconds, count, bound, "")], key=lambda o: o.seconds)
    for other in others:
        is_measured = plan.measured is not None and plan.path in plan.measured.seconds
        told = other.why_not or ("the fastest measured" if is_measured else "taken")
        launches = _count(other.launches, "launch", "launches")
        lines.append(f"  {other.path:<14} {_time(other.seconds):>8}  {launches:<11} {_BOUNDS[other.bound]}; {told}")
    if plan.measured:
        row = plan.measured
        times = ", ".join(f"{path} {_time(taken)}" for path, taken in sorted(row.times, key=lambda pair: pair[1]))
        lines.append(f"measured   {row.n} x {row.k} x {row.m} on {row.gpu}, {row.date}: {times}")
    return lines


_BOUNDS = {"memory": "memory", "arithmetic": "arithmetic", "L2": "traffic through L2", "launches": "launches"}


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _time(seconds: float) -> str:
    """573 µs, 4.64 ms."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _si(value: float) -> str:
    """1.23 G and the like, with a trailing space before the unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or prefix == "T":
            return f"{value:.3g} {prefix}"
        value /= 1000
    raise AssertionError
