"""What the papers say, as far as we could read it, beside what came out here."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.fact_sft_parts.comparisons import BASE
from benchmarks.studies.fact_sft_parts.reading import (
    ENDS,
    LEANING,
    PARTS,
    at_pick,
    each_percent,
    last_recall,
    number_range,
    of_a,
    of_ends,
    pearson,
    percent_range,
    rise_of_mean,
)
from benchmarks.studies.markdown import table

# By the end that theirs is about: claim, and numbers.
THEIRS = {
    "weak": (
        "2510.00526: a model that knows little (mean p about 0.01) does better with NLL (reading notes)",
        "Qwen2.5-7B, figfont, exact match: NLL 35.20, -p 0.00 (reading notes)",
    ),
    "strong": (
        "a model that knows much (mean p 0.76 to 0.81) does better with prior-leaning ones (reading notes)",
        "Qwen2.5-Math-1.5B, mean of five sets of mathematics: NLL 17.00, -p 32.75, NLL at p >= 0.2 32.04; "
        "14.97 before training (reading notes)",
    ),
}


def beside_the_papers(found: dict[str, Any]) -> str:
    rows = [*_of_the_median(found), *_of_objectives(found)]
    if not rows:
        return ""
    return f"""\
### Beside the papers

Theirs as far as the abstracts, a review or reading notes by others give it: we have not read these numbers in
the papers themselves. We could not find whether arXiv 2605.24667 masks prompts. arXiv 2510.00526 has larger
models and other tasks than we. Its -p has the gradients of our 1 - p. Its published code divides NLL at
p >= 0.2 by the number of tokens that it keeps; ours is divided by that of all tokens trained on, so that its
gradient is the smaller the fewer are kept.

{table(["claim", "theirs", "here"], rows)}"""


def _of_the_median(found: dict[str, Any]) -> list[list[str]]:
    alone, masked = (of_a(found, trained_on) for trained_on in ("all", "completion"))
    if not alone or not masked:
        return []
    return [
        [
            "2605.24667: late in training the mean rises a lot, recall stays near its peak (abstract)",
            "Qwen2.5-1.5B, 120 facts: mean + 60 %, recall about 3 points (a review)",
            f"all tokens: in the last epoch the mean is {percent_range(alone, rise_of_mean)} above its "
            f"lowest, recall {percent_range(alone, last_recall)}; completions: "
            f"{percent_range(masked, rise_of_mean)} above",
        ],
        [
            "the median correlates with the task far better than the mean (abstract)",
            "values not found",
            f"Pearson, all tokens: mean {number_range(alone, pearson('mean'))}, median "
            f"{number_range(alone, pearson('p50'))}; completions: {number_range(masked, pearson('mean'))} "
            f"and {number_range(masked, pearson('p50'))}",
        ],
        [
            "p95 picks the best checkpoint, the median epoch 12, a worse one (a review)",
            "values not found",
            f"all tokens: p95's pick recalls {percent_range(alone, at_pick('p95'))}, the median's "
            f"{percent_range(alone, at_pick('p50'))}; completions: {percent_range(masked, at_pick('p95'))} "
            f"and {percent_range(masked, at_pick('p50'))}",
        ],
    ]


def _of_objectives(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            *THEIRS[end],
            f"{_strength(found, parts[0], end)}; {'; '.join(_recalled(found, each, end) for each in parts)}",
        ]
        for end in ENDS
        if (parts := [part for part in PARTS if of_ends(found, part, end)])
    ]


def _strength(found: dict[str, Any], part: str, end: str) -> str:
    own = [run for runs in of_ends(found, part, end).values() for run in runs]
    return f"{ENDS[end]}, mean p in validation {number_range(own, lambda run: run['mean_p_before'][0])}"


def _recalled(found: dict[str, Any], part: str, end: str) -> str:
    each = [
        f"{name} {each_percent(own, last_recall)}"
        for name, own in of_ends(found, part, end).items()
        if name in (BASE, *LEANING)
    ]
    return f"({part}) recall {', '.join(each)}"
