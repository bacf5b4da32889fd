"""The table of configurations: rows are unique, each is compiled by a variant that ships, and every variant has its row."""

import collections
import os
import subprocess
import sys

import pytest

from gdcore.kernels.shipped import variants
from gdcore.kernels.shipped_rows import row_of
from gdcore.kernels.table import ARCHITECTURES, KINDS, REGIMES, TABLE, Key, lookup

# Kernels whose tiles do not come from the table: from formulas, or the same for everything.
WITHOUT_ROWS = {
    "one_pass_rows", "one_pass_rows_step", "run_resident", "run_batches", "run_grid",
    "squares", "column_sums", "add_rows", "add_rows_step", "add_parts_step",
    "one_pass_vector", "one_pass_vector_step",  # of unaligned rows
}  # fmt: skip
# Rows that no variant is compiled for, to save the time: another row of the same operands is compiled on as many warps,
# with a tile that is as large or larger in each of the three products of its blocks that registers hold.
SMALLER = {
    ("one_pass_vector", "float64", 2),
    *(("one_pass_dot", "float64", size) for size in (32, 64, 128)),
    ("one_pass_dot", "float32", 64),
    ("one_pass_dot", "half", 64),
    *(("one_pass_tall", "float64", size) for size in (16, 32, 64)),
    *(("one_pass_tall", "tf32", size) for size in (16, 32)),
    *(("one_pass_tall", "tf32 unaligned", size) for size in (16, 32)),
    *(("one_pass_tall", "tf32x3", size) for size in (16, 32)),
    *(("one_pass_tall", "tf32x3 unaligned", size) for size in (16, 32)),
    *(("one_pass_tall", "half narrow", size) for size in (16, 32)),
    ("one_pass_tall", "half unaligned", 32),
}


def compiled_rows() -> dict[Key, list[str]]:
    """Row -> the variants that are launched with it."""
    found = collections.defaultdict(list)
    for arch in ARCHITECTURES:
        for variant in variants(arch):
            if (row := row_of(variant, arch)) is not None:
                found[row[0]].append(variant.name)
    return found


COMPILED = compiled_rows()


def held(key: Key) -> tuple[int, int, int]:
    """Numbers of a tile's three sides: of X or dX, of E, of dW."""
    config = TABLE[key]
    outputs = config.block_m or key.size
    return config.block_n * config.block_k, config.block_n * outputs, config.block_k * outputs


def of_every_architecture(key: Key) -> tuple[str, str, int]:
    return key.family, key.kind, key.size


def test_rows_are_unique():
    rows = [(row, arch) for regime in REGIMES.values() for row in regime for arch in row[2]]
    assert len(rows) == len(TABLE)
    assert {arch for _, arch in rows} == set(ARCHITECTURES)


def test_rows_that_say_the_same_for_two_architectures_share_a_line():
    lines = [(family, kind, size, *figures) for rows in REGIMES.values() for family, kind, _, size, *figures in rows]
    assert len(lines) == len(set(lines))


def test_blocks_are_powers_of_two_that_fit_the_size():
    for key, config in TABLE.items():
        blocks = (config.block_n, config.block_k, config.block_m)
        assert all(block & (block - 1) == 0 for block in blocks) and config.block_n, key
        assert config.num_warps in (4, 8) and 1 <= config.num_stages <= 8, key
        if key.family in ("one_pass_dot", "one_pass_tall"):
            assert key.size == config.block_k >= 16 <= config.block_m, key
        else:
            assert key.family == "one_pass_vector" or not key.size, key


def test_every_row_is_compiled_by_what_ships_or_stands_below_one_that_is():
    missing = {of_every_architecture(key) for key in TABLE if key not in COMPILED}
    assert missing == SMALLER


@pytest.mark.parametrize("row", sorted(SMALLER), ids=lambda row: " ".join(map(str, row)))
def test_rows_that_are_not_compiled_have_smaller_tiles_than_one_that_is(row):
    for key in TABLE:
        if of_every_architecture(key) != row:
            continue
        kind = key.kind.removesuffix(" narrow")
        larger = [
            other
            for other in COMPILED
            if (other.family, other.kind, other.architecture) == (key.family, kind, key.architecture)
            and TABLE[other].num_warps == TABLE[key].num_warps
            and all(mine <= theirs for mine, theirs in zip(held(key), held(other), strict=True))
        ]
        assert larger, key


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_is_launched_with_what_follows_from_its_row(arch):
    for variant in variants(arch):
        row = row_of(variant, arch)
        if row is None:
            assert variant.kernel.fn.__name__.removesuffix("_kernel") in WITHOUT_ROWS, variant.name
        else:
            assert row[0] in TABLE
            assert row[1] == variant.config, (variant.name, row)


def test_architectures_have_the_same_kinds_and_sizes_where_each_has_the_kernel():
    there = {(key.family, key.architecture) for key in TABLE}
    for family, kind in KINDS:
        sizes = {
            frozenset(key.size for key in TABLE if key[:3] == (family, kind, arch))
            for arch in ARCHITECTURES
            if (family, arch) in there
        }
        assert len(sizes) == 1 or kind.endswith("narrow"), (family, kind)


def test_what_is_not_there_is_a_key_error():
    with pytest.raises(KeyError):
        lookup("backward_products", "half", 90)


def test_the_command_prints_each_row_with_its_compiled_figures():
    command = [sys.executable, "-W", "error", "-m", "gdcore.kernels.table", "--arch", "90", "--family", "forward"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert len(lines) == sum(key.family == "forward" and key.architecture == 90 for key in TABLE)
    assert header.startswith("regime") and header.endswith("compiled as")
    line = next(line for line in lines if "float32" in line)
    config = lookup("forward", "float32", 90)
    assert f"{config.block_n} x {config.block_k} x {config.block_m} " in line
    assert line.startswith("C products") and line.endswith("forward float32")
