"""What each statistic picks, and what that costs under every other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce.intervals import Interval
from lightning_pce.runs._candidates import Candidates, Runs, candidates
from lightning_pce.runs._task import Task, TaskLike, pearson, spearman, task_of
from lightning_pce.runs._ties import Ties, ties_of
from lightning_pce.runs._words import columns, correlation, in_order, number

STATISTICS = ("mean", "p25", "p50", "p75", "p90", "p95", "p99")
_FEWEST = 5  # last records whose spread around a straight line says something


class Row(NamedTuple):
    """A statistic and its pick."""

    statistic: str
    pick: str
    """The record with the lowest value."""
    value: Interval
    """The value there, with its error bar."""
    ties: tuple[str, ...]
    """The records within error of it, the pick among them."""
    costs: dict[str, float]
    """By statistic: how far the pick is above that statistic's lowest value."""
    signal_to_noise: float
    """See :func:`signal_to_noise`."""
    task: float
    """The task metric at the pick; NaN without one."""
    pearson: float
    """Correlation of the statistic with the task metric over the records; NaN without one."""
    spearman: float
    """The same of ranks."""
    misleading: bool
    """Whether one of the two has the wrong sign: the task was better where the statistic was higher."""


class Table(NamedTuple):
    """What :func:`table` returns; ``str`` makes text of it."""

    rows: tuple[Row, ...]
    """One for each statistic."""
    names: tuple[str, ...]
    """The records that were compared."""
    task: str | None
    """The name of the task metric; None: there is none."""
    best: tuple[str, float] | None
    """The record with the best task metric, and its value there."""
    notes: tuple[str, ...]
    """What to know when reading it: why there are no error bars, which records were left out."""

    def __str__(self) -> str:
        parts = [_picks(self)]
        if len({row.pick for row in self.rows}) > 1:
            parts.append(_costs(self))
        if self.task is not None:
            parts.append(_tasks(self))
        return "\n\n".join([*parts, *(["\n".join(self.notes)] if self.notes else [])])


def table(
    runs: Runs,
    task: TaskLike | None = None,
    *,
    statistics: Sequence[str] = STATISTICS,
    higher_is_better: bool = True,
) -> Table:
    """What each statistic picks, how sure that is, and what its pick costs under every other statistic.

    With a task metric also what that is at each pick and at its best record, and its correlations with each
    statistic over the records. A loss that follows the task has negative ones (of a task where higher is
    better); the wrong sign is flagged, as then the statistic's pick is the worse the stronger it is.

    Args:
        runs: as for :func:`~lightning_pce.runs.concordance.ties`.
        task: the name of a scalar that was logged in the same validations, such as ``"val_recall"``, or
            ``{name of the record: value}``.
        statistics: ``"mean"`` and percentiles such as ``"p50"``.
        higher_is_better: of the task metric.

    Returns:
        :class:`Table`; ``print`` shows it.

    Raises:
        ValueError: as ``ties``, or if no record has the task metric; it lists what there is.

    Example:
        >>> from lightning_pce import digest
        >>> losses = torch.arange(101.0)
        >>> runs = [(f"epoch {k}", digest.from_values(losses + (k - 2) ** 2), None) for k in range(4)]
        >>> row = table(runs, {f"epoch {k}": k / 10 for k in range(4)}).rows[0]
        >>> row.statistic, row.pick, row.value.value, row.task, round(row.spearman, 2), row.misleading
        ('mean', 'epoch 2', 50.0, 0.2, -0.63, False)
    """
    chosen = candidates(runs)
    return table_of(chosen, task_of(chosen, task, higher_is_better), statistics)


def table_of(chosen: Candidates, found: Task | None, statistics: Sequence[str] = STATISTICS) -> Table:
    """:func:`table` of candidates."""
    picks = ties_of(chosen, statistics)
    rows = tuple(_row(chosen, name, picks, found) for name in statistics)
    best = None
    if found is not None and found.best is not None:
        best = (found.best, float(found.values[chosen.names.index(found.best)]))
    why = [] if chosen.reason is None else [f"No error bars: {chosen.reason}."]
    caution = [] if chosen.caution is None else [f"Error bars are rough: {chosen.caution}."]
    left_out = [f"Left out: {name} ({why})." for name, why in chosen.left_out.items()]
    return Table(rows, chosen.names, None if found is None else found.name, best, (*why, *caution, *left_out))


def signal_to_noise(values: Tensor) -> float:
    """The range of a statistic over a run beside the spread of its last records around their trend.

    After arXiv 2508.13144, with definitions of our own: the range is the largest less the smallest value of
    all records; the spread is the standard deviation of the last half, at least 5 records, around a straight
    line. Under 2 or so the order of the records is mostly noise.

    Args:
        values: ``[C]``, in the order of the run.

    Returns:
        The quotient; NaN of fewer than 5 records, infinite without any noise.

    Example:
        >>> values = [3.0, 2.0, 1.5, 1.31, 1.19, 1.11, 0.99]
        >>> round(signal_to_noise(torch.tensor(values, dtype=torch.float64)))
        58
    """
    last = values[-max(_FEWEST, math.ceil(len(values) / 2)) :].double()
    if len(last) < _FEWEST or not bool(values.isfinite().all()):
        return math.nan
    steps = torch.arange(len(last), dtype=torch.float64)
    steps = steps - steps.mean()
    slope = (steps * last).sum() / steps.square().sum()
    residuals = last - last.mean() - slope * steps
    noise = float((residuals.square().sum() / (len(last) - 2)).sqrt())
    signal = float(values.max() - values.min())
    if noise <= 1e-12 * float(values.abs().max()):  # rounding
        return math.inf if signal > 0 else math.nan
    return signal / noise


def _row(chosen: Candidates, statistic: str, picks: dict[str, Ties], task: Task | None) -> Row:
    own, values = picks[statistic], chosen.values(statistic)
    place = chosen.names.index(own.best)
    linear = ranked = math.nan
    if task is not None:
        linear, ranked = pearson(values, task.values), spearman(values, task.values)
    worse = 1 if task is None or task.higher_is_better else -1
    return Row(
        statistic,
        own.best,
        chosen.error_bars(own.best, [statistic])[statistic],
        own.names,
        {name: other.costs[own.best] for name, other in picks.items()},
        signal_to_noise(values),
        math.nan if task is None else float(task.values[place]),
        linear,
        ranked,
        worse * linear > 0 or worse * ranked > 0,
    )


def _picks(table: Table) -> str:
    known = any(not math.isnan(row.value.low) for row in table.rows)
    trend = any(not math.isnan(row.signal_to_noise) for row in table.rows)
    head = [
        "statistic",
        "pick",
        "value",
        *(["95 % interval"] if known else []),
        *(["signal/noise"] if trend else []),
        "within error",
    ]
    body = [
        [
            row.statistic,
            row.pick,
            number(row.value.value),
            *([_ends(row.value)] if known else []),
            *([_quotient(row.signal_to_noise)] if trend else []),
            in_order(row.ties, table.names),
        ]
        for row in table.rows
    ]
    # The last column has words again.
    lines = columns([line[:-1] for line in [head, *body]], left=2).split("\n")
    width = max(map(len, lines))
    return "\n".join(
        f"{line:<{width}}  {last}" for line, last in zip(lines, [r[-1] for r in [head, *body]], strict=True)
    )


def _costs(table: Table) -> str:
    head = ["", *(row.statistic for row in table.rows)]
    body = [[row.statistic, *(_cost(row, other) for other in table.rows)] for row in table.rows]
    title = "What the pick of each line costs under the statistic of each column (*: more than error)"
    return f"{title}\n{columns([head, *body])}"


def _cost(row: Row, other: Row) -> str:
    sure = "" if row.pick in other.ties else "*"
    return f"{number(row.costs[other.statistic])}{sure}"


def _tasks(table: Table) -> str:
    head = ["statistic", "pick", str(table.task), "Pearson", "Spearman", ""]
    body = [
        [
            row.statistic,
            row.pick,
            number(row.task),
            correlation(row.pearson),
            correlation(row.spearman),
            "wrong sign" if row.misleading else "",
        ]
        for row in table.rows
    ]
    best = [] if table.best is None else [["best", table.best[0], number(table.best[1]), "", "", ""]]
    return columns([head, *body, *best], left=2)


def _quotient(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def _ends(value: Interval) -> str:
    return "" if math.isnan(value.low) else f"{number(value.low)} to {number(value.high)}"
