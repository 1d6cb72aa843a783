"""Choices by groups, and how often each way to choose keeps what the task finds best.

In an easy choice no candidate is worse than the best by more than chance, so that nothing can be missed: it
says nothing about a way to choose, and is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.studies.fact_sft_parts.units import RATE
from benchmarks.studies.picks import Estimate, share

SINGLE = ("mean", "p50", "p75", "p95")
LOWEST = ("mean", "p50", "p95")  # what one would keep without error bars
PARTS = {"b": "(b) objectives", "c": "(c) the same, wrong facts too"}
RATES = "(b) other learning rates"
ENDS = {"weak": "from the untrained model", "strong": "from a checkpoint"}
TOKENS = {"all": "all tokens", "completion": "completions"}
TASKS = {
    "cloze": "cloze accuracy",
    "top_1": "top-1 accuracy",
    "teacher_log_prob": "the teacher's likelihood of samples",
}
Picks = dict[str, Any]


class Choice(NamedTuple):
    """One run and its checkpoints, or one family of students."""

    study: str
    """Checkpoints by what is trained on and scored, or students."""
    group: str
    objective: str | None
    """In training, where several are compared."""
    scored: str | None
    """``"all"`` tokens or those of the ``"completion"``, of checkpoints."""
    picks: Picks
    """What :func:`benchmarks.studies.picks.picks_of` returned."""


class Counts(NamedTuple):
    """Of several choices that are not easy; ``missed`` is worse than the best by more than chance, ``held``
    that one of several is not. Without any, averages are nan."""

    choices: int
    easy: int
    """Those left out."""
    candidates: float
    """On average, as are all that are no whole numbers."""
    size: float
    """Of the shortlist."""
    held: int
    held_low: float
    held_high: float
    held_by_lot: float
    """How often as many candidates, drawn by lot, would hold one."""
    best: int
    """How often the shortlist holds the very best."""
    part: int
    """How often the verdict says that groups of tokens part."""
    part_unheld: int
    """How often of those whose shortlist holds none."""
    lowest_size: float
    """Of the lowest of mean, median and p95, without error bars."""
    lowest_held: int
    missed: dict[str, int]
    """By the one with the lowest value of each statistic, and by the last."""
    missed_by_lot: float
    """By one drawn by lot."""
    behind: dict[str, float]
    """By how much these, and the best of the shortlist, are behind the best in the task."""
    shares: bool
    """Whether the task is a share, from 0 to 1."""


def fact_choices(found: dict[str, Any]) -> list[Choice]:
    """Of the fact study's JSON: each run twice, scored with and without prompts."""
    return [
        Choice(
            f"checkpoints, {_trained_and_scored(run, scored)}",
            _group(run),
            run["objective"] if _is_of_objectives(run) else None,
            scored,
            run["choices"][scored],
        )
        for scored in ("completion", "all")
        for run in found["runs"]
    ]


def student_choices(found: dict[str, Any]) -> list[Choice]:
    """Of the distillation's JSON: the students of a seed, by text and task."""
    return [
        Choice("students", f"students on {each['text']}, by {TASKS[each['task']]}", None, None, each["picks"])
        for each in found["choices"]
    ]


def counted(choices: Sequence[Choice], by: Callable[[Choice], Any]) -> dict[Any, Counts]:
    """By what ``by`` returns, in the order in which it comes."""
    groups: dict[Any, list[Picks]] = {}
    for choice in choices:
        groups.setdefault(by(choice), []).append(choice.picks)
    return {group: counts(each) for group, each in groups.items()}


def is_easy(picks: Picks) -> bool:
    """No candidate is worse than the best by more than chance."""
    return len(picks["not_worse"]) == len(picks["candidates"])


def counts(choices: Sequence[Picks]) -> Counts:
    every = [each for each in choices if not is_easy(each)]
    held = [each["shortlist_holds_best"] for each in every]
    rate = share(np.array(held, dtype=np.float64)) if held else Estimate(math.nan, math.nan, math.nan)
    lowest = [{each["picks"][name]["label"] for name in LOWEST} for each in every]
    single = [_single(each) for each in every]
    behind = [
        {name: _behind(each, [label]) for name, label in labels.items()}
        | {"shortlist": _behind(each, each["shortlist"])}
        for each, labels in zip(every, single, strict=True)
    ]
    return Counts(
        choices=len(every),
        easy=len(choices) - len(every),
        candidates=_mean([len(each["candidates"]) for each in every]),
        size=_mean([each["shortlist_size"] for each in every]),
        held=sum(held),
        held_low=rate.low,
        held_high=rate.high,
        held_by_lot=_mean([by_lot(each, each["shortlist_size"]) for each in every]),
        best=sum(_behind(each, each["shortlist"]) == 0 for each in every),
        part=sum(each["groups_part"] for each in every),
        part_unheld=sum(each["groups_part"] for each in every if not each["shortlist_holds_best"]),
        lowest_size=_mean([len(labels) for labels in lowest]),
        lowest_held=sum(_holds(each, labels) for each, labels in zip(every, lowest, strict=True)),
        missed={
            name: sum(not _holds(each, [labels[name]]) for each, labels in zip(every, single, strict=True))
            for name in (*SINGLE, "last")
        },
        missed_by_lot=_mean([1 - by_lot(each, 1) for each in every]),
        behind={name: _mean([each[name] for each in behind]) for name in (*SINGLE, "last", "shortlist")},
        shares=all(0 <= value <= 1 for each in every for value in each["task"].values()),
    )


def by_lot(picks: Picks, size: int) -> float:
    """The probability that so many candidates hold one that is not surely worse than the best."""
    every, good = len(picks["candidates"]), len(picks["not_worse"])
    return 1 - math.comb(every - good, size) / math.comb(every, size)


def _single(picks: Picks) -> dict[str, str]:
    """The one candidate that each way keeps."""
    lowest = {name: picks["picks"][name]["label"] for name in SINGLE}
    return lowest | {"last": picks["candidates"][-1]}


def _holds(picks: Picks, labels: Sequence[str] | set[str]) -> bool:
    return any(label in picks["not_worse"] for label in labels)


def _behind(picks: Picks, labels: Sequence[str]) -> float:
    return float(picks["task"][picks["best"]] - max(picks["task"][label] for label in labels))


def _trained_and_scored(run: dict[str, Any], scored: str) -> str:
    if run["trained_on"] == scored:
        return f"{TOKENS[scored]} trained on and scored"
    return f"{TOKENS[run['trained_on']]} trained on, {TOKENS[scored]} scored"


def _is_of_objectives(run: dict[str, Any]) -> bool:
    return run["part"] in PARTS and run["rate"] == RATE


def _group(run: dict[str, Any]) -> str:
    if run["part"] not in PARTS:
        return "(a) NLL"
    return f"{PARTS[run['part']]}, {ENDS[run['end']]}" if run["rate"] == RATE else RATES


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
