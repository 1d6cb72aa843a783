"""Kept as an import path: see :mod:`lightning_pce.integrations.lightning.figures`."""

from lightning_pce.integrations.lightning.figures import PercentileFigures

__all__ = ["PercentileFigures"]
