"""Intervals of the differences between two records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from lightning_pce import digest as td
from lightning_pce._threads import single_threaded
from lightning_pce.intervals._errors import error_of_mean, residuals_of_mean
from lightning_pce.intervals._interval import Ends, Interval, percentiles_in, values_of, with_ends
from lightning_pce.intervals._reasons import (
    EXTREME,
    INFINITE,
    few_slots,
    why_no_interval,
    why_not_paired,
    wide_bins,
)
from lightning_pce.intervals._records import Checked, Record, Slots, check_level, checked_record
from lightning_pce.intervals._resamples import RESAMPLES, expanded_level, ranks
from lightning_pce.intervals._student import t_for


def difference(a: Record, b: Record, statistic: str, level: float = 0.95) -> Interval:
    """The interval of a statistic of record b less that of record a.

    If both are of the same documents (see :func:`why_unpaired`) they are resampled together, and what the
    documents have in common cancels: such an interval is half as wide or less as one of different data, which
    ``reason`` tells.

    A percentile's holds most of the differences in 1,000 resamples, see :func:`expanded`; the mean's is
    linearised over slots, with Student's t.

    Args:
        a: (digest, documents), or (digest, documents, fingerprint of the data).
        b: the same of the other record.
        statistic: ``"mean"``, ``"p50"``, ``"p99_9"`` ...
        level: how often such an interval is to hold the truth, in (0, 1).

    Returns:
        An :class:`Interval`, as :func:`interval`.

    Raises:
        ValueError: if shapes or dtypes do not fit, or statistic or level are none.

    Example:
        >>> from lightning_pce import digest, intervals
        >>> losses, documents = torch.linspace(0, 1, 6000), torch.arange(6000) % 120
        >>> slots = intervals.slots_of(documents)
        >>> before = digest.from_values(losses), intervals.add(intervals.empty(), losses, None, slots)
        >>> after = digest.from_values(losses / 2), intervals.add(intervals.empty(), losses / 2, None, slots)
        >>> change = intervals.difference(before, after, "p50")
        >>> round(change.value, 3), change.paired, change.low < -0.25 < change.high < -0.24
        (-0.25, True, True)
    """
    return differences(a, b, [statistic], level)[statistic]


@single_threaded()
def differences(a: Record, b: Record, statistics: Sequence[str], level: float = 0.95) -> dict[str, Interval]:
    """:func:`difference` of several statistics, by their names, for little more than one costs.

    Args:
        a: (digest, documents), or (digest, documents, fingerprint of the data).
        b: the same of the other record.
        statistics: of ``"mean"``, ``"p50"``, ``"p99_9"`` ...
        level: how often such an interval is to hold the truth, in (0, 1).

    Returns:
        The :class:`Interval` of b less a for each name, in the unit of the values.

    Raises:
        ValueError: as :func:`difference`.

    Example:
        >>> from lightning_pce import digest, intervals
        >>> before, after = (digest.from_values(torch.tensor([1.0, x])) for x in (2.0, 4.0))
        >>> found = intervals.differences((before, None), (after, None), ["mean", "p50"])
        >>> found["mean"].value, found["mean"].reason
        (1.0, 'no documents were given')
    """
    check_level(level)
    first, second = checked_record("a", a), checked_record("b", b)
    before, after = (values_of(each.digest, statistics) for each in (first, second))
    change = {name: after[name] - before[name] for name in before}
    none, unpaired = why_no_interval(first) or why_no_interval(second), why_not_paired(first, second)
    paired = unpaired is None
    if first.slots is None or second.slots is None or none is not None:
        return with_ends(change, dict.fromkeys(change, Ends()), paired, none)
    fewest = min(first.slots, second.slots, key=lambda slots: slots.occupied)
    ends = _of_percentiles(first, second, change, expanded_level(level, fewest.occupied), paired=paired)
    if "mean" in change:
        reach = t_for(level, fewest.occupied - 1) * _error_of_mean(first.slots, second.slots, paired=paired)
        low, high = change["mean"] - reach, change["mean"] + reach
        ends["mean"] = Ends(low, high) if math.isfinite(reach) else Ends(reason=INFINITE)
    return with_ends(change, ends, paired, unpaired and f"not paired: {unpaired}", few_slots(fewest))


def _of_percentiles(
    a: Checked, b: Checked, statistics: Iterable[str], share: float, *, paired: bool
) -> dict[str, Ends]:
    """Ends that hold a share of the differences in resamples, of other slots each if not paired."""
    shares = percentiles_in(statistics)
    if not shares:
        return {}
    p = torch.tensor(list(shares.values()), dtype=torch.float64)
    assert a.slots is not None
    assert b.slots is not None
    before = td.quantile(a.digest, ranks(a.slots, p, 0))
    after = td.quantile(b.digest, ranks(b.slots, p, 0 if paired else RESAMPLES))
    limits = torch.tensor([1 - share, 1 + share], dtype=torch.float64) / 2
    cautions = zip(wide_bins(a.digest, a.slots, p), wide_bins(b.digest, b.slots, p), strict=True)
    found = {}
    for (name, q), changes, wide in zip(shares.items(), (after - before).unbind(-1), cautions, strict=True):
        if q in (0, 1):
            found[name] = Ends(reason=EXTREME)
        elif bool(changes.isfinite().all()):
            low, high = changes.quantile(limits).tolist()
            found[name] = Ends(low, high, wide[0] or wide[1])
        else:
            found[name] = Ends(reason=INFINITE)
    return found


def _error_of_mean(a: Slots, b: Slots, *, paired: bool) -> float:
    """The standard error of the difference of two means."""
    before, after = residuals_of_mean(a), residuals_of_mean(b)
    if paired:
        return error_of_mean(after - before, min(a.occupied, b.occupied))
    return math.hypot(error_of_mean(before, a.occupied), error_of_mean(after, b.occupied))
