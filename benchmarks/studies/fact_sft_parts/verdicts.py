"""What came out, in words written after the results; a test asserts each of them on the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.studies.fact_sft_parts.comparisons import of_objectives
from benchmarks.studies.markdown import number, table

Run = dict[str, Any]


def verdicts(found: dict[str, Any]) -> str:
    """Sentences on the full results."""
    return f"""\
### What came out

{_of_choices(found)}
"""


def beside_the_papers(found: dict[str, Any]) -> str:
    """What the two papers say, as far as we could read it, and what is the same here."""
    alone, masked = (of_a(found, trained_on) for trained_on in ("all", "completion"))
    rows = [
        [
            "2605.24667: late in training the mean rises a lot, recall stays near its peak (abstract)",
            "Qwen2.5-1.5B, 120 facts: mean + 60 %, recall about 3 points (a review)",
            f"all tokens: mean {_range(alone, rise_of_mean)} above its lowest in the last epoch, recall "
            f"{_range(alone, lambda run: run['recall'][-1])}; completions: mean {_range(masked, rise_of_mean)}",
        ],
        [
            "the median correlates with the task far better than the mean (abstract)",
            "values not found",
            f"Pearson, all tokens: mean {_numbers(alone, pearson('mean'))}, median "
            f"{_numbers(alone, pearson('p50'))}; completions: {_numbers(masked, pearson('mean'))} and "
            f"{_numbers(masked, pearson('p50'))}",
        ],
        [
            "p95 picks the best checkpoint, the median epoch 12, a worse one (a review)",
            "values not found",
            f"all tokens: p95's pick recalls {_range(alone, at_pick('p95'))}, the median's "
            f"{_range(alone, at_pick('p50'))}; completions: {_range(masked, at_pick('p95'))} and "
            f"{_range(masked, at_pick('p50'))}",
        ],
    ]
    return f"""\
### Beside the papers

Theirs as far as the abstract, a review or reading notes give it; we could not find whether they mask prompts.

{table(["claim", "theirs", "here"], rows)}"""


def of_a(found: dict[str, Any], trained_on: str) -> list[Run]:
    """The runs of part a, by seed."""
    own = [run for run in found["runs"] if (run["part"], run["trained_on"]) == ("a", trained_on)]
    return sorted(own, key=lambda run: run["seed"])


def at_pick(statistic: str, scored_on: str | None = None) -> Callable[[Run], float]:
    """Recall at what a statistic of the tokens that are trained on, or of others, picks of a run."""
    return lambda run: run["choices"][scored_on or run["trained_on"]]["picks"][statistic]["task"]


def pearson(statistic: str) -> Callable[[Run], float]:
    """The correlation of a statistic with recall."""
    return lambda run: run["choices"][run["trained_on"]]["correlation"][statistic]["pearson"]


def rise_of_mean(run: Run) -> float:
    """How far the mean of the last epoch is above its lowest, as a share."""
    means = run[run["trained_on"]]["mean"][1:]
    return means[-1] / min(means) - 1


def _range(runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    """The lowest and the highest share: ``4 to 17 %``."""
    low, high = (number(100 * end(map(value, runs)), 0) for end in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _numbers(runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    """The lowest and the highest number: ``-0.91 to -0.87``."""
    low, high = (number(end(map(value, runs))) for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _of_choices(found: dict[str, Any]) -> str:
    return ""
