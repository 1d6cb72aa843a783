"""Which model is best on tasks whose truth is not known yet, if that can be said."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.runs._cross_validation import HoldOut, cross_validate
from lightning_pce.runs._population import TooFewError
from lightning_pce.runs._rank_svm import Kernel
from lightning_pce.runs._ranker import Ranker, fit_ranker
from lightning_pce.runs._rankers import Method
from lightning_pce.runs._ranking_report import CrossValidation
from lightning_pce.runs._words import columns
from lightning_pce.runs.proxy_table import ProxyTable


class Order(NamedTuple):
    """Models of one task whose truth is not known, best first."""

    task: str
    models: tuple[str, ...]
    scores: tuple[float, ...]
    """Of one task: between tasks they say nothing."""

    def __str__(self) -> str:
        rows = [
            [str(place), model, f"{score:+.2f}"]
            for place, (model, score) in enumerate(zip(self.models, self.scores, strict=True), 1)
        ]
        return f"{self.task}, best first:\n{columns(rows, left=2)}"


class Ranking(NamedTuple):
    """What ``lightning-pce rank`` prints."""

    report: CrossValidation | None
    """None if there are too few models or tasks."""
    refused: str | None
    """Why nothing is ranked."""
    orders: tuple[Order, ...]

    def __str__(self) -> str:
        parts = [] if self.report is None else [str(self.report)]
        if self.report is None:
            parts.append(f"Refused: {self.refused}")
        elif self.refused is None and not self.orders:
            parts.append("The truth of all models is known: there is nothing left to rank.")
        return "\n\n".join([*parts, *map(str, self.orders)])

    def to_plain(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "refused": self.refused,
            "cross_validation": None if self.report is None else self.report.to_plain(),
            "orders": [
                {
                    "task": each.task,
                    "models": [
                        {"model": model, "score": score}
                        for model, score in zip(each.models, each.scores, strict=True)
                    ],
                }
                for each in self.orders
            ],
        }


def ranked(
    table: ProxyTable, method: Method, hold_out: HoldOut, kernel: Kernel = "linear", seed: int = 0
) -> Ranking:
    """The models of tasks without truth, unless a cross-validation says that this is no order.

    Raises:
        UserError: as :func:`cross_validate`, or if no truth is known.
    """
    if not np.isfinite(table.truth).any():
        raise UserError("The truth of no model is known: give a CSV file of model, task, value (--truth).")
    try:
        report = cross_validate(table, method, hold_out, kernel, seed)
    except TooFewError as error:
        return Ranking(None, str(error), ())
    if report.refused is not None:
        return Ranking(report, report.refused, ())
    return Ranking(report, None, orders_of(table, fit_ranker(table, method, kernel)))


def orders_of(table: ProxyTable, ranker: Ranker) -> tuple[Order, ...]:
    """The models without truth on each task, among all models of that task; of a lone model there is none."""
    unknown = ~np.isfinite(table.truth)
    names = [task for task in dict.fromkeys(table.tasks) if table.tasks.count(task) > 1]
    found = []
    for name in names:
        own = np.array([task == name for task in table.tasks])
        if not (own & unknown).any():
            continue
        part = table.rows(own)
        scores = ranker.score(part)
        order = [row for row in np.argsort(-scores, kind="stable") if not np.isfinite(part.truth[row])]
        found.append(
            Order(name, tuple(part.models[row] for row in order), tuple(float(scores[row]) for row in order))
        )
    return tuple(found)
