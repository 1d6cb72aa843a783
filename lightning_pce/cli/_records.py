"""Files of records, opened for a subcommand: what is wrong with them is found without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_pce._errors import UserError

if TYPE_CHECKING:
    from lightning_pce.runs.history import History
    from lightning_pce.runs.task_values import TaskFile


def load(paths: Sequence[Path], name: str | None) -> History:
    """The records of files, in their order; with a name those of this data.

    Raises:
        OSError: if a file is missing or can't be read.
        UserError: if one is no file of records, is of a newer version, or there are no records, or none of
            this name.
    """
    from lightning_pce.runs.history import History

    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the file of records in it.")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file but a device or a pipe: records are read more than once.")
    history = History.load(*paths)
    if not len(history):
        torn = f", but {history.torn} torn line{'s' * (history.torn > 1)}" if history.torn else ""
        raise UserError(
            f"There are no records in {', '.join(map(str, paths))}{torn}: write them with evaluate or import."
        )
    if name is None:
        return history
    if name not in history.names:
        raise UserError(f"There are no records of {name!r}: --name is one of {', '.join(history.names)}.")
    return history.select(name=name)


def checked_sections(history: History, reference: str | None, task: str | TaskFile | None) -> list[History]:
    """The sections of a history, looked at for all that needs no torch, which takes seconds to import.

    Raises:
        UserError: if records may not be compared, or one has no such reference or task metric.
    """
    from lightning_pce.runs.comparable import basis_of, reference_in, sections
    from lightning_pce.runs.task_values import logged

    parts = sections(history)
    for part in parts:
        with _named(part, parts):
            reference_in(part, reference)
            basis_of(part)
            if isinstance(task, str):
                logged(part, task)
            elif task is not None:
                task.matched(part)
    return parts


@contextmanager
def _named(part: History, parts: Sequence[History]) -> Iterator[None]:
    """Of several data what is wrong is said with the name of the data."""
    try:
        yield
    except UserError as error:
        if len(parts) == 1:
            raise
        raise UserError(f"Of the data {part[0].name!r}: {error} Choose others by --name.") from error
