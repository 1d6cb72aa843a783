"""What came out of other objectives, in words that are made of the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.studies.fact_sft_parts.comparisons import BASE
from benchmarks.studies.fact_sft_parts.reading import (
    ENDS,
    LEANING,
    PARTS,
    Run,
    each_percent,
    first_recall,
    last_recall,
    listed,
    missed,
    number_range,
    of_ends,
    of_rates,
    percent_range,
    start_is_best,
)
from benchmarks.studies.fact_sft_parts.tails import tail_sentence
from benchmarks.studies.markdown import out_of, percent, percent_spread, spread

LITTLE = 0.05  # recall of facts that were not learned


def of_objectives_in_words(found: dict[str, Any]) -> list[str]:
    """A few sentences on each part and end that is there with NLL."""
    there = [(part, end) for part in PARTS for end in ENDS if BASE in of_ends(found, part, end)]
    said = [_who_wins(found, part, end) for part, end in there]
    said += [_of_starts(found, [part for part, end in there if end == "strong"])]
    said += [tail_sentence(found, part, end) for part, end in there if part == "b"]
    said += [_misleading(found), _of_rates(found)]
    return [sentence for sentence in said if sentence]


def less_nll(found: dict[str, Any], part: str, end: str) -> dict[str, dict[str, Any]]:
    """Of each objective recall after the last epoch less that of NLL, paired by fact."""
    return {
        each["objective"]: each["last"]
        for each in found["objectives compared"]
        if (each["part"], each["end"]) == (part, end)
    }


def does_leaning_win(differences: dict[str, dict[str, Any]]) -> str:
    """The answer, of the differences of the objectives from NLL."""
    leaning = [name for name in LEANING if name in differences]
    won = [name for name in leaning if differences[name]["low"] > 0]
    lost = [name for name in leaning if differences[name]["high"] < 0]
    told = [f"{listed(won)} recall{'s' * (len(won) == 1)} more than NLL"] if won else []
    told += [f"{listed(lost)} recall{'s' * (len(lost) == 1)} less than NLL"] if lost else []
    if not leaning:
        return "no prior-leaning objective was run"
    wins = "prior-leaning does not win" if not won else "prior-leaning wins"
    if won and len(won) < len(leaning):
        wins += " in part"
    return f"{wins}: {', '.join(told) or 'what differs from NLL is within chance'}"


def _who_wins(found: dict[str, Any], part: str, end: str) -> str:
    runs, differences = of_ends(found, part, end), less_nll(found, part, end)
    means = {name: _mean(own, last_recall) for name, own in runs.items()}
    most = [name for name, mean in means.items() if mean == max(means.values())]
    each = "; ".join(f"{name} {each_percent(own, last_recall)}" for name, own in runs.items())
    start = f" (at the start {each_percent(runs[BASE], first_recall)})" if end == "strong" else ""
    more = {"b": _of_strength, "c": _of_wrong}[part](found, end)
    return (
        f"**({part}) {PARTS[part].capitalize()}, {ENDS[end]}: {does_leaning_win(differences)}.** "
        f"Recall after the last epoch by seed{start}: {each}; most under {listed(most)}.{more}"
    )


def _of_strength(found: dict[str, Any], end: str) -> str:
    """How strong the strong start is on what it is trained on."""
    starts = [run["start"] for run in of_ends(found, "b", end)[BASE] if run["start"] is not None]
    if not starts:
        return ""
    return (
        f" Mean p in training is {spread([each['mean_p'] for each in starts])} at that checkpoint, "
        "which is that of all tokens of completions; of the objects "
        f"{percent_spread([each['right_objects'] for each in starts])} are known."
    )


def _of_wrong(found: dict[str, Any], end: str) -> str:
    """What is known of the wrong objects in training, and of strong starts beforehand."""
    runs = of_ends(found, "c", end)
    each = "; ".join(f"{name} {percent_range(own, _wrong)}" for name, own in runs.items())
    return f" Of the wrong objects in training are known: {each}.{_before(found, runs) * (end == 'strong')}"


def _before(found: dict[str, Any], runs: dict[str, list[Run]]) -> str:
    measured = found["starts on wrong objects"]
    own = [measured[str(run["seed"])] for run in runs[BASE] if str(run["seed"]) in measured]
    learned = " The checkpoints have learned right sentences of the same facts"
    if not own:
        return f"{learned}; what they know of these sentences was not measured."
    right, wrong = (percent_spread([each[f"{kind}_objects"] for each in own]) for kind in ("right", "wrong"))
    return f"{learned}: before training they know {right} of the right objects and {wrong} of the wrong ones."


def _of_starts(found: dict[str, Any], parts: list[str]) -> str:
    """Where the checkpoint is better than what training makes of it, and who notices."""
    runs = [run for part in parts for own in of_ends(found, part, "strong").values() for run in own]
    kept = [run for run in runs if start_is_best(run)]
    if not runs:
        return ""
    others = [run for run in runs if not start_is_best(run)]
    return (
        f"**In {out_of(len(kept), len(runs))} runs from a checkpoint of NLL no epoch recalls more than the "
        f"checkpoint**{_counted(kept)}.{_worse_in('these', kept)}{_worse_in('the others', others)}"
    )


def _counted(runs: list[Run]) -> str:
    """`` (p^10 4; 1 - p 2)``."""
    names = [run["objective"] for run in runs]
    return f" ({'; '.join(f'{name} {names.count(name)}' for name in dict.fromkeys(names))})" if names else ""


def _worse_in(which: str, runs: list[Run]) -> str:
    if not runs:
        return ""
    worse = {name: missed(runs, name) for name in ("mean", "p50", "p95")}
    return (
        f" In {which} the pick of the mean is worse than the best by more than chance in {worse['mean']}, "
        f"the median's in {worse['p50']}, p95's in {worse['p95']}."
    )


def _misleading(found: dict[str, Any]) -> str:
    """Runs in which the median falls to less than a tenth, and nothing is learned."""
    weak = [run for part in PARTS for own in of_ends(found, part, "weak").values() for run in own]
    own = [run for run in weak if _median(run, -1) < 0.1 * _median(run, 0) and last_recall(run) < LITTLE]
    if not own:
        return ""
    before, after = (number_range(own, lambda run, at=at: _median(run, at)) for at in (0, -1))
    return (
        f"**The median may fall while no fact is learned**, in {out_of(len(own), len(weak))} runs "
        f"{ENDS['weak']}{_counted(own)}: that of completions was {before} nats and is {after} in the end; "
        f"recall is {percent_range(own, last_recall)}. "
        f"Of the right objects in training {percent_range(own, _right)} are known."
    )


def _of_rates(found: dict[str, Any]) -> str:
    runs = of_rates(found)
    if not runs:
        return ""
    each = "; ".join(
        f"{name} " + ", ".join(f"{percent(run['recall'][-1])} at {run['rate']:g}" for run in own)
        for name, own in runs.items()
    )
    return (
        f"**Learning rates, {ENDS['weak']}, one seed.** {_reaches(runs)}Recall after the last epoch: {each}."
    )


def _reaches(runs: dict[str, list[Run]]) -> str:
    """Whether another objective gets to NLL by another rate."""
    if BASE not in runs or len(runs) < 2:
        return ""
    worst = min(map(last_recall, runs[BASE]))
    reach = [name for name, own in runs.items() if name != BASE and max(map(last_recall, own)) >= worst]
    others = listed([name for name in runs if name != BASE])
    if not reach:
        return f"At no rate does {others} recall as much as NLL at its worst one. "
    return f"At its best rate {listed(reach)} recalls as much as NLL at its worst one, or more. "


def _right(run: Run) -> float:
    return float(run["training_set"]["right_objects"])


def _wrong(run: Run) -> float | None:
    known: float | None = run["training_set"]["wrong_objects"]
    return known


def _median(run: Run, epoch: int) -> float:
    return float(run["completion"]["p50"][epoch])


def _mean(runs: list[Run], value: Callable[[Run], float]) -> float:
    return sum(map(value, runs)) / len(runs)
