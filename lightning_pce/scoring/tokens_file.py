"""Every scored token in a parquet file: a part for each chunk, joined at the end."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_pce._errors import UserError
from lightning_pce.scoring.chunks import unwritable

if TYPE_CHECKING:
    from lightning_pce.scoring.chunk_totals import Tokens


_PARQUET = b"PAR1"  # how such a file begins


def check_tokens_file(path: str | os.PathLike[str], *, keep: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Refuse a path that :func:`join` could not or must not write, before any work is done for it.

    Args:
        path: for the tokens.
        keep: files that are needed: of records, of data.

    Raises:
        UserError: if pyarrow is missing, the path is no place for a file, or there is one that is not parquet
            or is to be kept.
    """
    _pyarrow()
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is no file: name one for the tokens, such as tokens.parquet.")
    if str(target) in {os.path.realpath(os.path.expanduser(each)) for each in keep}:
        raise UserError(f"{path} is also named for records or data: name another file for the tokens.")
    if target.exists() and _begin(target) not in (b"", _PARQUET):
        raise UserError(f"{path} is no parquet file, and stays as it is: name another one for the tokens.")
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{path} cannot be made, as {above} is a file and no folder: name another file.")


def write_part(path: Path, tokens: Tokens, *, run: str, name: str, documents: Sequence[str]) -> None:
    """Write the tokens of a chunk, in the order of documents and positions.

    Args:
        path: of the part.
        tokens: of the chunk.
        run: the key of the record.
        name: of the data.
        documents: the ids of all documents.

    Raises:
        UserError: if it can't be written.
    """
    pa, pq = _pyarrow()
    size = len(tokens.ce)
    which, place = _codes(tokens.document.tolist())
    columns = {
        "run": pa.DictionaryArray.from_arrays(pa.array([0] * size, pa.int32()), pa.array([run])),
        "data": pa.DictionaryArray.from_arrays(pa.array([0] * size, pa.int32()), pa.array([name])),
        "document": pa.DictionaryArray.from_arrays(
            pa.array(place, pa.int32()), pa.array([documents[each] for each in which], pa.string())
        ),
        "position": pa.array(tokens.position, pa.int64()),
        "id": pa.array(tokens.label, pa.int64()),
        "ce": pa.array(tokens.ce, pa.float32()),
        "rank": pa.array(tokens.rank, pa.float64(), from_pandas=True).cast(pa.int64()),
    }
    try:
        with _in_place(path) as beside:
            pq.write_table(pa.table(columns), beside)
    except OSError as error:
        raise unwritable(path, error) from error


def join(parts: Sequence[Path], path: str | os.PathLike[str]) -> None:
    """Put parts one after the other into a file, a part at a time in memory.

    Raises:
        UserError: if it can't be written.
    """
    _, pq = _pyarrow()
    target = Path(os.path.realpath(os.path.expanduser(path)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _in_place(target) as beside, pq.ParquetWriter(beside, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}). The parts are kept: make room or name "
            "another file, then run the same command again."
        ) from error


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_PARQUET))


class _in_place:  # noqa: N801 - it is called like a function
    """A path beside another one, which takes its place at the end if nothing was raised."""

    def __init__(self, path: Path) -> None:
        self.path, self.beside = path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")

    def __enter__(self) -> Path:
        return self.beside

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.replace(self.beside, self.path)
        with suppress(OSError):
            self.beside.unlink()


def _codes(numbers: list[int]) -> tuple[list[int], list[int]]:
    """Distinct numbers in their order, and for each number which of them it is."""
    found: dict[int, int] = {}
    places = [found.setdefault(each, len(found)) for each in numbers]
    return list(found), places


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "--save-tokens writes parquet, which needs pyarrow: pip install 'lightning-pce[parquet]'."
        ) from error
    return pyarrow, pyarrow.parquet
