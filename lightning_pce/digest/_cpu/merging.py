"""Many digests become one by whole centroids, which are counted into cells instead of sorted.

A cell first gets the centroids whose means lie in it; then what they reach across the cuts is put right.
Between neighbours in a digest the cdf counts as a straight line, which takes digests of many centroids.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from lightning_pce.digest._arrays import Array, after_zero, between
from lightning_pce.digest._cells import k1_edges, out_of_runs, range_factor, summarised
from lightning_pce.digest._centroids import merge_halves
from lightning_pce.digest._cpu.counting import (
    FEWER_DIGITS,
    crowded_levels,
    edges_of,
    levels_of,
    scale_of,
    sums_at,
)
from lightning_pce.digest._cpu.packing import packed_to_the_front
from lightning_pce.digest._format import (
    compression_of,
    footer_of,
    highest_of,
    lowest_of,
    means_of,
    merged_footers,
    replicates_of,
    split_columns,
)
from lightning_pce.digest._heavy import goals_beside_heavy
from lightning_pce.digest._sorting import order_of_means

# So many digests, and so many centroids for each that is wanted, are merged by whole centroids, if they have
# at least so many centroids.
_MANY, _LEAST = 32, 256
# From four times so many on they are merged in parts, whose arrays stay in the cache.
_PART = 128
# When a level of centroids is crowded, as in counting.py; here what lies across a cut is put right.
_PART_OF_CELL, _PART_OF_ALL = 1.0, 2.0**-12
# So many digests at a time are compared with the cuts.
_AT_ONCE = 32


class _Partition(NamedTuple):
    """Centroids in any order, divided by their means into S cells that all hold something."""

    cell: Array  # [N] where each lies
    at: Array  # [S - 1] the values between cells
    weights: Array  # [S] what each holds


class _Contents(NamedTuple):
    """What lies in each of S cells: the outermost values, sum and weight of all, and whether they differ."""

    first: Array
    last: Array
    sums: Array
    weights: Array
    blend: Array


def merge_many(digests: Array, compression: int) -> Array | None:
    """Digests ``[M, ..., K + 3, 2]`` become one; None if they are too few, too small, or perhaps exact."""
    if len(digests) < _MANY or replicates_of(digests) or not digests.size:
        return None
    if digests.ndim > 3:
        return np.stack([_merged(digests[:, i], compression) for i in range(digests.shape[1])])
    if len(digests) < 4 * _PART:
        return _merge_whole(digests, compression)
    parts = [
        _merged(digests[start : start + _PART], compression_of(digests))
        for start in range(0, len(digests), _PART)
    ]
    return _merged(np.stack(parts), compression)


def _merged(digests: Array, compression: int) -> Array:
    merged = merge_many(digests, compression)
    return merge_halves(digests, compression) if merged is None else merged


def _merge_whole(digests: Array, compression: int) -> Array | None:
    # In an order of their own, so that the stack's mostly does not matter. In the last bit it does where
    # means are equal over digests, and of stacks that are merged in parts.
    by = np.lexsort(means_of(digests)[:, :: digests.shape[1] // 8].T)
    # The footer stays, as rows that hold nothing: at a distance of a power of two, rows would share a place
    # in the cache, and random reads take three times as long.
    means, signed = split_columns(digests[by])
    absent = signed == 0
    used = signed.size - np.count_nonzero(absent)
    few = used < _MANY * compression or min(compression, compression_of(digests)) < _LEAST
    if few or signed.min() >= 0:  # without a blend perhaps few values: exact
        return None
    footer = merged_footers(footer_of(digests))
    lowest, highest = lowest_of(footer), highest_of(footer)
    weights = np.abs(signed)
    if range_factor(lowest, highest, weights.sum()) < 1:  # sums would overflow
        return None
    means[absent] = lowest  # in the first cell
    partition = _cut_by_levels(means.reshape(-1), weights.reshape(-1), compression)
    if partition is None:
        order, ascending = order_of_means(np.where(absent, math.inf, means).reshape(-1))
        order, ascending = order[:used], ascending[:used]
        partition = _cut_by_order(order, ascending, weights.reshape(-1), compression, len(digests) // 4)
    counts = _counts(partition, len(digests))
    counts[:, 0] -= absent.sum(1)
    cells = _contents(partition, means, weights, signed, counts.sum(0))
    at = between(lowest, np.minimum(np.maximum(partition.at, lowest), highest), highest)
    means[absent] = math.inf
    cells = _exchanged(cells, at, _across(counts, at[1:-1], means, weights, signed))
    return packed_to_the_front(summarised(*cells), compression, footer)


def _cut_by_levels(means: Array, weights: Array, compression: int) -> _Partition | None:
    """Cells of whole levels, see :mod:`lightning_pce.digest._cpu.counting`; None if some are crowded."""
    scale, size = scale_of(means, FEWER_DIGITS), 1 << FEWER_DIGITS
    if scale is None:
        return None
    at = levels_of(torch.from_numpy(means), scale).long()
    all_mass = sums_at(at, torch.from_numpy(weights), size)
    used = np.flatnonzero(all_mass != 0)  # of flags: four times as fast
    level, mass = at.numpy(), all_mass.take(used)
    upto = after_zero(mass.cumsum())
    crowded = crowded_levels(mass, upto, compression, _PART_OF_CELL, _PART_OF_ALL)
    if crowded[0]:  # unless by the smallest value and no others: mostly zeros
        crowded[0] = np.count_nonzero(level <= used[0]) != np.count_nonzero(means == means.min())
    if crowded.any():
        return None
    goal = k1_edges(compression, weights)[1:-1] * upto[-1]
    middle = (upto[1:] + upto[:-1]) / 2
    cut = np.searchsorted(middle, goal)
    near, goal = goals_beside_heavy(between(0, upto[cut], upto[-1]), compression)
    cut[near - 1] = np.searchsorted(middle, goal)
    cut = _distinct(cut, len(used))
    ends, starts = edges_of(used[cut - 1] + 1, scale), edges_of(used[cut], scale)
    cells = np.repeat(np.arange(len(cut) + 1), np.diff(between(0, used[cut], size)))
    return _Partition(cells.take(level), (ends + starts) / 2, np.add.reduceat(mass, between(0, cut, 0)[:-1]))


def _cut_by_order(order: Array, means: Array, weights: Array, compression: int, block: int) -> _Partition:
    """Cells of the centroids that hold something, in the order of their means, cut out of runs of equal ones.

    At multiples of a block, so that running sums and searches are short, and beside each that is heavy.
    """
    number, weights = len(weights), weights.take(order)
    heavy = np.flatnonzero(weights > weights.sum() / (4 * compression))
    beside = np.unique(np.concatenate([heavy, heavy + 1]))
    beside = beside[(beside % block > 0) & (beside < len(weights))]
    edges = np.insert(np.arange(0, len(weights), block), beside // block + 1, beside)
    blocks = np.add.reduceat(weights, edges)
    upto = after_zero(blocks.cumsum())
    middle, edges = upto[1:] - blocks / 2, np.append(edges, len(weights))
    goal = k1_edges(compression, weights)[1:-1] * upto[-1]
    place = np.searchsorted(middle, goal)
    cut, before = edges[place], upto[place]
    inner = _distinct(cut, len(weights))
    running = None
    if (means[inner - 1] == means[inner]).any():
        running = after_zero(weights.cumsum())
        cut = out_of_runs(means, running, cut, goal, 0, len(weights))
        before = running[cut]
    near, goal = goals_beside_heavy(between(0, before, upto[-1]), compression)
    if len(near):
        running = after_zero(weights.cumsum()) if running is None else running
        # To the centroid: those beside a heavy value lie in the same places in each digest, in clusters.
        moved = np.searchsorted(running, goal)
        moved -= goal - running[moved - 1] < running[moved] - goal
        cut[near - 1] = out_of_runs(means, running, moved, goal, 0, len(weights))
        cut = np.maximum.accumulate(cut)
    cut = _distinct(cut, len(weights))
    cell = np.zeros(number, dtype=np.intp)
    cell[order] = np.repeat(np.arange(len(cut) + 1), np.diff(between(0, cut, len(order))))
    return _Partition(
        cell, means[cut - 1] / 2 + means[cut] / 2, np.add.reduceat(weights, between(0, cut, 0)[:-1])
    )


def _distinct(cut: Array, stop: int) -> Array:
    """Ascending cuts inside (0, stop), each once."""
    cut = cut[(cut > 0) & (cut < stop)]
    return cut[np.append(True, cut[1:] > cut[:-1])[: len(cut)]]


def _counts(partition: _Partition, number: int) -> Array:
    """How many centroids each of a number of digests has in each cell: ``[M, S]``."""
    cells = len(partition.at) + 1
    place = partition.cell.reshape(number, -1) + np.arange(number)[:, None] * cells
    counts = torch.from_numpy(place.reshape(-1)).bincount(minlength=number * cells)
    return counts.numpy().reshape(number, cells)


def _contents(
    partition: _Partition, means: Array, weights: Array, signed: Array, members: Array
) -> _Contents:
    """What lies in each cell; of members so many hold something."""
    with np.errstate(over="ignore"):  # the mean is held between the outermost values
        mass = (means * weights).reshape(-1)
    sums = sums_at(torch.from_numpy(partition.cell), torch.from_numpy(mass), len(members))
    atoms = np.flatnonzero(signed > 0)
    value, at = means.reshape(-1).take(atoms), partition.cell.take(atoms)
    first, last = np.full((2, len(members)), [[math.inf], [-math.inf]])
    np.minimum.at(first, at, value)
    np.maximum.at(last, at, value)
    # Equal means in one cell: an atom, unless one of them is a blend.
    blend = (first != last) | (np.bincount(at, minlength=len(members)) < members)
    return _Contents(first, last, sums, partition.weights, blend)


def _exchanged(cells: _Contents, at: Array, across: tuple[Array, Array]) -> _Contents:
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


def _across(counts: Array, at: Array, means: Array, weights: Array, signed: Array) -> tuple[Array, Array]:
    """The weight below each inner cut of centroids above it, less the reverse; and its moment about the cut.

    Between neighbours in a digest ``[M, N]`` the cdf counts as a straight line. Half of 64 digests at once:
    where the allocator gives memory back page faults took a third of the merge.
    """
    weight, moment = np.zeros((2, len(at)))
    for i in range(0, len(means), _AT_ONCE):
        part = slice(i, i + _AT_ONCE)
        edge, slope = _lines(means[part].reshape(-1), weights[part].reshape(-1), signed[part].reshape(-1))
        # How many centroids each digest has below each cut, and so which of all lines crosses it.
        before = counts[part, :-1]
        before[:, 0] += np.arange(len(before)) * means.shape[1] - 1
        line = before.cumsum(1)
        beyond = edge.take(line)
        np.subtract(at, beyond, out=beyond)
        moved = slope.take(line)
        moved *= beyond
        weight += moved.sum(0)
        moved *= beyond
        moment += moved.sum(0)
    return weight, moment / 2


def _lines(means: Array, weights: Array, signed: Array) -> tuple[Array, Array]:
    """From each centroid to the next: the value where they meet, and the weight per value.

    Both are 0 where there is no line: behind the last of a digest follows what has mean +inf.
    """
    width = weights - signed
    width *= 0.25  # half the weight of a blend; atoms have none
    slope = np.empty(len(means))
    slope[-1] = 0
    np.add(width[:-1], width[1:], out=slope[:-1])
    with np.errstate(all="ignore"):
        slope[:-1] /= means[1:] - means[:-1]
        edge = np.divide(width, slope, out=width)
        edge += means
        none = ~((slope > 0) & (slope < math.inf))
    for line in (edge, slope):
        np.copyto(line, 0, where=none)
    return edge, slope
