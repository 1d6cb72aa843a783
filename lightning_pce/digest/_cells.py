"""Where sorted values are cut into cells, and what a cell becomes.

Cells follow scale function k1 of the t-digest: narrow in the tails, at most ``pi / 2 / K`` of all weight in
the middle. A cut that would fall inside a run of equal values moves to an end of it: a value that is seen
often stays a value. The rule for that is :func:`lower_end_is_nearer`, wherever something is cut.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from lightning_pce.digest._arrays import (
    Array,
    at_most,
    is_numpy,
    just_above,
    namespace,
    not_negative,
    search,
    take,
)
from lightning_pce.digest._format import Items


def k1_edges(cells: int, like: Array) -> Array:
    """Where scale function k1 crosses 0, 1, ..., cells: ``[cells + 1]`` float64 from 0 to 1."""
    if is_numpy(like):
        return _k1_edges_numpy(cells)
    return (
        torch.arange(cells + 1, dtype=torch.float64, device=like.device)
        .mul_(math.pi / 2 / cells)
        .sin_()
        .square_()
    )


@lru_cache(maxsize=8)
def _k1_edges_numpy(cells: int) -> Array:
    edges = np.square(np.sin(np.arange(cells + 1) * (math.pi / 2 / cells)))
    edges.flags.writeable = False
    return edges


def lower_end_is_nearer(goal: Array, before: Array, upto: Array) -> Array:
    """The tie rule: a cut inside a run of equal values moves to the end with less weight between.

    Args:
        goal: the weight that should lie before the cut.
        before: the weight before the run.
        upto: the weight before the run and of it.

    Returns:
        Whether the cut moves to the lower end.
    """
    return goal - before <= upto - goal


def out_of_runs(keys: Array, upto: Array | None, cut: Array, goal: Array, start: Array, stop: Array) -> Array:
    """Cuts by position, those inside a run of equal keys moved by the tie rule.

    Args:
        keys: ``[..., M]`` or flat, ascending; equal where the values are.
        upto: the weight before each key and of all, ``[..., M + 1]``; None: each has weight 1.
        cut: positions ``[..., S]``.
        goal: the weight that should lie before each cut, ``[..., S]``.
        start: cuts here or before it stay.
        stop: cuts here or behind it stay.

    Returns:
        Positions ``[..., S]``.
    """
    value = take(keys, at_most(cut, keys.shape[-1] - 1))
    tied = (take(keys, not_negative(cut - 1)) == value) & (cut > start) & (cut < stop)
    if is_numpy(keys) and not tied.any():
        return cut
    if is_numpy(keys) and keys.ndim == 1:
        moved = cut.copy()
        moved[tied] = _nearer_end(keys, upto, value[tied], goal[tied])
        return moved
    return namespace(keys).where(tied, _nearer_end(keys, upto, value, goal), cut)


def _nearer_end(keys: Array, upto: Array | None, value: Array, goal: Array) -> Array:
    lower, upper = search(keys, value), search(keys, just_above(value))
    before, after = (lower, upper) if upto is None else (take(upto, lower), take(upto, upper))
    return namespace(keys).where(lower_end_is_nearer(goal, before, after), lower, upper)


def range_factor(lowest: Array, highest: Array, total: Array) -> Array:
    """What values have to be multiplied by so that their weighted sum and their differences are finite.

    It is 1 unless values of float64 come near the largest there are.
    """
    xp = namespace(lowest)
    if is_numpy(lowest):
        if lowest.size == 1:  # .min() of one number takes ten times as long
            ordinary = lowest.item() > -1e280 and highest.item() < 1e280 and total.item() < 1e20
        else:
            ordinary = lowest.min() > -1e280 and highest.max() < 1e280 and total.max() < 1e20
        if ordinary:
            return 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        largest, total = xp.maximum(abs(lowest), abs(highest)), total.clip(min=1.0)
        return xp.where(largest * total < 1e300, 1.0, 0.125 / total)


def scaled(values: Array, factor: Array) -> Array:
    """Values times what :func:`range_factor` returned."""
    return values if isinstance(factor, float) and factor == 1 else values * factor


def unscaled(values: Array, factor: Array) -> Array:
    """Values divided by what :func:`range_factor` returned."""
    return values if isinstance(factor, float) and factor == 1 else values / factor


def summarised(
    first: Array,
    last: Array,
    sums: Array,
    weight: Array,
    blend: Array,
    columns: Array | None = None,
    factor: Array = 1.0,
) -> Items:
    """Cells as centroids, from the first and last value, the sum of all and its weight.

    The mean of an atom is its value. What holds nothing has mean +inf. The sums are those of values
    multiplied by a factor, see :func:`range_factor`.
    """
    xp = namespace(first)
    some = weight > 0
    blend = blend & some
    mean = unscaled(sums / xp.where(some, weight, 1.0), factor)
    mean = xp.minimum(xp.maximum(mean, first), last)
    mean = xp.where(blend, mean, xp.where(some, first, math.inf))
    return Items(mean, weight, blend, columns)
