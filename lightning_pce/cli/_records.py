"""Files of records, opened for a subcommand: what is wrong with them is found without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_pce._errors import UserError

if TYPE_CHECKING:
    from lightning_pce.runs.history import History


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
