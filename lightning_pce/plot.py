"""Kept as an import path: see :mod:`lightning_pce.reports.plot`."""

from lightning_pce.reports.plot import (
    concordance,
    concordance_map,
    decision,
    decision_chart,
    difference,
    difference_curve,
    fan_chart,
    forecast_band,
    interval_chart,
    intervals,
    proxy_scatter,
    quantile_curve,
)

__all__ = [
    "concordance",
    "concordance_map",
    "decision",
    "decision_chart",
    "difference",
    "difference_curve",
    "fan_chart",
    "forecast_band",
    "interval_chart",
    "intervals",
    "proxy_scatter",
    "quantile_curve",
]
