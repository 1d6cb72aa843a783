"""Files of records, opened for a subcommand: what is wrong with them is found without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_pce._errors import UserError

if TYPE_CHECKING:
    from lightning_pce.runs.history import History
    from lightning_pce.runs.task_values import TaskFile


def load(paths: Sequence[Path]) -> History:
    """The records of files, in their order.

    Raises:
        OSError: if a file is missing or can't be read.
        UserError: if one is no file of records, is of a newer version, or there are no records at all.
    """
    from lightning_pce.runs.history import History

    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the file of records in it.")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file but a device or a pipe: records are read more than once.")
    history = History.load(*paths)
    if not len(history):
        torn = f", but {history.torn} torn lines" if history.torn else ""
        raise UserError(
            f"There are no records in {', '.join(map(str, paths))}{torn}: write them with evaluate or import."
        )
    return history


def checked_sections(history: History, reference: str | None, task: str | TaskFile | None) -> list[History]:
    """The sections of a history, looked at for all that needs no torch, which takes seconds to import.

    Raises:
        UserError: if records may not be compared, or one has no such reference or task metric.
    """
    from lightning_pce.runs.comparable import basis_of, reference_in, sections
    from lightning_pce.runs.task_values import logged

    parts = sections(history)
    for part in parts:
        reference_in(part, reference)
        basis_of(part)
        if isinstance(task, str):
            logged(part, task)
        elif task is not None:
            task.matched(part)
    return parts
