"""Cells of the tables: picks, correlations and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.studies.markdown import number, percent_interval

PAIRED = ("each seed", "mean [by fact]", "[by seed]")
CORRELATED = ("mean", "trimmed_mean", "p25", "p50", "p75", "p90", "p95", "p99")


def paired_cells(each: dict[str, Any]) -> list[str]:
    """Of differences of shares, in points, one for each of ``PAIRED``."""

    def points(value: float | None) -> str:
        return number(None if value is None else 100 * value, 0)

    by_seed = " ".join(points(value) for value in each["by_seed"])
    mean = f"{points(each['mean'])} [{points(each['low'])}, {points(each['high'])}]"
    return [by_seed, mean, f"[{points(each['t_low'])}, {points(each['t_high'])}]"]


def epoch_of(label: str) -> str:
    return label.removeprefix("epoch ")


def pick_cell(pick: dict[str, Any]) -> str:
    """Epoch and recall with its interval; in bold if the pick misses the best."""
    text = f"{epoch_of(pick['label'])}: {percent_interval(pick['task'], pick['low'], pick['high'])}"
    return f"**{text}**" if pick["missed"] else text


def correlation_cell(each: dict[str, float | None]) -> str:
    """Pearson / Spearman; in bold where a lower loss goes with a lower recall."""
    return " / ".join(_signed(value) for value in each.values())


def spread_of_correlations(values: Sequence[float | None]) -> str:
    """The lowest and the highest of several runs; a dash where all are constant."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = _signed(min(known)), _signed(max(known))
    return low if low == high else f"{low} to {high}"


def _signed(value: float | None) -> str:
    return f"**{number(value)}**" if value is not None and value > 0 else number(value)
