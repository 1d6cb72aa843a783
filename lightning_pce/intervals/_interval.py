"""Intervals of percentiles and the mean of one record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce._threads import single_threaded
from lightning_pce.intervals._errors import bootstrap_t, linear, rank_errors
from lightning_pce.intervals._reasons import (
    EXTREME,
    INFINITE,
    LIMIT,
    ONE_SLOT,
    few_slots,
    why_no_interval,
    wide_bins,
)
from lightning_pce.intervals._records import Slots, check_level, checked_record, is_mean, percentile_of
from lightning_pce.intervals._student import t_for


class Interval(NamedTuple):
    """A number and its error bar."""

    value: float
    """The statistic, or its difference."""
    low: float
    """The lower end; NaN if there is no interval."""
    high: float
    """The upper end; NaN if there is no interval."""
    paired: bool | None
    """Whether a difference is that of the same documents; None of a single record."""
    reason: str | None
    """Why there is no interval or it is not paired, or a word of caution; None if there is nothing to say."""


class Ends(NamedTuple):
    """The two ends of an interval, and what there is to say."""

    low: float = math.nan
    high: float = math.nan
    reason: str | None = None


def interval(digest: Tensor, documents: Tensor | None, statistic: str, level: float = 0.95) -> Interval:
    """The interval of a percentile or the mean; slots of documents are what was drawn independently.

    A percentile's is Woodruff's: the share of tokens below it has an error over slots, and the digest turns
    both ends of that into values. The mean's is a bootstrap-t over slots.

    Args:
        digest: ``[K + 3, 2]``.
        documents: counts of the same values, float64 ``[128, 97]``, see :func:`add`; None if there are none.
        statistic: ``"mean"``, ``"p50"``, ``"p99_9"`` ...
        level: how often such an interval is to hold the truth, in (0, 1). A thousand resamples say little
            beyond 0.99.

    Returns:
        An :class:`Interval` in the unit of the values. It has no ends (NaN), and says why, if fewer than 20
        slots hold tokens or a mean is infinite. Nothing that the data may hold raises.

    Raises:
        ValueError: if shapes or dtypes do not fit, or statistic or level are none.

    Example:
        >>> from lightning_pce import digest, intervals
        >>> losses, documents = torch.arange(600.0), torch.arange(600) // 3
        >>> counts = intervals.add(intervals.empty(), losses, None, intervals.slots_of(documents))
        >>> median = intervals.interval(digest.from_values(losses), counts, "p50")
        >>> median.value, median.low < 270 < 330 < median.high
        (299.5, True)
    """
    return intervals(digest, documents, [statistic], level)[statistic]


@single_threaded()
def intervals(
    digest: Tensor, documents: Tensor | None, statistics: Sequence[str], level: float = 0.95
) -> dict[str, Interval]:
    """:func:`interval` of several statistics, by their names, for little more than one costs.

    Args:
        digest: ``[K + 3, 2]``.
        documents: counts of the same values, float64 ``[128, 97]``; None if there are none.
        statistics: of ``"mean"``, ``"p50"``, ``"p99_9"`` ...
        level: how often such an interval is to hold the truth, in (0, 1).

    Returns:
        An :class:`Interval` for each name, in the unit of the values.

    Raises:
        ValueError: as :func:`interval`.

    Example:
        >>> from lightning_pce import digest, intervals
        >>> found = intervals.intervals(digest.from_values(torch.ones(3)), None, ["mean", "p50"])
        >>> found["mean"]
        Interval(value=1.0, low=nan, high=nan, paired=None, reason='no documents were given')
    """
    check_level(level)
    record = checked_record("record", (digest, documents))
    values, none = values_of(record.digest, statistics), why_no_interval(record)
    if record.slots is None or none is not None:
        return with_ends(values, dict.fromkeys(values, Ends()), None, none)
    ends = _of_percentiles(record.digest, record.slots, percentiles_in(values), level)
    if "mean" in values:
        ends["mean"] = _of_mean(values["mean"], record.slots, level)
    return with_ends(values, ends, None, few_slots(record.slots))


def values_of(digest: Tensor, statistics: Iterable[str]) -> dict[str, float]:
    """Each statistic of a digest ``[K + 3, 2]``, or a ``ValueError`` if there is no such statistic."""
    names = list(statistics)
    shares = percentiles_in(names)
    quantiles = td.quantile(digest, torch.tensor(list(shares.values()), dtype=torch.float64)).tolist()
    values = dict(zip(shares, quantiles, strict=True))
    return {name: float(td.mean(digest)) if is_mean(name) else values[name] for name in names}


def percentiles_in(statistics: Iterable[str]) -> dict[str, float]:
    """The share of tokens below each percentile among statistics, by its name."""
    return {name: percentile_of(name) for name in statistics if not is_mean(name)}


def with_ends(
    values: Mapping[str, float], ends: Mapping[str, Ends], paired: bool | None, *remarks: str | None
) -> dict[str, Interval]:
    """Intervals, each with what there is to say of it and of all."""
    found = {}
    for name, value in values.items():
        low, high, own = ends[name]
        found[name] = Interval(value, low, high, paired, joined(own, *remarks))
    return found


def joined(*remarks: str | None) -> str | None:
    """What there is to say, None if it is nothing."""
    return "; ".join(each for each in remarks if each) or None


def _of_percentiles(
    digest: Tensor, slots: Slots, shares: Mapping[str, float], level: float
) -> dict[str, Ends]:
    p = torch.tensor(list(shares.values()), dtype=torch.float64)
    reach = t_for(level, slots.occupied - 1) * rank_errors(slots, p)
    places = torch.stack([p - reach, p + reach], -1)
    values = td.quantile(digest, places.clamp(0, 1)).tolist()
    found = {}
    for name, (low, high), (left, right), wide in zip(
        shares, values, places.tolist(), wide_bins(digest, slots, p), strict=True
    ):
        beyond = "smallest" if left < 0 else "largest" if right > 1 else None
        found[name] = Ends(low, high, joined(wide, beyond and LIMIT.format(beyond)))
        if shares[name] in (0, 1):
            found[name] = Ends(reason=EXTREME)
    return found


def _of_mean(value: float, slots: Slots, level: float) -> Ends:
    if not math.isfinite(value) or not bool(slots.sums.isfinite().all()):
        return Ends(reason=INFINITE)
    reach = bootstrap_t(slots, level)
    if reach is None:
        below = above = linear(slots, level)
        return Ends(value - below, value + above, ONE_SLOT)
    return Ends(value - reach[0], value + reach[1])
