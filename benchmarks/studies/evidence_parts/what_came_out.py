"""What all studies say in a few sentences, each made of their numbers: the beginning of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from textwrap import fill
from typing import Any

from benchmarks.studies.evidence_parts.counts import Choice, counts
from benchmarks.studies.evidence_parts.page import NAMES, not_run, parting
from benchmarks.studies.fact_sft_parts.comparisons import of_objectives
from benchmarks.studies.fact_sft_parts.tails import all_but, rises, unrisen
from benchmarks.studies.markdown import interval, out_of, percent
from benchmarks.studies.topk_distillation_parts import reading
from benchmarks.studies.topk_distillation_parts.units import TEACHER

TOKENS = {"all": "all tokens", "completion": "completions"}
ENDS = {"weak": "from the untrained model", "strong": "from a checkpoint of NLL"}
ORDERING = ("mean", "p5", "p25", "p50", "p75", "p95")
Found = dict[str, Any]
Run = dict[str, Any]


def what_came_out(facts: Found | None, students: Found | None, choices: Sequence[Choice]) -> str:
    """Of the studies that are there.

    Args:
        facts: the fact study's JSON.
        students: the distillation's.
        choices: of both.
    """
    said = [*(_of_facts(facts) if facts else []), *(_of_students(students) if students else [])]
    said += _of_the_shortlist(choices)
    missing = not_run(choices)
    lines = [f"Not run yet: {missing}.\n"] if missing else []
    return "\n".join([*lines, *map(_bullet, said)])


def _bullet(text: str) -> str:
    # A line that begins with % is a comment of the site, with - and > it is another list or a quotation.
    for sign in (" - ", " >= ", " = "):
        text = text.replace(sign, sign.replace(" ", "\0"))
    text = text.replace(" %", "\0%")
    filled = fill(text, 116, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)
    return filled.replace("\0", " ")


def _of_facts(found: Found) -> list[str]:
    by_tokens = {
        tokens: [run for run in found["runs"] if (run["part"], run["trained_on"]) == ("a", tokens)]
        for tokens in TOKENS
    }
    said = []
    if all(by_tokens.values()):
        said += [
            _with_prompts(by_tokens["all"]),
            _without_prompts(found, by_tokens),
            *_saturated(found, by_tokens),
        ]
    said += [each for part in ("b", "c") for each in _objectives(found, part)]
    return said + _tail(found)


def _with_prompts(runs: Sequence[Run]) -> str:
    mean, median = (_missed(runs, "all", name) for name in ("mean", "p50"))
    as_theirs = ", as the paper says" if median < mean else ""
    return (
        f"**With NLL and prompts scored the median chooses {_compared(median, mean)} than the "
        f"mean**{as_theirs}. "
        "Trained on all tokens, the lowest mean chose a checkpoint that is worse than the best by more than "
        f"chance in {out_of(mean, len(runs))} runs, the lowest median in {median}."
    )


def _without_prompts(found: Found, by_tokens: dict[str, list[Run]]) -> str:
    runs = [run for own in by_tokens.values() for run in own]
    mean, median = (_missed(runs, "completion", name) for name in ("mean", "p50"))
    headline = f"With NLL and without prompts it chooses {_compared(median, mean)} than the mean."
    if mean == median == 0:
        headline = "With NLL and without prompts it has nothing to win."
    prompts = ""
    if not mean and _missed(by_tokens["all"], "all", "mean"):
        prompts = (
            " There the failure of the mean is one of prompts, as in a run that somebody else described."
        )
    return (
        f"**{headline}** Scored on completions, the lowest mean is worse than the best in "
        f"{out_of(mean, len(runs))} runs, the lowest median in {median}.{prompts}{_by_objective(found)}"
    )


def _by_objective(found: Found) -> str:
    """Where the picks of completions fail though no prompts are scored: under other objectives."""
    runs = [run for run in found["runs"] if run["part"] != "a"]
    told = []
    for name, words in (("mean", "the mean"), ("p50", "the median")):
        under = [run["objective"] for run in runs if run["choices"]["completion"]["picks"][name]["missed"]]
        if under:
            each = ", ".join(f"{objective}: {under.count(objective)}" for objective in dict.fromkeys(under))
            told.append(f"{words} in {out_of(len(under), len(runs))} ({each})")
    return f" In (b) and (c) there are failures without prompts too: {', '.join(told)}." if told else ""


def _compared(missed: int, than: int) -> str:
    return "better" if missed < than else "worse" if missed > than else "no better"


def _saturated(found: Found, by_tokens: dict[str, list[Run]]) -> list[str]:
    """Whether p75 or p95 choose better where the median is near 0: on completions."""
    runs = [run for run in found["runs"] if "p50" in run["choices"]["completion"]["saturated"]]
    less = {
        each["pick"]: each
        for each in found["choices compared"]
        if each["trained_on"] == each["scored_on"] == "completion" and each["less"] == "p50"
    }
    if not runs or not less:
        return []
    misses = {name: _missed(runs, "completion", name) for name in ("p50", *less)}
    better = [name for name in less if misses[name] < misses["p50"]]
    headline = (
        f"Where the median is saturated {' and '.join(better)} choose{'s' * (len(better) == 1)} better."
        if better
        else f"{' and '.join(less)} win nothing where the median is saturated."
    )
    counted = ", ".join(f"{name}'s in {misses[name]}" for name in less)
    differ = ", ".join(f"{name}'s less the median's {_points(each)}" for name, each in less.items())
    plain = by_tokens["completion"]
    saturated = sum("p50" in run["choices"]["completion"]["saturated"] for run in plain)
    return [
        f"**{headline}** Of all {len(runs)} runs in which that of completions is under 0.01 nats at best, "
        f"the "
        f"median's pick is worse than the best in {misses['p50']}, {counted}. In (a), of which "
        f"{out_of(saturated, len(plain))} runs on completions are among these, recall at the picks differs "
        f"by, "
        f"in points: {differ}. (Of the paper's own run a review says that p95 chose the best checkpoint.)"
    ]


def _objectives(found: Found, part: str) -> list[str]:
    """Whether another objective learns more than NLL."""
    compared = [each for each in found["objectives compared"] if each["part"] == part]
    if not compared:
        return []
    better = [f"{each['objective']} {ENDS[each['end']]}" for each in compared if each["last"]["low"] > 0]
    facts = {"b": "right facts", "c": "a fifth of the facts wrong"}[part]
    learn = "learn" if len(better) > 1 else "learns"
    each_end = []
    for end, words in ENDS.items():
        own = [f"{each['objective']}: {_points(each['last'])}" for each in compared if each["end"] == end]
        each_end += [f"{words}, {', '.join(own)}"] if own else []
    return [
        f"**With {facts} {_listed(better) or 'no objective'} surely {learn} more than NLL.** Recall after "
        "the last epoch less that of NLL, in points [by fact]: "
        f"{'; '.join(each_end)}."
    ]


def _tail(found: Found) -> list[str]:
    """Under which objectives p95 or p99 rises above its lowest value."""
    runs: dict[str, list[Run]] = {}
    for part in "bc":
        for end in ENDS:
            for run in of_objectives(found["runs"], part, end):
                runs.setdefault(run["objective"], []).append(run)
    if not runs:
        return []
    under = [f"of {words} under {all_but(unrisen(runs, tokens), runs)}" for tokens, words in TOKENS.items()]
    told = [
        f"{words}, " + ", ".join(f"{name}: {_risen(own, tokens)}" for name, own in runs.items())
        for tokens, words in TOKENS.items()
    ]
    return [
        f"**p95 or p99 rises in some run, {', '.join(under)}.** Runs of (b) and (c) after which one of them "
        f"is "
        f"higher by more than chance than where it was lowest: of {'; of '.join(told)}."
    ]


def _risen(runs: Sequence[Run], tokens: str) -> str:
    return out_of(sum(rises([run], tokens, "since_lowest") for run in runs), len(runs))


def _of_students(found: Found) -> list[str]:
    every = [
        (text, seed)
        for text in found["texts"]
        for seed in range(len(reading.models_of_label(found, text, TEACHER)))
    ]
    # From the whole distribution to the smallest K.
    by_k = {name: [reading.values_by_k(found, *each, name) for each in every] for name in ("mean", "p50")}
    mean = sum(all(a < b for a, b in pairwise(values)) for values in by_k["mean"])
    median = sum(all(a > b for a, b in pairwise(values)) for values in by_k["p50"])
    is_worse = "is the worse" if mean == len(every) else "is not always the worse"
    is_better = "the better, as the paper says" if median == len(every) else "not always the better"
    lowest = "; ".join(
        f"{reading.named(text)} {', '.join(dict.fromkeys(reading.lowest_of(found, text, 'p50')))}"
        for text in found["texts"]
    )
    return [
        f"**The mean {is_worse} the smaller K is, and the median {is_better}.** The mean rises with each "
        f"smaller K in {out_of(mean, len(every))} families of students, the median falls in "
        f"{out_of(median, len(every))}; it is lowest at {lowest}. {_ordering(found)}"
    ]


def _ordering(found: Found) -> str:
    closest = {
        (text, task): reading.closest_to(found, text, task, ORDERING)
        for text in found["texts"]
        for task in reading.TASKS
    }
    of_all = set.intersection(*map(set, closest.values()))
    best = _listed([NAMES.get(name, name) for name in ORDERING if name in of_all])
    return f"{best or 'No statistic'} orders them best by every task."


def _of_the_shortlist(choices: Sequence[Choice]) -> list[str]:
    kinds: dict[str, Callable[[Choice], bool]] = {
        "checkpoints scored on completions": lambda each: each.scored == "completion",
        "checkpoints scored on prompts too": lambda each: each.scored == "all",
        "students": lambda each: each.scored is None,
    }
    told, easy, parted = [], 0, ""
    for kind, is_of in kinds.items():
        found = counts([each.picks for each in choices if is_of(each)])
        if found.choices:
            told.append(
                f"{out_of(found.held, found.choices)} choices of {kind} (as many by lot in "
                f"{percent(found.held_by_lot)})"
            )
        if found.part:
            parted = parting(found, "With prompts scored the verdict itself")
        easy += found.easy
    left_out = f" Left out are {easy} in which any candidate would do." if easy else ""
    return [f"**Our shortlist** holds a best one in {'; in '.join(told)}.{left_out}{parted}"] if told else []


def _missed(runs: Sequence[Run], scored_on: str, statistic: str) -> int:
    return sum(run["choices"][scored_on]["picks"][statistic]["missed"] for run in runs)


def _points(each: dict[str, Any]) -> str:
    """``-2 [-3, -1]``."""
    return interval(*(100 * each[name] for name in ("mean", "low", "high")), 0)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
