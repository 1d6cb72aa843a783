"""A batch of values: sorted, what is not finite set aside in a footer, the rest cut into cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from lightning_pce.digest._arrays import (
    Array,
    after_zero,
    arange,
    at_most,
    namespace,
    nan_to_inf,
    not_negative,
    running_sum,
    search,
    sum_of_groups,
    sums_between,
    take,
    to_float,
    to_int,
)
from lightning_pce.digest._cells import k1_edges, out_of_runs, range_factor, scaled, summarised
from lightning_pce.digest._format import Items, finite_footer, highest_of, lowest_of, new_footer
from lightning_pce.digest._sorting import sort, stable_order, to_ordered


class Entries(NamedTuple):
    """Values and what belongs to each."""

    x: Array  # [n] float32 or float64
    weights: Array | None  # [n] bool or numbers; None: one each
    columns: Array | None  # [n, R] numbers: weights in R replicates
    groups: Array | None  # [n] integers in [0, G)

    def at(self, index: Array) -> Entries:
        """The entries at an index, a mask or a slice."""
        return Entries(*(None if each is None else each[index] for each in self))


class SortedBatch(NamedTuple):
    """Entries in order; the finite ones that count are ``[start, stop)``, the footer has the others.

    Each of G groups has a part of its own, one after the other: start and stop are ``[G]``, the footer is
    ``[G, 3, 2 + R]``.
    """

    entries: Entries
    start: Array
    stop: Array
    footer: Array


def sorted_batch(entries: Entries, number: int | None) -> SortedBatch:
    """Sort entries by group, of which there may be a number, and value."""
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
            footer = finite_footer(x[0], x[-1])
            return SortedBatch(Entries(x, None, None, None), np.int64(0), np.int64(len(x)), footer)
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
    # take(), because x[tensor] would read a single index on the host.
    lowest = xp.where(some, take(x, at_most(start, last)), math.inf)
    highest = xp.where(some, take(x, not_negative(stop - 1)), -math.inf)
    return SortedBatch(Entries(x, w, columns, groups), start, stop, new_footer(refused, lowest, highest, odd))


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


def cells_of(batch: SortedBatch, cells: int) -> Items:
    """Cut a batch along scale function k1 into ``[..., cells]``; those of weight 0 hold nothing.

    If there are no more distinct values than cells each gets a cell of its own.
    """
    (x, weights, columns, _), start, stop, _ = batch
    xp, edges = namespace(x), k1_edges(cells, x)
    start, stop = start[..., None], stop[..., None]
    upto = None if weights is None else after_zero(running_sum(weights))
    if weights is None or upto is None:
        cut = goal = start + to_int(xp.round(edges * (stop - start)))
    else:
        below, above = take(upto, start), take(upto, stop)
        goal = below + edges * (above - below)
        cut = xp.minimum(xp.maximum(search(upto[1:] - weights / 2, goal), start), stop)
        cut[..., :1], cut[..., -1:] = start, stop
    cuts_apart = _numpy_cuts if xp is np else _torch_cuts
    cut = cuts_apart(x, upto, cut, goal, start, stop)
    low, high = cut[..., :-1], cut[..., 1:]
    first = to_float(take(x, at_most(low, len(x) - 1))) + 0.0  # -0.0 becomes 0.0
    last = to_float(take(x, not_negative(high - 1))) + 0.0
    if columns is not None:
        columns = sums_between(to_float(columns), cut, rows=True)
    weight = to_float(high - low) if weights is None else sums_between(weights, cut)
    # One factor for all groups: their values lie in one array.
    lowest, highest = lowest_of(batch.footer), highest_of(batch.footer)
    factor = range_factor(xp.amin(lowest), xp.amax(highest), weight.sum())
    values = scaled(to_float(x), factor)
    mass = values if weights is None else xp.where(weights > 0, values, 0.0) * weights
    return summarised(first, last, sums_between(mass, cut), weight, first < last, columns, factor)


def _numpy_cuts(x: Array, upto: Array | None, cut: Array, goal: Array, start: Array, stop: Array) -> Array:
    """Cuts moved out of runs of equal values; with few values a cut between any two that differ."""
    (begin,), (end,), cells = start, stop, len(cut) - 1
    finite = x[begin:end]
    new = np.flatnonzero(finite[1:] != finite[:-1]) + begin + 1
    if len(new) >= cells:
        return out_of_runs(x, upto, cut, goal, begin, end)
    apart = np.full(cells + 1, end)
    apart[0], apart[1 : len(new) + 1] = begin, new
    return apart


def _torch_cuts(x: Array, upto: Array | None, cut: Array, goal: Array, start: Array, stop: Array) -> Array:
    """The same for ``[..., cells + 1]`` cuts, where nothing may depend on what a value is."""
    new = torch.cat([x[1:] != x[:-1], x.new_zeros(1, dtype=torch.bool)])
    new = torch.nn.functional.pad(new, (1, 0)).index_fill(0, start.reshape(-1), True)[:-1]
    run = new.cumsum(-1)  # the number of each entry's run of equal values, in any group
    first = take(run, at_most(start, len(x) - 1))
    distinct = torch.where(stop > start, take(run, not_negative(stop - 1)) - first + 1, 0)
    apart = torch.minimum(search(run, first + arange(cut.shape[-1], x)), stop)
    apart = torch.maximum(apart, start)  # a group without a value has no run
    cut = out_of_runs(run, upto, cut, goal, start, stop)
    return torch.where(distinct < cut.shape[-1], apart, cut)
