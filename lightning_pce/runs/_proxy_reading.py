"""Files of proxies and of records, read as rows of one table."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.runs._proxy_records import rows_of
from lightning_pce.runs._records import Record
from lightning_pce.runs._truth import TruthLike, with_truth
from lightning_pce.runs.history import History
from lightning_pce.runs.proxy_files import Row, read_proxies
from lightning_pce.runs.task_values import some


class Read(NamedTuple):
    """What files hold."""

    rows: list[Row]
    baselines: dict[str, dict[str, float]]
    """By name and model."""
    notes: list[str]


def read_rows(paths: Sequence[str | os.PathLike[str]], truth: TruthLike | None) -> Read:
    """The rows of files with what is given as their truth; see ``ProxyTable.read``."""
    rows, baselines, notes = _read(_files(paths))
    if truth is not None:
        rows, more = with_truth(rows, truth)
        notes += more
    _check_files(rows)
    return Read(rows, baselines, notes)


def in_style(style: str | None) -> str:
    """Words behind the name of a task."""
    return "" if style is None else f" in style {style!r}"


def _check_files(rows: Sequence[Row]) -> None:
    sources: dict[tuple[str, str, str | None], str] = {}
    for row in rows:
        key = (row.model, row.task, row.style)
        if key in sources:
            pair = (
                "twice in " + row.source
                if sources[key] == row.source
                else f"in {sources[key]} and {row.source}"
            )
            raise UserError(f"{row.model!r} on {row.task!r}{in_style(row.style)} is {pair}: keep one.")
        sources[key] = row.source


def _files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that are meant, each once."""
    if not paths:
        raise UserError("Expected the paths of files of proxies or records but got none.")
    found: dict[str, Path] = {}
    for given in paths:
        if not isinstance(given, str | os.PathLike):
            raise UserError(f"Expected paths but got {given!r:.60}: of a list write read(*paths).")
        path = os.path.expanduser(given)
        # A file may be called a[1].json.
        names = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
        names = [path] if os.path.lexists(path) else names
        if not names:
            raise UserError(f"No file fits {os.fspath(given)!r}.")
        for each in map(Path, names):
            if each.is_dir():
                raise UserError(f"{each} is a folder: give the files in it, such as {each / '*.json'}.")
            if each.exists() and not each.is_file():
                raise UserError(f"{each} is no file but a device or a pipe: records are read more than once.")
            found.setdefault(os.path.realpath(each), each)
    return list(found.values())


def _read(files: Sequence[Path]) -> Read:
    rows: list[Row] = []
    records: list[Record] = []
    sources: list[str] = []
    notes: list[str] = []
    for file in files:
        row = read_proxies(file)
        if row is not None:
            rows.append(row)
            continue
        try:
            history = History.load(file)
        except UserError as error:
            raise UserError(f"{error} Nor is it a file of save_proxies, which is one JSON object.") from error
        if history.torn:
            notes.append(f"{file}: {history.torn} torn line{'s' * (history.torn > 1)} left out.")
        records += list(history)
        sources += [str(file)] * len(history)
    found = rows_of(list(History(records)), sources)
    rows += found.rows
    if not rows:
        raise UserError(
            f"There are no proxies in {some([str(file) for file in files])}: write them with save_proxies or "
            "lightning-pce evaluate --proxies."
        )
    return Read(rows, found.baselines, [*found.notes, *notes])
