"""What the tests on a GPU share: each path by name with a shape for it, the path that the library is told to take, and graphs."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdcore import devices, functional, paths, plan, recall, step_run
from gdcore.cost import Asked
from gdcore.kernels import configs
from gdcore.plan import Plan
from gdcore.precision import float32_precision
from support import draw


class Case(NamedTuple):
    """A path, a shape for it, and the fields in which the plan is another than the one that is calculated."""

    path: str
    n: int
    k: int
    m: int
    dtype: torch.dtype = torch.float32
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether no product is the library's."""
        return self.path not in ("library", "epilogue", "chunked")

    def draw(self) -> dict[str, Tensor]:
        return draw(self.n, self.k, self.m, self.dtype)

    def force(self, monkeypatch) -> None:
        """linear_mse and linear_mse_sgd_ take this path, whatever is predicted of the others."""
        for module in (functional, step_run):
            monkeypatch.setattr(module, "plan_of", self.plan)
        recall.forget()
        monkeypatch.setattr(functional, "host_is_slower", lambda *_: False)  # small shapes do not go to stock

    def plan(self, backend, input, weight, target, bias, reduction, wanted, small_to_stock=True) -> Plan:
        """A `plan_of` for 2-D tensors."""
        contiguous = input.is_contiguous() and target.is_contiguous()
        precision = float32_precision() if input.dtype is torch.float32 else "ieee"
        device = devices.describe(input.device, interpreted=True)
        shape = *input.shape, weight.shape[0]
        base = Plan("triton", "", "", device, *shape, dtype=input.dtype, input_precision=precision)
        asked = Asked(target.dtype, wanted, reduction, contiguous, bias is not None)
        made = dataclasses.replace(self._on_path(base, asked), **dict(self.fields))
        return plan._with_cost(made, target.dtype, wanted, reduction, bias is not None)

    def _on_path(self, base: Plan, asked: Asked) -> Plan:
        if self.path == "chunked":
            made = paths._library(paths._by_pointers(base, asked), asked)
            made = dataclasses.replace(made, path="chunked", config=None, input_config=None, weight_config=None)
            return dataclasses.replace(made, store_residual=False, grad_in_forward=True, all_in_forward=True)
        if self.path == "tiled":
            return paths._by_pointers(base, asked)
        if self.path == "epilogue":  # also of operands for which no plan offers it: by pointers
            return paths.epilogue(base, asked, paths.offered(base, asked, "forward_descriptors"))
        if self.path == "descriptors":
            return _on_descriptors(paths._by_pointers(base, asked), asked)
        family = self.path.removeprefix("one_pass_") if self.path.startswith("one_pass") else None
        return next(p for p in paths.candidates(base, asked, family, "") if p.path == self.path)


def _on_descriptors(made: Plan, asked: Asked) -> Plan:
    def config(family):
        arguments = made.device.architecture, made.dtype, made.n, made.k, made.m
        return configs.product_config(family, *arguments, input_precision=made.input_precision)

    made = dataclasses.replace(made, forward_config=config("forward_descriptors"))
    if not (asked.wanted.input and (asked.wanted.weight or asked.wanted.bias)):
        return made
    return dataclasses.replace(made, products_config=config("backward_products_descriptors"))


HALF = torch.bfloat16
CASES = {
    "rows": Case("one_pass_rows", 100_003, 3, 2),
    "vector": Case("one_pass_vector", 50_001, 37, 3),
    "dot": Case("one_pass_dot", 30_001, 64, 11, HALF),
    "tall": Case("one_pass_tall", 20_001, 64, 48, HALF),
    "tall float32": Case("one_pass_tall", 20_001, 33, 20),
    "tiled": Case("tiled", 1003, 300, 203, fields=(("split", 1),)),
    "tiled, dW in parts": Case("tiled", 1003, 300, 203, HALF, (("split", 3),)),
    "descriptors": Case("descriptors", 1040, 304, 208, HALF, (("products_split", 1), ("split", 1))),
    "descriptors, dW in parts": Case("descriptors", 1040, 304, 208, HALF, (("products_split", 3), ("split", 3))),
    "epilogue": Case("epilogue", 1040, 304, 208, HALF),
    "epilogue float16": Case("epilogue", 1040, 304, 208, torch.float16, (("input_config", None),)),
    "epilogue, by pointers": Case("epilogue", 1003, 300, 203),
    "library": Case("library", 1003, 300, 203),
    "library bfloat16": Case("library", 1003, 300, 203, HALF),
    "chunked": Case("chunked", 1003, 300, 203, fields=(("chunk_rows", 256),)),
    "chunked bfloat16": Case("chunked", 1003, 300, 203, HALF, (("chunk_rows", 256),)),
}


def captured(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of a call, and the tensors that it writes when it is replayed. The call has run twice before, on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = work()
    return graph, written


def assert_same(ours: list[Tensor], theirs: list[Tensor], bitwise: bool = True) -> None:
    """Bit for bit, or where the library may take another product, to a few roundings."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if bitwise:
            assert torch.equal(one, other)
        else:
            tolerance = 2e-2 if one.dtype is HALF else 1e-4
            assert (one.double() - other.double()).norm() <= tolerance * other.double().norm() + 1e-12
