"""Cells that hold nothing leave."""

from __future__ import annotations

import numpy as np

from lightning_pce.digest._format import Items


def to_the_front(items: Items, compression: int) -> Items:
    """Those of items ``[S]``, S at most ``compression``, that hold something; then as many of weight 0."""
    some = np.flatnonzero(items.weights > 0)
    means, weights = np.zeros((2, compression))
    blend = np.zeros(compression, dtype=np.bool_)
    for every, used in zip((means, weights, blend), items[:3], strict=True):
        every[: len(some)] = used[some]
    return Items(means, weights, blend, None)
