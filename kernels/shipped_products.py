"""What ships of the tiled products: the table's configurations, with the arguments of a large launch on dense tensors."""

import triton.language as tl

from .backward_input import backward_input_kernel
from .backward_weight import backward_weight_kernel
from .compiled import Variant
from .configs import PRODUCT, Config, elementwise_tile
from .forward import forward_kernel
from .loss import squares_kernel

KERNELS = {
    "forward": forward_kernel,
    "backward_input": backward_input_kernel,
    "backward_weight": backward_weight_kernel,
}
OPERANDS = {"float64": "*fp64", "float32": "*fp32", "tf32": "*fp32", "half": "*bf16", "wide": "*bf16"}
IN_ACCUMULATOR = ("partials_ptr", "grad_output_ptr", "weight_grad_ptr", "bias_grad_ptr")  # the two last: a workspace
WIDE = ("residual_ptr", "target_ptr")  # float32 beside half operands: autocast
SCALES = ("scale", "loss_scale")
UNIT_STRIDES = (
    "stride_input_k",
    "stride_weight_k",
    "stride_target_m",
    "stride_bias",
    "stride_residual_m",
    "stride_squares_m",
    "stride_grad_m",
    "stride_out_k",
    "stride_m",
)
FLAGS = {
    "forward": {"HAS_BIAS": True, "STORE_RESIDUAL": True, "STORE_SQUARES": False},
    "backward_input": {},
    "backward_weight": {"WANT_BIAS": True, "WORKSPACE": True},
}
EVEN = {"forward": "EVEN_K", "backward_input": "EVEN_M", "backward_weight": "EVEN_N"}


def product_variants(arch: int) -> list[Variant]:
    """Every kind of operands in every product; float64, which is the same code throughout, in the forward alone.

    "wide" is the costliest launch of half operands: a float32 residual or target, a matrix grad_output, masked steps.
    """
    chosen = [(family, kind) for family, kind in PRODUCT if kind != "float64" or family == "forward"]
    variants = [_product(family, kind, PRODUCT[family, kind][arch]) for family, kind in chosen]
    variants.append(_product("forward", "wide", PRODUCT["forward", "half"][arch]))
    block_n, block_m = elementwise_tile(1 << 20)
    constants = {"ACCUMULATOR": tl.float32, "BLOCK_N": block_n, "BLOCK_M": block_m}
    variants.append(_variant("squares half", squares_kernel, "half", constants, Config(block_n, 0, block_m, 8)))
    return variants


def _product(family: str, kind: str, config: Config) -> Variant:
    constants = FLAGS[family] | {
        "ACCUMULATOR": tl.float64 if kind == "float64" else tl.float32,
        "INPUT_PRECISION": "tf32" if kind == "tf32" else "ieee",
        EVEN[family]: kind != "wide",
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_M": config.block_m,
    }
    if family != "forward":
        constants["MATRIX_GRAD_OUTPUT"] = kind == "wide"
    return _variant(f"{family} {kind}", KERNELS[family], kind, constants, config)


def _variant(name, kernel, kind: str, constants: dict, config: Config) -> Variant:
    """Types and constants for the rest of the kernel's arguments, by their names."""
    constants = constants | {argument: 1 for argument in kernel.arg_names if argument in UNIT_STRIDES}
    arguments = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument in SCALES:
            arguments[argument] = "fp64"
        elif not argument.endswith("_ptr"):
            arguments[argument] = "i32"
        elif argument in IN_ACCUMULATOR or (kind == "wide" and argument in WIDE):
            arguments[argument] = "*fp64" if kind == "float64" else "*fp32"
        else:
            arguments[argument] = OPERANDS[kind]
    return Variant(
        name=name,
        kernel=kernel,
        arguments=arguments,
        constants=constants,
        config=config,
        tensor_cores=name != "squares half" and kind in ("half", "wide", "tf32"),
        # The tensor cores of 90 and 100 want tf32 operands along the reduction: across dense rows that is one by one.
        vector_loads=name != "backward_weight tf32",
        divisible_by_16=tuple(a for a in arguments if a not in SCALES),
    )
