"""Which row of the table a shipped variant is launched with, and the configuration that follows from the row."""

import torch

from .compiled import Variant
from .configs import Config, epilogue_config, power_of_2, tall_row, vector_tile, vector_unaligned, width_kind
from .table import KINDS, Key, lookup

DTYPES = {"*fp64": torch.float64, "*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16}
STEPPING = {"one_pass_vector_step": "one_pass_vector", "one_pass_dot_step": "one_pass_dot", "sgd_norm": "sgd"}
IN_EPILOGUE = "backward_weight_step"  # the product of the weight's gradient, its tile cut for the update


def row_of(variant: Variant, arch: int) -> tuple[Key, Config] | None:
    """The row's key, and what the launch makes of the row; None for what has no row in the table."""
    kernel = variant.kernel.fn.__name__.removesuffix("_kernel")
    family = STEPPING.get(kernel, "backward_weight" if kernel == IN_EPILOGUE else kernel)
    if family not in {known for known, _ in KINDS}:
        return None
    if family == "sgd":
        key = Key(family, "any", arch)
        return key, lookup(*key)
    constants = variant.constants
    precision = constants.get("INPUT_PRECISION", "ieee")
    if not family.startswith("one_pass"):
        kind = variant.name.removeprefix("step ").removeprefix(family).removesuffix("with momentum").strip()
        kind = kind if (family, kind) in KINDS else {"wide": "half"}[kind]
        key = Key(family, kind, arch)
        if kernel == IN_EPILOGUE:
            dtype, aligned = DTYPES[variant.arguments["input_ptr"]], not kind.endswith("unaligned")
            return key, epilogue_config(lookup(*key), dtype, precision, aligned)
        return key, lookup(*key)
    dtype, k, m = DTYPES[variant.arguments["input_ptr"]], constants["K"], constants["M"]
    if family == "one_pass_tall":
        key = tall_row(arch, dtype, k, m, precision, aligned=not variant.name.startswith("unaligned"))
        return key, lookup(*key)
    if family == "one_pass_dot":
        key = Key(family, width_kind(dtype), arch, constants["BLOCK_K"])
        return key, lookup(*key)
    if vector_unaligned(k, dtype):
        return None
    key = Key(family, width_kind(dtype), arch, power_of_2(m))
    return key, vector_tile(lookup(*key), k, dtype)
