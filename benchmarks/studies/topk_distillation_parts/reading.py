"""The numbers as the page, the picture and the sentences read them: by text, label, seed and task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from scipy import stats

from benchmarks.studies.topk_distillation_parts.units import FULL, TEACHER

Model = dict[str, Any]
TEXTS = {"shakespeare": "Shakespeare", "bible": "the Bible", "stories": "Stories"}
TASKS = {
    "cloze": "cloze accuracy",
    "top_1": "top-1 accuracy",
    "teacher_log_prob": "teacher's log p of samples",
}


def labels_of(found: dict[str, Any]) -> list[str]:
    """The teacher, then students from the whole distribution to the smallest K."""
    labels = dict.fromkeys(model["label"] for model in found["models"])
    few = [label for label in labels if label not in (TEACHER, FULL)]
    return [TEACHER, FULL, *reversed(few)]


def models_of_label(found: dict[str, Any], text: str, label: str) -> list[Model]:
    """One of each seed."""
    return [model for model in found["models"] if (model["text"], model["label"]) == (text, label)]


def choices_of(found: dict[str, Any], text: str, task: str) -> list[dict[str, Any]]:
    """One of each seed."""
    return [each for each in found["choices"] if (each["text"], each["task"]) == (text, task)]


def named(text: str) -> str:
    return TEXTS.get(text, text)


def values_by_k(found: dict[str, Any], text: str, seed: int, statistic: str) -> list[float]:
    """From the whole distribution to the smallest K."""
    return [models_of_label(found, text, label)[seed]["ce"][statistic] for label in labels_of(found)[1:]]


def rises_with_smaller_k(found: dict[str, Any], text: str, seed: int, statistic: str) -> bool:
    """Whether a statistic is higher for each smaller K, the whole distribution being the largest."""
    values = values_by_k(found, text, seed, statistic)
    return all(a < b for a, b in pairwise(values))


def falls_with_smaller_k(found: dict[str, Any], text: str, seed: int, statistic: str) -> bool:
    values = values_by_k(found, text, seed, statistic)
    return all(a > b for a, b in pairwise(values))


def lowest_of(found: dict[str, Any], text: str, statistic: str) -> list[str]:
    """The student with the lowest value, in each seed."""
    seeds = range(len(models_of_label(found, text, TEACHER)))
    labels = labels_of(found)[1:]
    return [
        min(labels, key=lambda label, seed=seed: models_of_label(found, text, label)[seed]["ce"][statistic])
        for seed in seeds
    ]


def below_teacher(found: dict[str, Any], text: str, statistic: str) -> list[str]:
    """The students whose value is below the teacher's in every seed."""
    return [
        label
        for label in labels_of(found)[1:]
        if all(model["less_teacher"][statistic][0] < 0 for model in models_of_label(found, text, label))
    ]


def best_at(found: dict[str, Any], text: str, task: str) -> list[str]:
    """The best student in each seed."""
    return [choice["picks"]["best"] for choice in choices_of(found, text, task)]


def rank_of_mean(found: dict[str, Any], text: str, seed: int, label: str) -> int:
    """How many students have a lower mean."""
    means = {each: models_of_label(found, text, each)[seed]["ce"]["mean"] for each in labels_of(found)[1:]}
    return sum(mean < means[label] for mean in means.values())


def spearmans(found: dict[str, Any], text: str, task: str, statistic: str) -> list[float | None]:
    """One of each seed."""
    every = choices_of(found, text, task)
    return [choice["picks"]["correlation"][statistic]["spearman"] for choice in every]


def tasks_together(found: dict[str, Any], text: str, first: str, second: str) -> list[float]:
    """Spearman's rho of two tasks over the students, one of each seed."""
    pairs = zip(choices_of(found, text, first), choices_of(found, text, second), strict=True)
    return [
        float(stats.spearmanr(list(a["picks"]["task"].values()), list(b["picks"]["task"].values())).statistic)
        for a, b in pairs
    ]


def closest_to(found: dict[str, Any], text: str, task: str, among: Sequence[str]) -> list[str]:
    """The statistics whose mean correlation with a task is the lowest."""
    means = {}
    for statistic in among:
        known = [rho for rho in spearmans(found, text, task, statistic) if rho is not None]
        means[statistic] = sum(known) / len(known) if known else 0.0
    return [statistic for statistic in among if means[statistic] <= min(means.values()) + 1e-9]


def missed_by(found: dict[str, Any], statistic: str) -> int:
    """In how many choices the pick of a statistic is worse than the best by more than chance."""
    return sum(choice["picks"]["picks"][statistic]["missed"] for choice in found["choices"])


def less_full(found: dict[str, Any], text: str, task: str, label: str) -> dict[str, Any]:
    wanted = (text, task, label)
    [each] = [each for each in found["less full"] if (each["text"], each["task"], each["label"]) == wanted]
    return dict(each)
