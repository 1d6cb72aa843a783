"""Resamples of the data that share the centroids of a digest, for error bars."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lightning_pce.digest._format import (
    Items,
    footer_of,
    highest_of,
    invalid_of,
    lowest_of,
    new_footer,
    packed,
    replicate_weights_of,
    rows_of,
    unpacked,
)


def replicate_digests(digest: Tensor) -> Tensor:
    """The digests of the replicates, which all functions here take.

    They have the centroids of the digest, with weights of their own: their quantiles differ from those of a
    digest made of the resampled values by less than the width of a centroid. Their extremes are those of the
    data where they have weight in the outermost centroid, else the mean of the outermost they have.

    Args:
        digest: ``[..., K + 3, 2 + R]``.

    Returns:
        ``[R, ..., K + 3, 2]`` float64.

    Example:
        >>> from lightning_pce.digest import add, empty, mean, replicate_digests
        >>> weights = torch.tensor([[1, 0], [1, 3], [1, 0]])
        >>> digest = add(empty(8, replicates=2), torch.tensor([1.0, 2.0, 6.0]), replicates=weights)
        >>> mean(replicate_digests(digest))
        tensor([3., 2.], dtype=torch.float64)
    """
    own = unpacked(digest)
    weights = replicate_weights_of(rows_of(digest)).movedim(-1, 0)
    used = weights > 0
    # Rows without weight in a replicate come last.
    order = (~used).to(torch.uint8).argsort(dim=-1, stable=True)
    means, blend = own.means.expand(weights.shape), own.blend.expand(weights.shape)
    rows = [torch.where(used, part, 0).gather(-1, order) for part in (means, weights, blend)]

    some, last = used.any(-1), (own.weights > 0).sum(-1).sub(1).clamp_min(0)
    own_last = used.sum(-1, keepdim=True).sub(1).clamp_min(0)
    has_last = used.gather(-1, last.expand(some.shape)[..., None])[..., 0]
    lowest = torch.where(used[..., 0] | ~some, lowest_of(digest), rows[0][..., 0])
    highest = torch.where(has_last | ~some, highest_of(digest), rows[0].gather(-1, own_last)[..., 0])
    counts = replicate_weights_of(footer_of(digest)).movedim(-1, 0)[..., None]
    footer = new_footer(invalid_of(digest).expand(some.shape), lowest, highest, counts)
    return cast(Tensor, packed(Items(rows[0], rows[1], rows[2].bool(), None), footer))
