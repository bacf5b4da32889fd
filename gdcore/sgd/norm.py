"""The squared norm of gradients that are spread over processes."""

import torch
from torch import Tensor

from .members import HALF


def sharded_squared_norm(grads: list[Tensor]) -> Tensor:
    """The sum of squares of DTensors and ordinary tensors, the same on every process: float64, one collective a mesh.

    Parameters
    ----------
    grads : list of Tensor
        Dense. Not modified.
    """
    by_mesh: dict[object, list[Tensor]] = {}
    for grad in grads:
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32 if grad.dtype in HALF else None)
        by_mesh.setdefault(getattr(grad, "device_mesh", None), []).append(norm)
    total = torch.zeros((), dtype=torch.float64, device=grads[0].device if grads else None)
    for norms in by_mesh.values():
        norm = torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        total = total + norm.to(total.device).square()
    return total
