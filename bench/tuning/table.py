"""The user's table as `tune` writes it: an entry at a time, each saved at once, none that the library would refuse."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gdcore
from gdcore import tuned_format
from gdcore.devices import Device
from gdcore.tuned_format import Key

from ..results import BadInput, write
from .candidates import Job


class TableFile:
    """The user's table as a document: what is there is kept if it is right for this machine, and each entry is saved at once."""

    def __init__(self, path: Path, device: Device, may_replace: bool) -> None:
        """`may_replace`: whatever is wrong with a file there, a new one may take its place (it lies in the cache folder).

        Raises
        ------
        BadInput
            The file is not this GPU's table, and lies where the user said.
        """
        self.path, self.device = path, device
        self.rows: dict[Key, dict[str, Any]] = {}
        self.refused: str | None = None  # why the file that is there is not gone on with
        try:
            document = tuned_format.read(path)
            tuned_format.entries(document, device)
            self.rows = {tuned_format.row_key(row): row for row in document["entries"]}
        except FileNotFoundError:
            pass
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            self.refused = str(error)
            if not may_replace and not _is_ours(path, device):
                raise BadInput(
                    f"{path} is no table of this GPU ({error}): move it away, or name another file"
                ) from error

    def put(self, job: Job, row: Mapping[str, Any]) -> None:
        """Sets an entry and replaces the file in one step."""
        key = job.key(self.device)
        stored = {**key._asdict(), "dtype": str(key.dtype).removeprefix("torch."), **row}
        rows = {**self.rows, key: stored}
        document = {
            **tuned_format.header(self.device, (key.family for key in rows)),
            "gdcore": gdcore.__version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "entries": list(rows.values()),
        }
        tuned_format.entries(document, self.device)  # what would be refused is not written
        write(self.path, document)
        self.rows = rows


def _is_ours(path: Path, device: Device) -> bool:
    """Whether a refused file is an older table of this GPU."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(document, dict)
        and str(document.get("schema")).startswith("gdcore-tuned/")
        and document.get("gpu") == device.name
    )
