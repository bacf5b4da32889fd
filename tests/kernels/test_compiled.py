"""The machine code of everything that ships, for sm_80, sm_90 and sm_100, read without a GPU.

To check it with another Triton: PYTHONPATH=<folder that holds it> python -m pytest tests/kernels/test_compiled.py
"""

import json
import os
import subprocess
import sys

import pytest
import torch
import triton

from gdcore.kernels.compiled import ARCHITECTURES, CHIPS, RESOURCES, count_instructions, occupancy
from gdcore.kernels.configs import rows_per_tile
from gdcore.kernels.shipped import SHORT, variants

MATRIX = {80: {"HMMA"}, 90: {"HMMA", "HGMMA", "QGMMA"}, 100: {"HMMA", "UTCHMMA", "UTCQMMA"}}
WIDE = {"LDG.128", "LDGSTS.128", "UTMALDG"}
SHIPPED = {f"{variant.name} on sm_{arch}": (arch, variant) for arch in ARCHITECTURES for variant in variants(arch)}
ONE_PASS = {name: pair for name, pair in SHIPPED.items() if name.startswith("one_pass") and pair[0] >= 90}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, request):
    """Figures of every variant that a selected test asks for, compiled once, in processes that do not interpret."""
    folder = tmp_path_factory.mktemp("compiled")
    path, only = folder / "figures.json", folder / "only"
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    only.write_text("\n".join(asked & SHIPPED.keys()))
    command = [sys.executable, "-m", "gdcore.kernels.compiled", "--json", str(path), "--only", str(only)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())["variants"]


def figures_of(compiled, arch, variant):
    figures = compiled[variant.name][str(arch)]
    assert "error" not in figures, figures
    return figures


def test_names_are_unique():
    assert len(SHIPPED) == sum(len(variants(arch)) for arch in ARCHITECTURES)


@pytest.mark.parametrize("name", SHIPPED)
def test_fits_without_spills(compiled, name):
    arch, variant = SHIPPED[name]
    figures = figures_of(compiled, arch, variant)
    assert figures["stack_bytes"] == 0
    assert not {"LDL", "STL"} & figures["instructions"].keys()
    assert figures["shared_bytes"] <= CHIPS[arch].max_shared_bytes
    assert figures["registers"] <= 255
    programs, warps = figures["programs_per_sm"], variant.config.num_warps
    assert programs >= 1
    assert programs * warps * 32 * figures["registers"] <= CHIPS[arch].registers
    assert programs * figures["shared_bytes"] <= CHIPS[arch].shared_bytes
    assert figures["occupancy"] == programs * warps / CHIPS[arch].max_warps <= 1


@pytest.mark.parametrize("name", [name for name, (_, variant) in SHIPPED.items() if variant.tensor_cores])
def test_multiplies_on_tensor_cores(compiled, name):
    arch, variant = SHIPPED[name]
    assert MATRIX[arch] & figures_of(compiled, arch, variant)["instructions"].keys()


@pytest.mark.parametrize(
    "name", [name for name, (arch, variant) in SHIPPED.items() if arch == 90 and variant.tensor_cores]
)
def test_no_operand_of_an_asynchronous_product_is_read_into_registers(compiled, name):
    arch, variant = SHIPPED[name]
    assert not figures_of(compiled, arch, variant)["read_twice"]


@pytest.mark.parametrize("name", [name for name, (_, variant) in SHIPPED.items() if variant.vector_loads])
def test_loads_16_bytes_at_a_time(compiled, name):
    arch, variant = SHIPPED[name]
    assert WIDE & figures_of(compiled, arch, variant)["instructions"].keys()


@pytest.mark.parametrize("name", [name for name, (_, variant) in SHIPPED.items() if variant.descriptors])
def test_descriptors_are_fetched_by_the_copy_engine(compiled, name):
    arch, variant = SHIPPED[name]
    instructions = figures_of(compiled, arch, variant)["instructions"]
    assert "UTMALDG" in instructions
    assert not {"LDGSTS.32", "LDGSTS.64", "LDGSTS.128"} & instructions.keys()  # nor by the threads
    # The assembler may put a wait behind every instruction of Hopper's tensor cores; one behind each loop is right.
    matrix = MATRIX[arch] - {"HMMA"}
    assert matrix & instructions.keys()
    assert 2 * instructions.get("HGMMA waits", 0) <= sum(instructions.get(name, 0) for name in matrix)


@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass_keeps_enough_loads_in_flight(compiled, name):
    """Bandwidth times latency of an H100 or H200 is 20 to 30 kB for each multiprocessor."""
    # Numbers of 2 bytes that are loaded one by one take a register each.
    arch, variant = ONE_PASS[name]
    dtype = next(dtype for dtype, short in SHORT.items() if "*" + short == variant.arguments["input_ptr"])
    k, m = variant.constants["K"], variant.constants["M"]
    family = variant.name.split()[0].removeprefix("one_pass_")
    least = 24_000 if variant.most_registers and dtype.itemsize == 2 else 32_000
    rows = rows_per_tile(family, variant.config, k, dtype) * max(variant.config.num_stages - 1, 1)
    assert figures_of(compiled, arch, variant)["programs_per_sm"] * rows * (k + m) * dtype.itemsize >= least


SGD = {
    name: pair
    for name, pair in SHIPPED.items()
    if name.startswith("sgd ") and "unaligned" not in name and "strided" not in name and pair[0] >= 90
}


@pytest.mark.parametrize("name", SGD)
def test_sgd_keeps_enough_loads_in_flight(compiled, name):
    """Each program asks for a whole chunk of every operand before it uses any."""
    arch, variant = SGD[name]
    kinds = [kind.split() for kind in variant.constants["KINDS"].split(";")]
    size = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "none": 0}
    least = min(sum(size[dtype] for dtype in kind[:3]) + 4 * int(kind[3]) for kind in kinds)
    in_flight = figures_of(compiled, arch, variant)["programs_per_sm"] * variant.constants["BLOCK"] * least
    assert in_flight >= 40_000, in_flight


def test_stored_figures_are_those_of_their_compiler(compiled):
    stored = json.loads(RESOURCES.read_text())
    assert {
        f"{name} on sm_{arch}" for name, by_arch in stored["variants"].items() for arch in by_arch
    } == SHIPPED.keys()
    if stored["triton"] != triton.__version__:
        pytest.skip(f"{RESOURCES.name} is from Triton {stored['triton']}, this is {triton.__version__}")
    assert compiled
    for name, by_arch in compiled.items():
        for arch, now in by_arch.items():
            figures = stored["variants"][name][arch]
            assert figures == {key: now[key] for key in figures}, (
                f"{name} on sm_{arch}: run `python -m gdcore.kernels.compiled --write`"
            )


def test_what_ships_for_80_fits_the_gpus_with_less_shared_memory():
    """8.6, 8.9 and 12.0, which take its rows, give a program 101,376 bytes."""
    stored = json.loads(RESOURCES.read_text())["variants"]
    largest = {name: by_arch["80"]["shared_bytes"] for name, by_arch in stored.items() if "80" in by_arch}
    assert max(largest.values()) <= 101_376, max(largest, key=largest.__getitem__)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [(24, 0, 4, (16, 1.0, "warps")), (128, 0, 4, (4, 0.25, "registers")), (40, 100_000, 8, (2, 0.25, "shared memory"))],
    ids=["warps", "registers", "shared memory"],
)
def test_occupancy_is_what_the_scarcest_resource_allows(registers, shared, warps, expected):
    assert occupancy(CHIPS[90], registers, shared, warps) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks the GPU")
def test_chip_is_the_gpus():
    properties = torch.cuda.get_device_properties(0)
    chip = CHIPS.get(10 * properties.major + properties.minor)
    if chip is None:
        pytest.skip("another GPU")
    assert chip.max_shared_bytes == properties.shared_memory_per_block_optin
    assert chip.registers == properties.regs_per_multiprocessor
    assert chip.max_warps * 32 == properties.max_threads_per_multi_processor


def test_instructions_are_counted_by_opcode_and_width():
    sass = """
        /*0000*/ LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/ @P0 LDG.E.64.CONSTANT R8, desc[UR4][R2.64] ;
        /*0020*/ LDG.E R8, [R2.64] ;
        /*0030*/ LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;
        /*0040*/ HGMMA.64x16x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0050*/ HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/ BAR.SYNC.DEFER_BLOCKING 0x0 ;
    """
    assert count_instructions(sass) == {
        "BAR": 1, "HGMMA": 1, "HMMA": 1, "LDG.128": 1, "LDG.32": 1, "LDG.64": 1, "LDGSTS.128": 1,
    }  # fmt: skip
