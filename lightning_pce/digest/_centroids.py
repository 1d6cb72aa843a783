"""Centroids: what is inside one, and how many become few.

The arithmetic under :mod:`lightning_pce.digest`. Each function takes NumPy arrays or tensors and returns the
same kind, so that there is one algorithm and two speeds (see :mod:`lightning_pce.digest._arrays`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from lightning_pce.digest._arrays import (
    Array,
    after_zero,
    arange,
    at_most,
    between,
    count,
    interleave,
    is_numpy,
    just_above,
    namespace,
    not_negative,
    running_sum,
    search,
    segment_sums,
    sort,
    stable_order,
    take,
    take_rows,
    to_ordered,
)

# The last rows of a packed digest, see digest.py.
BOOK_ROWS = 3
INVALID, LOWEST, HIGHEST = 0, 1, 2

# From here on items are sorted by their means as float32, as integers: 1024 digests of 1024 centroids take
# 10 ms instead of 300.
_SHORT_SORT = 1 << 14


class Items(NamedTuple):
    """Centroids, or what becomes centroids. What is not there has mean +inf and weight 0."""

    means: Array  # [..., M] float64
    weights: Array  # [..., M] float64
    blend: Array  # [..., M] bool
    columns: Array | None  # [..., M, R] float64: weights of replicates


def columns_of(digest: Array) -> Array | None:
    """The weights of replicates, ``[..., K, R]``, if there are any."""
    return digest[..., :-BOOK_ROWS, 2:] if digest.shape[-1] > 2 else None


def packed(items: Items, book: Array) -> Array:
    """Centroids ``[..., K]`` and book ``[..., 3, C]`` -> ``[..., K + 3, C]``."""
    means, weights, blend, columns = items
    xp = namespace(means)
    rows = xp.stack([xp.where(weights > 0, means, 0.0), xp.where(blend, -weights, weights)], -1)
    if columns is not None:
        rows = xp.concatenate([rows, columns], -1)
    return xp.concatenate([rows, book], -2)


def merged_books(books: Array) -> Array:
    """Books ``[M, ..., 3, C]`` -> ``[..., 3, C]``: counts add up, of the extremes the extreme stays."""
    book = books.sum(0)
    xp = namespace(book)
    book[..., LOWEST, 0] = xp.amin(books[..., LOWEST, 0], 0)
    book[..., HIGHEST, 0] = xp.amax(books[..., HIGHEST, 0], 0)
    return book


def compress(items: Items, compression: int) -> Items:
    """Gather items in any order into at most ``compression`` centroids, packed to the front.

    At most ``compression`` distinct values keep a centroid each. Else items are cut along scale function k1
    by the middle of their weight, runs of equal means are never cut, and what falls between two cuts becomes
    one centroid.

    Args:
        items: ``[..., M]``.
        compression: the number K of centroids.

    Returns:
        The centroids ``[..., K]``.
    """
    xp = namespace(items.means)
    order, m = _sorted_means(items.means)
    w, b = take(items.weights, order), take(items.blend, order)
    with np.errstate(over="ignore"):  # the mean is held between the outermost values
        mass = xp.where(w > 0, m, 0.0) * w
    n = count(m < math.inf)[..., None]
    upto = running_sum(w)
    new = m[..., 1:] != m[..., :-1]
    exact = (count(new & (m[..., 1:] < math.inf))[..., None] < compression) & (count(b) == 0)[..., None]
    middle, goal = upto - w / 2, k1_edges(compression, m)[1:-1] * upto[..., -1:]
    if xp is not np or exact.any():
        steps = arange(compression, m)[1:]
        middle = xp.where(exact, after_zero(xp.cumsum(new, -1)), middle)
        goal = xp.where(exact, steps, goal)
    cut = xp.minimum(search(middle, goal), n)
    cut = _out_of_runs(m, w, upto, cut, goal, n)
    ends = xp.concatenate([cut, n], -1)
    # Cells that hold nothing go to the end: their cuts become n.
    ends = sort(xp.where(ends > after_zero(ends[..., :-1]), ends, n))
    cut = after_zero(ends)
    start, stop = at_most(cut[..., :-1], m.shape[-1] - 1), not_negative(ends - 1)
    weight = take(after_zero(upto), ends) - take(after_zero(upto), cut[..., :-1])
    # Equal means in one cell: an atom, unless one of them is a blend.
    first, last = take(m, start), take(m, stop)
    blended = (first < last) | take(b, start) | take(b, stop)
    columns = None
    if items.columns is not None:
        columns = sums_between(take_rows(items.columns, order), cut, rows=True)
    return summarised(first, last, sums_between(mass, cut), weight, blended, columns)


def _sorted_means(means: Array) -> tuple[Array, Array]:
    """The order of means, and the means in it."""
    if is_numpy(means) and means.ndim == 1 and means.size >= _SHORT_SORT:
        return order_of_many(means)
    order = stable_order(means)
    return order, take(means, order)


def order_of_many(means: Array) -> tuple[Array, Array]:
    """The same for a flat NumPy array by way of float32, whose few ties are put right by swaps."""
    with np.errstate(over="ignore", under="ignore"):
        order = stable_order(to_ordered(means.astype(np.float32)))
    ascending = means.take(order)
    for _ in range(8):
        wrong = np.flatnonzero(ascending[1:] < ascending[:-1])
        if not len(wrong):
            return order, ascending
        low = wrong[np.diff(wrong, prepend=-2) > 1]
        for pair in (order, ascending):
            pair[low], pair[low + 1] = pair[low + 1], pair[low]
    order = stable_order(means)
    return order, means.take(order)


def _out_of_runs(m: Array, w: Array, upto: Array, cut: Array, goal: Array, n: Array) -> Array:
    """Move each cut inside a run of equal means to the end with less weight between it and the goal."""
    xp = namespace(m)
    value = take(m, at_most(cut, m.shape[-1] - 1))
    tied = (take(m, not_negative(cut - 1)) == value) & (cut > 0) & (cut < n)
    if xp is np and not tied.any():
        return cut
    if xp is np and m.ndim == 1:
        cut = cut.copy()
        cut[tied] = _lighter_end(m, w, upto, value[tied], goal[tied])
        return cut
    return xp.where(tied, _lighter_end(m, w, upto, value, goal), cut)


def _lighter_end(m: Array, w: Array, upto: Array, value: Array, goal: Array) -> Array:
    left, right = search(m, value), search(m, just_above(value))
    before = take(upto, left) - take(w, left)
    after = take(upto, not_negative(right - 1))
    return namespace(m).where(goal - before <= after - goal, left, right)


def sums_between(data: Array, cut: Array, *, rows: bool = False) -> Array:
    """Sums between cuts ``[..., S + 1]`` of data ``[..., M]`` (or rows ``[..., M, R]``): ``[..., S]``.

    Flat data and cuts with leading dimensions: ascending cuts in the same data.
    """
    lead, width = cut.shape[:-1], data.shape[-1:] if rows else ()
    if not lead:
        return segment_sums(data, cut)
    if data.ndim > 1 + rows:
        size = data.shape[-1 - rows]
        cut = cut + arange(math.prod(lead), cut).reshape(*lead, 1) * size
        data = data.reshape(-1, *width)
    # The segment between the last cut of one and the first of the next is nobody's.
    sums = segment_sums(data, cut.reshape(-1))
    sums = namespace(data).concatenate([sums, sums[:1]]).reshape(*lead, -1, *width)
    return sums[..., :-1, :] if rows else sums[..., :-1]


def summarised(
    first: Array, last: Array, sums: Array, weight: Array, blend: Array, columns: Array | None = None
) -> Items:
    """Cells from their first and last value, the sum of all and its weight; an atom's mean is its value."""
    xp = namespace(first)
    some = weight > 0
    blend = blend & some
    mean = xp.minimum(xp.maximum(sums / xp.where(some, weight, 1.0), first), last)
    mean = xp.where(blend, mean, xp.where(some, first, math.inf))
    return Items(mean, weight, blend, columns)


def halves(digest: Array) -> Items:
    """Items ``[..., 2K]``: each blend as its lower and its upper half, each atom as itself and nothing.

    Whole weights stay whole numbers, so that counts stay exact through any number of merges.
    """
    xp = namespace(digest)
    means, weights, blend, left, middle, _ = inside(digest)
    half = weights / 2
    whole = xp.floor(half)
    lower = xp.where(blend, xp.where(whole >= 1, whole, xp.where(weights == 1, weights, half)), weights)
    part = lower / (weights + (weights == 0))  # of an atom all, which is flat
    low = left + (middle - left) * part  # the mean of the lowest `part` <= 1/2 of the blend
    upper = weights - lower
    split = upper > 0
    high = (means - part * low) / (1 - part + ~split)
    absent = xp.where(weights > 0, means, math.inf)
    columns = columns_of(digest)
    if columns is not None:
        share = columns * part[..., None]
        columns = interleave(share, columns - share, axis=-2)
    return Items(
        interleave(xp.where(split, low, absent), xp.where(split, high, absent)),
        interleave(lower, upper),
        interleave(blend, split),
        columns,
    )


def inside(digest: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Centroids, and the quantile function inside each at its left edge, its middle and its right edge.

    Straight lines between the three keep the centroid's mean. An edge is the value there of the curve through
    the two centroids on either side and, so that a gap in the data stays a gap, within twice the distance of
    the opposite edge from the mean. Atoms are flat.

    Returns:
        means, weights, blend, left, middle, right, each ``[..., K]``.
    """
    xp = namespace(digest)
    means, signed = digest[..., :-BOOK_ROWS, 0], digest[..., :-BOOK_ROWS, 1]
    weights, blend = abs(signed), signed < 0
    lowest, highest = digest[..., -BOOK_ROWS + LOWEST, :1], digest[..., -BOOK_ROWS + HIGHEST, :1]
    used, half = weights > 0, weights / 2
    some = lowest <= highest
    lowest, highest = xp.where(some, lowest, 0.0), xp.where(some, highest, 0.0)
    a = between(lowest, xp.where(used, means, highest), highest)
    nothing = xp.zeros_like(lowest)
    d = between(nothing, half - signed / 2, nothing)  # atoms have no width
    span = d[..., 1:] + d[..., :-1]
    span += span == 0
    slope = (a[..., 1:] - a[..., :-1]) / span
    edge = a[..., :-1] + slope * d[..., :-1]
    # No slope counts for more than 1.5 times its neighbour: beside an atom or a gap the curve must not swing.
    most = 1.5 * slope[..., 1:-1]
    bend = xp.minimum(slope[..., 2:], most) - xp.minimum(slope[..., :-2], most)
    edge[..., 1:-1] -= bend * (d[..., 1:-2] * d[..., 2:-1] / (3 * span[..., 1:-1]))
    left, right = edge[..., :-1], edge[..., 1:]
    # An atom beside a blend says nothing of the slope inside it: carry on from the other side, as far as the
    # atom. (Not a light one: that is a value, and its place is known.)
    atom = between(nothing, half + signed / 2, nothing)
    twice = 2 * means
    start = means - (right - means) * _growth(right - means, d[..., 1:-1], a[..., 2:] - right, d[..., 2:])
    left = xp.where(atom[..., :-2] > half, xp.maximum(a[..., :-2], start), left)
    end = means + (means - left) * _growth(means - left, d[..., 1:-1], left - a[..., :-2], d[..., :-2])
    right = xp.where(atom[..., 2:] > half, xp.minimum(a[..., 2:], end), right)
    thrice = twice + means
    left, right = xp.maximum(left, thrice - 2 * right), xp.minimum(right, thrice - 2 * left)
    left, right = xp.where(blend, left, means), xp.where(blend, right, means)
    middle = xp.where(blend, twice - (left + right) / 2, means)
    return means, weights, blend, left, middle, right


def _growth(rise: Array, weight: Array, before: Array, weight_before: Array) -> Array:
    """By how much a slope has grown over that before it, within what the edges of a centroid allow."""
    known = (before > 0) & (weight_before > 0)
    xp = namespace(rise)
    growth = rise * weight_before / xp.where(known, before * weight + (weight == 0), 1.0)
    return xp.where(known, growth, 1.0).clip(0.5, 2.0)


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
