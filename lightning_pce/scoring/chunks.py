"""The work folder of a record: what is planned and which chunks are done, so that a kill loses one of them.

Every file is written under a name of its own and then takes its place at once. So several processes may do
the same chunk: they write the same bytes twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError

_KEPT = ("plan.json", "record.json")


def folder_of(records: str | os.PathLike[str]) -> Path:
    """The folder beside a file of records in which work is kept."""
    path = Path(os.path.expanduser(records))
    return path.with_name(path.name + ".work")


class Work:
    """One record's work: ``plan.json``, a file for each chunk that is done, at last ``record.json``.

    Args:
        records: the file in which the record is to stand.
        key: of the record.
        plan: what JSON can hold; chunks of another plan are not taken for done.

    Raises:
        UserError: if the folder can't be made or written to.
    """

    def __init__(self, records: str | os.PathLike[str], key: str, plan: Mapping[str, Any]) -> None:
        self.folder = folder_of(records) / key
        text = json.dumps(dict(plan), indent=1)
        self._plan = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        write(self.folder / "plan.json", text.encode() + b"\n")

    def chunk_path(self, number: int, suffix: str = ".json") -> Path:
        """The file of a chunk."""
        return self.folder / f"{number:06d}{suffix}"

    def keep(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Note what a chunk has come to.

        Raises:
            UserError: if it can't be written.
        """
        content = {"plan": self._plan, **{name: _packed(array) for name, array in arrays.items()}}
        write(self.chunk_path(number), json.dumps(content).encode() + b"\n")

    def kept(self, number: int) -> dict[str, NDArray[Any]] | None:
        """What :meth:`keep` was given; None if the chunk is open, or its file damaged or of another plan."""
        try:
            content = json.loads(self.chunk_path(number).read_bytes())
            if content.pop("plan") != self._plan:
                return None
            return {name: _unpacked(item) for name, item in content.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error):
            return None

    @property
    def line(self) -> bytes | None:
        """The finished record, None if there is none."""
        try:
            return (self.folder / "record.json").read_bytes()
        except OSError:
            return None

    def finish(self, line: bytes) -> None:
        """Keep the finished record.

        Raises:
            UserError: if it can't be written.
        """
        write(self.folder / "record.json", line)

    def clear(self) -> None:
        """Remove what is not needed any more, once the record stands in its file."""
        for path in self.folder.iterdir():
            if path.name not in _KEPT and path.suffix == ".json":
                with suppress(OSError):  # another process may have been faster
                    path.unlink()


def lines_since(records: str | os.PathLike[str], moment: float) -> list[bytes]:
    """Records that any process has finished for a file since a moment, by the clock of the file system."""
    found = []
    for path in sorted(folder_of(records).glob("*/record.json")):
        with suppress(OSError):
            if path.stat().st_mtime >= moment:
                found.append(path.read_bytes())
    return found


def moment_of(folder: Path) -> float:
    """What the clock of the file system of a folder says now: that of another host may differ from ours.

    Raises:
        UserError: if the folder can't be made or written to.
    """
    path = folder / f".{uuid.uuid4().hex[:8]}.clock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path.stat().st_mtime
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        with suppress(OSError):
            path.unlink()


def write(path: Path, content: bytes) -> None:
    """Put a file in its place as a whole.

    Raises:
        UserError: if it can't be written; nothing is left of it then.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def hash_of(rows: Sequence[Sequence[int]]) -> str:
    """16 hexadecimal digits of rows of whole numbers."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def unwritable(path: Path, error: OSError) -> UserError:
    """What to say where work can't be kept."""
    return UserError(
        f"{path} cannot be written ({error.strerror or error}). What is finished is kept: make room or name "
        "another file of records, then run the same command again."
    )


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    little = np.ascontiguousarray(array, dtype=np.asarray(array).dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(little.tobytes(), 1)).decode()
    return {"dtype": little.dtype.str, "shape": list(np.shape(array)), "data": data}


def _unpacked(item: Mapping[str, Any]) -> NDArray[Any]:
    data = zlib.decompress(base64.b64decode(item["data"], validate=True))
    array = np.frombuffer(data, dtype=item["dtype"]).reshape(item["shape"])
    return array.astype(array.dtype.newbyteorder("="))  # a copy, which may be written to
