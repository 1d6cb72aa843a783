"""What came out, in words that are made of the results, and what the paper says beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.studies.markdown import number, out_of, percent_spread, spread, table
from benchmarks.studies.topk_distillation_parts.reading import (
    TASKS,
    below_teacher,
    best_at,
    closest_to,
    covered,
    crossings,
    falling,
    less_full,
    lowest_of,
    missed_by,
    models_of_label,
    named,
    open_choices,
    rank_of_mean,
    right_sign,
    rises,
    rising,
    spearmans,
    students_of,
    surely_below_teacher,
    tasks_together,
)
from benchmarks.studies.topk_distillation_parts.units import FULL, TEACHER

SINGLE = ("mean", "p5", "p25", "p50", "p75", "p95")
NAMES = {"p50": "median"}
THEIRS = "K = 5"  # the paper's student with the best stories


def verdicts(found: dict[str, Any]) -> str:
    """Sentences on the results: in short, for each text and of all choices."""
    lines = []
    for text in found["texts"]:
        said = (_of_mean, _of_median, _of_crossings, _of_others, _of_samples, _of_tasks, _of_orders)
        lines += [f"**{named(text)}**", "", *(f"* {each(found, text)}" for each in said), ""]
    return "\n".join(["### What came out", "", in_short(found), "", *lines, _of_picks(found), ""])


def in_short(found: dict[str, Any]) -> str:
    """Whether the paper's claims hold here, in a few sentences."""
    texts = list(found["texts"])
    mean = [each for text in texts for each in rising(found, text, "mean")]
    median = [each for text in texts for each in falling(found, text, "p50")]
    turns = ", ".join(f"on {named(text)} at {_in_seeds(lowest_of(found, text, 'p50'))}" for text in texts)
    said = [
        "**In short.** The paper has it that with each smaller K the mean is worse and the median better",
        f"Here the mean is in {_how_many(mean)} pairs of text and seed, the median in {_how_many(median)}: "
        f"it is lowest {turns}",
    ]
    if THEIRS in students_of(found):
        below = [
            f"on {named(text)} in {_how_many(surely_below_teacher(found, text, THEIRS, 'p50'))} seeds"
            for text in texts
        ]
        said.append(
            f"{THEIRS} has a median surely below its teacher's {', '.join(below)} (theirs has one below)"
        )
    right = right_sign(found, SINGLE)
    names = [NAMES.get(name, name) for name in right or SINGLE]
    of = "Of the statistics" if right else "None of"
    verb = "has" if len(names) == 1 or not right else "have"
    said.append(f"{of} {_listed(names)} {verb} the right sign of correlation with every task in every seed")
    return textwrap.fill(". ".join(said) + ".", 110, break_long_words=False, break_on_hyphens=False)


def _of_mean(found: dict[str, Any], text: str) -> str:
    below = below_teacher(found, text, "mean")
    learned = [model["training_loss"][-1] for model in models_of_label(found, text, TEACHER)]
    fewest = students_of(found)[-1]
    ends = [f"{_values(found, text, label, 'mean')} ({label})" for label in (FULL, fewest)]
    return (
        f"**Mean.** It rises with each smaller K in {_how_many(rising(found, text, 'mean'))} seeds, from "
        f"{' to '.join(ends)}; the teacher's is {_values(found, text, TEACHER, 'mean')}, and was "
        f"{spread(learned)} in the last tenth of its training. Below the teacher's in every seed: "
        f"{_joined(below)}."
    )


def _of_median(found: dict[str, Any], text: str) -> str:
    lowest = lowest_of(found, text, "p50")
    there = [models_of_label(found, text, label)[seed] for seed, label in enumerate(lowest)]
    less = [number(model["less_teacher"]["p50"][0]) for model in there]
    sure = [surely_below_teacher(found, text, label, "p50")[seed] for seed, label in enumerate(lowest)]
    held = [covered(found, text, label)[seed] for seed, label in enumerate(lowest)]
    few = [label for label in students_of(found) if max(covered(found, text, label)) < 0.5]
    return (
        f"**Median.** It falls with each smaller K in {_how_many(falling(found, text, 'p50'))} seeds. It is "
        f"lowest at {_in_seeds(lowest)}, {_each(less)} nats from the teacher's and below it by more than "
        f"chance in {_how_many(sure)} seeds. What is learned of the teacher there holds "
        f"{percent_spread(held)} of the next tokens; it holds less than half, in every seed, at: "
        f"{_joined(few)}."
    )


def _of_crossings(found: dict[str, Any], text: str) -> str:
    below, above = crossings(found, text, below=True), crossings(found, text, below=False)
    others = [label for label in students_of(found) if label not in {*below, *above}]
    earlier = [rises([-each for each in seed]) for seed in zip(*below.values(), strict=True)]
    said = [f"**Crossings with the teacher's quantile curve.** Lower below it, in every seed: {_at(below)}"]
    if len(below) > 1:
        said[0] += f", which comes at a smaller share with each smaller K in {_how_many(earlier)} seeds"
    said.append(f"Lower above it: {_at(above)}")
    if others:
        said.append(f"Without a crossing in some seed, or on either side: {_joined(others)}")
    return ". ".join(said) + "."


def _of_others(found: dict[str, Any], text: str) -> str:
    each = [f"{name} at {_each(lowest_of(found, text, name))}" for name in ("p5", "p25", "p75", "p95", "p99")]
    return f"**Other percentiles.** They are lowest, by seed: {'; '.join(each)}."


def _of_samples(found: dict[str, Any], text: str) -> str:
    by_k = [models_of_label(found, text, label) for label in students_of(found)]
    judged = [[model["tasks"]["teacher_log_prob"][0] for model in models] for models in by_k]
    own = [[model["own_log_prob"][0] for model in models] for models in by_k]
    errors = [model["teacher_log_prob_error"] for models in by_k for model in models]
    more = [_how_many([rises(seed) for seed in zip(*each, strict=True)]) for each in (judged, own)]
    fewest = students_of(found)[-1]
    return (
        f"**Samples.** The teacher gives them {spread(judged[0])} nats a token ({FULL}) to "
        f"{spread(judged[-1])} ({fewest}), each with a standard error of {number(min(errors), 3)} to "
        f"{number(max(errors), 3)}: more with each smaller K in {more[0]} seeds. The students themselves "
        f"give them {spread(own[0])} to {spread(own[-1])}, more with each smaller K in {more[1]}."
    )


def _of_tasks(found: dict[str, Any], text: str) -> str:
    best = [f"{name} {_each(best_at(found, text, task))}" for task, name in TASKS.items()]
    together = _range(tasks_together(found, text, "cloze", "teacher_log_prob"))
    said = [
        f"**Tasks.** The best student, by seed: {'; '.join(best)}",
        "Spearman's rho over the students of cloze accuracy and the teacher's log p (1 if they agree): "
        f"{together}",
    ]
    if THEIRS in students_of(found):
        compared = [_compared(found, text, task) for task in TASKS]
        said.append(
            f"{THEIRS} less {FULL}, the mean of the seeds [95 % by line, block or sample] [by seed]: "
            f"{'; '.join(compared)}"
        )
    return ". ".join(said) + "."


def _compared(found: dict[str, Any], text: str, task: str) -> str:
    each = less_full(found, text, task, THEIRS)
    scale, digits, unit = (1, 2, "nats a token") if task == "teacher_log_prob" else (100, 1, "points")
    mean, *ends = (
        None if each[name] is None else number(scale * each[name], digits)
        for name in ("mean", "low", "high", "t_low", "t_high")
    )
    by_seed = "" if ends[2] is None else f" [{ends[2]}, {ends[3]}]"
    return f"{TASKS[task]} {mean} [{ends[0]}, {ends[1]}]{by_seed} {unit}"


def _of_orders(found: dict[str, Any], text: str) -> str:
    each = []
    for task, name in TASKS.items():
        closest = closest_to(found, text, task, SINGLE)
        rest = [at for at in ("mean", "p50") if at not in closest]
        names = ", ".join(NAMES.get(at, at) for at in closest)
        rho = [_range(spearmans(found, text, task, closest[0]))]
        rho += [f"{NAMES.get(at, at)} {_range(spearmans(found, text, task, at))}" for at in rest]
        each.append(f"{name}: {names} {', '.join(rho)}")
    return (
        f"**Which statistic orders the {len(students_of(found))} students as a task does?** The closest by "
        "Spearman's rho (-1 where the loss orders them as the task does), then mean and median; the mean of "
        f"the seeds [the lowest to the highest]. {'; '.join(each)}."
    )


def _of_picks(found: dict[str, Any]) -> str:
    choices = open_choices(found)
    easy = len(found["choices"]) - len(choices)
    without = (
        f"In {easy} of the {len(found['choices'])} no student is worse than the best by more than chance. "
    )
    kind = "choices (text x seed x task)"
    if not choices:
        return f"**Picks.** There is nothing to miss in any of the {easy} {kind}."
    missed = [f"{NAMES.get(name, name)} in {missed_by(found, name)}" for name in SINGLE]
    held = sum(picks["shortlist_holds_best"] for picks in choices)
    size = sum(picks["shortlist_size"] for picks in choices) / len(choices)
    return f"""\
**Picks.** {without if easy else ""}Of {len(choices)} {kind} the student with the lowest value of a statistic
is worse in the task than the best by more than chance: {", ".join(missed)}. The
shortlist, {number(size, 1)} students on average, holds one that is not in {held}."""


def beside_the_paper(found: dict[str, Any]) -> str:
    """What the paper says, as far as we could read it, and what is the same here."""
    texts = list(found["texts"])

    def by_text(words: Callable[[str], str]) -> str:
        return "; ".join(f"{named(text)}: {words(text)}" for text in texts)

    rows = [
        [
            "the smaller K, the worse the mean and the better the median (abstract), monotone (a review)",
            "values not found",
            by_text(lambda text: _monotone(found, text)),
        ],
        [
            "the Top-5 student's median is below its teacher's, and its mean the worst of all (abstract)",
            "values not found",
            by_text(lambda text: _of_theirs(found, text)),
        ],
        [
            "Top-5 has the best stories (abstract)",
            "judge, 1 to 5: Top-5 less whole KL +0.145 [0.06, 0.24] (a review)",
            by_text(lambda text: _theirs_compared(found, text)),
        ],
        [
            "the median correlates with the task far better than the mean (abstract)",
            "values not found",
            by_text(
                lambda text: ", ".join(
                    f"{TASKS[task]} {_rho(found, text, task, 'mean')} (mean) and "
                    f"{_rho(found, text, task, 'p50')} (median)"
                    for task in TASKS
                )
            ),
        ],
    ]
    return f"""\
### Beside the paper

Theirs as far as the abstract or a review gives it: students of some 34 million parameters on TinyStories, and
a judge that we do not have. Their K but 5, their temperature and their formula for the top K are not known to
us. Correlations here are Spearman's, where a good loss has -1.

{table(["claim", "theirs", "here"], rows)}"""


def _monotone(found: dict[str, Any], text: str) -> str:
    return (
        f"the mean is monotone in {_how_many(rising(found, text, 'mean'))} seeds, the median in "
        f"{_how_many(falling(found, text, 'p50'))} (lowest at {_each(lowest_of(found, text, 'p50'))})"
    )


def _of_theirs(found: dict[str, Any], text: str) -> str:
    if THEIRS not in students_of(found):
        return "not run"
    own = models_of_label(found, text, THEIRS)
    less = _each([number(model["less_teacher"]["p50"][0]) for model in own])
    ranks = _each([_ordinal(1 + rank_of_mean(found, text, seed, THEIRS)) for seed in range(len(own))])
    return f"{less} nats from the teacher's, and of the {len(students_of(found))} means the {ranks} lowest"


def _theirs_compared(found: dict[str, Any], text: str) -> str:
    if THEIRS not in students_of(found):
        return "not run"
    return ", ".join(_compared(found, text, task) for task in TASKS)


def _values(found: dict[str, Any], text: str, label: str, statistic: str) -> str:
    return spread([model["ce"][statistic] for model in models_of_label(found, text, label)])


def _range(values: Sequence[float | None]) -> str:
    return spread(values).replace("(", "[").replace(")", "]")


def _rho(found: dict[str, Any], text: str, task: str, statistic: str) -> str:
    return spread(spearmans(found, text, task, statistic))


def _each(words: Sequence[str]) -> str:
    """``-0.20, -0.18, -0.21``; once if all are the same."""
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def _in_seeds(labels: Sequence[str]) -> str:
    return f"{labels[0]} in every seed" if len(set(labels)) == 1 else f"{', '.join(labels)} (by seed)"


def _how_many(found: Sequence[bool]) -> str:
    return out_of(sum(found), len(found))


def _at(crossing: dict[str, list[float]]) -> str:
    return _joined([f"{label} at {spread(shares)}" for label, shares in crossing.items()])


def _joined(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"


def _listed(words: Sequence[str]) -> str:
    """``mean, p5 and p25``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ordinal(rank: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(rank, f"{rank}th")
