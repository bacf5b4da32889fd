"""Which path computes a given shape, what it moves and why: a pure function, so it can be tested and read without a GPU."""

import dataclasses
import functools

import torch

from . import chunks, cost, paths
from .backends import Wanted
from .cost import Alternative, Asked
from .devices import CPU, Device
from .kernels import configs, resources
from .kernels.configs import Config, accumulator_dtype
from .launches import Launch, predicted_seconds
from .measured import Row
from .rates import kind_of
from .tuned import Entry
from .workspace import workspace_of


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
    all_in_forward: bool = False  # it forms every wanted gradient, and the backward pass scales them in place
    chunk_rows: int = 0  # rows of which E is formed at a time on CUDA; 0: of all
    config: Config | None = None
    tuned: Entry | None = None  # where config is the user's own, from device.tuned
    programs: int = 0  # persistent programs of a one-pass kernel
    input_config: Config | None = None  # of the product dX = E W
    weight_config: Config | None = None  # of the product dW = Eᵀ X
    split: int = 1  # parts of N in the product dW
    input_precision: str = "ieee"
    forward_config: Config | None = (
        None  # of the tiled forward product on tensor descriptors, for tensors that allow it
    )
    products_config: Config | None = None  # of dX and dW in one launch, in place of input_config and weight_config
    products_split: int = 1  # parts of N in that launch
    launches: tuple[Launch, ...] = ()  # of forward and backward on CUDA, with what each is predicted to take
    alternatives: tuple[Alternative, ...] = ()  # every path that could compute it on CUDA, the fastest predicted first
    measured: Row | None = None  # what the choice rests on, where it is no prediction
    block_rows: int = 0  # rows a CPU worker holds in cache
    block_columns: int = 0  # of their residual, so many numbers of each row at a time; 0: all
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
        if self.forward_config is not None and self.path in ("tiled", "epilogue"):
            name = f"forward_descriptors {kind_of(self.dtype, self.input_precision)}"
            made = resources.table().get(name, {}).get(str(self.device.architecture))
            return made and {"variant": name, **made}
        return resources.nearest(
            "tiled" if self.path in ("chunked", "epilogue") else self.path,
            self.device.architecture,
            self.dtype,
            self.k,
            self.m,
            self.input_precision,
            self.store_residual,
        )

    @property
    def resident(self) -> int:
        """Programs of the main kernel that fit on a multiprocessor, from its compiled code."""
        return self.compiled["programs_per_sm"] if self.compiled else 1

    @property
    def predicted_seconds(self) -> float | None:
        """Of forward and backward on the chosen path, launches included; None for a CPU."""
        return predicted_seconds(self.launches) if self.launches else None

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
    keep_residual: bool = False,
    free_bytes: int | None = None,
    small_to_stock: bool = False,
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
        Whether a shape may be left to stock: small ones on a CPU, on a GPU those where it is clearly faster.
    keep_residual : bool
        Whether E must be there as a whole after the forward pass, if a gradient of input or target is wanted.
    free_bytes : int, optional
        Memory that the call may take beside its arguments, of `chunks.free_bytes`; None: enough.
    small_to_stock : bool
        Whether stock may take a shape of which a GPU has less to do than the host: see stock_wins_on_cuda.
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
        plan = _cpu(plan, target_dtype, wanted, reduction, may_be_stock, keep_residual)
    elif (
        small_to_stock and may_be_stock and target_dtype is dtype and stock_wins_on_cuda(n * (k + m), n * k * m, dtype)
    ):
        why = "a call keeps the host for longer than the GPU, and stock's has less Python in it; a CUDA graph gets the kernels"
        plan = dataclasses.replace(plan, path="stock", why=why)
    else:
        plan = _cuda(plan, target_dtype, wanted, reduction, contiguous, has_bias, may_be_stock)
        if reduction != "none" and not keep_residual and n * m * dtype.itemsize >= chunks.LARGE_BYTES:
            plan = _in_chunks(plan, Asked(target_dtype, wanted, reduction, contiguous, has_bias), free_bytes)
    return _with_cost(plan, target_dtype, wanted, reduction, has_bias, contiguous)


def every_path(
    n: int,
    k: int,
    m: int,
    *,
    dtype: torch.dtype,
    wanted: Wanted,
    device: Device,
    has_bias: bool = False,
    input_precision: str = "ieee",
) -> tuple[Plan, ...]:
    """A plan for each path that could compute the mean's loss and gradients of contiguous tensors on a GPU: what can be measured."""
    plan = Plan("triton", "", "", device, n, k, m, dtype=dtype, input_precision=input_precision)
    asked = Asked(dtype, wanted, "mean", True, has_bias)
    return tuple(_with_launches(p, asked) for p in paths.candidates(plan, asked, *_one_pass_family(plan, True)))


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


# Beside an H100, stock's loss and gradient took 290 to 360 µs of a slow host up to 17 million numbers, and the kernels' 130 to 320
# more. A fast host needs a third of that. A million numbers take stock's own kernels 30 µs, which no host undercuts.
_STOCK_NUMBERS_CUDA, _STOCK_PRODUCTS_CUDA = 1 << 20, 1 << 27


def stock_wins_on_cuda(numbers: int, products: int, dtype: torch.dtype) -> bool:
    """Whether a GPU computes so many numbers of input and target, with so many multiplications in a product, while the host
    is still busy with the call: then stock, which takes less of the host, is the faster one.

    Not for half types, of which stock rounds the prediction; nor where launches cost nothing, in a CUDA graph.
    """
    return dtype.itemsize >= 4 and numbers <= _STOCK_NUMBERS_CUDA and products <= _STOCK_PRODUCTS_CUDA


_LONG_ROW, _BLOCK_COLUMNS = 1024, 512  # numbers of a row of E: longer ones are made in parts, which stay in cache
_SHORT_ROW = 256  # numbers: of E, shorter rows than this and X's cost less to keep than dX costs to scale once more
_LARGE_GRADIENT_BYTES = (
    16 << 20
)  # of dW: more is scaled in place, and given to each worker only within a block's residual


def _cpu(
    plan: Plan, target_dtype: torch.dtype, wanted: Wanted, reduction: str, may_be_stock: bool, keep_residual: bool
) -> Plan:
    n, k, m, dtype = plan.n, plan.k, plan.m, plan.dtype
    size = accumulator_dtype(dtype).itemsize
    rows = max(_LEAST_ROWS, _BLOCK_BYTES // (size * max(k + 2 * m, 1)))
    scalar = reduction != "none"
    needed = wanted.input or wanted.target
    long_rows = wanted.target or (wanted.input and m >= min(k, _SHORT_ROW))
    large = wanted.weight and m * k * size > _LARGE_GRADIENT_BYTES
    everything = scalar and (long_rows or large) and not (keep_residual and needed)
    later = any(wanted) if not scalar else needed and not everything
    # Rows of a float16 dY have one power each, so they are made whole; and so are those of a residual that is kept.
    in_columns = scalar and not later and m > _LONG_ROW and not (wanted.target and target_dtype is torch.float16)
    if in_columns:
        rows = _LEAST_ROWS // (1 if k > _SHORT_ROW else 2)
    else:
        rows = min(rows, max(64, _MOST_RESIDUAL_BYTES // (size * max(m, 1))))
    # The fields below hold for the stock path too: inside torch.compile's operators the streaming code computes every shape.
    # A worker needs blocks enough to share evenly, and a gradient of its own: together they must stay small.
    threads = plan.device.sms
    affordable = threads * k <= n and (threads - 1) * m * k * size <= _MOST_RESIDUAL_BYTES
    workers = threads if n >= (1 if in_columns else 2) * threads * rows and affordable else 1
    plan = dataclasses.replace(
        plan,
        block_rows=rows,
        block_columns=_BLOCK_COLUMNS if in_columns else 0,
        workers=workers,
        store_residual=later,
        grad_in_forward=scalar,
        all_in_forward=everything,
    )
    if may_be_stock and stock_wins_on_cpu(n * (k + m), dtype, target_dtype, reduction):
        why = (
            "the data fits in the cache, where stock's further passes over it cost little"
            if scalar
            else 'reduction="none" makes an N x M result anyway'
        )
        return dataclasses.replace(plan, path="stock", why=why)
    why = "rows in cache-sized blocks: loss and gradients from one read of the data, no N x M temporary"
    return dataclasses.replace(
        plan,
        path="streaming",
        why=why + ", but short rows of the residual are kept for the product that needs them" * later,
    )


def _cuda(
    plan: Plan,
    target_dtype: torch.dtype,
    wanted: Wanted,
    reduction: str,
    contiguous: bool,
    has_bias: bool,
    may_be_stock: bool,
) -> Plan:
    asked = Asked(target_dtype, wanted, reduction, contiguous, has_bias)
    family, why = _one_pass_family(plan, contiguous) if reduction != "none" else (None, "")
    return paths.choose(paths.candidates(plan, asked, family, why), asked, may_be_stock)


SLOWER = 1.05  # that chunks may be, where memory is plenty


def _in_chunks(plan: Plan, asked: Asked, free_bytes: int | None) -> Plan:
    """The plan with its residual formed a chunk of rows at a time, where that costs no time or memory is short; else as it is."""
    if not plan.store_residual and plan.path != "stock" and (plan.path != "library" or any(asked.wanted)):
        return plan  # nothing of size N x M is there
    target_dtype, wanted, _, _, has_bias = asked
    short = None
    if free_bytes is not None:
        left = free_bytes - chunk_sizes(plan, target_dtype, wanted, has_bias).fixed
        short = workspace_of(plan, asked) > max(left, 0) // 2
    base = plan
    if plan.path not in ("tiled", "epilogue", "library"):  # a one-pass kernel that keeps E for dX, or stock
        if not short:
            return plan
        base = paths.candidates(dataclasses.replace(plan, store_residual=False), asked, None, "")[-1]
    rows = chunks.rows_of_chunk(plan.n, chunk_sizes(base, target_dtype, wanted, has_bias), free_bytes)
    if rows >= plan.n:
        return plan
    # The epilogue path's forward product is on descriptors, and of a chunk's there is one on pointers: either may be faster.
    options = {"tiled": (True,), "epilogue": (True, False)}.get(base.path, (False,))
    made = [_chunked(base, plan, rows, tiled) for tiled in options]
    seconds = [predicted_seconds(cost.launches_of(chunked, asked)) for chunked in made]
    least = min(seconds)
    fits = short or least <= SLOWER * predicted_seconds(plan.launches)
    return made[seconds.index(least)] if fits else plan


def _chunked(base: Plan, plan: Plan, rows: int, tiled: bool) -> Plan:
    """In chunks of so many rows, with E from the tiled kernel or from the library's product."""
    by_kernels = plan.input_precision == "tf32x3"  # which the library's products have not
    weight_config = base.weight_config if by_kernels else None
    why = "N x M is large: every chunk of rows makes its part of the loss and of all gradients, and the next one writes over "
    why += "its residual; E from the tiled kernel" if tiled else "its residual; E from the library's product"
    return dataclasses.replace(
        base,
        path="chunked",
        why=why,
        chunk_rows=rows,
        config=base.config if tiled else None,
        tuned=base.tuned if tiled else None,
        forward_config=None,
        products_config=None,
        input_config=base.input_config if by_kernels else None,
        weight_config=weight_config,
        split=configs.default_split(rows, plan.k, plan.m, weight_config, plan.device.sms) if by_kernels else 1,
        store_residual=False,
        grad_in_forward=True,
        all_in_forward=True,
        alternatives=plan.alternatives,
        measured=plan.measured,
    )


def chunk_sizes(plan: Plan, target_dtype: torch.dtype, wanted: Wanted, has_bias: bool) -> chunks.Sizes:
    """Bytes that the chunked path takes beside its arguments."""
    n, k, m, dtype = plan.n, plan.k, plan.m, plan.dtype
    size, wide = dtype.itemsize, accumulator_dtype(dtype).itemsize
    loss_dtype = torch.promote_types(dtype, target_dtype)
    residual = m * (loss_dtype if wanted.target else dtype).itemsize
    row = residual
    if wanted.target and loss_dtype is not dtype:
        row += m * size  # E once more, as the products take it
    if wanted.input and dtype is torch.float16:
        row += k * wide  # dX before it is rounded
    sums = wanted.weight * m * k + wanted.bias * m
    fixed = sums * (wide + size * (wide != size)) + n * (
        wanted.input * k * size + wanted.target * m * target_dtype.itemsize
    )
    fixed += _wide_bytes(plan, n, target_dtype, has_bias)
    return chunks.Sizes(row, residual, fixed)


def _wide_bytes(plan: Plan, rows: int, target_dtype: torch.dtype, has_bias: bool) -> int:
    """Of the part of X Wᵀ that the library makes in float32 for a chunk of half precision, where more than Y is added to it."""
    by_library = plan.path == "library" or plan.config is None
    if not by_library or plan.dtype.itemsize != 2 or not (has_bias or target_dtype.itemsize > 2):
        return 0
    return min(rows, chunks.WIDE_ROWS) * plan.m * accumulator_dtype(plan.dtype).itemsize


TALL_ROWS = 2**31 - 2**20  # that one_pass_tall counts in 32 bits


def _one_pass_family(plan: Plan, contiguous: bool) -> tuple[str | None, str]:
    """The one-pass kernel for a shape, or None."""
    k, m = plan.k, plan.m
    once = "loss and gradient from one read of the data: "
    if contiguous and k <= 16 and m <= 4 and k * m <= 32:
        return "rows", once + "a thread owns whole rows"
    if k <= 256 and m <= 4:
        return "vector", once + "a tile of rows, sums kept per element"
    if k <= 256 and m <= 16:
        return "dot", once + "both products from tiles in registers"
    if plan.n <= TALL_ROWS and configs.tall_fits(plan.device.architecture, plan.dtype, k, m, plan.input_precision):
        return "tall", once + "a program owns some outputs and streams the rows through both products"
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
        if plan.path != "one_pass_tall" and updated_by_last_program(plan):
            return "in one launch: the last program adds the partial sums and updates"
        return "in two launches: the second adds the partial sums and updates"
    if plan.path == "tiled":
        if plan.split == 1:
            return "in the epilogue of the product that makes the gradient"
        return "by the launch that adds the parts of the gradient"
    if plan.path == "epilogue":
        return "in the library's product, W - lr c EᵀX, or by the tiled kernels where that would round more or is another formula"
    if plan.path == "chunked":
        return "after the last chunk"
    if plan.path == "library":
        return "in the library's product, W - lr c EᵀX, or behind it where there is momentum or the rate is a tensor"
    return "by the tensor, once the gradient is complete"


def _with_launches(plan: Plan, asked: Asked) -> Plan:
    launches = cost.launches_of(plan, asked)
    return dataclasses.replace(
        plan,
        launches=launches,
        bytes_read=sum(launch.read for launch in launches),
        bytes_written=sum(launch.written for launch in launches),
        flops=sum(launch.flops for launch in launches),
        workspace_bytes=workspace_of(plan, asked),
    )


def _with_cost(
    plan: Plan, target_dtype: torch.dtype, wanted: Wanted, reduction: str, has_bias: bool, contiguous: bool = True
) -> Plan:
    """Bytes and FLOPs of forward and backward, each operand counted once per pass over it."""
    if plan.device.kind == "cuda":
        plan = _with_launches(plan, Asked(target_dtype, wanted, reduction, contiguous, has_bias))
        if plan.path != "chunked":
            return plan
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
        if wanted.weight and not plan.grad_in_forward:
            read += x + e
        if wanted.input and not plan.all_in_forward:
            read += e + w
        if wanted.target and not plan.all_in_forward:
            read += e
        if plan.all_in_forward:  # early.py's powers of float16 gradients
            kept = (wanted.input and plan.dtype is torch.float16) + (wanted.target and target_dtype is torch.float16)
            workspace += n * kept * accumulator
        if plan.path == "streaming":
            workspace += plan.workers * accumulator * (min(plan.block_rows, n) * (plan.block_columns or m) + gradients)
        if plan.path == "chunked":
            sizes = chunk_sizes(plan, target_dtype, wanted, has_bias)
            workspace += plan.chunk_rows * sizes.row + _wide_bytes(plan, plan.chunk_rows, target_dtype, has_bias)
            if plan.dtype.itemsize < accumulator:
                workspace += gradients * accumulator
            passes = wanted.weight + wanted.input + wanted.target + wanted.bias
            if plan.config is None and plan.dtype.itemsize == 2 and not has_bias and target_dtype is plan.dtype:
                # Y copied into E, the product onto it, the loss
                read, written = read + (2 + passes) * e, written + 2 * e
            elif plan.config is None:  # the product, then E from it in one pass
                product = n * m * accumulator
                read, written = read + product + passes * e, written + product + e
            else:
                read, written = read + passes * e, written + e
            sums = gradients * accumulator * -(-n // plan.chunk_rows)
            read, written = read + wanted.weight * x + wanted.input * w + sums, written + sums
    written += x * wanted.input + y * wanted.target + gradients * plan.dtype.itemsize
    return dataclasses.replace(
        plan,
        bytes_read=read,
        bytes_written=written,
        workspace_bytes=workspace,
        flops=products * 2 * n * k * m + 3 * n * m,
    )
