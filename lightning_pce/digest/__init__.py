"""A t-digest as pure functions on one packed tensor: build, add, merge, query.

A digest is a float64 tensor ``[..., K + 3, 2]`` whose shape never changes, whatever it has seen:

* rows ``0 ... K - 1`` are centroids ``(mean, weight)`` in ascending order, unused ones ``(0, 0)`` at the end.
  A negative weight marks a **blend**, a centroid whose values were not all equal. All others are **atoms**:
  their mean is the value itself, so that a stream with at most K distinct values is kept exactly;
* row ``K`` is ``(number of invalid entries, weight of NaN)``;
* row ``K + 1`` is ``(smallest finite value, weight of -inf)``;
* row ``K + 2`` is ``(largest finite value, weight of +inf)``.

Further columns, ``[..., K + 3, 2 + R]``, are weights of the same rows in R resamples of the data, for error
bars; all functions take such a digest for what its first two columns say.

Leading dimensions are independent digests. Nothing is modified in place, no shape depends on a value, and on
an accelerator nothing waits for the device. All values and results are in the unit of what was added (nats
for CE).

Method: the merging t-digest of Dunning and Ertl (arXiv 1902.04023) with scale function k1, and three changes.
Equal values are never cut apart. A blend has an inside, two straight pieces of quantile function
reconstructed from its neighbours so that its mean is kept; it enters a merge as the two halves of that and
not as one lump (worst rank error of 1e6 normal values in batches of 512: 6e-5 instead of 5e-4). And a batch
is sorted alone, on a CPU a large one only counted on a scale, before it meets the centroids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lightning_pce.digest._add import Entries, add_batch
from lightning_pce.digest._arrays import running_sum
from lightning_pce.digest._centroids import BOOK_ROWS, HIGHEST, INVALID, LOWEST, inside
from lightning_pce.digest._merge import merge_stack

# A larger batch is added in pieces, so that the float64 scratch stays small (8 MiB).
_PIECE = 1 << 20
_TINY = 1e-300


def empty(
    compression: int = 1024,
    *,
    shape: tuple[int, ...] = (),
    replicates: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """The digest of nothing, which adds nothing to a merge.

    Args:
        compression: the number K of centroids. Bytes: ``16 * (K + 3)``.
        shape: leading dimensions, for several digests in one tensor.
        replicates: the number R of further weight columns, see :func:`add`.
        device: where it lives; the device must have float64.

    Returns:
        ``[*shape, K + 3, 2 + R]`` float64.

    Raises:
        ValueError: if ``compression`` is below 8 or ``replicates`` negative.

    Example:
        >>> count(empty(64))
        tensor(0., dtype=torch.float64)
    """
    _check_compression(compression)
    if not isinstance(replicates, int) or replicates < 0:
        raise ValueError(f"Expected argument `replicates` to be a whole number >= 0 but got {replicates}.")
    rows, columns = compression + BOOK_ROWS, 2 + replicates
    digest = torch.zeros(*shape, rows, columns, dtype=torch.float64, device=device)
    digest[..., compression + LOWEST, 0] = math.inf
    digest[..., compression + HIGHEST, 0] = -math.inf
    return digest


def from_values(values: Tensor, weights: Tensor | None = None, *, compression: int = 1024) -> Tensor:
    """The digest of ``values`` (any shape, any floating dtype), see :func:`add`.

    Example:
        >>> digest = from_values(torch.arange(101.0))
        >>> quantile(digest, 0.5)
        tensor(50., dtype=torch.float64)
    """
    return add(empty(compression, device=values.device), values, weights)


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
            what is no weight). They share the centroids, see :func:`replicate_digests`.

    Returns:
        A digest of the same shape, float64.

    Raises:
        ValueError: if shapes or dtypes do not fit; on a CPU also if a value that counts has a group outside
            [0, G). On accelerators, where looking would make the host wait, such a value is left out and
            counted as invalid in group 0.

    Example:
        >>> digest = add(empty(64), torch.tensor([1.0, 2.0]), torch.tensor([3, 1]))
        >>> count(digest), mean(digest)
        (tensor(4., dtype=torch.float64), tensor(1.2500, dtype=torch.float64))
        >>> two = add(empty(64, shape=(2,)), torch.tensor([1.0, 5.0, 3.0]), groups=torch.tensor([0, 1, 0]))
        >>> mean(two)
        tensor([2., 5.], dtype=torch.float64)
    """
    _check(digest, "digest", leading=0 if groups is None else 1)
    _check_entries(digest, values, weights, groups, replicates)
    entries = _flat(values, weights, groups, replicates)
    digest, entries = _without_strange_groups(digest, entries)
    if not values.numel():
        return digest.clone()
    piece = _PIECE // digest.shape[-1] * 2
    for start in range(0, values.numel(), piece):
        digest = _on_arrays(_add_piece, digest, *entries.at(slice(start, start + piece)))
    return digest


def _add_piece(digest: Any, *entries: Any) -> Any:
    return add_batch(digest, Entries(*entries))


def _check_entries(
    digest: Tensor, values: Tensor, weights: Tensor | None, groups: Tensor | None, replicates: Tensor | None
) -> None:
    if not values.is_floating_point():
        raise ValueError(f"Expected argument `values` to be floating point but got {values.dtype}.")
    for name, given in (("weights", weights), ("groups", groups), ("replicates", replicates)):
        _check_beside(name, given, values)
    if groups is not None and (groups.is_floating_point() or groups.dtype == torch.bool):
        raise ValueError(f"Expected argument `groups` to hold integers but got {groups.dtype}.")
    wanted, got = digest.shape[-1] - 2, 0
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
    values = values.detach().reshape(-1)
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    weights = None if weights is None else weights.detach().reshape(-1)
    if weights is not None and weights.is_floating_point():
        weights = weights.double()
    groups = None if groups is None else groups.reshape(-1).long()
    replicates = (
        None if replicates is None else replicates.detach().reshape(len(values), replicates.shape[-1])
    )
    if replicates is not None:
        replicates = (
            replicates.double() if replicates.dtype in (torch.float64, torch.int64) else replicates.float()
        )
        replicates = torch.where((replicates >= 0) & (replicates < math.inf), replicates, 0.0)
    return Entries(values, weights, replicates, groups)


def _without_strange_groups(digest: Tensor, entries: Entries) -> tuple[Tensor, Entries]:
    """Entries whose group is in range if they count, and a digest that has counted the others."""
    x, weights, replicates, groups = entries
    if groups is None:
        return digest, entries
    number = len(digest)
    strange = (groups < 0) | (groups >= number)
    counted = torch.ones_like(strange) if weights is None else weights != 0
    if groups.device.type == "cpu":
        if not strange.any():
            return digest, entries
        wrong = groups[strange & counted]
        if len(wrong):
            raise ValueError(
                f"Expected argument `groups` to hold numbers in [0, {number}) but got {wrong[0]}."
            )
    else:
        digest = digest.clone()
        digest[0, -BOOK_ROWS + INVALID, 0] += (strange & counted).sum()
    weights = ~strange if weights is None else torch.where(strange, 0, weights).to(weights.dtype)
    return digest, Entries(x, weights, replicates, torch.where(strange, 0, groups))


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
        >>> parts = torch.stack([from_values(torch.tensor([1.0, 2.0])), from_values(torch.tensor([3.0]))])
        >>> quantile(merge(parts), 0.5)
        tensor(2., dtype=torch.float64)
    """
    _check(digests, "digests", leading=1)
    if not len(digests):
        raise ValueError("Expected argument `digests` to be a stack of at least one but got none.")
    if compression is not None:
        _check_compression(compression)
    return _on_arrays(partial(merge_stack, compression=compression), digests)


def replicate_digests(digest: Tensor) -> Tensor:
    """The digests of the replicates, ``[R, ..., K + 3, 2]``: all functions here take them.

    They have the centroids of the digest, with weights of their own: their quantiles differ from those of a
    digest made of the resampled values by less than the width of a centroid. Their extremes are those of the
    data where they have weight in the outermost centroid, else the mean of the outermost they have.

    Example:
        >>> weights = torch.tensor([[1, 0], [1, 3], [1, 0]])
        >>> digest = add(empty(8, replicates=2), torch.tensor([1.0, 2.0, 6.0]), replicates=weights)
        >>> mean(replicate_digests(digest))
        tensor([3., 2.], dtype=torch.float64)
    """
    own, book = digest[..., :-BOOK_ROWS, :], digest[..., -BOOK_ROWS:, :]
    weights = own[..., 2:].movedim(-1, 0)
    used = weights > 0
    blend = (own[..., 1] < 0).expand(weights.shape)
    rows = torch.stack([own[..., 0].expand(weights.shape), torch.where(blend, -weights, weights)], -1)
    # Rows without weight in a replicate come last.
    order = (~used).to(torch.uint8).argsort(dim=-1, stable=True)
    rows = torch.where(used[..., None], rows, 0.0).gather(-2, order[..., None].expand(rows.shape))
    counts = book[..., 2:].movedim(-1, 0)
    values = book[..., 0].expand(counts.shape).clone()
    some = used.any(-1)
    last = (own[..., 1] != 0).sum(-1).sub(1).clamp_min(0).expand(some.shape)[..., None]
    own_last = used.sum(-1, keepdim=True).sub(1).clamp_min(0)
    lowest, highest = rows[..., 0, 0], rows[..., 0].gather(-1, own_last)[..., 0]
    values[..., LOWEST] = torch.where(used[..., 0] | ~some, values[..., LOWEST], lowest)
    has_last = used.gather(-1, last)[..., 0]
    values[..., HIGHEST] = torch.where(has_last | ~some, values[..., HIGHEST], highest)
    return torch.cat([rows, torch.stack([values, counts], -1)], -2)


def centroids(digest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a digest: means, weights and blend flags, each ``[..., K]``; unused rows have weight 0.

    Example:
        >>> means, weights, blend = centroids(from_values(torch.tensor([3.0, 1.0, 1.0]), compression=8))
        >>> means[:2], weights[:2]
        (tensor([1., 3.], dtype=torch.float64), tensor([2., 1.], dtype=torch.float64))
    """
    means, signed = digest[..., :-BOOK_ROWS, 0], digest[..., :-BOOK_ROWS, 1]
    return means, signed.abs(), signed < 0


def add_invalid(digest: Tensor, number: Tensor) -> Tensor:
    """A new digest that counts ``number`` more invalid entries.

    Example:
        >>> invalid(add_invalid(empty(8), torch.tensor(3)))
        tensor(3., dtype=torch.float64)
    """
    digest = digest.clone()
    digest[..., -BOOK_ROWS + INVALID, 0] += number
    return digest


def count(digest: Tensor) -> Tensor:
    """The weight of everything but NaN, ``[...]`` float64; exact up to 2**53."""
    return centroids(digest)[1].sum(-1) + digest[..., -2, 1] + digest[..., -1, 1]


def nonfinite(digest: Tensor) -> Tensor:
    """The weight of NaN, -inf and +inf, ``[...]`` float64."""
    return digest[..., -3:, 1].sum(-1)


def invalid(digest: Tensor) -> Tensor:
    """The number of entries that were refused one by one (see :func:`add`), ``[...]`` float64."""
    return digest[..., -BOOK_ROWS + INVALID, 0]


def finite_mean(digest: Tensor) -> Tensor:
    """The mean of the finite values, ``[...]`` float64; NaN if there are none.

    Example:
        >>> finite_mean(from_values(torch.tensor([1.0, 3.0, torch.inf])))
        tensor(2., dtype=torch.float64)
    """
    means, weights, _ = centroids(digest)
    return (means * weights).sum(-1) / weights.sum(-1)


def mean(digest: Tensor) -> Tensor:
    """The mean, ``[...]`` float64: +inf or -inf if such a value was seen, NaN if both or nothing.

    Example:
        >>> mean(from_values(torch.tensor([1.0, 3.0, torch.inf])))
        tensor(inf, dtype=torch.float64)
    """
    return _with_infinite(finite_mean(digest), digest[..., -2, 1] > 0, digest[..., -1, 1] > 0)


def minimum(digest: Tensor) -> Tensor:
    """The smallest value, ``[...]`` float64; NaN if there is none."""
    return quantile(digest, 0.0)


def maximum(digest: Tensor) -> Tensor:
    """The largest value, ``[...]`` float64; NaN if there is none."""
    return quantile(digest, 1.0)


def quantile(digest: Tensor, q: float | Tensor) -> Tensor:
    """The values below which fractions ``q`` of the weight lie.

    As long as every centroid is an atom of whole weight this is ``torch.quantile`` with linear interpolation
    of the values, each repeated by its weight. The extremes are always exact, and the result never falls as q
    grows.

    Args:
        digest: ``[..., K + 3, 2]``.
        q: numbers in [0, 1], any shape ``Q``.

    Returns:
        ``[..., *Q]`` float64, NaN where the digest is empty or q is NaN.

    Raises:
        ValueError: if a plain number ``q`` is outside [0, 1]. (Looking into a tensor would wait for the
            device: there it counts as 0 or 1.)

    Example:
        >>> quantile(from_values(torch.arange(1000.0)), torch.tensor([0.0, 0.5, 1.0]))
        tensor([  0.0000, 499.5000, 999.0000], dtype=torch.float64)
    """
    if not isinstance(q, Tensor) and not 0 <= q <= 1:
        raise ValueError(f"Expected argument `q` to be in [0, 1] but got {q}.")
    q = torch.as_tensor(q, dtype=torch.float64, device=digest.device)
    flat = q.reshape(-1).clamp(0, 1).expand(*digest.shape[:-2], -1)
    at, value, first, length = _quantile_knots(digest)
    below, above = digest[..., -2, 1:2], digest[..., -1, 1:2]
    finite = centroids(digest)[1].sum(-1, keepdim=True) > 0
    place = torch.where(flat == 1, first + length, first + flat * length)
    result = _interpolate(at, value, place)
    # Between -inf and the lowest finite value lies -inf, between the highest and +inf lies +inf.
    low = torch.where(finite, place < at[..., :1], place < below + above.clamp(max=1) / 2)
    high = torch.where(finite, place > at[..., -1:], ~low)
    result = torch.where((below > 0) & low, -math.inf, result)
    result = torch.where((above > 0) & (high | ((below == 0) & ~finite)), math.inf, result)
    result = torch.where((count(digest)[..., None] > 0) & ~flat.isnan(), result, math.nan)
    return result.reshape((*digest.shape[:-2], *q.shape))


def cdf(digest: Tensor, x: float | Tensor) -> Tensor:
    """The largest q whose quantile is not above ``x``: the inverse of :func:`quantile`.

    Args:
        digest: ``[..., K + 3, 2]``.
        x: values, any shape ``X``.

    Returns:
        ``[..., *X]`` float64 in [0, 1], NaN where the digest is empty or x is NaN.

    Example:
        >>> cdf(from_values(torch.arange(11.0)), 2.5)
        tensor(0.2500, dtype=torch.float64)
    """
    x = torch.as_tensor(x, dtype=torch.float64, device=digest.device)
    flat = x.reshape(-1).expand(*digest.shape[:-2], -1)
    at, value, first, length = _quantile_knots(digest)
    below, above = digest[..., -2, 1:2], digest[..., -1, 1:2]
    finite = centroids(digest)[1].sum(-1, keepdim=True) > 0
    place = torch.where(flat < value[..., :1], at[..., :1], _interpolate(value, at, flat))
    place = torch.where(finite, place, below + above.clamp(max=1) / 2)
    q = ((place - first) / length.clamp_min(_TINY)).clamp(0, 1)
    top = torch.where(above > 0, math.inf, torch.where(finite, value[..., -1:], -math.inf))
    bottom = torch.where(below > 0, -math.inf, torch.where(finite, value[..., :1], math.inf))
    q = torch.where(flat >= top, 1.0, torch.where(flat < bottom, 0.0, q))
    q = torch.where((count(digest)[..., None] > 0) & ~flat.isnan(), q, math.nan)
    return q.reshape((*digest.shape[:-2], *x.shape))


def trimmed_mean(digest: Tensor, low: float, high: float) -> Tensor:
    """The mean of what lies between the quantiles ``low`` and ``high``.

    A value that straddles a limit enters by the part of its weight inside, so that at most K values give the
    exact interpolated trimmed mean. ``trimmed_mean(d, 0, 1)`` is :func:`mean`.

    Args:
        digest: ``[..., K + 3, 2]``.
        low: lower limit, in [0, 1).
        high: upper limit, in (low, 1].

    Returns:
        ``[...]`` float64; infinite if an infinite value is not trimmed, NaN if the digest is empty.

    Raises:
        ValueError: if the limits are not ``0 <= low < high <= 1``.

    Example:
        >>> trimmed_mean(from_values(torch.tensor([-100.0, 1.0, 2.0, 3.0, 900.0])), 0.2, 0.8)
        tensor(2., dtype=torch.float64)
    """
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"Expected arguments `low` and `high` with 0 <= low < high <= 1 but got {low} and {high}."
        )
    below, above, total = digest[..., -2, 1], digest[..., -1, 1], count(digest)
    start, stop = low * total, high * total
    limits = torch.stack([start - below, stop - below], dim=-1)
    weights = centroids(digest)[1].sum(-1, keepdim=True)
    limits = torch.minimum(limits.clamp_min(0), weights)
    inner = _sum_below(digest, limits).diff(dim=-1)[..., 0] / (stop - start)
    return _with_infinite(inner, start < below, stop > total - above)


def tail_mean(digest: Tensor, q: float) -> Tensor:
    """The mean of what lies above the quantile ``q``, ``[...]`` float64; see :func:`trimmed_mean`.

    Example:
        >>> tail_mean(from_values(torch.arange(1.0, 11.0)), 0.8)
        tensor(9.5000, dtype=torch.float64)
    """
    return maximum(digest) if q == 1 else trimmed_mean(digest, q, 1.0)


def curve(digest: Tensor, points: int = 201) -> tuple[Tensor, Tensor]:
    """The quantile function on an even grid, for plots: q ``[points]`` and values ``[..., points]``, float64.

    Example:
        >>> q, value = curve(from_values(torch.arange(101.0)), points=5)
        >>> value
        tensor([  0.,  25.,  50.,  75., 100.], dtype=torch.float64)
    """
    q = torch.linspace(0, 1, points, dtype=torch.float64, device=digest.device)
    return q, quantile(digest, q)


def _with_infinite(value: Tensor, below: Tensor, above: Tensor) -> Tensor:
    value = torch.where(above, math.inf, torch.where(below, -math.inf, value))
    return torch.where(above & below, math.nan, value)


def _quantile_knots(digest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The quantile function as a polygon in weight: place ``[..., 3K]`` and value ``[..., 3K]``, both
    ascending.

    Also the place of q = 0 and the length from there to q = 1, each ``[..., 1]``. Neighbouring order
    statistics are 1 apart, the n-th lies at n - 1/2: an atom of weight w is flat over the w - 1 between its
    first and its last, and between atoms the polygon climbs over a length of 1, as linear interpolation does.
    """
    _, weights, blend, left, middle, right = inside(digest)
    used = weights > 0
    some = used.any(-1, keepdim=True)
    lowest = torch.where(some, digest[..., -BOOK_ROWS + LOWEST, :1], 0.0)
    highest = torch.where(some, digest[..., -BOOK_ROWS + HIGHEST, :1], 0.0)
    below, above = digest[..., -BOOK_ROWS + LOWEST, 1:2], digest[..., -BOOK_ROWS + HIGHEST, 1:2]
    stop = running_sum(weights) + below
    start = stop - weights
    last_used = used & ~torch.nn.functional.pad(used[..., 1:], (0, 1))
    inner = blend & ~last_used
    inner[..., 0] = False
    margin = torch.where(inner, 0.0, weights.clamp(max=1) / 2)
    last = stop[..., -1:] - (margin * last_used).sum(-1, keepdim=True)
    at = torch.stack([start + margin, (start + stop) / 2, stop - margin], dim=-1).flatten(-2)
    at = torch.minimum(at, last)
    value = torch.stack([left, middle, right], dim=-1)
    # The outermost of weight 1 is the extreme, even where batches have left another value nearer to the end.
    light, first = weights <= 1, torch.zeros_like(used)
    first[..., 0] = True
    value = torch.where((light & first & ~last_used)[..., None], lowest[..., None], value)
    value = torch.where((light & last_used & ~first)[..., None], highest[..., None], value)
    value = torch.where(used[..., None], value, highest[..., None]).flatten(-2)
    # The outermost values are known, whatever the slope inside the outermost blends.
    value = torch.where(_third(last_used), highest, torch.cat([lowest, value[..., 1:]], dim=-1))
    # q = 0 is the place of the first order statistic of all, q = 1 that of the last.
    total = stop[..., -1:] + above
    inner_head = torch.where(some, margin[..., :1], above.clamp(max=1) / 2)
    inner_tail = torch.where(some, stop[..., -1:] - last, below.clamp(max=1) / 2)
    head = torch.where(below > 0, below.clamp(max=1) / 2, inner_head)
    tail = torch.where(above > 0, above.clamp(max=1) / 2, inner_tail)
    return at, value.cummax(-1).values, head, total - head - tail


def _third(flags: Tensor) -> Tensor:
    """``[..., K]`` -> ``[..., 3K]``: each flag at the third knot of its centroid."""
    off = torch.zeros_like(flags)
    return torch.stack([off, off, flags], dim=-1).flatten(-2)


def _interpolate(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """The polygon through ascending x, y ``[..., M]`` at ``[..., S]``: the last of equal x; flat outside."""
    above = torch.searchsorted(x.contiguous(), at.contiguous(), right=True).clamp(1, x.shape[-1] - 1)
    x0, x1 = x.gather(-1, above - 1), x.gather(-1, above)
    y0, y1 = y.gather(-1, above - 1), y.gather(-1, above)
    part = torch.where(x1 > x0, (at - x0) / (x1 - x0), 1.0).clamp(0, 1)
    rise = y1 - y0
    between = torch.where(rise.isfinite(), y0 + rise * part, y0 * (1 - part) + y1 * part)
    return torch.where(part == 1, y1, torch.minimum(between, y1))


def _sum_below(digest: Tensor, limits: Tensor) -> Tensor:
    """The sum of the lowest ``limits [..., S]`` of finite weight, ``[..., S]``."""
    means, weights, _, left, middle, right = inside(digest)
    stop, sums = running_sum(weights), running_sum(means * weights)
    index = torch.searchsorted(stop, limits.contiguous()).clamp(max=weights.shape[-1] - 1)
    mean_, weight, low, mid, high = (part.gather(-1, index) for part in (means, weights, left, middle, right))
    before = sums.gather(-1, index) - mean_ * weight
    part = ((limits - stop.gather(-1, index) + weight) / weight.clamp_min(_TINY)).clamp(0, 1)
    rest = 1 - part
    lower = part * (low + (mid - low) * part)
    upper = mean_ - rest * (high + (mid - high) * rest)
    return cast(Tensor, before + weight * torch.where(part <= 0.5, lower, upper))


def _check_compression(compression: int) -> None:
    if not isinstance(compression, int) or compression < 8:
        raise ValueError(
            f"Expected argument `compression` to be a whole number of at least 8 but got {compression}."
        )


def _check(digest: Tensor, name: str, *, leading: int) -> None:
    few = digest.ndim < 2 + leading if name == "digests" else digest.ndim != 2 + leading
    if few or digest.dtype != torch.float64 or digest.shape[-1] < 2 or digest.shape[-2] < 8 + BOOK_ROWS:
        wanted = "[M, ..., K + 3, 2]" if name == "digests" else ["[K + 3, 2]", "[G, K + 3, 2]"][leading]
        raise ValueError(
            f"Expected argument `{name}` to be {wanted} float64 with K at least 8 but got "
            f"{tuple(digest.shape)} {digest.dtype}."
        )


def _on_arrays(function: Callable[..., Any], *tensors: Tensor | None) -> Tensor:
    """Call with NumPy views of tensors on the CPU, where NumPy is faster, elsewhere with the tensors."""
    if tensors[0] is None or tensors[0].device.type != "cpu":
        return cast(Tensor, function(*tensors))
    return torch.from_numpy(function(*(None if tensor is None else tensor.numpy() for tensor in tensors)))
