"""What an interval is made of: a digest, its documents, a statistic; and which two records are paired."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce._names import percentile_key
from lightning_pce.digest._format import check_digest, nan_weight_of
from lightning_pce.intervals._counts import BINS, COLUMNS
from lightning_pce.intervals._slots import SLOTS

# A digest [K + 3, 2], the document counts [128, 97] of the same values and the fingerprint of their data.
Record: TypeAlias = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, str | None]

# Fewer slots with tokens give no interval, with fewer than the second there is a word of caution: of 30
# documents 92.4 % of 95 % intervals of the median held the truth.
LEAST_SLOTS, CAUTION_SLOTS = 20, 50
# Sums of weights that are no whole numbers depend on their order.
_SLACK = 1e-9
_PERCENTILE = re.compile(r"p(\d{1,3}(?:_\d+)?)")


class Slots(NamedTuple):
    """Document counts on the CPU."""

    bins: Tensor  # [128, 96]
    sums: Tensor  # [128]
    tokens: Tensor  # [128]
    total: float
    occupied: int


def checked_digest(digest: Tensor) -> Tensor:
    """A digest ``[K + 3, 2]`` on the CPU, or a ``ValueError``."""
    if not isinstance(digest, Tensor):
        raise ValueError(f"Expected argument `digest` to be a tensor but got {type(digest).__name__}.")
    check_digest(digest, "digest", "[K + 3, 2]")
    return _here("digest", digest)


def checked_slots(documents: Tensor) -> Slots:
    """Document counts ``[128, 97]`` on the CPU, or a ``ValueError``."""
    if not isinstance(documents, Tensor):
        raise ValueError(
            f"Expected argument `documents` to be a tensor [128, 97] but got {type(documents).__name__}."
        )
    if documents.shape != (SLOTS, COLUMNS) or documents.dtype != torch.float64:
        hint = " Of groups pass those of one, or the sum over all." if documents.ndim == 3 else ""
        raise ValueError(
            f"Expected argument `documents` to be float64 [128, 97] but got {documents.dtype} "
            f"{tuple(documents.shape)}.{hint}"
        )
    documents = _here("documents", documents)
    bins, sums = documents[:, :BINS], documents[:, BINS]
    tokens = bins.sum(-1)
    return Slots(bins, sums, tokens, float(tokens.sum()), int((tokens > 0).sum()))


def _here(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        raise ValueError(f"Expected argument `{name}` with numbers but got a tensor on the meta device.")
    return tensor.detach().cpu()


def is_mean(statistic: str) -> bool:
    """Whether it is the mean, not a percentile."""
    return statistic == "mean"


def percentile_of(statistic: str) -> float:
    """The q of ``"p50"`` or ``"p99_9"``, 0.5 or 0.999, or a ``ValueError``."""
    found = _PERCENTILE.fullmatch(statistic) if isinstance(statistic, str) else None
    percentile = float(found[1].replace("_", ".")) if found else -1.0
    if not 0 <= percentile <= 100 or percentile_key(percentile) != statistic:
        raise ValueError(
            f'Expected argument `statistic` to be "mean" or a percentile such as "p50" or "p99_9" but got '
            f"{statistic!r}."
        )
    return percentile / 100


def check_level(level: float) -> None:
    """Raise a ``ValueError`` unless it is a number in (0, 1)."""
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise ValueError(
            f"Expected argument `level` to be a number in (0, 1), such as 0.95, but got {level!r}."
        )


class Checked(NamedTuple):
    """A record that has been looked at, on the CPU."""

    digest: Tensor
    slots: Slots | None
    fingerprint: str | None


def checked_record(name: str, record: Record) -> Checked:
    """A record on the CPU, or a ``ValueError`` that names the argument."""
    if not isinstance(record, tuple | list) or len(record) not in (2, 3):
        got = f"{len(record)} of them" if isinstance(record, tuple | list) else type(record).__name__
        raise ValueError(
            f"Expected argument `{name}` to be (digest, documents) or (digest, documents, fingerprint) but "
            f"got {got}."
        )
    digest, documents, fingerprint = (*record, None)[:3]
    slots = None if documents is None else checked_slots(documents)
    return Checked(checked_digest(digest), slots, fingerprint)


def why_none(documents: Tensor | None) -> str | None:
    """Why document counts give no error bars, in words; None if they do.

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


def caution(slots: Slots) -> str | None:
    """A word on few slots; None if there are enough."""
    if slots.occupied >= CAUTION_SLOTS:
        return None
    return f"only {slots.occupied} slots of documents hold tokens: the interval may be too narrow"


def _too_few(slots: Slots | None) -> str | None:
    if slots is None:
        return "no documents were given"
    if slots.occupied >= LEAST_SLOTS:
        return None
    return f"only {slots.occupied} of {SLOTS} slots of documents hold tokens, {LEAST_SLOTS} are needed"


def why_unpaired(a: Record, b: Record) -> str | None:
    """Why two records are not of the same tokens of the same documents, in words; None if they are.

    They are if each slot holds as many tokens (NaN included) and the fingerprints of their data are equal or
    both not known. Counts do not hold NaN, so tokens that a slot lacks beside the other record must be
    covered by the NaN that the digest has counted.

    Args:
        a: (digest, documents) or (digest, documents, fingerprint).
        b: the other.

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
    missing_in_a = float((b.tokens - a.tokens).clamp_min(0).sum())
    missing_in_b = float((a.tokens - b.tokens).clamp_min(0).sum())
    equal = abs(a.total + nan_a - b.total - nan_b) <= slack
    return equal and missing_in_a <= nan_a + slack and missing_in_b <= nan_b + slack
