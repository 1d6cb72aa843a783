"""The history of runs: what every validation has measured, read from the files written meanwhile.

Records open by their small values alone; a digest is read when it is asked for, and not kept.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex, overload

from lightning_pce._errors import UserError
from lightning_pce.runs._headers import (
    Header,
    Payload,
    begins_like_one,
    check_kinds,
    check_schema,
    header_of,
    numbers_of,
)
from lightning_pce.runs._paths import shortest_ends
from lightning_pce.runs._records import SCORED, Checkpoint, Key, Record, Records, Saved
from lightning_pce.runs._writing import write_checkpoint, write_start, write_validation

__all__ = [
    "Checkpoint",
    "History",
    "Key",
    "Record",
    "Saved",
    "write_checkpoint",
    "write_start",
    "write_validation",
]

FILE_NAME = "percentile_history.jsonl"
_UNITS = ("epoch", "step", "batch")
# What a line is recognised by when its payload is read.
_RECOGNISED = ("run", "function", "name", "step", "batch")


class History(Sequence[Record]):
    """Records of validations in the order in which they were written; :meth:`load` reads them from files.

    Args:
        records: what it holds. Each gets a label that no other has, as short as that allows.
        of: the statistic that is looked at, for what takes a whole history; None: the only one there is.
        group: the group of tokens that is looked at, ``""``: all tokens.
        torn: how many lines could not be read.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from lightning_pce.digest import from_values, mean
        >>> path = tempfile.mkdtemp() + "/history.jsonl"
        >>> for step, losses in ((100, [1.0, 2.0, 6.0]), (200, [0.5, 1.5, 7.0])):
        ...     digests = {"ce": {"": from_values(torch.tensor(losses))}}
        ...     values = {"ce_p50": losses[1]}
        ...     write_validation(path, run="a", name="val", step=step, values=values, digests=digests)
        >>> history = History.load(path)
        >>> [(record.label, record.values["ce_p50"]) for record in history]
        [('step 100', 2.0), ('step 200', 1.5)]
        >>> mean(history[1].digest())
        tensor(3., dtype=torch.float64)
    """

    def __init__(
        self, records: Iterable[Record], *, of: str | None = None, group: str = "", torn: int = 0
    ) -> None:
        found = list(records)
        self._records = [
            record if record.label == label else replace(record, label=label)
            for record, label in zip(found, _labels(found), strict=True)
        ]
        self.of, self.group, self.torn = of, group, torn

    @classmethod
    def load(cls, *paths: str | os.PathLike[str]) -> History:
        """Read files of histories, several in the order in which they were written.

        A line that is torn, because its writer was killed, is skipped and counted in ``torn``.

        Raises:
            OSError: if there is no such file, or it cannot be read.
            ValueError: if a file is no history, or of a later version of this package.
        """
        if not paths:
            raise ValueError("Expected the path of a history, or several, but got none.")
        records, torn = Records(), 0
        for path in paths:
            torn += _read(Path(os.path.expanduser(path)), records)
        return cls(records.all(), torn=torn)

    def select(
        self,
        run: str | None = None,
        name: str | None = None,
        of: str | None = None,
        group: str | None = None,
        function: str | None = None,
    ) -> History:
        """The records of one run, one dataloader and one function; what is left out is not chosen by.

        Args:
            run: the id of a run.
            name: ``"val"``, or of several dataloaders ``"val_dl0"``.
            of: the statistic to look at from here on, such as ``"entropy"``.
            group: the group of tokens to look at from here on.
            function: ``"fit"``, ``"validate"`` or ``"evaluate"``.

        Raises:
            UserError: if no record is left; it says what there is.
        """
        chosen = {
            name: value
            for name, value in (("run", run), ("name", name), ("function", function))
            if value is not None
        }
        records = [
            record
            for record in self._records
            if all(getattr(record, name) == value for name, value in chosen.items())
        ]
        if chosen and not records:
            asked = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
            raise UserError(f"No record of {asked}: there are {self._described()}.")
        return History(
            records,
            of=self.of if of is None else of,
            group=self.group if group is None else group,
            torn=self.torn,
        )

    @property
    def statistic(self) -> str:
        """The statistic that is looked at: the one that was chosen, or the only one that records have.

        Raises:
            ValueError: if they have several, and none was chosen.
        """
        if self.of is not None:
            return self.of
        found = self._records[0].statistics if self._records else ()
        if len(found) > 1:
            raise ValueError(
                f"Expected records of one statistic but got {', '.join(map(repr, found))}: choose by "
                f"history.select(of={found[0]!r}); select(run=, name=, of=) takes all three."
            )
        return found[0] if found else "ce"

    @property
    def runs(self) -> tuple[str, ...]:
        """The ids of its runs, in order."""
        return self._distinct("run")

    @property
    def names(self) -> tuple[str, ...]:
        """What its logged names begin with, in order: ``"val_dl0"``, ``"val_dl1"``."""
        return self._distinct("name")

    @property
    def functions(self) -> tuple[str, ...]:
        """What its records were made by, in order."""
        return self._distinct("function")

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Record: ...
    @overload
    def __getitem__(self, index: slice, /) -> History: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> Record | History:
        if isinstance(index, slice):
            return History(self._records[index], of=self.of, group=self.group, torn=self.torn)
        return self._records[index]

    def __repr__(self) -> str:
        torn = f", {self.torn} torn lines" if self.torn else ""
        return f"History({len(self)} records: {self._described()}{torn})"

    def _described(self) -> str:
        found = (f"{what}={', '.join(self._distinct(what))}" for what in ("run", "name", "function"))
        return "; ".join(found) if self._records else "none"

    def _distinct(self, attribute: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(getattr(record, attribute) for record in self._records))


def run_that_saved(path: Path, checkpoint: str) -> str | None:
    """The id of the run that has written a checkpoint, as the last line of it in a file says."""
    found = None
    if path.is_file():
        with path.open("rb") as file:
            for header in map(header_of, file):
                if header is not None and header.values.get("path") == checkpoint:
                    found = str(header.values.get("run"))
    return found


def _read(path: Path, records: Records) -> int:
    """Add what a file holds, line by line; how many lines were torn."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the file in it, such as {path / FILE_NAME}.")
    torn = ours = offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            header = header_of(line)
            if header is not None:
                check_schema(header, path, number)
            taken = header is not None and _take(header, path, offset, len(line), records)
            torn += not taken and bool(line.strip())
            ours += taken or begins_like_one(line)
            offset += len(line)
    if torn and not ours:
        raise UserError(f"{path} is no history: none of its {torn} lines is one of a history.")
    return torn


def _take(header: Header, path: Path, offset: int, length: int, records: Records) -> bool:
    """Add what a line says; False if it can't be understood."""
    line = header.values
    try:
        if line["kind"] == "start":
            records.start(line["run"], line["step"], line["batch"])
        elif line["kind"] == "checkpoint":
            records.save(
                line["run"], Saved(line["path"], line.get("monitor"), line["step"], line.get("batch"))
            )
        elif line["kind"] == "validation":
            payload = None
            if header.has_payload:
                payload = Payload(path, offset, length, {name: line[name] for name in _RECOGNISED})
            records.add(_record(line, payload))
        else:
            return False
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False
    return True


def _record(line: Mapping[str, Any], payload: Payload | None) -> Record:
    check_kinds(line)
    path = line.get("checkpoint")
    return Record(
        **{name: line[name] for name in _RECOGNISED},
        epoch=line["epoch"],
        values=numbers_of(line["values"]),
        scalars=numbers_of(line["scalars"]),
        stale=numbers_of(line["stale"]),
        fingerprint=line["fingerprint"],
        metadata=line["metadata"],
        how=line.get("how", {}),
        saved=() if path is None else (Saved(path, None, line["step"], line["batch"]),),
        payload=payload,
    )


def _labels(records: Sequence[Record]) -> list[str]:
    """The shortest names that tell records apart: by epoch, or else by step, or else by batch.

    What the command line has scored is called by its model, as each checkpoint is a run of its own there.
    """
    models = shortest_ends(
        {record.saved[0].path for record in records if record.function in SCORED and record.saved}
    )
    trained = [record for record in records if record.function not in SCORED]
    several = [
        name for name in ("run", "name", "function") if len({getattr(each, name) for each in trained}) > 1
    ]
    names = len({record.name for record in records}) > 1
    in_order = [record for record in trained if record.function != "validate" and record.step is not None]
    labels: list[str] = []
    for unit in _UNITS:
        labels = [
            _scored(record, models, names) if record.function in SCORED else _label(record, several, unit)
            for record in records
        ]
        fits = all(getattr(record, unit) is not None for record in in_order)
        if fits and len(set(labels)) == len(labels):
            return labels
    seen: Counter[str] = Counter()
    for index, label in enumerate(labels):
        seen[label] += 1
        labels[index] = label if seen[label] == 1 else f"{label} ({seen[label]})"
    return labels


def _scored(record: Record, models: Mapping[str, str], names: bool) -> str:
    model = models[record.saved[0].path] if record.saved else record.run
    return f"{record.name} {model}" if names else model


def _label(record: Record, several: Sequence[str], unit: str) -> str:
    parts = [getattr(record, name) for name in several if (name, record.function) != ("function", "fit")]
    for name in (unit, "step", "batch"):
        if getattr(record, name) is not None:
            return " ".join([*parts, f"{name} {getattr(record, name)}"])
    return " ".join([*parts, os.path.basename(record.saved[0].path) if record.saved else "unknown step"])
