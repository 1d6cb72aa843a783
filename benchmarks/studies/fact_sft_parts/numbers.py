"""Everything that the page says about the runs, from their files of results and their histories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.fact_sft_parts.comparisons import choices_compared, objectives_compared
from benchmarks.studies.fact_sft_parts.passing import objectives_passed, passed_at_picks
from benchmarks.studies.fact_sft_parts.training import PASS_AT, STATISTICS
from benchmarks.studies.picks import Floats, picks_of
from examples.resumable import Unit, read
from lightning_pce.digest import quantile
from lightning_pce.intervals import differences
from lightning_pce.runs import History
from lightning_pce.runs.capability import capability

SCORINGS = {"all": "", "completion": "completion"}  # which tokens are scored, as a group of a history
MOVED = ("mean", "p50", "p75", "p95", "p99")
TAIL = ("p95", "p99")
SETTINGS = ("seed", "trained_on", "objective", "wrong", "rate")
PER_EPOCH = ("recall", *(f"pass_at_{n}" for n in PASS_AT), "right")


def numbers(units: Sequence[Unit], measured: Sequence[Unit] = ()) -> dict[str, Any]:
    """What JSON holds of the units that are done.

    Args:
        units: the runs.
        measured: what their starts know of the training set of part c.

    Raises:
        SystemExit: if runs of several versions, models or sizes are mixed.
    """
    done = [(unit, result) for unit in units if (result := read(unit)) is not None]
    on_wrong = [result for unit in measured if (result := read(unit)) is not None]
    common = [_common(result) for result in (*(result for _, result in done), *on_wrong)]
    if any(each != common[0] for each in common):
        raise SystemExit("The runs are of several versions or settings: choose another --out.")
    starts = {unit.path.with_suffix(".pt").name: result["strong_start"] for unit, result in done}
    runs = [_run(unit.path.with_suffix(".jsonl"), result, starts) for unit, result in done]
    return {
        **common[0],
        "cost": {part: _cost(runs, part) for part in sorted({run["part"] for run in runs})},
        "choices compared": choices_compared(runs),
        "objectives compared": objectives_compared(runs),
        "objectives passed": objectives_passed(runs, [result for _, result in done]),
        "starts on wrong objects": {
            str(result["settings"]["seed"]): result["training_set"] for result in on_wrong
        },
        "runs": runs,
    }


def after_epochs(path: Path, scoring: str, *, start: bool = False) -> History:
    """The candidates of a run: its records after each epoch, which are counted from 1 here.

    Args:
        path: of a unit's history.
        scoring: ``"all"`` tokens or those of the ``"completion"``.
        start: whether to have the model before training too, as epoch 0: one may keep a checkpoint that
            training has made worse.
    """
    history = History.load(path)
    before = [replace(history.select(function="validate")[0], function="fit", epoch=0)] if start else []
    fits = [replace(each, epoch=(each.epoch or 0) + 1) for each in history.select(function="fit")]
    return History([*before, *fits], group=SCORINGS[scoring])


def right_facts(right: Sequence[str]) -> dict[str, Floats]:
    """By label ``[facts]``, 1 where a fact is recalled, of strings from epoch 0 on."""
    return {f"epoch {epoch}": np.array([float(fact) for fact in facts]) for epoch, facts in enumerate(right)}


def _common(result: dict[str, Any]) -> dict[str, Any]:
    settings = result["settings"]
    return {
        **{name: settings[name] for name in ("model", "facts", "recipe")},
        "precision": result["precision"],
        "versions": result["versions"],
    }


def _cost(runs: Sequence[dict[str, Any]], part: str) -> dict[str, float]:
    """What the runs of a part took one after the other."""
    own = [run for run in runs if run["part"] == part]
    total = {name: round(sum(run[name] for run in own)) for name in ("seconds", "cpu_seconds")}
    return {"runs": len(own), **total}


def _run(path: Path, result: dict[str, Any], starts: dict[str, Any]) -> dict[str, Any]:
    settings, rows = result["settings"], result["epochs"]
    right, strong = [row["right"] for row in rows], settings["start"] is not None
    choices = {
        scoring: picks_of(
            after_epochs(path, scoring, start=strong), right_facts(right), seed=settings["seed"]
        )
        for scoring in SCORINGS
    }
    return {
        "name": settings["name"],
        "part": settings["name"][0],
        "end": "strong" if strong else "weak",
        **{name: settings[name] for name in SETTINGS},
        "seconds": result["seconds"],
        "cpu_seconds": result["cpu_seconds"],
        "start": starts.get(settings["start"]),
        "mean_p_before": _mean_p_before(path),
        "training_set": result["training_set"],
        **{name: [row[name] for row in rows] for name in PER_EPOCH},
        "mean_p_in_training": [row.get("mean_p_in_training") for row in rows],
        **{
            scoring: {name: [round(row[scoring][name], 4) for row in rows] for name in STATISTICS}
            for scoring in SCORINGS
        },
        "moved": {scoring: _moved(path, scoring) for scoring in SCORINGS},
        "choices": choices,
        "passed": passed_at_picks([row["log_prob"] for row in rows], choices[settings["trained_on"]]),
    }


def _moved(path: Path, scoring: str) -> dict[str, dict[str, list[float | None]]]:
    """By how much a statistic is higher after the last epoch, with 95 % ends by fact.

    ``since_start``: than before training; ``since_lowest``: than where it was lowest, from the start on.
    """
    group = SCORINGS[scoring]
    validations = [History.load(path).select(function="validate")[0], *after_epochs(path, scoring)]
    records = [(each.digest("ce", group), each.documents("ce", group)) for each in validations]
    since_start = differences(records[0], records[-1], MOVED)
    since_lowest = {
        name: differences(records[_lowest(records, name)], records[-1], [name])[name] for name in TAIL
    }
    return {
        "since_start": {name: list(map(_known, each[:3])) for name, each in since_start.items()},
        "since_lowest": {name: list(map(_known, each[:3])) for name, each in since_lowest.items()},
    }


def _mean_p_before(path: Path) -> list[float | None]:
    """Of the tokens of completions in validation, before training, with its 95 % ends by fact."""
    before = History.load(path).select(function="validate")[0]
    found = capability(before.digest("ce", "completion"), before.documents("ce", "completion")).mean
    return list(map(_known, found[:3]))


def _lowest(records: Sequence[tuple[Any, Any]], percentile: str) -> int:
    q = float(percentile.removeprefix("p")) / 100
    values = [float(quantile(state, q)) for state, _ in records]
    return values.index(min(values))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
