"""Error bars of percentiles and means from groups of documents."""

from lightning_pce.intervals._counts import BINS, add, empty
from lightning_pce.intervals._slots import SLOTS, slots_of

__all__ = ["BINS", "SLOTS", "add", "empty", "slots_of"]
