"""Many digests become one."""

from __future__ import annotations

import math

import numpy as np

from lightning_pce._arrays import Array, between, is_numpy, namespace, segment_sums
from lightning_pce._centroids import (
    BOOK_ROWS,
    Items,
    compress,
    halves,
    k1_edges,
    merged_books,
    order_of_many,
    packed,
    summarised,
)

# So many digests at once are merged by whole centroids, if they have so many for each that is wanted: each is
# a small part of what it lies in. (Of 64 digests of 156,250 values in batches of 512 the worst rank error
# would be 5.2e-5; with halves, which are four times as slow, it is 2.5e-5.)
_MANY, _EACH = 128, 32
# Whole centroids are cut at multiples of this many, and beside each that is heavy.
_BLOCK = 8


def merge_stack(digests: Array, compression: int | None = None) -> Array:
    """Digests ``[M, ..., K + 3, C]`` -> one ``[..., K + 3, C]``, or with another number of centroids."""
    if len(digests) < _MANY or not is_numpy(digests) or digests.shape[-1] > 2:
        return _merge_items(digests, compression)
    if len(digests) >= 2 * _MANY:
        parts = range(0, len(digests), _MANY)
        return merge_stack(np.stack([merge_stack(digests[i : i + _MANY]) for i in parts]), compression)
    if digests.ndim > 3:
        inner = [merge_stack(digests[:, i], compression) for i in range(digests.shape[1])]
        return np.stack(inner) if inner else _merge_items(digests, compression)
    return _merge_whole(digests, compression or digests.shape[-2] - BOOK_ROWS)


def _merge_items(digests: Array, compression: int | None) -> Array:
    """By halves of the centroids."""
    xp = namespace(digests)
    book = merged_books(digests[..., -BOOK_ROWS:, :])
    compression = digests.shape[-2] - BOOK_ROWS if compression is None else compression
    parts = halves(digests)
    lead, columns = digests.shape[1:-2], parts.columns
    means, weights, blend = (xp.moveaxis(part, 0, -2).reshape(*lead, -1) for part in parts[:3])
    if columns is not None:
        columns = xp.moveaxis(columns, 0, -3).reshape(*lead, -1, columns.shape[-1])
    return packed(compress(Items(means, weights, blend, columns), compression), book)


def _merge_whole(digests: Array, compression: int) -> Array:
    """NumPy digests ``[M, K + 3, 2]`` by whole centroids, cut at multiples of a few of them.

    So running sums and searches are short.
    """
    rows = digests[:, :-BOOK_ROWS]
    means, signed = rows[..., 0].reshape(-1), rows[..., 1].reshape(-1)
    used = np.count_nonzero(signed)
    if used < _EACH * compression or signed.min() >= 0:  # all atoms are perhaps few values: exact
        return _merge_items(digests, compression)
    if used < len(signed):
        means[signed == 0] = math.inf
    order, means = order_of_many(means)
    means, signed = means[:used], signed.take(order[:used])
    weights = np.abs(signed)
    cut = _block_cuts(means, weights, compression)
    low, high = cut[:-1], cut[1:] - 1
    first, last = means[low], means[high]
    # Equal means in one cell: an atom, unless one of them is a blend.
    blend = (first != last) | (signed[low] < 0) | (signed[high] < 0)
    mass = np.multiply(means, weights, out=means)
    cells = summarised(first, last, segment_sums(mass, cut), segment_sums(weights, cut), blend)
    merged = np.zeros((compression + BOOK_ROWS, 2))
    merged[: len(first), 0] = cells.means
    merged[: len(first), 1] = np.where(cells.blend, -cells.weights, cells.weights)
    merged[compression:] = merged_books(digests[:, -BOOK_ROWS:])
    return merged


def _block_cuts(means: Array, weights: Array, compression: int) -> Array:
    """Where to cut ordered centroids into at most ``compression`` cells, none of them empty."""
    heavy = np.flatnonzero(weights > weights.sum() / (4 * compression))
    beside = np.unique(np.concatenate([heavy, heavy + 1]))
    beside = beside[(beside % _BLOCK > 0) & (beside < len(weights))]
    edges = np.insert(np.arange(0, len(weights), _BLOCK), beside // _BLOCK + 1, beside)
    blocks = np.add.reduceat(weights, edges)
    upto = blocks.cumsum()
    goal = k1_edges(compression, weights)[1:-1] * upto[-1]
    cut = between(0, edges, len(weights))[1 + np.searchsorted(upto - blocks / 2, goal)]
    cut = cut[(cut > 0) & (cut < len(weights))]
    tied = means[cut - 1] == means[cut]
    if tied.any():  # into the end nearer of a run of equal means
        inner, ends = cut[tied], np.flatnonzero(means[1:] != means[:-1]) + 1
        ends = between(0, ends, len(means))
        after = np.searchsorted(ends, inner)
        left, right = ends[after - 1], ends[after]
        cut[tied] = np.where(inner - left <= right - inner, left, right)
    cut = between(0, cut, len(weights))
    return cut[np.append(True, cut[1:] > cut[:-1])]
