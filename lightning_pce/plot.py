"""Kept as an import path: see :mod:`lightning_pce.reports.plot`."""

from lightning_pce.reports.plot import (
    concordance_map,
    decision_chart,
    difference_curve,
    fan_chart,
    interval_chart,
    quantile_curve,
)

__all__ = [
    "concordance_map",
    "decision_chart",
    "difference_curve",
    "fan_chart",
    "interval_chart",
    "quantile_curve",
]
