"""Names of results: percentiles as keys, and names that can be part of a logged name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

DEFAULT_PERCENTILES = (5, 25, 50, 75, 95, 99)
# A module's name holds no dot, a file's no slash.
_NAME = re.compile(r"[A-Za-z0-9_]+")


def percentile_key(percentile: float) -> str:
    """``50 -> "p50"``, ``99.9 -> "p99_9"``: no dot, which a module's name cannot hold."""
    return "p" + f"{percentile:.10f}".rstrip("0").rstrip(".").replace(".", "_")


def checked_percentiles(percentiles: Sequence[float] | str) -> tuple[float, ...]:
    """Percentiles as floats, or a ``ValueError``."""
    try:
        if isinstance(percentiles, str):
            raise TypeError
        checked = tuple(float(p) + 0.0 for p in percentiles)  # -0.0 becomes 0.0
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected argument `percentiles` to hold numbers but got {percentiles!r}."
        ) from error
    outside = [p for p in checked if not 0 <= p <= 100]
    if outside:
        raise ValueError(
            f"Expected argument `percentiles` to hold numbers in [0, 100] but got {outside[0]:g} in "
            f"{percentiles!r}."
        )
    if checked and all(0 < p <= 1 for p in checked) and any(p != 1 for p in checked):
        warnings.warn(
            f"Expected argument `percentiles` in percent, but all of {percentiles!r} are at most 1: is "
            f"{checked[0] * 100:g} meant by {checked[0]:g}? As it is, that is the {checked[0]:g}th of 100.",
            stacklevel=2,
        )
    keys = [percentile_key(p) for p in checked]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(
            f"Expected argument `percentiles` without duplicates but got {twice[0]} twice: {percentiles!r}."
        )
    return checked


def checked_names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names that can be part of a logged name, or a ``ValueError`` that names the argument."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"Expected argument `{argument}` to be one or several names but got {names!r}.")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"Expected argument `{argument}` to hold names of A-Z, a-z, 0-9, _ but got {name!r}."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"Expected argument `{argument}` without duplicates but got {list(names)!r}.")
    return tuple(names)


def interval_keys(percentiles: Sequence[float]) -> tuple[str, ...]:
    """The keys of the ends of intervals: ``mean_low``, ``mean_high``, ``p50_low``, ``p50_high`` ..."""
    statistics = ("mean", *(percentile_key(p) for p in percentiles))
    return tuple(f"{statistic}_{end}" for statistic in statistics for end in ("low", "high"))
