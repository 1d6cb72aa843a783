"""The study in one picture: text CE and expert CE beside accuracy, and two forecasts of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lightning_pce.reports import plot
from lightning_pce.runs.ranking import ProxyTable, best_style
from proxy_study_parts.forecasts import RunSeries, known_at
from proxy_study_parts.tasks import FAMILIES

ALL_TASKS = "mean of six tasks"
TIMES = 4  # the forecasts are made from the first quarter


def picture(path: Path, table: ProxyTable, series: list[RunSeries]) -> None:
    """Four panels; the models and their truth are the same in the upper two."""
    figure = Figure(figsize=(15, 9.5), layout="constrained")
    (text, expert), below = figure.subplots(2, 2)
    means = _means(table)
    plot.proxy_scatter(means, "text_ce", ALL_TASKS, ax=text)
    plot.proxy_scatter(means, "expert_ce_best_style", ALL_TASKS, ax=expert)
    for ax in (text, expert):
        ax.set_ylabel("accuracy")
        ax.set_xlabel(f"{ax.get_xlabel()} (nats)")
    last = series[-1].run
    for ax, kind in zip(below, ("text CE", "mean accuracy"), strict=True):
        [each] = [one for one in series if one.kind == kind and one.run == last]
        number = known_at(each, TIMES)
        forecast = each.forecast(number)
        name = f"{kind}, {each.run}"
        plot.forecast_band(forecast, each.steps[number:], each.values[number:], name=name, ax=ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def _means(table: ProxyTable) -> ProxyTable:
    """A row for each model: means over the tasks."""
    likeliest = best_style(table)
    models = list(dict.fromkeys(likeliest.models))
    rows = [likeliest.select(models=model) for model in models]
    assert all(len(row) == len(FAMILIES) for row in rows)
    values = [[row.baselines["text_ce"][0], row.column("ce_uniform").mean()] for row in rows]
    return ProxyTable(
        [_short(model, number) for number, model in enumerate(models, start=1)],
        [ALL_TASKS] * len(models),
        ["text_ce", "expert_ce_best_style"],
        values,
        truth=np.array([row.truth.mean() for row in rows]),
    )


def _short(model: str, number: int) -> str:
    """Targets differ in their mix alone, whose name is long."""
    return f"target {number}" if model.startswith("target") else model
