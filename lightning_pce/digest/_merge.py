"""Many digests become one."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from lightning_pce._threads import single_threaded
from lightning_pce.digest import _short_cuts
from lightning_pce.digest._arrays import Array, is_numpy, on_arrays
from lightning_pce.digest._centroids import merge_halves
from lightning_pce.digest._format import check_compression, check_digest, compression_of


def merge(digests: Tensor, *, compression: int | None = None) -> Tensor:
    """One digest from a stack of them.

    The result depends on the order only within the error of a digest; for one order it is the same on every
    machine with the same libraries, bit for bit.

    Args:
        digests: ``[M, ..., K + 3, 2 + R]``.
        compression: another number of centroids for the result; left out: the same.

    Returns:
        ``[..., K + 3, 2 + R]``.

    Raises:
        ValueError: if there is none, or ``compression`` is below 8.

    Example:
        >>> import torch
        >>> from lightning_pce.digest import from_values, merge, quantile
        >>> parts = torch.stack([from_values(torch.tensor([1.0, 2.0])), from_values(torch.tensor([3.0]))])
        >>> quantile(merge(parts), 0.5)
        tensor(2., dtype=torch.float64)
    """
    check_digest(digests, "digests", "[M, ..., K + 3, 2]")
    if not len(digests):
        raise ValueError("Expected argument `digests` to be a stack of at least one but got none.")
    if compression is None:
        compression = compression_of(digests)
    check_compression(compression)
    with single_threaded():  # beside busy processes a parallel operation waits for every thread
        return on_arrays(partial(merge_stack, compression=compression), digests)


def merge_stack(digests: Array, compression: int) -> Array:
    """Digests ``[M, ..., K + 3, C]`` become one ``[..., compression + 3, C]``."""
    if not is_numpy(digests):
        return merge_halves(digests, compression)
    merged = _short_cuts.merge_many(digests, compression)
    return merge_halves(digests, compression) if merged is None else merged
