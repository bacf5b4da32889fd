"""What a GPU would do, predicted where there is none: seconds of every path, and bytes, FLOPs and the floor they set, from the
plan; registers and occupancy, from the compiled code. Nothing here is measured, and every row says so.
"""

import torch

import gdcore
from gdcore.plan import Plan

from .cases import Case, dtype_name, make_tensors
from .profiles import CUDA_FULL

DEVICE = "H200"


def stock_bytes(case: Case) -> int:
    """What the stock composition moves through memory: prediction, its squares, its gradient, and the products that read them."""
    n, k, m = case.n, case.k, case.m
    numbers = n * k + n * m + m * k  # prediction = X Wᵀ
    numbers += 4 * n * m  # squares of prediction - Y, and their mean
    if case.wanted:
        numbers += 3 * n * m  # gradient of the prediction
    if "weight" in case.wanted:
        numbers += n * k + n * m + m * k
    if "input" in case.wanted:
        numbers += n * m + m * k + n * k
    return numbers * case.dtype.itemsize


def plan_of(case: Case, device: str) -> Plan:
    """The library's own plan for this case on a GPU that need not be there: tensors without storage are enough."""
    tensors = make_tensors(case, torch.device("meta"), seed=0)
    return gdcore.explain(tensors.input, tensors.weight, tensors.target, tensors.bias, device=device).plan


def predict(case: Case, device: str = DEVICE) -> dict:
    """One row: what the plan says, beside the least that stock must move."""
    plan = plan_of(case, device)
    moved = plan.bytes_read + plan.bytes_written
    paths = {other.path: other.seconds for other in plan.alternatives}
    stock_seconds = max(stock_bytes(case) / plan.device.bandwidth, plan.compute_seconds)
    return {
        "predicted": True,
        "case": case.name,
        "n": case.n,
        "k": case.k,
        "m": case.m,
        "dtype": dtype_name(case.dtype),
        "wanted": list(case.wanted),
        "device": device,
        "path": plan.path,
        "why": plan.why,
        "bytes": moved,
        "flops": plan.flops,
        "workspace_bytes": plan.workspace_bytes,
        "predicted_seconds": plan.predicted_seconds,
        "stock_predicted_seconds": paths.get("stock"),
        "paths": paths,
        "floor_seconds": plan.floor_seconds,
        "bound_by": "memory" if plan.memory_seconds >= plan.compute_seconds else "arithmetic",
        "stock_bytes": stock_bytes(case),
        "stock_floor_seconds": stock_seconds,
        "compiled": plan.compiled,
    }


def table(device: str = DEVICE, cases: tuple[Case, ...] = CUDA_FULL) -> list[dict]:
    """The predicted rows of every case that a GPU would run for gradients of random data, tiny ones apart: launches are their
    cost, which bytes do not show."""
    return [predict(c, device) for c in cases if c.regime != "D" and c.op == "backward" and c.data == "normal"]
