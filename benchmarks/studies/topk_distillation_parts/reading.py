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
    return [TEACHER, *students_of(found)]


def students_of(found: dict[str, Any]) -> list[str]:
    """From the whole distribution to the smallest K."""
    few = {model["label"]: model["k"] for model in found["models"] if model["k"] is not None}
    return [FULL, *sorted(few, key=few.__getitem__, reverse=True)]


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
    return [models_of_label(found, text, label)[seed]["ce"][statistic] for label in students_of(found)]


def rising(found: dict[str, Any], text: str, statistic: str) -> list[bool]:
    """Of each seed, whether a statistic is higher for each smaller K, of which the whole is the largest."""
    return [rises(values_by_k(found, text, seed, statistic)) for seed in _seeds(found, text)]


def falling(found: dict[str, Any], text: str, statistic: str) -> list[bool]:
    """The same for lower."""
    every = [values_by_k(found, text, seed, statistic) for seed in _seeds(found, text)]
    return [all(a > b for a, b in pairwise(values)) for values in every]


def rises(values: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(values))


def lowest_of(found: dict[str, Any], text: str, statistic: str) -> list[str]:
    """The student with the lowest value, in each seed."""
    labels = students_of(found)
    by_k = [values_by_k(found, text, seed, statistic) for seed in _seeds(found, text)]
    return [labels[values.index(min(values))] for values in by_k]


def below_teacher(found: dict[str, Any], text: str, statistic: str) -> list[str]:
    """The students whose value is below the teacher's in every seed."""
    return [
        label
        for label in students_of(found)
        if all(model["less_teacher"][statistic][0] < 0 for model in models_of_label(found, text, label))
    ]


def surely_below_teacher(found: dict[str, Any], text: str, label: str, statistic: str) -> list[bool]:
    """Of each seed, whether a student's value is below its teacher's by more than chance."""
    ends = [model["less_teacher"][statistic][2] for model in models_of_label(found, text, label)]
    return [high is not None and high < 0 for high in ends]


def covered(found: dict[str, Any], text: str, label: str) -> list[float]:
    """Of each seed, the share of the next tokens that are among the K that a student learns."""
    k = models_of_label(found, text, label)[0]["k"]
    teachers = models_of_label(found, text, TEACHER)
    return [1.0 if k is None else teacher["within_top"][str(k)] for teacher in teachers]


def crossings(found: dict[str, Any], text: str, below: bool) -> dict[str, list[float]]:
    """Where the quantile curve of a student crosses its teacher's, of each seed: of the students that are
    lower ``below`` it in every seed, or else above it in every seed."""
    every = {label: _shapes(found, text, label) for label in students_of(found)}
    return {
        label: [shape["crossing"] for shape in shapes]
        for label, shapes in every.items()
        if all(shape["crossing"] is not None and shape["better_below"] == below for shape in shapes)
    }


def _shapes(found: dict[str, Any], text: str, label: str) -> list[dict[str, Any]]:
    return [model["reshaped"] for model in models_of_label(found, text, label)]


def best_at(found: dict[str, Any], text: str, task: str) -> list[str]:
    """The best student in each seed."""
    return [choice["picks"]["best"] for choice in choices_of(found, text, task)]


def rank_of_mean(found: dict[str, Any], text: str, seed: int, label: str) -> int:
    """How many students have a lower mean."""
    means = {each: models_of_label(found, text, each)[seed]["ce"]["mean"] for each in students_of(found)}
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


def right_sign(found: dict[str, Any], among: Sequence[str]) -> list[str]:
    """The statistics that are lower where the task is better, in each text, task and seed."""
    return [
        name
        for name in among
        if all(
            rho is not None and rho < 0
            for text in found["texts"]
            for task in TASKS
            for rho in spearmans(found, text, task, name)
        )
    ]


def open_choices(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Those in which some student is worse in the task than the best by more than chance."""
    every = [choice["picks"] for choice in found["choices"]]
    return [picks for picks in every if len(picks["not_worse"]) < len(picks["candidates"])]


def missed_by(found: dict[str, Any], statistic: str) -> int:
    """In how many choices the pick of a statistic is worse than the best by more than chance."""
    return sum(picks["picks"][statistic]["missed"] for picks in open_choices(found))


def less_full(found: dict[str, Any], text: str, task: str, label: str) -> dict[str, Any]:
    wanted = (text, task, label)
    [each] = [each for each in found["less full"] if (each["text"], each["task"], each["label"]) == wanted]
    return dict(each)


def cpu_minutes(found: dict[str, Any], text: str) -> list[float]:
    """Of each seed, what its models took together."""
    by_label = [models_of_label(found, text, label) for label in labels_of(found)]
    return [sum(map(_cpu_minutes, models)) for models in zip(*by_label, strict=True)]


def minutes_on_two_cores(found: dict[str, Any], text: str) -> float:
    """For one text: in each seed the teacher alone, then the students on whichever core is free."""
    whole = 0.0
    for seed in _seeds(found, text):
        cores = [0.0, 0.0]
        for label in reversed(students_of(found)):  # as they are run
            cores.sort()
            cores[0] += _cpu_minutes(models_of_label(found, text, label)[seed])
        whole += _cpu_minutes(models_of_label(found, text, TEACHER)[seed]) + max(cores)
    return whole


def _cpu_minutes(model: Model) -> float:
    return float(sum(model["cpu_seconds"].values())) / 60


def _seeds(found: dict[str, Any], text: str) -> range:
    return range(len(models_of_label(found, text, TEACHER)))
