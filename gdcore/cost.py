"""What each path would cost: its launches, forward and backward, with their bytes, FLOPs and predicted seconds."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import torch

from .backends import Wanted
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
from .launches import (
    LAUNCH_SECONDS,
    Launch,
    add_rows,
    balance,
    elementwise,
    launch_of,
    library_product,
    tiled_product,
)
from .rates import factor_of

if TYPE_CHECKING:  # plan imports this module
    from .plan import Plan


class Asked(NamedTuple):
    """What a call wants, beside the shape."""

    target_dtype: torch.dtype
    wanted: Wanted
    reduction: str
    contiguous: bool
    has_bias: bool


class Alternative(NamedTuple):
    """A path that could compute the shape, its predicted time, and why it was not taken (empty for the chosen one)."""

    path: str
    seconds: float
    launches: int
    bound: str
    why_not: str


class Sizes(NamedTuple):
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


def sizes_of(plan: "Plan", asked: Asked) -> Sizes:
    n, k, m, size = plan.n, plan.k, plan.m, plan.dtype.itemsize
    return Sizes(
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
    s = sizes_of(plan, asked)
    p = n * m * plan.dtype.itemsize
    scalar = asked.reduction != "none"

    def product(what: str, rows: int, columns: int, length: int, read: int, written: int) -> Launch:
        shape = rows, columns, length, read, written
        return library_product(device, what, plan.dtype, plan.input_precision, *shape, _library_aligned(plan))

    made = [product("prediction X Wᵀ", n, m, k, s.x + s.w, p)]
    made.append(launch_of(device, "squares of prediction - Y", p + s.y, s.e, 2 * n * m))
    if scalar:
        made.append(launch_of(device, "mean", s.e, 0, n * m))
    if wanted.input or wanted.weight or wanted.bias:
        made.append(elementwise(device, "gradient of the prediction", p + s.y + (0 if scalar else s.e), p))
    if wanted.target:
        made.append(elementwise(device, "dY", p + s.y + (0 if scalar else s.e), s.dy))
    if wanted.input:
        made.append(product("dX", n, k, m, p + s.dw, s.dx))
    if wanted.weight:
        made.append(product("dW", m, k, n, p + s.x, s.dw))
    if wanted.bias:
        made.append(elementwise(device, "db", p, s.db))
    return made


def _target(plan: "Plan", asked: Asked, s: Sizes) -> list[Launch]:
    grad = s.e if asked.reduction == "none" else 0
    return [elementwise(plan.device, "dY", s.e + grad, s.dy)] if asked.wanted.target else []


def input_gradient(plan: "Plan", asked: Asked) -> tuple[Launch, ...]:
    """dX from E: by the tiled kernel, or by the library's product with c W (of float16 where c W may underflow, c behind it)."""
    if not asked.wanted.input:
        return ()
    s = sizes_of(plan, asked)
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
            return product, elementwise(plan.device, "dX times c", wide, s.dx)
        return elementwise(plan.device, "W times c", s.dw, s.dw), product
    grad = s.e if asked.reduction == "none" else 0
    spans = ("n", "k", "m")
    aligned = is_aligned(plan, asked)
    read = s.e + s.dw + grad
    return (
        tiled_product(plan, "dX = E W", plan.input_config, spans, read, s.dx, family="backward_input", aligned=aligned),
    )


def _one_pass(plan: "Plan", asked: Asked) -> list[Launch]:
    n, k, m, device, wanted = plan.n, plan.k, plan.m, plan.device, asked.wanted
    s = sizes_of(plan, asked)
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
        launch_of(
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
        *(add_rows(device, parts, sums, s.wide) if staged else []),
    ]
    if plan.dtype.itemsize == 2:
        made.append(elementwise(device, "loss in its type", s.wide, plan.dtype.itemsize))
    if wanted.weight:
        made.append(elementwise(device, "dW times grad_output", m * k * s.wide, s.dw))
    if wanted.bias:
        made.append(elementwise(device, "db times grad_output", m * s.wide, s.db))
    return [*made, *input_gradient(plan, asked), *_target(plan, asked, s)]


def _tiled(plan: "Plan", asked: Asked) -> list[Launch]:
    m, k, device, wanted = plan.m, plan.k, plan.device, asked.wanted
    s = sizes_of(plan, asked)
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
            made.append(launch_of(device, "add the parts", parts, s.dw + s.db, programs=-(-(m * k) // SUM_BLOCK)))
    return made + _target(plan, asked, s)


def _tiled_forward(plan: "Plan", asked: Asked, s: Sizes) -> list[Launch]:
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
        made += add_rows(device, tiles, 1, s.wide)
        if plan.dtype.itemsize == 2:
            made.append(elementwise(device, "loss in its type", s.wide, plan.dtype.itemsize))
    return made


def _both_products(plan: "Plan", s: Sizes) -> list[Launch]:
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
    return [both, launch_of(plan.device, "add the parts", parts, s.dw + s.db, programs=-(-(m * k) // SUM_BLOCK))]


_SCALED = "E times c"
_BY_C = (_SCALED, "W times c", "dW times c", "db times c")


def _library(plan: "Plan", asked: Asked) -> list[Launch]:
    """The library's products, and one fused pass between them; see backends/triton_library.py for the order."""
    n, k, m, device = plan.n, plan.k, plan.m, plan.device
    s = sizes_of(plan, asked)
    scalar, half = asked.reduction != "none", plan.dtype.itemsize == 2
    p = n * m * s.wide
    aligned = _library_aligned(plan)
    made = [library_product(device, "X Wᵀ", plan.dtype, plan.input_precision, n, m, k, s.x + s.dw, p, aligned)]
    programs = min(LOSS_PROGRAMS, -(-(n * m) // ELEMENTWISE_TILE))
    written = (s.e if plan.store_residual else 0) + (programs * s.wide if scalar else s.e)
    made.append(launch_of(device, "E and its squares", p + s.y + s.w - s.dw, written, 3 * n * m))
    if scalar:
        made += add_rows(device, programs, 1, s.wide) if programs > 1 else []
        if half:
            made.append(elementwise(device, "loss in its type", s.wide, plan.dtype.itemsize))
    return made + _library_gradients(plan, asked, s)


def _epilogue(plan: "Plan", asked: Asked) -> list[Launch]:
    """Our product makes the loss and E, the library's make the gradients from it."""
    s = sizes_of(plan, asked)
    return _tiled_forward(plan, asked, s) + _library_gradients(plan, asked, s)


def _library_gradients(plan: "Plan", asked: Asked, s: Sizes) -> list[Launch]:
    """The library's products of E, and the passes by which c enters."""
    n, k, m, device, wanted = plan.n, plan.k, plan.m, plan.device, asked.wanted
    made: list[Launch] = []

    def product(what: str, rows: int, columns: int, length: int, read: int, written: int) -> Launch:
        shape = rows, columns, length, read, written
        return library_product(device, what, plan.dtype, plan.input_precision, *shape, _library_aligned(plan))

    grad = s.e if asked.reduction == "none" else 0
    scaled_first = scales_residual(plan, asked)
    if scaled_first and (wanted.input or wanted.weight or wanted.bias):
        made.append(elementwise(device, _SCALED, s.e + grad, s.e))
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
            made.append(elementwise(device, "dW times c", m * k * s.wide, s.dw))
    if wanted.bias:
        made += _bias_gradient(plan, asked, s, scaled_first)
    return made + _target(plan, asked, s)


def sums_by_kernel(plan: "Plan", asked: Asked, s: Sizes) -> bool:
    """Whether db is column_sums' of E, not PyTorch's, which is left the sum of a c E with its own factors."""
    return asked.reduction != "none" and column_sums_wins(plan.n, plan.m, s.e // (plan.n * plan.m))


def _bias_gradient(plan: "Plan", asked: Asked, s: Sizes, scaled_first: bool) -> list[Launch]:
    n, m, device = plan.n, plan.m, plan.device
    if not sums_by_kernel(plan, asked, s):
        made = [elementwise(device, "db", s.e, m * s.wide)]
        return made if scaled_first else [*made, elementwise(device, "db times c", m * s.wide, s.db)]
    _, block_m, parts = column_sums_grid(n, m)
    written = parts * m * s.wide if parts > 1 else s.db
    made = [launch_of(device, "db", s.e, written, programs=parts * -(-m // block_m))]
    return made + (add_rows(device, parts, m, s.wide) if parts > 1 else [])


def scales_residual(plan: "Plan", asked: Asked) -> bool:
    """Whether c is multiplied into E before the library's products: one pass over E, and none over what they make.

    It is where c is a matrix, and never else in float16, where c E may underflow. Otherwise where that pass takes no longer
    than those that bring c into W for dX, into dW and into db for these, of which dW is in the accumulator's dtype still.
    """
    if asked.reduction == "none":
        return True
    if plan.dtype is torch.float16:
        return False
    wanted, s = asked.wanted, sizes_of(plan, asked)
    beside = 2 * s.dw * wanted.input + 2 * plan.m * plan.k * s.wide * wanted.weight
    late_bias = wanted.bias and not sums_by_kernel(plan, asked, s)  # else c enters in its sums
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
        s = sizes_of(part, asked)
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
