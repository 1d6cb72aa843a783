"""Resamples of slots, the same for every record, and what a statistic is in each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce._threads import single_threaded
from lightning_pce.intervals._records import (
    Slots,
    check_level,
    checked_digest,
    checked_slots,
    is_mean,
    percentile_of,
)
from lightning_pce.intervals._slots import SLOTS, splitmix64
from lightning_pce.intervals._student import normal_mass, t_for

RESAMPLES = 1000
"""How many resamples of the slots an error bar is made of."""


@single_threaded()
def replicates(digest: Tensor, documents: Tensor, statistics: Sequence[str], *, first: int = 0) -> Tensor:
    """Statistics of resampled data: what they might have been with other documents.

    Resample r draws 128 slots with replacement, for every record, rank and machine the same: draw i is slot
    ``splitmix64(128 r + i) mod 128``. So columns of two records of the same data are paired. A percentile is
    the digest's quantile at the rank that the resample's percentile has in all data, by bins.

    Args:
        digest: ``[K + 3, 2]``.
        documents: counts of the same values, float64 ``[128, 97]``.
        statistics: of ``"mean"``, ``"p50"``, ``"p99_9"`` ...
        first: the number of the first resample; ``first=1000`` gives others, for records of other data.

    Returns:
        float64 ``[1000, len(statistics)]`` on the CPU; NaN or infinite where a slot's sum is.

    Raises:
        ValueError: if shapes or dtypes do not fit, or a statistic is unknown.

    Example:
        >>> from lightning_pce import digest, intervals
        >>> losses, documents = torch.arange(600.0), torch.arange(600) // 3
        >>> counts = intervals.add(intervals.empty(), losses, None, intervals.slots_of(documents))
        >>> values = intervals.replicates(digest.from_values(losses), counts, ["mean", "p50"])
        >>> values.shape, bool((values.std(0) > 10).all())
        (torch.Size([1000, 2]), True)
    """
    digest, slots = checked_digest(digest), checked_slots(documents)
    columns = torch.empty(RESAMPLES, len(statistics), dtype=torch.float64)
    means = [index for index, statistic in enumerate(statistics) if is_mean(statistic)]
    others = [index for index in range(len(statistics)) if index not in means]
    if means:
        columns[:, means] = _means(slots, first)[:, None]
    if others:
        p = torch.tensor([percentile_of(statistics[index]) for index in others], dtype=torch.float64)
        columns[:, others] = td.quantile(digest, ranks(slots, p, first))
    return columns


@single_threaded()
def replicate_quantiles(digest: Tensor, documents: Tensor, u: Tensor, *, first: int = 0) -> Tensor:
    """Quantile functions of resampled data, as :func:`replicates` for many percentiles.

    Args:
        digest: ``[K + 3, 2]``.
        documents: counts of the same values, float64 ``[128, 97]``.
        u: numbers in [0, 1], ``[M]``.
        first: the number of the first resample.

    Returns:
        float64 ``[1000, M]`` on the CPU.

    Raises:
        ValueError: if shapes or dtypes do not fit.

    Example:
        >>> from lightning_pce import digest, intervals
        >>> losses, documents = torch.arange(600.0), torch.arange(600) // 3
        >>> counts = intervals.add(intervals.empty(), losses, None, intervals.slots_of(documents))
        >>> curves = intervals.replicate_quantiles(
        ...     digest.from_values(losses), counts, torch.tensor([0.25, 0.5, 0.75])
        ... )
        >>> curves.shape, bool((curves.diff() > 0).all())
        (torch.Size([1000, 3]), True)
    """
    u = torch.as_tensor(u, dtype=torch.float64, device="cpu")
    if u.ndim != 1 or not bool(((u >= 0) & (u <= 1)).all()):
        raise ValueError(f"Expected argument `u` to hold numbers in [0, 1], [M], but got {u}.")
    return td.quantile(checked_digest(digest), ranks(checked_slots(documents), u, first))


def expanded(level: float, *documents: Tensor) -> float:
    """The share of resamples that an interval of ``level`` has to hold, slightly more than ``level``.

    Resamples of few slots spread less than the data do: instead of the normal distribution's mass within z it
    is its mass within ``sqrt(128/127) t``, with t of one degree less than there are slots that hold tokens.

    Args:
        level: in (0, 1).
        *documents: counts ``[128, 97]`` of one or several records; the one with the fewest slots decides.

    Returns:
        A share in (0, 1).

    Raises:
        ValueError: if shapes or dtypes do not fit, or the level is none.

    Example:
        >>> from lightning_pce import intervals
        >>> counts = intervals.empty()
        >>> counts[:30, 50] = 7.0  # 7 tokens in each of 30 slots
        >>> round(intervals.expanded(0.95, counts), 3)
        0.96
    """
    check_level(level)
    return expanded_level(level, min(checked_slots(each).occupied for each in documents))


def expanded_level(level: float, occupied: int) -> float:
    """:func:`expanded` for a number of slots that hold tokens."""
    return normal_mass(math.sqrt(SLOTS / (SLOTS - 1)) * t_for(level, max(occupied - 1, 1)))


@lru_cache(maxsize=4)
def drawn(first: int = 0) -> Tensor:
    """How often each of 1,000 resamples draws each slot, float64 ``[1000, 128]``."""
    numbers = torch.arange(first * SLOTS, (first + RESAMPLES) * SLOTS).reshape(RESAMPLES, SLOTS)
    slots = splitmix64(numbers) & (SLOTS - 1)
    times = torch.zeros(RESAMPLES, SLOTS, dtype=torch.float64)
    return times.scatter_add_(1, slots, torch.ones_like(times))


def ranks(slots: Slots, p: Tensor, first: int) -> Tensor:
    """Which share of all tokens lies below the p-quantile of each resample: p ``[P]`` -> ``[1000, P]``."""
    counts = drawn(first) @ slots.bins
    upto = counts.cumsum(-1)
    goal = p * upto[:, -1:]
    at, part = place_in_bins(counts, upto, goal)
    pooled = slots.bins.sum(0)
    return ((pooled.cumsum(0) - pooled)[at] + part * pooled[at]) / slots.total


def place_in_bins(counts: Tensor, upto: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """The bin ``[..., P]`` in which counts ``[..., 96]`` reach a goal, and the part of it that is needed."""
    at = torch.searchsorted(upto, goal.contiguous()).clamp_(max=upto.shape[-1] - 1)
    inside = counts.gather(-1, at)
    before = upto.gather(-1, at) - inside
    return at, torch.where(inside > 0, (goal - before) / inside, 0.0).clamp_(0, 1)


def _means(slots: Slots, first: int) -> Tensor:
    times = drawn(first)
    # Not of slots that a resample does not draw: 0 times infinity is no number.
    sums = torch.where(times > 0, times * slots.sums, 0.0).sum(-1)
    return sums / (times @ slots.tokens)
