"""How good models are at tasks: given as a mapping, or in a file of three columns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from lightning_pce._errors import UserError
from lightning_pce.runs._paths import meant
from lightning_pce.runs.proxy_files import Row
from lightning_pce.runs.task_values import is_number, lines_of, some

TruthLike: TypeAlias = Mapping[tuple[str, str], float] | str | os.PathLike[str]
_COLUMNS = ("model", "task", "value")


def with_truth(rows: Sequence[Row], truth: TruthLike) -> tuple[list[Row], list[str]]:
    """Rows with what is given of them, which takes the place of what they had; and notes.

    A model is meant by its name, or else by the path of its files, or else by the end of that path.

    Raises:
        OSError: if a file can't be read.
        UserError: if something else is given, one row gets two values, or none gets any.
    """
    what, entries = _given(truth)
    models: dict[str, list[str]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row.path)
    keys = {(row.model, row.task) for row in rows}
    values: dict[tuple[str, str], float] = {}
    unknown = []
    for name, task, value in entries:
        found = meant(name, models)
        if len(found) > 1:
            raise UserError(f"{what}: {name!r} may be {some(found)}: write the name of one of them.")
        key = (found[0] if found else name, task)
        if key not in keys:
            unknown.append(f"{name}, {task}")
        elif key in values and values[key] != value:
            raise UserError(f"{what} has two values of {name!r} on {task!r}: keep one.")
        else:
            values[key] = value
    if not values:
        there = some([f"{row.model}, {row.task}" for row in rows])
        raise UserError(
            f"{what} names none of the models and tasks: it has {some(unknown)}, they are {there}."
        )
    notes = [f"{what}: nothing here is {some(unknown)}."] if unknown else []
    return [row._replace(truth=values.get((row.model, row.task), row.truth)) for row in rows], notes


def _given(truth: TruthLike) -> tuple[str, list[tuple[str, str, float]]]:
    if isinstance(truth, str | os.PathLike):
        return str(truth), _in_file(Path(os.path.expanduser(truth)))
    if not isinstance(truth, Mapping):
        raise UserError(
            f"Expected argument `truth` to be {{(model, task): value}} or the path of a CSV file but got "
            f"{truth!r:.60}."
        )
    entries = []
    for key, value in truth.items():
        if not (isinstance(key, tuple) and len(key) == 2 and all(isinstance(each, str) for each in key)):
            raise UserError(f"Expected argument `truth` to have keys (model, task) but got {key!r:.60}.")
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"Expected argument `truth` to hold numbers but got {value!r:.60}.") from error
        entries.append((*key, _checked(number, "Argument `truth`", key[0])))
    if not entries:
        raise UserError("Expected argument `truth` to hold {(model, task): value} but it is empty.")
    return "Argument `truth`", entries


def _in_file(path: Path) -> list[tuple[str, str, float]]:
    lines = lines_of(path, _COLUMNS)
    if lines and not is_number(lines[0][1][2]):
        lines = lines[1:]  # a header
    if not lines:
        raise UserError(f"{path} has no values: give three columns, model, task and value.")
    entries = []
    for number, (model, task, value) in lines:
        if not is_number(value):
            raise UserError(f"{path}, line {number}: the value of {model!r} is no number but {value!r}.")
        entries.append((model, task, _checked(float(value), f"{path}, line {number}", model)))
    return entries


def _checked(value: float, where: str, model: str) -> float:
    if math.isinf(value):
        raise UserError(f"{where}: the value of {model!r} is {value}; leave it out if it is not known.")
    return value
