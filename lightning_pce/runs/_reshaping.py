"""How the distribution of a loss has changed between two records."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce.runs._candidates import Candidates, Entry, Item, item_of

_CELLS = 200
# Where areas are split: the lower half, the upper half without the top 5 %, and these.
_SPLIT = (100, 190)
_LEVEL = 0.95
_ROUNDED = 1e-14  # part of a value that may be a rounding error


class Areas(NamedTuple):
    """What parts of the tokens contribute to a change of the mean, in nats a token."""

    lower: float
    """Of the lower half of the tokens, u < 0.5."""
    middle: float
    """Of 0.5 < u < 0.95."""
    upper: float
    """Of the top 5 %."""

    @property
    def total(self) -> float:
        return self.lower + self.middle + self.upper


class Reshaping(NamedTuple):
    """What :func:`reshaping` returns; u is the share of tokens below, 0.5 at the median."""

    before: str
    """The name of the record before."""
    after: str
    """The name of the record after."""
    u: Tensor
    """``[199]``: 0.005, 0.01, ... 0.995."""
    difference: Tensor
    """``[199]``: D(u), the quantile after less that before, in nats."""
    low: Tensor
    """``[199]``: the lower end of a band that holds the whole curve in 95 %; NaN without error bars."""
    high: Tensor
    """``[199]``: the upper end."""
    better_share: float
    """The share of the u where D < 0."""
    better: tuple[tuple[float, float], ...]
    """Ranges of u, ends included, where the whole band is below 0: surely better."""
    worse: tuple[tuple[float, float], ...]
    """The same above 0: surely worse."""
    crossing: float | None
    """The u that parts a better from a worse side: of all changes of sign the one with the most area on its
    smaller side. None: one side only."""
    better_below: bool
    """Whether the better side, by its area, is the one below the crossing; True without a crossing."""
    gained: Areas
    """The area where D < 0, a positive number: by how much the mean falls for it."""
    lost: Areas
    """The area where D > 0: by how much the mean rises for it. ``lost.total - gained.total`` is the change of
    the mean."""
    reason: str | None
    """Why there is no band, or a word of caution; None if there is nothing to say."""


def reshaping(before: Entry, after: Entry) -> Reshaping:
    """What has become better and what worse from one record to another, over the whole distribution.

    Of the quantile functions the difference D(u) on 199 even u, with a band from paired resamples of the
    documents that holds the whole curve in 95 %: where it lies below 0 the percentiles are surely better,
    where above surely worse. Areas are those between the curves from exact sums over 200 cells up to u = 1,
    in which D has the sign of the cell's mean: what is gained less what is lost is the fall of the mean.

    Args:
        before: a record (its CE over all tokens) or (name, digest, documents or None).
        after: the other, of the same data.

    Returns:
        :class:`Reshaping`.

    Raises:
        ValueError: if the records are of other data; it says what differs.

    Example:
        >>> from lightning_pce import digest
        >>> losses = torch.linspace(0, 4, 401)
        >>> sharper = torch.where(losses < 3, losses / 2, 2 * losses)
        >>> change = reshaping(
        ...     ("epoch 1", digest.from_values(losses), None), ("epoch 2", digest.from_values(sharper), None)
        ... )
        >>> round(change.better_share, 2), change.crossing, round(change.gained.total, 2)
        (0.75, 0.745, 0.55)
    """
    return reshaped(Candidates([item_of(before), item_of(after)]))


def reshaped(pair: Candidates) -> Reshaping:
    """:func:`reshaping` of two candidates."""
    if pair.left_out:
        ((name, why),) = pair.left_out.items()
        raise ValueError(f"Expected two records with values for the same tokens but got {name!r} with {why}.")
    before, after = pair.items
    difference = td.quantile(after.digest, _even_u()) - td.quantile(before.digest, _even_u())
    low, high = _band(before, after, difference) if pair.reason is None else (difference * torch.nan,) * 2
    gained, lost, crossing, better_below = _areas(before.digest, after.digest)
    return Reshaping(
        before.name,
        after.name,
        _even_u(),
        difference,
        low,
        high,
        _negative_share(difference),
        _ranges(high < 0),
        _ranges(low > 0),
        crossing,
        better_below,
        gained,
        lost,
        pair.reason or pair.caution,
    )


def _even_u() -> Tensor:
    return torch.arange(1, _CELLS, dtype=torch.float64) / _CELLS


def _negative_share(difference: Tensor) -> float:
    known = difference[~difference.isnan()]
    return float((known < 0).double().mean())


def _band(before: Item, after: Item, difference: Tensor) -> tuple[Tensor, Tensor]:
    """The difference less and plus one multiple of its standard deviation, which holds it everywhere."""
    assert before.documents is not None
    assert after.documents is not None
    drawn = intervals.replicate_quantiles(after.digest, after.documents, _even_u())
    drawn = drawn - intervals.replicate_quantiles(before.digest, before.documents, _even_u())
    spread = drawn.std(0)
    known = spread > 0  # neither NaN nor the same in every resample
    scaled = (drawn - drawn.mean(0))[:, known].abs() / spread[known]
    if scaled.shape[1] == 0:
        return difference, difference
    reach = scaled.amax(1).quantile(intervals.expanded(_LEVEL, before.documents, after.documents)) * spread
    return difference - reach, difference + reach


def _areas(before: Tensor, after: Tensor) -> tuple[Areas, Areas, float | None, bool]:
    """Gained, lost, where the two sides part, and whether the better one is below."""
    edges = torch.arange(_CELLS + 1, dtype=torch.float64) / _CELLS
    old, new = (td.trimmed_mean(digest, edges[:-1], edges[1:]) for digest in (before, after))
    change = (new - old) / _CELLS
    change[change.abs() <= _ROUNDED * torch.minimum(old.abs(), new.abs())] = 0.0
    gained, lost = (
        Areas(*(float(part.sum()) for part in signed.tensor_split(_SPLIT)))
        for signed in ((-change).clamp_min(0), change.clamp_min(0))
    )
    below = change.cumsum(0)[:-1]
    above = change.sum() - below
    smaller = torch.where(below * above < 0, torch.minimum(below.abs(), above.abs()), 0.0)
    place = int(smaller.argmax())
    if not bool(smaller[place] > 0):
        return gained, lost, None, True
    return gained, lost, float(edges[1 + place]), bool(below[place] < 0)


def _ranges(flags: Tensor) -> tuple[tuple[float, float], ...]:
    """The first and the last u of each run of flags ``[199]``."""
    padded = torch.nn.functional.pad(flags.int(), (1, 1)).diff()
    starts, ends = (padded == 1).nonzero()[:, 0], (padded == -1).nonzero()[:, 0] - 1
    u = _even_u()
    return tuple(zip(u[starts].tolist(), u[ends].tolist(), strict=True))
