"""Values enter a digest, or the digests of several groups.

They are sorted, on an accelerator once by group and value, and cut at fixed ranks into eight times as many
cells as there are centroids; cells and the halves of the centroids are then compressed together. A CPU takes
one group after the other, and asks for a short cut first.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_pce._threads import single_threaded
from lightning_pce.digest import _short_cuts
from lightning_pce.digest._arrays import Array, after_zero, is_numpy, namespace, on_arrays
from lightning_pce.digest._batch import Entries, SortedBatch, cells_of, sorted_batch
from lightning_pce.digest._centroids import compress, halves
from lightning_pce.digest._format import (
    Items,
    add_to_invalid,
    check_digest,
    compression_of,
    empty,
    footer_of,
    merged_footers,
    packed,
    replicates_of,
    rows_of,
    with_footer,
)

# A larger batch is added in pieces, so that the float64 scratch stays small (8 MiB).
_PIECE = 1 << 20

# A batch is cut into at most this many cells per centroid. Worst rank error of 4e6 values in batches of
# 2 ** 20: up to 8.1e-5 with 2 cells, 3.7e-5 with 8.
_CELLS_PER_CENTROID = 8


def add(
    digest: Tensor,
    values: Tensor,
    weights: Tensor | None = None,
    *,
    groups: Tensor | None = None,
    replicates: Tensor | None = None,
) -> Tensor:
    """A new digest that has also seen ``values``.

    NaN is counted and left out; infinities are counted and lie below or above everything else.

    Args:
        digest: ``[K + 3, 2 + R]``, or with ``groups`` ``[G, K + 3, 2 + R]``.
        values: any shape, float16, bfloat16, float32 or float64, on the digest's device.
        weights: shaped like ``values``. Bool: ``False`` leaves a value out. Otherwise numbers >= 0: a whole
            number is repetition, 0 leaves out; a negative, NaN or infinite weight leaves out too and is
            counted as invalid.
        groups: integers shaped like ``values``: which of the G digests each value enters. All are updated
            together, on an accelerator in one sort.
        replicates: numbers >= 0, ``[*values.shape, R]``, if the digest has R further columns: the weight of
            each value in R resamples of the same data (0 where the value itself has weight 0, and instead of
            what is no weight). They share the centroids, see
            :func:`~lightning_pce.digest.replicate_digests`.

    Returns:
        A digest of the same shape, float64.

    Raises:
        ValueError: if shapes or dtypes do not fit; on a CPU also if a value that counts has a group outside
            [0, G). On accelerators, where looking would make the host wait, such a value is left out and
            counted as invalid in group 0.

    Example:
        >>> from lightning_pce.digest import add, count, empty, mean
        >>> digest = add(empty(64), torch.tensor([1.0, 2.0]), torch.tensor([3, 1]))
        >>> count(digest), mean(digest)
        (tensor(4., dtype=torch.float64), tensor(1.2500, dtype=torch.float64))
        >>> two = add(empty(64, shape=(2,)), torch.tensor([1.0, 5.0, 3.0]), groups=torch.tensor([0, 1, 0]))
        >>> mean(two)
        tensor([2., 5.], dtype=torch.float64)
    """
    check_digest(digest, "digest", "[K + 3, 2]" if groups is None else "[G, K + 3, 2]")
    _check_entries(digest, values, weights, groups, replicates)
    with single_threaded():  # beside busy processes a parallel operation waits for every thread
        entries = _flat(values, weights, groups, replicates)
        digest, entries = _without_unknown_groups(digest, entries)
        if not values.numel():
            return digest.clone()
        piece = _PIECE // digest.shape[-1] * 2
        for start in range(0, values.numel(), piece):
            digest = on_arrays(_add_piece, digest, *entries.at(slice(start, start + piece)))
        return digest


def from_values(values: Tensor, weights: Tensor | None = None, *, compression: int = 1024) -> Tensor:
    """The digest of ``values``, see :func:`add`.

    Args:
        values: any shape and floating dtype.
        weights: shaped like ``values``, as of :func:`add`.
        compression: K, the number of centroids.

    Returns:
        ``[K + 3, 2]`` float64, on the device of the values.

    Raises:
        ValueError: as :func:`add`.

    Example:
        >>> from lightning_pce.digest import from_values, quantile
        >>> digest = from_values(torch.arange(101.0))
        >>> quantile(digest, 0.5)
        tensor(50., dtype=torch.float64)
    """
    return add(empty(compression, device=values.device), values, weights)


def add_invalid(digest: Tensor, number: Tensor) -> Tensor:
    """A new digest that counts ``number`` more invalid entries.

    Args:
        digest: ``[..., K + 3, 2]``.
        number: ``[...]`` or 0-d, on the digest's device.

    Returns:
        A digest of the same shape.

    Example:
        >>> from lightning_pce.digest import add_invalid, empty, invalid
        >>> invalid(add_invalid(empty(8), torch.tensor(3)))
        tensor(3., dtype=torch.float64)
    """
    digest = digest.clone()
    add_to_invalid(digest, number)
    return digest


def _add_piece(digest: Array, *entries: Any) -> Array:
    return add_entries(digest, Entries(*entries))


def add_entries(digest: Array, entries: Entries) -> Array:
    """``[K + 3, 2 + R]``, or with groups ``[G, K + 3, 2 + R]``, with a batch added."""
    if not is_numpy(digest):
        number = None if entries.groups is None else len(digest)
        return _add_sorted(digest, sorted_batch(entries, number))
    if entries.groups is None:
        return _add_to_one(digest, entries)
    if not len(digest):
        return digest.copy()
    # In order of their groups only: one sort for each is faster than one by group and value.
    order = np.argsort(entries.groups.astype(np.min_scalar_type(len(digest))), kind="stable")
    cut = after_zero(np.bincount(entries.groups, minlength=len(digest)).cumsum())
    entries = entries._replace(groups=None).at(order)
    parts = (entries.at(slice(*ends)) for ends in pairwise(cut))
    return np.stack([_add_to_one(one, part) for one, part in zip(digest, parts, strict=True)])


def _add_to_one(digest: Array, entries: Entries) -> Array:
    """A batch without groups enters a NumPy digest ``[K + 3, 2 + R]``."""
    x, weights, columns, _ = entries
    if weights is not None and weights.dtype == np.bool_:
        x, columns, weights = x[weights], None if columns is None else columns[weights], None
    if not len(x):
        return digest.copy()
    if weights is None and columns is None:
        added = _short_cuts.add_values(digest, x)
        if added is not None:
            return added
    return _add_sorted(digest, sorted_batch(Entries(x, weights, columns, None), None))


def _add_sorted(digest: Array, batch: SortedBatch) -> Array:
    xp, compression, x = namespace(digest), compression_of(digest), batch.entries.x
    footer = merged_footers(xp.stack([footer_of(digest), batch.footer]))
    if xp is np and not batch.stop > batch.start:
        return with_footer(rows_of(digest), footer)
    own, new = halves(digest), cells_of(batch, min(len(x), _CELLS_PER_CENTROID * compression))
    means, weights, blend = (xp.concatenate(pair, -1) for pair in zip(own[:3], new[:3], strict=True))
    columns = None if new.columns is None else xp.concatenate([own.columns, new.columns], -2)
    return packed(compress(Items(means, weights, blend, columns), compression), footer)


def _check_entries(
    digest: Tensor, values: Tensor, weights: Tensor | None, groups: Tensor | None, replicates: Tensor | None
) -> None:
    if not values.is_floating_point():
        raise ValueError(f"Expected argument `values` to be floating point but got {values.dtype}.")
    for name, given in (("weights", weights), ("groups", groups), ("replicates", replicates)):
        _check_beside(name, given, values)
    if groups is not None and (groups.is_floating_point() or groups.dtype == torch.bool):
        raise ValueError(f"Expected argument `groups` to hold integers but got {groups.dtype}.")
    wanted, got = replicates_of(digest), 0
    if replicates is not None:
        got = replicates.shape[-1] if replicates.shape[:-1] == values.shape else -1
    if wanted != got:
        raise ValueError(
            "Expected argument `replicates` with the shape of the values and a column for each of the "
            f"digest's {wanted} replicates, {(*values.shape, wanted)}, but got "
            f"{None if replicates is None else tuple(replicates.shape)}."
        )


def _check_beside(name: str, given: Tensor | None, values: Tensor) -> None:
    if given is None:
        return
    if not isinstance(given, Tensor):
        raise ValueError(f"Expected argument `{name}` to be a tensor but got {type(given).__name__}.")
    if given.is_complex():
        raise ValueError(f"Expected argument `{name}` to hold real numbers but got {given.dtype}.")
    if name != "replicates" and given.shape != values.shape:
        raise ValueError(
            f"Expected argument `{name}` to have the shape of the values, {tuple(values.shape)}, but got "
            f"{tuple(given.shape)}."
        )


def _flat(
    values: Tensor, weights: Tensor | None, groups: Tensor | None, replicates: Tensor | None
) -> Entries:
    """Entries ``[n]`` in the dtypes that sorting and adding up take."""
    values = values.detach().reshape(-1)
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    weights = None if weights is None else weights.detach().reshape(-1)
    if weights is not None and weights.is_floating_point():
        weights = weights.double()
    groups = None if groups is None else groups.reshape(-1).long()
    if replicates is not None:
        columns = replicates.detach().reshape(len(values), replicates.shape[-1])
        columns = columns.double() if columns.dtype in (torch.float64, torch.int64) else columns.float()
        replicates = torch.where((columns >= 0) & (columns < math.inf), columns, 0.0)
    return Entries(values, weights, replicates, groups)


def _without_unknown_groups(digest: Tensor, entries: Entries) -> tuple[Tensor, Entries]:
    """Entries that have weight 0 if their group is out of range, and a digest that has counted these."""
    x, weights, columns, groups = entries
    if groups is None:
        return digest, entries
    number = len(digest)
    unknown = (groups < 0) | (groups >= number)
    counted = torch.ones_like(unknown) if weights is None else weights != 0
    if groups.device.type == "cpu":
        if not unknown.any():
            return digest, entries
        wrong = groups[unknown & counted]
        if len(wrong):
            raise ValueError(
                f"Expected argument `groups` to hold numbers in [0, {number}) but got {wrong[0]}."
            )
    else:
        digest = digest.clone()
        add_to_invalid(digest[:1], (unknown & counted).sum())
    weights = ~unknown if weights is None else torch.where(unknown, 0, weights).to(weights.dtype)
    return digest, Entries(x, weights, columns, torch.where(unknown, 0, groups))
