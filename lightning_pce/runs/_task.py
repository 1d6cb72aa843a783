"""A task metric beside the statistics of a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_pce.runs._candidates import Candidates
from lightning_pce.runs.task_values import logged

_FEWEST = 3  # values of which a correlation says something

# The name of a scalar in the records, or a number for each of them.
TaskLike: TypeAlias = str | Mapping[str, float]


class Task(NamedTuple):
    """What a task metric was at each record."""

    name: str
    """Of the metric."""
    values: Tensor
    """``[C]`` float64, NaN where it is not known."""
    best: str | None
    """The record with the best value; None if there is no value."""
    higher_is_better: bool
    """Else lower is."""


def task_of(chosen: Candidates, task: TaskLike | None, higher_is_better: bool) -> Task | None:
    """The values of a task metric at the candidates.

    Raises:
        ValueError: if no record has it, it has other names than the records, or a value is no number.
    """
    if task is None:
        return None
    if isinstance(task, str):
        name, by_name = task, _logged(chosen, task)
    else:
        name, by_name = getattr(task, "name", "task"), dict(task)
    unknown = sorted(set(by_name) - {*chosen.names, *chosen.left_out})
    if unknown:
        raise ValueError(
            f"Expected a task value for each of {', '.join(chosen.names)} but got one for {unknown[0]!r}."
        )
    values = torch.tensor([_as_float(each, by_name) for each in chosen.names], dtype=torch.float64)
    values = torch.where(values.isfinite(), values, math.nan)
    best = None
    if bool((~values.isnan()).any()):
        worst = -math.inf if higher_is_better else math.inf
        filled = values.nan_to_num(nan=worst)
        best = chosen.names[int(filled.argmax() if higher_is_better else filled.argmin())]
    return Task(name, values, best, higher_is_better)


def pearson(x: Tensor, y: Tensor) -> float:
    """The correlation of the pairs without NaN; NaN of fewer than 3 or if one side is constant.

    Example:
        >>> round(pearson(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 2.0, 0.0])), 6)
        -1.0
    """
    x, y = _finite_pairs(x, y)
    x, y = x - x.mean(), y - y.mean()
    scale = float((x.square().sum() * y.square().sum()).sqrt())
    return float((x * y).sum()) / scale if len(x) >= _FEWEST and scale > 0 else math.nan


def spearman(x: Tensor, y: Tensor) -> float:
    """:func:`pearson` of ranks; equal values have their mean rank."""
    x, y = _finite_pairs(x, y)
    return pearson(_ranks(x), _ranks(y))


def _as_float(name: str, by_name: Mapping[str, float]) -> float:
    value = by_name.get(name, math.nan)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected a number as the task value of {name!r} but got {value!r}.") from error


def _logged(chosen: Candidates, task: str) -> dict[str, float]:
    records = [item.record for item in chosen.items if item.record is not None]
    if not records:
        raise ValueError(
            f"Expected `task` to be {{name: value}} for a list without records but got {task!r}."
        )
    return logged(records, task)


def _finite_pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    known = x.isfinite() & y.isfinite()
    return x[known].double(), y[known].double()


def _ranks(values: Tensor) -> Tensor:
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal + 1) / 2
