"""Kept as an import path: see :mod:`lightning_pce.integrations.lightning.checkpoints`."""

from lightning_pce.integrations.lightning.checkpoints import percentile_checkpoints

__all__ = ["percentile_checkpoints"]
