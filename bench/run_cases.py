"""A whole training run as a case: a data set, a number of epochs, full batches or mini-batches of 64."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gdcore import devices
from gdcore.backends import backend_for
from gdcore.training import RunPlan, shuffle
from gdcore.training.plan import plan_run
from gdcore.training.spec import Spec

from . import run_peers
from .datasets import DATASETS
from .peers import Bind, Named, Peer, as_tensor

# N, K, M of what is trained on; a fifth of the digits is held out.
SIZES = {"lesson": (100, 2, 1), "thermometer": (11, 1, 1), "diabetes": (442, 10, 1), "digits": (1_437, 64, 10)}


class Start(NamedTuple):
    """What a run begins with: data, parameters, and the rows of every update, None where it sees all."""

    x: Tensor  # (N, K)
    y: Tensor  # (N, M)
    weight: Tensor  # (M, K)
    bias: Tensor | None  # (M,)
    rows: list[Tensor] | None
    seed: int = 0  # of the order of the rows

    @property
    def parameters(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


@dataclass(frozen=True, slots=True)
class RunCase:
    """`epochs` passes over a data set of datasets.DATASETS."""

    data: str
    epochs: int
    batch: int | None = None
    compilers: tuple[str, ...] = ()
    seconds: float = 2.0
    kind: ClassVar[str] = "run"
    op: ClassVar[str] = "run"
    dtype: ClassVar[torch.dtype] = torch.float32
    bandwidth: ClassVar[str] = "read"

    @property
    def name(self) -> str:
        """run-digits-batch-64-10-epochs."""
        return f"run-{self.data}{f'-batch-{self.batch}' if self.batch else ''}-{self.epochs}-epochs"

    @property
    def regime(self) -> str:
        return "D" if self.n * (self.k + self.m) <= 100_000 else "A"

    @property
    def n(self) -> int:
        return SIZES[self.data][0]

    @property
    def k(self) -> int:
        return SIZES[self.data][1]

    @property
    def m(self) -> int:
        return SIZES[self.data][2]

    @property
    def wanted(self) -> tuple[str, ...]:
        """The lesson's data has a column of ones instead of a bias."""
        return ("weight",) if self.data == "lesson" else ("weight", "bias")

    @property
    def updates(self) -> int:
        return self.epochs * (-(-self.n // self.batch) if self.batch else 1)

    @property
    def lr(self) -> float:
        return DATASETS[self.data]().lr

    @property
    def minimal_bytes(self) -> int:
        """The data once: a run that keeps it on the chip reads it no more. Losses out."""
        return 4 * (self.n * (self.k + self.m) + 2 * self.m * (self.k + len(self.wanted) - 1) + self.updates)

    @property
    def flops(self) -> int:
        """Prediction and gradient of every row of every epoch."""
        return 4 * self.n * self.k * self.m * self.epochs

    @property
    def bytes_needed(self) -> int:
        return 64 * self.minimal_bytes

    @property
    def peers(self) -> Sequence[Peer]:
        return run_peers.PEERS

    @property
    def metric(self) -> str:
        """Accuracy on held-out rows where there are classes, else the share of variance explained."""
        return "accuracy" if self.data == "digits" else "R²"

    def describe(self) -> dict:
        batches = f"batches of {self.batch}, " if self.batch else ""
        return {
            "label": f"{self.data}, {batches}{self.updates:,} updates",
            "n": self.n,
            "k": self.k,
            "m": self.m,
            "dtype": "float32",
            "wanted": list(self.wanted),
            "data": self.data,
            "updates": self.updates,
            "batch": self.batch,
            "metric": self.metric,
        }

    def draw(self, device: torch.device, seed: int) -> Start:
        """The data on the device, zeros or the data set's own start, and the rows of every update, in gdcore.fit's order."""
        data = DATASETS[self.data]()
        weight, bias = data.start or (torch.zeros(self.m, self.k), torch.zeros(self.m))
        bias = bias if "bias" in self.wanted else None
        rows = None
        if self.batch:
            orders = shuffle.orders(seed, range(self.epochs), self.n, device)
            rows = [part for order in orders for part in order.split(self.batch)]
        return Start(*(None if t is None else t.to(device) for t in (data.x, data.y, weight, bias)), rows, seed)

    def widened(self, operands: Start) -> Start:
        return Start(*(None if t is None else t.double() for t in operands[:4]), operands.rows, operands.seed)

    def results(self, bind: Bind, operands: Start) -> Named:
        """Losses, and the parameters as one vector: the bias of standardised data is almost zero, an error relative to it noise."""
        call = bind(operands)
        call()
        losses, *parameters = (as_tensor(t).detach() for t in call())
        return {"losses": losses, "parameters": torch.cat([p.reshape(-1) for p in parameters])}

    def plan(self, operands: Start) -> RunPlan:
        """Of the whole run."""
        device = operands.x.device
        backend = backend_for(device)
        spec = Spec(
            self.n, self.k, self.m, self.dtype, self.updates, self.lr, batch_size=self.batch, intercept="bias" in self.wanted
        )  # fmt: skip
        return plan_run(spec, devices.describe(device, interpreted=backend == "triton"), backend)

    def score(self, found: Named) -> float:
        """The metric of a run's final parameters."""
        data = DATASETS[self.data]()
        weight, *bias = found["parameters"].cpu().float().split(self.m * self.k)
        parameters = [weight.view(self.m, self.k), *bias]
        if data.labels_validation is not None:
            predicted = F.linear(data.x_validation, *parameters).argmax(1)
            return (predicted == data.labels_validation).double().mean().item()
        residual = (F.linear(data.x, *parameters) - data.y).double()
        return 1 - (residual.square().sum() / (data.y - data.y.mean(0)).double().square().sum()).item()

    def problems(self, found: Named) -> list[str]:
        """Where a run differs from published losses and parameters, in words."""
        golden = DATASETS[self.data]().golden
        if not golden:
            return []
        losses = {int(epoch): loss for epoch, loss in golden["loss_at_epoch"].items()}
        losses[5_000] = golden["loss_at_epoch_5000"]
        off = [abs(found["losses"][e - 1].item() / loss - 1) for e, loss in losses.items() if e <= self.updates]
        said = []
        if not max(off) <= golden["tolerance"]["loss_rtol"]:
            said.append(f"losses are off the published ones by {max(off):.1e}")
        after = golden.get(f"after_{self.updates}", {})
        parameters = dict(zip("wb", found["parameters"].tolist(), strict=True))
        off = [abs(parameters[name] / value - 1) for name, value in after.items()]
        if not max(off, default=0.0) <= golden["tolerance"]["params_rtol"]:
            said.append(f"parameters are off the published ones by {max(off):.1e}")
        return said


PROFILES = {
    "quick": (
        RunCase("lesson", 100, seconds=0.8),
        RunCase("thermometer", 100, seconds=0.6),
        RunCase("diabetes", 200, seconds=0.8),
        RunCase("digits", 3, batch=64, seconds=0.6),
    ),
    "full": (
        RunCase("lesson", 100, compilers=("compile",)),
        RunCase("thermometer", 5_000, seconds=8.0),
        RunCase("diabetes", 1_000, seconds=6.0, compilers=("compile",)),
        RunCase("digits", 40, batch=64, seconds=6.0, compilers=("compile",)),
        RunCase("digits", 400, seconds=6.0),
    ),
    "smoke": (RunCase("lesson", 100, seconds=0.1), RunCase("digits", 1, batch=64, seconds=0.1)),
}
