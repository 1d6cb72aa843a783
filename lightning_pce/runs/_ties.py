"""Which records are within error of the best, and the fewest that hold one of these for each statistic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce.runs._candidates import PERCENTILES, TOLERANCE, Candidates, Runs, candidates
from lightning_pce.runs.history import History

# What stands for the bulk of the tokens: the lowest of these that is not saturated.
BULK = ("p50", "p75", "p90")
_LEVEL = 0.95
_MOST_STATISTICS = 10
_MOST_IN_TRAINING = 20


class Ties(NamedTuple):
    """The records that a statistic cannot tell from its best one."""

    statistic: str
    best: str
    """The record with the lowest value."""
    names: tuple[str, ...]
    """The best and all within error of it, in the order of the records."""
    costs: dict[str, float]
    """By record: its value less the best value."""
    allowed: dict[str, float]
    """By record: the largest cost that would still be within error."""
    reason: str | None
    """Why the error is not known, so that the tolerance alone decided, or a word of caution; else None."""


def ties(runs: Runs, statistic: str) -> Ties:
    """The records that are within error of the best one.

    With t a record's value and b the record of the lowest, c is within error if t_c - t_b is at most 0.01
    nats (of CE and entropy; else 0), or at most q times the standard deviation of that difference over 1,000
    resamples of the documents. q is the 95 % quantile over resamples of the largest difference to b, centred
    and scaled by its standard deviation: it grows with the number of records, because the lowest of many is
    low by chance too. The rule is ours.

    Without counts of documents the tolerance alone decides, and ``reason`` says so.

    Args:
        runs: a ``History``, or a list of records or of (name, digest, documents or None), all of one run and
            loader and of the same data. A record with more NaN than others is left out.
        statistic: ``"mean"``, a percentile such as ``"p50"``, or ``"bulk"``: the lowest of p50, p75 and p90
            whose best value is not under 0.01 nats.

    Returns:
        :class:`Ties`.

    Raises:
        ValueError: if there is no record, if they are of several runs or loaders (it lists them) or of other
            data (it names two), or if ``"bulk"`` is asked for and p90 is saturated too.

    Example:
        >>> from lightning_pce import digest
        >>> losses = torch.arange(101.0)
        >>> runs = [(f"epoch {k}", digest.from_values(losses + (k - 2) ** 2 / 200), None) for k in range(4)]
        >>> within = ties(runs, "p50")
        >>> within.best, within.names, within.reason
        ('epoch 2', ('epoch 1', 'epoch 2', 'epoch 3'), 'no documents were given')
    """
    chosen = candidates(runs)
    if statistic == "bulk":
        bulk = bulk_of(chosen)
        if bulk is None:
            raise ValueError(f"{', '.join(BULK)} are all saturated, under {TOLERANCE} nats at their best.")
        statistic = bulk
    return tied(chosen, statistic)


def shortlist(runs: Runs, statistics: Sequence[str] = ("mean", "bulk", "p95")) -> tuple[str, ...]:
    """The fewest records that hold, for each statistic, one of its :func:`ties`.

    One record: the statistics agree on it. Several: they do not, and only a task can tell which is better.
    Among equally small sets it is the one with the smallest sum of costs, each in parts of what its error
    allows; among these the earliest.

    Args:
        runs: as for :func:`ties`.
        statistics: at most 10. ``"bulk"`` is left out where p90 is saturated.

    Returns:
        Names, in the order of the records.

    Raises:
        ValueError: as :func:`ties`, or if there is no statistic, or more than 10.

    Example:
        >>> from lightning_pce import digest
        >>> losses = torch.arange(101.0)
        >>> runs = [(f"epoch {k}", digest.from_values(losses + (k - 2) ** 2), None) for k in range(4)]
        >>> shortlist(runs)
        ('epoch 2',)
    """
    chosen = candidates(runs)
    names = resolved(chosen, statistics)
    if not 1 <= len(names) <= _MOST_STATISTICS:
        raise ValueError(
            f"Expected 1 to {_MOST_STATISTICS} statistics that are not saturated but got {list(statistics)}."
        )
    return covering(list(ties_of(chosen, names).values()))


def saturated(runs: Runs) -> tuple[str, ...]:
    """Percentiles whose best value is under 0.01 nats: their labels have p > 0.99 there.

    Their order is about certainty, not about what is known. Of p5, p25, p50, p75, p90, p95 and p99; of
    statistics that are not in nats none.

    Raises:
        ValueError: as :func:`ties`.

    Example:
        >>> from lightning_pce import digest
        >>> saturated([("epoch 1", digest.from_values(torch.linspace(0, 1, 101) ** 4), None)])
        ('p5', 'p25')
    """
    return saturated_of(candidates(runs))


def common_tie(runs: Runs) -> bool:
    """Whether mean and bulk have a tie in common, as long as nothing says otherwise True.

    For a warning in training: of many records only the 20 lowest of each are looked at, and of a history
    only their digests are read. True too where records cannot be compared (of other data, nothing but NaN) or
    the bulk is saturated.

    Args:
        runs: as for :func:`ties`.

    Example:
        >>> from lightning_pce import digest
        >>> early = torch.tensor([1.0, 1.0, 1.0, 2.0])
        >>> late = torch.tensor([0.5, 0.5, 0.5, 9.0])
        >>> common_tie([(name, digest.from_values(x), None) for name, x in (("a", early), ("b", late))])
        False
    """
    try:
        chosen = candidates(_lowest_of(runs) if isinstance(runs, History) else runs)
    except ValueError:
        return True
    bulk = bulk_of(chosen)
    if bulk is None:
        return True
    lowest = [chosen.values(name).argsort()[:_MOST_IN_TRAINING] for name in ("mean", bulk)]
    chosen = chosen.only(sorted(set(torch.cat(lowest).tolist())))
    mean, other = ties_of(chosen, ("mean", bulk)).values()
    return not set(mean.names).isdisjoint(other.names)


def _lowest_of(history: History) -> History:
    """The records that are among the lowest by what they say of themselves, in order."""
    if len(history) <= _MOST_IN_TRAINING:
        return history
    of = "_".join(filter(None, (history.statistic, history.group)))
    kept: set[int] = set()
    for name in ("mean", *BULK):
        values = [record.values.get(f"{of}_{name}", math.nan) for record in history]
        known = [place for place, value in enumerate(values) if not math.isnan(value)]
        kept.update(sorted(known, key=lambda place: values[place])[:_MOST_IN_TRAINING])
    records = [history[place] for place in sorted(kept)]
    return History(records or history, of=history.statistic, group=history.group)


def bulk_of(chosen: Candidates) -> str | None:
    """The percentile that stands for the bulk; None if all are saturated."""
    return next((name for name in BULK if name not in saturated_of(chosen, BULK)), None)


def saturated_of(chosen: Candidates, percentiles: Sequence[str] = PERCENTILES) -> tuple[str, ...]:
    if not chosen.in_nats:
        return ()
    return tuple(name for name in percentiles if bool(chosen.values(name).min() < TOLERANCE))


def has_mean(chosen: Candidates) -> bool:
    """Whether a mean is finite: where each has an infinite token none is lower, and the first is no pick."""
    return bool(chosen.values("mean").isfinite().any())


def resolved(chosen: Candidates, statistics: Sequence[str]) -> list[str]:
    """Statistics with the name of what stands for the bulk, without it if there is none."""
    names = [bulk_of(chosen) if name == "bulk" else name for name in statistics]
    return list(dict.fromkeys(name for name in names if name is not None))


def ties_of(chosen: Candidates, statistics: Sequence[str]) -> dict[str, Ties]:
    """:func:`ties` of candidates, by statistic."""
    chosen.replicates(*statistics)  # all at once takes little longer than one
    return {statistic: tied(chosen, statistic) for statistic in statistics}


def tied(chosen: Candidates, statistic: str, level: float = _LEVEL) -> Ties:
    values = chosen.values(statistic)
    best, costs = best_of(values)
    allowed = allowed_costs(chosen, statistic, best, level)
    over = dict(zip(chosen.names, costs.tolist(), strict=True))
    within = dict(zip(chosen.names, allowed.tolist(), strict=True))
    names = tuple(name for name in chosen.names if over[name] <= within[name])
    return Ties(statistic, chosen.names[best], names, over, within, chosen.reason or chosen.caution)


def best_of(values: Tensor) -> tuple[int, Tensor]:
    """The place of the lowest of values ``[C]``, and by how much each is above it."""
    best = int(values.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).argmin())
    return best, torch.where(values == values[best], 0.0, values - values[best])


def allowed_costs(chosen: Candidates, statistic: str, best: int, level: float = _LEVEL) -> Tensor:
    """By how much each record may be above the best one and still be within error, ``[C]``."""
    tolerance = torch.full((len(chosen.names),), chosen.tolerance, dtype=torch.float64)
    replicates = chosen.replicates(statistic)
    if replicates is None:
        return tolerance
    difference = replicates[0] - replicates[0][best]
    spread = difference.std(1)
    known = difference.isfinite().all(1) & (spread > 0)
    if not bool(known.any()):
        return tolerance
    scaled = (difference - difference.mean(1, keepdim=True))[known] / spread[known, None]
    factor = scaled.amax(0).quantile(level).clamp_min(0)
    return torch.maximum(tolerance, torch.where(known, factor * spread, 0.0))


def covering(every: Sequence[Ties]) -> tuple[str, ...]:
    """The fewest records, and among these the cheapest, that hold a tie of each statistic.

    By which statistics are served: of each set of them the best single record, then the best division of all
    statistics into such sets.
    """
    names = list(every[0].costs)
    alone = {served: _cheapest(served, every, names) for served in range(1, 1 << len(every))}
    best: dict[int, tuple[int, float, tuple[int, ...]]] = {0: (0, 0.0, ())}
    for wanted in range(1, 1 << len(every)):
        lowest_bit = wanted & -wanted
        found = []
        for served in range(1, wanted + 1):
            single = alone[served]
            if served & wanted == served and served & lowest_bit and single is not None:
                size, cost, places = best[wanted ^ served]
                found.append((size + 1, cost + single[0], tuple(sorted({*places, single[1]}))))
        best[wanted] = min(found)
    return tuple(names[place] for place in best[(1 << len(every)) - 1][2])


def _cheapest(served: int, every: Sequence[Ties], names: Sequence[str]) -> tuple[float, int] | None:
    """Cost and place of the best record that is a tie of each statistic in a set of bits; None if none is."""
    chosen = [each for bit, each in enumerate(every) if served >> bit & 1]
    common = set(chosen[0].names).intersection(*(each.names for each in chosen[1:]))
    return min(
        (
            (sum(_part_of_error(each, name) for each in chosen), place)
            for place, name in enumerate(names)
            if name in common
        ),
        default=None,
    )


def _part_of_error(each: Ties, name: str) -> float:
    return each.costs[name] / each.allowed[name] if each.costs[name] > 0 else 0.0
