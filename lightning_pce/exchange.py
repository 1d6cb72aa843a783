"""Kept as an import path: see :mod:`lightning_pce.digest._exchange`."""

from lightning_pce.digest._exchange import from_dict, from_tdigest, to_dict, to_tdigest

__all__ = ["from_dict", "from_tdigest", "to_dict", "to_tdigest"]
