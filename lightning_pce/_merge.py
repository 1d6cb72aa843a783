"""Many digests become one."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lightning_pce._arrays import Array, between, is_numpy, namespace
from lightning_pce._centroids import (
    BOOK_ROWS,
    HIGHEST,
    LOWEST,
    Items,
    compress,
    halves,
    k1_edges,
    merged_books,
    order_of_many,
    packed,
    summarised,
)

# Digests with so many centroids for each that is wanted are merged by whole centroids. Between those of
# smaller digests the cdf is no straight line.
_EACH, _LEAST = 32, 256
# From four times so many on they are merged in parts, whose arrays stay in the cache.
_PART = 128


class _Cells(NamedTuple):
    """Ordered centroids between cuts, ``[S]`` each but for the cuts, ``[S + 1]``."""

    cut: Array
    first: Array  # the mean of the first and of the last centroid
    last: Array
    sums: Array
    weights: Array
    blend: Array


def merge_stack(digests: Array, compression: int | None = None) -> Array:
    """Digests ``[M, ..., K + 3, C]`` -> one ``[..., K + 3, C]``, or with another number of centroids."""
    if len(digests) < _EACH or not is_numpy(digests) or digests.shape[-1] > 2:
        return _merge_items(digests, compression)
    if digests.ndim > 3:
        inner = [merge_stack(digests[:, i], compression) for i in range(digests.shape[1])]
        return np.stack(inner) if inner else _merge_items(digests, compression)
    if len(digests) >= 4 * _PART:
        parts = [merge_stack(digests[i : i + _PART]) for i in range(0, len(digests), _PART)]
        return merge_stack(np.stack(parts), compression)
    return _merge_whole(digests, digests.shape[-2] - BOOK_ROWS if compression is None else compression)


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
    """NumPy digests ``[M, K + 3, 2]`` by whole centroids; then what they reach across cuts is put right."""
    # The book stays, as rows that hold nothing: at a distance of a power of two, rows would share a place in
    # the cache, and random reads take three times as long.
    means, signed = digests[..., 0].copy(), digests[..., 1].copy()
    signed[:, -BOOK_ROWS:] = 0
    absent = signed == 0
    used = signed.size - np.count_nonzero(absent)
    if used < _EACH * compression or min(compression, digests.shape[1]) < _LEAST:
        return _merge_items(digests, compression)
    means[absent] = math.inf
    order, ordered = order_of_many(means.reshape(-1))
    order, ordered = order[:used], ordered[:used]
    weights = signed.reshape(-1).take(order)
    blend = weights < 0
    if not blend.any():  # perhaps few values: exact
        return _merge_items(digests, compression)
    weights = np.abs(weights, out=weights)
    cells = _cells(ordered, weights, blend, _block_cuts(ordered, weights, compression, len(digests) // 4))
    book = merged_books(digests[:, -BOOK_ROWS:])
    at = (ordered[cells.cut[1:-1] - 1] + ordered[cells.cut[1:-1]]) / 2
    at = between(book[LOWEST, 0], at, book[HIGHEST, 0])
    cells = _exchanged(cells, at, _across(cells.cut, at[1:-1], means, signed, order))
    items = summarised(cells.first, cells.last, cells.sums, cells.weights, cells.blend)
    merged = np.zeros((compression + BOOK_ROWS, 2))
    merged[: len(items.means), 0] = items.means
    merged[: len(items.means), 1] = np.where(items.blend, -items.weights, items.weights)
    merged[compression:] = book
    return merged


def _block_cuts(means: Array, weights: Array, compression: int, block: int) -> Array:
    """Where to cut ordered centroids into at most ``compression`` cells, none of them empty.

    At multiples of a block, so that running sums and searches are short, and beside each that is heavy.
    """
    heavy = np.flatnonzero(weights > weights.sum() / (4 * compression))
    beside = np.unique(np.concatenate([heavy, heavy + 1]))
    beside = beside[(beside % block > 0) & (beside < len(weights))]
    edges = np.insert(np.arange(0, len(weights), block), beside // block + 1, beside)
    blocks = np.add.reduceat(weights, edges)
    upto = blocks.cumsum()
    goal = k1_edges(compression, weights)[1:-1] * upto[-1]
    cut = between(0, edges, len(weights))[1 + np.searchsorted(upto - blocks / 2, goal)]
    cut = cut[(cut > 0) & (cut < len(weights))]
    tied = means[cut - 1] == means[cut]
    if tied.any():  # into the end nearer of a run of equal means
        inner, value = cut[tied], means[cut[tied]]
        left, right = np.searchsorted(means, value), np.searchsorted(means, value, side="right")
        cut[tied] = np.where(inner - left <= right - inner, left, right)
    cut = between(0, cut, len(weights))
    return cut[np.append(True, cut[1:] > cut[:-1])]


def _cells(means: Array, weights: Array, blend: Array, cut: Array) -> _Cells:
    low, high = cut[:-1], cut[1:] - 1
    first, last = means[low], means[high]
    # Equal means in one cell: an atom, unless one of them is a blend.
    blended = (first != last) | blend[low] | blend[high]
    with np.errstate(over="ignore"):  # the mean is held between the outermost values
        sums = np.add.reduceat(means * weights, low)
    return _Cells(cut, first, last, sums, np.add.reduceat(weights, low), blended)


def _exchanged(cells: _Cells, at: Array, across: tuple[Array, Array]) -> _Cells:
    """Cells that hold what lies between the values ``at [S + 1]``, not the centroids whose means do.

    Atoms take no part, nor does a cell that would keep less than half its weight or get a mean outside.
    """
    flow, moment = across
    if (cells.weights == np.rint(cells.weights)).all():
        flow = np.rint(flow)  # counts stay exact
    with np.errstate(all="ignore"):  # what is not finite fails the tests
        moment = at[1:-1] * flow - moment
        flows, before = cells.blend[1:] & cells.blend[:-1], None
        while before is None or (flows != before).any():
            weights = cells.weights + np.diff(between(0, np.where(flows, flow, 0), 0))
            sums = cells.sums + np.diff(between(0, np.where(flows, moment, 0), 0))
            mean = sums / weights
            fine = (weights >= cells.weights / 2) & (mean >= at[:-1]) & (mean <= at[1:])
            flows, before = flows & fine[1:] & fine[:-1], flows
    first, last = np.where(cells.blend, [at[:-1], at[1:]], [cells.first, cells.last])
    return cells._replace(first=first, last=last, sums=sums, weights=weights)


def _across(cut: Array, at: Array, means: Array, signed: Array, order: Array) -> tuple[Array, Array]:
    """The weight below each inner cut of centroids above it, less the reverse; and its moment about the cut.

    Between neighbours in a digest ``[M, N]`` the cdf is taken for a straight line. Written for few passes
    over memory.
    """
    (number, size), cells = means.shape, len(cut) - 1
    cell = order // size
    cell *= cells
    cell += np.repeat(np.arange(cells), np.diff(cut))
    # How many centroids each digest has below each cut, and so which of its lines crosses it.
    line = np.bincount(cell, minlength=number * cells).reshape(number, cells).cumsum(1)[:, :-1]
    # Digests in an order of their own, so that the stack's mostly does not matter. In the last bit it does
    # where means are equal over digests, and of stacks that are merged in parts.
    by = np.lexsort(means[:, :: size // 8].T)
    line = line[by] + (by * size - 1)[:, None]
    edge, slope = _lines(means.reshape(-1), signed.reshape(-1))
    beyond = edge.take(line)
    np.subtract(at, beyond, out=beyond)
    moved = slope.take(line)
    moved *= beyond
    weight = moved.sum(0)
    moved *= beyond
    return weight, moved.sum(0) / 2


def _lines(means: Array, signed: Array) -> tuple[Array, Array]:
    """From each centroid to the next: the value where they meet, and the weight per value.

    Both are 0 where there is no line: behind the last of a digest follows what has mean +inf.
    """
    width = signed / -2
    np.maximum(width, 0, out=width)  # half the weight of a blend; atoms have none
    slope, gap = np.zeros((2, len(means)))
    np.add(width[:-1], width[1:], out=slope[:-1])
    with np.errstate(all="ignore"):
        np.subtract(means[1:], means[:-1], out=gap[:-1])
        slope /= gap
        edge = np.divide(width, slope, out=width)
        edge += means
        none = ~((slope > 0) & (slope < math.inf))
    for line in (edge, slope):
        np.copyto(line, 0, where=none)
    return edge, slope
