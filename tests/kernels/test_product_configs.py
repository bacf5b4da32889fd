"""The table of the tiled products: the configuration for a shape, and the parts of the rows."""

import pytest
import torch
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from gdcore.kernels.configs import (
    Config,
    default_products_split,
    default_split,
    epilogue_config,
    product_config,
    product_offered,
)
from gdcore.kernels.shipped_products import product_variants
from gdcore.kernels.table import lookup
from support import DTYPES

FAMILIES = ["forward", "backward_input", "backward_weight"]  # which have a configuration for everything
SIZES = st.integers(1, 10**8)


@given(st.sampled_from(FAMILIES), st.sampled_from([80, 86, 90, 100, 120]), st.sampled_from(DTYPES), SIZES, SIZES, SIZES)
def test_blocks_are_powers_of_two_no_longer_than_the_dimension_needs(family, arch, dtype, n, k, m):
    config = product_config(family, arch, dtype, n, k, m)
    for block, size in ((config.block_n, n), (config.block_k, k), (config.block_m, m)):
        assert block.bit_count() == 1
        assert 16 <= block < max(33, 2 * size)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_output_gets_narrow_tiles(family):
    assert product_config(family, 90, torch.bfloat16, 10**6, 4096, 1).block_m <= 32


def test_few_tiles_are_halved():
    large = product_config("forward", 90, torch.bfloat16, 8192, 8192, 8192)
    few = product_config("forward", 90, torch.bfloat16, 512, 8192, 512)
    assert (few.block_n, few.block_m) < (large.block_n, large.block_m)


@pytest.mark.parametrize("arch", [75, 86, 89, 120])
def test_other_architectures_are_served_by_the_table_with_the_least_shared_memory(arch):
    shape = (8192, 8192, 8192)
    assert product_config("forward", arch, torch.float16, *shape) == product_config(
        "forward", 80, torch.float16, *shape
    )


@given(SIZES, st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 200))
def test_parts_fill_two_waves_at_most_and_are_long_enough(n, k, m, multiprocessors):
    config = Config(64, 128, 128, 8, 3)
    split = default_split(n, k, m, config, multiprocessors)
    tiles = -(-m // 128) * -(-k // 128)
    assert split >= 1
    assert split == 1 or (tiles * split <= 2 * multiprocessors and n / split > 3 * 64)


@given(SIZES, st.integers(1, 10**5), st.integers(1, 10**5))
def test_descriptors_blocks_suit_the_copy_engine(n, k, m):
    for family in ("forward_descriptors", "backward_products_descriptors", "backward_weight_step_descriptors"):
        config = product_config(family, 90, torch.bfloat16, n, k, m)
        assert all(16 <= block <= 256 for block in (config.block_n, config.block_k, config.block_m))


def test_what_is_offered_where():
    half, single = torch.bfloat16, torch.float32
    assert [product_offered("forward_descriptors", arch, half) for arch in (80, 90, 100, 120)] == [0, 1, 1, 0]
    assert product_offered("forward_descriptors", 90, single, input_precision="tf32x3")
    assert not product_offered("forward_descriptors", 90, single)
    assert not product_offered("forward_descriptors", 90, half, aligned=False)
    assert product_offered("backward_products_descriptors", 90, half, wide=True)
    assert [product_offered("backward_products", arch, half) for arch in (80, 90)] == [1, 0]
    assert all(
        product_offered(family, arch, dtype, aligned=aligned)
        for family in FAMILIES for arch in (80, 90, 100) for dtype in DTYPES for aligned in (True, False)
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["tf32x3", "half"])
def test_what_takes_more_registers_has_smaller_tiles(family, precision):
    dtype, options = (torch.bfloat16, {"aligned": False}) if precision == "half" else (torch.float32, {})
    shape = (8192, 8192, 8192)
    like = product_config(family, 90, dtype, *shape, input_precision="tf32")
    small = product_config(
        family, 90, dtype, *shape, input_precision="tf32" if precision == "half" else precision, **options
    )
    assert small.block_n * small.block_k * small.block_m < like.block_n * like.block_k * like.block_m


def test_an_update_of_unaligned_tensors_takes_a_quarter_of_the_tile():
    config = lookup("backward_weight", "half unaligned", 90)
    found = epilogue_config(config, torch.bfloat16, "ieee", aligned=False)
    assert found.block_k * found.block_m == 16 * 32 * found.num_warps


def test_few_long_tiles_of_the_weights_gradient_are_cut_where_the_inputs_could_not_fill_their_time():
    config = Config(128, 256, 64, 8, 4)
    assert default_products_split(8192, 8192, 8192, config, 132) == 1
    assert (
        default_products_split(65536, 1024, 1024, config, 132) == 3
    )  # 32 tiles of 1024 steps; 496 steps a multiprocessor
    assert default_products_split(1, 16, 16, config, 132) == 1


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_shipped_variant_names_all_arguments_once(arch):
    variants = product_variants(arch)
    assert len({v.name for v in variants}) == len(variants)
    for v in variants:
        assert sorted([*v.arguments, *v.constants]) == sorted(v.kernel.arg_names)


@pytest.mark.parametrize("variant", product_variants(90), ids=lambda v: v.name)
def test_scales_are_declared_float64(variant):
    # Undeclared, a float argument reaches compiled code as float32; the interpreter cannot tell.
    scales = {"scale", "loss_scale"} & set(variant.arguments)
    assert scales
    assert all(variant.kernel.fn.__annotations__[name] is tl.float64 for name in scales)
