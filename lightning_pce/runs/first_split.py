"""When the mean and the bulk of a loss part ways for the first time, for one word in training."""

from __future__ import annotations

from collections.abc import Callable

from lightning_pce.intervals._reasons import why_no_interval
from lightning_pce.intervals._records import checked_record
from lightning_pce.runs._records import Record
from lightning_pce.runs._ties import common_tie
from lightning_pce.runs.history import History

# Each look reads a file from its beginning: of ten thousand validations some hundred look.
_GROWTH = 1.05


class FirstSplit:
    """Looks at a history after each validation, until mean and bulk have no record within error of both."""

    def __init__(self) -> None:
        self._number = 0  # of records there may be
        self._looked_at = 0  # how many there were
        self._found = False

    def look(self, load: Callable[[], History], written: int = 1) -> str | None:
        """What is to be said of the records of one run, once; else None.

        Without error bars nothing is said, for want of documents or of enough of them: only these tell a
        split from chance.

        Args:
            load: reads the history, which takes longer the more there is. It is not called each time.
            written: how many records were added since the last look.
        """
        self._number += written
        if self._found or self._number < _GROWTH * self._looked_at:
            return None
        history = load()
        self._looked_at = self._number = len(history)
        fit = [record for record in history if record.function == "fit"]
        for name in dict.fromkeys(record.name for record in fit):
            records = History((record for record in fit if record.name == name), of="ce")
            if _has_errors(records[-1]) and not common_tie(records):
                self._found = True
                of = f" of {name}" if len(history.names) > 1 else ""
                return (
                    f"sees mean and bulk{of} part at {records[-1].label}: no checkpoint is within error of "
                    "the best in both. lightning_pce.runs.verdict(history) says what each picks, and what "
                    "lies between."
                )
        return None


def _has_errors(record: Record) -> bool:
    documents = record.documents()
    if documents is None:
        return False
    return why_no_interval(checked_record("record", (record.digest(), documents))) is None
