"""What tables and sentences ask of the results: runs by part, and values of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.studies.fact_sft_parts.comparisons import of_objectives
from benchmarks.studies.fact_sft_parts.units import RATE
from benchmarks.studies.markdown import interval, number

Run = dict[str, Any]
LEANING = ("1 - p", "p^10", "NLL at p >= 0.2")  # towards what the model believes already
PARTS = {"b": "right sentences", "c": "a fifth of the objects wrong"}
ENDS = {"weak": "from the untrained model", "strong": "from a checkpoint of NLL"}


def of_a(found: dict[str, Any], trained_on: str) -> list[Run]:
    """The runs of part a, by seed."""
    return by_seed(run for run in found["runs"] if (run["part"], run["trained_on"]) == ("a", trained_on))


def of_ends(found: dict[str, Any], part: str, end: str) -> dict[str, list[Run]]:
    """The runs of a part and an end by objective, each by seed."""
    own = of_objectives(found["runs"], part, end)
    names = dict.fromkeys(run["objective"] for run in own)
    return {name: by_seed(run for run in own if run["objective"] == name) for name in names}


def of_rates(found: dict[str, Any]) -> dict[str, list[Run]]:
    """The runs of each objective that has several learning rates, of the first seed, by rate."""
    first = min((run["seed"] for run in found["runs"]), default=0)
    weak = [run for run in found["runs"] if (run["part"], run["end"], run["seed"]) == ("b", "weak", first)]
    names = dict.fromkeys(run["objective"] for run in weak if run["rate"] != RATE)
    return {
        name: sorted((run for run in weak if run["objective"] == name), key=lambda run: run["rate"])
        for name in names
    }


def by_seed(runs: Iterable[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run["seed"])


def compared(found: dict[str, Any], trained_on: str, pick: str, less: str) -> dict[str, Any]:
    """Recall at one statistic's pick less that at another's, scored on what is trained on."""
    for each in found["choices compared"]:
        if each["trained_on"] == each["scored_on"] == trained_on and (each["pick"], each["less"]) == (
            pick,
            less,
        ):
            return dict(each)
    raise KeyError((trained_on, pick, less))


def rows_of(found: dict[str, Any], cells: Callable[[list[Run]], list[str]]) -> list[list[str]]:
    """A row for each part, end and objective that is there: ``(b) weak``, its name, and cells of its runs."""
    return [
        [f"({part}) {end}", name, *cells(own)]
        for part in PARTS
        for end in ENDS
        for name, own in of_ends(found, part, end).items()
    ]


def at_pick(statistic: str, scored_on: str | None = None) -> Callable[[Run], float]:
    """Recall at what a statistic of the tokens that are trained on, or of others, picks of a run."""
    return lambda run: run["choices"][scored_on or run["trained_on"]]["picks"][statistic]["task"]


def pearson(statistic: str) -> Callable[[Run], float | None]:
    """The correlation of a statistic with recall; None where either is constant."""
    return lambda run: run["choices"][run["trained_on"]]["correlation"][statistic]["pearson"]


def last_recall(run: Run) -> float:
    """After the last epoch."""
    return run["recall"][-1]


def start_is_best(run: Run) -> bool:
    """Whether no epoch recalls more than the checkpoint that the run started from."""
    return bool(run["choices"][run["trained_on"]]["best"] == "epoch 0")


def first_recall(run: Run) -> float:
    """Before training."""
    return run["recall"][0]


def rise_of_mean(run: Run) -> float:
    """How far the mean of the last epoch is above its lowest, as a share."""
    means = run[run["trained_on"]]["mean"][1:]
    return means[-1] / min(means) - 1


def missed(runs: Sequence[Run], statistic: str, scored_on: str | None = None) -> int:
    """In how many runs the pick is worse than the best epoch by more than chance."""
    return sum(run["choices"][scored_on or run["trained_on"]]["picks"][statistic]["missed"] for run in runs)


def saturated(runs: Sequence[Run]) -> list[Run]:
    """The runs whose best median is under 0.01 nats."""
    return [run for run in runs if "p50" in run["choices"][run["trained_on"]]["saturated"]]


def each_percent(runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    """The share of each seed: ``4, 100 and 52 %``."""
    *most, last = (number(100 * value(run), 0) for run in runs)
    return (f"{', '.join(most)} and {last}" if most else last) + " %"


def percent_range(runs: Sequence[Run], value: Callable[[Run], float | None]) -> str:
    """The lowest and the highest share: ``4 to 17 %``."""
    known = [100 * share for share in map(value, runs) if share is not None]
    return f"{_from_to(known, 0)} %" if known else "-"


def number_range(runs: Sequence[Run], value: Callable[[Run], float | None], digits: int = 2) -> str:
    """The lowest and the highest number: ``-0.91 to -0.87``; a dash where none is known."""
    known = [each for each in map(value, runs) if each is not None]
    return _from_to(known, digits) if known else "-"


def points(each: dict[str, Any], digits: int = 0) -> str:
    """Of a paired difference of shares, with its 95 % ends by fact: ``62 [58, 66]``."""
    return interval(*(100 * each[name] for name in ("mean", "low", "high")), digits)


def listed(names: Sequence[str]) -> str:
    """``1 - p, p^10 and NLL``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _from_to(values: Sequence[float], digits: int) -> str:
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"
