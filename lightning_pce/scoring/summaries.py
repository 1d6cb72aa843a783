"""What a record says of a statistic in plain numbers, from its digest and its document counts."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._names import DEFAULT_PERCENTILES, percentile_key

# The percentiles that metrics report by default, and the 90th, which records of training have too.
PERCENTILES = tuple(sorted({*DEFAULT_PERCENTILES, 90}))


def summary(name: str, digest: Tensor, documents: Tensor) -> dict[str, float]:
    """Mean, percentiles and their error bars, by the names that records of training have.

    Args:
        name: what the names begin with, ``"ce"``; of a group ``"ce_web"``.
        digest: ``[K + 3, 2]``.
        documents: counts ``[128, 97]`` of the same tokens.

    Example:
        >>> values = torch.tensor([1.0, 2.0, 6.0])
        >>> found = summary("ce", td.from_values(values), intervals.empty())
        >>> found["ce_mean"], found["ce_p50"], found["ce_count"]
        (3.0, 2.0, 3.0)
    """
    percentiles = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    keys = [percentile_key(percentile) for percentile in PERCENTILES]
    numbers = {
        "mean": td.mean(digest),
        **dict(zip(keys, td.quantile(digest, percentiles).unbind(), strict=True)),
        "trimmed_mean": td.trimmed_mean(digest, 0.05, 0.95),
        "finite_mean": td.finite_mean(digest),
        "count": td.count(digest),
        "nonfinite": td.nonfinite(digest),
        "invalid": td.invalid(digest),
    }
    values = {f"{name}_{key}": float(value) for key, value in numbers.items()}
    for key, bar in intervals.intervals(digest, documents, ("mean", *keys)).items():
        values |= {f"{name}_{key}_low": bar.low, f"{name}_{key}_high": bar.high}
    return values
