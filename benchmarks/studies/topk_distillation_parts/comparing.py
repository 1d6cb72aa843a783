"""Differences between students, with what other lines and what other trainings would do to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.studies.picks import Floats, resampled_mean

Integers = NDArray[np.int64]


def paired(differences: Sequence[Floats], units: Sequence[Integers]) -> dict[str, Any]:
    """Of the differences ``[n]`` of each seed, which are of the lines (or blocks) of these numbers ``[n]``.

    ``low`` and ``high`` are of resamples of lines: what other lines would do to these models. A line that
    several seeds share is one line, with the mean of its differences. ``t_low`` and ``t_high`` are Student's,
    of the means of the seeds: what other trainings would give. None of a single seed.
    """
    means = np.array([each.mean() for each in differences])
    by_unit = resampled_mean(averaged(differences, units))
    middle = float(means.mean())
    ends: dict[str, float | None] = {"low": by_unit.low, "high": by_unit.high, "t_low": None, "t_high": None}
    if len(means) > 1:
        error = float(means.std(ddof=1)) / math.sqrt(len(means))
        reach = float(stats.t.ppf(0.975, len(means) - 1)) * error
        ends |= {"t_low": middle - reach, "t_high": middle + reach}
    return {
        "by_seed": [round(float(mean), 5) for mean in means],
        "mean": round(middle, 5),
        **{name: None if end is None else round(end, 5) for name, end in ends.items()},
    }


def averaged(differences: Sequence[Floats], units: Sequence[Integers]) -> Floats:
    """``[lines]``: of each line the mean over the seeds.

    If not all seeds have it, it counts by how many do, so that the mean of all stays that of the seeds.
    """
    _, place = np.unique(np.concatenate(units), return_inverse=True)
    counts = np.bincount(place)
    sums: Floats = np.bincount(place, np.concatenate(differences))
    return sums / counts.mean()
