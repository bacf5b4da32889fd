"""The optimizer's kernels in the kinds that are common, as variants to compile and check (see shipped.py).

Any combination of kinds can meet in one launch; a selection stands for them: every type alone, the options that take most
registers, and a mix of three types.
"""

import torch

from .compiled import Variant
from .configs import SGD_BLOCK, SGD_TAIL, SGD_WARPS, Config
from .sgd import Kind, sgd_kernel
from .sgd_norm import sgd_norm_kernel

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16

KINDS = {
    "float64 momentum": (Kind(F64, F64, F64),),
    "float32": (Kind(F32, F32),),
    "float32 momentum": (Kind(F32, F32, F32),),
    "float32 momentum unaligned": (Kind(F32, F32, F32, aligned=False),),
    "float32 momentum strided": (Kind(F32, F32, F32, strided=True),),
    "float16 momentum stochastic": (Kind(F16, F16, F16, stochastic=True),),
    "bfloat16 momentum": (Kind(BF16, BF16, BF16),),
    "bfloat16 momentum stochastic": (Kind(BF16, BF16, BF16, stochastic=True),),
    "bfloat16 momentum float32": (Kind(BF16, BF16, F32),),
    "bfloat16 master": (Kind(BF16, BF16, F32, master=True),),
    "float32, float16 and bfloat16 momentum": (Kind(F32, F32, F32), Kind(F16, F16, F16), Kind(BF16, BF16, BF16)),
}
TABLES = {"chunks_ptr": "*i32", "tensors_ptr": "*i64", "layouts_ptr": "*i64", "grads_ptr": "*i64"}
NUMBERS = {"grad_scale_ptr": "*fp32", "found_inf_ptr": "*fp32", "norm_ptr": "*fp64"}


def sgd_variants() -> list[Variant]:
    """The update, and the norm of the gradients, for each selection of kinds; alike on every architecture."""
    found = []
    for name, kinds in KINDS.items():
        constants = {"KINDS": ";".join(map(str, kinds)), "BLOCK": SGD_BLOCK, "TAIL": SGD_TAIL}
        wide = all(kind.aligned and not kind.strided for kind in kinds)
        config = Config(block_n=SGD_BLOCK, num_warps=SGD_WARPS)
        pointers = {**TABLES, "groups_ptr": "*i64", "steps_ptr": "*i32", **NUMBERS}
        found.append(
            Variant(
                name=f"sgd {name}",
                kernel=sgd_kernel,
                arguments={**pointers, "max_norm": "fp64", "seed": "i32"},
                constants={**constants, "ZERO_GRAD": False},
                config=config,
                vector_loads=wide,
                divisible_by_16=tuple(pointers),
            )
        )
        if "momentum" not in name or len(kinds) > 1:
            found.append(
                Variant(
                    name=f"sgd_norm {name}",
                    kernel=sgd_norm_kernel,
                    arguments={**TABLES, "partials_ptr": "*fp64", "n_chunks": "i32"},
                    constants=constants,
                    config=config,
                    vector_loads=wide,
                    divisible_by_16=(*TABLES, "partials_ptr"),
                )
            )
    return found
