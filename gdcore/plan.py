"""Which path computes a given shape, what it moves and why: a pure function, so it can be tested and read without a GPU."""

import dataclasses
import functools

import torch

from .backends import Wanted
from .devices import CPU, Device
from .kernels import configs, resources
from .kernels.configs import Config, accumulator_dtype
from .tuned import Entry


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A decision and its predicted cost. Bytes and FLOPs are of forward and backward together, and predictions, not measurements."""

    backend: str
    path: str
    why: str
    device: Device
    n: int
    k: int
    m: int
    dtype: torch.dtype = torch.float32
    store_residual: bool = False  # E is written for a later product
    grad_in_forward: bool = False  # the pass that reads the data for the loss also forms dW and db
    config: Config | None = None
    tuned: Entry | None = None  # where config is the user's own, from device.tuned
    programs: int = 0  # persistent programs of a one-pass kernel
    input_config: Config | None = None  # of the product dX = E W
    weight_config: Config | None = None  # of the product dW = Eᵀ X
    split: int = 1  # parts of N in the product dW
    input_precision: str = "ieee"
    block_rows: int = 0  # rows a CPU worker holds in cache
    workers: int = (
        1  # CPU threads with rows of their own; 1: the caller alone, with torch's threads inside each product
    )
    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0
    workspace_bytes: int = 0

    @property
    def floor_seconds(self) -> float | None:
        """The larger of bytes over bandwidth and FLOPs over rate: no version runs much faster. None for a CPU."""
        if self.device.kind != "cuda":
            return None
        return max(self.memory_seconds, self.compute_seconds)

    @property
    def compiled(self) -> dict | None:
        """Registers, shared memory and occupancy of the compiled variant nearest to the main kernel; None where none is launched."""
        if self.config is None or self.path == "library":
            return None
        if self.tuned is not None:
            return self.tuned.compiled
        return resources.nearest(
            self.path, self.device.architecture, self.dtype, self.k, self.m, self.input_precision, self.store_residual
        )

    @property
    def memory_seconds(self) -> float:
        return (self.bytes_read + self.bytes_written) / self.device.bandwidth

    @property
    def compute_seconds(self) -> float:
        return self.flops / self.device.rate(self.dtype, self.input_precision)


@functools.lru_cache(maxsize=4096)
def plan_for(
    n: int,
    k: int,
    m: int,
    *,
    dtype: torch.dtype = torch.float32,
    target_dtype: torch.dtype | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008  (an immutable tuple)
    reduction: str = "mean",
    device: Device = CPU,
    contiguous: bool = True,
    has_bias: bool = False,
    input_precision: str = "ieee",
    may_be_stock: bool = True,
) -> Plan:
    """The plan for input (n, k), weight (m, k), target (n, m).

    Parameters
    ----------
    wanted : Wanted
        Which gradients are wanted.
    device : Device
        From gdcore.devices: `CPU`, `H200`, ... or `describe(tensor.device)`, which holds the user's table, if there is one.
    contiguous : bool
        Whether the rows of input and target lie one after another.
    input_precision : {"ieee", "tf32"}
        How float32 products are computed on CUDA.
    may_be_stock : bool
        Whether small shapes on a CPU may be left to stock.
    """
    plan = Plan(
        "cpu" if device.kind == "cpu" else "triton",
        "",
        "",
        device,
        n,
        k,
        m,
        dtype=dtype,
        input_precision=input_precision,
    )
    target_dtype = target_dtype or dtype
    if 0 in (n, k, m):
        return dataclasses.replace(plan, path="stock", why="there is nothing to compute")
    if device.kind == "cpu":
        plan = _cpu(plan, target_dtype, wanted, reduction, may_be_stock)
    else:
        plan = _cuda(plan, target_dtype, wanted, reduction, contiguous, has_bias)
    return _with_cost(plan, target_dtype, wanted, reduction, has_bias)


_STOCK_BYTES = (
    32 << 20
)  # of input and target: up to a last-level cache, stock's extra passes over them cost little on a CPU
_BLOCK_BYTES = 2 << 20  # a CPU block of X, Y and E: large enough for the calls, small enough for a cache
_LEAST_ROWS = 2048  # fewer rows make poor matrix products
_MOST_RESIDUAL_BYTES = 64 << 20  # of one block's residual, whatever M is


def stock_wins_on_cpu(numbers: int, dtype: torch.dtype, target_dtype: torch.dtype, reduction: str) -> bool:
    """Whether stock is the fastest correct path on a CPU for so many numbers of input and target.

    Never for half types: stock rounds the prediction before it subtracts the target.
    """
    if dtype is not target_dtype or (dtype is not torch.float32 and dtype is not torch.float64):
        return False
    return numbers * dtype.itemsize <= _STOCK_BYTES or reduction == "none"


def _cpu(plan: Plan, target_dtype: torch.dtype, wanted: Wanted, reduction: str, may_be_stock: bool) -> Plan:
    n, k, m, dtype = plan.n, plan.k, plan.m, plan.dtype
    size = accumulator_dtype(dtype).itemsize
    rows = max(_LEAST_ROWS, _BLOCK_BYTES // (size * max(k + 2 * m, 1)))
    rows = min(rows, max(64, _MOST_RESIDUAL_BYTES // (size * max(m, 1))))
    scalar = reduction != "none"
    later = wanted.input or wanted.target or (not scalar and any(wanted))
    # The fields below hold for the stock path too: inside torch.compile's operators the streaming code computes every shape.
    # A worker needs blocks enough to share evenly, and a gradient of its own, which together must not pass N x M.
    threads = plan.device.sms
    workers = threads if n >= 2 * threads * rows and threads * k <= n else 1
    plan = dataclasses.replace(plan, block_rows=rows, workers=workers, store_residual=later, grad_in_forward=scalar)
    if may_be_stock and stock_wins_on_cpu(n * (k + m), dtype, target_dtype, reduction):
        why = (
            "the data fits in the cache, where stock's further passes over it cost little"
            if scalar
            else 'reduction="none" makes an N x M result anyway'
        )
        return dataclasses.replace(plan, path="stock", why=why)
    why = "rows in cache-sized blocks: loss and weight gradient from one read of the data, no N x M temporary"
    return dataclasses.replace(
        plan, path="streaming", why=why + ", but the residual is kept for the product that needs it" * later
    )


def _cuda(
    plan: Plan, target_dtype: torch.dtype, wanted: Wanted, reduction: str, contiguous: bool, has_bias: bool
) -> Plan:
    n, k, m, dtype, device = plan.n, plan.k, plan.m, plan.dtype, plan.device
    scalar = reduction != "none"
    wide = target_dtype is not dtype or not scalar
    store_residual = wanted.input or wanted.target  # of a one-pass kernel

    def tuned(family: str) -> Entry | None:
        if device.tuned is None or wide or not contiguous:  # other launches than those that were tuned
            return None
        return device.tuned.find(family, dtype, n, k, m, plan.input_precision, store_residual)

    def product(name: str) -> Config:
        if (entry := tuned(name)) is not None:
            return entry.config
        return configs.product_config(
            name, device.architecture, dtype, n, k, m, input_precision=plan.input_precision, wide=wide
        )

    plan = dataclasses.replace(plan, input_config=product("backward_input") if wanted.input else None)
    family, why = _one_pass_family(k, m, contiguous) if scalar else (None, "")
    if family is not None:
        entry = tuned("one_pass_" + family)
        config = entry.config if entry else configs.one_pass_config(family, device.architecture, dtype, k, m)
        tiles = -(-n // configs.rows_per_tile(family, config, k, dtype))
        plan = dataclasses.replace(
            plan,
            path="one_pass_" + family,
            why=why,
            config=config,
            tuned=entry,
            store_residual=store_residual,
            grad_in_forward=True,
        )
        resident = plan.compiled["programs_per_sm"]  # a persistent grid is one wave
        return dataclasses.replace(plan, programs=max(1, min(tiles, device.sms * resident)))

    weight_config = product("backward_weight")
    plan = dataclasses.replace(
        plan,
        config=product("forward"),
        tuned=tuned("forward"),
        weight_config=weight_config,
        split=configs.default_split(n, k, m, weight_config, device.sms),
        store_residual=any(wanted),
    )
    size = dtype.itemsize
    arithmetic = 2 * n * k * m / device.rate(dtype, plan.input_precision)
    traffic = size * (n * k + 2 * n * m + m * k) / device.bandwidth
    # The library adds one operand in its epilogue: with half types a bias or a wider target would have to be rounded first.
    whole = target_dtype is dtype and not (has_bias and size == 2)
    if scalar and arithmetic > traffic and whole:
        why = "limited by arithmetic, where the library's products are the fastest: E from its epilogue, one fused pass sums it"
        return dataclasses.replace(plan, path="library", why=why, split=1)
    why = "loss and residual are formed in the product's epilogue, the prediction is never stored"
    if not scalar:
        why = 'reduction="none": the squares are formed in the product\'s epilogue'
    elif arithmetic > traffic:
        why += "; the library's product would round the residual's terms"
    return dataclasses.replace(plan, path="tiled", why=why)


def _one_pass_family(k: int, m: int, contiguous: bool) -> tuple[str | None, str]:
    """The one-pass kernel for a skinny shape, or None."""
    once = "loss and gradient from one read of the data: "
    if contiguous and k <= 16 and m <= 4 and k * m <= 32:
        return "rows", once + "a thread owns whole rows"
    if k <= 256 and m <= 4:
        return "vector", once + "a tile of rows, sums kept per element"
    if k <= 256 and m <= 16:
        return "dot", once + "both products from tiles in registers"
    return None, ""


LAST_PROGRAM_BYTES = (
    256 << 10
)  # of partial sums that one multiprocessor reads in about the time of a second launch, 2.4 µs


def updated_by_last_program(plan: Plan) -> bool:
    """Whether a one-pass step is a single launch: the partial sums are few enough for its last program to add."""
    numbers = plan.programs * (1 + plan.m + plan.m * plan.k)
    return numbers * accumulator_dtype(plan.dtype).itemsize <= LAST_PROGRAM_BYTES


def update_in_words(plan: Plan) -> str:
    """Where `linear_mse_sgd_` makes its update on this plan's path."""
    if plan.path.startswith("one_pass"):
        if updated_by_last_program(plan):
            return "in one launch: the last program adds the partial sums and updates"
        return "in two launches: the second adds the partial sums and updates"
    if plan.path == "tiled":
        if plan.split == 1:
            return "in the epilogue of the product that makes the gradient"
        return "by the launch that adds the parts of the gradient"
    if plan.path == "library":
        return "in the library's product, W - lr c EᵀX, or behind it where there is momentum or the rate is a tensor"
    return "by the tensor, once the gradient is complete"


def _with_cost(plan: Plan, target_dtype: torch.dtype, wanted: Wanted, reduction: str, has_bias: bool) -> Plan:
    """Bytes and FLOPs of forward and backward, each operand counted once per pass over it."""
    n, k, m = plan.n, plan.k, plan.m
    x, y, w = n * k * plan.dtype.itemsize, n * m * target_dtype.itemsize, (m * k + has_bias * m) * plan.dtype.itemsize
    accumulator = accumulator_dtype(plan.dtype).itemsize
    e = n * m * torch.promote_types(plan.dtype, target_dtype).itemsize
    gradients = wanted.weight * m * k + wanted.bias * m
    products = 1 + wanted.input + wanted.weight
    read, written, workspace = x + y + w, (e if reduction == "none" else 0), 0
    if plan.path == "stock":  # prediction; loss; its gradient; the products that the chain rule asks for
        read += e + (e + y) * any(wanted) + (x + e) * wanted.weight + (w + e) * wanted.input
        written += e + e * any(wanted)
        workspace = 2 * e
    else:
        if plan.store_residual:
            written += e
            workspace += e
        if plan.path == "library":  # addmm starts from a copy of the target, and E is read once more for the loss
            read, written = read + 2 * e, written + e
            if not plan.store_residual:
                written, workspace = written + e, workspace + e
            if has_bias:  # target - bias, made before the product
                read, written, workspace = read + e, written + e, workspace + e
        if wanted.weight and not plan.grad_in_forward:
            read += x + e
        if wanted.input:
            read += e + w
        if wanted.target:
            read += e
        partial = (1 + gradients) * accumulator
        if plan.path.startswith("one_pass") and plan.programs > 1:
            workspace += plan.programs * partial
            read, written = read + plan.programs * partial, written + plan.programs * partial
        if plan.path in ("tiled", "library") and wanted.weight and plan.split > 1:
            parts = plan.split * m * k * accumulator
            workspace, read, written = workspace + parts, read + parts, written + parts
        if plan.path == "streaming":
            workspace += plan.workers * accumulator * (min(plan.block_rows, n) * m + gradients)
    written += x * wanted.input + y * wanted.target + gradients * plan.dtype.itemsize
    return dataclasses.replace(
        plan,
        bytes_read=read,
        bytes_written=written,
        workspace_bytes=workspace,
        flops=products * 2 * n * k * m + 3 * n * m,
    )
