"""Which shapes of whole runs fit, and with what: pure arithmetic; test_compiled.py checks the compiler's side of it."""

import itertools

import pytest
import torch

from gdcore.kernels.configs import MULTIPROCESSORS, Config, power_of_2
from gdcore.kernels.run_configs import batches_config, grid_config, may_fuse, resident_config, thread_tile
from gdcore.kernels.shipped_runs import run_variants
from support import DTYPES

ARCHITECTURES = [75, 80, 86, 90, 100, 120]
ROWS, COLUMNS, OUTPUTS = (1, 2, 33, 100, 1000, 5000), (1, 2, 3, 10, 16, 64, 100, 784), (1, 2, 3, 10, 16)
SHAPES = list(itertools.product(ROWS, COLUMNS, OUTPUTS, DTYPES))


def assert_sound(config, rows, k):
    for block, length in ((config.block_n, rows), (config.block_k, k)):
        assert block >= length
        assert block & (block - 1) == 0
    assert config.num_warps in (1, 2, 4, 8, 16)


@pytest.mark.parametrize("find", [resident_config, batches_config])
def test_what_fits_fits_with_fewer_rows_too_and_its_tile_holds_it(find):
    found = {shape: find(*shape, 90) for shape in SHAPES}
    assert any(found.values())
    assert not all(found.values())
    for (n, *rest), config in found.items():
        if config is None:
            continue
        assert_sound(config, n, rest[0])
        assert all(found[fewer, *rest] for fewer in ROWS if fewer < n)
        assert all(found[fewer, *rest].num_warps <= config.num_warps for fewer in ROWS if fewer < n)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lessons_run_on_one_warp_and_nothing_exchanged(arch):
    for dtype in DTYPES:
        assert resident_config(100, 2, 1, dtype, arch).num_warps == 1
        assert batches_config(32, 2, 1, dtype, arch).num_warps == 1


@pytest.mark.parametrize(
    ("n", "k", "m"), [(442, 10, 1), (1024, 16, 1), (2048, 16, 1), (512, 64, 1), (300, 5, 3), (8192, 1, 1), (64, 8, 10)]
)
def test_sizes_that_must_fit_one_program(n, k, m):
    assert resident_config(n, k, m, torch.float32, 90)


@pytest.mark.parametrize(
    ("n", "k", "m"), [(100_000, 16, 1), (1_000_000, 2, 1), (50_000, 32, 1), (50_000, 16, 4), (4000, 64, 1), (3, 1, 1)]
)
def test_sizes_that_must_fit_all_multiprocessors(n, k, m):
    for arch, multiprocessors in MULTIPROCESSORS.items():
        found = grid_config(n, k, m, torch.float32, arch, multiprocessors)
        if n == 1_000_000 and arch == 80:  # 108 multiprocessors: 9260 rows each, in a tile of 16384
            assert found is None
            continue
        config, programs = found
        assert_sound(config, -(-n // programs), k)
        assert 1 <= programs <= multiprocessors
        assert programs * config.block_n >= n > (programs - 1) * config.block_n


def test_one_row_more_than_tiles_on_all_multiprocessors_takes_larger_tiles_not_more_programs():
    assert grid_config(132 * 512, 2, 1, torch.float32, 90, 132)[1] == 132
    config, programs = grid_config(132 * 512 + 1, 2, 1, torch.float32, 90, 132)
    assert (config.block_n, programs) == (1024, 67)


def test_all_multiprocessors_hold_more_than_one_and_no_more_than_all_registers():
    for n, k, m, dtype in SHAPES:
        if found := grid_config(n, k, m, dtype, 90, 132):
            assert_sound(found[0], -(-n // found[1]), k)
    assert resident_config(100_000, 16, 1, torch.float32, 90) is None
    assert grid_config(10_000_000, 2, 1, torch.float32, 90, 132) is None
    assert grid_config(1_000_000, 2, 1, torch.float32, 90, 13) is None


@pytest.mark.parametrize("find", [resident_config, batches_config, lambda *shape: grid_config(*shape, 132)])
def test_too_many_outputs_and_nothing_at_all_do_not_fit(find):
    assert find(10, 2, 17, torch.float32, 90) is None
    assert find(0, 2, 1, torch.float32, 90) is None
    assert find(10, 0, 1, torch.float32, 90) is None
    assert find(10, 2, 0, torch.float32, 90) is None


@pytest.mark.parametrize(
    ("block_n", "k", "dtype", "warps", "expected"),
    [
        (128, 2, torch.float32, 1, (4, 2)),
        (512, 10, torch.float32, 4, (32, 2)),
        (1024, 16, torch.float32, 16, (8, 4)),
        (512, 64, torch.float32, 16, (16, 4)),
        (32, 256, torch.float32, 4, (8, 8)),
        (512, 16, torch.bfloat16, 4, (8, 8)),
        (512, 5, torch.float64, 16, (8, 1)),
        (16, 1, torch.float32, 4, (1, 1)),
    ],
)
def test_a_threads_part_of_a_tile_is_what_the_compiler_lays_out(block_n, k, dtype, warps, expected):
    assert thread_tile(block_n, k, dtype, warps) == expected


def test_shipped_variants_are_named_apart_and_of_every_kernel():
    names = [variant.name for variant in run_variants(90)]
    assert len(set(names)) == len(names)
    assert {name.split()[0] for name in names} == {"run_resident", "run_batches", "run_grid"}


@pytest.mark.parametrize(
    ("block_n", "k", "num_warps", "fuses"),
    [(4, 2, 1, False), (32, 1, 1, False), (64, 1, 1, True), (128, 2, 1, True), (128, 3, 1, False), (128, 2, 4, False)],
)
def test_lanes_that_bring_one_product_to_a_sum_do_not_fuse_it(block_n, k, num_warps, fuses):
    config = Config(block_n=block_n, block_k=power_of_2(k), num_warps=num_warps)
    assert may_fuse(config, k, torch.float32) == fuses
