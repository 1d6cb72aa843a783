"""A file of records is written anew as a whole: a reader sees the old one or the new one, nothing between."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.runs._headers import Header, begins_like_one, check_schema, header_of

_TRIES = 20  # while another process writes to the file


class _Seen(NamedTuple):
    """What tells whether a file is still the one that was read."""

    inode: int
    size: int
    changed: int


def check_records(path: str | os.PathLike[str]) -> None:
    """Refuse a path that :func:`replace_lines` would refuse, before any work is done for it.

    Raises:
        UserError: if the path is a folder or a device, something above it is a file, or there is a file that
            is no history or was written by a later version.
    """
    target = _target(path)
    if target.exists():
        with target.open("rb") as file:
            _copied(file, None, {}, target)


def replace_lines(path: str | os.PathLike[str], lines: Sequence[bytes]) -> None:
    """Put lines of records in the places of those with the same run and name, and new ones at the end.

    All other lines stay as they are, byte for byte and in their order. The file is written beside the old
    one and takes its place at once. If another process has written meanwhile it is read again.

    Args:
        path: a file of records; it and its folder are made if they are not there.
        lines: from :func:`~lightning_pce.runs._writing.validation_line`, each with its end.

    Raises:
        UserError: as :func:`check_records`, or if the file can't be written; the old one is as it was then.

    Example:
        >>> import tempfile
        >>> from lightning_pce.runs._headers import header_of
        >>> path = tempfile.mkdtemp() + "/records.jsonl"
        >>> line = b'{"kind":"validation","schema":1,"run":"a","name":"val","step":%d}'
        >>> replace_lines(path, [line % 1 + bytes([10])])
        >>> replace_lines(path, [line % 2 + bytes([10])])
        >>> [header_of(each).values["step"] for each in open(path, "rb")]
        [2]
    """
    target = _target(path)
    new = {_key(header_of(line)): line for line in lines}
    if None in new:
        raise ValueError("Expected lines of validations, each with its run and name.")
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            seen = _seen(target)
            _write(beside, target, new)
            # A line that another process appends between this look and the next call would be lost.
            if _seen(target) == seen:
                os.replace(beside, target)
                return
        raise UserError(f"{path} is being written to by another process: try again when that has ended.")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}), and is as it was: give another file."
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def _target(path: str | os.PathLike[str]) -> Path:
    """The file itself where the path is a link to it, checked."""
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if target.is_dir():
        raise UserError(f"{path} is a folder: name a file in it, such as {target / 'records.jsonl'}.")
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is a device or a pipe, which cannot be read again: name a file.")
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{path} cannot be made, as {above} is a file and no folder: name another file.")
    return target


def _write(beside: Path, target: Path, new: dict[tuple[str, str] | None, bytes]) -> None:
    with beside.open("wb") as out:
        left = dict(new)
        if target.exists():
            os.chmod(beside, target.stat().st_mode & 0o777)
            with target.open("rb") as file:
                left = _copied(file, out, new, target)
        out.writelines(left.values())
        out.flush()
        os.fsync(out.fileno())  # some file systems find only here that the disk is full


def _copied(
    file: BinaryIO, out: BinaryIO | None, new: dict[tuple[str, str] | None, bytes], path: Path
) -> dict[tuple[str, str] | None, bytes]:
    """Copy a file with new lines in the places of old ones; those that had no place."""
    left, ours, torn = dict(new), False, 0
    for number, line in enumerate(file, 1):
        header = header_of(line)
        if header is not None:
            check_schema(header, path, number)
        ours |= header is not None or begins_like_one(line)
        torn += header is None and bool(line.strip())
        if out is None:
            continue
        key = _key(header)
        if key not in new:
            out.write(line if line.endswith(b"\n") else line + b"\n")
        elif key in left:
            out.write(left.pop(key))
    if torn and not ours:
        raise UserError(f"{path} is no history, and stays as it is: name another file.")
    return left


def _key(header: Header | None) -> tuple[str, str] | None:
    """The run and the name of a record; None of another line."""
    if header is None or header.values.get("kind") != "validation":
        return None
    return str(header.values.get("run")), str(header.values.get("name"))


def _seen(path: Path) -> _Seen | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return _Seen(found.st_ino, found.st_size, found.st_mtime_ns)
