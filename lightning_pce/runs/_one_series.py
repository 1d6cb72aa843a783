"""A series of what records have measured: of one training, function and dataloader, by its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce.runs._known_statistics import Bounds, Known
from lightning_pce.runs._records import SCORED, Record
from lightning_pce.runs._trainings import trainings_of
from lightning_pce.runs._words import listed, number
from lightning_pce.runs.comparable import relation_of_all

# A 95 % interval is so many standard errors wide.
WIDTH = 2 * 1.959964
# Of one step two checkpoints (last.ckpt and step=500.ckpt) have the same weights, and on a GPU almost the
# same values.
_SAME = 1e-4
_MOST_NAMED = 6


class Series(NamedTuple):
    """One number over the steps of a training."""

    name: str
    """As it was asked for."""
    steps: NDArray[np.float64]
    """``[N]``, ascending, each once."""
    values: NDArray[np.float64]
    """``[N]``; NaN and infinities are still there."""
    errors: NDArray[np.float64] | None
    """``[N]`` standard errors; None: not every finite value has one."""
    bounds: Bounds | None
    """What holds the limit; None: nothing is known."""
    rising: bool | None
    """Whether it should rise or fall; None: either."""
    notes: tuple[str, ...]
    """What was left out and assumed, in sentences."""


class Point(NamedTuple):
    """What a record has measured."""

    record: Record
    value: float
    error: float


def series_of(
    points: Sequence[Point], name: str, known: Known, *, run: str | None = None, notes: Iterable[str] = ()
) -> Series:
    """The series of numbers of records.

    Raises:
        UserError: as :func:`series`.
    """
    stepped = [point for point in points if _step_of(point.record) is not None]
    if not stepped:
        raise UserError(
            f"None of {len(points)} records with {name} knows the step of its training (models that are no "
            "checkpoints do not): there is no series."
        )
    said = [*notes, left_out(len(points) - len(stepped), "the step is not known")]
    stepped = _of_one_training(stepped, run)
    stepped = _of_one_function(stepped, said)
    stepped = _of_one_loader(stepped)
    if relation_of_all([point.record for point in stepped]).kind == "bytes" and "bits_per_byte" not in name:
        raise UserError("The records are of other tokenizers, whose tokens are no series: use bits_per_byte.")
    last = _last_of_each_step(stepped)
    said.append(left_out(len(stepped) - len(last), "a later one is of the same step"))
    values, errors = (np.array([getattr(point, what) for point in last]) for what in ("value", "error"))
    finite = np.isfinite(values)
    lacking = int((finite & ~np.isfinite(errors)).sum())
    if 0 < lacking < finite.sum():
        said.append(f"{lacking} of {finite.sum()} values have no error bar, so that none is used.")
    said.append(known.note or "")
    return Series(
        name,
        np.array([_step_of(point.record) for point in last], dtype=np.float64),
        values,
        None if lacking else np.where(finite, errors, np.nan),
        known.bounds,
        known.rising,
        tuple(filter(None, said)),
    )


def _of_one_training(points: Sequence[Point], run: str | None) -> list[Point]:
    of = trainings_of([point.record for point in points])
    if run is not None:
        kept = [point for point, each in zip(points, of, strict=True) if run in (each, point.record.run)]
        if not kept:
            raise UserError(f"No record of the run {run!r}: there is {_some(of)}.")
        return kept
    if len(set(of)) > 1:
        raise UserError(f"A series is of one training, but these are of {_some(of)}: choose one by its run.")
    return list(points)


def _of_one_function(points: Sequence[Point], notes: list[str]) -> list[Point]:
    """Of a fit and validations by themselves, which repeat it, the fit."""
    functions = {point.record.function for point in points}
    if functions == {"fit", "validate"}:
        kept = [point for point in points if point.record.function == "fit"]
        notes.append(left_out(len(points) - len(kept), "they are of validate and not of fit"))
        return kept
    if len(functions) > 1:
        raise UserError(
            f"The records were made by {listed(sorted(functions))}: take those of one, by their files or by "
            f"history.select(function={min(functions)!r})."
        )
    return list(points)


def _of_one_loader(points: Sequence[Point]) -> list[Point]:
    """The points of one dataloader; a metric of the module stands in the records of all."""
    by_name: dict[str, list[Point]] = {}
    for point in points:
        by_name.setdefault(point.record.name, []).append(point)
    first, *others = by_name.values()
    same = [(each.record.step, each.record.batch, repr(each.value)) for each in first]
    if all([(e.record.step, e.record.batch, repr(e.value)) for e in other] == same for other in others):
        return first
    raise UserError(
        f"There is this of several data, {_some(list(by_name))}: choose one by name, or by "
        f"{min(by_name)}_ in front of what is asked for."
    )


def _last_of_each_step(points: Sequence[Point]) -> list[Point]:
    by_step: dict[float, Point] = {}
    for point in points:
        step = _step_of(point.record)
        assert step is not None
        before = by_step.get(step)
        if before is not None and point.record.function in SCORED and not _same(before.value, point.value):
            names = listed([repr(each.record.label or each.record.run) for each in (before, point)])
            raise UserError(
                f"{names} are both of step {step:g} but measure {number(before.value)} and "
                f"{number(point.value)}: leave out one."
            )
        by_step[step] = point
    return [by_step[step] for step in sorted(by_step)]


def _step_of(record: Record) -> float | None:
    """None also where a file has a number that is no step."""
    try:
        step = math.nan if record.step is None else float(record.step)
    except OverflowError:  # a whole number of 400 digits
        return None
    return step if math.isfinite(step) else None


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_SAME) or (math.isnan(a) and math.isnan(b))


def left_out(count: int, why: str) -> str:
    """A sentence on records that are not in the series, empty if there are none."""
    return f"{count} record{'s' * (count != 1)} left out: {why}." if count else ""


def _some(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = [f"{len(distinct) - _MOST_NAMED} more"] if len(distinct) > _MOST_NAMED else []
    return listed([*map(repr, distinct[:_MOST_NAMED]), *more])
