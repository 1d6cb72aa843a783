"""The pictures of a history: what the numbers of its records and their comparisons look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from lightning_pce import intervals as error_bars
from lightning_pce._names import percentile_key
from lightning_pce.reports._drawing import AS_WRITTEN, CE, shown
from lightning_pce.reports.difference_curves import difference_curve
from lightning_pce.reports.fan_charts import decision_chart
from lightning_pce.reports.record_charts import concordance_map, interval_chart
from lightning_pce.runs import concordance as concordances
from lightning_pce.runs._candidates import candidates, item_of
from lightning_pce.runs._records import SCORED, Record
from lightning_pce.runs._task import task_of
from lightning_pce.runs.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_pce.runs._candidates import Entry, Runs
    from lightning_pce.runs._reshaping import Reshaping
    from lightning_pce.runs._task import TaskLike
    from lightning_pce.runs._ties import Ties

_FAN = (5.0, 25.0, 50.0, 75.0, 95.0, 99.0)
_STATISTICS = ("mean", *map(percentile_key, _FAN))
_ORDERED = ("mean", "p5", "p25", "p50", "p75", "p90", "p95", "p99")


class Drawn(NamedTuple):
    """One record as it is drawn."""

    name: str
    digest: Tensor
    documents: Tensor | None
    record: Record | None


def decision(runs: Runs, task: TaskLike | None = None) -> Figure:
    """The fan chart of a history, what mean, bulk and p95 pick, and a task metric.

    Picks and what is within error of them are those of :func:`lightning_pce.runs.concordance.verdict`. Error
    bars are drawn where counts of documents were kept.

    Args:
        runs: a ``History``, or a list of records or of (name, digest, documents or None), all of one run and
            loader and of the same data.
        task: the name of a scalar that was logged in the same validations, or ``{record: value}``.

    Returns:
        A figure of its own, as of :func:`decision_chart`.

    Raises:
        ValueError: as :func:`lightning_pce.runs.concordance.verdict`.

    Example:
        >>> import torch
        >>> from lightning_pce import digest as td
        >>> losses = torch.arange(101.0)
        >>> runs = [(f"epoch {k}", td.from_values(losses + (k - 2) ** 2), None) for k in range(4)]
        >>> fan, rows = decision(runs).axes
        >>> [label.get_text() for label in rows.get_yticklabels()]
        ['mean', 'p50', 'p95']
    """
    ties = concordances.verdict(runs, task).ties
    drawn = _drawn(runs)
    return decision_of(drawn, ties, None if task is None else _task(drawn, task), _what(runs))


def decision_of(
    drawn: list[Drawn], ties: Mapping[str, Ties], task: tuple[str, Mapping[str, float]] | None, what: str
) -> Figure:
    """:func:`decision` of records whose picks are known, and task values by name; ``what`` the values are."""
    records, steps, unit = _on_an_axis(drawn)
    at = dict(zip((each.name for each in records), steps, strict=True))
    names = [each.name for each in records] if unit == "record" else None
    found = [error_bars.intervals(each.digest, each.documents, _STATISTICS) for each in records]
    figure = decision_chart(
        steps,
        {p: [values[percentile_key(p)].value for values in found] for p in _FAN},
        [values["mean"].value for values in found],
        picks={name: at[each.best] for name, each in ties.items()},
        ties={name: [at[tied] for tied in each.names] for name, each in ties.items()},
        task=None if task is None else (task[0], [task[1].get(each.name, math.nan) for each in records]),
        intervals={
            name: ([values[name].low for values in found], [values[name].high for values in found])
            for name in ("mean", "p50")
            if any(not math.isnan(values[name].low) for values in found)
        },
        xlabel=unit,
        names=names,
        called=[each.name for each in records] if any(map(_is_scored, records)) else None,
    )
    figure.axes[0].set_ylabel(shown(what, 60), **AS_WRITTEN)
    return figure


def difference(before: Entry, after: Entry, *, ax: Axes | None = None) -> Axes:
    """How every percentile has changed from one record to another.

    Band, areas and crossing are those of :func:`lightning_pce.runs.concordance.reshaping`.

    Args:
        before: a record, or (name, digest, documents or None).
        after: the other, of the same data.
        ax: where to draw; left out: a new figure.

    Returns:
        The axes, as of :func:`difference_curve`.

    Raises:
        ValueError: if the records are of other data; it says what differs.

    Example:
        >>> import torch
        >>> from lightning_pce import digest as td
        >>> losses = torch.linspace(0, 4, 401)
        >>> sharper = torch.where(losses < 3, losses / 2, 2 * losses)
        >>> ax = difference(("a", td.from_values(losses), None), ("b", td.from_values(sharper), None))
        >>> ax.get_title(loc="left"), ax.texts[1].get_text()
        ('b minus a', '↑ worse: loses 0.88 nats a token')
    """
    return difference_of(concordances.reshaping(before, after), ax=ax)


def difference_of(change: Reshaping, *, ax: Axes | None = None) -> Axes:
    """:func:`difference` of a change that is known."""
    return difference_curve(
        change.u.tolist(),
        change.difference.tolist(),
        change.low.tolist(),
        change.high.tolist(),
        gained=change.gained.total,
        lost=change.lost.total,
        crossings=[] if change.crossing is None else [change.crossing],
        names=(change.before, change.after),
        ax=ax,
    )


def concordance(runs: Runs, task: TaskLike | None = None, *, ax: Axes | None = None) -> Axes:
    """How far mean and percentiles order the records of a history alike, and a task metric with them.

    Args:
        runs: as for :func:`decision`. A record with more NaN than others is left out.
        task: as for :func:`decision`.
        ax: where to draw; left out: a new figure.

    Returns:
        The axes, as of :func:`concordance_map`.

    Raises:
        ValueError: if there is no record, if they are of several runs, loaders or other data, or no record
            has the task metric.

    Example:
        >>> import torch
        >>> from lightning_pce import digest as td
        >>> losses = torch.arange(101.0)
        >>> runs = [(f"epoch {k}", td.from_values(losses + k), None) for k in range(4)]
        >>> concordance(runs, {f"epoch {k}": -k for k in range(4)}).texts[-2].get_text()
        '-1.00'
    """
    chosen = candidates(runs)
    values = {name: chosen.values(name).tolist() for name in _ORDERED}
    found = task_of(chosen, task, higher_is_better=True)  # which matters to its best record alone
    if found is not None:
        values[found.name] = found.values.tolist()
    return concordance_map(values, ax=ax)


def intervals(runs: Runs, statistic: str, *, ax: Axes | None = None) -> Axes:
    """A statistic of each record with its error bar, the best and what is within error of it.

    Ties are those of :func:`lightning_pce.runs.concordance.ties`. A record with more NaN than others is left
    out.

    Args:
        runs: as for :func:`decision`.
        statistic: ``"mean"``, a percentile such as ``"p50"``, or ``"bulk"``.
        ax: where to draw; left out: a new figure.

    Returns:
        The axes, as of :func:`interval_chart`.

    Raises:
        ValueError: as ``ties``.

    Example:
        >>> import torch
        >>> from lightning_pce import digest as td
        >>> losses = torch.arange(101.0)
        >>> runs = [(f"epoch {k}", td.from_values(losses + (k - 2) ** 2), None) for k in range(4)]
        >>> ax = intervals(runs, "bulk")
        >>> ax.get_xlabel(), [text.get_text() for text in ax.texts]
        ('p50 of cross-entropy per token (nats)', ['54.00', '51.00', '50.00', '51.00'])
    """
    within, items = concordances.ties(runs, statistic), candidates(runs).items
    found = [error_bars.interval(each.digest, each.documents, within.statistic) for each in items]
    return interval_chart(
        [each.name for each in items],
        [each.value for each in found],
        [each.low for each in found],
        [each.high for each in found],
        best=within.best,
        ties=within.names,
        xlabel=f"{within.statistic} of {_what(runs)}",
        ax=ax,
    )


def _drawn(runs: Runs) -> list[Drawn]:
    """All records, those too that are left out where records are compared."""
    records = [each for each in runs if isinstance(each, Record)]
    if len(records) < len(runs):
        return [Drawn(*item_of(each)[:3], None) for each in runs]
    history = runs if isinstance(runs, History) else History(records)
    key = (history.statistic, history.group)
    return [Drawn(each.label, each.digest(*key), each.documents(*key), each) for each in history]


def _on_an_axis(records: list[Drawn]) -> tuple[list[Drawn], list[float], str]:
    """The records in order, where they are on the axis, and what that counts."""
    for unit in ("epoch", "step", "batch"):
        places = [getattr(each.record, unit, None) for each in records]
        known = [float(place) for place in places if place is not None]
        if len(set(known)) == len(records):
            order = sorted(range(len(records)), key=known.__getitem__)
            return [records[i] for i in order], [known[i] for i in order], unit
    return records, [float(i) for i in range(1, len(records) + 1)], "record"


def _is_scored(drawn: Drawn) -> bool:
    """Whether its name is that of its model, and not of its step."""
    return drawn.record is not None and drawn.record.function in SCORED


def _task(records: Sequence[Drawn], task: TaskLike) -> tuple[str, Mapping[str, float]]:
    """The name of a task metric, and its values by the names of records."""
    if isinstance(task, str):
        logged = {each.name: {} if each.record is None else each.record.scalars for each in records}
        return task, {name: scalars.get(task, math.nan) for name, scalars in logged.items()}
    return "task", {name: float(value) for name, value in task.items()}


def _what(runs: Runs) -> str:
    return what_of(runs.statistic, runs.group) if isinstance(runs, History) else CE


def what_of(of: str, group: str) -> str:
    """What the values are, with their unit."""
    what = {"ce": CE, "entropy": "entropy per token (nats)"}.get(of, of)
    return f"{what}, {group}" if group else what
