"""The user's own table of tile configurations, which `gdcore-bench tune` writes: read once, checked in full, or not used at all.

The table lies in the user's cache folder, a file for each kind of GPU; GDCORE_TUNED names another file, or is "off". It is
read when the first plan for a CUDA device is made and enters plans as a part of the Device, so that a plan stays a
function of its arguments. A table that is damaged, of another GPU, of another Triton or of other kernels is refused as a
whole, with one warning; the shipped configurations are used then. Without platformdirs there is no table.
"""

import functools
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import backends
from .tuned_format import Entry, Key, entries, key_of, read

if TYPE_CHECKING:  # devices imports this module
    from .devices import Device

VARIABLE = "GDCORE_TUNED"


class TunedTableWarning(UserWarning):
    """A table was found and refused."""


class NoTable(LookupError):
    """There is no place for a table; the message says why."""


@dataclass(frozen=True, eq=False)
class Table:
    """Entries by key. It is compared and hashed by identity, which is as cheap as can be in a plan's arguments."""

    path: str
    entries: Mapping[Key, Entry]

    def find(
        self, family: str, dtype: torch.dtype, n: int, k: int, m: int, input_precision: str, residual: bool
    ) -> Entry | None:
        return self.entries.get(key_of(family, dtype, n, k, m, input_precision, residual))


def path_for(device: "Device") -> Path:
    """Where the table for this kind of GPU lies, whether or not there is one.

    Raises
    ------
    NoTable
        Tables are switched off, or platformdirs, which knows the cache folder, is not installed.
    """
    given = os.environ.get(VARIABLE, "")
    if given == "off":
        raise NoTable(f"{VARIABLE}=off: no table is read or written")
    if given:
        return Path(given).expanduser()
    try:
        import platformdirs
    except ImportError as error:
        raise NoTable(
            f"platformdirs is not installed, so the cache folder is not known: pip install platformdirs, or set {VARIABLE} "
            "to a file"
        ) from error
    name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") or "gpu"
    return Path(platformdirs.user_cache_dir("gdcore", appauthor=False)) / "tuned" / f"{name}.json"


@functools.cache
def table_for(device: "Device") -> Table | None:
    """The table for a CUDA device that is there, read once a process; None where there is none, or where it is refused."""
    if not backends.triton_is_there() or backends.interpreting():
        return None
    path = None
    try:
        path = path_for(device)
        return Table(str(path), entries(read(path), device))
    except (NoTable, FileNotFoundError):
        return None
    except Exception as error:  # whatever a file holds, it must not stop a training run
        what = error.strerror if isinstance(error, OSError) else str(error)
        warnings.warn(
            f"{path or os.environ.get(VARIABLE)}: {what}; shipped configurations are used; run gdcore-bench tune, or delete "
            "the file",
            TunedTableWarning,
            stacklevel=2,
        )
        return None
