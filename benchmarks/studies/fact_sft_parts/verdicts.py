"""What came out, in words written after the results; a test asserts each of them on the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

from benchmarks.studies.fact_sft_parts.comparisons import of_objectives
from benchmarks.studies.fact_sft_parts.training import OBJECTIVES
from benchmarks.studies.markdown import interval, number, table

Run = dict[str, Any]
WIDTH = 116
LEANING = ("1 - p", "p^10", "NLL at p >= 0.2")  # towards what the model believes already


def verdicts(found: dict[str, Any]) -> str:
    """Sentences on the parts that are there."""
    parts = {run["part"] for run in found["runs"]}
    said = _of_choices(found) if "a" in parts else []
    said += [*_of_the_weak_end(found), *_of_the_strong_end(found)] if "b" in parts else []
    lines = [
        fill(each, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)
        for each in said
    ]
    return "### What came out\n\n" + _in_short(found) + "\n" + "\n".join(lines) + "\n"


def beside_the_papers(found: dict[str, Any]) -> str:
    """What the two papers say, as far as we could read it, and what is the same here."""
    alone, masked = (of_a(found, trained_on) for trained_on in ("all", "completion"))
    rows = [
        [
            "2605.24667: late in training the mean rises a lot, recall stays near its peak (abstract)",
            "Qwen2.5-1.5B, 120 facts: mean + 60 %, recall about 3 points (a review)",
            f"all tokens: in the last epoch the mean is {_range(alone, rise_of_mean)} above its lowest, "
            f"recall {_range(alone, last_recall)}; completions: {_range(masked, rise_of_mean)} above",
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


def last_recall(run: Run) -> float:
    """After the last epoch."""
    return run["recall"][-1]


def rise_of_mean(run: Run) -> float:
    """How far the mean of the last epoch is above its lowest, as a share."""
    means = run[run["trained_on"]]["mean"][1:]
    return means[-1] / min(means) - 1


def _range(runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    """The lowest and the highest share: ``4 to 17 %``."""
    low, high = (number(100 * end(map(value, runs)), 0) for end in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _numbers(runs: Sequence[Run], value: Callable[[Run], float], digits: int = 2) -> str:
    """The lowest and the highest number: ``-0.91 to -0.87``."""
    low, high = (number(end(map(value, runs)), digits) for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _in_short(found: dict[str, Any]) -> str:
    alone, masked = (of_a(found, trained_on) for trained_on in ("all", "completion"))
    if not alone or not masked:
        return ""
    text = (
        "In short: that the median chooses a better checkpoint than the mean did reproduce on all tokens, in "
        f"{missed(alone, 'mean')} of {len(alone)} runs, and did not where prompts are masked."
    )
    return fill(text, WIDTH) + "\n"


def _of_choices(found: dict[str, Any]) -> list[str]:
    alone, masked = (of_a(found, trained_on) for trained_on in ("all", "completion"))
    differs = next(
        each
        for each in found["choices compared"]
        if (each["trained_on"], each["scored_on"]) == ("completion", "completion")
        and (each["pick"], each["less"]) == ("p50", "mean")
    )
    return [
        "**Where prompts are masked the median's pick is no better than the mean's.** Trained and scored on "
        f"completions, the mean's picks recall {_range(masked, at_pick('mean'))}, the median's "
        f"{_range(masked, at_pick('p50'))}; the median's less the mean's is {_points(differs)} points. Worse "
        f"than the best epoch by more than chance: the mean's in {missed(masked, 'mean')} of {len(masked)} "
        f"runs, the median's in {missed(masked, 'p50')}.",
        f"**On all tokens it is far better, in {missed(alone, 'mean')} of {len(alone)} runs.** By seed the "
        f"mean's picks recall {_each(alone, at_pick('mean'))} %, the median's {_each(alone, at_pick('p50'))} "
        "%. Else the mean has fallen nearly to the end: a single run can show either.",
        "**What matters is which tokens are scored, not which are trained on.** Of the same runs on all "
        "tokens, scored on completions alone, the mean's picks recall "
        f"{_range(alone, at_pick('mean', 'completion'))}. The other way round, trained on completions and "
        f"scored on all tokens, they recall {_each(masked, at_pick('mean', 'all'))} %, and the median's "
        f"{_each(masked, at_pick('p50', 'all'))} %.",
        "**Where the median saturates p75 and p95 choose no better.** On completions it is under 0.01 nats "
        f"at best in {saturated(masked)} of {len(masked)} runs, and its pick is as good as p75's "
        f"({_range(masked, at_pick('p75'))}) and p95's ({_range(masked, at_pick('p95'))}). On all tokens, "
        f"where it is not, p75's picks recall {_each(alone, at_pick('p75'))} %, and p95's "
        f"{_range(alone, at_pick('p95'))}: p95 is higher where recall is (Pearson "
        f"{_numbers(alone, pearson('p95'))}).",
    ]


def _of_the_weak_end(found: dict[str, Any]) -> list[str]:
    nll, dco = (of_objective(found, "b", "weak", name) for name in ("NLL", "DCO, N = 8"))
    leaning = [run for name in LEANING for run in of_objective(found, "b", "weak", name)]
    plain = of_objective(found, "b", "weak", "1 - p")
    return [
        "**From the untrained model only NLL and DCO learn the facts.** After 6 epochs NLL recalls "
        f"{_each(nll, last_recall)} %, DCO {_each(dco, last_recall)} %; 1 - p, p^10 and NLL at p >= 0.2 "
        f"recall {_range(leaning, last_recall)}. Mean p of completions is {_numbers(nll, mean_p_before)} "
        "there.",
        "**There these three make the tail longer, NLL and DCO make it shorter.** After the three p95 of "
        f"completions is {_numbers(leaning, moved('p95'), 0)} nats higher than before training and p99 "
        f"{_numbers(leaning, moved('p99'), 0)}; after NLL and DCO p95 is "
        f"{_numbers([*nll, *dco], down('p95'), 0)} lower and p99 {_numbers([*nll, *dco], down('p99'), 0)}.",
        "**The median alone would have called one of them a success.** Under 1 - p it falls from "
        f"{_numbers(plain, at_epoch('p50', 0), 1)} to {_numbers(plain, at_epoch('p50', -1))} nats, as what "
        f"follows the objects is learned, while recall stays at {_range(plain, last_recall)}. The mean, "
        f"{_numbers(plain, at_epoch('mean', -1), 1)}, is about that of the start.",
    ]


def _of_the_strong_end(found: dict[str, Any]) -> list[str]:
    every = {name: of_objective(found, "b", "strong", name) for name in OBJECTIVES}
    nll, dco = every["NLL"], every["DCO, N = 8"]
    leaning = [run for name in LEANING for run in every[name]]
    reached = ", ".join(
        f"{name} {_each(runs, last_recall)} %" for name, runs in every.items() if name != "NLL"
    )
    return [
        "**Prior-leaning objectives do not win at the strong end either.** From checkpoints with a mean p of "
        f"{_numbers(nll, lambda run: run['start']['mean_p'])} in training, which recall "
        f"{_each(nll, lambda run: run['recall'][0])} %, NLL reaches {_each(nll, last_recall)} % in 6 epochs; "
        f"{reached}. Such a mean p is mostly that of tokens which follow the objects: of the objects in "
        f"training {_range(nll, lambda run: run['start']['right_objects'])} are known there.",
        "**They do not keep the tail from rising, and NLL does.** p95 of completions is "
        f"{_numbers(leaning, moved('p95'), 1)} nats higher than at that start after the three, and "
        f"{_numbers([*nll, *dco], down('p95'), 1)} lower after NLL and DCO. p99 changes by "
        f"{_numbers(leaning, moved('p99'), 1)} and {_numbers([*nll, *dco], moved('p99'), 1)}.",
    ]


def of_objective(found: dict[str, Any], part: str, end: str, objective: str) -> list[Run]:
    """The runs of an objective, by seed."""
    own = [run for run in of_objectives(found["runs"], part, end) if run["objective"] == objective]
    return sorted(own, key=lambda run: run["seed"])


def mean_p_before(run: Run) -> float:
    """Of the tokens of completions in validation."""
    return run["mean_p_before"][0]


def at_epoch(statistic: str, epoch: int) -> Callable[[Run], float]:
    """A statistic of completions."""
    return lambda run: run["completion"][statistic][epoch]


def moved(statistic: str, since: str = "since_start") -> Callable[[Run], float]:
    """By how much a statistic of completions is higher after the last epoch."""
    return lambda run: run["moved"]["completion"][since][statistic][0]


def down(statistic: str) -> Callable[[Run], float]:
    """By how much it is lower than before training."""
    return lambda run: -moved(statistic)(run)


def missed(runs: Sequence[Run], statistic: str) -> int:
    """In how many runs the pick is worse than the best epoch by more than chance."""
    return sum(run["choices"][run["trained_on"]]["picks"][statistic]["missed"] for run in runs)


def saturated(runs: Sequence[Run]) -> int:
    """In how many runs the best median is under 0.01 nats."""
    return sum("p50" in run["choices"][run["trained_on"]]["saturated"] for run in runs)


def _points(each: dict[str, Any]) -> str:
    """``0.2 [-0.1, 0.5]``."""
    return interval(*(100 * each[name] for name in ("mean", "low", "high")), 1)


def _each(runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    """The share of each seed: ``4, 100 and 52``."""
    *most, last = (number(100 * value(run), 0) for run in runs)
    return f"{', '.join(most)} and {last}" if most else last
