"""Error bars of percentiles and means from groups of documents.

Tokens of one document resemble each other, so that error bars by tokens are several times too narrow. What
was drawn independently are documents. Each is hashed to one of 128 slots, and beside its digest a record
keeps float64 counts ``[128, 97]``: how many of a slot's tokens lie in each of 96 bins of CE, and their sum.
Counts of ranks, groups and parts of the data add up, and so one ``all_reduce`` joins them.

:func:`interval` is the error bar of a percentile or the mean, :func:`difference` that of a change between
two records. All records use the same slots and resamples, so that records of the same documents are compared
document by document.

To read the code begin with ``_slots`` and ``_counts`` (the state), then ``_errors`` and ``_resamples`` (the
statistics); ``_interval`` and ``_difference`` put them together.
"""

from lightning_pce.intervals._counts import BINS, add, empty
from lightning_pce.intervals._difference import difference, differences
from lightning_pce.intervals._interval import Interval, interval, intervals
from lightning_pce.intervals._reasons import why_none, why_unpaired
from lightning_pce.intervals._records import Record
from lightning_pce.intervals._resamples import RESAMPLES, expanded, replicate_quantiles, replicates
from lightning_pce.intervals._slots import SLOTS, slots_of

__all__ = [
    "BINS",
    "RESAMPLES",
    "SLOTS",
    "Interval",
    "Record",
    "add",
    "difference",
    "differences",
    "empty",
    "expanded",
    "interval",
    "intervals",
    "replicate_quantiles",
    "replicates",
    "slots_of",
    "why_none",
    "why_unpaired",
]
