"""Which checkpoint: what the statistics of a loss say together, in plain sentences."""

from __future__ import annotations

from typing import NamedTuple

from lightning_pce.runs._alarm import alarm_of
from lightning_pce.runs._candidates import Candidates, Runs, candidates
from lightning_pce.runs._groups import part, parting, ties_by_group
from lightning_pce.runs._reshaping import Reshaping, reshaped
from lightning_pce.runs._sentences import agreement, change, checkpoints, missing, saturation, tasks
from lightning_pce.runs._task import Task, TaskLike, task_of
from lightning_pce.runs._ties import Ties, bulk_of, covering, has_mean, resolved, saturated_of, ties_of


class Verdict(NamedTuple):
    """What :func:`verdict` returns; ``str`` joins its sentences."""

    agree: bool
    """Whether one record is within error of the best in all statistics that were looked at."""
    shortlist: tuple[str, ...]
    """The fewest records that hold one within error of the best for each statistic."""
    ties: dict[str, Ties]
    """Of the mean, of what stands for the bulk, and of p95."""
    bulk: str | None
    """The percentile that stands for the bulk; None if all are saturated."""
    saturated: tuple[str, ...]
    """Percentiles whose best value is under 0.01 nats, see :func:`saturated`."""
    reshaping: Reshaping | None
    """From the mean's pick to the bulk's; None if that is one record, or there is no bulk or finite mean."""
    alarm: str | None
    """The sentence on a tail that has become worse while mean and bulk agree."""
    sentences: tuple[str, ...]
    """All of it in words."""
    groups: dict[str, Ties]
    """Of the mean in each group of tokens, where records of all tokens have groups and error bars."""

    @property
    def picks(self) -> dict[str, str]:
        """The record with the lowest value of each statistic."""
        return {name: each.best for name, each in self.ties.items()}

    @property
    def groups_part(self) -> bool:
        """Whether no record is within error of the lowest mean in each group; a sentence says so then."""
        return part(self.groups)

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def verdict(runs: Runs, task: TaskLike | None = None, *, higher_is_better: bool = True) -> Verdict:
    """Which records to keep, in plain sentences.

    Whether mean, bulk and p95 agree on a record, and if not the shortlist; how the distribution changes from
    the mean's pick to the bulk's; which percentiles are saturated; an alarm if mean and bulk agree but p95 is
    surely worse at what they pick, or at the last record, than at its own pick; whether the means of groups
    of tokens choose other records than each other; the task metric at each pick; and what is missing. Without
    a task metric the answer is a shortlist.

    The rules are ours: "agree" is that one record is a tie (:func:`~lightning_pce.runs.concordance.ties`) of
    all three; "surely" is beyond the 99 % quantile where ties take 95 %. The last record raises the alarm
    only if it is a tie of the bulk and its p95 has risen by surely more than the bulk, in relative terms.
    Groups part if no record is a tie of the mean in each of them, where each of G is judged at the quantile
    1 - 0.05 / G instead of 95 %.

    Args:
        runs: as for ``ties``.
        task: as for :func:`~lightning_pce.runs.concordance.table`.
        higher_is_better: of the task metric.

    Returns:
        :class:`Verdict`; ``print`` shows the sentences.

    Raises:
        ValueError: as ``table``.

    Example:
        >>> import torch
        >>> from lightning_pce import digest
        >>> losses = torch.arange(101.0)
        >>> runs = [(f"epoch {k}", digest.from_values(losses + (k - 2) ** 2), None) for k in range(4)]
        >>> print(verdict(runs).sentences[0])
        Mean, p50 and p95 agree on epoch 2: it is within error of the best in each of them.
    """
    chosen = candidates(runs)
    return verdict_of(chosen, task_of(chosen, task, higher_is_better))


def verdict_of(chosen: Candidates, found: Task | None, *, of_tokens: bool = True) -> Verdict:
    """:func:`verdict` of candidates; ``of_tokens``: whether their digests are of tokens, as records have."""
    bulk = bulk_of(chosen)
    every = ties_of(chosen, resolved(chosen, ("mean", "bulk", "p95")))
    kept = covering(list(every.values()))
    changed = None
    if of_tokens and bulk is not None and has_mean(chosen) and every["mean"].best != every[bulk].best:
        pair = [chosen.names.index(every[name].best) for name in ("mean", bulk)]
        changed = reshaped(chosen.only(pair))
    alarm = alarm_of(chosen, every, bulk)
    saturated = saturated_of(chosen)
    groups = ties_by_group(chosen) if of_tokens else {}
    sentences = (
        *agreement(chosen, every, kept),
        *([] if changed is None or bulk is None else change(changed, bulk, in_nats=chosen.in_nats)),
        *saturation(saturated, bulk, chosen.of),
        *([] if alarm is None else [alarm]),
        *parting(chosen, groups),
        *tasks(chosen, every, kept, found),
        *checkpoints(chosen, kept),
        *missing(chosen, found, kept),
    )
    return Verdict(len(kept) == 1, kept, every, bulk, saturated, changed, alarm, sentences, groups)
