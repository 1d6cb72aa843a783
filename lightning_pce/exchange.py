"""Digests as JSON, and from and to those of the PyPI package tdigest."""

from lightning_pce.digest._exchange import from_dict, from_tdigest, to_dict, to_tdigest

__all__ = ["from_dict", "from_tdigest", "to_dict", "to_tdigest"]
