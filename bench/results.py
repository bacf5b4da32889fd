"""A run's file: one JSON document with a versioned schema, replaced atomically after every piece of work.

    {"schema": "gdcore-bench/3", "created", "finished", "profile", "selection", "seed", "machine", "versions", "commit",
     "busy_cores", "ceilings", "cases": {name: row}, "host": {...}, "predicted": [row], "attempts": {name: times begun}}

A row is what measure.measure_case returns: what the case is, its floor and plan, and every peer's parity, times by column,
memory, or in words why it has none. Every sample is kept, in seconds per call.
"""

import contextlib
import datetime
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = "gdcore-bench/3"
PARTS: dict[str, type] = {
    "created": str,
    "profile": str,
    "selection": dict,
    "seed": int,
    "machine": dict,
    "versions": dict,
    "cases": dict,
    "host": dict,
    "predicted": list,
    "attempts": dict,
}
KINDS = ("linear_mse", "sgd", "run")


class BadInput(Exception):
    """What the user asked for cannot be done; the message is one line that says why."""


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def default_path() -> Path:
    """bench-results/<time>.json under the current folder."""
    return Path("bench-results") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.json"


def read(path: Path) -> dict:
    """A result file's document.

    Raises
    ------
    BadInput
        If the file cannot be read, is no JSON, or has another schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not a result file: it is not JSON ({error})") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise BadInput(f"{path} has the schema {schema!r}, it must be {SCHEMA!r}")
    wrong = [name for name, kind in PARTS.items() if not isinstance(document.get(name), kind)]
    if wrong:
        raise BadInput(f"{path} is not a complete result file: {', '.join(wrong)} missing or malformed")
    if not isinstance(document["machine"].get("device"), str):
        raise BadInput(f"{path} is not a complete result file: its machine has no device")
    wrong = [name for name, row in document["cases"].items() if not _is_row(row)]
    wrong += [name for name, count in document["attempts"].items() if not isinstance(count, int)]
    if wrong or not isinstance(document.get("ceilings"), dict | None):
        raise BadInput(f"{path} is not a result file: {(wrong or ['ceilings'])[0]} is malformed")
    return document


def _is_row(row: Any) -> bool:
    """Whether this can be a case's row: what it is, and its peers or why it has none."""
    if not isinstance(row, dict) or row.get("kind") not in KINDS or not isinstance(row.get("label"), str):
        return False
    if row["kind"] != "sgd" and not all(isinstance(row.get(name), int) for name in ("n", "k", "m")):
        return False
    if isinstance(row.get("skipped"), str):
        return True
    peers = row.get("peers")
    return isinstance(peers, dict) and all(isinstance(entry, dict) for entry in peers.values())


def write(path: Path, document: dict) -> None:
    """Replaces the file in one step: a reader, or a crash, finds the old document or the new one.

    Raises
    ------
    BadInput
        If the folder cannot be made or written.
    """
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"cannot write {path}: it is not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(finite(document), file, indent=1, ensure_ascii=False, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # already in its place
                os.unlink(temporary)
            raise
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from error


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as strings: JSON has no numbers for them."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Results:
    """A run's document and where it is saved."""

    def __init__(self, path: Path, document: dict) -> None:
        self.path, self.document, self.saved = path, document, False

    @classmethod
    def new(
        cls,
        path: Path,
        *,
        profile: str,
        selection: dict,
        seed: int,
        machine: dict,
        versions: dict,
        commit: str | None,
        busy_cores: float | None = None,
    ) -> "Results":
        """An empty document, not yet saved."""
        document = {
            "schema": SCHEMA,
            "created": now(),
            "finished": None,
            "profile": profile,
            "selection": selection,
            "seed": seed,
            "machine": machine,
            "versions": versions,
            "commit": commit,
            "busy_cores": busy_cores,
            "ceilings": None,
            "cases": {},
            "host": {},
            "predicted": [],
            "attempts": {},
        }
        return cls(path, document)

    @classmethod
    def resumed(
        cls, source: Path, path: Path, *, profile: str | None, machine: dict, versions: dict, commit: str | None
    ) -> "Results":
        """A document to go on with, not yet saved. Figures of two profiles, machines, versions or commits never share a file."""
        document = read(source)
        if profile not in (None, document["profile"]):
            raise BadInput(f"{source} has the profile {document['profile']!r}, not {profile!r}")
        pairs = (
            (machine, document["machine"]),
            (versions, document["versions"]),
            ({"commit": commit}, {"commit": document.get("commit")}),
        )
        for here, there in pairs:
            different = [name for name in here | there if here.get(name) != there.get(name)]
            if different:
                name = different[0]
                raise BadInput(
                    f"{source} cannot be resumed here: its {name} is {there.get(name)!r}, this one is {here.get(name)!r}"
                )
        document["finished"] = None
        return cls(path, document)

    def save(self) -> None:
        write(self.path, self.document)
        self.saved = True

    def put(self, part: str, value: Any, key: str | None = None) -> None:
        """Sets a part of the document, or one row of it, and saves."""
        if key is None:
            self.document[part] = value
        else:
            self.document[part][key] = value
        self.save()
