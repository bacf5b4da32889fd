"""What each path would cost: launches with their bytes, FLOPs and predicted seconds. Everything here is predicted.

A launch takes LAUNCH_SECONDS and then the longest of three: its bytes at the device's bandwidth, its FLOPs at the rate of the
units that do them, its traffic through L2. FLOPs are those that are executed: tiles that stand over the edge count in
full, and so does the wait for the busiest multiprocessor, which has ⌈tiles / multiprocessors⌉ of them. Bytes count each
operand once; what programs read again comes from L2. A grid with fewer programs than multiprocessors gets their share of
the bandwidth. What a tile reads and writes once its products are made takes its time beside them, unless other programs
multiply meanwhile. Rates are the device's (those that the library's own products reach), times a factor of FACTORS.

Where its factors are assumed, a model of this kind ranks paths that differ by a half; it cannot tell two that differ by a
tenth. Where they were measured, it was within a tenth of every product of 1,024 and more: `trusted_to`. paths.py knows that, and a
measurement (measured.py) goes before it.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch

from .backends import Wanted
from .devices import Device
from .kernels.configs import (
    ELEMENTWISE_TILE,
    LOSS_PROGRAMS,
    SUM_BLOCK,
    Config,
    accumulator_dtype,
    column_sums_grid,
    column_sums_wins,
    rows_per_tile,
)

if TYPE_CHECKING:  # plan imports this module
    from .plan import Plan

# From one kernel on a stream to the next that waits for it, with nothing to do in it: assumed, from what is published of
# A100 and H100. plan.LAST_PROGRAM_BYTES rests on the same figure.
LAUNCH_SECONDS = 2.4e-6
ELEMENTWISE_BYTES = 16 << 10  # that a program of an elementwise kernel moves


class Factor(NamedTuple):
    """A part of the device's rate that a kernel is expected to reach, and how that is known."""

    value: float
    known: str  # measured, published, compiled code, assumed
    source: str


_H100 = "H100, Triton 3.6, 2026-11-28"
_H200 = "H200, Triton 3.6, 2026-11-28"
# By family and kind. A family of the tiled products that has none of its own takes "product"'s, and a kind "any".
FACTORS: dict[tuple[str, str], Factor] = {
    ("library", "any"): Factor(1.0, "measured", "the device's rates are the library's, 8192 x 8192 x 8192 on an H200"),
    ("library", "half"): Factor(1.05, "measured", f"{_H100}: without waves and ends of tiles, which are in that rate"),
    ("library", "half unaligned"): Factor(0.19, "measured", f"{_H100}: 8191 x 4097 x 4095 in 1660 to 2070 µs"),
    ("product", "half"): Factor(0.85, "assumed", "pointers in place of descriptors, two programs a multiprocessor"),
    ("forward_descriptors", "half"): Factor(1.06, "measured", f"{_H100}: 8192 rows, 1024 to 8192 features and outputs"),
    ("forward_descriptors", "tf32"): Factor(0.85, "assumed", "as half, and operands are twice as long"),
    ("both_descriptors", "half"): Factor(0.87, "measured", f"{_H100}: 8192 rows, 1024 to 8192 features and outputs"),
    ("both_descriptors", "tf32"): Factor(0.6, "assumed", "as product"),
    ("backward_weight", "half"): Factor(1.06, "measured", f"{_H100}: 8192 rows, 1024 to 8192 features and outputs"),
    ("backward_input", "half"): Factor(1.04, "measured", f"{_H200}: 8192 rows, 1024 to 8192 features and outputs"),
    ("forward", "half unaligned"): Factor(0.095, "measured", f"{_H100}: 8191 x 4097 x 4095 in 3828 µs"),
    ("backward_input", "half unaligned"): Factor(0.104, "measured", f"{_H100}: 8191 x 4097 x 4095 in 3510 µs"),
    ("backward_weight", "half unaligned"): Factor(0.063, "measured", f"{_H100}: 8191 x 4097 x 4095 in 5801 µs"),
    ("product", "tf32"): Factor(0.6, "assumed", "operands pass through registers"),
    ("forward", "float32"): Factor(0.275, "measured", f"{_H100}: 8192 x 2048 x 2048 in 4910 µs"),
    ("backward_weight", "float32"): Factor(0.94, "measured", f"{_H100}: 8192 x 2048 x 2048 in 1465 µs"),
    ("product", "float32"): Factor(
        0.87, "compiled code", "1024 FFMA of 1171 instructions of a loop, sm_90, Triton 3.7.1"
    ),
    ("product", "float64"): Factor(0.85, "assumed", "matrix instructions, as float32's loop"),
    ("tall", "half"): Factor(0.525, "measured", f"{_H200}: 1,000,000 x 256 x 256 in 642 µs"),
    ("tall", "tf32"): Factor(0.4, "assumed", "as half, and one operand of each product passes through registers"),
    ("tall", "float32"): Factor(0.104, "measured", f"{_H100}: 500,000 x 64 x 64 in 1516 µs"),
    ("tall", "float64"): Factor(0.6, "assumed", "as half"),
    ("dot", "half"): Factor(0.25, "assumed", "16 columns fill a quarter of a matrix instruction's time"),
    ("dot", "tf32"): Factor(0.25, "assumed", "as half"),
    ("dot", "float32"): Factor(0.124, "measured", f"{_H100}: 2,000,000 x 64 x 16 in 1286 µs"),
    ("dot", "float64"): Factor(0.4, "assumed", "as float32, with matrix instructions of fewer columns"),
    ("rows", "any"): Factor(
        0.3, "assumed", "multiplications and sums on the ordinary units, beside address arithmetic"
    ),
    ("vector", "any"): Factor(0.3, "assumed", "as rows"),
}
# Prologue and epilogue of a tile, where nothing else runs on its multiprocessor. Published for cuBLAS, 8192 x 8192 x K in
# float16 on an H100: 588 TFLOP/s at K = 1024, 646 at 4096, 661 at 8192, as if a reduction were longer by 110; of a tile of
# 128 x 256 those are 1.2 µs. Smaller tiles have so many more programs beside them to wait with, up to MOST_RESIDENT.
TILE_SECONDS = 1.2e-6
LARGE_TILE, MOST_RESIDENT = 128 * 256, 8
# Of the time to write what a half-precision product of the library's leaves in float32, what its arithmetic does not hide:
# measured, H100, 8192 rows, 1024 to 8192 features and outputs.
WIDE_SHARE = 0.4
# Times as fast must a path be predicted, where the products' factors were measured, and elsewhere.
TRUSTED, UNSURE = 1.02, 1.10
# The library's tiles, with what is assumed that each reaches of the rate; of all, the fastest for a shape is taken.
LIBRARY_TILES = ((256, 128, 1.0), (128, 128, 0.97), (128, 64, 0.85), (64, 64, 0.7), (64, 32, 0.5), (128, 16, 0.5))
WIDE_BYTES = (
    256 << 20
)  # of a prediction in the accumulator's dtype beside half-precision operands: more is made in parts
NARROW = 0.5  # of the rate: what a product of up to 16 rows or columns reaches, assumed
LEAST_PART = 512  # of the reduction, where the library splits it


class Asked(NamedTuple):
    """What a call wants, beside the shape."""

    target_dtype: torch.dtype
    wanted: Wanted
    reduction: str
    contiguous: bool
    has_bias: bool


class Launch(NamedTuple):
    """One kernel, or one product of the library."""

    what: str
    read: int
    written: int
    flops: int
    seconds: float
    bound: str  # memory, arithmetic, L2, launches
    tiles: int = 0
    slots: int = 0  # programs that are resident at once; 0 where the library decides

    @property
    def waves(self) -> float:
        """Rounds of programs; the last one may be short."""
        return self.tiles / self.slots if self.slots else 0.0


class Alternative(NamedTuple):
    """A path that could compute the shape, its predicted time, and why it was not taken (empty for the chosen one)."""

    path: str
    seconds: float
    launches: int
    bound: str
    why_not: str


def predicted_seconds(launches: Iterable[Launch]) -> float:
    return sum(launch.seconds for launch in launches)


def bound_of(launches: tuple[Launch, ...]) -> str:
    """What takes most of the time."""
    spent: dict[str, float] = {"launches": len(launches) * LAUNCH_SECONDS}
    for launch in launches:
        if launch.bound != "launches":
            spent[launch.bound] = spent.get(launch.bound, 0.0) + launch.seconds - LAUNCH_SECONDS
    return max(spent, key=spent.__getitem__)


def kind_of(dtype: torch.dtype, input_precision: str) -> str:
    """The unit that multiplies: half, tf32, float32 or float64."""
    if dtype.itemsize == 2:
        return "half"
    if dtype is torch.float64:
        return "float64"
    return "float32" if input_precision == "ieee" else "tf32"


def factor_of(family: str, dtype: torch.dtype, input_precision: str, aligned: bool = True) -> Factor:
    """The factor for a kernel's family: rows, vector, dot, tall, library, product, or one of the tiled products'."""
    kind = kind_of(dtype, input_precision)
    for found in ((family, kind), ("product" if (family, "any") not in FACTORS else family, kind), (family, "any")):
        if not aligned and (found[0], f"{kind} unaligned") in FACTORS:
            return FACTORS[found[0], f"{kind} unaligned"]
        if found in FACTORS:
            return FACTORS[found]
    raise KeyError(family)


def trusted_to(device: Device, dtype: torch.dtype, input_precision: str) -> float:
    """How many times as fast as the library's products a path must be predicted to be, to be taken for it."""
    return TRUSTED if device.architecture == 90 and kind_of(dtype, input_precision) == "half" else UNSURE


def _launch(
    device: Device,
    what: str,
    read: int,
    written: int,
    flops: int = 0,
    *,
    executed: float = 0.0,  # FLOPs with the tiles' edges
    rate: float = 1.0,
    programs: int = 0,
    tiles: int = 0,
    slots: int = 0,
    l2: int = 0,
) -> Launch:
    programs = programs or tiles or -(-(read + written) // ELEMENTWISE_BYTES)
    share = min(1.0, max(programs, 1) / device.sms)
    times = {"memory": (read + written) / (device.bandwidth * share), "arithmetic": executed / rate}
    if device.l2_bandwidth:
        times["L2"] = l2 / device.l2_bandwidth
    bound = max(times, key=times.__getitem__)
    busy = times[bound]
    return Launch(
        what,
        read,
        written,
        flops,
        LAUNCH_SECONDS + busy,
        bound if busy > LAUNCH_SECONDS else "launches",
        tiles,
        slots,
    )


def balance(tiles: int, sms: int) -> float:
    """The mean multiprocessor's work over the busiest one's."""
    return tiles / (-(-tiles // sms) * sms)


def _between_tiles(device: Device, tiles: int, area: int, moved: int = 0) -> float:
    """Seconds in which the busiest multiprocessor begins and ends tiles, which `moved` bytes pass at their end, and does
    nothing else."""
    alone = -(-tiles // device.sms) * TILE_SECONDS + moved / device.bandwidth
    return alone / max(1, min(MOST_RESIDENT, LARGE_TILE // area))


def _add_rows(device: Device, rows: int, columns: int, size: int) -> list[Launch]:
    """The second stage of an ordered sum."""
    return [_launch(device, "add partial sums", rows * columns * size, columns * size, programs=-(-columns // 32))]


def _elementwise(device: Device, what: str, read: int, written: int) -> Launch:
    return _launch(device, what, read, written)


@functools.lru_cache(maxsize=1024)  # the paths of one plan share their products
def library_product(device: Device, what: str, dtype: torch.dtype, precision: str, rows: int, columns: int, length: int,
                    read: int, written: int, aligned: bool = True) -> Launch:  # fmt: skip
    """A product of the library's, rows x columns with a reduction of `length`, with the best of its tiles and splits."""
    flops = 2 * rows * columns * length
    rate = device.rate(dtype, precision) * factor_of("library", dtype, precision, aligned).value
    best: tuple[float, int, int, int] | None = None  # (executed, tiles, parts, L2 traffic)
    for long, short, reached in LIBRARY_TILES:
        for a, b in {(long, short), (short, long)}:
            tiles = -(-rows // a) * -(-columns // b)
            parts = max(1, min(device.sms // tiles, length // LEAST_PART))
            executed = 2.0 * tiles * a * b * length / balance(tiles * parts, device.sms) / reached
            executed += rate * _between_tiles(device, tiles * parts, a * b)
            l2 = dtype.itemsize * length * (rows * -(-columns // b) + columns * -(-rows // a))
            if best is None or (executed, -tiles * parts) < (best[0], -best[1] * best[2]):
                best = (executed, tiles, parts, l2)
    assert best is not None
    executed, tiles, parts, l2 = best  # pairs of programs share what they read from L2: half of it, assumed
    # Narrow outputs have kernels of their own, which stream the large operand on every multiprocessor.
    programs = tiles * parts if min(rows, columns) > 16 else device.sms
    if min(rows, columns) <= 16:
        executed = min(executed, flops / NARROW)
    if dtype.itemsize == 2 and written > rows * columns * dtype.itemsize:
        executed += rate * WIDE_SHARE * written / device.bandwidth
    return _launch(
        device, what, read, written, flops, executed=executed, rate=rate, programs=programs, tiles=tiles, l2=l2 // 2
    )


def tiled_product(
    plan: "Plan",
    what: str,
    config: Config,
    spans: tuple[str, str, str],  # the tile's two dimensions, then the reduction's
    read: int,
    written: int,
    *,
    family: str,
    aligned: bool = True,
    moved: int | None = None,  # bytes at the ends of tiles, else what is written
    parts: int = 1,
    resident: int = 1,
) -> Launch:
    """One of our tiled products. Those of Ampere, of which none was measured, have the factors of "product"."""
    device = plan.device
    lengths = {"n": plan.n, "k": plan.k, "m": plan.m}
    blocks = {"n": config.block_n, "k": config.block_k, "m": config.block_m}
    first, second, along = spans
    tiles_a, tiles_b = -(-lengths[first] // blocks[first]), -(-lengths[second] // blocks[second])
    tiles = tiles_a * tiles_b * parts
    steps = -(-lengths[along] // (blocks[along] * parts)) * parts
    executed = 2.0 * tiles_a * tiles_b * blocks[first] * blocks[second] * steps * blocks[along]
    rate = device.rate(plan.dtype, plan.input_precision)
    measured = device.architecture >= 90 or not aligned or plan.dtype.itemsize > 2
    rate *= factor_of(family if measured else "product", plan.dtype, plan.input_precision, aligned).value
    executed = executed / balance(tiles, device.sms)
    moved = written if moved is None else moved
    executed += rate * _between_tiles(device, tiles, blocks[first] * blocks[second], moved)
    size = plan.dtype.itemsize
    length = lengths[along]
    l2 = size * length * (lengths[first] * tiles_b + lengths[second] * tiles_a)
    return _launch(
        device,
        what,
        read,
        written,
        2 * plan.n * plan.k * plan.m,
        executed=executed,
        rate=rate,
        tiles=tiles,
        slots=device.sms * resident,
        l2=l2,
    )


class _Sizes(NamedTuple):
    """Bytes of the operands."""

    x: int
    y: int
    w: int  # with the bias
    e: int  # of the residual as it is stored
    dx: int
    dw: int
    db: int
    dy: int
    wide: int  # of a number in the accumulator


def _sizes(plan: "Plan", asked: Asked) -> _Sizes:
    n, k, m, size = plan.n, plan.k, plan.m, plan.dtype.itemsize
    return _Sizes(
        n * k * size,
        n * m * asked.target_dtype.itemsize,
        (m * k + asked.has_bias * m) * size,
        n * m * torch.promote_types(plan.dtype, asked.target_dtype).itemsize,
        n * k * size,
        m * k * size,
        m * size,
        n * m * asked.target_dtype.itemsize,
        accumulator_dtype(plan.dtype).itemsize,
    )


def is_aligned(plan: "Plan", asked: Asked) -> bool:
    """Whether rows are dense and start at multiples of 16 numbers, as the table asks; whether they do is seen at the launch."""
    return asked.contiguous and plan.k % 16 == 0 and plan.m % 16 == 0


def _library_aligned(plan: "Plan") -> bool:
    """Whether dense rows start at multiples of the 16 bytes that the library's fast products ask for."""
    return plan.k * plan.dtype.itemsize % 16 == 0 and plan.m * plan.dtype.itemsize % 16 == 0


def launches_of(plan: "Plan", asked: Asked) -> tuple[Launch, ...]:
    """Every launch of forward and backward on the plan's path, in order. CUDA only."""
    if plan.path == "stock":
        return tuple(_stock(plan, asked))
    if plan.path.startswith("one_pass"):
        return tuple(_one_pass(plan, asked))
    if plan.path == "chunked":
        return tuple(_chunked(plan, asked))
    return tuple({"library": _library, "epilogue": _epilogue}.get(plan.path, _tiled)(plan, asked))


def _stock(plan: "Plan", asked: Asked) -> list[Launch]:
    """F.linear, F.mse_loss and autograd's formulas: the prediction is written, and read three times."""
    n, k, m, device, wanted = plan.n, plan.k, plan.m, plan.device, asked.wanted
    s = _sizes(plan, asked)
    p = n * m * plan.dtype.itemsize
    scalar = asked.reduction != "none"

    def product(what: str, rows: int, columns: int, length: int, read: int, written: int) -> Launch:
        shape = rows, columns, length, read, written
        return library_product(device, what, plan.dtype, plan.input_precision, *shape, _library_aligned(plan))

    made = [product("prediction X Wᵀ", n, m, k, s.x + s.w, p)]
    made.append(_launch(device, "squares of prediction - Y", p + s.y, s.e, 2 * n * m))
    if scalar:
        made.append(_launch(device, "mean", s.e, 0, n * m))
    if wanted.input or wanted.weight or wanted.bias:
        made.append(_elementwise(device, "gradient of the prediction", p + s.y + (0 if scalar else s.e), p))
    if wanted.target:
        made.append(_elementwise(device, "dY", p + s.y + (0 if scalar else s.e), s.dy))
    if wanted.input:
        made.append(product("dX", n, k, m, p + s.dw, s.dx))
    if wanted.weight:
        made.append(product("dW", m, k, n, p + s.x, s.dw))
    if wanted.bias:
        made.append(_elementwise(device, "db", p, s.db))
    return made


def _target(plan: "Plan", asked: Asked, s: _Sizes) -> list[Launch]:
    grad = s.e if asked.reduction == "none" else 0
    return [_elementwise(plan.device, "dY", s.e + grad, s.dy)] if asked.wanted.target else []


def input_gradient(plan: "Plan", asked: Asked) -> tuple[Launch, ...]:
    """dX from E: by the tiled kernel, or by the library's product with c W (of float16 where c W may underflow, c behind it)."""
    if not asked.wanted.input:
        return ()
    s = _sizes(plan, asked)
    if plan.input_config is None:
        wide = plan.n * plan.k * s.wide if plan.dtype is torch.float16 else s.dx
        product = library_product(
            plan.device,
            "dX",
            plan.dtype,
            plan.input_precision,
            plan.n,
            plan.k,
            plan.m,
            s.e + s.dw,
            wide,
            _library_aligned(plan),
        )
        if plan.dtype is torch.float16:
            return product, _elementwise(plan.device, "dX times c", wide, s.dx)
        return _elementwise(plan.device, "W times c", s.dw, s.dw), product
    grad = s.e if asked.reduction == "none" else 0
    spans = ("n", "k", "m")
    aligned = is_aligned(plan, asked)
    read = s.e + s.dw + grad
    return (
        tiled_product(plan, "dX = E W", plan.input_config, spans, read, s.dx, family="backward_input", aligned=aligned),
    )


def _one_pass(plan: "Plan", asked: Asked) -> list[Launch]:
    n, k, m, device, wanted = plan.n, plan.k, plan.m, plan.device, asked.wanted
    s = _sizes(plan, asked)
    config = plan.config
    assert config is not None
    family = plan.path.removeprefix("one_pass_")
    blocks = -(-m // config.block_m) if family == "tall" else 1
    parts = max(1, plan.programs // blocks)
    grads = wanted.weight or wanted.bias
    sums = 1 + (m + m * k if grads else 0)
    tiles = -(-n // rows_per_tile(family, config, k, plan.dtype))
    rows = tiles * rows_per_tile(family, config, k, plan.dtype)
    columns = blocks * config.block_m if config.block_m else m
    features = config.block_k if family in ("dot", "tall") else k
    executed = 2.0 * rows * features * columns * (1 + grads)
    executed /= balance(plan.programs, device.sms) * tiles / (-(-tiles // parts) * parts)
    resident = plan.resident
    rate = device.rate(plan.dtype, plan.input_precision) * factor_of(family, plan.dtype, plan.input_precision).value
    staged = parts > 1 or family == "tall"  # whose sums pass through a workspace, whatever their number
    partial = parts * sums * s.wide if staged else 0
    made = [
        _launch(
            device,
            plan.path,
            s.x + s.y + s.w,
            (partial or sums * s.wide) + (s.e if plan.store_residual else 0),
            (1 + grads) * 2 * n * k * m + 3 * n * m,
            executed=executed,
            rate=rate,
            programs=plan.programs,
            tiles=tiles * blocks,
            slots=min(plan.programs, device.sms * resident),
            l2=s.x * blocks + s.y,
        ),
        *(_add_rows(device, parts, sums, s.wide) if staged else []),
    ]
    if plan.dtype.itemsize == 2:
        made.append(_elementwise(device, "loss in its type", s.wide, plan.dtype.itemsize))
    if wanted.weight:
        made.append(_elementwise(device, "dW times grad_output", m * k * s.wide, s.dw))
    if wanted.bias:
        made.append(_elementwise(device, "db times grad_output", m * s.wide, s.db))
    return [*made, *input_gradient(plan, asked), *_target(plan, asked, s)]


def _tiled(plan: "Plan", asked: Asked) -> list[Launch]:
    m, k, device, wanted = plan.m, plan.k, plan.device, asked.wanted
    s = _sizes(plan, asked)
    weight_config = plan.weight_config
    assert weight_config is not None
    made = _tiled_forward(plan, asked, s)
    grad = s.e if asked.reduction == "none" else 0
    if plan.products_config is not None:
        return [*made, *_both_products(plan, s), *_target(plan, asked, s)]
    made += input_gradient(plan, asked)
    if wanted.weight or wanted.bias:
        parts = plan.split * (m * k + m) * s.wide if plan.split > 1 else 0
        made.append(
            tiled_product(
                plan,
                "dW = Eᵀ X" if wanted.weight else "db, with dW = Eᵀ X",
                weight_config,
                ("m", "k", "n"),
                s.e + s.x + grad,
                parts or s.dw + s.db,
                family="backward_weight",
                aligned=is_aligned(plan, asked),
                parts=plan.split,
            )
        )
        if plan.split > 1:
            made.append(_launch(device, "add the parts", parts, s.dw + s.db, programs=-(-(m * k) // SUM_BLOCK)))
    return made + _target(plan, asked, s)


def _tiled_forward(plan: "Plan", asked: Asked, s: _Sizes) -> list[Launch]:
    """Loss and E from our product."""
    n, k, m, device, config = plan.n, plan.k, plan.m, plan.device, plan.forward_config or plan.config
    assert config is not None
    scalar = asked.reduction != "none"
    tiles = -(-n // config.block_n) * -(-m // config.block_m)
    written = (s.e if plan.store_residual else 0) + (tiles * s.wide if scalar else s.e)
    read = s.x + s.w + s.y
    if plan.forward_config is not None:
        what, family, resident = "loss and E (descriptors)", "forward_descriptors", 1
    else:
        what, family, resident = "loss and E", "forward", plan.resident
    forward = tiled_product(
        plan,
        what,
        config,
        ("n", "m", "k"),
        read,
        written,
        family=family,
        aligned=is_aligned(plan, asked),
        moved=s.y + written,
        resident=resident,
    )
    made = [forward._replace(flops=2 * n * k * m + 3 * n * m)]
    if scalar:
        made += _add_rows(device, tiles, 1, s.wide)
        if plan.dtype.itemsize == 2:
            made.append(_elementwise(device, "loss in its type", s.wide, plan.dtype.itemsize))
    return made


def _both_products(plan: "Plan", s: _Sizes) -> list[Launch]:
    """dX and dW in one launch, whose tiles fill each other's last wave; the second operand of E is read from L2."""
    m, k, config, split = plan.m, plan.k, plan.products_config, plan.products_split
    assert config is not None
    family = "both_descriptors" if plan.device.architecture >= 90 else "product"
    parts = split * (m * k + m) * s.wide if split > 1 else 0
    turned = Config(config.block_m, config.block_k, config.block_n, config.num_warps, config.num_stages)
    first = tiled_product(plan, "", config, ("n", "k", "m"), s.e + s.dw, s.dx, family=family)
    written = parts or s.dw + s.db
    second = tiled_product(plan, "", turned, ("m", "k", "n"), s.x, written, parts=split, family=family)
    both = Launch(
        "dX and dW",
        first.read + second.read,
        first.written + second.written,
        first.flops + second.flops,
        first.seconds + second.seconds - LAUNCH_SECONDS,
        max(first, second, key=lambda launch: launch.seconds).bound,
        first.tiles + second.tiles,
        first.slots,
    )
    if split == 1:
        return [both]
    return [both, _launch(plan.device, "add the parts", parts, s.dw + s.db, programs=-(-(m * k) // SUM_BLOCK))]


_SCALED = "E times c"
_BY_C = (_SCALED, "W times c", "dW times c", "db times c")


def _library(plan: "Plan", asked: Asked) -> list[Launch]:
    """The library's products, and one fused pass between them; see backends/triton_library.py for the order."""
    n, k, m, device = plan.n, plan.k, plan.m, plan.device
    s = _sizes(plan, asked)
    scalar, half = asked.reduction != "none", plan.dtype.itemsize == 2
    p = n * m * s.wide
    aligned = _library_aligned(plan)
    made = [library_product(device, "X Wᵀ", plan.dtype, plan.input_precision, n, m, k, s.x + s.dw, p, aligned)]
    programs = min(LOSS_PROGRAMS, -(-(n * m) // ELEMENTWISE_TILE))
    written = (s.e if plan.store_residual else 0) + (programs * s.wide if scalar else s.e)
    made.append(_launch(device, "E and its squares", p + s.y + s.w - s.dw, written, 3 * n * m))
    if scalar:
        made += _add_rows(device, programs, 1, s.wide) if programs > 1 else []
        if half:
            made.append(_elementwise(device, "loss in its type", s.wide, plan.dtype.itemsize))
    return made + _library_gradients(plan, asked, s)


def _epilogue(plan: "Plan", asked: Asked) -> list[Launch]:
    """Our product makes the loss and E, the library's make the gradients from it."""
    s = _sizes(plan, asked)
    return _tiled_forward(plan, asked, s) + _library_gradients(plan, asked, s)


def _library_gradients(plan: "Plan", asked: Asked, s: _Sizes) -> list[Launch]:
    """The library's products of E, and the passes by which c enters."""
    n, k, m, device, wanted = plan.n, plan.k, plan.m, plan.device, asked.wanted
    made: list[Launch] = []

    def product(what: str, rows: int, columns: int, length: int, read: int, written: int) -> Launch:
        shape = rows, columns, length, read, written
        return library_product(device, what, plan.dtype, plan.input_precision, *shape, _library_aligned(plan))

    grad = s.e if asked.reduction == "none" else 0
    scaled_first = scales_residual(plan, asked)
    if scaled_first and (wanted.input or wanted.weight or wanted.bias):
        made.append(_elementwise(device, _SCALED, s.e + grad, s.e))
    if wanted.input:
        if scaled_first:
            made.append(product("dX", n, k, m, s.e + s.dw, s.dx))
        else:  # only float16 may leave it to the tiled kernel
            made += input_gradient(
                plan if plan.dtype is torch.float16 else dataclasses.replace(plan, input_config=None), asked
            )
    if wanted.weight:
        wide = not scaled_first
        made.append(product("dW", m, k, n, s.e + s.x, m * k * s.wide if wide else s.dw))
        if wide:
            made.append(_elementwise(device, "dW times c", m * k * s.wide, s.dw))
    if wanted.bias:
        made += _bias_gradient(plan, asked, s, scaled_first)
    return made + _target(plan, asked, s)


def _sums_by_kernel(plan: "Plan", asked: Asked, s: _Sizes) -> bool:
    """Whether db is column_sums' of E, not PyTorch's, which is left the sum of a c E with its own factors."""
    return asked.reduction != "none" and column_sums_wins(plan.n, plan.m, s.e // (plan.n * plan.m))


def _bias_gradient(plan: "Plan", asked: Asked, s: _Sizes, scaled_first: bool) -> list[Launch]:
    n, m, device = plan.n, plan.m, plan.device
    if not _sums_by_kernel(plan, asked, s):
        made = [_elementwise(device, "db", s.e, m * s.wide)]
        return made if scaled_first else [*made, _elementwise(device, "db times c", m * s.wide, s.db)]
    _, block_m, parts = column_sums_grid(n, m)
    written = parts * m * s.wide if parts > 1 else s.db
    made = [_launch(device, "db", s.e, written, programs=parts * -(-m // block_m))]
    return made + (_add_rows(device, parts, m, s.wide) if parts > 1 else [])


def scales_residual(plan: "Plan", asked: Asked) -> bool:
    """Whether c is multiplied into E before the library's products: one pass over E, and none over what they make.

    It is where c is a matrix, and never else in float16, where c E may underflow. Otherwise where that pass takes no longer
    than those that bring c into W for dX, into dW and into db for these, of which dW is in the accumulator's dtype still.
    """
    if asked.reduction == "none":
        return True
    if plan.dtype is torch.float16:
        return False
    wanted, s = asked.wanted, _sizes(plan, asked)
    beside = 2 * s.dw * wanted.input + 2 * plan.m * plan.k * s.wide * wanted.weight
    late_bias = wanted.bias and not _sums_by_kernel(plan, asked, s)  # else c enters in its sums
    launches = wanted.input + wanted.weight + late_bias - 1
    return 2 * s.e <= beside + launches * LAUNCH_SECONDS * plan.device.bandwidth


def _chunked(plan: "Plan", asked: Asked) -> list[Launch]:
    """Every chunk as the library path does it, or with the tiled kernel's E, which is one launch in place of three."""
    chunks = -(-plan.n // plan.chunk_rows)
    part = dataclasses.replace(plan, n=min(plan.n, plan.chunk_rows), store_residual=True)
    made = [
        launch for launch in _library(part, asked) if launch.what not in _BY_C
    ]  # which enters in products' epilogues
    if plan.config is not None:
        s = _sizes(part, asked)
        aligned = is_aligned(plan, asked)
        read = s.x + s.w + s.y
        forward = tiled_product(
            part,
            "loss and E",
            plan.config,
            ("n", "m", "k"),
            read,
            s.e,
            family="forward",
            aligned=aligned,
            moved=s.y + s.e,
        )
        forward = forward._replace(flops=forward.flops + 3 * part.n * part.m)
        made = [forward, *made[2:]]
    return [
        launch._replace(
            what=f"{launch.what}, {chunks} chunks",
            read=launch.read * chunks,
            written=launch.written * chunks,
            flops=launch.flops * chunks,
            seconds=launch.seconds * chunks,
            tiles=launch.tiles * chunks,
        )
        for launch in made
    ]


def workspace_of(plan: "Plan", asked: Asked) -> int:
    """Bytes beside arguments and gradients on CUDA at the worst moment, the chunked path's apart."""
    n, k, m, wanted = plan.n, plan.k, plan.m, asked.wanted
    s = _sizes(plan, asked)
    stored = s.e if plan.store_residual else 0
    if plan.path == "stock":
        return 2 * s.e
    if plan.path == "library":
        half = plan.dtype.itemsize == 2
        forward = min(n * m * s.wide, WIDE_BYTES) + stored if half else s.e
        return max(forward, stored + _beside_gradients(plan, asked, s))
    if plan.path == "epilogue":
        return stored + _beside_gradients(plan, asked, s)
    if plan.path.startswith("one_pass"):
        blocks = -(-m // plan.config.block_m) if plan.path == "one_pass_tall" else 1
        parts = plan.programs // blocks
        sums = 1 + (m + m * k if wanted.weight or wanted.bias else 0)
        partial = parts * sums * s.wide if parts > 1 or blocks > 1 else 0
        late = asked._replace(wanted=Wanted(wanted.input and plan.input_config is None, False, False, False))
        return stored + max(partial, _beside_gradients(plan, late, s))
    split = plan.split if plan.products_config is None else plan.products_split
    return stored + (split * (m * k + m) * s.wide if split > 1 and (wanted.weight or wanted.bias) else 0)


def _beside_gradients(plan: "Plan", asked: Asked, s: _Sizes) -> int:
    """Of the library's products of E: c E, or one after the other c W or float16's wide dX, and what dW is before its c."""
    wanted = asked.wanted
    if not (wanted.input or wanted.weight or wanted.bias):
        return 0
    # What PyTorch's sum takes depends on M: for half as many numbers as E has to twice as many.
    by_torch = wanted.bias and not _sums_by_kernel(plan, asked, s)
    sums = 2 * plan.n * plan.m * s.wide * by_torch
    if scales_residual(plan, asked):
        return s.e + sums
    late = plan.m * plan.k * s.wide * wanted.weight
    if wanted.input and plan.dtype is not torch.float16:
        late = max(late, s.dw)
    elif wanted.input and plan.input_config is None:
        late = max(late, plan.n * plan.k * s.wide)
    return max(late, sums)
