"""The counts as tables and sentences, which stand in the README of the studies between two comments."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest

from benchmarks.studies.evidence_parts.counts import PARTS, SINGLE, TOKENS, Choice, Counts, counted, counts
from benchmarks.studies.markdown import number, out_of, percent, percent_interval, table, with_section

NAMES = {"mean": "mean", "p50": "median", "p75": "p75", "p95": "p95", "last": "last"}
MISSED = ("mean", "p50", "p95")
# Of students the last is the one with the whole KL, no last checkpoint.
STUDENTS = "students"
UNTRAINED = "checkpoints, completions trained on, all tokens scored"


def write(path: Path, text: str, name: str = "evidence") -> None:
    """In the page at this path."""
    page = with_section(path.read_text(encoding="utf-8"), name, text)
    path.write_text(page, encoding="utf-8", newline="\n")


def section(choices: Sequence[Choice]) -> str:
    said = "\n".join(f"* {each}" for each in sentences(choices))
    parts = [_question(choices), said + "\n", _shortlists(choices), _single(choices), _objectives(choices)]
    return "\n".join(part for part in parts if part)


def sentences(choices: Sequence[Choice]) -> list[str]:
    """One for each kind of choice, and what follows from them."""
    kinds = counted(choices, lambda each: (each.study, each.scored))
    said = [_said(study, scored, found) for (study, scored), found in kinds.items()]
    by_study = {study: found for (study, _), found in kinds.items() if found.choices}
    once = [found for (_, scored), found in kinds.items() if scored == "completion" and found.choices]
    return [*said, *_of_the_last(once), *_beside_chance(by_study)]


def in_short(choices: Sequence[Choice]) -> str:
    """A line for completions, one for all tokens and one for students, for the README of the project."""
    kinds = {
        "Checkpoints scored on completions": [each for each in choices if each.scored == "completion"],
        "Checkpoints scored on prompts too": [each for each in choices if each.scored == "all"],
        "Students of a teacher's top K": [each for each in choices if each.study == STUDENTS],
    }
    lines = [_in_short(kind, own) for kind, own in kinds.items() if own]
    missing = not_run(choices)
    return "\n".join(lines + ([f"* Not run yet: {missing}."] if missing else []))


def not_run(choices: Sequence[Choice]) -> str:
    """Which studies there is nothing of."""
    groups = " ".join(each.group for each in choices)
    missing = [f"facts ({part})" for part in PARTS if PARTS[part] not in groups]
    missing += [] if any(each.study == STUDENTS for each in choices) else ["distillation"]
    return ", ".join(missing)


def _in_short(kind: str, own: Sequence[Choice]) -> str:
    found = counts([each.picks for each in own])
    if not found.choices:
        return f"* **{kind}**: in all {found.easy} choices any candidate would do."
    easy = f" ({found.easy} more, in which any would do, are left out)" if found.easy else ""
    text = (
        f"* **{kind}**: the shortlist holds a best one in {out_of(found.held, found.choices)} choices{easy}, "
        f"with {_average(found.size)} of {_average(found.candidates)} candidates on average; as many drawn "
        f"by lot would in {percent(found.held_by_lot)}. {_misses(found, MISSED)}."
        f"{parting(found) if own[0].scored == 'all' else ''}"
    )
    # A line that begins with % would be a comment in the site.
    return textwrap.fill(text.replace(" %", "\0%"), 118, subsequent_indent="  ").replace("\0", " ")


def _misses(found: Counts, names: Sequence[str]) -> str:
    """``The lowest mean misses it in 3, the lowest median in 0``."""
    first, *others = ((NAMES[name], found.missed[name]) for name in names)
    return f"The lowest {first[0]} misses it in {first[1]}" + "".join(
        f", the lowest {name} in {missed}" for name, missed in others
    )


def parting(found: Counts, who: str = "The verdict itself") -> str:
    """How often the verdict says what is wrong with prompts in it."""
    unheld = found.choices - found.held
    of_them = (
        f": of the {unheld} whose shortlist holds none in {found.part_unheld}, of the {found.held} others in "
        f"{found.part - found.part_unheld}"
        if unheld
        else ""
    )
    how_often = out_of(found.part, found.choices)
    return f" {who} says that groups of tokens part in {how_often}{of_them}."


def _question(choices: Sequence[Choice]) -> str:
    found = counts([each.picks for each in choices])
    asked = (
        "Does the shortlist of our own `verdict`, which sees the loss alone, keep the checkpoint that the "
        f"task finds best? These are {found.choices} choices of the studies above."
    )
    if found.easy:
        asked += (
            f" {found.easy} more, in which no candidate misses the best, are left out of all counts: any "
            "would do there, so that nothing can be seen of a way to choose."
        )
    missing = not_run(choices)
    not_yet = f"\n**Not run yet: {missing}.**\n" if missing else ""
    return f"""\
{textwrap.fill(asked, 110)}

A candidate **misses** the best if it is worse in the task by more than chance: in recall and cloze accuracy
by the exact McNemar test, paired by fact or line (two-sided, 5 %), in other tasks if the 95 % interval of the
paired difference leaves out 0. A list **holds a best one** if one of it does not miss. The best is the best
of all candidates on these very facts, and each is compared with it without regard to how many there are, so
that one is called worse rather too often than too seldom. **By lot**: what as many candidates drawn by chance
do; where most are good anybody keeps one.
{not_yet}
    python -m benchmarks.studies.evidence
"""


def _said(study: str, scored: str | None, found: Counts) -> str:
    kind = f"**{study.capitalize()}**"
    if not found.choices:
        return f"{kind}: in all {found.easy} choices any candidate would do."
    low, high = (percent(end).removesuffix(" %") for end in (found.held_low, found.held_high))
    last = "" if study == STUDENTS else f", the last checkpoint in {found.missed['last']}"
    easy = f" ({found.easy} more, in which any would do, are left out)" if found.easy else ""
    return (
        f"{kind}: of {found.choices} choices{easy} the shortlist, {_average(found.size)} "
        f"of {_average(found.candidates)} candidates on average, holds a best one in {found.held} "
        f"({percent(found.held / found.choices)} [{low}, {high}]); as many by lot would in "
        f"{percent(found.held_by_lot)}. {_misses(found, SINGLE)}{last}, and one drawn by lot in "
        f"{percent(found.missed_by_lot)}.{parting(found) if scored == 'all' else ''}"
    )


def _of_the_last(checkpoints: Sequence[Counts]) -> list[str]:
    """Whether a statistic is needed at all, of each run once."""
    if not checkpoints:
        return []
    of, missed = (
        sum(values) for values in zip(*((f.choices, f.missed["last"]) for f in checkpoints), strict=True)
    )
    if missed:
        return [f"The last checkpoint misses the best in {out_of(missed, of)} runs."]
    return [
        f"In none of the {of} runs does the last checkpoint miss the best. Who takes the last one "
        "needs no statistic there; what these runs can show is which statistics stop too early."
    ]


def _beside_chance(kinds: dict[str, Counts]) -> list[str]:
    """Where the shortlist keeps a best one more often, or more seldom, than a list drawn by lot."""
    told: dict[str, list[str]] = {}
    for study, found in kinds.items():
        ends = binomtest(found.held, found.choices).proportion_ci(method="exact")
        above, below = ends.low > found.held_by_lot, ends.high < found.held_by_lot
        told.setdefault("better" if above else "worse" if below else "not told apart from it", []).append(
            study
        )
    if not told:
        return []
    why = ""
    if UNTRAINED in told.get("worse", []):
        why = (
            " Mean, median and p95 are mostly about the prompts where these are scored, and a verdict from "
            "the loss cannot know that nobody trained on them."
        )
    each = "; ".join(f"{how}: {' / '.join(studies)}" for how, studies in told.items())
    return [f"Beside a list drawn by lot, by the exact 95 % interval of how often it holds one, {each}.{why}"]


def _shortlists(choices: Sequence[Choice]) -> str:
    rows = []
    for study in dict.fromkeys(each.study for each in choices):
        own = [each for each in choices if each.study == study]
        groups = counted(own, _group)
        rows += [_shortlist(study, group, found) for group, found in groups.items()]
        if len(groups) > 1:
            rows.append(_shortlist(study, "**all**", counts([each.picks for each in own])))
    heads = ["", "", "choices", "left out", "candidates", "shortlist"]
    heads += ["holds a best one", "by lot", "the very best", "lowest of three", "holds a best one"]
    return f"""\
### The shortlist

Left out: choices in which any candidate would do. Sizes are averages. The interval is Wilson's, for choices
drawn by themselves; those of one seed share their facts and have runs in common, so that it is rather too
narrow. "Lowest of three" are the candidates with the lowest mean, median and p95, without error bars.

{table(heads, rows)}"""


def _shortlist(study: str, group: str, found: Counts) -> list[str]:
    first = [study, group, str(found.choices), str(found.easy)]
    if not found.choices:
        return first + ["-"] * 7
    held = percent_interval(found.held / found.choices, found.held_low, found.held_high)
    return [
        *first,
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
        if found.choices
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
        if any(found[group, objective, scored].choices for scored in TOKENS)
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
miss it. All are trained on completions. Of an objective without a line any epoch would do in every run.

{table(["", "objective", *heads], rows)}"""


def _cells(found: Counts) -> list[str]:
    if not found.choices:
        return ["-"] * 4
    return [out_of(found.held, found.choices), *(str(found.missed[name]) for name in MISSED)]
