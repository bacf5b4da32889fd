"""gdcore: gradient descent on linear models and regression heads, fused."""

import pathlib as _pathlib

__version__ = "0.1.0"

# In a checkout kernels/ and bench/ lie beside this package; installed, they lie inside it (see setup.py).
_here = _pathlib.Path(__file__).parent
if not (_here / "kernels").is_dir() and (_here.parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_here.parent))

from .backends import use_backend
from .explanation import explain
from .functional import linear_mse, matmul_mse
from .modules import LinearMSELoss
from .optim import SGD
from .precision import use_float32_precision
from .step import linear_mse_sgd_
from .training import fit

__all__ = [
    "SGD",
    "LinearMSELoss",
    "explain",
    "fit",
    "linear_mse",
    "linear_mse_sgd_",
    "matmul_mse",
    "use_backend",
    "use_float32_precision",
]
