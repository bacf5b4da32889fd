"""Who is compared, by name, and what every kind of work has in common: operands, peers that bind to them, results to judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

STOCK, COMPILED, TUNED, GRAPHED_COMPILED, FUNCTIONAL = (
    "eager",
    "compile",
    "max-autotune",
    "reduce-overhead",
    "functional",
)
LIBRARY, FOLDED, GRAPH, JAX, OURS = "library", "folded", "graph", "jax", "gdcore"
LOOP, FOREACH, STOCK_FUSED = "for-loop", "foreach", "fused"  # torch.optim.SGD's three
STEPS, GRAM, SKLEARN = "gdcore steps", "gdcore gram", "sklearn"  # in training runs
NAMES = (STOCK, COMPILED, TUNED, GRAPHED_COMPILED, FUNCTIONAL, LIBRARY, FOLDED, GRAPH, JAX, LOOP, FOREACH, STOCK_FUSED)
NAMES += (SKLEARN, STEPS, GRAM, OURS)
VARIANTS = (STEPS, GRAM)  # gdcore in other ways: shown, but nobody to beat
COMPILERS = (
    COMPILED,
    TUNED,
    GRAPHED_COMPILED,
    FUNCTIONAL,
)  # each takes seconds, so a profile names the cases that have it
AGAIN = "gdcore again"  # the same once more: what the A/A run compares with

Call = Callable[[], Any]  # one complete call; what it returns is for the parity check
Bind = Callable[[Any], Call]  # from operands to a call
Named = dict[str, Tensor]  # results by name


class LeftOut(Exception):
    """A peer that does not exist here; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A name for tables, what it is in words, and how to get it for a case on a device.

    `prepare` does what is done once a case, compilation above all; what it returns binds to operands, to several sets of
    them in turn. It raises LeftOut where the peer does not exist; whatever else it raises is a failure.
    """

    name: str
    what: str
    prepare: Callable[[Any, torch.device], Bind]
    comparable: bool = True  # whether it computes the same numbers; another algorithm is shown, but is not the best


class Workload(Protocol):
    """One thing to measure. Operands are of a type of its own."""

    kind: str  # linear_mse, sgd, run
    seconds: float  # about how long the timing of all peers together may take
    compilers: tuple[str, ...]  # of COMPILERS, those that this case has in its profile
    bandwidth: str  # the ceiling that its bytes are counted against: read or copy

    @property
    def name(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def regime(self) -> str | None: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def minimal_bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def bytes_needed(self) -> int: ...
    @property
    def peers(self) -> Sequence[Peer]: ...

    def describe(self) -> dict:
        """The row's entries that say what it is."""

    def draw(self, device: torch.device, seed: int) -> Any:
        """Operands: the same for the same seed."""

    def widened(self, operands: Any) -> Any:
        """The same operands in float64."""

    def results(self, bind: Bind, operands: Any) -> Named:
        """What comes out, from a fresh start, after more calls than one: state left by the first would show."""

    def plan(self, operands: Any) -> Any:
        """The library's plan, or None where there is none."""


def as_tensor(value: Any) -> Tensor:
    """A result of any library as a tensor."""
    return value if isinstance(value, Tensor) else torch.from_dlpack(value)


def on_cuda_only(device: torch.device, what: str) -> None:
    """Raises LeftOut on any other device."""
    if device.type != "cuda":
        raise LeftOut(f"{what} exist on CUDA devices only")


def in_one_line(error: BaseException, limit: int = 160) -> str:
    """An exception's type and the first line of its message, for tables and result files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
