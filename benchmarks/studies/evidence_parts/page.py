"""The counts as tables and sentences, which stand in the README of the studies between two comments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.evidence_parts.counts import SINGLE, TOKENS, Choice, Counts, counted, counts
from benchmarks.studies.markdown import number, out_of, percent, percent_interval, table, with_section

NAMES = {"mean": "mean", "p50": "median", "p75": "p75", "p95": "p95", "last": "last"}
MISSED = {name: NAMES[name] for name in ("mean", "p50", "p95")}
# Of students the last is the one with the whole KL, no last checkpoint.
STUDENTS = "students"


def write_section(path: Path, choices: Sequence[Choice]) -> None:
    page = path.read_text(encoding="utf-8")
    path.write_text(with_section(page, "evidence", section(choices)), encoding="utf-8", newline="\n")


def section(choices: Sequence[Choice]) -> str:
    said = "\n".join(f"* {each}" for each in sentences(choices))
    return (
        f"{_question(choices)}\n{said}\n\n{_shortlists(choices)}\n{_single(choices)}\n{_objectives(choices)}"
    )


def sentences(choices: Sequence[Choice]) -> list[str]:
    """One for each kind of choice."""
    return [_said(study, found) for study, found in counted(choices, lambda each: each.study).items()]


def _question(choices: Sequence[Choice]) -> str:
    return f"""\
Does the shortlist of our own `verdict`, which sees the loss alone, keep the checkpoint that the task finds
best? These are all {len(choices)} choices of the studies above. A candidate **misses** the best if it is
worse in the task by more than chance (paired by fact or line, 95 %); a list **holds a best one** if one of
it does not. **By lot**: what as many candidates drawn by chance do; where most are good anybody keeps one.

    python -m benchmarks.studies.evidence
"""


def _said(study: str, found: Counts) -> str:
    low, high = (percent(end).removesuffix(" %") for end in (found.held_low, found.held_high))
    ways = [f"the lowest {NAMES[name]} in {found.missed[name]}" for name in SINGLE]
    if study != STUDENTS:
        ways.append(f"the last checkpoint in {found.missed['last']}")
    return (
        f"**{study.capitalize()}**: of {found.choices} choices the shortlist, {number(found.size, 1)} of "
        f"{number(found.candidates, 1)} candidates on average, holds a best one in {found.held} "
        f"({percent(found.held / found.choices)} [{low}, {high}]); as many by lot would in "
        f"{percent(found.held_by_lot)}. Alone, {', '.join(ways)} miss it, and one drawn by lot in "
        f"{percent(found.missed_by_lot)}."
    )


def _shortlists(choices: Sequence[Choice]) -> str:
    rows = []
    for study in dict.fromkeys(each.study for each in choices):
        own = [each for each in choices if each.study == study]
        groups = counted(own, lambda each: each.group)
        rows += [_shortlist(study, group, found) for group, found in groups.items()]
        if len(groups) > 1:
            rows.append(_shortlist(study, "**all**", counts([each.picks for each in own])))
    heads = ["", "", "choices", "candidates", "shortlist", "holds a best one", "by lot", "the very best"]
    heads += ["lowest of three", "holds a best one"]
    return f"""\
### The shortlist

Sizes are averages. The interval is Wilson's, for choices drawn by themselves; those of one seed share their
facts and have runs in common, so that it is rather too narrow. "Lowest of three" are the candidates with the
lowest mean, median and p95, without error bars.

{table(heads, rows)}"""


def _shortlist(study: str, group: str, found: Counts) -> list[str]:
    held = percent_interval(found.held / found.choices, found.held_low, found.held_high)
    return [
        study,
        group,
        str(found.choices),
        number(found.candidates, 1).removesuffix(".0"),
        number(found.size, 1),
        f"{out_of(found.held, found.choices)}: {held}",
        percent(found.held_by_lot),
        out_of(found.best, found.choices),
        number(found.lowest_size, 1),
        out_of(found.lowest_held, found.choices),
    ]


def _single(choices: Sequence[Choice]) -> str:
    rows = [
        [
            study,
            group,
            *(
                "-" if name == "last" and study == STUDENTS else f"{missed} ({_behind(found, name)})"
                for name, missed in found.missed.items()
            ),
            percent(found.missed_by_lot),
            _behind(found, "shortlist"),
            str(found.choices),
        ]
        for (study, group), found in counted(choices, lambda each: (each.study, each.group)).items()
    ]
    heads = ["", "", *(f"lowest {NAMES[name]}" for name in SINGLE), "last", "one by lot", "shortlist's best"]
    return f"""\
### One candidate alone

In how many choices the candidate with the lowest value of a statistic, or the last one, misses the best. In
brackets, and for the best of the shortlist, how far it is behind in the task on average: in points of a
share, or in nats of a likelihood.

{table([*heads, "choices"], rows)}"""


def _behind(found: Counts, name: str) -> str:
    return number(100 * found.behind[name], 0) if found.shares else number(found.behind[name])


def _objectives(choices: Sequence[Choice]) -> str:
    of_objectives = [each for each in choices if each.objective is not None]
    found = counted(of_objectives, lambda each: (each.group, each.objective, each.scored))
    rows = [
        [group, objective, *(cell for scored in TOKENS for cell in _cells(found[group, objective, scored]))]
        for group, objective in dict.fromkeys((each.group, each.objective) for each in of_objectives)
    ]
    if not rows:
        return ""
    heads = [f"{words} scored: {what}" for words in TOKENS.values() for what in ("held", *MISSED.values())]
    return f"""\
### By objective

In how many of the runs the shortlist holds a best checkpoint, and how many of the lowest mean, median and p95
miss it. All are trained on completions.

{table(["", "objective", *heads], rows)}"""


def _cells(found: Counts) -> list[str]:
    return [out_of(found.held, found.choices), *(str(found.missed[name]) for name in MISSED)]
