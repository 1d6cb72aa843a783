"""A large batch counted instead of sorted: the CPU's fastest way from values to cells.

The bits of a positive float, read as an integer, grow with it. Their leading digits are levels, fine and
logarithmic, on which values are counted and added up in two passes; few cuts fall into a level, and none
needs to. Only what is crowded, such as a value seen often or the far tails, is taken out and sorted. For
524,288 losses on a Zen 4 that takes 1.7 ms, where NumPy sorts them in 14 (AVX-512) or 2.4 (AVX2) and torch
in 4, and the sums of the cells are then as good as done.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_pce.digest._arrays import Array, after_zero
from lightning_pce.digest._cpu.cutting import Ascending
from lightning_pce.digest._sorting import sort

# 32,768 levels of values, 16,384 of centroids.
DIGITS, FEWER_DIGITS = 15, 14
# A level of values is crowded if it takes up more of a cell than the first, and more of the batch than the
# second: in the tails every cell is thin.
_PART_OF_CELL, _PART_OF_BATCH = 0.5, 2.0**-14
# With fewer levels in a sample than this part of its values a batch is sorted: most of its values would be
# crowded or, on a lattice, each level a single value that should stay one.
_SAMPLE, _TOLD_APART = 512, 0.9
# So many values at a time are widened, in scratch of 1 MiB that stays in the cache.
_CHUNK = 1 << 17
# What float32 can count by: the least span, and the largest value.
_SPAN, _LARGEST = 1e-30, 1e38

Values = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Scale(NamedTuple):
    """The level of a value is ``(bits(value - origin) >> shift) - offset``, and at least 0."""

    origin: float
    shift: int
    offset: int


class _Levels(NamedTuple):
    """Values that lie together, in ascending order: their mean, how many, and whether they differ."""

    means: NDArray[np.float64]
    counts: Ints
    blend: Flags

    def at(self, index: Flags) -> _Levels:
        return _Levels(self.means[index], self.counts[index], self.blend[index])


def counted(x: Values, compression: int) -> Ascending | None:
    """Values ``[n]`` in any order, as levels.

    None if they are better sorted: if some are not finite, if there may be few distinct ones, which a digest
    keeps, or if many are crowded.
    """
    scale = scale_of(x, DIGITS)
    if scale is None:
        return None
    level = levels_of(torch.from_numpy(x), scale)
    counts = level.bincount(minlength=1 << DIGITS).numpy()
    used = np.flatnonzero(counts != 0)
    if len(used) <= compression:
        return None
    lowest, highest = float(x.min()), float(x.max())
    levels = _levels_in_use(x, level, used, counts.take(used), lowest)
    upto = after_zero(levels.counts.cumsum())
    crowded = crowded_levels(levels.counts, upto, compression, _PART_OF_CELL, _PART_OF_BATCH)
    crowded[0] &= levels.blend[0]
    if 2 * levels.counts[crowded].sum() > len(x):
        return None
    if crowded.any():
        flags = np.zeros(1 << DIGITS, dtype=np.bool_)
        flags[used[crowded]] = True
        crowd = x[np.flatnonzero(flags.take(level.numpy()))]
        levels = _with_values(levels.at(~crowded), sort(crowd))
    levels = _with_extremes(levels, lowest, highest)
    means = np.minimum(np.maximum(levels.means, lowest), highest)
    means = np.maximum.accumulate(means)  # of float64 some may be rounded past their neighbours
    return Ascending(means, after_zero(levels.counts.cumsum()), levels.blend)


def _levels_in_use(x: Values, level: torch.Tensor, used: Ints, counts: Ints, lowest: float) -> _Levels:
    """The levels that hold something."""
    # Sums of so many float32 are exact; those of float64 could be rounded by more than a level is wide.
    start = lowest if x.dtype == np.float64 else 0.0
    sums = sums_at(level, torch.from_numpy(x), 1 << DIGITS, start).take(used)
    blend = counts > 1
    blend[0] = sums[0] != counts[0] * (lowest - start)  # else the smallest value and no others: mostly zeros
    return _Levels(sums / counts + start, counts, blend)


def _with_values(levels: _Levels, x: Values) -> _Levels:
    """Items and sorted values that are in none of them."""
    first = np.flatnonzero(np.append(True, x[1:] != x[:-1]))
    values = x[first].astype(np.float64)
    at = np.searchsorted(levels.means, values)
    counts = np.insert(levels.counts, at, np.diff(first, append=len(x)))
    return _Levels(np.insert(levels.means, at, values), counts, np.insert(levels.blend, at, False))


def _with_extremes(levels: _Levels, lowest: float, highest: float) -> _Levels:
    """The smallest and the largest value by themselves: a digest answers q = 0 and 1 with them."""
    means, counts, blend = levels
    if blend[0]:
        counts[0] -= 1
        means[0] += (means[0] - lowest) / counts[0]
        means, counts, blend = (
            np.insert(means, 0, lowest),
            np.insert(counts, 0, 1),
            np.insert(blend, 0, False),
        )
    if blend[-1]:
        counts[-1] -= 1
        means[-1] -= (highest - means[-1]) / counts[-1]
        means, counts, blend = np.append(means, highest), np.append(counts, 1), np.append(blend, False)
    return _Levels(means, counts, blend)


def scale_of(x: Values, digits: int) -> Scale | None:
    """Of two scales with ``2 ** digits`` levels the first that tells nearly all of a sample apart.

    None if neither does, or float32 cannot span the values. One is logarithmic from the smallest value on, as
    losses are, the other from the median on and nearly straight below, as numbers of either sign mostly are.
    """
    lowest, highest = float(x.min()), float(x.max())
    if not (lowest > -_LARGEST and highest < _LARGEST and highest - lowest > _SPAN):
        return None
    sample = np.append(np.sort(x[:: max(1, len(x) // _SAMPLE)]), x.dtype.type(highest))
    enough = _TOLD_APART * np.count_nonzero(sample > lowest)
    for straight in (0.0, float(sample[len(sample) // 2]) - lowest):
        bits = (sample - x.dtype.type(lowest - straight)).astype(np.float32).view(np.int32)
        bits = bits[bits > 0]
        top, first = int(bits[-1]), int(bits[0])
        low = first - (top - first) // 4  # the sample's smallest is not the smallest
        low = max(low, int(np.float32(straight).view(np.int32)))
        shift = max((top - low).bit_length() - digits, 0)
        if np.count_nonzero(np.diff(bits >> shift)) + 1 >= enough:
            return Scale(lowest - straight, shift, (top >> shift) - (1 << digits) + 1)
    return None


def edges_of(level: Ints, scale: Scale) -> NDArray[np.float64]:
    """The values where levels begin."""
    bits = np.maximum(level + scale.offset, 0) << scale.shift
    return bits.astype(np.int32).view(np.float32).astype(np.float64) + scale.origin


def levels_of(x: torch.Tensor, scale: Scale) -> torch.Tensor:
    """``[n]`` int32. In torch: NumPy takes three times as long for the larger of integers and a number."""
    bits = (x - scale.origin).float().view(torch.int32)
    # First the limit: of -0.0 less an offset nothing is left but what wraps around.
    return (bits >> scale.shift).clamp_min_(scale.offset).sub_(scale.offset)


def sums_at(level: torch.Tensor, x: torch.Tensor, size: int, start: float = 0.0) -> NDArray[np.float64]:
    """The sum of ``x - start`` at each level, ``[size]``, a quarter faster than by NumPy's bincount."""
    sums = torch.zeros(size, dtype=torch.float64, device=x.device)
    for values, at in zip(torch.split(x, _CHUNK), torch.split(level, _CHUNK), strict=True):
        sums.scatter_add_(0, at.long(), values.double() - start if start else values.double())
    return sums.numpy()


def crowded_levels(weights: Array, upto: Array, compression: int, of_cell: float, of_all: float) -> Flags:
    """Which of levels ``[S]`` take up more than a part of a cell and more than a part of all the weight.

    Cells follow scale function k1, whose slope is ``1 / sqrt(q (1 - q))``.
    """
    share, middle = weights / upto[-1], (upto[1:] + upto[:-1]) / (2 * upto[-1])
    limit = (of_cell * math.pi / compression) ** 2
    crowded: Flags = (share * share > limit * middle * (1 - middle)) & (share > of_all)
    return crowded
