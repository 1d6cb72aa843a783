"""The third use: where will a run end, seen from its first 1/18, quarter and half? And when may it stop?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lightning_pce.runs.forecasting import Forecast, fit_power_law
from proxy_study_parts.ranking import EXPERT, spearman
from proxy_study_parts.tasks import FAMILIES, ITEMS, STYLES

FRACTIONS = (18, 4, 2)  # the run is so many times as long as what is known of it
# The stop rule, which was written down before any run was looked at: stop if the gain by the end of the run
# is below GAIN (of an accuracy, or in nats) with a probability above SURE.
GAIN, SURE = 0.05, 0.9
FEWEST = 6


class RunSeries(NamedTuple):
    """One number of a run at its checkpoints."""

    run: str
    kind: str
    task: str | None
    steps: np.ndarray
    values: np.ndarray
    errors: np.ndarray | None
    bounds: tuple[float | None, float | None]
    rising: bool

    def forecast(self, number: int) -> Forecast:
        """From the first ``number`` checkpoints; the direction is known, the end is not."""
        errors = None if self.errors is None else self.errors[:number]
        steps, values = self.steps[:number], self.values[:number]
        return fit_power_law(steps, values, errors, self.bounds, self.rising)


def all_series(found: dict[str, Any], proxy: str, rising: bool) -> list[RunSeries]:
    """Of each run text CE and mean accuracy, and of each task accuracy, expert CE and the chosen proxy."""
    return [
        series
        for name, result in found.items()
        for task in (None, *FAMILIES)
        for series in _series_of(name, task, result["checkpoints"], proxy, rising)
    ]


def _series_of(
    run: str, task: str | None, points: list[dict[str, Any]], proxy: str, rising: bool
) -> Iterator[RunSeries]:
    steps = np.array([point["step"] for point in points], dtype=np.float64)

    def of(kind: str, rows: list[tuple[float, float]], bounds: Any, up: bool) -> RunSeries:
        values, errors = np.array(rows, dtype=np.float64).T
        return RunSeries(
            run, kind, task, steps, values, None if np.isnan(errors).all() else errors, bounds, up
        )

    if task is None:
        yield of("text CE", [(point["text_ce"], math.nan) for point in points], (0, None), False)
        yield of("mean accuracy", [_mean_accuracy(point) for point in points], (0, 1), True)
        return
    yield of("accuracy", [_accuracy(point["truth"][task]) for point in points], (0, 1), True)
    solved = [point["proxies"][task] for point in points]
    likeliest = [min((each[style] for style in STYLES), key=lambda r: r["ce_uniform"]) for each in solved]
    yield of("expert CE, best style", [_proxy(each, "ce_uniform") for each in likeliest], (0, None), False)
    yield of("chosen proxy", [_proxy(each[EXPERT], proxy) for each in solved], _bounds(proxy), rising)


def forecasting(series: list[RunSeries]) -> dict[str, Any]:
    """Errors, coverage and refusals of each kind of series at each horizon."""
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(each.kind for each in series):
        for times in FRACTIONS:
            rows = [_forecast_of(each, times) for each in series if each.kind == kind]
            kept = [row for row in rows if row["refused"] is None]
            refused = [row for row in rows if row["refused"] is not None]
            found.setdefault(kind, {})[str(times)] = {
                "series": len(rows),
                "refused": len(refused),
                "kept": _errors(kept),
                "refused, but forced": _errors([row for row in refused if row["median"] is not None]),
            }
    return found


def stopping(series: list[RunSeries]) -> dict[str, Any]:
    """How often the stop rule is wrong, over the checkpoints of each kind of series before the last."""
    found = {}
    for kind in dict.fromkeys(each.kind for each in series):
        decisions = [row for each in series if each.kind == kind for row in _decisions(each)]
        first = [rows[0] for each in series if each.kind == kind if (rows := _stops(each))]
        stopped = [row for row in decisions if row["stop"]]
        over = [row for row in decisions if not row["gains"]]
        found[kind] = {
            "decisions": len(decisions),
            "refused": sum(row["refused"] for row in decisions),
            "stops": len(stopped),
            "wrong stops": sum(row["gains"] for row in stopped),
            "should stop": len(over),
            "too late": sum(not row["stop"] for row in over),
            "series stopped": len(first),
            "series stopped wrongly": sum(row["gains"] for row in first),
        }
    return found


def within_runs(series: list[RunSeries]) -> dict[str, float]:
    """How text and expert CE order the checkpoints of a run by a task's accuracy: mean rho."""
    text = {each.run: each for each in series if each.kind == "text CE"}
    expert = {(each.run, each.task): each for each in series if each.kind == "expert CE, best style"}
    tasks = [each for each in series if each.kind == "accuracy" and np.ptp(each.values) > 0]
    return {
        "text CE": float(np.mean([spearman(-text[each.run].values, each.values) for each in tasks])),
        "expert CE, best style": float(
            np.mean([spearman(-expert[each.run, each.task].values, each.values) for each in tasks])
        ),
    }


def known_at(series: RunSeries, times: int) -> int:
    """How many checkpoints lie in the first ``1 / times`` of a run."""
    # They are whole steps: the last of the first 1/18 may lie half a step beyond.
    return int((series.steps <= series.steps[-1] / times + 0.5).sum())


def _forecast_of(series: RunSeries, times: int) -> dict[str, Any]:
    end = series.steps[-1]
    number = known_at(series, times)
    forecast = series.forecast(number)
    row: dict[str, Any] = {"refused": forecast.refused, "median": None, "true": float(series.values[-1])}
    row["last"] = float(series.values[number - 1])
    if forecast.refused is None or forecast.rising is not None:
        predicted = forecast.predict(float(end), force=True)
        row |= {"median": predicted.median, "low": predicted.low, "high": predicted.high}
    return row


def _errors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if not rows:
        return {"series": 0}
    return {
        "series": len(rows),
        "rmse": float(np.sqrt(np.mean([(row["median"] - row["true"]) ** 2 for row in rows]))),
        "rmse of last value": float(np.sqrt(np.mean([(row["last"] - row["true"]) ** 2 for row in rows]))),
        "covered": float(np.mean([row["low"] <= row["true"] <= row["high"] for row in rows])),
    }


def _decisions(series: RunSeries) -> Iterator[dict[str, bool]]:
    sign = 1.0 if series.rising else -1.0
    for number in range(FEWEST, len(series.steps)):
        forecast = series.forecast(number)
        refused = forecast.refused is not None
        stop = not refused and forecast.chance_below(GAIN, float(series.steps[-1])) > SURE
        gained = sign * (series.values[-1] - series.values[number - 1])
        yield {"refused": refused, "stop": stop, "gains": bool(gained >= GAIN)}


def _stops(series: RunSeries) -> list[dict[str, bool]]:
    return [row for row in _decisions(series) if row["stop"]]


def _accuracy(share: float) -> tuple[float, float]:
    """With its error: of one more right and one more wrong answer, so that 0 of 150 is not without one."""
    likely = (share * ITEMS + 1) / (ITEMS + 2)
    return share, math.sqrt(likely * (1 - likely) / ITEMS)


def _mean_accuracy(point: dict[str, Any]) -> tuple[float, float]:
    rows = np.array([_accuracy(share) for share in point["truth"].values()])
    return float(rows[:, 0].mean()), float(np.sqrt((rows[:, 1] ** 2).sum()) / len(rows))


def _proxy(result: dict[str, float], name: str) -> tuple[float, float]:
    return result[name], result[f"{name}_se"]


def _bounds(proxy: str) -> tuple[float | None, float | None]:
    statistic = proxy.split("_")[0]
    return {"ce": (0, None), "rank": (1, None)}.get(statistic, (0, 1))
