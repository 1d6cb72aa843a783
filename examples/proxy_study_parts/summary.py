"""All results of the study in one mapping of numbers, which is kept as JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_pce.runs.ranking import ProxyTable, fit_ranker
from proxy_study_parts.choosing import choosing
from proxy_study_parts.forecasts import GAIN, SURE, RunSeries, all_series, forecasting, stopping, within_runs
from proxy_study_parts.population import SCALES, SEED, Unit, fixed_mixes
from proxy_study_parts.ranking import EXPERT, by_task, proxy_table, ranking, style_effect


class Study(NamedTuple):
    """The results, and what pictures are made of."""

    numbers: dict[str, Any]
    table: ProxyTable
    series: list[RunSeries]


def summary(units: Sequence[Unit], found: dict[str, Any], out: Path) -> Study:
    """What the study has found; by their names units are models, runs, or small models of the data choice."""
    runs = {unit.name: found[unit.name] for unit in units if unit.name.startswith("run:")}
    models = [
        unit for unit in units if not unit.name.startswith(("run:", *(f"{scale}:" for scale in SCALES)))
    ]
    mixes = [name for name in fixed_mixes() if f"target: {name}" in found]
    table = proxy_table(models, found, out)
    single = fit_ranker(table.select(styles=EXPERT), "single")
    assert single.weights is not None
    series = all_series(runs, single.names[0], rising=single.weights[0] > 0)
    numbers = plain(
        {
            "seed": SEED,
            "versions": {
                "Python": platform.python_version(),
                "torch": torch.__version__,
                "NumPy": np.__version__,
            },
            "cpu seconds": sum(result["cpu_seconds"] for result in found.values()),
            "models": {unit.name: _model(unit, found[unit.name]) for unit in models},
            "ranking": ranking(table),
            "by task": by_task(table),
            "style": style_effect(table, models),
            "choosing": choosing(found, mixes),
            "runs": len(runs),
            "chosen proxy": single.names[0],
            "forecasting": forecasting(series),
            "stop rule": {"gain": GAIN, "probability": SURE},
            "stopping": stopping(series),
            "within runs": within_runs(series),
        }
    )
    return Study(numbers, table, series)


def plain(value: Any) -> Any:
    """Numbers to four decimals; null where there is none."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def _model(unit: Unit, result: dict[str, Any]) -> dict[str, Any]:
    measured = result["checkpoints"][-1]
    text = unit.mix.sources["plays"] + unit.mix.sources["bible"]
    return {
        "kind": unit.kind,
        "parameters": result["parameters"],
        "share of text": text,
        "wrong solutions": unit.mix.noise,
        "styles": unit.mix.styles,
        "text CE": measured["text_ce"],
        "mean accuracy": float(np.mean(list(measured["truth"].values()))),
        "accuracy": measured["truth"],
        "expert CE": {
            task: {style: values["ce_uniform"] for style, values in styles.items()}
            for task, styles in measured["proxies"].items()
        },
    }
