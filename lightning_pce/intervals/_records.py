"""What an interval is made of: a digest, the counts of its documents, a statistic and a level."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_pce._names import percentile_key
from lightning_pce.digest._format import check_digest
from lightning_pce.intervals._counts import BINS, COLUMNS
from lightning_pce.intervals._slots import SLOTS

# A digest [K + 3, 2], the document counts [128, 97] of the same values and the fingerprint of their data.
Record: TypeAlias = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, str | None]

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
