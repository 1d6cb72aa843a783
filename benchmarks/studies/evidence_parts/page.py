"""The counts as tables and sentences, which stand in the README of the studies between two comments."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.evidence_parts.counts import PARTS, SINGLE, TOKENS, Choice, Counts, counted, counts
from benchmarks.studies.markdown import number, out_of, percent, percent_interval, table, with_section

NAMES = {"mean": "mean", "p50": "median", "p75": "p75", "p95": "p95", "last": "last"}
MISSED = ("mean", "p50", "p95")
# Of students the last is the one with the whole KL, no last checkpoint.
STUDENTS = "students"


def write(path: Path, text: str) -> None:
    """In the page at this path."""
    page = with_section(path.read_text(encoding="utf-8"), "evidence", text)
    path.write_text(page, encoding="utf-8", newline="\n")


def section(choices: Sequence[Choice]) -> str:
    said = "\n".join(f"* {each}" for each in sentences(choices))
    return (
        f"{_question(choices)}\n{said}\n\n{_shortlists(choices)}\n{_single(choices)}\n{_objectives(choices)}"
    )


def sentences(choices: Sequence[Choice]) -> list[str]:
    """One for each kind of choice."""
    return [_said(study, found) for study, found in counted(choices, lambda each: each.study).items()]


def in_short(choices: Sequence[Choice]) -> str:
    """A line for completions, one for all tokens and one for students, for the README of the project."""
    kinds = {
        "Checkpoints scored on completions": [each for each in choices if each.scored == "completion"],
        "Checkpoints scored on prompts too": [each for each in choices if each.scored == "all"],
        "Students of a teacher's top K": [each for each in choices if each.study == STUDENTS],
    }
    return "\n".join(
        _in_short(kind, counts([each.picks for each in own])) for kind, own in kinds.items() if own
    )


def _in_short(kind: str, found: Counts) -> str:
    text = (
        f"* **{kind}**: the shortlist holds a best one in {out_of(found.held, found.choices)} choices, with "
        f"{_average(found.size)} of {_average(found.candidates)} candidates on average; as many drawn by "
        f"lot would in {percent(found.held_by_lot)}. {_misses(found, MISSED)}."
    )
    # A line that begins with % would be a comment in the site.
    return textwrap.fill(text.replace(" %", "\0%"), 118, subsequent_indent="  ").replace("\0", " ")


def _misses(found: Counts, names: Sequence[str]) -> str:
    """``The lowest mean misses it in 3, the lowest median in 0``."""
    first, *others = ((NAMES[name], found.missed[name]) for name in names)
    return f"The lowest {first[0]} misses it in {first[1]}" + "".join(
        f", the lowest {name} in {missed}" for name, missed in others
    )


def _question(choices: Sequence[Choice]) -> str:
    return f"""\
Does the shortlist of our own `verdict`, which sees the loss alone, keep the checkpoint that the task finds
best? These are all {len(choices)} choices of the studies above. A candidate **misses** the best if it is
worse in the task by more than chance (paired by fact or line, 95 %); a list **holds a best one** if one of
it does not. **By lot**: what as many candidates drawn by chance do; where most are good anybody keeps one.
{_missing(choices)}
    python -m benchmarks.studies.evidence
"""


def _missing(choices: Sequence[Choice]) -> str:
    """Which studies there is nothing of."""
    groups = " ".join(each.group for each in choices)
    missing = [f"facts ({part})" for part in PARTS if PARTS[part] not in groups]
    missing += [] if any(each.study == STUDENTS for each in choices) else ["distillation"]
    return f"\n**Not run yet: {', '.join(missing)}.**\n" if missing else ""


def _said(study: str, found: Counts) -> str:
    low, high = (percent(end).removesuffix(" %") for end in (found.held_low, found.held_high))
    last = "" if study == STUDENTS else f", the last checkpoint in {found.missed['last']}"
    easy = f" (in {found.easy} any candidate would do)" if found.easy else ""
    return (
        f"**{study.capitalize()}**: of {found.choices} choices{easy} the shortlist, {_average(found.size)} "
        f"of {_average(found.candidates)} candidates on average, holds a best one in {found.held} "
        f"({percent(found.held / found.choices)} [{low}, {high}]); as many by lot would in "
        f"{percent(found.held_by_lot)}. {_misses(found, SINGLE)}{last}, and one drawn by lot in "
        f"{percent(found.missed_by_lot)}."
    )


def _shortlists(choices: Sequence[Choice]) -> str:
    rows = []
    for study in dict.fromkeys(each.study for each in choices):
        own = [each for each in choices if each.study == study]
        groups = counted(own, _group)
        rows += [_shortlist(study, group, found) for group, found in groups.items()]
        if len(groups) > 1:
            rows.append(_shortlist(study, "**all**", counts([each.picks for each in own])))
    heads = ["", "", "choices", "any would do", "candidates", "shortlist"]
    heads += ["holds a best one", "by lot", "the very best", "lowest of three", "holds a best one"]
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
        str(found.easy),
        _average(found.candidates),
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
        for study in dict.fromkeys(each.study for each in choices)
        for group, found in counted([each for each in choices if each.study == study], _group).items()
    ]
    heads = ["", "", *(f"lowest {NAMES[name]}" for name in SINGLE), "last", "one by lot", "shortlist's best"]
    return f"""\
### One candidate alone

In how many choices the candidate with the lowest value of a statistic, or the last one, misses the best. In
brackets, and for the best of the shortlist, how far it is behind in the task on average: in points of a
share, or in nats of a likelihood.

{table([*heads, "choices"], rows)}"""


def _group(choice: Choice) -> str:
    return choice.group


def _average(value: float) -> str:
    return number(value, 1).removesuffix(".0")


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
    heads = [
        f"{words} scored: {what}"
        for words in TOKENS.values()
        for what in ("held", *(NAMES[name] for name in MISSED))
    ]
    return f"""\
### By objective

In how many of the runs the shortlist holds a best checkpoint, and how many of the lowest mean, median and p95
miss it. All are trained on completions.

{table(["", "objective", *heads], rows)}"""


def _cells(found: Counts) -> list[str]:
    return [out_of(found.held, found.choices), *(str(found.missed[name]) for name in MISSED)]
