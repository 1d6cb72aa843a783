"""What earlier calls have left: whether a study can go on with it, and which of it has to be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.topk_distillation_parts import stories
from benchmarks.studies.topk_distillation_parts.training import topk_path, versions, weights_path
from examples.resumable import Unit, read

TO_DO = "what is still to do"


def prepare_models(units: Sequence[Unit]) -> None:
    """Before any model of a study is trained: results without a file that is still needed are removed.

    The random numbers of a unit depend on its settings alone: what is made again is what it was, but for the
    rounding of another machine.

    Raises:
        SystemExit: if some are done, others are not, and the versions here are not those of the ones done.
    """
    lost = {unit.path: file for unit in units if (file := lost_file(unit, units)) is not None}
    done = [unit for unit in units if unit.path not in lost and read(unit) is not None]
    found = {unit.settings["name"]: result["versions"] for unit in done if (result := read(unit)) is not None}
    agree(found if len(done) == len(units) else found | {TO_DO: versions()})
    for unit in units:
        if unit.path in lost:
            name, file = unit.settings["name"], lost[unit.path].name
            print(f"{name} is done again: its {file} is not there.", flush=True)
            unit.path.unlink()


def lost_file(unit: Unit, units: Sequence[Unit]) -> Path | None:
    """A file of a unit that is done which is not there: its history, or what a student still needs of it."""
    if read(unit) is None:
        return None
    history = unit.path.with_suffix(".jsonl")
    if not history.exists():
        return history
    if unit.settings["kind"] == "teacher" and any(_is_missing(student) for student in _students(unit, units)):
        return next((path for path in (weights_path(unit), topk_path(unit)) if not path.exists()), None)
    return None


def prepare_stories(pieces: Sequence[Unit]) -> None:
    """Before any story is written.

    Raises:
        SystemExit: if some are written, others are not, and these would be in another precision.
    """
    found = precisions(pieces)
    agree(found if len(found) == len(pieces) else found | {TO_DO: {"precision": str(stories.dtype())}})


def precisions(pieces: Sequence[Unit]) -> dict[str, dict[str, Any]]:
    """By the name of each piece that is written."""
    return {
        unit.settings["name"]: {"precision": result["precision"]}
        for unit in pieces
        if (result := read(unit)) is not None
    }


def agree(found: Mapping[str, Mapping[str, Any]]) -> None:
    """By the name of a unit what it was made with, such as its versions, which has to be the same in all.

    Raises:
        SystemExit: if it is not, with the first that differs.
    """
    [first, *others] = found or [TO_DO]
    for name in others:
        for field in sorted({*found[first], *found[name]}):
            values = [found[each].get(field) for each in (first, name)]
            if values[0] != values[1]:
                raise SystemExit(
                    f"{field} is {values[0]!r} in {first} and {values[1]!r} in {name}, and a study is of one "
                    "kind. What is done is kept: go on with what it was made with, or choose another --out."
                )


def _students(teacher: Unit, units: Sequence[Unit]) -> list[Unit]:
    name = teacher.settings["name"]
    return [unit for unit in units if unit.settings["kind"] == "student" and unit.settings["teacher"] == name]


def _is_missing(unit: Unit) -> bool:
    return read(unit) is None or not unit.path.with_suffix(".jsonl").exists()
