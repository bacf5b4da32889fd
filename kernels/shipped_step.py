"""What ships of the SGD steps in one call: each one-pass kernel with an update behind it, and the products' epilogues."""

from dataclasses import replace
from typing import Any

import torch
import triton.language as tl

from .backward_weight_step import add_parts_step_kernel, backward_weight_step_kernel
from .compiled import Variant
from .configs import SUM_BLOCK, Config, epilogue_config
from .one_pass_step import FAMILIES, sums_tile
from .reduce import SUM_WARPS, reduce_tile
from .step import add_rows_step_kernel
from .table import lookup

FLOATS = dict.fromkeys(("lr", "mu", "undamped", "decay"), "fp64") | {"nesterov": "i32"}
OPERANDS = {
    "float64": "*fp64",
    "float32": "*fp32",
    "tf32": "*fp32",
    "tf32x3": "*fp32",
    "half": "*bf16",
    "half unaligned": "*bf16",
}
TYPES = {"*fp64": torch.float64, "*fp32": torch.float32, "*bf16": torch.bfloat16}


def one_pass_step_variant(variant: Variant, momentum: bool = True) -> Variant:
    """A one-pass variant (of shipped.py) with the update in its last program."""
    family = variant.name.split()[0].removeprefix("one_pass_")
    k, m = variant.constants["K"], variant.constants["M"]
    sums_n, sums_m = sums_tile(1 + m + m * k)
    weight = variant.arguments["weight_ptr"]
    pointers = {"loss_ptr": weight, "counter_ptr": "*i32"}
    constants: dict[str, Any] = {"lr_ptr": None, "SUMS_N": sums_n, "SUMS_M": sums_m}
    if momentum:
        pointers |= {"momentum_ptr": weight, "bias_momentum_ptr": weight}
    else:
        constants |= {"momentum_ptr": None, "bias_momentum_ptr": None}
    return replace(
        variant,
        name=f"{variant.name} step".replace("one_pass_", "step_") + " with momentum" * momentum,
        kernel=FAMILIES[family][1],
        arguments={**variant.arguments, **pointers, **FLOATS},
        constants={**variant.constants, **constants},
        divisible_by_16=(*variant.divisible_by_16, *pointers),
    )


def epilogue_variant(kind: str, arch: int, momentum: bool = True) -> Variant:
    """The product of the weight's gradient with the update in its epilogue."""
    operand, precision = OPERANDS[kind], kind if kind.startswith("tf32") else "ieee"
    unaligned = kind.endswith("unaligned")
    config = epilogue_config(lookup("backward_weight", kind, arch), TYPES[operand], precision, not unaligned)
    pointers = dict.fromkeys(("residual_ptr", "input_ptr", "weight_ptr", "bias_ptr"), operand)
    constants: dict[str, Any] = {
        "lr_ptr": None,
        "stride_residual_m": 1,
        "stride_input_k": 1,
        "stride_weight_k": 1,
        "stride_bias": 1,
        "EVEN_N": not unaligned,
        "INPUT_PRECISION": precision,
        "ACCUMULATOR": tl.float64 if kind == "float64" else tl.float32,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_M": config.block_m,
    }
    if momentum:
        pointers |= {"momentum_ptr": operand, "bias_momentum_ptr": operand}
    else:
        constants |= {"momentum_ptr": None, "bias_momentum_ptr": None}
    sizes = dict.fromkeys(("N", "K", "M", "stride_residual_n", "stride_input_n", "stride_weight_m"), "i32")
    return Variant(
        name=f"step backward_weight {kind}" + " with momentum" * momentum,
        kernel=backward_weight_step_kernel,
        arguments={**pointers, **FLOATS, "scale": "fp64", **sizes},
        constants=constants,
        config=config,
        tensor_cores=kind.startswith(("half", "tf32")),
        vector_loads=not kind.startswith("tf32") and not unaligned,
        divisible_by_16=tuple(pointers) if unaligned else (*pointers, *sizes),
    )


def adding_variants() -> list[Variant]:
    """The second launches: of partial sums from a one-pass kernel, and of parts of a product."""
    pointers = dict.fromkeys(("weight_ptr", "bias_ptr", "momentum_ptr", "bias_momentum_ptr"), "*fp32")
    block_n, block_m = reduce_tile(1 + 1 + 256)
    one_pass = Variant(
        name="step add_rows float32 with momentum",
        kernel=add_rows_step_kernel,
        arguments={
            "partials_ptr": "*fp32",
            "loss_ptr": "*fp32",
            **pointers,
            **dict.fromkeys(("n_partials", "stride", "stride_wm", "stride_wk", "stride_b", "K", "M"), "i32"),
            **FLOATS,
        },
        constants={"lr_ptr": None, "LEAD": 1, "LOSSES": 1, "UNIT": 2, "BLOCK_N": block_n, "BLOCK_M": block_m},
        config=Config(block_n=block_n, block_m=block_m, num_warps=SUM_WARPS),
        divisible_by_16=("partials_ptr", "loss_ptr", *pointers),
    )
    product = Variant(
        name="step add_parts float32 with momentum",
        kernel=add_parts_step_kernel,
        arguments={
            "workspace_ptr": "*fp32",
            **pointers,
            **FLOATS,
            "scale": "fp64",
            **dict.fromkeys(("parts", "K", "M", "stride_weight_m"), "i32"),
        },
        constants={"lr_ptr": None, "stride_weight_k": 1, "stride_bias": 1, "BLOCK": SUM_BLOCK},
        config=Config(block_n=SUM_BLOCK),
        divisible_by_16=("workspace_ptr", *pointers, "K", "M", "stride_weight_m"),
    )
    return [one_pass, product]


def step_variants(arch: int) -> list[Variant]:
    """A selection of each kernel that steps: the shapes that take most registers, and the lesson's own."""
    from .shipped import rows_variant, tile_variant

    plain = [
        rows_variant(arch, torch.float32, 2, 1, False),
        rows_variant(arch, torch.float32, 15, 2, False),
        rows_variant(arch, torch.float64, 15, 2, False),
        tile_variant("vector", arch, torch.float32, 64, 1, False),
        tile_variant("vector", arch, torch.float32, 256, 4, False),
        tile_variant("vector", arch, torch.bfloat16, 64, 1, False),
        tile_variant("vector", arch, torch.float32, 37, 3, False),
        tile_variant("dot", arch, torch.bfloat16, 256, 16, False),
        tile_variant("dot", arch, torch.float32, 256, 16, False, "tf32"),
    ]
    found = [one_pass_step_variant(plain[0], momentum=False)]
    found += [one_pass_step_variant(variant) for variant in plain]  # momentum takes more registers
    found += [epilogue_variant(kind, arch) for kind in OPERANDS]
    return found + adding_variants()
