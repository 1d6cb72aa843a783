"""What a digest answers: counts, means, quantiles and their inverse.

Everything here takes ``[..., K + 3, 2]`` and answers each digest by itself; of a digest with replicates it
reads the first two columns.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from lightning_pce.digest._arrays import running_sum
from lightning_pce.digest._cells import range_factor
from lightning_pce.digest._centroids import inside
from lightning_pce.digest._format import (
    highest_of,
    invalid_of,
    lowest_of,
    nan_weight_of,
    unpacked,
    weight_above_of,
    weight_below_of,
)

_TINY = 1e-300


def centroids(digest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a digest: means, weights and blend flags; unused rows have weight 0.

    Args:
        digest: ``[..., K + 3, 2]``.

    Returns:
        Means and weights, float64 ``[..., K]``, and whether the values of a row were not all equal, bool.

    Example:
        >>> from lightning_pce.digest import centroids, from_values
        >>> means, weights, blend = centroids(from_values(torch.tensor([3.0, 1.0, 1.0]), compression=8))
        >>> means[:2], weights[:2]
        (tensor([1., 3.], dtype=torch.float64), tensor([2., 1.], dtype=torch.float64))
    """
    means, weights, blend, _ = unpacked(digest)
    return means, weights, blend


def count(digest: Tensor) -> Tensor:
    """The weight of everything but NaN in a digest ``[..., K + 3, 2]``: ``[...]`` float64, exact to 2**53.

    Example:
        >>> from lightning_pce.digest import count, from_values
        >>> count(from_values(torch.tensor([1.0, 2.0, torch.inf, torch.nan])))
        tensor(3., dtype=torch.float64)
    """
    return cast(Tensor, _finite_weight(digest) + weight_below_of(digest) + weight_above_of(digest))


def nonfinite(digest: Tensor) -> Tensor:
    """The weight of NaN, -inf and +inf in a digest ``[..., K + 3, 2]``: ``[...]`` float64.

    Example:
        >>> from lightning_pce.digest import from_values, nonfinite
        >>> nonfinite(from_values(torch.tensor([1.0, 2.0, torch.inf, torch.nan])))
        tensor(2., dtype=torch.float64)
    """
    return cast(Tensor, nan_weight_of(digest) + weight_below_of(digest) + weight_above_of(digest))


def invalid(digest: Tensor) -> Tensor:
    """The number of entries that a digest ``[..., K + 3, 2]`` has refused one by one: ``[...]`` float64.

    Those are weights and, on accelerators, groups that are none; see :func:`~lightning_pce.digest.add`.

    Example:
        >>> from lightning_pce.digest import add_invalid, empty, invalid
        >>> invalid(add_invalid(empty(8), torch.tensor(2)))
        tensor(2., dtype=torch.float64)
    """
    return cast(Tensor, invalid_of(digest))


def finite_mean(digest: Tensor) -> Tensor:
    """The mean of the finite values of a digest ``[..., K + 3, 2]``: ``[...]`` float64, NaN of none.

    Example:
        >>> from lightning_pce.digest import finite_mean, from_values
        >>> finite_mean(from_values(torch.tensor([1.0, 3.0, torch.inf])))
        tensor(2., dtype=torch.float64)
    """
    means, weights, _ = centroids(digest)
    total = weights.sum(-1)
    factor = range_factor(means.amin(-1), means.amax(-1), total)
    return cast(Tensor, (means * factor[..., None] * weights).sum(-1) / total / factor)


def mean(digest: Tensor) -> Tensor:
    """The mean of a digest ``[..., K + 3, 2]``: ``[...]`` float64.

    +inf or -inf if such a value was seen, NaN if both or nothing.

    Example:
        >>> from lightning_pce.digest import from_values, mean
        >>> mean(from_values(torch.tensor([1.0, 3.0, torch.inf])))
        tensor(inf, dtype=torch.float64)
    """
    return _with_infinite(finite_mean(digest), weight_below_of(digest) > 0, weight_above_of(digest) > 0)


def minimum(digest: Tensor) -> Tensor:
    """The smallest value of a digest ``[..., K + 3, 2]``: ``[...]`` float64, NaN if there is none.

    Example:
        >>> from lightning_pce.digest import from_values, minimum
        >>> minimum(from_values(torch.tensor([3.0, 1.0, 2.0])))
        tensor(1., dtype=torch.float64)
    """
    return quantile(digest, 0.0)


def maximum(digest: Tensor) -> Tensor:
    """The largest value of a digest ``[..., K + 3, 2]``: ``[...]`` float64, NaN if there is none.

    Example:
        >>> from lightning_pce.digest import from_values, maximum
        >>> maximum(from_values(torch.tensor([3.0, 1.0, 2.0])))
        tensor(3., dtype=torch.float64)
    """
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
        >>> from lightning_pce.digest import from_values, quantile
        >>> quantile(from_values(torch.arange(1000.0)), torch.tensor([0.0, 0.5, 1.0]))
        tensor([  0.0000, 499.5000, 999.0000], dtype=torch.float64)
    """
    if not isinstance(q, Tensor) and not 0 <= q <= 1:
        raise ValueError(f"Expected argument `q` to be in [0, 1] but got {q}.")
    q = torch.as_tensor(q, dtype=torch.float64, device=digest.device)
    flat = q.reshape(-1).clamp(0, 1).expand(*digest.shape[:-2], -1)
    at, value, first, length = _quantile_knots(digest)
    below, above = weight_below_of(digest)[..., None], weight_above_of(digest)[..., None]
    finite = _finite_weight(digest)[..., None] > 0
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
        >>> from lightning_pce.digest import cdf, from_values
        >>> cdf(from_values(torch.arange(11.0)), 2.5)
        tensor(0.2500, dtype=torch.float64)
    """
    x = torch.as_tensor(x, dtype=torch.float64, device=digest.device)
    flat = x.reshape(-1).expand(*digest.shape[:-2], -1)
    at, value, first, length = _quantile_knots(digest)
    below, above = weight_below_of(digest)[..., None], weight_above_of(digest)[..., None]
    finite = _finite_weight(digest)[..., None] > 0
    place = torch.where(flat < value[..., :1], at[..., :1], _interpolate(value, at, flat))
    place = torch.where(finite, place, below + above.clamp(max=1) / 2)
    q = ((place - first) / length.clamp_min(_TINY)).clamp(0, 1)
    top = torch.where(above > 0, math.inf, torch.where(finite, value[..., -1:], -math.inf))
    bottom = torch.where(below > 0, -math.inf, torch.where(finite, value[..., :1], math.inf))
    q = torch.where(flat >= top, 1.0, torch.where(flat < bottom, 0.0, q))
    q = torch.where((count(digest)[..., None] > 0) & ~flat.isnan(), q, math.nan)
    return q.reshape((*digest.shape[:-2], *x.shape))


def trimmed_mean(digest: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """The mean of what lies between the quantiles ``low`` and ``high``.

    A value that straddles a limit enters by the part of its weight inside, so that at most K values give the
    exact interpolated trimmed mean, and the parts of a digest add up. ``trimmed_mean(d, 0, 1)`` is
    :func:`mean`.

    Args:
        digest: ``[..., K + 3, 2]``.
        low: lower limits, numbers in [0, 1), any shape ``Q``.
        high: upper limits, in (low, 1], of the same shape or one that broadcasts.

    Returns:
        ``[..., *Q]`` float64; infinite if an infinite value is not trimmed, NaN if the digest is empty.

    Raises:
        ValueError: if plain numbers are not ``0 <= low < high <= 1``. (Looking into tensors would wait for
            the device: there the result means nothing.)

    Example:
        >>> from lightning_pce.digest import from_values, trimmed_mean
        >>> trimmed_mean(from_values(torch.tensor([-100.0, 1.0, 2.0, 3.0, 900.0])), 0.2, 0.8)
        tensor(2., dtype=torch.float64)
    """
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not 0 <= low < high <= 1:
        raise ValueError(
            f"Expected arguments `low` and `high` with 0 <= low < high <= 1 but got {low} and {high}."
        )
    at: dict[str, Any] = {"dtype": torch.float64, "device": digest.device}
    limits = [
        # Not a copy from the host, which would wait for the device.
        each.to(**at) if isinstance(each, Tensor) else torch.full((), each, **at)
        for each in (low, high)
    ]
    shape = (*digest.shape[:-2], *(limits[0] + limits[1]).shape)
    digest = digest[..., None, :, :]
    below, above, total = weight_below_of(digest), weight_above_of(digest), count(digest)
    start, stop = (limit.reshape(-1) * total for limit in limits)
    inner = _mean_between(digest, start - below, stop - below)
    return _with_infinite(inner, start < below, stop > total - above).reshape(shape)


def tail_mean(digest: Tensor, q: float) -> Tensor:
    """The mean of what lies above the quantile ``q``; see :func:`trimmed_mean`.

    Args:
        digest: ``[..., K + 3, 2]``.
        q: in [0, 1]; at 1 it is the largest value.

    Returns:
        ``[...]`` float64; infinite if +inf was seen, NaN if the digest is empty.

    Raises:
        ValueError: if ``q`` is outside [0, 1].

    Example:
        >>> from lightning_pce.digest import from_values, tail_mean
        >>> tail_mean(from_values(torch.arange(1.0, 11.0)), 0.8)
        tensor(9.5000, dtype=torch.float64)
    """
    return maximum(digest) if q == 1 else trimmed_mean(digest, q, 1.0)


def curve(digest: Tensor, points: int = 201) -> tuple[Tensor, Tensor]:
    """The quantile function on an even grid, for plots.

    Args:
        digest: ``[..., K + 3, 2]``.
        points: how many, both ends included.

    Returns:
        q from 0 to 1, ``[points]``, and the values there, ``[..., points]``, float64; NaN of an empty digest.

    Example:
        >>> from lightning_pce.digest import curve, from_values
        >>> q, value = curve(from_values(torch.arange(101.0)), points=5)
        >>> value
        tensor([  0.,  25.,  50.,  75., 100.], dtype=torch.float64)
    """
    q = torch.linspace(0, 1, points, dtype=torch.float64, device=digest.device)
    return q, quantile(digest, q)


def _finite_weight(digest: Tensor) -> Tensor:
    return cast(Tensor, unpacked(digest).weights.sum(-1))


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
    (_, weights, blend, _), left, middle, right = inside(digest)
    used = weights > 0
    some = used.any(-1, keepdim=True)
    lowest = torch.where(some, lowest_of(digest)[..., None], 0.0)
    highest = torch.where(some, highest_of(digest)[..., None], 0.0)
    below, above = weight_below_of(digest)[..., None], weight_above_of(digest)[..., None]
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
    value = torch.minimum(value, highest)
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


def _mean_between(digest: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """The mean of the finite weight from start to stop, ``[..., S]`` each, of ``[..., 1, K + 3, 2]``.

    The sum is that of the parts inside. A difference of two sums from the end would lose all that is small
    beside one extreme value outside.
    """
    (means, weights, _, _), left, middle, right = inside(digest)
    factor = range_factor(means.amin(-1), means.amax(-1), stop - start)
    means, left, middle, right = (part * factor[..., None] for part in (means, left, middle, right))
    upto = running_sum(weights)
    # The parts of each centroid below start and below stop, in its lower and in its upper half.
    ends = [
        ((limit[..., None] - upto + weights) / weights.clamp_min(_TINY)).clamp(0, 1)
        for limit in (start, stop)
    ]
    (a, b), (c, d) = ([end.clamp(max=0.5) for end in ends], [end.clamp(min=0.5) for end in ends])
    lower = (b - a) * (left + (middle - left) * (a + b))
    upper = (d - c) * (middle + (right - middle) * (c + d - 1))
    whole = (ends[0] == 0) & (ends[1] == 1)
    sums = weights * torch.where(whole, means, lower + upper)
    return cast(Tensor, sums.sum(-1) / (stop - start) / factor)
