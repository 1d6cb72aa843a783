"""What of a table can be ranked: which tasks, which models, which proxies; the reasons why not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.runs._rank_correlation import Floats, Ints
from lightning_pce.runs._words import listed
from lightning_pce.runs.proxy_table import ProxyTable
from lightning_pce.runs.task_values import some

FEWEST_MODELS, FEWEST_TASKS = 5, 3


class TooFewError(UserError):
    """There are too few models or tasks to say anything: the command line ends with status 3."""


class Population(NamedTuple):
    """Rows of a table whose truth is known, as numbers."""

    table: ProxyTable
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    proxies: tuple[str, ...]
    x: Floats
    """``[R, P]`` of these proxies, finite."""
    model: Ints
    """``[R]`` places in ``models``."""
    task: Ints
    """``[R]`` places in ``tasks``."""
    notes: tuple[str, ...]


def check_one_row_each(table: ProxyTable) -> None:
    """Raise a ``UserError`` unless each model has one row of a task, all of one style or of the best one."""
    seen: dict[tuple[str, str], str | None] = {}
    of_task: dict[str, tuple[str, str | None]] = {}
    for model, task, style in zip(table.models, table.tasks, table.styles, strict=True):
        twice = (model, task) in seen
        other = (model, seen[model, task]) if twice else of_task.setdefault(task, (model, style))
        if twice or (table.best_of == 1 and other[1] != style):
            raise UserError(
                f"{task!r} has solutions of several styles ({other[0]!r}: {other[1]}, {model!r}: {style}): "
                "choose by best_style(table) or table.select(styles=)."
            )
        seen[model, task] = style


def finite_proxies(table: ProxyTable) -> tuple[list[int], list[str]]:
    """Columns of proxies that are finite in all rows, and a note on the others.

    Raises:
        UserError: if there is none.
    """
    finite = np.asarray(np.isfinite(table.values).all(0))
    without = [name for name, there in zip(table.names, finite, strict=True) if not there]
    notes = []
    if without:
        row = int((~np.isfinite(table.values)).any(1).argmax())
        where = f"such as that of {table.models[row]!r} on {table.tasks[row]!r}"
        notes.append(f"Left out of all fits, as values are infinite or missing, {where}: {some(without)}.")
    if not finite.any():
        raise UserError(f"No proxy is finite in all rows. {notes[0]}")
    return np.flatnonzero(finite).tolist(), notes


def population_of(table: ProxyTable, fewest_models: int) -> Population:
    """The rows that a cross-validation can use.

    Raises:
        UserError: if models have several rows of a task.
        TooFewError: if too few models or tasks are left.
    """
    check_one_row_each(table)
    known = table.rows(np.isfinite(table.truth))
    tasks, left_out = [], []
    for task in dict.fromkeys(table.tasks):
        truth = known.truth[[each == task for each in known.tasks]]
        if not len(truth):
            continue  # a new task: that is what is to be ranked
        if len(truth) < FEWEST_MODELS:
            left_out.append(f"{task!r} (truth of {len(truth)} model{'s' * (len(truth) != 1)})")
        elif truth.min() == truth.max():
            left_out.append(f"{task!r} (truth {truth[0]:g} of all models)")
        else:
            tasks.append(task)
    notes = [f"Left out of the cross-validation: {listed(left_out)}."] if left_out else []
    if len(tasks) < FEWEST_TASKS:
        raise TooFewError(
            f"A cross-validation needs {FEWEST_TASKS} tasks on which the truth of {FEWEST_MODELS} models is "
            f"known and differs, but there {'is' if len(tasks) == 1 else 'are'} {len(tasks)}. "
            f"{''.join(notes) or 'Give the truth on more tasks.'}"
        )
    used = known.select(tasks=tasks)
    models = tuple(dict.fromkeys(used.models))
    if len(models) < fewest_models:
        raise TooFewError(
            f"{len(models)} models are too few to say how well their order is known: {fewest_models} are "
            "needed."
        )
    columns, more = finite_proxies(table)  # also where the truth is not known: what is fitted must rank there
    return Population(
        used,
        models,
        tuple(tasks),
        tuple(used.names[column] for column in columns),
        used.values[:, columns],
        np.array([models.index(each) for each in used.models]),
        np.array([tasks.index(each) for each in used.tasks]),
        (*table.notes, *notes, *more),
    )
