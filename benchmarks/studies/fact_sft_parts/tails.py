"""Whether an objective keeps the tail of the losses from rising: p95 and p99 of both kinds of tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from benchmarks.studies.fact_sft_parts.reading import ENDS, Run, listed, of_ends, rows_of
from benchmarks.studies.markdown import spread, table

TAIL = ("p95", "p99")
SCORED = {"all": "all tokens", "completion": "completions"}
SINCE = {"since_start": "since the start", "since_lowest": "since its lowest"}


def tail_sentence(found: dict[str, Any], part: str, end: str) -> str:
    """Under which objectives it rises, for both kinds of tokens."""
    runs = of_ends(found, part, end)
    under = [
        f"of {words} under {all_but(unrisen(runs, scored_on), runs)}" for scored_on, words in SCORED.items()
    ]
    risen = [_risen(runs, scored_on) for scored_on in SCORED]
    return " ".join(
        [
            f"**({part}) {ENDS[end]}: p95 or p99 rises in some seed, {', '.join(under)}.**",
            "That is, one of them is higher after the last epoch than where it was lowest, by more than "
            "chance. "
            "Not to see it in a few seeds is no proof that it does not rise.",
            *(sentence for sentence in risen if sentence),
        ]
    )


def unrisen(runs: dict[str, list[Run]], scored_on: str) -> list[str]:
    """The objectives under which neither is surely higher than where it was lowest, in any run."""
    return [name for name, own in runs.items() if not rises(own, scored_on, "since_lowest")]


def all_but(names: Sequence[str], every: Collection[str]) -> str:
    """``every objective``, ``no objective`` or ``all but DCO, N = 8``."""
    if len(names) == len(every):
        return "no objective"
    return f"all but {listed(names)}" if names else "every objective"


def rises(runs: Sequence[Run], scored_on: str, since: str) -> bool:
    """Whether p95 or p99 is higher after the last epoch by more than chance in any of the runs."""
    changes = [run["moved"][scored_on][since][name] for run in runs for name in TAIL]
    return any(_is_higher(each) for each in changes)


def _risen(runs: dict[str, list[Run]], scored_on: str) -> str:
    """``Of completions one of them is higher than at the start under 1 - p.``."""
    since_start = [name for name, own in runs.items() if rises(own, scored_on, "since_start")]
    again = [
        name
        for name, own in runs.items()
        if name not in since_start and rises(own, scored_on, "since_lowest")
    ]
    told = [f"than at the start under {listed(since_start)}"] if since_start else []
    told += [f"only than where it was lowest under {listed(again)}"] if again else []
    return f"Of {SCORED[scored_on]} one of them is higher {', and '.join(told)}." if told else ""


def tails(found: dict[str, Any]) -> str:
    """The table of all parts and ends."""
    rows = rows_of(found, _cells)
    if not rows:
        return ""
    heads = [
        f"{words}: {name} {since}" for words in SCORED.values() for name in TAIL for since in SINCE.values()
    ]
    return f"""\
### (b), (c) Does an objective keep the tail from rising?

By how much p95 and p99 are higher after the last epoch, in nats: than before training, and than where each
was lowest. Means of the seeds, and their range; in bold where every seed is higher by more than chance (95 %,
by fact). The lowest of several epochs is low by chance too: the rise from it looks a little too large.

{table(["", "objective", *heads], rows)}"""


def _cells(runs: Sequence[Run]) -> list[str]:
    return [
        _cell([run["moved"][scored_on][since][name] for run in runs])
        for scored_on in SCORED
        for name in TAIL
        for since in SINCE
    ]


def _cell(changes: Sequence[Sequence[float | None]]) -> str:
    text = spread([change[0] for change in changes], 1)
    return f"**{text}**" if all(map(_is_higher, changes)) else text


def _is_higher(change: Sequence[float | None]) -> bool:
    """Of a change and its 95 % ends."""
    return change[1] is not None and change[1] > 0
