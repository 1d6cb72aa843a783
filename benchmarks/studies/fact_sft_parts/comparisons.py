"""Differences in recall, paired by fact: between what two statistics pick, and between two objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.studies.fact_sft_parts.units import RATE
from benchmarks.studies.picks import Floats, resampled_mean

BASE = "NLL"
# The first's pick less the second's.
PICKS = (
    ("p50", "mean"),
    ("trimmed_mean", "mean"),
    ("p75", "mean"),
    ("p95", "mean"),
    ("p75", "p50"),
    ("p95", "p50"),
)
Run = dict[str, Any]


def paired(differences: Sequence[Floats]) -> dict[str, Any]:
    """Of the differences ``[facts]`` of each seed: their means, and the mean of these with 95 % intervals.

    ``low`` and ``high`` are of resamples of the facts of all seeds: what other facts would do to these runs.
    ``t_low`` and ``t_high`` are Student's, of the means of the seeds: what other runs would give.
    """
    means = [float(each.mean()) for each in differences]
    by_fact = resampled_mean(np.concatenate(differences))
    reach = math.nan
    if len(means) > 1:
        error = float(np.std(means, ddof=1)) / math.sqrt(len(means))
        reach = float(stats.t.ppf(0.975, len(means) - 1)) * error
    middle = float(np.mean(means))
    ends = {"low": by_fact.low, "high": by_fact.high, "t_low": middle - reach, "t_high": middle + reach}
    known = {name: None if math.isnan(value) else round(value, 5) for name, value in ends.items()}
    return {"by_seed": [round(mean, 5) for mean in means], "mean": round(middle, 5), **known}


def choices_compared(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Recall at what one statistic picks less that at what another picks, in part a."""
    found = []
    for trained_on in ("all", "completion"):
        own = [run for run in runs if run["part"] == "a" and run["trained_on"] == trained_on]
        for scored_on in ("all", "completion") if own else ():
            for first, second in PICKS:
                each = [
                    picked(run, scored_on, first) - picked(run, scored_on, second)  # [facts]
                    for run in own
                ]
                names = {"trained_on": trained_on, "scored_on": scored_on, "pick": first, "less": second}
                found.append({**names, **paired(each)})
    return found


def objectives_compared(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Recall of each objective less that of NLL with the same facts, start and order of the data.

    After the first epoch and the last, and at the best epoch of each, which nobody knows beforehand.
    """
    found = []
    for part, end in (("b", "weak"), ("b", "strong"), ("c", "weak"), ("c", "strong")):
        by_seed = {(run["objective"], run["seed"]): run for run in of_objectives(runs, part, end)}
        objectives = dict.fromkeys(name for name, _ in by_seed if name != BASE)
        for objective in objectives:
            seeds = [seed for name, seed in by_seed if name == objective and (BASE, seed) in by_seed]
            pairs = [(by_seed[objective, seed], by_seed[BASE, seed]) for seed in seeds]
            if pairs:
                names = {"part": part, "end": end, "objective": objective, "seeds": seeds}
                epochs = {"first": lambda run: 1, "last": lambda run: -1, "best": best_of}
                differ = {
                    name: paired([_facts(run, at(run)) - _facts(base, at(base)) for run, base in pairs])
                    for name, at in epochs.items()
                }
                found.append(names | differ)
    return found


def of_objectives(runs: Sequence[Run], part: str, end: str) -> list[Run]:
    """The runs of a part and an end, without those of other learning rates."""
    return [run for run in runs if (run["part"], run["end"], run["rate"]) == (part, end, RATE)]


def best_of(run: Run) -> int:
    """The earliest epoch of the highest recall; a checkpoint that is trained on may be best untouched."""
    recall = run["recall"]
    return max(range(0 if run["end"] == "strong" else 1, len(recall)), key=recall.__getitem__)


def picked(run: Run, scored_on: str, statistic: str) -> Floats:
    """``[facts]``: what is recalled at the pick of a statistic."""
    label = run["choices"][scored_on]["picks"][statistic]["label"]
    return _facts(run, int(label.removeprefix("epoch ")))


def _facts(run: Run, epoch: int) -> Floats:
    return np.array([float(fact) for fact in run["right"][epoch]])
