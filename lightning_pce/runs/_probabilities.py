"""Probabilities p = exp(-CE) summed over parts of a digest of cross-entropies.

The digest's curve is straight in CE inside half a centroid, and the mean of exp(-x) along a straight piece is
known. exp of minus the centroid's mean would be too low, by Jensen's inequality.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_pce.digest._centroids import inside
from lightning_pce.digest._format import weight_above_of

Array = NDArray[np.float64]

# What an infinite CE is taken for: exp(-x) is 0 here, and differences are finite.
FAR = 1e9
# Below, 1 - (1 - exp(-d)) / d is a series: the difference would lose 4 digits at d = 1e-4.
_SHORT = 0.03


class Parts(NamedTuple):
    """Parts of pieces ``[..., 2K + 1]``: how many tokens each holds, and their means."""

    weight: Array
    ce: Array
    p: Array
    lost: Array  # of 1 - p, which is as exact where it is small


class Pieces(NamedTuple):
    """Straight pieces of a quantile function, ascending: ``[2K + 1]`` at most."""

    start: Array
    stop: Array
    weight: Array

    def above(self, x: float) -> Parts:
        """Of the tokens with a CE above ``x``."""
        length = self.stop - self.start
        # What ends at x lies below: a token whose p is the threshold is not below the threshold.
        below = np.where(length > 0, (x - self.start) / np.where(length > 0, length, 1.0), self.start <= x)
        return self._parts(below.clip(0, 1), np.ones_like(below))

    def between(self, ranks: Array) -> Parts:
        """Of the tokens between neighbours of ascending ``ranks`` ``[M + 1]``, from the lowest CE on."""
        upto = self.weight.cumsum()
        ends = ((ranks[:, None] - (upto - self.weight)) / self.weight).clip(0, 1)
        return self._parts(ends[:-1], ends[1:])

    def _parts(self, first: Array, last: Array) -> Parts:
        """From a fraction of each piece to another, ``[..., 2K + 1]``."""
        length = self.stop - self.start
        low, rise = self.start + first * length, (last - first) * length
        shortfall = _shortfall(rise)
        p, lost = np.exp(-low) * (1 - shortfall), -np.expm1(-low) + np.exp(-low) * shortfall
        return Parts(self.weight * (last - first), low + rise / 2, p, lost)


def pieces_of(digest: Tensor) -> Pieces:
    """The pieces of a digest ``[K + 3, 2]`` on the CPU whose values are not negative; +inf is far away."""
    array = digest.numpy()
    (_, weights, _, _), left, middle, right = inside(array)
    start, stop, weight = (
        np.stack(halves, -1).reshape(-1)
        for halves in ((left, middle), (middle, right), (weights / 2, weights / 2))
    )
    start, stop = (np.append(ends.clip(0, FAR), FAR) for ends in (start, stop))
    weight = np.append(weight, float(weight_above_of(array)))
    used = weight > 0
    return Pieces(start[used], stop[used], weight[used])


def _shortfall(rise: Array) -> Array:
    """1 less the mean of exp(-x) over [0, rise]."""
    d = np.minimum(rise, _SHORT)
    series = d / 2 * (1 - d / 3 * (1 - d / 4 * (1 - d / 5 * (1 - d / 6 * (1 - d / 7)))))
    long = np.maximum(rise, _SHORT)
    return np.where(rise < _SHORT, series, 1 + np.expm1(-long) / long)
