"""linear_mse as a case: a shape, a dtype, and what is asked for: the loss, its gradients, or a whole training step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

import gdcore
from gdcore.backends import backend_for
from gdcore.step_run import step_plan

from . import datasets, linear_peers
from .peers import Bind, Named, Peer, as_tensor

REGIMES = {"A": "skinny", "B": "tall", "C": "compute", "D": "tiny", "F": "wide"}
OPS = ("forward", "backward", "step")
GRADIENTS = {"weight": "dW", "input": "dX", "bias": "db"}
STEPS = 3  # of an update, before parity is judged


@dataclass(frozen=True, slots=True)
class Case:
    """linear_mse on X (n, k), W (m, k) and Y (n, m); `wanted` names the gradients.

    forward: the loss alone, nothing recorded. backward: the loss and the wanted gradients. step: loss, gradients, and a
    plain SGD update of weight (and bias).
    """

    regime: str  # a key of REGIMES
    n: int
    k: int
    m: int
    dtype: torch.dtype = torch.float32
    wanted: tuple[str, ...] = ("weight",)
    op: str = "backward"
    data: str = "normal"  # or a table of datasets.TABLES, whose sizes n, k, m then are
    compilers: tuple[str, ...] = ()
    seconds: float = 1.0
    judged: int | None = (
        None  # rows that parity is judged on, where stock's temporaries and float64 copies of all would not fit
    )
    kind: ClassVar[str] = "linear_mse"
    bandwidth: ClassVar[str] = "read"

    @property
    def name(self) -> str:
        """Reads as a sentence and is the case's key in result files: skinny-10000000x2x1-float32-dW."""
        gradients = "+".join(GRADIENTS[name] for name in self.wanted)
        asked = {"forward": "loss", "backward": gradients, "step": f"{gradients}-step"}[self.op]
        data = "" if self.data == "normal" else f"-{self.data}"
        return f"{REGIMES[self.regime]}-{self.n}x{self.k}x{self.m}-{dtype_name(self.dtype)}-{asked}{data}"

    @property
    def products(self) -> int:
        """X Wᵀ, then EᵀX for dW and E W for dX."""
        return 1 + (self.op != "forward") * sum(name in self.wanted for name in ("weight", "input"))

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers in each operand."""
        return {"input": self.n * self.k, "weight": self.m * self.k, "bias": self.m, "target": self.n * self.m}

    @property
    def minimal_bytes(self) -> int:
        """Every operand read once; every wanted gradient, or updated parameter, written once."""
        read = [name for name in self.sizes if name != "bias" or "bias" in self.wanted]
        written = () if self.op == "forward" else self.wanted
        return sum(self.sizes[name] for name in (*read, *written)) * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products."""
        return 2 * self.n * self.k * self.m * self.products

    @property
    def bytes_needed(self) -> int:
        """An upper guess of the memory that the case takes: inputs, their float64 copies, and three N x M temporaries in float64.

        Where some rows are judged: inputs and gradients with their sums in float32, and a quarter of the target besides.
        """
        inputs = sum(self.sizes.values())
        if self.judged:
            gradients = sum(self.sizes[name] * (self.dtype.itemsize + 4) for name in self.wanted)
            return inputs * self.dtype.itemsize + gradients + self.sizes["target"] * self.dtype.itemsize // 4
        gradients = self.n * self.k if "input" in self.wanted else 0
        return (inputs + gradients) * (self.dtype.itemsize + 8) + 3 * 8 * self.n * self.m

    @property
    def lr(self) -> float:
        """A tenth of what unit-variance features allow: the largest curvature is about 2/M (1 + √(K/N))²."""
        return 0.1 * self.m / (1 + (self.k / self.n) ** 0.5) ** 2

    @property
    def peers(self) -> Sequence[Peer]:
        return linear_peers.PEERS

    def describe(self) -> dict:
        label = f"{self.n:,} × {self.k:,} × {self.m:,}"
        return {
            "label": label if self.data == "normal" else f"{label} ({self.data})",
            "n": self.n,
            "k": self.k,
            "m": self.m,
            "dtype": dtype_name(self.dtype),
            "wanted": list(self.wanted) if self.op != "forward" else [],
            "data": self.data,
        } | ({"judged": self.judged} if self.judged else {})

    def draw(self, device: torch.device, seed: int) -> "Tensors":
        return make_tensors(self, device, seed)

    def judged_part(self, operands: "Tensors") -> tuple["Case", "Tensors"]:
        """The case of the rows that parity is judged on, and these: all, unless the case says otherwise."""
        if self.judged is None:
            return self, operands
        x, w, y, b = operands
        some = [t[: self.judged].detach().requires_grad_(t.requires_grad) for t in (x, y)]
        return replace(self, n=self.judged, judged=None), Tensors(some[0], w, some[1], b)

    def widened(self, operands: "Tensors") -> "Tensors":
        return Tensors(*(None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in operands))

    def results(self, bind: Bind, operands: "Tensors") -> Named:
        names = ("loss", *(() if self.op == "forward" else self.wanted))
        start = {name: getattr(operands, name).detach().clone() for name in self.wanted} if self.op == "step" else {}
        try:
            call = bind(operands)
            for _ in range(STEPS):
                found = call()
            return {name: as_tensor(t).detach().clone() for name, t in zip(names, found, strict=True)}
        finally:  # one that fails halfway must not spoil the next one's start
            with torch.no_grad():
                for name, values in start.items():
                    getattr(operands, name).copy_(values)

    def plan(self, operands: "Tensors") -> gdcore.plan.Plan:
        if self.op == "step" and "input" not in self.wanted and operands.input.is_cuda:
            return step_plan(backend_for(operands.input.device), *operands)
        with torch.set_grad_enabled(self.op != "forward"):
            return gdcore.explain(operands.input, operands.weight, operands.target, operands.bias).plan


class Tensors(NamedTuple):
    """One case's operands; those whose gradient is wanted are leaves that require it."""

    input: Tensor  # (n, k)
    weight: Tensor  # (m, k)
    target: Tensor  # (n, m)
    bias: Tensor | None = None  # (m,)


def make_tensors(case: Case, device: torch.device, seed: int) -> Tensors:
    """Random normal operands, or a real table's; W scaled so that predictions have unit variance. The same seed, the same case."""
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.empty(shape, device=device, dtype=torch.float32).normal_(0, scale, generator=generator)
        return values.to(case.dtype)

    def repeated(columns: int) -> Tensor:
        """Fresh rows as far as parity is judged, then the same ones again: to draw them all would take longer than the rest."""
        return draw(case.judged, columns).repeat(-(-case.n // case.judged), 1)[: case.n]

    bias = draw(case.m) if "bias" in case.wanted else None
    if case.judged:
        x, y = repeated(case.k), repeated(case.m)
    elif case.data == "normal":
        x, y = draw(case.n, case.k), draw(case.n, case.m)
    else:
        x, y = (t.to(device, case.dtype) for t in datasets.TABLES[case.data]())
    tensors = Tensors(x, draw(case.m, case.k, scale=case.k**-0.5), y, bias)
    if case.op != "forward":
        for name in case.wanted:
            getattr(tensors, name).requires_grad_()
    return tensors


def matches(name: str, pattern: str | None) -> bool:
    """Whether the name contains the pattern, or fits it as a shell glob; without a pattern every name does."""
    if pattern is None:
        return True
    name, pattern = name.lower(), pattern.lower()
    return pattern in name or fnmatchcase(name, pattern)


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> float32."""
    return str(dtype).removeprefix("torch.")


def regime_of(n: int, k: int, m: int) -> str:
    """The regime of a shape that no profile names."""
    if n * (k + m) <= 100_000:
        return "D"
    if k <= 256 and m <= 16:
        return "A"
    if k <= 512 and m <= 512:
        return "B"
    return "F" if n * m >= 1 << 31 else "C"
