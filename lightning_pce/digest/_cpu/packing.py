"""Cells that hold nothing leave."""

from __future__ import annotations

import numpy as np

from lightning_pce.digest._arrays import Array
from lightning_pce.digest._format import FOOTER_ROWS, Items, footer_of, means_of, signed_weights_of


def packed_to_the_front(items: Items, compression: int, footer: Array) -> Array:
    """Those of items ``[S]``, S at most ``compression``, that hold something, as a digest ``[K + 3, 2]``."""
    some = np.flatnonzero(items.weights > 0)
    digest = np.zeros((compression + FOOTER_ROWS, 2))
    means_of(digest)[: len(some)] = items.means[some]
    signed_weights_of(digest)[: len(some)] = np.where(items.blend, -items.weights, items.weights)[some]
    footer_of(digest)[:] = footer
    return digest
