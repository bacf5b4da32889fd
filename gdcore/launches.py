"""What one launch would take: a kernel, or a product of the library's. Everything here is predicted.

A launch takes LAUNCH_SECONDS and then the longest of three: its bytes at the device's bandwidth, its FLOPs at the rate of the
units that do them, its traffic through L2. FLOPs are those that are executed: tiles that stand over the edge count in
full, and so does the wait for the busiest multiprocessor, which has ⌈tiles / multiprocessors⌉ of them. Bytes count each
operand once; what programs read again comes from L2. A grid with fewer programs than multiprocessors gets their share of
the bandwidth. What a tile reads and writes once its products are made takes its time beside them, unless other programs
multiply meanwhile.
"""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch

from .devices import Device
from .kernels.configs import Config
from .rates import factor_of

if TYPE_CHECKING:  # plan imports this module
    from .plan import Plan

# From one kernel on a stream to the next that waits for it, with nothing to do in it: assumed, from what is published of
# A100 and H100. plan.LAST_PROGRAM_BYTES rests on the same figure.
LAUNCH_SECONDS = 2.4e-6
ELEMENTWISE_BYTES = 16 << 10  # that a program of an elementwise kernel moves
# Prologue and epilogue of a tile, where nothing else runs on its multiprocessor. Published for cuBLAS, 8192 x 8192 x K in
# float16 on an H100: 588 TFLOP/s at K = 1024, 646 at 4096, 661 at 8192, as if a reduction were longer by 110; of a tile of
# 128 x 256 those are 1.2 µs. Smaller tiles have so many more programs beside them to wait with, up to MOST_RESIDENT.
TILE_SECONDS = 1.2e-6
LARGE_TILE, MOST_RESIDENT = 128 * 256, 8
# Of the time to write what a half-precision product of the library's leaves in float32, what its arithmetic does not hide:
# measured, H100, 8192 rows, 1024 to 8192 features and outputs.
WIDE_SHARE = 0.4
# The library's tiles, with what is assumed that each reaches of the rate; of all, the fastest for a shape is taken.
LIBRARY_TILES = ((256, 128, 1.0), (128, 128, 0.97), (128, 64, 0.85), (64, 64, 0.7), (64, 32, 0.5), (128, 16, 0.5))
NARROW = 0.5  # of the rate: what a product of up to 16 rows or columns reaches, assumed
LEAST_PART = 512  # of the reduction, where the library splits it


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


def predicted_seconds(launches: Iterable[Launch]) -> float:
    return sum(launch.seconds for launch in launches)


def bound_of(launches: tuple[Launch, ...]) -> str:
    """What takes most of the time."""
    spent: dict[str, float] = {"launches": len(launches) * LAUNCH_SECONDS}
    for launch in launches:
        if launch.bound != "launches":
            spent[launch.bound] = spent.get(launch.bound, 0.0) + launch.seconds - LAUNCH_SECONDS
    return max(spent, key=spent.__getitem__)


def launch_of(
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


def add_rows(device: Device, rows: int, columns: int, size: int) -> list[Launch]:
    """The second stage of an ordered sum."""
    return [launch_of(device, "add partial sums", rows * columns * size, columns * size, programs=-(-columns // 32))]


def elementwise(device: Device, what: str, read: int, written: int) -> Launch:
    return launch_of(device, what, read, written)


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
    return launch_of(
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
    return launch_of(
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
