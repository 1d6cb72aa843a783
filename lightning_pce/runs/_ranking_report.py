"""What a cross-validation of rankers has found, in numbers and in sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lightning_pce.runs._resampling import Resampled
from lightning_pce.runs._words import columns, correlation, listed

_MEANINGS = {
    "expert_ce": "mean CE of the expert solutions",
    "known_tasks": "truth on the tasks that are known",
}


class TaskSplit(NamedTuple):
    """Tasks that were held out, and the mean correlation on them."""

    tasks: tuple[str, ...]
    rho: float


class Baseline(NamedTuple):
    """A simpler way to rank, on the same rows."""

    rho: Resampled
    difference: Resampled
    """By how much the method's correlation is higher; paired, over the same models."""


@dataclass(frozen=True)
class CrossValidation:
    """What :func:`cross_validate` returns; ``print`` shows it.

    Args:
        method: ``"rank_svm"``, ``"sparse"`` or ``"single"``.
        kernel: of ``"rank_svm"``, else None.
        hold_out: ``"tasks"`` or ``"models_and_tasks"``.
        seed: of the draws.
        rho: Spearman's correlation with the truth, the mean over tasks that were held out, with a 90 %
            interval over models.
        splits: the tasks that were held out together, and the mean correlation on them.
        baselines: of simpler ways on the same rows: ``expert_ce``, ``known_tasks`` and the table's losses.
        null: the mean correlation if models exchange their truth. With models that were in the training it is
            not 0: a ranker recognises them.
        null_highest: the highest of 20 such exchanges, each the mean of its splits.
        models: that were ranked.
        tasks: that were held out in turn.
        proxies: that were used.
        notes: sentences on what was left out, and why.
    """

    method: str
    kernel: str | None
    hold_out: str
    seed: int
    rho: Resampled
    splits: tuple[TaskSplit, ...]
    baselines: dict[str, Baseline]
    null: float
    null_highest: float
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    proxies: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def spread(self) -> float:
        """The standard deviation over splits, which is no error bar: they share their models."""
        values = np.array([each.rho for each in self.splits])
        return float(np.std(values[~np.isnan(values)], ddof=1))

    @property
    def refused(self) -> str | None:
        """Why nothing should be ranked by this, or None.

        The interval must lie above 0, and above what is left when models exchange their truth, and no such
        exchange may do as well: with many proxies a fit is lucky more often than the interval says.
        """
        floor = max(0.0, self.null)
        if self.rho.low > floor and self.rho.value > self.null_highest:
            return None
        if self.rho.low > floor:
            beside = f"the highest where models exchanged their truth ({correlation(self.null_highest)})"
        elif floor > 0:
            beside = f"what remains when models exchange their truth ({correlation(floor)})"
        else:
            beside = "0"
        return (
            f"the correlation of {correlation(self.rho.value)} {_interval(self.rho)} on tasks that were held "
            f"out is not surely above {beside}: these proxies do not order these models"
        )

    @property
    def not_beaten(self) -> tuple[str, ...]:
        """The baselines that the method is not surely better than."""
        return tuple(name for name, each in self.baselines.items() if not each.difference.low > 0)

    def to_plain(self) -> dict[str, Any]:
        """What JSON can hold; NaN is None."""
        return {
            "method": self.method,
            "kernel": self.kernel,
            "hold_out": self.hold_out,
            "seed": self.seed,
            "rho": _plain(self.rho),
            "spread": _none(self.spread),
            "splits": [{"tasks": list(each.tasks), "rho": _none(each.rho)} for each in self.splits],
            "baselines": {
                name: {"rho": _plain(each.rho), "difference": _plain(each.difference)}
                for name, each in self.baselines.items()
            },
            "null": _none(self.null),
            "null_highest": _none(self.null_highest),
            "refused": self.refused,
            "models": list(self.models),
            "tasks": list(self.tasks),
            "proxies": list(self.proxies),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        kernel = f" ({self.kernel} kernel)" if self.kernel else ""
        held_out = {1: "one task", 2: "two tasks"}[len(self.splits[0].tasks)]
        unseen = ", and half of the models" if self.hold_out == "models_and_tasks" else ""
        number = len(self.proxies)
        head = (
            f"{self.method}{kernel}: {len(self.models)} models, {len(self.tasks)} tasks, {number} "
            f"prox{'y' if number == 1 else 'ies'}; {held_out} held out at a time{unseen}.\n"
            "Spearman's correlation with the truth on tasks that were held out, 90 % intervals over models:"
        )
        rows = [["", "rho", "90 %", f"{self.method} less it", "90 %"]]
        rows.append([self.method, correlation(self.rho.value), _interval(self.rho), "", ""])
        for name, each in self.baselines.items():
            rows.append(
                [
                    name,
                    *(correlation(each.rho.value), _interval(each.rho)),
                    *(correlation(each.difference.value), _interval(each.difference)),
                ]
            )
        rows.append(
            ["models exchanged", correlation(self.null), f"to {correlation(self.null_highest)}", "", ""]
        )
        meanings = [f"{name}: {text}." for name, text in _MEANINGS.items() if name in self.baselines]
        lines = [head, columns(rows), *meanings, self._spread(), *self._sentences(), *self.notes]
        return "\n".join(lines)

    def _spread(self) -> str:
        return (
            f"Spread over the {len(self.splits)} splits: {self.spread:.2f}. It is no error bar: they share "
            "their models."
        )

    def _sentences(self) -> list[str]:
        if self.refused is not None:
            return [f"Refused: {self.refused}."]
        worse = [name for name in self.not_beaten if self.baselines[name].difference.high < 0]
        alike = [name for name in self.not_beaten if name not in worse]
        sentences = [f"Worse than {listed(worse)}: use that."] if worse else []
        if alike:
            sentences.append(f"Not shown to be better than {listed(alike, 'or')}: the interval holds 0.")
        return sentences


def _interval(found: Resampled) -> str:
    if math.isnan(found.low):
        return "no interval"
    return f"[{correlation(found.low)}, {correlation(found.high)}]"


def _plain(found: Resampled) -> dict[str, float | None]:
    return {name: _none(value) for name, value in found._asdict().items()}


def _none(value: float) -> float | None:
    return value if math.isfinite(value) else None
