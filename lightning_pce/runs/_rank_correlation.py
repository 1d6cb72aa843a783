"""Spearman's correlation, of many subsets of models at once; z-scores within tasks; NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROUNDING = 1e-12


def mean_ranks(values: Floats) -> Floats:
    """Ranks from 1 along the first axis; equal values, infinite ones too, have their mean rank.

    Example:
        >>> mean_ranks(np.array([3.0, 1.0, 3.0, np.inf]))
        array([2.5, 1. , 2.5, 4. ])
    """
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return np.asarray(below + (equal + 1) / 2, dtype=np.float64)


def spearman(score: Floats, truth: Floats, chosen: Floats | None = None) -> Floats:
    """Spearman's correlation of a score with the truth, in each of several subsets of models.

    A score that is the same for all of a subset orders nothing and has correlation 0: to leave it out would
    reward a method that often says nothing. Where the truth is the same for all there is nothing to say: NaN.

    Args:
        score: ``[n]``; infinite values have an order too.
        truth: ``[n]``.
        chosen: ``[S, n]``, 1 where a model is in the subset, else 0; left out: one subset, all models.

    Returns:
        ``[S]``.

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.5, 0.5])).round(3)
        array([0.866])
    """
    chosen = np.ones((1, len(score))) if chosen is None else chosen
    # Twice a rank from the middle: how many are below, less how many are above. Ties share it by themselves.
    ranks, true_ranks = (chosen @ _order(values).T for values in (score, truth))
    both = (chosen * ranks * true_ranks).sum(1)
    size, true_size = ((chosen * each**2).sum(1) for each in (ranks, true_ranks))
    scale = np.sqrt(size * true_size)
    found = np.divide(both, scale, out=np.zeros(len(chosen)), where=scale > 0)
    return np.where(true_size > 0, found, np.nan)


def z_scored(values: Floats, tasks: Ints) -> Floats:
    """Columns less their mean over the standard deviation, within each task; 0 where all are the same.

    Args:
        values: ``[R]`` or ``[R, P]``, finite.
        tasks: ``[R]`` the task of each row.
    """
    found = np.empty_like(values)
    for task in np.unique(tasks):
        own = tasks == task
        centred = values[own] - values[own].mean(0)
        # The range, as the squares of very large or small values would not be finite, or 0.
        largest = np.abs(values[own]).max(0)
        reach = np.abs(centred).max(0)
        same = reach <= _ROUNDING * largest
        centred = centred / np.where(same, 1.0, reach)
        deviation = np.sqrt((centred**2).mean(0))
        found[own] = np.where(same, 0.0, centred / np.where(same, 1.0, deviation))
    return found


def _order(values: Floats) -> Floats:
    above = values[:, None] > values
    return above.astype(np.float64) - above.T
