"""What a run measures: a profile, narrowed by regime, kind of work, dtype, size, peer or name."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product

import torch

from . import profiles, run_cases, sgd_cases
from .cases import OPS, REGIMES, Case, matches, regime_of
from .peers import NAMES, Workload
from .results import BadInput

KINDS = (*OPS, "sgd", "run", "host", "predicted")
DTYPES = ("float64", "float32", "float16", "bfloat16")
SIZED_SECONDS = 3.0  # a size that somebody asks for gets more time than one of many
MOST = 1 << 62


@dataclass(frozen=True, slots=True)
class Selection:
    """What was asked for; None: everything."""

    regime: tuple[str, ...] | None = None
    op: tuple[str, ...] | None = None
    dtype: tuple[str, ...] | None = None
    size: tuple[str, ...] | None = None
    peer: tuple[str, ...] | None = None
    only: str | None = None

    def to_json(self) -> dict:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, found: Mapping) -> "Selection":
        """The selection of a result file, which may be anything.

        Raises
        ------
        BadInput
            If it is no selection.
        """
        names = [part.name for part in fields(cls)]
        *lists, only = (found.get(name) for name in names)
        right = all(v is None or (isinstance(v, list) and all(isinstance(part, str) for part in v)) for v in lists)
        if {*found} - {*names} or not right or not isinstance(only, str | None):
            raise BadInput(f"the result file's selection is none: {dict(found)}")
        return cls(*(None if values is None else tuple(values) for values in lists), only=only)

    @property
    def empty(self) -> bool:
        return self == Selection()

    def has(self, part: str) -> bool:
        """Whether a piece without a shape, such as host or predicted, is asked for."""
        if self.regime or self.dtype or self.size or self.peer:
            return False
        return (self.op is None or part in self.op) and matches(part, self.only)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that narrow a run down; each takes a list with commas."""
    some = {"type": _several, "metavar": "A,B"}
    parser.add_argument("--regime", help=f"of {', '.join(f'{key} ({name})' for key, name in REGIMES.items())}", **some)
    parser.add_argument("--op", help=f"what is measured, of {', '.join(KINDS)}", **some)
    parser.add_argument("--dtype", help=f"of {', '.join(DTYPES)}", **some)
    parser.add_argument("--size", help="N x K x M of your own, as 100000x16x1, instead of the profile's", **some)
    parser.add_argument(
        "--peer", help=f"beside stock and gdcore, of {', '.join(NAMES)}; compiled in every case", **some
    )
    parser.add_argument(
        "--only", metavar="PATTERN", help="only what has this in its name: a part of it, or a shell glob"
    )


def _several(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError("it must name at least one")
    return found


def selected(options: argparse.Namespace) -> Selection:
    """The options, checked.

    Raises
    ------
    BadInput
        For a regime, kind, dtype or peer that does not exist, or a size that is none.
    """
    known = {"regime": tuple(REGIMES), "op": KINDS, "dtype": DTYPES, "peer": NAMES}
    for name, allowed in known.items():
        for value in getattr(options, name) or ():
            if value not in allowed:
                raise BadInput(f"unknown {name} {value!r}: it must be one of {', '.join(allowed)}")
    for size in options.size or ():
        shape_of(size)
    return Selection(options.regime, options.op, options.dtype, options.size, options.peer, options.only)


def shape_of(size: str) -> tuple[int, int, int]:
    """N, K, M of '100000x16x1'."""
    if not re.fullmatch(r"[0-9]{1,19}x[0-9]{1,19}x[0-9]{1,19}", size):
        raise BadInput(f"size {size!r} must be three whole numbers, as in 100000x16x1: N x K x M")
    n, k, m = map(int, size.split("x"))
    if min(n, k, m) < 1 or max(n * k, n * m, m * k) > MOST:
        raise BadInput(f"size {size!r}: N, K and M must be at least 1, and a matrix at most 2^62 numbers")
    return n, k, m


def choose(profile: str, device_type: str, selection: Selection) -> list[Workload]:
    """The cases to measure, in order, each once.

    Raises
    ------
    BadInput
        If there is no such profile, or a size is none.
    """
    if profile not in profiles.PROFILES:
        raise BadInput(f"unknown profile {profile!r}: it must be one of {', '.join(profiles.PROFILES)}")
    if selection.size:
        shapes = [shape_of(size) for size in selection.size]
        dtypes = [getattr(torch, name) for name in selection.dtype or ("float32",)]
        ops = [op for op in selection.op or ("backward",) if op in OPS]
        cases: Sequence[Workload] = [
            Case(regime_of(*shape), *shape, dtype=dtype, op=op, seconds=SIZED_SECONDS)
            for shape, dtype, op in product(shapes, dtypes, ops)
        ]
    else:
        cases = (
            *profiles.PROFILES[profile][device_type],
            *sgd_cases.PROFILES[profile](device_type),
            *run_cases.PROFILES[profile],
        )
    return list({case.name: case for case in cases if _fits(case, selection)}.values())


def _fits(case: Workload, selection: Selection) -> bool:
    dtype = str(case.dtype).removeprefix("torch.")
    return (
        (selection.regime is None or case.regime in selection.regime)
        and (selection.op is None or case.op in selection.op)
        and (selection.dtype is None or dtype in selection.dtype)
        and (selection.peer is None or any(peer.name in selection.peer for peer in case.peers))
        and matches(case.name, selection.only)
    )
