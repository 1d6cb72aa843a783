"""Expected pass@N of facts, by the probability of their objects, with intervals by fact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.studies.fact_sft_parts.comparisons import of_objectives
from benchmarks.studies.fact_sft_parts.training import PASS_AT
from benchmarks.studies.picks import Floats, resampled_mean

PICKS = ("mean", "p50")


def passed(log_prob: Sequence[float], n: int) -> Floats:
    """``[facts]``: how probable it is that one of n samples of the object is right.

    Our metric ``ExpectedPassAtN`` gives the mean of these.
    """
    return 1 - (1 - np.exp(np.asarray(log_prob, dtype=np.float64))) ** n


def passed_at_picks(log_prob: Sequence[Sequence[float]], picks: dict[str, Any]) -> dict[str, Any]:
    """At what mean and median pick of a run; ``log_prob`` ``[epochs from 0 on][facts]``."""
    at = {name: int(picks["picks"][name]["label"].removeprefix("epoch ")) for name in PICKS}
    return {name: _of([log_prob[epoch]]) for name, epoch in at.items()}


def objectives_passed(
    runs: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """After the last epoch, of the facts of all seeds together, which are other ones in each."""
    log_prob = {result["settings"]["name"]: result["epochs"][-1]["log_prob"] for result in results}
    groups: dict[tuple[str, str, str], list[list[float]]] = {}
    for part, end in (("b", "weak"), ("b", "strong"), ("c", "weak"), ("c", "strong")):
        for run in of_objectives(runs, part, end):
            groups.setdefault((part, end, run["objective"]), []).append(log_prob[run["name"]])
    names = ("part", "end", "objective")
    return [dict(zip(names, group, strict=True)) | _of(each) for group, each in groups.items()]


def _of(log_prob: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Mean and 95 % ends, by ``pass_at_N``; ``log_prob`` is that of the facts of each run."""
    found = {}
    for n in PASS_AT:
        facts = np.concatenate([passed(run, n) for run in log_prob])
        found[f"pass_at_{n}"] = [round(each, 5) for each in resampled_mean(facts)]
    return found
