"""Centroids: what is inside one, and how many become few.

This is the definition, for NumPy arrays and for tensors (see :mod:`lightning_pce.digest._arrays`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lightning_pce.digest._arrays import (
    Array,
    after_zero,
    arange,
    at_most,
    between,
    count,
    extremes,
    interleave,
    is_numpy,
    namespace,
    not_negative,
    running_sum,
    search,
    sums_between,
    take,
    take_rows,
)
from lightning_pce.digest._cells import k1_edges, out_of_runs, range_factor, scaled, summarised, unscaled
from lightning_pce.digest._format import (
    Items,
    footer_of,
    highest_of,
    lowest_of,
    merged_footers,
    packed,
    signed_weights_of,
    unpacked,
)
from lightning_pce.digest._heavy import goals_beside_heavy, goals_with_room
from lightning_pce.digest._sorting import order_of_means, sort

# Fewer digests than this are merged by quarters of centroids, not by halves: ranks of 4e6 normal values from
# two of them were wrong by 1.1e-4, from eight by 5e-5; by quarters 4e-5 and 3e-5. Of many, errors cancel out.
_MANY = 16


def compress(items: Items, compression: int) -> Items:
    """Gather items in any order into at most ``compression`` centroids, packed to the front.

    At most ``compression`` distinct values keep a centroid each. Else items are cut along scale function k1
    by the middle of their weight, runs of equal means are never cut, and what falls between two cuts becomes
    one centroid.

    Args:
        items: ``[..., M]``; what is not there has mean +inf.
        compression: the number K of centroids.

    Returns:
        The centroids ``[..., K]``.
    """
    xp = namespace(items.means)
    order, m = order_of_means(items.means)
    w, b = take(items.weights, order), take(items.blend, order)
    n = count(m < np.inf)[..., None]
    upto = after_zero(running_sum(w))
    values = xp.where(w > 0, m, 0.0)
    factor = range_factor(*extremes(values), upto[..., -1:])
    mass = scaled(values, factor) * w
    new = m[..., 1:] != m[..., :-1]
    exact = (count(new & (m[..., 1:] < np.inf))[..., None] < compression) & (count(b) == 0)[..., None]
    middle, goal = upto[..., 1:] - w / 2, k1_edges(compression, m)[1:-1] * upto[..., -1:]
    if xp is not np or exact.any():
        steps = arange(compression, m)[1:]
        middle = xp.where(exact, after_zero(xp.cumsum(new, -1)), middle)
        goal = xp.where(exact, steps, goal)

    def cuts_for(goal: Array) -> Array:
        return out_of_runs(m, upto, xp.minimum(search(middle, goal), n), goal, 0, n)

    cut = _with_room(cuts_for, goal, upto, exact)
    ends = xp.concatenate([cut, n], -1)
    # Cells that hold nothing go to the end: their cuts become n.
    ends = sort(xp.where(ends > after_zero(ends[..., :-1]), ends, n))
    cut = after_zero(ends)
    start, stop = at_most(cut[..., :-1], m.shape[-1] - 1), not_negative(ends - 1)
    # Equal means in one cell: an atom, unless one of them is a blend.
    first, last = take(m, start), take(m, stop)
    blend = (first < last) | take(b, start) | take(b, stop)
    columns = None
    if items.columns is not None:
        columns = sums_between(take_rows(items.columns, order), cut, rows=True)
    # Not by differences of running sums: a heavy item would cost the light ones behind it their weight.
    sums, weight = sums_between(mass, cut), sums_between(w, cut)
    return summarised(first, last, sums, weight, blend, columns, factor)


def _with_room(cuts_for: Callable[[Array], Array], goal: Array, upto: Array, exact: Array) -> Array:
    """Inner cuts for goals along k1, those beside heavy values for other goals."""
    cut = cuts_for(goal)
    before = between(upto[..., :1], take(upto, cut), upto[..., -1:])
    if not is_numpy(cut) or cut.ndim > 1:
        return cuts_for(goals_with_room(goal, before, exact))
    if not exact:
        near, goal = goals_beside_heavy(before, len(cut) + 1)
        if len(near):
            cut[near - 1] = cuts_for(goal)
    return cut


def merge_halves(digests: Array, compression: int) -> Array:
    """Digests ``[M, ..., K + 3, C]`` become one ``[..., compression + 3, C]``."""
    xp, parts = namespace(digests), _quarters(digests) if 1 < len(digests) < _MANY else halves(digests)
    lead, columns = digests.shape[1:-2], parts.columns
    means, weights, blend = (xp.moveaxis(part, 0, -2).reshape(*lead, -1) for part in parts[:3])
    if columns is not None:
        columns = xp.moveaxis(columns, 0, -3).reshape(*lead, -1, columns.shape[-1])
    items = compress(Items(means, weights, blend, columns), compression)
    return packed(items, merged_footers(footer_of(digests)))


def halves(digest: Array) -> Items:
    """Items ``[..., 2K]``: each blend as its lower and its upper half, each atom as itself and nothing.

    Whole weights stay whole numbers, so that counts stay exact through any number of merges.
    """
    return _halves(digest)[0]


def _quarters(digest: Array) -> Items:
    """Items ``[..., 4K]``: the halves halved again."""
    (means, weights, blend, columns), (left, middle, right, factor) = _halves(digest)
    _, half = _lower_half(abs(signed_weights_of(digest)), signed_weights_of(digest) < 0)
    # By how much values rise in a lower and in an upper half.
    rise = interleave((middle - left) * (2 * half), (right - middle) * (2 - 2 * half))
    lower, part = _lower_half(weights, blend)
    means = namespace(digest).where(weights > 0, means, 0.0)
    low = unscaled(scaled(means, factor) - rise * (1 - part) / 2, factor)
    high = unscaled(scaled(means, factor) + rise * part / 2, factor)
    return _interleaved(means, low, high, lower, weights - lower, blend, columns, part)


def _halves(digest: Array) -> tuple[Items, tuple[Array, Array, Array, Array]]:
    """The halves, and the curve inside the centroids with its factor as of :func:`_scaled_inside`."""
    (means, weights, blend, columns), left, middle, right, factor = _scaled_inside(digest)
    lower, part = _lower_half(weights, blend)
    low = left + (middle - left) * part  # the mean of the lowest `part` <= 1/2 of the blend
    upper = weights - lower
    high = (scaled(means, factor) - part * low) / (1 - part + (upper <= 0))
    low, high = unscaled(low, factor), unscaled(high, factor)
    items = _interleaved(means, low, high, lower, upper, blend, columns, part)
    return items, (left, middle, right, factor)


def _lower_half(weights: Array, blend: Array) -> tuple[Array, Array]:
    """The weight of the lower half, of what is no blend all, and its part of the weight."""
    xp, half = namespace(weights), weights / 2
    whole = xp.floor(half)
    lower = xp.where(blend, xp.where(whole >= 1, whole, xp.where(weights == 1, weights, half)), weights)
    return lower, lower / (weights + (weights == 0))


def _interleaved(
    means: Array,
    low: Array,
    high: Array,
    lower: Array,
    upper: Array,
    blend: Array,
    columns: Array | None,
    part: Array,
) -> Items:
    """Means and weights of two halves of each as items; what has no upper half as itself and nothing."""
    xp, split = namespace(low), upper > 0
    absent = xp.where(lower > 0, means, np.inf)
    if columns is not None:
        share = columns * part[..., None]
        columns = interleave(share, columns - share, axis=-2)
    return Items(
        interleave(xp.where(split, low, absent), xp.where(split, high, absent)),
        interleave(lower, upper),
        interleave(blend, split),
        columns,
    )


def inside(digest: Array) -> tuple[Items, Array, Array, Array]:
    """Centroids, and the quantile function inside each at its left edge, its middle and its right edge.

    Straight lines between the three keep the centroid's mean. An edge is the value there of the curve through
    the two centroids on either side and, so that a gap in the data stays a gap, within twice the distance of
    the opposite edge from the mean. Atoms are flat.

    Returns:
        The centroids; left, middle, right, each ``[..., K]``.
    """
    centroids, *curve, factor = _scaled_inside(digest)
    where, blend, means = namespace(digest).where, centroids.blend, centroids.means
    left, middle, right = (where(blend, unscaled(values, factor), means) for values in curve)
    return centroids, left, middle, right


def _scaled_inside(digest: Array) -> tuple[Items, Array, Array, Array, Array]:
    """The same, left, middle and right multiplied by a factor ``[..., 1]``, see :func:`range_factor`."""
    xp, signed, centroids = namespace(digest), signed_weights_of(digest), unpacked(digest)
    means, weights, blend, _ = centroids
    lowest, highest = lowest_of(digest)[..., None], highest_of(digest)[..., None]
    used, half = weights > 0, weights / 2
    some = lowest <= highest
    lowest, highest = xp.where(some, lowest, 0.0), xp.where(some, highest, 0.0)
    factor = range_factor(lowest, highest, weights.sum(-1)[..., None])
    means, lowest, highest = (scaled(values, factor) for values in (means, lowest, highest))
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
    return centroids, left, middle, right, factor


def _growth(rise: Array, weight: Array, before: Array, weight_before: Array) -> Array:
    """By how much a slope has grown over that before it, within what the edges of a centroid allow."""
    known = (before > 0) & (weight_before > 0)
    xp = namespace(rise)
    growth = rise * weight_before / xp.where(known, before * weight + (weight == 0), 1.0)
    return xp.where(known, growth, 1.0).clip(0.5, 2.0)
