"""What came out, in words that are made of the results: they hold for whatever was run."""

from __future__ import annotations

from textwrap import fill
from typing import Any

from benchmarks.studies.fact_sft_parts.objectives_verdicts import of_objectives_in_words
from benchmarks.studies.fact_sft_parts.reading import (
    Run,
    at_pick,
    compared,
    each_percent,
    missed,
    number_range,
    of_a,
    pearson,
    percent_range,
    points,
    saturated,
)
from benchmarks.studies.markdown import out_of

WIDTH = 116


def verdicts(found: dict[str, Any]) -> str:
    """Sentences on the parts that are there; of part a it takes the runs on all tokens and on completions."""
    alone, masked = (of_a(found, trained_on) for trained_on in ("all", "completion"))
    whole = bool(alone and masked)
    said = [_alone(found, alone), _masked(found, masked), _scored(alone, masked)] if whole else []
    said += [_saturated(alone, masked)] if whole else []
    lines = [
        fill(each, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)
        for each in [*said, *of_objectives_in_words(found)]
    ]
    if not lines:
        return ""
    in_short = f"{_in_short(found)}\n" if whole else ""
    return "### What came out\n\n" + in_short + "\n".join(lines) + "\n"


def _in_short(found: dict[str, Any]) -> str:
    reproduced = {
        trained_on: compared(found, trained_on, "p50", "mean")["low"] > 0
        for trained_on in ("all", "completion")
    }
    did = {True: "did reproduce", False: "did not reproduce"}
    text = (
        "In short: that with NLL the median chooses a better checkpoint than the mean "
        f"{did[reproduced['all']]} on all tokens, and {did[reproduced['completion']]} where prompts "
        "are masked."
    )
    return fill(text, WIDTH) + "\n"


def _is(each: dict[str, Any]) -> str:
    """Whether the first pick is better than the second, paired by fact."""
    return "better than" if each["low"] > 0 else "worse than" if each["high"] < 0 else "no better than"


def _misses(runs: list[Run]) -> str:
    return (
        f"Worse than the best epoch by more than chance: the mean's in "
        f"{out_of(missed(runs, 'mean'), len(runs))} "
        f"runs, the median's in {missed(runs, 'p50')}."
    )


def _alone(found: dict[str, Any], alone: list[Run]) -> str:
    differ = compared(found, "all", "p50", "mean")
    return (
        f"**On all tokens the median's pick is {_is(differ)} the mean's.** By seed the mean's picks "
        f"recall {each_percent(alone, at_pick('mean'))}, the median's {each_percent(alone, at_pick('p50'))}; "
        f"the median's less the mean's is {points(differ)} points. {_misses(alone)}"
    )


def _masked(found: dict[str, Any], masked: list[Run]) -> str:
    differ = compared(found, "completion", "p50", "mean")
    return (
        f"**Where prompts are masked the median's pick is {_is(differ)} the mean's.** Trained and scored on "
        f"completions, the mean's picks recall {percent_range(masked, at_pick('mean'))}, the median's "
        f"{percent_range(masked, at_pick('p50'))}; the median's less the mean's is {points(differ, 1)} "
        f"points. {_misses(masked)}"
    )


def _scored(alone: list[Run], masked: list[Run]) -> str:
    """Scored on other tokens than were trained on."""
    by_completions, by_all = missed(alone, "mean", "completion"), missed(masked, "mean", "all")
    unmasked, both = missed(alone, "mean"), missed(masked, "mean")
    matters = by_completions < unmasked and both < by_all
    answer = (
        "What matters is which tokens are scored, not which are trained on."
        if matters
        else "Which tokens are scored does not decide alone."
    )
    return (
        f"**{answer}** Trained on all tokens but scored on completions the mean's picks recall "
        f"{percent_range(alone, at_pick('mean', 'completion'))} and are worse than the best in "
        f"{out_of(by_completions, len(alone))} runs. The other way round, trained on completions but scored "
        f"on all tokens, they recall {each_percent(masked, at_pick('mean', 'all'))} and are worse in "
        f"{out_of(by_all, len(masked))}; the median's recall {each_percent(masked, at_pick('p50', 'all'))}, "
        f"worse in {missed(masked, 'p50', 'all')}."
    )


def _saturated(alone: list[Run], masked: list[Run]) -> str:
    own = [*saturated(masked), *saturated(alone)]
    if not own:
        return (
            "**Whether p75 or p95 choose better where the median saturates cannot be said**: it is under "
            "0.01 nats in no run."
        )
    better = {name: sum(at_pick(name)(run) > at_pick("p50")(run) for run in own) for name in ("p75", "p95")}
    answer = (
        f"p75 recalls more in {better['p75']} and p95 in {better['p95']} of {len(own)} runs"
        if any(better.values())
        else "p75 and p95 choose no better"
    )
    return (
        f"**Where the median saturates, with NLL, {answer}.** It is under 0.01 nats at best in "
        f"{out_of(len(saturated(masked)), len(masked))} runs on completions and in "
        f"{out_of(len(saturated(alone)), len(alone))} on all tokens. In these runs the median's picks recall "
        f"{percent_range(own, at_pick('p50'))}, p75's {percent_range(own, at_pick('p75'))}, p95's "
        f"{percent_range(own, at_pick('p95'))}. On all tokens p75's picks recall "
        f"{each_percent(alone, at_pick('p75'))}, p95's {percent_range(alone, at_pick('p95'))}; the "
        f"correlation of p95 with recall is {number_range(alone, pearson('p95'))} there, which is negative "
        "of a loss that follows it."
    )
