"""The forecasts of a page: of one training its mean, median and task metric, each as a band or in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lightning_pce._errors import UserError
from lightning_pce.intervals import Interval
from lightning_pce.reports._drawing import shown
from lightning_pce.reports._pictures import Picture, picture
from lightning_pce.reports._tables import LONGEST_NAME
from lightning_pce.reports.forecast_charts import forecast_band
from lightning_pce.runs._forecast_words import TIMES, Ahead, ahead_of, estimates_of, plain_of, step_of
from lightning_pce.runs._known_statistics import Known, known_by_name, known_of_tokens
from lightning_pce.runs._one_series import WIDTH, Point, Series, series_of
from lightning_pce.runs._words import number
from lightning_pce.runs.forecasting import Forecast, fit_power_law

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_pce.runs.comparison import Comparison

_FEWEST = 2  # steps; of one it is not known whether they are a series


class Forecasted(NamedTuple):
    """A forecast, and what it says of the steps ahead: nothing where it is refused."""

    series: Series
    forecast: Forecast
    ahead: tuple[Ahead, ...]

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it; docs/forecasting.md has the keys in words."""
        return plain_of(self.series, self.forecast, self.ahead)


class Shown(NamedTuple):
    """A forecast in a page."""

    title: str
    says: tuple[str, ...]
    picture: Picture | None


def forecasts_of(comparison: Comparison) -> list[Forecasted]:
    """Of mean, median and task metric; none of records that are not one training over its steps."""
    found = []
    for name, known, points in _measured(comparison):
        try:
            series = series_of(points, name, known)
            forecast = fit_power_law(series.steps, series.values, series.errors, series.bounds, series.rising)
        except UserError:  # other models, several trainings, no steps, numbers that are none: nothing is said
            continue
        if len(series.steps) >= _FEWEST:
            ahead = () if forecast.refused else tuple(ahead_of(forecast))
            found.append(Forecasted(series, forecast, ahead))
    return found


def shown_of(found: Sequence[Forecasted], prefix: str) -> list[Shown]:
    """What the template shows of forecasts; the ids in pictures begin with ``prefix``."""
    return [_shown(each, f"{prefix}forecast{place}") for place, each in enumerate(found)]


def _measured(comparison: Comparison) -> Iterator[tuple[str, Known, list[Point]]]:
    start = f"{comparison.of}_{comparison.group}_" if comparison.group else f"{comparison.of}_"
    for statistic in ("mean", "p50") if comparison.by == "tokens" else ():
        values = {label: found[statistic] for label, found in comparison.values.items() if statistic in found}
        yield f"{start}{statistic}", known_of_tokens(f"{start}{statistic}"), _points(comparison, values)
    if comparison.task is not None:
        name, numbers = comparison.task.name, comparison.task.values.tolist()
        by_label = dict(zip(comparison.values, numbers, strict=True))
        of_tokens = any(name in record.values for record in comparison.records)
        finite = [value for value in numbers if math.isfinite(value)]
        known = known_of_tokens(name) if of_tokens else known_by_name(name, finite)
        points = [
            Point(record, by_label[record.label], math.nan)
            for record in comparison.records
            if record.label in by_label
        ]
        yield name, known, points


def _points(comparison: Comparison, values: Mapping[str, Interval]) -> list[Point]:
    return [
        Point(record, (at := values[record.label]).value, (at.high - at.low) / WIDTH)
        for record in comparison.records
        if record.label in values
    ]


def _shown(found: Forecasted, prefix: str) -> Shown:
    series, forecast, ahead = found
    name = shown(series.name, LONGEST_NAME)
    notes = (*forecast.warnings, *series.notes)
    if forecast.refused is not None:
        return Shown(name, (f"No forecast: {forecast.refused}", *notes), None)
    share = f"{100 * forecast.level:g} %"
    said = [
        f"at step {step_of(each.step)}, {times} times the last, {number(each.prediction.median)} "
        f"({share}: {number(each.prediction.low)} to {number(each.prediction.high)})"
        for times, each in zip(TIMES, ahead, strict=True)
    ]
    sentence = f"{name}: {'; '.join(said)}. {' '.join(estimates_of(forecast))}"
    caption = "Only if it goes on as it went: a change of the learning rate or of the data is not foreseen."

    def draw() -> Figure:
        return cast("Figure", forecast_band(forecast, name=series.name).figure)

    drawn = picture(name, prefix, draw, f"Forecast of {sentence}", caption)
    return Shown(name, (sentence, *notes), drawn)
