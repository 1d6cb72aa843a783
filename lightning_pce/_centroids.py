"""From sorted values to cells, from cells to centroids: the arithmetic under :mod:`lightning_pce.digest`.

Each function takes NumPy arrays or tensors and returns the same kind, so that there is one algorithm and two
speeds: on a CPU an update of 32,768 values is 60 operations on arrays of a few thousand, where NumPy's
overhead is a third of torch's and its sort 28 times as fast; on an accelerator the same lines are torch
operations that never wait for the device. The names the two libraries do not share are at the end of the
file.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch

# A NumPy array or a tensor. The two have no common type, and a union would need a cast on every line.
Array = Any
# Centroids or cells: means [..., M] float64, weights [..., M] float64, blend [..., M] bool. What is not there
# has mean +inf and weight 0.
Items = tuple[Array, Array, Array]

# The last rows of a packed digest, see digest.py.
BOOK_ROWS = 3
INVALID, LOWEST, HIGHEST = 0, 1, 2

# A batch is cut into at most this many cells per centroid. Worst rank error of 1e6 values in 20 ascending
# sweeps, in batches of 32,768: 1.6e-4 with 2 cells, 1.1e-4 with 4; each doubling costs about 60 microseconds
# a batch.
_CELLS_PER_CENTROID = 2
# From here on centroids enter a merge whole, each a small part of what it lies in. (Of 64 digests of 156,250
# values the worst rank error is 3.7e-5 with halves, 6e-5 without.)
_MANY = 256
# From here on a sort of (float32 mean, index) packed into integers is faster than merging sorted runs: 1024
# digests of 1024 centroids take 10 ms instead of 300.
_PACKED_SORT = 1 << 14


def add_batch(digest: Array, values: Array, weights: Array | None) -> Array:
    """Digest ``[K + 3, 2]``, values ``[n]`` float32 or float64, weights ``[n]`` or None -> ``[K + 3, 2]``."""
    xp = _namespace(digest)
    compression = digest.shape[-2] - BOOK_ROWS
    x, w, start, stop, book = _sorted_batch(values, weights)
    cells = cells_of_sorted(x, w, start, stop, min(len(x), _CELLS_PER_CENTROID * compression))
    items = [xp.concatenate(pair, -1) for pair in zip(halves(digest), cells, strict=True)]
    books = xp.stack([digest[compression:], book])
    return _packed(compress(items[0], items[1], items[2], compression), _merged_books(books))


def merge_stack(digests: Array, compression: int | None = None) -> Array:
    """Digests ``[M, ..., K + 3, 2]`` -> one ``[..., K + 3, 2]``, or with another number of centroids."""
    xp = _namespace(digests)
    book = _merged_books(digests[..., -BOOK_ROWS:, :])
    compression = digests.shape[-2] - BOOK_ROWS if compression is None else compression
    parts = halves(digests) if len(digests) < _MANY else _whole(digests)
    items = [xp.moveaxis(part, 0, -2).reshape(*digests.shape[1:-2], -1) for part in parts]
    return _packed(compress(items[0], items[1], items[2], compression), book)


def _whole(digest: Array) -> Items:
    means, signed = digest[..., :-BOOK_ROWS, 0], digest[..., :-BOOK_ROWS, 1]
    return _namespace(digest).where(signed != 0, means, math.inf), abs(signed), signed < 0


def _packed(items: Items, book: Array) -> Array:
    means, weights, blend = items
    xp = _namespace(means)
    rows = xp.stack([xp.where(weights > 0, means, 0.0), xp.where(blend, -weights, weights)], -1)
    return xp.concatenate([rows, book], -2)


def _merged_books(books: Array) -> Array:
    """Books ``[M, ..., 3, 2]`` -> ``[..., 3, 2]``: counts add up, of the extremes the extreme stays."""
    book = books.sum(0)
    xp = _namespace(book)
    book[..., LOWEST, 0] = xp.amin(books[..., LOWEST, 0], 0)
    book[..., HIGHEST, 0] = xp.amax(books[..., HIGHEST, 0], 0)
    return book


def _sorted_batch(x: Array, weights: Array | None) -> tuple[Array, Array | None, Array, Array, Array]:
    """Sort a batch; the finite values that count are [start, stop) of it, the rest goes into a book."""
    xp = _namespace(x)
    if weights is None or weights.dtype in (np.bool_, torch.bool):
        w, invalid = None, None
        if weights is None:
            nan, counted = _count(x != x), x.shape[0]
        else:
            nan, counted = _count((x != x) & weights), _count(weights)
            x = xp.where(weights, x, math.nan)
        start, stop = _count(x == -math.inf), _count(x < math.inf)
        low, high = start, counted - nan - stop
        x = _nan_to_inf(sort(x))
    else:
        w = _to_float(weights)
        bad = ~((w >= 0) & (w < math.inf))
        invalid = _count(bad)
        w = xp.where(bad, 0.0, w)
        nan, low, high = (w * (x != x)).sum(), (w * (x == -math.inf)).sum(), (w * (x == math.inf)).sum()
        x = xp.where(w > 0, x, math.nan)
        order = _argsort(x)
        start, stop = _count(x == -math.inf), _count(x < math.inf)
        x, w, place = _nan_to_inf(x[order]), w[order], _arange(len(x), x)
        w = xp.where((place >= start) & (place < stop), w, 0.0)
    some = stop > start
    # take(), because x[tensor] would read a single index on the host.
    lowest = xp.where(some, x.take(_below(start, len(x))), math.inf) + 0.0  # -0.0 becomes 0.0
    highest = xp.where(some, x.take(_above(stop - 1)), -math.inf) + 0.0
    cells = [nan * 0 if invalid is None else invalid, nan, lowest, low, highest, high]
    book = xp.stack([_to_float(cell) for cell in cells]).reshape(BOOK_ROWS, 2)
    return x, w, start, stop, book


def cells_of_sorted(x: Array, weights: Array | None, start: Array, stop: Array, cells: int) -> Items:
    """Cut sorted values into cells along scale function k1.

    Args:
        x: sorted values ``[n]``, float32 or float64.
        weights: their weights ``[n]`` float64, zero outside ``[start, stop)``; ``None`` means one each.
        start: where the finite values begin, 0-d integer.
        stop: where they end, 0-d integer.
        cells: how many cells; with at most that many values each gets a cell of its own.

    Returns:
        The cells ``[cells]`` in ascending order; those of weight 0 hold nothing.
    """
    xp = _namespace(x)
    edges, steps = k1_edges(cells, x), _arange(cells + 1, x)
    if weights is None:
        cut = start + _to_int(xp.round(edges * (stop - start)))
    else:
        total = xp.cumsum(weights, -1)
        cut = _search(total - weights / 2, edges * total[-1])
        cut = xp.where(
            steps == 0, start, xp.where(steps == cells, stop, xp.minimum(xp.maximum(cut, start), stop))
        )
    cut = _between_values(x, _out_of_runs(x, cut, start, stop), start, stop)
    low, high = cut[:-1], cut[1:]
    first = _to_float(_take(x, _below(low, len(x)))) + 0.0  # -0.0 becomes 0.0
    last = _to_float(_take(x, _above(high - 1))) + 0.0
    values = _to_float(x)
    if weights is None:
        return _summarise(first, last, _segment_sums(values, cut), _to_float(high - low), first < last)
    sums = _segment_sums(xp.where(weights > 0, values, 0.0) * weights, cut)
    return _summarise(first, last, sums, _segment_sums(weights, cut), first < last)


def compress(means: Array, weights: Array, blend: Array, compression: int) -> Items:
    """Gather items in any order into at most ``compression`` centroids, packed to the front.

    At most ``compression`` distinct values keep a centroid each. Else items are cut along scale function k1
    by the middle of their weight, runs of equal means are never cut, and what falls between two cuts becomes
    one centroid.

    Args:
        means: ``[..., M]`` float64.
        weights: ``[..., M]`` float64.
        blend: ``[..., M]`` bool.
        compression: the number K of centroids.

    Returns:
        The centroids ``[..., K]``.
    """
    xp = _namespace(means)
    order = _order(means, blend)
    m, w, b = _take(means, order), _take(weights, order), _take(blend, order)
    mass, m = xp.where(w > 0, m, 0.0) * w, _ascending(m)
    n = _count(m < math.inf)[..., None]
    upto = xp.cumsum(w, -1)
    new = m[..., 1:] != m[..., :-1]
    exact = (_count(new & (m[..., 1:] < math.inf))[..., None] < compression) & (_count(b) == 0)[..., None]
    middle, goal = upto - w / 2, k1_edges(compression, m)[1:-1] * upto[..., -1:]
    if xp is not np or exact.any():
        steps = _arange(compression, m)[1:]
        middle = xp.where(exact, _after_zero(xp.cumsum(new, -1)), middle)
        goal = xp.where(exact, steps, goal)
    cut = xp.minimum(_search(middle, goal), n)
    cut = _out_of_heavy_runs(m, w, upto, cut, goal, n)
    ends = xp.concatenate([cut, n], -1)
    # Cells that hold nothing go to the end: their cuts become n.
    ends = sort(xp.where(ends > _after_zero(ends[..., :-1]), ends, n))
    cut = _after_zero(ends)
    start, stop = _below(cut[..., :-1], m.shape[-1]), _above(ends - 1)
    first, last = _take(m, start), _take(m, stop)
    weight = _take(_after_zero(upto), ends) - _take(_after_zero(upto), cut[..., :-1])
    sums = _segment_sums(mass, cut)
    # Equal means in one cell: an atom, unless one of them is a blend.
    blended = (first < last) | _take(b, start) | _take(b, stop)
    return _summarise(first, last, sums, weight, blended)


def halves(digest: Array) -> Items:
    """Items ``[..., 2K]``: each blend as its lower and its upper half, each atom as itself and nothing.

    Whole weights stay whole numbers, so that counts stay exact through any number of merges.
    """
    xp = _namespace(digest)
    means, weights, blend, left, middle, _ = inside(digest)
    half = weights / 2
    divided = xp.where(weights >= 2, xp.floor(half), xp.where(weights == 1, weights, half))
    lower = xp.where(blend, divided, weights)
    part = lower / xp.where(blend, weights, 1.0)
    low = left + (middle - left) * part  # the mean of the lowest `part` <= 1/2 of the blend
    upper = weights - lower
    high = (means - part * low) / xp.where(upper > 0, 1 - part, 1.0)
    absent = xp.where(weights > 0, means, math.inf)
    split = blend & (upper > 0)
    return (
        _interleave(xp.where(split, low, absent), xp.where(split, high, absent)),
        _interleave(lower, upper),
        _interleave(blend, split),
    )


def inside(digest: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Centroids, and the quantile function inside each at its left edge, its middle and its right edge.

    Straight lines between the three keep the centroid's mean. An edge is the value there of the curve through
    the two centroids on either side, held between their means and, so that a gap in the data stays a gap,
    within twice the distance of the opposite edge from the mean. Atoms are flat.

    Returns:
        means, weights, blend, left, middle, right, each ``[..., K]``.
    """
    xp = _namespace(digest)
    means, signed = digest[..., :-BOOK_ROWS, 0], digest[..., :-BOOK_ROWS, 1]
    weights, blend = abs(signed), signed < 0
    lowest, highest = digest[..., -BOOK_ROWS + LOWEST, :1], digest[..., -BOOK_ROWS + HIGHEST, :1]
    used, half = weights > 0, weights / 2
    some = lowest <= highest
    lowest, highest = xp.where(some, lowest, 0.0), xp.where(some, highest, 0.0)
    a = xp.concatenate([lowest, xp.where(used, means, highest), highest], -1)
    nothing = xp.zeros_like(lowest)
    d = xp.concatenate([nothing, xp.where(blend, weights, 0.0), nothing], -1)  # atoms have no width
    span = d[..., 1:] + d[..., :-1]
    span = xp.where(span > 0, span, 1.0)
    slope = (a[..., 1:] - a[..., :-1]) / span
    straight = a[..., :-1] + slope * d[..., :-1]
    bend = (slope[..., 2:] - slope[..., :-2]) * (d[..., 1:-2] * d[..., 2:-1] / (3 * span[..., 1:-1]))
    edge = straight + 0.0
    edge[..., 1:-1] -= bend
    edge = xp.minimum(xp.maximum(edge, (a[..., :-1] + straight) / 2), (straight + a[..., 1:]) / 2)
    left, right = edge[..., :-1], edge[..., 1:]
    # An atom beside a blend says nothing of the slope inside it: take the other side's, as far as the atom.
    # (Not a light one: that is a value, and its place is known.)
    atom = xp.concatenate([nothing, xp.where(blend, 0.0, weights), nothing], -1)
    twice = 2 * means
    left = xp.where(atom[..., :-2] > half, xp.maximum(a[..., :-2], twice - right), left)
    right = xp.where(atom[..., 2:] > half, xp.minimum(a[..., 2:], twice - left), right)
    thrice = twice + means
    left, right = xp.maximum(left, thrice - 2 * right), xp.minimum(right, thrice - 2 * left)
    left, right = xp.where(blend, left, means), xp.where(blend, right, means)
    middle = xp.where(blend, twice - (left + right) / 2, means)
    return means, weights, blend, left, middle, right


def k1_edges(cells: int, like: Array) -> Array:
    """Where scale function k1 crosses 0, 1, ..., cells: ``[cells + 1]`` float64 from 0 to 1."""
    if _is_numpy(like):
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


def _summarise(first: Array, last: Array, sums: Array, weight: Array, blend: Array) -> Items:
    """Cells from their first and last value, the sum of all and its weight; an atom's mean is its value."""
    xp = _namespace(first)
    some = weight > 0
    blend = blend & some
    mean = xp.minimum(xp.maximum(sums / xp.where(some, weight, 1.0), first), last)
    mean = xp.where(blend, mean, xp.where(some, first, math.inf))
    return mean, weight, blend


def _between_values(x: Array, cut: Array, start: Array, stop: Array) -> Array:
    """If there are no more values than cells, a cut between any two that differ."""
    cells = len(cut) - 1
    if _is_numpy(x):
        finite = x[start:stop]
        new = finite[1:] != finite[:-1]
        count = np.count_nonzero(new)
        if count >= cells:
            return cut
        cut = np.full(cells + 1, stop)
        cut[0], cut[1 : count + 1] = start, np.flatnonzero(new) + 1 + start
        return cut
    place, steps = _arange(len(x), x), _arange(cells + 1, x)
    new = (place > start) & (place < stop)
    new[1:] &= x[1:] != x[:-1]
    rank = new.cumsum(-1)
    between = torch.where(steps == 0, start, torch.minimum(_search(rank, steps), stop))
    return torch.where(rank[-1] < cells, between, cut)


def _out_of_runs(x: Array, cut: Array, start: Array, stop: Array) -> Array:
    """Move each cut inside a run of equal values to the nearer end of the run."""
    xp = _namespace(x)
    here = _below(_above(cut - 1) + 1, len(x))
    value = _take(x, here)
    tied = (_take(x, _above(here - 1)) == value) & (cut > start) & (cut < stop)
    if xp is np:
        if not tied.any():
            return cut
        inner = cut[tied]
        cut = cut.copy()
        cut[tied] = _nearer_end(x, value[tied], inner)
        return cut
    return xp.where(tied, _nearer_end(x, value, cut), cut)


def _nearer_end(x: Array, value: Array, cut: Array) -> Array:
    left, right = _search(x, value), _search(x, _just_above(value))
    return _namespace(x).where(cut - left <= right - cut, left, right)


def _out_of_heavy_runs(m: Array, w: Array, upto: Array, cut: Array, goal: Array, n: Array) -> Array:
    """The same for items: the nearer end is the one with less weight between it and the goal."""
    xp = _namespace(m)
    size = m.shape[-1]
    value = _take(m, _below(cut, size))
    tied = (_take(m, _above(cut - 1)) == value) & (cut > 0) & (cut < n)
    if xp is np and not tied.any():
        return cut
    if xp is np and m.ndim == 1:
        cut = cut.copy()
        cut[tied] = _lighter_end(m, w, upto, value[tied], goal[tied])
        return cut
    return xp.where(tied, _lighter_end(m, w, upto, value, goal), cut)


def _lighter_end(m: Array, w: Array, upto: Array, value: Array, goal: Array) -> Array:
    left, right = _search(m, value), _search(m, _just_above(value))
    before = _take(upto, left) - _take(w, left)
    after = _take(upto, _above(right - 1))
    return _namespace(m).where(goal - before <= after - goal, left, right)


def _segment_sums(data: Array, cut: Array) -> Array:
    """Sums of ``data[..., cut[j]:cut[j + 1]]``: data ``[..., M]``, cut ``[..., S + 1]`` -> ``[..., S]``."""
    lead, size = cut.shape[:-1], data.shape[-1]
    if lead:
        cut = cut + _arange(math.prod(lead), cut).reshape(*lead, 1) * size
        data, cut = data.reshape(-1), cut.reshape(-1)
    if _is_numpy(data):
        # reduceat sums from each index to the next, the last to the end, and gives data[index] where the two
        # are equal.
        sums: Array = np.zeros(len(cut) - 1)
        begun = int(np.searchsorted(cut, cut[-1]))
        if begun:
            sums[:begun] = np.add.reduceat(data[: cut[-1]], cut[:begun])
            sums[cut[1:] == cut[:-1]] = 0.0
    else:
        sums = torch.segment_reduce(data, "sum", offsets=cut, unsafe=True)
    return _before_nothing(sums).reshape(*lead, -1)[..., :-1] if lead else sums


# ----------------------------------------------------------------------------------------------------------
# What NumPy and torch call by different names.


def _is_numpy(x: Array) -> bool:
    return not isinstance(x, torch.Tensor)  # NumPy's 0-d results are scalars, not arrays


def _namespace(x: Array) -> Any:
    return np if _is_numpy(x) else torch


def _arange(n: int, like: Array) -> Array:
    if not _is_numpy(like):
        return torch.arange(n, device=like.device)
    return _numpy_arange(n) if n <= 1 << 13 else np.arange(n)


@lru_cache(maxsize=32)
def _numpy_arange(n: int) -> Array:
    steps = np.arange(n)
    steps.flags.writeable = False
    return steps


def _after_zero(x: Array) -> Array:
    """``[0, *x]`` along the last axis."""
    if not _is_numpy(x):
        return torch.nn.functional.pad(x, (1, 0))
    out = np.empty((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
    out[..., 0], out[..., 1:] = 0, x
    return out


def _before_nothing(x: Array) -> Array:
    return np.append(x, 0.0) if _is_numpy(x) else torch.nn.functional.pad(x, (0, 1))


def _to_int(x: Array) -> Array:
    return x.astype(np.int64) if _is_numpy(x) else x.long()


def _to_float(x: Array) -> Array:
    return np.float64(x) if _is_numpy(x) else x.double()


def _below(index: Array, size: int) -> Array:
    return np.minimum(index, size - 1) if _is_numpy(index) else index.clamp(max=size - 1)


def _above(index: Array) -> Array:
    return np.maximum(index, 0) if _is_numpy(index) else index.clamp(min=0)


def _just_above(x: Array) -> Array:
    if _is_numpy(x):
        return np.nextafter(x, x.dtype.type(math.inf))
    return torch.nextafter(x, torch.full_like(x, math.inf))


def _take(x: Array, index: Array) -> Array:
    if x.ndim == 1:
        return x.take(index)
    return np.take_along_axis(x, index, -1) if _is_numpy(x) else x.gather(-1, index)


def _count(mask: Array) -> Array:
    if not _is_numpy(mask):
        return mask.sum(-1)
    # Along an axis NumPy adds the flags up as integers, ten times as slow.
    return np.asarray(np.count_nonzero(mask) if mask.ndim == 1 else np.count_nonzero(mask, axis=-1))


def _interleave(a: Array, b: Array) -> Array:
    if _is_numpy(a):
        out = np.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        out[..., ::2], out[..., 1::2] = a, b
        return out
    return torch.stack([a, b], dim=-1).flatten(-2)


def sort(x: Array) -> Array:
    return np.sort(x) if _is_numpy(x) else x.sort().values


def _argsort(x: Array) -> Array:
    # Items come as a few sorted runs, which NumPy's stable sort only has to merge.
    return np.argsort(x, axis=-1, kind="stable") if _is_numpy(x) else x.argsort(dim=-1, stable=True)


def _order(means: Array, blend: Array) -> Array:
    """The order of items by mean; blends whose means agree to float32 may change places."""
    if not _is_numpy(means) or means.ndim > 1 or means.size < _PACKED_SORT:
        return _argsort(means)
    short = means.astype(np.float32)
    if not (blend | (short == means)).all():  # an atom that float32 would move
        return _argsort(means)
    bits = short.view(np.int32).astype(np.int64)
    key = (bits ^ ((bits >> 63) & 0x7FFFFFFF)) << 32  # in the order of the floats
    key |= np.arange(means.size)
    key.sort()
    key &= 0xFFFFFFFF
    return key


def _ascending(x: Array) -> Array:
    return np.maximum.accumulate(x, -1) if _is_numpy(x) and x.size >= _PACKED_SORT else x


def _nan_to_inf(x: Array) -> Array:
    # Sorted, NaN comes last for both, but torch's binary search takes it for small.
    return x if _is_numpy(x) else torch.where(x.isnan(), math.inf, x)


def _search(x: Array, v: Array) -> Array:
    """The first position in sorted ``x [..., M]`` that is not below ``v [..., S]``."""
    if not _is_numpy(x):
        return torch.searchsorted(x.contiguous(), v.contiguous())
    if x.ndim == 1:
        return np.searchsorted(x, v)
    rows = [
        np.searchsorted(*row)
        for row in zip(x.reshape(-1, x.shape[-1]), v.reshape(-1, v.shape[-1]), strict=True)
    ]
    return np.stack(rows).reshape(*x.shape[:-1], v.shape[-1])
