"""A way of ranking that is fitted to models whose truth is known, and applied to others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.runs._population import check_one_row_each, finite_proxies
from lightning_pce.runs._rank_correlation import Floats, Ints, z_scored
from lightning_pce.runs._rank_svm import Kernel
from lightning_pce.runs._rankers import Fit, Method, Score, check_method
from lightning_pce.runs.proxy_table import ProxyTable


@dataclass(frozen=True)
class Ranker:
    """What :func:`fit_ranker` returns.

    Args:
        method: ``"rank_svm"``, ``"sparse"`` or ``"single"``.
        kernel: of ``"rank_svm"``, else None.
        names: the proxies that it needs.
        weights: of these as z-scores, of a ranker that is their weighted sum; None with the RBF kernel.
        notes: sentences on what was left out of the fit.
    """

    method: str
    kernel: str | None
    names: tuple[str, ...]
    weights: tuple[float, ...] | None
    notes: tuple[str, ...] = ()
    _score: Score = field(repr=False, default=lambda z: np.zeros(len(z)))

    def score(self, table: ProxyTable) -> Floats:
        """A score ``[R]`` of each row: higher is better, among the models of one task and nowhere else.

        Proxies are z-scores over the models of each task of this table, so that they need each other: a table
        of the three best models has an average one.

        Raises:
            UserError: if the table lacks a proxy that is needed, a value is not finite, a model has several
                rows of a task, or a task has one model.
        """
        check_one_row_each(table)
        values = table.values[:, [table.place(name) for name in self.names]]
        if not np.isfinite(values).all():
            row, place = (int(each[0]) for each in np.nonzero(~np.isfinite(values)))
            raise UserError(
                f"{self.names[place]} of {table.models[row]!r} on {table.tasks[row]!r} is "
                f"{values[row, place]}: leave the model out, or fit without this proxy."
            )
        tasks = task_numbers(table)
        alone = np.bincount(tasks, minlength=1) == 1
        if alone.any():
            task = table.tasks[int(np.flatnonzero(alone[tasks])[0])]
            raise UserError(f"{task!r} has one model: there is nothing to order.")
        return self._score(z_scored(values, tasks))


def fit_ranker(table: ProxyTable, method: Method = "rank_svm", kernel: Kernel = "linear") -> Ranker:
    """Fit a way of ranking models to all rows whose truth is known.

    How well it does on tasks that it has not seen, :func:`cross_validate` says; look there first.

    Args:
        table: with the truth of two models on a task at least; one row for each model and task. Rows without
            truth count in the z-scores of their task.
        method: as for :func:`cross_validate`.
        kernel: as for :func:`cross_validate`.

    Raises:
        UserError: if an argument is none of these, a model has several rows of a task, there is no task with
            two models of different truth, or no proxy differs between models.

    Example:
        >>> table = ProxyTable(
        ...     ["a", "b", "c"], ["sums"] * 3, ["ce_uniform"], [[3.0], [1.0], [2.0]], truth=[0.1, 0.8, 0.5]
        ... )
        >>> ranker = fit_ranker(table, "single")
        >>> ranker.names, ranker.weights, ranker.score(table).round(2).tolist()
        (('ce_uniform',), (-1.0,), [-1.22, 1.22, 0.0])
    """
    check_method(method, kernel)
    check_one_row_each(table)
    tasks, known = task_numbers(table), np.isfinite(table.truth)
    ranges = [np.ptp(table.truth[known & (tasks == task)]) for task in np.unique(tasks[known])]
    if not any(reach > 0 for reach in ranges):
        raise UserError("There is no task with the truth of two models that differ: nothing can be fitted.")
    columns, notes = finite_proxies(table)
    x = z_scored(table.values[:, columns], tasks)
    if not x[known].any():
        raise UserError("Each proxy is the same for all models of a task: nothing can be fitted.")
    fit = Fit(method, kernel, x[known], tasks[known])
    truth = table.truth[known]
    names = tuple(table.names[column] for column in columns)
    if method == "rank_svm":
        weights = tuple((fit.x.T @ fit.coefficients(truth)).tolist()) if kernel == "linear" else None
        return Ranker(method, kernel, names, weights, tuple(notes), fit.score(truth))
    places, found = fit.weights(truth)
    chosen = tuple(names[place] for place in places)
    return Ranker(method, None, chosen, tuple(found.tolist()), tuple(notes), lambda z: np.asarray(z @ found))


def task_numbers(table: ProxyTable) -> Ints:
    """``[R]`` the number of each row's task."""
    numbers = {task: number for number, task in enumerate(dict.fromkeys(table.tasks))}
    return np.array([numbers[task] for task in table.tasks], dtype=np.int64)
