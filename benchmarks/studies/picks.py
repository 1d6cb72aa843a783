"""What each statistic of a loss picks of the candidates of a run, and what that costs in the task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightning_pce import digest
from lightning_pce.runs import History, table, verdict

PERCENTILES = ("p5", "p25", "p50", "p75", "p90", "p95", "p99")
TRIMMED = "trimmed_mean"
STATISTICS = ("mean", TRIMMED, *PERCENTILES)
RESAMPLES = 2000
CHANCE = 0.05  # what a test of 5 % calls more than chance

Floats = NDArray[np.float64]


def picks_of(history: History, task: Mapping[str, Floats], *, seed: int = 0) -> dict[str, Any]:
    """What JSON holds of a choice: picks, their task and how far that is behind the best candidate's.

    The best candidate is the one with the best task here. Of many it is best by chance too: ``behind`` is
    rather too large than too small, and as each is compared with it without regard to how many there are, one
    is rather called worse than not.

    ``not_worse`` are the candidates that are not worse than the best by more than chance: if the task is 0 or
    1 by the exact McNemar test (two-sided, 5 %) of the units at which only one of the two has 1, else if the
    95 % interval of the paired difference begins at 0 or below. ``missed`` says that a pick is none of them,
    ``shortlist_holds_best`` that the shortlist has one. ``behind_low`` and ``behind_high`` are ends of the
    interval in both cases.

    Args:
        history: the candidates, of one run, function and group.
        task: by the label of a record ``[n]``, the task's value of each independent unit; higher is better,
            and the units are the same in all of them.
        seed: of the resamples of units.
    """
    labels = [record.label for record in history]
    values = {label: np.asarray(task[label], dtype=np.float64) for label in labels}
    means = {label: float(values[label].mean()) for label in labels}
    best = max(labels, key=means.__getitem__)  # the earliest of equal ones
    said = verdict(history)
    found = {row.statistic: row for row in table(history, means, statistics=("mean", *PERCENTILES)).rows}
    losses = {name: (row.pick, row.value.value) for name, row in found.items()}
    correlation = {name: _correlation(row.pearson, row.spearman) for name, row in found.items()}
    trimmed = {record.label: _trimmed_mean(history, record.label) for record in history}
    lowest = min(labels, key=trimmed.__getitem__)
    losses[TRIMMED] = (lowest, trimmed[lowest])
    correlation[TRIMMED] = _correlated([trimmed[label] for label in labels], list(means.values()))
    behind = {label: resampled_mean(values[best] - values[label], seed) for label in labels}
    not_worse = _not_worse(values, best, behind)
    return {
        "candidates": labels,
        "task": {label: _rounded(mean) for label, mean in means.items()},
        "best": best,
        "picks": {
            name: {
                "label": losses[name][0],
                "value": _rounded(losses[name][1]),
                **_task_at(values[losses[name][0]], behind[losses[name][0]], seed),
                "missed": losses[name][0] not in not_worse,
            }
            for name in STATISTICS
        },
        "correlation": {name: correlation[name] for name in STATISTICS},
        "not_worse": not_worse,
        "agree": said.agree,
        "bulk": said.bulk,
        "saturated": list(said.saturated),
        "alarm": said.alarm,
        "groups_part": said.groups_part,
        "shortlist": list(said.shortlist),
        "shortlist_task": {label: _rounded(means[label]) for label in said.shortlist},
        "shortlist_holds_best": any(label in not_worse for label in said.shortlist),
        "shortlist_size": len(said.shortlist),
        "ties": {name: list(row.ties) for name, row in found.items()},
    }


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def share(values: Floats) -> Estimate:
    """How many of ``[n]`` values, each 0 or 1, are 1, with Wilson's interval.

    Example:
        >>> [round(each, 3) for each in share(np.array([1.0] * 9 + [0.0]))]
        [0.9, 0.596, 0.982]
    """
    ends = stats.binomtest(round(float(values.sum())), len(values)).proportion_ci(method="wilson")
    return Estimate(float(values.mean()), float(ends.low), float(ends.high))


def resampled_mean(values: Floats, seed: int = 0) -> Estimate:
    """The mean of ``[n]`` values, or of paired differences, by resamples of the units."""
    count = len(values)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # [R, n]
    low, high = np.quantile(times @ values / count, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def worse(best: Floats, other: Floats) -> bool:
    """Whether ``[n]`` values, each 0 or 1, are worse than those of the best, by the exact McNemar test.

    Example:
        >>> [worse(np.ones(120), np.repeat([0.0, 1.0], [wrong, 120 - wrong])) for wrong in (5, 6)]
        [False, True]
    """
    gained, lost = int((best > other).sum()), int((other > best).sum())
    return gained > lost and bool(stats.binomtest(lost, gained + lost).pvalue < CHANCE)


def _not_worse(values: Mapping[str, Floats], best: str, behind: Mapping[str, Estimate]) -> list[str]:
    if all(map(_zero_or_one, values.values())):
        return [label for label, each in values.items() if not worse(values[best], each)]
    return [label for label, each in behind.items() if each.low <= 0]


def _task_at(values: Floats, behind: Estimate, seed: int) -> dict[str, Any]:
    found = share(values) if _zero_or_one(values) else resampled_mean(values, seed)
    ends = zip(("task", "low", "high", "behind", "behind_low", "behind_high"), (*found, *behind), strict=True)
    return {name: _rounded(value) for name, value in ends}


def _zero_or_one(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _trimmed_mean(history: History, label: str) -> float:
    """Of what lies between p5 and p95, as the metric's key of this name."""
    record = next(each for each in history if each.label == label)
    return float(digest.trimmed_mean(record.digest(history.statistic, history.group), 0.05, 0.95))


def _correlated(x: list[float], y: list[float]) -> dict[str, float | None]:
    if min(len(set(x)), len(set(y))) < 2 or len(x) < 3:
        return _correlation(math.nan, math.nan)
    return _correlation(float(stats.pearsonr(x, y).statistic), float(stats.spearmanr(x, y).statistic))


def _correlation(pearson: float, spearman: float) -> dict[str, float | None]:
    each = {"pearson": pearson, "spearman": spearman}
    return {name: None if math.isnan(value) else _rounded(value) for name, value in each.items()}


def _rounded(value: float) -> float:
    return round(value, 6)
