"""What a table of tuned configurations holds, and the checks that it must pass: all of them, or it is no table."""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .kernels import configs
from .kernels.configs import Config

if TYPE_CHECKING:  # devices imports this module
    from .devices import Device

SCHEMA = "gdcore-tuned/1"
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
ONE_PASS = ("one_pass_rows", "one_pass_vector", "one_pass_dot", "one_pass_tall")
PRODUCTS = ("forward", "backward_input", "backward_weight")
WHOLE_K = ("one_pass_dot", "one_pass_tall")  # a tile holds all of K
FAMILIES = ONE_PASS + PRODUCTS
# Which kernel files a family's figures rest on. The table is in all of them: it holds what was compared with.
_SHARED_SOURCES = ("common", "configs", "table/__init__")
_ONE_PASS_SOURCES, _PRODUCT_SOURCES = (*_SHARED_SOURCES, "reduce"), (*_SHARED_SOURCES, "tiles")
SOURCES = {
    "one_pass_rows": ("one_pass_rows", *_ONE_PASS_SOURCES),
    "one_pass_vector": ("one_pass_vector", *_ONE_PASS_SOURCES),
    "one_pass_dot": ("one_pass_dot", "one_pass_vector", *_ONE_PASS_SOURCES),
    "one_pass_tall": ("one_pass_tall", "one_pass_tall_kernel", "one_pass_vector", *_ONE_PASS_SOURCES),
    "forward": ("forward", "reduce", *_PRODUCT_SOURCES),
    "backward_input": ("backward_input", *_PRODUCT_SOURCES),
    "backward_weight": ("backward_weight", *_PRODUCT_SOURCES),
}
WARPS, MOST_STAGES, LONGEST_BLOCK = (1, 2, 4, 8, 16), 8, 4096


class Key(NamedTuple):
    """The shapes that share an entry: see key_of."""

    family: str
    dtype: torch.dtype
    n: int
    k: int
    m: int
    input_precision: str
    residual: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A configuration that was faster than the shipped one, and what its compiled code takes."""

    config: Config
    registers: int
    shared_bytes: int
    programs_per_sm: int
    occupancy: float
    limited_by: str
    variant: str = ""  # its name, in words

    @property
    def compiled(self) -> dict[str, Any]:
        """As kernels.resources.nearest gives it for what ships."""
        return {name: value for name, value in asdict(self).items() if name != "config"}


RESOURCES = tuple(field.name for field in fields(Entry) if field.name not in ("config", "variant"))


def key_of(
    family: str,
    dtype: torch.dtype,
    n: int,
    k: int,
    m: int,
    input_precision: str = "ieee",
    residual: bool = False,  # E is stored by a one-pass kernel: another kernel to the compiler
) -> Key:
    """One-pass kernels: any N, K rounded up to its block, M as it is. Products: all three rounded up.

    K stays as it is in one_pass_rows, and in one_pass_vector where rows are unaligned: their tiles are for one K.
    """
    if family in PRODUCTS:
        return Key(family, dtype, _power_of_two(n), _power_of_two(k), _power_of_two(m), input_precision, False)
    if family != "one_pass_rows" and not (family == "one_pass_vector" and configs.vector_unaligned(k, dtype)):
        k = max(_power_of_two(k), 16 if family in WHOLE_K else 1)
    return Key(family, dtype, 0, k, m, input_precision, residual)


def _power_of_two(length: int) -> int:
    return 1 << (length - 1).bit_length()


def header(device: "Device", families: Iterable[str]) -> dict[str, Any]:
    """The part of a table that says what it is true for: all of it must be the same where it is read."""
    import triton

    return {
        "schema": SCHEMA,
        "gpu": device.name,
        "architecture": device.architecture,
        "sms": device.sms,
        "triton": triton.__version__,
        "kernels": {family: generation(family) for family in sorted(set(families))},
    }


@functools.cache
def generation(family: str) -> str:
    """A digest of the source files that a family's kernels are made of."""
    digest = hashlib.sha256()
    for name in SOURCES[family]:
        digest.update(Path(configs.__file__).parent.joinpath(f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def read(path: Path) -> Any:
    """A table file's document, unchecked.

    Raises
    ------
    OSError
    ValueError
        It is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"it is damaged: {error}") from error


def entries(document: Any, device: "Device") -> dict[Key, Entry]:
    """The checked entries of a document; those that found nothing faster than what ships are checked and left out.

    Raises
    ------
    ValueError
        Anything at all is wrong; the message says what.
    """
    _require(isinstance(document, dict), "it is no table")
    rows, kernels = document.get("entries"), document.get("kernels")
    _require(document.get("schema") == SCHEMA, f"its schema is {document.get('schema')!r}, it must be {SCHEMA!r}")
    _require(isinstance(rows, list) and isinstance(kernels, dict), "its entries or kernels are missing")
    _require(set(kernels) <= set(FAMILIES), "it tells of kernels that do not exist")
    for name, value in header(device, kernels).items():
        if name == "kernels":
            changed = [family for family in value if kernels[family] != value[family]]
            _require(not changed, f"it is of another version of the kernels: {', '.join(changed)}")
        else:
            _require(_same(document.get(name), value), f"its {name} is {document.get(name)!r}, here it is {value!r}")
    found = {}
    for number, row in enumerate(rows):
        try:
            _require(isinstance(row, dict), "it is no entry")
            key = row_key(row)
            _require(key.family in kernels, f"kernels does not tell of {key.family}")
            _require(key not in found, "it is there twice")
            found[key] = _entry(row, key, device)
        except ValueError as error:
            raise ValueError(f"entry {number}: {error}") from error
    return {key: entry for key, entry in found.items() if entry is not None}


def row_key(row: Mapping[str, Any]) -> Key:
    """The key of an entry as stored."""
    family, precision, residual = row.get("family"), row.get("input_precision"), row.get("residual")
    _require(family in FAMILIES, f"family is {family!r}")
    _require(isinstance(row.get("dtype"), str) and row["dtype"] in DTYPES, f"dtype is {row.get('dtype')!r}")
    _require(precision == "ieee" or (precision == "tf32" and row["dtype"] == "float32"), "input_precision is wrong")
    _require(isinstance(residual, bool), "residual is wrong")
    n, k, m = (_integer(row, name, 0 if name == "n" else 1, 1 << 48) for name in ("n", "k", "m"))
    key = Key(family, DTYPES[row["dtype"]], n, k, m, precision, residual)
    _require(key == key_of(*key), "its sizes are not rounded as entries are")
    return key


def _entry(row: Mapping[str, Any], key: Key, device: "Device") -> Entry | None:
    for name in ("seconds", "default_seconds"):
        value = row.get(name)
        _require(isinstance(value, float) and math.isfinite(value) and value > 0, f"{name} is {value!r}")
    if row.get("config") is None:
        return None
    config, made = row["config"], row.get("compiled")
    _require(isinstance(config, dict) and set(config) == {f.name for f in fields(Config)}, "config is wrong")
    _require(isinstance(made, dict) and set(made) == set(RESOURCES), "compiled is wrong")
    blocks = {name: _integer(config, name, 0, LONGEST_BLOCK) for name in ("block_n", "block_k", "block_m")}
    least = dict.fromkeys(blocks, 16)
    if key.family == "one_pass_rows":
        least = {"block_n": 1}
    elif key.family == "one_pass_vector":
        least = {"block_n": 1, "block_k": 1}
    for name, length in blocks.items():
        used = name in least
        _require(length >= least[name] if used else length == 0, f"{name} is {length}")
        _require(not used or length & (length - 1) == 0, f"{name} is {length}, no power of two")
    if key.family in WHOLE_K:  # another block would leave some of K out, and in one_pass_dot of M
        spans = key.family == "one_pass_tall" or blocks["block_m"] == 16
        _require(blocks["block_k"] == key.k and spans, "block_k or block_m does not span the tile")
    _require(config["num_warps"] in WARPS, f"num_warps is {config['num_warps']!r}")
    _integer(config, "num_warps", 1, max(WARPS))
    _integer(config, "num_stages", 1, MOST_STAGES)
    _integer(made, "registers", 1, 255)
    _integer(made, "shared_bytes", 0, device.shared_memory)
    _integer(made, "programs_per_sm", 1, 32)
    occupancy = made["occupancy"]
    _require(isinstance(occupancy, float) and 0 < occupancy <= 1, f"occupancy is {occupancy!r}")
    _require(isinstance(made["limited_by"], str), "limited_by is wrong")
    return Entry(Config(**config), **made, variant=title(key))


def title(key: Key) -> str:
    """An entry's name in words."""
    sizes = f"N={key.n} K={key.k} M={key.m}" if key.n else f"K={key.k} M={key.m}"
    ending = " tf32" * (key.input_precision == "tf32") + " with residual" * key.residual
    return f"{key.family} {str(key.dtype).removeprefix('torch.')} {sizes}{ending}"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _same(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and found == expected


def _integer(row: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = row.get(name)
    _require(type(value) is int and least <= value <= most, f"{name} is {value!r}, not from {least} to {most}")
    return value
