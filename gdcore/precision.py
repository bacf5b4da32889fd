"""How float32 operands are multiplied on CUDA: as torch is set, or in three tensor-core products."""

import contextvars
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NAMES = ("torch", "tf32x3")


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(
            f"{name!r} is not a precision of float32 products: it must be one of {', '.join(map(repr, NAMES))}; "
            "IEEE float32 and TF32 are chosen by torch.set_float32_matmul_precision"
        )
    return name


_default = _checked(os.environ.get("GDCORE_FLOAT32_PRECISION", "torch"))
_chosen: contextvars.ContextVar[str] = contextvars.ContextVar("gdcore_float32_precision", default=_default)


@contextmanager
def use_float32_precision(name: str) -> Iterator[None]:
    """Multiply float32 operands on CUDA in a precision that torch has no name for.

    Parameters
    ----------
    name : {"torch", "tf32x3"}
        "torch", the default, does as `torch.set_float32_matmul_precision` and `allow_tf32` say. "tf32x3" splits each
        operand into two TF32 numbers, a = a₁ + a₂, and adds a₁b₁ + a₁b₂ + a₂b₁ on the tensor cores: about 22 bits of
        each operand enter in place of float32's 24 and TF32's 11, for three products in place of one. It concerns the
        products in gdcore's own kernels; CPU tensors and other dtypes are not touched. A backward pass multiplies
        as its forward pass did; not so under torch.compile, where each pass asks when it runs, and on CUDA the backward
        pass runs in a thread of autograd's, which sees the default alone. The environment variable
        GDCORE_FLOAT32_PRECISION sets the default at import.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    token = _chosen.set(_checked(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def float32_precision() -> str:
    """What kernels are told: "ieee", "tf32" or "tf32x3"."""
    if _chosen.get() == "tf32x3":
        return "tf32x3"
    found = _PRECISION("cuda", "matmul") if _PRECISION else torch.backends.cuda.matmul.fp32_precision
    return "tf32" if found == "tf32" else "ieee"


# Every call on CUDA asks; torch's own property gets here through ten calls of Python.
_PRECISION = getattr(torch._C, "_get_fp32_precision_getter", None)
