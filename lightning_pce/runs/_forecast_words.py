"""What a forecast says of some steps, as text and as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_pce.runs._one_series import Series
from lightning_pce.runs._words import columns, number, percent
from lightning_pce.runs.forecasting import Estimate, Forecast, Prediction

TIMES = (2, 4)  # the last step: where it looks unless it is told


class Ahead(NamedTuple):
    """What a forecast says of a step."""

    step: float
    prediction: Prediction
    gain: float | None = None
    chance: float | None = None
    """That what is gained until then is below ``gain``, if one was asked for."""


def ahead_of(
    forecast: Forecast, steps: Sequence[float] = (), gain: float | None = None, *, force: bool = False
) -> list[Ahead]:
    """What it says of steps; by default of 2 and 4 times the last.

    Raises:
        UserError: if it is refused and ``force`` is False, or nothing could be fitted.
    """
    last = float(forecast.steps[-1]) if len(forecast.steps) else math.nan
    found = []
    for step in steps or [times * last for times in TIMES]:
        chance = None if gain is None else forecast.chance_below(gain, step, force=force)
        found.append(Ahead(step, forecast.predict(step, force=force), gain, chance))
    return found


def plain_of(series: Series, forecast: Forecast, ahead: Sequence[Ahead]) -> dict[str, Any]:
    """All of it as JSON holds it, NaN and infinities as null; docs/forecasting.md has the keys in words.

    Limit and exponent are null where nothing is said of any step, as of a refused forecast.
    """
    return {
        "name": series.name,
        "steps": forecast.steps.tolist(),
        "values": [_number(value) for value in forecast.values],
        "errors": None if forecast.errors is None else [_number(error) for error in forecast.errors],
        "dropped": forecast.dropped,
        "bounds": list(forecast.bounds),
        "rising": forecast.rising,
        "level": forecast.level,
        "refused": forecast.refused,
        "limit": _estimate(forecast.asymptote) if ahead else None,
        "exponent": _estimate(forecast.exponent) if ahead else None,
        "predictions": [
            {
                "step": each.step,
                **{name: _number(getattr(each.prediction, name)) for name in ("median", "low", "high")},
                "gain": each.gain,
                "chance_below": each.chance,
                "warning": each.prediction.warning,
            }
            for each in ahead
        ],
        "notes": [*forecast.warnings, *series.notes],
    }


def text_of(series: Series, forecast: Forecast, ahead: Sequence[Ahead]) -> str:
    """The same for a terminal."""
    parts = [_head(series, forecast)]
    if forecast.refused is not None:
        forced = "Shown by --force, though it is refused" if ahead else "No forecast"
        parts.append(f"{forced}: {forecast.refused}")
    if ahead:
        share = f"{100 * forecast.level:g} % of what will be measured"
        rows = [["step", "median", share]]
        rows += [[step_of(each.step), number(each.prediction.median), _span(each)] for each in ahead]
        parts.append(columns(rows))
        said = [
            *estimates_of(forecast),
            *(_chance(forecast, each) for each in ahead if each.gain is not None),
        ]
        said += dict.fromkeys(each.prediction.warning for each in ahead if each.prediction.warning)
        parts.append("\n".join(said))
    notes = [*forecast.warnings, *series.notes]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def estimates_of(forecast: Forecast) -> list[str]:
    """The limit and the exponent in words; a limit may be infinite, where growth without end is as likely."""
    limit, exponent = forecast.asymptote, forecast.exponent
    said = []
    if not math.isnan(limit.median):
        said.append(f"Limit {end_of(limit.median)} ({end_of(limit.low)} to {end_of(limit.high)}).")
    if not math.isnan(exponent.median):
        said.append(
            f"Exponent {number(exponent.median)} ({number(exponent.low)} to {number(exponent.high)})."
        )
    return said


def end_of(limit: float) -> str:
    """A limit in words, which may be infinite."""
    return "none" if math.isinf(limit) else number(limit)


def step_of(step: float) -> str:
    """``"20,000"``."""
    return f"{step:,.10g}"


def _head(series: Series, forecast: Forecast) -> str:
    steps, values = forecast.steps, forecast.values
    if not len(steps):
        return f"{series.name}: no finite value at a step above 0"
    way = {True: "rising", False: "falling", None: ""}[forecast.rising]
    count = f"{len(steps)} values from step {step_of(steps[0])} to {step_of(steps[-1])}"
    said = [
        count if len(steps) > 1 else f"1 value at step {step_of(steps[0])}",
        *([way] if way and forecast.refused is None else []),
        f"the last {number(values[-1])}",
    ]
    return f"{series.name}: {', '.join(said)}"


def _span(each: Ahead) -> str:
    return f"{number(each.prediction.low)} to {number(each.prediction.high)}"


def _chance(forecast: Forecast, each: Ahead) -> str:
    assert each.gain is not None
    assert each.chance is not None
    way = "rises" if forecast.rising else "falls"
    return (
        f"With a chance of {percent(each.chance)} it {way} by less than {each.gain:g} from step "
        f"{step_of(forecast.steps[-1])} to {step_of(each.step)}."
    )


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {name: _number(value) for name, value in estimate._asdict().items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
