"""Intervals over models, or corpora: what a number would be with others of the same kind."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.9
_HALVES = 1000


class Resampled(NamedTuple):
    """A number with its 90 % interval; NaN ends where there is none."""

    value: float
    low: float
    high: float


def random_halves(number: int, random: np.random.Generator) -> Floats:
    """``[1000, number]``, 1 where one is in the half, else 0.

    Halves and no bootstrap: what a bootstrap draws twice is a tie with itself, and an order has no ties to
    give. Of its distinct ones alone, 63 % of all, a number moves 0.76 as much as it should: such "90 %"
    intervals held the truth in 78 to 84 % of simulations. Of halves, drawn without replacement, it moves as
    much as it should (the delete-half jackknife).
    """
    order = random.random((_HALVES, number)).argsort(1)
    return (order < number // 2).astype(np.float64)


def resampled(value: float, of_halves: Floats, least: float, most: float) -> Resampled:
    """A number with the interval that its values in halves span around it, within what it can be.

    Halves that say NaN say nothing. In few models a correlation of ranks is lower by itself, so that the
    middle of the halves is moved to the number.
    """
    known = of_halves[~np.isnan(of_halves)]
    if math.isnan(value) or not len(known):
        return Resampled(value, math.nan, math.nan)
    low, middle, high = np.quantile(known, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2]).tolist()
    return Resampled(value, max(least, value + low - middle), min(most, value + high - middle))
