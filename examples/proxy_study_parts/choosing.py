"""The second use: which of ten corpora should the target be trained on, said by small models?"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from lightning_pce import proxy_names
from lightning_pce.runs.ranking import decision_accuracy
from proxy_study_parts.population import SCALES, SEED, fixed_mixes
from proxy_study_parts.ranking import EXPERT
from proxy_study_parts.tasks import STYLES


def choosing(found: dict[str, Any], mixes: list[str] | None = None) -> dict[str, Any]:
    """Decision accuracies for the target's mean accuracy over the tasks, at each scale and by the target."""
    corpora = mixes or list(fixed_mixes())
    targets = [_at_end(found[f"target: {name}"]) for name in corpora]
    truth = np.array([_accuracy(each) for each in targets])
    accuracy = dict(zip(corpora, truth.tolist(), strict=True))
    result: dict[str, Any] = {"accuracy of the targets": accuracy}
    for scale in (*SCALES, "target"):
        units = [found[f"{scale}: {name}"] for name in corpora]
        ends = [_at_end(unit) for unit in units]
        rows = {
            "text CE": _decided([each["text_ce"] for each in ends], truth, loss=True),
            "accuracy": _decided([_accuracy(each) for each in ends], truth),
            "expert CE": _decided([_expert_ce(each, (EXPERT,)) for each in ends], truth, loss=True),
            "expert CE, best style": _decided([_expert_ce(each, STYLES) for each in ends], truth, loss=True),
        }
        compute = [unit["parameters"] * unit["characters"] for unit in units]
        target = found[f"target: {corpora[0]}"]
        result[scale] = {
            "share of compute": compute[0] / (target["parameters"] * target["characters"]),
            "decision accuracy": rows,
            "one of 80": _best_of_many(ends, truth),
        }
    return result


def _at_end(result: dict[str, Any]) -> dict[str, Any]:
    return result["checkpoints"][-1]


def _accuracy(measured: dict[str, Any]) -> float:
    return float(np.mean(list(measured["truth"].values())))


def _expert_ce(measured: dict[str, Any], styles: tuple[str, ...]) -> float:
    """Mean over tasks of the CE of the style that the model finds likeliest."""
    by_task = measured["proxies"].values()
    return float(np.mean([min(each[style]["ce_uniform"] for style in styles) for each in by_task]))


def _decided(values: list[float], truth: np.ndarray, loss: bool = False) -> list[float]:
    decided = decision_accuracy(values, truth, higher_is_better=not loss, seed=SEED)
    return [decided.value, decided.low, decided.high]


def _best_of_many(ends: list[dict[str, Any]], truth: np.ndarray) -> dict[str, Any]:
    """What choosing among the 80 proxies of one style by the result is worth: selection bias.

    In sample: the best of 80 on the corpora on which it was chosen. Out of sample: chosen on half of the
    corpora, with its direction, and judged on the others, the mean over all halves.
    """
    names = proxy_names()
    values = np.array(
        [
            [np.mean([task[EXPERT][name] for task in end["proxies"].values()]) for name in names]
            for end in ends
        ]
    )  # [corpora, 80]
    values = np.where(np.isfinite(values), values, 0.0)
    signs = np.sign(values[:, None] - values) * np.sign(truth[:, None] - truth)[:, :, None]
    agreement = (1 + signs) / 2  # [corpora, corpora, 80]
    pair = truth[:, None] > truth
    everywhere = agreement[pair].mean(0)
    best = np.maximum(everywhere, 1 - everywhere)
    number = len(ends)
    judged = []
    for chosen in combinations(range(number), number // 2):
        inside = np.isin(np.arange(number), chosen)
        here, there = (pair & part[:, None] & part for part in (inside, ~inside))
        if not here.any() or not there.any():
            continue
        known = agreement[here].mean(0)
        pick = int(np.maximum(known, 1 - known).argmax())
        other = agreement[there].mean(0)[pick]
        judged.append(other if known[pick] >= 0.5 else 1 - other)
    return {
        "proxy": names[int(best.argmax())],
        "in sample": float(best.max()),
        "out of sample": float(np.mean(judged)),
    }
