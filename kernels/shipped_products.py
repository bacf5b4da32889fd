"""What ships of the tiled products: the table's configurations, with the arguments of a large launch.

Rows are dense and aligned, except where a kind says "unaligned": then no size or stride is known to be a multiple of 16.
"""

import triton.language as tl

from .backward_input import backward_input_kernel
from .backward_products import backward_products_kernel
from .backward_products_descriptors import backward_products_descriptors_kernel
from .backward_weight import backward_weight_kernel
from .backward_weight_step_descriptors import backward_weight_step_descriptors_kernel
from .column_sums import column_sums_kernel
from .compiled import Variant
from .configs import Config, column_sums_grid, elementwise_tile, epilogue_parts
from .forward import forward_kernel
from .forward_descriptors import forward_descriptors_kernel
from .loss import squares_kernel
from .table import TABLE, lookup

KERNELS = {
    "forward": forward_kernel,
    "backward_input": backward_input_kernel,
    "backward_weight": backward_weight_kernel,
    "forward_descriptors": forward_descriptors_kernel,
    "backward_products": backward_products_kernel,
    "backward_products_descriptors": backward_products_descriptors_kernel,
    "backward_weight_step_descriptors": backward_weight_step_descriptors_kernel,
}
OPERANDS = {"float64": "fp64", "half": "bf16", "wide": "bf16", "float8": "fp8e4nv"}  # fp32 for the rest
IN_ACCUMULATOR = (
    "operand_scale_ptr",
    "partials_ptr",
    "grad_output_ptr",
    "weight_grad_ptr",
    "bias_grad_ptr",
)  # the two last: a workspace
WIDE = ("residual", "target")  # float32 beside half operands: autocast
FLOATS = ("scale", "loss_scale", "lr", "mu", "undamped", "decay")
UNIT_STRIDES = (
    "stride_input_k",
    "stride_weight_k",
    "stride_target_m",
    "stride_bias",
    "stride_residual_m",
    "stride_squares_m",
    "stride_grad_m",
    "stride_out_k",
    "stride_input_grad_k",
    "stride_m",
)
FLAGS = {
    "forward": {"HAS_BIAS": True, "STORE_RESIDUAL": True, "STORE_SQUARES": False},
    "backward_input": {},
    "backward_weight": {"WANT_BIAS": True, "WORKSPACE": True},
    "forward_descriptors": {"squares_desc": None},
    "backward_products": {"WANT_BIAS": True, "WORKSPACE": True, "WEIGHT_FIRST": True},
    "backward_products_descriptors": {"WANT_BIAS": True, "WORKSPACE": True, "WEIGHT_FIRST": True},
    "backward_weight_step_descriptors": {"lr_ptr": None},
}
EVEN = {"forward": "EVEN_K", "backward_input": "EVEN_M", "backward_weight": "EVEN_N", "backward_products": "EVEN"}
# The two blocks of a descriptor.
BLOCKS = {
    "forward_descriptors": {
        "input_desc": ("block_n", "block_k"),
        "weight_desc": ("block_m", "block_k"),
        "target_desc": ("block_n", "part"),
        "residual_desc": ("block_n", "part"),
    },
    "backward_products_descriptors": {
        "residual_rows_desc": ("block_n", "block_m"),
        "residual_steps_desc": ("block_m", "block_n"),
        "input_desc": ("block_m", "block_k"),
        "weight_desc": ("block_m", "block_k"),
    },
    "backward_weight_step_descriptors": {
        "residual_desc": ("block_n", "block_m"),
        "input_desc": ("block_n", "block_k"),
    },
}


def product_variants(arch: int) -> list[Variant]:
    """Every row of the table for an architecture.

    "wide" is the costliest launch of half operands: a float32 residual or target, a matrix grad_output, masked steps.
    """
    rows = ((key, config) for key, config in TABLE.items() if key.family in KERNELS and key.architecture == arch)
    found = [_product(key.family, key.kind, config) for key, config in rows]
    found.append(_product("forward", "wide", lookup("forward", "half", arch)))
    block_n, block_m = elementwise_tile(1 << 20)
    constants = {"ACCUMULATOR": tl.float32, "BLOCK_N": block_n, "BLOCK_M": block_m}
    found.append(_variant("squares half", squares_kernel, "half", constants, Config(block_n, 0, block_m, 8)))
    for kind in ("half", "float32"):
        block_n, block_m, _ = column_sums_grid(1 << 20, 1 << 10)
        constants = {"HAS_GRAD_OUTPUT": True, "ACCUMULATOR": tl.float32, "BLOCK_N": block_n, "BLOCK_M": block_m}
        name = f"column_sums {kind}"
        found.append(_variant(name, column_sums_kernel, kind, constants, Config(block_n, 0, block_m, 8)))
    return found


def _product(family: str, kind: str, config: Config) -> Variant:
    constants = FLAGS[family] | {
        "ACCUMULATOR": tl.float64 if kind == "float64" else tl.float32,
        "INPUT_PRECISION": kind.split()[0] if kind.startswith("tf32") else "ieee",
    }
    if family in EVEN:
        constants[EVEN[family]] = kind != "wide" and "unaligned" not in kind
    # The bytes that epilogue_parts is given by the launch.
    if family.startswith("backward_products"):
        parts = epilogue_parts(config.block_n, config.block_k, 8)
        constants |= {"ROWS": config.block_n, "COLUMNS": config.block_k, "STEP": config.block_m, "PARTS": parts}
    else:
        constants |= {"BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "BLOCK_M": config.block_m}
    if family == "backward_weight_step_descriptors":
        constants["PARTS"] = epilogue_parts(config.block_m, config.block_k, 16)
    if family == "forward_descriptors":
        constants["PARTS"] = epilogue_parts(config.block_n, config.block_m, 4 if kind in ("half", "float8") else 8)
        if kind != "float8":
            constants["operand_scale_ptr"] = None
    if "MATRIX_GRAD_OUTPUT" in KERNELS[family].arg_names:
        constants["MATRIX_GRAD_OUTPUT"] = kind == "wide"
    return _variant(f"{family} {kind}", KERNELS[family], kind, constants, config, BLOCKS.get(family, {}))


def _variant(name, kernel, kind: str, constants: dict, config: Config, blocks: dict | None = None) -> Variant:
    """Types and constants for the rest of the kernel's arguments, by their names."""
    constants = constants | {argument: 1 for argument in kernel.arg_names if argument in UNIT_STRIDES}
    operand = OPERANDS.get(kind.split()[0], "fp32")
    wide = "fp64" if kind == "float64" else "fp32"
    arguments = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        element = wide if kind == "wide" and argument.startswith(WIDE) else operand
        if kind == "float8" and not argument.startswith(("input", "weight")):
            element = "bf16"
        if argument in FLOATS:
            arguments[argument] = "fp64"
        elif argument.endswith("_desc"):
            size = {block: getattr(config, block) for block in ("block_n", "block_k", "block_m")}
            size["part"] = config.block_m // constants.get("PARTS", 1)
            rows, columns = (size[block] for block in blocks[argument])
            arguments[argument] = f"tensordesc<{element}[{rows}, {columns}]>"
        elif not argument.endswith("_ptr"):
            arguments[argument] = "i32"
        else:
            arguments[argument] = "*" + (wide if argument in IN_ACCUMULATOR else element)
    unaligned = kind.endswith("unaligned")
    hopper = kind.startswith("tf32") and name.startswith("backward_weight")
    return Variant(
        name=name,
        kernel=kernel,
        arguments=arguments,
        constants=constants,
        config=config,
        tensor_cores=not name.startswith(("squares", "column_sums"))
        and kind.startswith(("half", "wide", "tf32", "float8")),
        # The tensor cores of 90 and 100 want tf32 operands along the reduction: across dense rows that is one by one.
        vector_loads=not hopper and not unaligned,
        descriptors=bool(blocks),
        divisible_by_16=tuple(
            a
            for a in arguments
            if a not in FLOATS and a != "nesterov" and not a.endswith("_desc") and (not unaligned or a.endswith("_ptr"))
        ),
    )
