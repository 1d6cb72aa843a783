"""Why there is no interval, why two records are not paired, and words of caution."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce.digest._format import nan_weight_of
from lightning_pce.intervals._records import Checked, Record, Slots, checked_record, checked_slots
from lightning_pce.intervals._resamples import place_in_bins
from lightning_pce.intervals._slots import SLOTS

# Fewer slots with tokens give no interval, with fewer than the second there is a word of caution: of 30
# documents 92.4 % of 95 % intervals of the median held the truth.
LEAST_SLOTS, CAUTION_SLOTS = 20, 50
# Of a bin with more than this part of the tokens it matters how each slot's lie inside, which counts do not
# tell. With 0.4 some 90 % of 95 % intervals of the median held the truth, with 0.7 77 %, with 0.9 31 %.
_WIDE_BIN = 0.4
# Sums of weights that are no whole numbers depend on their order.
_SLACK = 1e-9
INFINITE = "some values are infinite"
EXTREME = "the smallest and the largest value have no error bar"
ONE_SLOT = "nearly all of the spread is that of a single slot: the interval may be too narrow"
LIMIT = "the interval ends at the {} value: the data do not bound it"


def why_none(documents: Tensor | None) -> str | None:
    """Why document counts give no error bars, in words; None if they do.

    Args:
        documents: float64 ``[128, 97]``; None gives a reason too.

    Raises:
        ValueError: if shape or dtype do not fit.

    Example:
        >>> from lightning_pce.intervals import empty, why_none
        >>> why_none(empty())
        'only 0 of 128 slots of documents hold tokens, 20 are needed'
    """
    return _too_few(None if documents is None else checked_slots(documents))


def why_no_interval(record: Checked) -> str | None:
    """Why there are no error bars of a record, in words; None if there are."""
    if (few := _too_few(record.slots)) is not None or record.slots is None:
        return few
    number, total = float(td.count(record.digest)), record.slots.total
    if abs(number - total) <= 1e-6 * max(number, total):
        return None
    return f"the documents hold {total:.16g} tokens, the digest {number:.16g}: they are not of the same data"


def few_slots(slots: Slots) -> str | None:
    """A word of caution if few slots hold tokens."""
    if slots.occupied >= CAUTION_SLOTS:
        return None
    return f"only {slots.occupied} slots of documents hold tokens: the interval may be too narrow"


def wide_bins(digest: Tensor, slots: Slots, p: Tensor) -> list[str | None]:
    """A word of caution for each p-quantile in a bin that holds many tokens of different values."""
    pooled = slots.bins.sum(0)
    upto = pooled.cumsum(0)
    at, _ = place_in_bins(pooled, upto, p * slots.total)
    parts = pooled[at] / slots.total
    wide = (parts > _WIDE_BIN) & (at > 0)  # what is below 1e-7 is as good as 0
    if not bool(wide.any()):
        return [None] * len(p)
    first = upto[at] / slots.total - parts
    inner = torch.stack([first + 0.05 * parts, first + 0.95 * parts])
    low, high = td.quantile(digest, inner.clamp(0, 1))
    return [
        f"{100 * part:.0f} % of the tokens lie in one bin of the counts: the interval may be too narrow"
        if flag
        else None
        for part, flag in zip(parts.tolist(), (wide & (low < high)).tolist(), strict=True)
    ]


def why_unpaired(a: Record, b: Record) -> str | None:
    """Why two records are not of the same tokens of the same documents, in words; None if they are.

    They are if each slot holds as many tokens (NaN included) and the fingerprints of their data are equal or
    both not known. Counts do not hold NaN, so tokens that a slot lacks beside the other record must be
    covered by the NaN that the digest has counted.

    Args:
        a: (digest, documents) or (digest, documents, fingerprint).
        b: the other.

    Returns:
        One line, or None.

    Raises:
        ValueError: if shapes or dtypes do not fit.

    Example:
        >>> from lightning_pce import digest, intervals
        >>> losses, documents = torch.rand(600), torch.arange(600) // 3
        >>> counts = intervals.add(intervals.empty(), losses, None, intervals.slots_of(documents))
        >>> record = (digest.from_values(losses), counts)
        >>> intervals.why_unpaired(record, record) is None
        True
        >>> intervals.why_unpaired((*record, "a1"), (*record, "b7"))
        'the fingerprints of their data differ'
    """
    return why_not_paired(checked_record("a", a), checked_record("b", b))


def why_not_paired(a: Checked, b: Checked) -> str | None:
    """:func:`why_unpaired` of records that have been looked at."""
    if a.slots is None or b.slots is None:
        return "no documents were given"
    reasons = []
    if not _same_numbers(a.slots, float(nan_weight_of(a.digest)), b.slots, float(nan_weight_of(b.digest))):
        reasons.append("their slots of documents hold other numbers of tokens")
    if a.fingerprint != b.fingerprint:
        reasons.append("the fingerprints of their data differ")
    return " and ".join(reasons) or None


def _same_numbers(a: Slots, nan_a: float, b: Slots, nan_b: float) -> bool:
    """Whether slots can hold the same numbers of tokens, some of which were NaN."""
    slack = _SLACK * max(a.total, b.total)
    if abs(a.total + nan_a - b.total - nan_b) > slack:
        return False
    # What the NaN of a leave over is then what those of b do.
    return float((b.tokens - a.tokens).clamp_min(0).sum()) <= nan_a + slack


def _too_few(slots: Slots | None) -> str | None:
    if slots is None:
        return "no documents were given"
    if slots.occupied >= LEAST_SLOTS:
        return None
    return f"only {slots.occupied} of {SLOTS} slots of documents hold tokens, {LEAST_SLOTS} are needed"
