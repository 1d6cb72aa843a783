"""Which row of a digest holds what. No other module knows a row number.

A digest is ``[..., K + 3, C]``: K rows of centroids and three rows, the footer. The first column of a
centroid is its mean, the second its weight, negative if it is a blend; further columns are weights in
replicates. The footer is

* ``(number of invalid entries, weight of NaN, ...)``,
* ``(smallest finite value, weight of -inf, ...)``,
* ``(largest finite value, weight of +inf, ...)``.

Rows are counted from the end, so that what reads the footer takes a digest or a footer alone. Functions take
NumPy arrays or tensors and return the same kind; what they return may be a view.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from lightning_pce.digest._arrays import Array, namespace

LEAST_COMPRESSION = 8
FOOTER_ROWS = 3
_INVALID, _LOWEST, _HIGHEST = -3, -2, -1  # rows of the footer
_VALUE, _WEIGHT, _REPLICATES = 0, 1, 2  # columns, the last is the first of R


class Items(NamedTuple):
    """Centroids, or what becomes centroids. What is not there has weight 0."""

    means: Array  # [..., M] float64
    weights: Array  # [..., M] float64
    blend: Array  # [..., M] bool: whether its values differ
    columns: Array | None  # [..., M, R] float64: weights in replicates


def empty(
    compression: int = 1024,
    *,
    shape: tuple[int, ...] = (),
    replicates: int = 0,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """The digest of nothing, which adds nothing to a merge.

    Args:
        compression: the number K of centroids. Bytes: ``16 * (K + 3)``.
        shape: leading dimensions, for several digests in one tensor.
        replicates: the number R of further weight columns, see :func:`~lightning_pce.digest.add`.
        device: where it lives; the device must have float64.

    Returns:
        ``[*shape, K + 3, 2 + R]`` float64.

    Raises:
        ValueError: if ``compression`` is below 8 or ``replicates`` negative.

    Example:
        >>> from lightning_pce.digest import count, empty
        >>> count(empty(64))
        tensor(0., dtype=torch.float64)
    """
    check_compression(compression)
    if not isinstance(replicates, int) or replicates < 0:
        raise ValueError(f"Expected argument `replicates` to be a whole number >= 0 but got {replicates}.")
    rows, columns = compression + FOOTER_ROWS, _REPLICATES + replicates
    digest = torch.zeros(*shape, rows, columns, dtype=torch.float64, device=device)
    digest[..., _LOWEST, _VALUE] = math.inf
    digest[..., _HIGHEST, _VALUE] = -math.inf
    return digest


def check_compression(compression: int) -> None:
    """Raise a ``ValueError`` if there can be no digest of so many centroids."""
    if not isinstance(compression, int) or compression < LEAST_COMPRESSION:
        raise ValueError(
            f"Expected argument `compression` to be a whole number of at least {LEAST_COMPRESSION} but got "
            f"{compression}."
        )


def check_digest(digest: torch.Tensor, name: str, shape: str) -> None:
    """Raise a ``ValueError`` if an argument has not the dtype and the shape of a digest.

    ``shape`` is what the error names, such as ``"[G, K + 3, 2]"``; ``...`` in it stands for any dimensions.
    """
    dimensions = len(shape.replace("..., ", "").split(","))
    fits = digest.ndim == dimensions or (digest.ndim > dimensions and "..." in shape)
    rows, columns = digest.shape[-2:] if fits else (0, 0)
    least = LEAST_COMPRESSION + FOOTER_ROWS
    if digest.dtype != torch.float64 or rows < least or columns < _REPLICATES:
        raise ValueError(
            f"Expected argument `{name}` to be {shape} float64 with K at least {LEAST_COMPRESSION} but got "
            f"{tuple(digest.shape)} {digest.dtype}."
        )


def check_state(digest: torch.Tensor) -> None:
    """Raise a ``ValueError`` that says what is wrong if numbers from outside are no digest.

    One pass over ``[..., K + 3, 2 + R]`` and one read by the host, on any device; on the meta device only
    dtype and shape are looked at. What is found is what cannot be: a changed number that still fits is not.

    Example:
        >>> from lightning_pce.digest import empty
        >>> damaged = empty(8)
        >>> damaged[0, 1] = float("nan")
        >>> check_state(damaged)
        Traceback (most recent call last):
        ValueError: Expected a digest with finite weights but got 1 of 1 without.
    """
    if not isinstance(digest, torch.Tensor):
        raise ValueError(f"Expected a digest as a tensor but got {type(digest).__name__}.")
    check_digest(digest, "digest", "[..., K + 3, 2]")
    if digest.is_meta:
        return
    violated = _violations(digest)
    names, flags = list(violated), torch.stack([flag.sum() for flag in violated.values()]).tolist()
    for name, wrong in zip(names, flags, strict=True):
        if wrong:
            number = digest[..., 0, 0].numel()
            raise ValueError(f"Expected a digest with {name} but got {wrong} of {number} without.")


def _violations(digest: torch.Tensor) -> dict[str, torch.Tensor]:
    """What must hold in each digest, and where it does not, ``[...]`` bool."""
    means, weights, blend, _ = unpacked(digest)
    lowest, highest, invalid = lowest_of(digest), highest_of(digest), invalid_of(digest)
    used = weights > 0
    some, both = used.any(-1), used[..., 1:] & used[..., :-1]
    # The sum of many values may be rounded past the extremes.
    slack = 1e-9 * torch.maximum(lowest.abs(), highest.abs())[..., None]
    between = (means >= lowest[..., None] - slack) & (means <= highest[..., None] + slack)
    atoms = ~(blend[..., 1:] | blend[..., :-1])  # equal values are one atom
    falls = (means[..., 1:] < means[..., :-1]) | (atoms & (means[..., 1:] == means[..., :-1]))
    hole = (used[..., 1:] & ~used[..., :-1]).any(-1)
    counts = torch.stack([nan_weight_of(digest), weight_below_of(digest), weight_above_of(digest)], -1)
    finite_ends = lowest.isfinite() & highest.isfinite()
    no_ends = (lowest == math.inf) & (highest == -math.inf)
    whole = (invalid >= 0) & (invalid < math.inf) & (invalid == invalid.floor())
    columns = replicate_weights_of(digest)
    return {
        "finite weights": ~weights.isfinite().all(-1),
        "finite means": ~means.isfinite().all(-1),
        "unused rows of zeros": (~used & ((means != 0) | blend)).any(-1),
        "unused rows at the end": hole,
        "means that ascend": (both & falls).any(-1),
        "finite extremes if and only if it holds finite values": ~torch.where(some, finite_ends, no_ends),
        "a minimum not above the maximum": some & (lowest > highest),
        "means between minimum and maximum": (used & ~between).any(-1),
        "finite counts that are not negative": ~((counts >= 0) & (counts < math.inf)).all(-1),
        "a whole number of invalid entries": ~whole,
        "finite weights of replicates that are not negative": ~(
            ((columns >= 0) & (columns < math.inf)).flatten(-2).all(-1)
        ),
    }


def compression_of(digest: Array) -> int:
    """The number K of centroids a digest can hold."""
    return int(digest.shape[-2]) - FOOTER_ROWS


def replicates_of(digest: Array) -> int:
    """The number R of replicates."""
    return int(digest.shape[-1]) - _REPLICATES


def rows_of(digest: Array) -> Array:
    """The rows of centroids, ``[..., K, C]``."""
    return digest[..., :-FOOTER_ROWS, :]


def means_of(digest: Array) -> Array:
    """``[..., K]``, 0 where a row is not used."""
    return digest[..., :-FOOTER_ROWS, _VALUE]


def signed_weights_of(digest: Array) -> Array:
    """``[..., K]``: negative of a blend, 0 where a row is not used."""
    return digest[..., :-FOOTER_ROWS, _WEIGHT]


def replicate_weights_of(rows: Array) -> Array:
    """The weights in replicates of rows ``[..., M, 2 + R]``: ``[..., M, R]``."""
    return rows[..., _REPLICATES:]


def split_columns(digest: Array) -> tuple[Array, Array]:
    """Copies of the first and the second column, ``[..., K + 3]``, the footer as rows of weight 0."""
    values, weights = digest[..., _VALUE].copy(), digest[..., _WEIGHT].copy()
    weights[..., -FOOTER_ROWS:] = 0
    return values, weights


def footer_of(digest: Array) -> Array:
    """``[..., 3, C]``."""
    return digest[..., -FOOTER_ROWS:, :]


def invalid_of(digest: Array) -> Array:
    """The number of invalid entries, ``[...]``."""
    return digest[..., _INVALID, _VALUE]


def nan_weight_of(digest: Array) -> Array:
    """The weight of NaN, ``[...]``."""
    return digest[..., _INVALID, _WEIGHT]


def lowest_of(digest: Array) -> Array:
    """The smallest finite value, ``[...]``; +inf if there is none."""
    return digest[..., _LOWEST, _VALUE]


def highest_of(digest: Array) -> Array:
    """The largest finite value, ``[...]``; -inf if there is none."""
    return digest[..., _HIGHEST, _VALUE]


def weight_below_of(digest: Array) -> Array:
    """The weight of -inf, ``[...]``."""
    return digest[..., _LOWEST, _WEIGHT]


def weight_above_of(digest: Array) -> Array:
    """The weight of +inf, ``[...]``."""
    return digest[..., _HIGHEST, _WEIGHT]


def unpacked(digest: Array) -> Items:
    """The centroids ``[..., K]`` of a digest."""
    signed = signed_weights_of(digest)
    columns = replicate_weights_of(rows_of(digest)) if replicates_of(digest) else None
    return Items(means_of(digest), abs(signed), signed < 0, columns)


def packed(items: Items, footer: Array) -> Array:
    """Centroids ``[..., K]`` and a footer ``[..., 3, C]`` become a digest ``[..., K + 3, C]``."""
    means, weights, blend, columns = items
    xp = namespace(means)
    rows = xp.stack([xp.where(weights > 0, means, 0.0), xp.where(blend, -weights, weights)], -1)
    return with_footer(rows if columns is None else xp.concatenate([rows, columns], -1), footer)


def with_footer(rows: Array, footer: Array) -> Array:
    """Rows ``[..., K, C]`` and a footer ``[..., 3, C]`` become a digest ``[..., K + 3, C]``."""
    return namespace(rows).concatenate([rows, footer], -2)


def new_footer(invalid: Array, lowest: Array, highest: Array, weights: Array) -> Array:
    """A footer ``[..., 3, C]`` from the number of invalid entries and the finite extremes, each ``[...]``.

    ``weights [..., 3, C - 1]`` are those of NaN, -inf and +inf.
    """
    xp = namespace(weights)
    footer = xp.concatenate([xp.zeros_like(weights[..., :1]), weights], -1)
    footer[..., _INVALID, _VALUE] = invalid
    footer[..., _LOWEST, _VALUE] = lowest + 0.0  # -0.0 becomes 0.0
    footer[..., _HIGHEST, _VALUE] = highest + 0.0
    return footer


def finite_footer(lowest: float, highest: float) -> Array:
    """``[3, 2]``: the footer of finite values without weights, in a third of the time."""
    return np.array([[0.0, 0.0], [lowest + 0.0, 0.0], [highest + 0.0, 0.0]])


def merged_footers(footers: Array) -> Array:
    """Footers ``[M, ..., 3, C]`` become one: counts add up, of the extremes the extreme stays."""
    xp = namespace(footers)
    with np.errstate(over="ignore"):  # of the extremes, which are replaced
        merged = footers.sum(0)
    merged[..., _LOWEST, _VALUE] = xp.amin(lowest_of(footers), 0)
    merged[..., _HIGHEST, _VALUE] = xp.amax(highest_of(footers), 0)
    return merged


def add_to_invalid(digest: Array, number: Array) -> None:
    """Count more invalid entries, in place."""
    digest[..., _INVALID, _VALUE] += number
