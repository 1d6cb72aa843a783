"""Kept as an import path: see :mod:`lightning_pce.reports.plot`."""

from lightning_pce.reports.plot import fan_chart, quantile_curve

__all__ = ["fan_chart", "quantile_curve"]
