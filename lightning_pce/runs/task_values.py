"""A task metric of records, from what they have logged or from a file of two columns; without torch."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.runs._paths import meant
from lightning_pce.runs._records import Record
from lightning_pce.runs._words import listed

__all__ = ["TaskFile", "TaskValues"]

_MOST_NAMED = 3


class TaskValues(dict[str, float]):
    """Values of a task metric by the label of the record, with its name and what to know of them.

    Args:
        name: of the metric.
        values: by the label of the record.
        notes: sentences to be shown beside them.

    Example:
        >>> recall = TaskValues("recall", {"step 100": 0.25})
        >>> recall.name, recall["step 100"]
        ('recall', 0.25)
    """

    def __init__(self, name: str, values: Mapping[str, float], notes: tuple[str, ...] = ()) -> None:
        super().__init__(values)
        self.name, self.notes = name, notes


def logged(records: Sequence[Record], task: str) -> dict[str, float]:
    """What records have logged under a name, or know of their tokens under it (``"accuracy"``), by label.

    Raises:
        UserError: if none has it; it lists what there is.
    """
    found = {
        record.label: record.scalars.get(task, record.values.get(task, math.nan))
        for record in records
        if task in record.scalars or task in record.values
    }
    if not found:
        there = {name for record in records for name in record.scalars}
        there |= {name for record in records for name in record.values if name.endswith("accuracy")}
        raise UserError(
            f"No record has {task!r} among what was logged in its validation: there is "
            f"{', '.join(sorted(there)) or 'nothing'}. A file of values is --task-file."
        )
    return found


class TaskFile(NamedTuple):
    """A file of ``record,value`` lines; :meth:`read` reads it, :meth:`matched` finds the records."""

    path: str
    """Of the file."""
    name: str
    """Of the metric, from the header; of a file without one that of the file."""
    rows: tuple[tuple[str, float], ...]
    """Each a record, as it is written there, and its value."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TaskFile:
        r"""Read a CSV file of two columns: a record's label, or the path of its model, and a number.

        Raises:
            OSError: if it can't be read.
            UserError: if it holds something else; it names the line.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "picks.csv"
            >>> _ = path.write_text("checkpoint,recall\nout/step-1,0.25\nout/step-2,0.5\n")
            >>> TaskFile.read(path)[1:]
            ('recall', (('out/step-1', 0.25), ('out/step-2', 0.5)))
        """
        path = Path(os.path.expanduser(path))
        lines = lines_of(path, ("record", "value"))
        head = lines.pop(0) if lines and not is_number(lines[0][1][1]) else None
        if not lines:
            raise UserError(f"{path} has no values: give two columns, record and value.")
        rows = []
        for number, (record, value) in lines:
            if not is_number(value):
                raise UserError(f"{path}, line {number}: the value of {record!r} is no number but {value!r}.")
            rows.append((record, float(value)))
        return cls(str(path), path.stem if head is None else head[1][1] or path.stem, tuple(rows))

    def matched(self, records: Sequence[Record]) -> TaskValues:
        """The values of records by their labels.

        A line belongs to the record of this label, or else of this path of the model or checkpoint, or else
        of the last part of that path.

        Raises:
            UserError: if a line fits several records, two lines with other values one, or none any.
        """
        values: dict[str, float] = {}
        unknown = []
        known = {record.label: [each.path for each in record.saved] for record in records}
        for name, value in self.rows:
            label = self._label(name, known)
            if label is None:
                unknown.append(name)
            elif label in values and values[label] != value:
                raise UserError(
                    f"{self.path} has two values for {label!r}, {values[label]:g} and {value:g}: keep one."
                )
            else:
                values[label] = value
        labels = [record.label for record in records]
        if not values:
            raise UserError(
                f"{self.path} names none of the records: it has {some(unknown)}, they are {some(labels)}."
            )
        without = [label for label in labels if label not in values]
        notes = []
        if unknown:
            notes.append(f"{self.path}: no record for {some(unknown)}.")
        if without:
            notes.append(f"{self.path}: no {self.name} for {some(without)}.")
        return TaskValues(self.name, values, tuple(notes))

    def _label(self, name: str, known: Mapping[str, Sequence[str]]) -> str | None:
        found = meant(name, known)
        if len(found) > 1:
            raise UserError(f"{self.path}: {name!r} may be {some(found)}: write the label of one of them.")
        return found[0] if found else None


def lines_of(path: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The columns of each line of a CSV file that is not empty, with its number.

    Raises:
        OSError: if it can't be read.
        UserError: if it is no such file; it names the line.
    """
    if path.is_dir() or path.is_char_device():  # /dev/zero has no end
        raise UserError(f"{path} is no file: give a CSV file of {_described(columns)}.")
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(columns):
                    raise UserError(
                        f"{path}, line {reader.line_num}: expected {_described(columns)}, with a comma "
                        f"between them but got {len(row)}."
                    )
                found.append((reader.line_num, [cell.strip() for cell in row]))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason}): save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file ({error}).") from error
    return found


def _described(columns: Sequence[str]) -> str:
    """``"two columns, record and value"``."""
    return f"{({2: 'two', 3: 'three'})[len(columns)]} columns, {listed(columns)}"


def is_number(text: str) -> bool:
    """Whether it is one in a file: not ``1_000``, which Python takes for a thousand."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    shown = [repr(name) for name in names[:_MOST_NAMED]]
    more = len(names) - len(shown)
    return f"{', '.join(shown)} and {more} more" if more else listed(shown)
