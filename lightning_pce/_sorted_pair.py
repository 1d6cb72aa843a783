"""A sorted batch and a digest, cut against each other: the CPU's short cut to what `_centroids.py` does.

There a batch becomes cells, cells and centroids are sorted together and cut again. Where neither weights nor
exactness are at stake (see :func:`add_sorted`) a cut is a pair of places, one in the batch and one among the
halves of the centroids, that one binary search finds: 200 microseconds less for 32,768 values, and half the
rank error, as the batch is cut between single values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_pce._arrays import after_zero, between
from lightning_pce._centroids import BOOK_ROWS, halves, k1_edges

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class _Pair(NamedTuple):
    """Both sides in ascending order, each between -inf and +inf, and the weight up to each half."""

    values: Floats  # [n + 2]
    means: Floats  # [m + 2]
    blend: NDArray[np.bool_]  # [m + 2]
    upto: Floats  # [m + 1]


class _Cuts(NamedTuple):
    """Cut j lies below the values from ``value[j]`` on and the halves from ``half[j]`` on, ``[K + 1]`` each.

    ``below`` and ``above`` are the neighbours of each cut in the two together.
    """

    value: Places
    half: Places
    below: Floats
    above: Floats


def add_sorted(digest: Floats, x: NDArray[np.floating]) -> Floats:
    """Centroids ``[K, 2]`` of a digest ``[K + 3, 2]`` with a blend, and of sorted finite values ``[n]``.

    A digest with a blend is not exact any more: nothing is lost by cuts along scale function k1 alone.
    """
    means, weights, blend, _ = halves(digest)
    used = weights > 0
    means, weights, blend = means[used], weights[used], blend[used]
    pair = _Pair(
        _padded(x), between(-math.inf, means, math.inf), between(0, blend, 0), after_zero(weights.cumsum())
    )
    goal = k1_edges(len(digest) - BOOK_ROWS, digest) * (pair.upto[-1] + len(x))
    first_value = between(0, np.searchsorted(x, _not_below(means, x.dtype)), len(x))  # not below each half
    middle = pair.upto[1:] - weights / 2 + first_value[1:-1]
    half = np.searchsorted(middle, goal)
    half[0], half[-1] = 0, len(means)
    value = np.rint(goal - pair.upto[half]).astype(np.int64)
    value = np.minimum(np.maximum(value, first_value[half]), first_value[half + 1])
    value[0], value[-1] = 0, len(x)
    return _centroids(pair, weights, _out_of_runs(pair, goal, value, half))


def _padded(x: NDArray[np.floating]) -> Floats:
    padded = np.empty(len(x) + 2)
    padded[0], padded[-1] = -math.inf, math.inf
    np.add(x, 0.0, out=padded[1:-1])  # -0.0 becomes 0.0
    return padded


def _not_below(means: Floats, dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    """The smallest numbers of a narrower type that are not below; a wider search would copy the batch."""
    with np.errstate(over="ignore"):
        narrow = means.astype(dtype)
    return np.where(narrow < means, np.nextafter(narrow, dtype.type(math.inf)), narrow)


def _neighbours(pair: _Pair, value: Places, half: Places) -> tuple[Floats, Floats]:
    below = np.maximum(pair.values[value], pair.means[half])
    return below, np.minimum(pair.values[value + 1], pair.means[half + 1])


def _out_of_runs(pair: _Pair, goal: Floats, value: Places, half: Places) -> _Cuts:
    """Move each cut inside a run of equal values to the end of it with less weight before the goal."""
    below, above = _neighbours(pair, value, half)
    tied = below >= above
    if tied.any():
        run, goal = above[tied], goal[tied]
        left = [np.searchsorted(side[1:-1], run) for side in (pair.values, pair.means)]
        right = [np.searchsorted(side[1:-1], run, side="right") for side in (pair.values, pair.means)]
        before, after = left[0] + pair.upto[left[1]], right[0] + pair.upto[right[1]]
        low = goal - before <= after - goal
        value[tied], half[tied] = np.where(low, left[0], right[0]), np.where(low, left[1], right[1])
        below, above = _neighbours(pair, value, half)
    return _Cuts(value, half, below, above)


def _centroids(pair: _Pair, weights: Floats, cuts: _Cuts) -> Floats:
    value, half = cuts.value, cuts.half
    first, last = cuts.above[:-1], cuts.below[1:]
    weight = np.diff(value) + np.diff(pair.upto[half])
    pair.values[-1] = 0.0  # nothing to add up behind the last
    sums = _sums_between(pair.values[1:], value)
    pair.means[-1] = 0.0
    sums += _sums_between(pair.means[1:] * after_zero(weights[::-1])[::-1], half)
    blend = (first < last) | pair.blend[half[:-1] + 1] | pair.blend[half[1:]]
    rows = np.zeros((len(first), 2))
    some = np.flatnonzero(weight > 0)
    mean = np.minimum(np.maximum(sums[some] / weight[some], first[some]), last[some])
    rows[: len(some), 0] = np.where(blend[some], mean, first[some])
    rows[: len(some), 1] = np.where(blend[some], -weight[some], weight[some])
    return rows


def _sums_between(data: Floats, cut: Places) -> Floats:
    """``data[cut[j]:cut[j + 1]].sum()`` for each j; the last element is 0 and lies behind all cuts."""
    with np.errstate(over="ignore"):  # the mean is held between the outermost values
        sums: Floats = np.add.reduceat(data, cut[:-1])
    return np.where(cut[1:] > cut[:-1], sums, 0.0)  # of nothing reduceat gives data[cut[j]]
