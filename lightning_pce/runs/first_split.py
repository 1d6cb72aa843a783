"""When the mean and the bulk of a loss part ways for the first time, for one word in training."""

from __future__ import annotations

from lightning_pce.runs._ties import common_tie
from lightning_pce.runs.history import History

# Each look reads a file from its beginning: of ten thousand validations some hundred look.
_GROWTH = 1.05


class FirstSplit:
    """Looks at a history after each validation, until mean and bulk have no record within error of both."""

    def __init__(self) -> None:
        self._looked_at = 0  # how many records there were
        self._found = False

    def look(self, history: History) -> str | None:
        """What is to be said of the records of one run, once; else None.

        Without counts of documents nothing is said: only error bars tell a split from chance.
        """
        if self._found or len(history) < _GROWTH * self._looked_at:
            return None
        self._looked_at = len(history)
        fit = [record for record in history if record.function == "fit"]
        for name in dict.fromkeys(record.name for record in fit):
            records = History((record for record in fit if record.name == name), of="ce")
            if records[-1].documents() is not None and not common_tie(records):
                self._found = True
                of = f" of {name}" if len(history.names) > 1 else ""
                return (
                    f"sees mean and bulk{of} part at {records[-1].label}: no checkpoint is within error of "
                    "the best in both. lightning_pce.runs.verdict(history) says what each picks, and what "
                    "lies between."
                )
        return None
