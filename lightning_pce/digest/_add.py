"""A batch of values enters a digest, or the digests of several groups.

The values are sorted, on an accelerator once by group and value, and cut at fixed ranks into eight times as
many cells as there are centroids; cells and the halves of the centroids are then compressed together. A CPU
takes one group after the other, and has two short cuts for values without weights: many are counted instead
of sorted, see :mod:`lightning_pce.digest._cpu.counting`, and what is in order is cut against the digest, see
:mod:`lightning_pce.digest._cpu.cutting`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from lightning_pce.digest._arrays import (
    Array,
    after_zero,
    arange,
    at_most,
    is_numpy,
    just_above,
    namespace,
    nan_to_inf,
    not_negative,
    running_sum,
    search,
    sort,
    stable_order,
    sum_of_groups,
    take,
    to_float,
    to_int,
    to_ordered,
)
from lightning_pce.digest._centroids import (
    BOOK_ROWS,
    Items,
    compress,
    halves,
    k1_edges,
    merged_books,
    packed,
    summarised,
    sums_between,
)
from lightning_pce.digest._cpu.counting import counted
from lightning_pce.digest._cpu.cutting import Ordered, add_ordered

# A batch is cut into at most this many cells per centroid. Worst rank error of 4e6 values in batches of
# 2 ** 20: up to 8.1e-5 with 2 cells, 3.7e-5 with 8.
_CELLS_PER_CENTROID = 8

# From so many values on a CPU counts instead of sorting: a third less time for 131,072, half for 524,288.
_MANY = 1 << 17


class Entries(NamedTuple):
    """Values as they come, or in order of group and value."""

    x: Array  # [n] float32 or float64
    weights: Array | None  # [n] bool or numbers; None: one each
    columns: Array | None  # [n, R] numbers: weights in R replicates
    groups: Array | None  # [n] integers in [0, G)

    def at(self, index: Array) -> Entries:
        return Entries(*(None if each is None else each[index] for each in self))


class Sorted(NamedTuple):
    """Entries in order; the finite ones that count are ``[start, stop)``, the others are in the book.

    Each of G groups has a part of its own, one after the other: start and stop are ``[G]``, the book is
    ``[G, 3, 2 + R]``.
    """

    entries: Entries
    start: Array
    stop: Array
    book: Array


def add_batch(digest: Array, entries: Entries) -> Array:
    """``[K + 3, 2 + R]``, or with groups ``[G, K + 3, 2 + R]``, with a batch added."""
    if not is_numpy(digest):
        return _add_sorted(digest, _sorted(entries, None if entries.groups is None else len(digest)))
    if entries.groups is None:
        return _add_numpy(digest, entries)
    if not len(digest):
        return digest.copy()
    # In order of their groups only: one sort for each is faster than one by group and value.
    order = np.argsort(entries.groups.astype(np.min_scalar_type(len(digest))), kind="stable")
    cut = after_zero(np.bincount(entries.groups, minlength=len(digest)).cumsum())
    entries = entries._replace(groups=None).at(order)
    parts = (entries.at(slice(*ends)) for ends in pairwise(cut))
    return np.stack([_add_numpy(one, part) for one, part in zip(digest, parts, strict=True)])


def _add_numpy(digest: Array, entries: Entries) -> Array:
    """A batch without groups enters a NumPy digest ``[K + 3, 2 + R]``."""
    x, weights, columns, _ = entries
    if weights is not None and weights.dtype == np.bool_:
        x, columns, weights = x[weights], None if columns is None else columns[weights], None
    if not len(x):
        return digest.copy()
    if weights is not None or columns is not None:
        return _add_sorted(digest, _sorted(Entries(x, weights, columns, None), None))
    compression = len(digest) - BOOK_ROWS
    levels = counted(x, compression) if len(x) >= _MANY else None
    if levels is None:
        return _add_sorted(digest, _sorted(Entries(x, None, None, None), None))
    books = np.stack([digest[compression:], _finite_book(x.min(), x.max())])
    return np.concatenate([add_ordered(digest, levels), merged_books(books)])


def _add_sorted(digest: Array, batch: Sorted) -> Array:
    xp = namespace(digest)
    compression = digest.shape[-2] - BOOK_ROWS
    x, weights, columns, _ = batch.entries
    book = merged_books(xp.stack([digest[..., compression:, :], batch.book]))
    if xp is np and not batch.stop > batch.start:
        return np.concatenate([digest[:compression], book])
    if xp is np and weights is None and columns is None and digest[:compression, 1].min() < 0:
        return np.concatenate([add_ordered(digest, Ordered(x[batch.start : batch.stop])), book])
    own, new = halves(digest), _cells(batch, min(len(x), _CELLS_PER_CENTROID * compression))
    means, weight, blend = (xp.concatenate(pair, -1) for pair in zip(own[:3], new[:3], strict=True))
    replicates = None if columns is None else xp.concatenate([own.columns, new.columns], -2)
    return packed(compress(Items(means, weight, blend, replicates), compression), book)


def _sorted(entries: Entries, number: int | None) -> Sorted:
    """Sort by group and value, and keep the book of what is not finite or does not count."""
    x, weights, columns, groups = entries
    xp = namespace(x)
    refused, present, w = 0.0, weights, None
    if weights is not None and weights.dtype not in (np.bool_, torch.bool):
        weights = to_float(weights)
        bad = ~((weights >= 0) & (weights < math.inf))
        refused, w = sum_of_groups(to_float(bad), groups, number), xp.where(bad, 0.0, weights)
        present = w > 0
    if present is not None and xp is np and present.any():
        if not present.all():
            x, w, columns, groups = Entries(x, w, columns, groups).at(present)
        present = None
    plain = w is None and columns is None and groups is None
    if plain and present is None and xp is np:
        x = sort(x)
        if -math.inf < x[0] and x[-1] < math.inf:
            return Sorted(
                Entries(x, None, None, None), np.int64(0), np.int64(len(x)), _finite_book(x[0], x[-1])
            )
    nan = x != x
    if present is not None:
        nan, x = nan & present, xp.where(present, x, math.nan)
    low, high = x == -math.inf, x == math.inf
    begin = sum_of_groups(to_int(low), groups, number)
    start = begin if groups is None else begin + _offsets(groups, number)
    stop = start - begin + sum_of_groups(to_int(x < math.inf), groups, number)
    odd = xp.stack([_weight(flags, w, columns, groups, number) for flags in (nan, low, high)], -2)
    if plain:
        x = nan_to_inf(sort(x))
    else:
        x, w, columns, groups = Entries(x, w, columns, groups).at(_order(x, groups))
        x = nan_to_inf(x)
    some, last = stop > start, len(x) - 1
    outer = xp.zeros_like(odd[..., :1])
    # take(), because x[tensor] would read a single index on the host.
    outer[..., 0, 0] = refused
    outer[..., 1, 0] = xp.where(some, take(x, at_most(start, last)), math.inf) + 0.0
    outer[..., 2, 0] = xp.where(some, take(x, not_negative(stop - 1)), -math.inf) + 0.0
    return Sorted(Entries(x, w, columns, groups), start, stop, xp.concatenate([outer, odd], -1))


def _finite_book(lowest: float, highest: float) -> Array:
    """``[3, 2]``: the book of finite values without weights."""
    return np.array([[0.0, 0.0], [lowest + 0.0, 0.0], [highest + 0.0, 0.0]])  # -0.0 becomes 0.0


def _offsets(groups: Array, number: int | None) -> Array:
    """Where the entries of each group begin, once they are in order."""
    sizes = sum_of_groups(to_int(groups == groups), groups, number)
    return sizes.cumsum(-1) - sizes


def _weight(
    flags: Array, weights: Array | None, columns: Array | None, groups: Array | None, number: int | None
) -> Array:
    """The weight of flagged entries, and that in each replicate: ``[1 + R]`` or ``[G, 1 + R]``."""
    xp = namespace(flags)
    total = sum_of_groups(
        to_float(flags) if weights is None else xp.where(flags, weights, 0.0), groups, number
    )
    if columns is None:
        return total[..., None]
    replicates = sum_of_groups(xp.where(flags[:, None], to_float(columns), 0.0), groups, number)
    return xp.concatenate([total[..., None], replicates], -1)


def _order(x: Array, groups: Array | None) -> Array:
    """By group and value, NaN last in each group."""
    xp = namespace(x)
    if x.dtype in (np.float32, torch.float32):
        key = to_ordered(xp.where(x == x, x, math.nan))  # a NaN with a sign would come first
        return stable_order(key if groups is None else (groups << 32) + key)
    order = stable_order(x)
    return order if groups is None else order[stable_order(groups[order])]


def _cells(batch: Sorted, cells: int) -> Items:
    """Cut sorted entries along scale function k1 into ``[..., cells]``; those of weight 0 hold nothing.

    If there are no more distinct values than cells each gets a cell of its own.
    """
    (x, weights, columns, _), start, stop, _ = batch
    xp, edges = namespace(x), k1_edges(cells, x)
    start, stop = start[..., None], stop[..., None]
    if weights is None:
        cut = start + to_int(xp.round(edges * (stop - start)))
    else:
        upto = running_sum(weights)
        below, above = take(after_zero(upto), start), take(after_zero(upto), stop)
        cut = search(upto - weights / 2, below + edges * (above - below))
        cut = xp.minimum(xp.maximum(cut, start), stop)
        cut[..., :1], cut[..., -1:] = start, stop
    cut = _numpy_cuts(x, cut, start, stop) if xp is np else _torch_cuts(x, cut, start, stop)
    low, high = cut[..., :-1], cut[..., 1:]
    first = to_float(take(x, at_most(low, len(x) - 1))) + 0.0  # -0.0 becomes 0.0
    last = to_float(take(x, not_negative(high - 1))) + 0.0
    if columns is not None:
        columns = sums_between(to_float(columns), cut, rows=True)
    if weights is None:
        sums, weight = sums_between(to_float(x), cut), to_float(high - low)
    else:
        mass = to_float(xp.where(weights > 0, x, 0.0)) * weights
        sums, weight = sums_between(mass, cut), sums_between(weights, cut)
    return summarised(first, last, sums, weight, first < last, columns)


def _numpy_cuts(x: Array, cut: Array, start: Array, stop: Array) -> Array:
    """Cuts moved out of runs of equal values; with few values a cut between any two that differ."""
    cells, (start,), (stop,) = len(cut) - 1, start, stop
    finite = x[start:stop]
    new = np.flatnonzero(finite[1:] != finite[:-1]) + start + 1
    if len(new) < cells:
        cut = np.full(cells + 1, stop)
        cut[0], cut[1 : len(new) + 1] = start, new
        return cut
    inner = (cut > start) & (cut < stop)
    tied = np.flatnonzero(inner)[x[cut[inner] - 1] == x[cut[inner]]]
    if len(tied):
        value, at = x[cut[tied]], cut[tied]
        left, right = search(x, value), search(x, just_above(value))
        cut[tied] = np.where(at - left <= right - at, left, right)
    return cut


def _torch_cuts(x: Array, cut: Array, start: Array, stop: Array) -> Array:
    """The same for ``[..., cells + 1]`` cuts, where nothing may depend on what a value is."""
    new = torch.cat([x[1:] != x[:-1], x.new_zeros(1, dtype=torch.bool)])
    new = torch.nn.functional.pad(new, (1, 0)).index_fill(0, start.reshape(-1), True)[:-1]
    number = new.cumsum(-1)  # of each entry's run of equal values
    first = take(number, at_most(start, len(x) - 1))
    distinct = torch.where(stop > start, take(number, not_negative(stop - 1)) - first + 1, 0)
    between = torch.minimum(search(number, first + arange(cut.shape[-1], x)), stop)
    between = torch.maximum(between, start)  # of a group without a value there is no run
    run = take(number, at_most(cut, len(x) - 1))
    left, right = torch.maximum(search(number, run), start), torch.minimum(search(number, run + 1), stop)
    nearer = torch.where(cut - left <= right - cut, left, right)
    cut = torch.where((cut > start) & (cut < stop), nearer, cut)
    return torch.where(distinct < cut.shape[-1], between, cut)
