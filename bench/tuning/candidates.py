"""What can be tuned: which kernels a size launches, and the configurations worth a try for each of them, as data."""

import dataclasses
from collections.abc import Iterable, Iterator

import torch

from gdcore.backends import Wanted
from gdcore.devices import Device
from gdcore.kernels.configs import REDUCED, Config
from gdcore.plan import Plan, every_path, plan_for
from gdcore.tuned import Table
from gdcore.tuned_format import Entry, Key, key_of

# One size for each regime of the fused kernels, those that people have most often first.
SIZES = (
    (10_000_000, 2, 1),
    (4_000_000, 64, 1),
    (1_000_000, 256, 1),
    (1_000_000, 64, 16),
    (65_536, 512, 512),
    (10_000_000, 8, 1),
    (1_000_000, 256, 4),
    (1_000_000, 256, 16),
    (1_000_000, 256, 256),
    (1_000_000, 128, 64),
)
CONFIG_FIELD = {"backward_input": "input_config", "backward_weight": "weight_config"}  # of a plan; others: config

ROWS_EACH, ROWS_WARPS = (1, 2, 4), (1, 2, 4, 8)  # lanes of a tile: EACH for each thread
VECTOR_SCALES, VECTOR_STAGES, VECTOR_WARPS = (1, 0.5, 2), (1, 2, 3, 5), (4, 8)  # times the default's rows
DOT_SCALES, DOT_STAGES, DOT_WARPS = (1, 0.5, 2), (0, -1, 1), (4, 8)  # stages: added to the default's
TALL_SCALES, TALL_STAGES, TALL_WARPS = (1, 0.5, 2), (0, 1), (4, 8)  # of rows and of outputs
PRODUCT_SCALES = ((1, 1), (0.5, 1), (1, 0.5), (2, 1), (1, 2))  # times the default's tile
PRODUCT_STEPS, PRODUCT_STAGES, PRODUCT_WARPS = (1, 0.5, 2), (0, -1, 1), (8, 4)
LARGEST_TILE = 128 * 256  # accumulators of a product: more do not fit the registers
LEAST_BLOCK = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One kernel at one size: what an entry of the table is made from."""

    family: str
    dtype: torch.dtype
    n: int
    k: int
    m: int
    input_precision: str
    wanted: Wanted

    def plan(self, device: Device, entry: Entry | None = None) -> Plan:
        """What the library would launch with this entry in its table, or with what ships: the same code decides."""
        plan = _plan(self, device, None)
        if entry is None:
            return plan
        return _plan(self, device, Table("", {self._key(plan): entry}))

    def key(self, device: Device) -> Key:
        return self._key(_plan(self, device, None))

    def _key(self, plan: Plan) -> Key:
        return key_of(self.family, self.dtype, self.n, self.k, self.m, self.input_precision, plan.store_residual)

    def config(self, plan: Plan) -> Config:
        """The configuration of this job's kernel in a plan."""
        return getattr(plan, CONFIG_FIELD.get(self.family, "config"))

    def __str__(self) -> str:
        precision = " tf32" if self.input_precision == "tf32" else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.family} {dtype}{precision} {self.n:,} × {self.k:,} × {self.m:,}"


def _plan(job: Job, device: Device, table: Table | None) -> Plan:
    """The plan of the path that launches the job's kernel, whether or not it is the one that the shape takes."""
    path = job.family if job.family.startswith("one_pass") else "tiled"
    return next(plan for plan in _every_path(job, device._replace(tuned=table)) if plan.path == path)


def _every_path(job: Job, device: Device) -> tuple[Plan, ...]:
    options = {"dtype": job.dtype, "wanted": job.wanted, "device": device, "input_precision": job.input_precision}
    return every_path(job.n, job.k, job.m, has_bias=True, **options)


def _taken(job: Job, device: Device) -> str:
    """The path that the shape takes with what ships."""
    options = {"dtype": job.dtype, "wanted": job.wanted, "input_precision": job.input_precision}
    return plan_for(job.n, job.k, job.m, device=device._replace(tuned=None), has_bias=True, **options).path


def jobs(
    sizes: Iterable[tuple[int, int, int]],
    dtypes: Iterable[torch.dtype],
    device: Device,
    *,
    families: Iterable[str] | None = None,
    input_precision: str = "ieee",
    want_input: bool = False,
) -> list[Job]:
    """The kernels that loss and gradients launch at these sizes; none where the library's products are what is planned.

    Families that are named are tuned at every size that they take, also where another path is faster as it ships.
    """
    wanted = Wanted(want_input, True, False, True)
    found: dict[Key, Job] = {}
    for n, k, m in sizes:
        for dtype in dtypes:
            precision = input_precision if dtype is torch.float32 else "ieee"
            shape = Job("", dtype, n, k, m, precision, wanted)
            taken = _taken(shape, device)
            for plan in _every_path(shape, device._replace(tuned=None)):
                if plan.path in ("library", "epilogue") or (families is None and plan.path != taken):
                    continue
                used = [plan.path] if plan.path.startswith("one_pass") else ["forward", "backward_weight"]
                if plan.input_config is not None:
                    used.append("backward_input")
                for family in used:
                    if families is None or family in families:
                        job = Job(family, dtype, n, k, m, precision, wanted)
                        found.setdefault(job.key(device), job)
    return list(found.values())


def candidates(job: Job, device: Device, limit: int | None = None) -> list[Config]:
    """Configurations to try, the shipped one first, then those nearest to it; at most `limit` of them."""
    default = job.config(job.plan(device))
    makers = {"one_pass_rows": _rows, "one_pass_vector": _vector, "one_pass_dot": _dot, "one_pass_tall": _tall}
    others = makers[job.family](default) if job.family in makers else _product(job.family, default)
    return list(dict.fromkeys([default, *others]))[:limit]


def _rows(default: Config) -> Iterator[Config]:
    for warps in sorted(ROWS_WARPS, key=lambda warps: abs(warps - default.num_warps)):
        for each in ROWS_EACH:
            yield dataclasses.replace(default, block_n=each * 32 * warps, num_warps=warps)


def _vector(default: Config) -> Iterator[Config]:
    for warps in VECTOR_WARPS:
        for scale in VECTOR_SCALES:
            block_n = int(scale * default.block_n)
            if block_n < warps:  # a row lies in one warp
                continue
            for stages in dict.fromkeys((default.num_stages, *VECTOR_STAGES)):
                yield dataclasses.replace(default, block_n=block_n, num_warps=warps, num_stages=stages)


def _dot(default: Config) -> Iterator[Config]:
    for warps in DOT_WARPS:
        for scale in DOT_SCALES:
            for more in DOT_STAGES:
                block_n, stages = int(scale * default.block_n), default.num_stages + more
                if block_n >= LEAST_BLOCK and stages >= 1:
                    yield dataclasses.replace(default, block_n=block_n, num_warps=warps, num_stages=stages)


def _tall(default: Config) -> Iterator[Config]:
    for warps in TALL_WARPS:
        for rows in TALL_SCALES:
            for outputs in TALL_SCALES:
                block_n, block_m = int(rows * default.block_n), int(outputs * default.block_m)
                # dW's block fills the registers: a larger one would not fit beside the rest.
                if min(block_n, block_m) < LEAST_BLOCK or block_m * default.block_k > LARGEST_TILE:
                    continue
                for more in TALL_STAGES:
                    if default.num_stages + more >= 1:
                        yield Config(block_n, default.block_k, block_m, warps, default.num_stages + more)


def _product(family: str, default: Config) -> Iterator[Config]:
    step = REDUCED[family]
    first, second = (name for name in ("block_n", "block_k", "block_m") if name != step)

    def scaled(one: float, two: float, along: float, warps: int, stages: int) -> Iterator[Config]:
        blocks = {
            first: int(one * getattr(default, first)),
            second: int(two * getattr(default, second)),
            step: int(along * getattr(default, step)),
        }
        if min(blocks.values()) >= LEAST_BLOCK and blocks[first] * blocks[second] <= LARGEST_TILE and stages >= 1:
            yield Config(**blocks, num_warps=warps, num_stages=stages)

    for one, two in PRODUCT_SCALES:
        for more in PRODUCT_STAGES:
            yield from scaled(one, two, 1, default.num_warps, default.num_stages + more)
    for along in PRODUCT_STEPS:
        yield from scaled(1, 1, along, default.num_warps, default.num_stages)
    for warps in PRODUCT_WARPS:
        for one, two in PRODUCT_SCALES:
            yield from scaled(one, two, 1, warps, default.num_stages)


def words(config: Config) -> str:
    """`32 x 64, 4 warps, 3 stages`: blocks of N, K and M as far as there are any."""
    blocks = " x ".join(str(length) for length in (config.block_n, config.block_k, config.block_m) if length)
    warps, stages = config.num_warps, config.num_stages
    return f"{blocks}, {warps} warp{'s' * (warps != 1)}, {stages} stage{'s' * (stages != 1)}"
