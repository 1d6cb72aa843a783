"""A t-digest as pure functions on one packed tensor: build, add, merge, query.

A digest is a float64 tensor ``[..., K + 3, 2]`` whose shape never changes, whatever it has seen:

* rows ``0 ... K - 1`` are centroids ``(mean, weight)`` in ascending order, unused ones ``(0, 0)`` at the end.
  A negative weight marks a **blend**, a centroid whose values were not all equal. All others are **atoms**:
  their mean is the value itself, so that a stream with at most K distinct values is kept exactly;
* three rows are the **footer**: the number of invalid entries, the smallest and the largest finite value,
  and the weights of NaN, -inf and +inf (see ``digest/_format.py``).

Further columns, ``[..., K + 3, 2 + R]``, are weights of the same rows in R resamples of the data, for error
bars; all functions take such a digest for what its first two columns say.

Leading dimensions are independent digests. Nothing is modified in place, no shape depends on a value, and on
an accelerator nothing waits for the device. All values and results are in the unit of what was added (nats
for CE).

Method: the merging t-digest of Dunning and Ertl (arXiv 1902.04023) with scale function k1, and three changes.
Equal values are never cut apart, and beside a value that is much of all cells keep their width. A blend has
an inside, two straight pieces of quantile function reconstructed from its neighbours so that its mean is
kept; it enters a merge as the two halves of that, or four quarters, and not as one lump (worst rank error of
1e6 normal values in batches of 512: 6e-5 instead of 5e-4). And a batch is sorted alone, on a CPU a large one
only counted on a scale, before it meets the centroids.

To read the code begin with ``_format``, ``_add`` and ``_centroids``; ``_query`` needs no more. The folder
``_cpu`` holds nothing but speed.
"""

from lightning_pce.digest._add import add, add_invalid, from_values
from lightning_pce.digest._format import empty
from lightning_pce.digest._merge import merge
from lightning_pce.digest._query import (
    cdf,
    centroids,
    count,
    curve,
    finite_mean,
    invalid,
    maximum,
    mean,
    minimum,
    nonfinite,
    quantile,
    tail_mean,
    trimmed_mean,
)
from lightning_pce.digest._replicates import replicate_digests

__all__ = [
    "add",
    "add_invalid",
    "cdf",
    "centroids",
    "count",
    "curve",
    "empty",
    "finite_mean",
    "from_values",
    "invalid",
    "maximum",
    "mean",
    "merge",
    "minimum",
    "nonfinite",
    "quantile",
    "replicate_digests",
    "tail_mean",
    "trimmed_mean",
]
