"""A series out of a history: one number that its validations have measured, over the steps of one training.

Neither this nor the forecast of it needs torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from lightning_pce._errors import UserError
from lightning_pce.runs._known_statistics import Bounds, known_by_name, known_of_tokens
from lightning_pce.runs._one_series import WIDTH, Point, Series, left_out, series_of
from lightning_pce.runs._records import Record
from lightning_pce.runs._words import listed

if TYPE_CHECKING:
    from lightning_pce.runs.forecasting import Forecast

__all__ = ["Series", "forecast", "series"]

BoundsLike: TypeAlias = Bounds | Literal["known"] | None
_PARTNERS = ("_low", "_high", "_se")
_MOST_NAMED, _LONGEST = 24, 60


def series(
    history: Sequence[Record], name: str, *, run: str | None = None, bounds: BoundsLike = "known"
) -> Series:
    """A statistic or a task metric of one training, by the name under which it was logged.

    Records are those of one run and one dataloader, or those that ``lightning-pce evaluate`` has made of the
    checkpoints of one training, by their steps. Of several records at one step the last is taken. What was
    logged earlier and not again in a validation is no new measurement.

    Args:
        history: a ``History``, or records.
        name: ``"val_ce_p50"`` or ``"ce_p50"``, ``"ce_web_p95"``, ``"val_accuracy"``, ``"bits_per_byte"``,
            ``"proxy_top1_uniform"`` ...
        run: which training, of several: the id of a run, or names of checkpoints as the error lists them.
        bounds: of the limit, ``(low, high)``, either may be None; ``None``: it may be anything; ``"known"``:
            what the statistic says, 0 and 1 for accuracies, 0 and no upper bound for losses.

    Returns:
        The series. Its errors are those of the records: a 95 % interval, ``name_low`` to ``name_high``, is
        taken to be 3.92 standard errors wide, and ``name_se`` is one.

    Raises:
        UserError: if no record has it, none that has it knows its step, or they are of several trainings,
            dataloaders, functions or data; it says what there is.

    Example:
        >>> values = {100: 3.0, 200: 2.5, 400: 2.25}
        >>> records = [Record("a", "fit", "val", step, values={"ce_p50": at}) for step, at in values.items()]
        >>> found = series(records, "val_ce_p50")
        >>> found.steps.tolist(), found.values.tolist(), found.bounds, found.rising
        ([100.0, 200.0, 400.0], [3.0, 2.5, 2.25], (0.0, None), False)
    """
    found = [(record, *_place_of(record, name)) for record in history]
    points = [Point(record, at[key], _error_of(at, key)) for record, at, key in found if at is not None]
    if not points:
        raise _unknown(history, name)
    of_tokens = any(at is record.values for record, at, _ in found)
    key = next(key for _, at, key in found if at is not None)
    finite = [point.value for point in points if math.isfinite(point.value)]
    known = known_of_tokens(key) if of_tokens else known_by_name(name, finite)
    if bounds != "known":
        known = known._replace(bounds=bounds, note=None)
    without = [record for record, at, _ in found if at is None]
    stale = sum(name in record.stale for record in without)
    notes = [
        left_out(stale, f"{name} was logged earlier and not again"),
        left_out(_of_these(without, points) - stale, f"there is no {name}"),
    ]
    return series_of(points, name, known, run=run, notes=notes)


def forecast(
    history: Sequence[Record],
    name: str,
    *,
    run: str | None = None,
    bounds: BoundsLike = "known",
    errors: bool = True,
    level: float = 0.9,
    seed: int = 0,
) -> Forecast:
    """Where a statistic or a task metric of a training goes on to: a power law through its :func:`series`.

    Args:
        history: as for :func:`series`.
        name: as for :func:`series`.
        run: as for :func:`series`.
        bounds: as for :func:`series`.
        errors: whether to use the errors of the series. They are those of documents, which all its records
            share: without them intervals are narrower, and less is refused.
        level: the probability that an interval holds what will be measured.
        seed: of the draws; equal arguments give equal forecasts.

    Returns:
        The forecast. Where the series says nothing about its future ``forecast.refused`` is the reason.

    Raises:
        UserError: as :func:`series` and :func:`lightning_pce.runs.forecasting.fit_power_law`.

    Example:
        >>> steps = [100 * 2**k for k in range(10)]
        >>> falling = {step: {"ce_p50": 2 + 30 * step**-0.5} for step in steps}
        >>> records = [Record("a", "fit", "val", step, values=falling[step]) for step in steps]
        >>> found = forecast(records, "ce_p50")
        >>> found.refused, round(found.predict(204_800).median, 2)
        (None, 2.07)
    """
    from lightning_pce.runs.forecasting import fit_power_law

    found = series(history, name, run=run, bounds=bounds)
    used = found.errors if errors else None
    return fit_power_law(found.steps, found.values, used, found.bounds, found.rising, level, seed)


def _place_of(record: Record, name: str) -> tuple[Mapping[str, float] | None, str]:
    """Among what of a record a name is, and as which key; None: not there."""
    short = name.removeprefix(f"{record.name}_")
    for there, key in ((record.scalars, name), (record.values, name), (record.values, short)):
        if key in there:
            return there, key
    return None, name


def _error_of(there: Mapping[str, float], key: str) -> float:
    error = there.get(f"{key}_se", math.nan)
    if math.isnan(error):
        error = (there.get(f"{key}_high", math.nan) - there.get(f"{key}_low", math.nan)) / WIDTH
    return error if error >= 0 else math.nan  # ends in the wrong order are of another program


def _of_these(without: Sequence[Record], points: Sequence[Point]) -> int:
    """How many records without a value are of the runs and dataloaders of those that have one."""
    have = {(point.record.run, point.record.function, point.record.name) for point in points}
    return sum((record.run, record.function, record.name) in have for record in without)


def _unknown(history: Sequence[Record], name: str) -> UserError:
    if not len(history):
        return UserError("Expected records but got none.")
    there = dict.fromkeys(key for record in history for key in (*record.scalars, *record.values))
    names = [f"{key:.{_LONGEST}}" for key in there if not key.endswith(_PARTNERS)]
    stale = sum(name in record.stale for record in history)
    if stale:
        return UserError(
            f"{name!r} was logged before the validations of {stale} records, and in none of them."
        )
    similar = difflib.get_close_matches(name, names, n=3)
    meant = f" Did you mean {listed([repr(each) for each in similar], 'or')}?" if similar else ""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return UserError(
        f"No record has {name!r}.{meant} There is {', '.join(names[:_MOST_NAMED]) or 'nothing'}{more}."
    )
