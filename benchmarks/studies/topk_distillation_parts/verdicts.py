"""What came out, in words that are made of the results, and what the paper says beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.studies.markdown import number, out_of, spread, table
from benchmarks.studies.topk_distillation_parts.reading import (
    TASKS,
    below_teacher,
    best_at,
    closest_to,
    falls_with_smaller_k,
    less_full,
    lowest_of,
    missed_by,
    models_of_label,
    named,
    rank_of_mean,
    rises_with_smaller_k,
    spearmans,
    tasks_together,
)
from benchmarks.studies.topk_distillation_parts.units import FULL, TEACHER

SINGLE = ("mean", "p5", "p25", "p50", "p75", "p95")
NAMES = {"p50": "median"}
THEIRS = "K = 5"  # the paper's best student


# Written after the results; a test asserts it on them.
IN_SHORT = """\
As the paper has it, the mean is the worse and p5 the better the smaller K is, and on the predictable text
the student of K = 5 has a median below its teacher's. But the median does not fall all the way: it turns, at
K = 20 on the hard text and at K = 5 on the predictable one, where the teacher's K still hold more than half
of the next tokens. And no statistic is right for every task. The mean orders the students as cloze accuracy
does, p25 as the teacher's likelihood of their samples does, and these two tasks order them in opposite ways,
as a small K makes samples that are likely and of low entropy. On the hard text the median's pick is worse
than the best by both.
"""


def verdicts(found: dict[str, Any], in_short: str = "") -> str:
    """Sentences on the results, for each text and of all choices; ``in_short`` stands before them."""
    lines = [in_short] if in_short else []
    for text in found["texts"]:
        said = (_of_mean, _of_median, _of_others, _of_tasks, _of_orders)
        lines += [f"**{named(text)}**", "", *(f"* {each(found, text)}" for each in said), ""]
    return "\n".join(["### What came out", "", *lines, _of_picks(found), ""])


def _of_mean(found: dict[str, Any], text: str) -> str:
    seeds = range(len(models_of_label(found, text, TEACHER)))
    below = below_teacher(found, text, "mean")
    learned = [model["training_loss"][-1] for model in models_of_label(found, text, TEACHER)]
    rising = [rises_with_smaller_k(found, text, seed, "mean") for seed in seeds]
    return (
        f"The mean rises with each smaller K in {out_of(sum(rising), len(rising))} seeds, from "
        f"{_values(found, text, FULL, 'mean')} ({FULL}) to {_values(found, text, 'K = 1', 'mean')} (K = 1); "
        f"the teacher's is {_values(found, text, TEACHER, 'mean')}, and was {spread(learned)} in the last "
        f"tenth of its training. Below the teacher's in every seed: {', '.join(below) or 'none'}."
    )


def _of_median(found: dict[str, Any], text: str) -> str:
    lowest = lowest_of(found, text, "p50")
    differences = [
        model["less_teacher"]["p50"]
        for seed, label in enumerate(lowest)
        for model in [models_of_label(found, text, label)[seed]]
    ]
    below = sum(high is not None and high < 0 for _, _, high in differences)
    words = f"{_each(lowest)} (by seed)" if len(set(lowest)) > 1 else f"{lowest[0]} in every seed"
    less = _each([number(value) for value, *_ in differences])
    shares = models_of_label(found, text, TEACHER)[0]["within_top"]
    half = next((f"from K = {k} on" for k, share in shares.items() if share >= 0.5), "for none of these K")
    return (
        f"The median is lowest at {words}, there {less} nats from the teacher's and below it by more than "
        f"chance in {out_of(below, len(differences))} seeds. The next token is among the teacher's K most "
        f"probable for half of all tokens {half} (seed 0)."
    )


def _of_others(found: dict[str, Any], text: str) -> str:
    each = [f"{name} at {_each(lowest_of(found, text, name))}" for name in ("p5", "p25", "p75", "p95", "p99")]
    return f"The other percentiles are lowest, by seed: {'; '.join(each)}."


def _of_tasks(found: dict[str, Any], text: str) -> str:
    best = [f"{name} {_each(best_at(found, text, task))}" for task, name in TASKS.items()]
    compared = [_compared(found, text, task) for task in TASKS]
    together = spread(tasks_together(found, text, "cloze", "teacher_log_prob"))
    return (
        f"The best student, by seed: {'; '.join(best)}. {THEIRS} less {FULL}, the mean of the seeds with its "
        f"95 % interval: {'; '.join(compared)}. Over the students Spearman's rho of cloze accuracy and the "
        f"teacher's log p is {together}: of tasks that agree it is 1."
    )


def _compared(found: dict[str, Any], text: str, task: str) -> str:
    each = less_full(found, text, task, THEIRS)
    scale, digits, unit = (1, 2, "nats a token") if task == "teacher_log_prob" else (100, 1, "points")
    mean, low, high = (number(scale * each[name], digits) for name in ("mean", "low", "high"))
    return f"{TASKS[task]} {mean} [{low}, {high}] {unit}"


def _of_orders(found: dict[str, Any], text: str) -> str:
    each = []
    for task, name in TASKS.items():
        rho = [f"{NAMES.get(at, at)} {_range(spearmans(found, text, task, at))}" for at in SINGLE]
        closest = ", ".join(NAMES.get(at, at) for at in closest_to(found, text, task, SINGLE))
        each.append(f"{name}: {', '.join(rho)}, the closest: {closest}")
    return (
        "Spearman's rho over the seven students, the mean of the seeds [the lowest to the highest], where a "
        f"loss that orders them as the task does has -1. {'; '.join(each)}."
    )


def _of_picks(found: dict[str, Any]) -> str:
    choices = found["choices"]
    missed = [f"{NAMES.get(name, name)} in {missed_by(found, name)}" for name in SINGLE]
    held = sum(choice["picks"]["shortlist_holds_best"] for choice in choices)
    size = sum(choice["picks"]["shortlist_size"] for choice in choices) / len(choices)
    return f"""\
**Picks.** Of the {len(choices)} choices (text x seed x task) the student with the lowest value of a statistic
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
            by_text(lambda text: ", ".join(_compared(found, text, task) for task in TASKS)),
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
    seeds = range(len(models_of_label(found, text, TEACHER)))
    mean = sum(rises_with_smaller_k(found, text, seed, "mean") for seed in seeds)
    median = sum(falls_with_smaller_k(found, text, seed, "p50") for seed in seeds)
    return (
        f"the mean is monotone in {out_of(mean, len(seeds))} seeds, the median in "
        f"{out_of(median, len(seeds))} (lowest at {_each(lowest_of(found, text, 'p50'))})"
    )


def _of_theirs(found: dict[str, Any], text: str) -> str:
    own = models_of_label(found, text, THEIRS)
    less = _each([number(model["less_teacher"]["p50"][0]) for model in own])
    ranks = [1 + rank_of_mean(found, text, seed, THEIRS) for seed in range(len(own))]
    return f"{less} nats from the teacher's, and of the seven means the {_each(_ordinals(ranks))} lowest"


def _values(found: dict[str, Any], text: str, label: str, statistic: str) -> str:
    return spread([model["ce"][statistic] for model in models_of_label(found, text, label)])


def _range(values: Sequence[float | None]) -> str:
    return spread(values).replace("(", "[").replace(")", "]")


def _rho(found: dict[str, Any], text: str, task: str, statistic: str) -> str:
    return spread(spearmans(found, text, task, statistic))


def _each(words: Sequence[str]) -> str:
    """``-0.20, -0.18, -0.21``; once if all are the same."""
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def _ordinals(ranks: Sequence[int]) -> list[str]:
    words = ("", "1st", "2nd", "3rd")
    return [words[rank] if rank < len(words) else f"{rank}th" for rank in ranks]
