"""The results as tables and sentences, which stand in the README of the studies between two comments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.studies.fact_sft_parts.cells import (
    CORRELATED,
    PAIRED,
    correlation_cell,
    epoch_of,
    paired_cells,
    pick_cell,
)
from benchmarks.studies.fact_sft_parts.comparisons import best_of
from benchmarks.studies.fact_sft_parts.objectives_page import objectives_section
from benchmarks.studies.fact_sft_parts.papers import beside_the_papers
from benchmarks.studies.fact_sft_parts.passing import PICKS
from benchmarks.studies.fact_sft_parts.reading import LEANING, Run, listed, of_a
from benchmarks.studies.fact_sft_parts.training import ENOUGH, LATEST, PASS_AT
from benchmarks.studies.fact_sft_parts.units import PARTS
from benchmarks.studies.markdown import interval, percent, table

SHOWN = ("mean", "p50", "p75", "p95")
MISSING = "Not run yet:"
TRAINED_ON = {"all": "all tokens", "completion": "completions"}


def section(found: dict[str, Any], said: str) -> str:
    """Everything of the study; ``said``: sentences on these results."""
    parts = [
        _question(found),
        said,
        _picture(found["runs"]),
        _choices(found),
        _passed(found),
        _correlations(found),
        _compared(found),
        objectives_section(found),
        beside_the_papers(found),
    ]
    return "\n".join(part for part in parts if part)


def missing_parts(found: dict[str, Any]) -> list[str]:
    """Those without runs; of part a there are always the runs whose checkpoints others start from."""
    there = {run["part"] for run in found["runs"]}
    whole = of_a(found, "all") and of_a(found, "completion")
    return [part for part in PARTS if part not in there or (part == "a" and not whole)]


def _question(found: dict[str, Any]) -> str:
    spent = "; ".join(
        f"({part}) {each['runs']} runs, {each['cpu_seconds'] / 60:.0f} minutes of CPU"
        f" ({each['seconds'] / 60:.0f} by the clock)"
        for part, each in found["cost"].items()
    )
    missing = [f"({part})" for part in missing_parts(found)]
    not_yet = f"\n{MISSING} {' and '.join(missing)}.\n" if missing else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    model = found["model"] or "SmolLM2-135M-Instruct"
    return f"""\
Does the median of the validation loss choose a better checkpoint than its mean, and do other objectives make
a better one? {model} learns {found["facts"]} invented facts in two sentences each and is validated on two
other sentences. **Recall** is the share of facts whose object greedy decoding gives after a held-out prompt.
(a) NLL on all tokens, or on completions only (the object and what follows it). (b) Other objectives on
completions, from the untrained model and from the first checkpoint of NLL whose mean p on the training set
has passed {ENOUGH} (or epoch {LATEST}). Prior-leaning are {listed(LEANING)}: they lean on what the model
believes already. (c) The same where a fifth of the objects in training are those of other facts. The
checkpoints that (c) begins with are those of (b), which have seen the right ones.

    python -m benchmarks.studies.fact_sft

One run after the other, each of one thread, on cores that others used too: {spent}.
Two run at a time by default. Precision {found["precision"]}; {versions}.
Everything is in `fact_sft.json`.
{not_yet}"""


def _picture(runs: Sequence[Run]) -> str:
    objectives = any(run["part"] != "a" for run in runs)
    alt = "Mean, median, p75 and p95 over the epochs, and recall at the epochs that they pick, a line a seed"
    right = "; right: recall after the last epoch by objective, a dot a seed" if objectives else ""
    return f"![{alt}{right}](fact_sft.png)\n"


def _choices(found: dict[str, Any]) -> str:
    rows = [
        [
            *_run(run),
            _best(run),
            *(pick_cell(run["choices"][run["trained_on"]]["picks"][name]) for name in SHOWN),
            ", ".join(
                f"{epoch_of(label)}: {percent(recall)}"
                for label, recall in run["choices"][run["trained_on"]]["shortlist_task"].items()
            ),
        ]
        for run in _of_a(found)
    ]
    if not rows:
        return ""
    heads = ["trained and scored on", "seed", "best", *(f"pick of {name}" for name in SHOWN), "shortlist"]
    return f"""\
### (a) What does each statistic pick, and what does that recall?

Epoch: recall there, with its 95 % interval by fact. In bold: worse than the best epoch by more than chance
(exact McNemar test by fact, two-sided, 5 %). The shortlist is that of our `verdict`, from the loss alone.

{table(heads, rows)}"""


def _passed(found: dict[str, Any]) -> str:
    rows = [
        [*_run(run), *(interval(*run["passed"][name][f"pass_at_{n}"]) for name in PICKS for n in PASS_AT)]
        for run in _of_a(found)
    ]
    if not rows:
        return ""
    heads = ["trained and scored on", "seed"]
    heads += [f"pick of {name}: pass@{n}" for name in PICKS for n in PASS_AT]
    return f"""\
### (a) Expected pass@N

How probable it is that one of N samples of the object is right: the mean of the facts, with its 95 % interval
by fact.

{table(heads, rows)}"""


def _correlations(found: dict[str, Any]) -> str:
    rows = [
        [
            *_run(run),
            *(
                correlation_cell(run["choices"][run["trained_on"]]["correlation"][name])
                for name in CORRELATED
            ),
        ]
        for run in _of_a(found)
    ]
    if not rows:
        return ""
    return f"""\
### (a) Correlation of each statistic with recall

Over the epochs, Pearson / Spearman. A loss that follows recall has a negative one; the wrong sign is in bold.

{table(["trained and scored on", "seed", *CORRELATED], rows)}"""


def _compared(found: dict[str, Any]) -> str:
    rows = [
        [TRAINED_ON[each["trained_on"]], f"{each['pick']} less {each['less']}", *paired_cells(each)]
        for each in found["choices compared"]
        if each["trained_on"] == each["scored_on"]
    ]
    if not rows:
        return ""
    return f"""\
### (a) Recall at one statistic's pick less that at another's

In points, paired by fact. Intervals: by fact (other facts, these runs) and by seed (other runs, Student's t).

{table(["trained and scored on", "picks", *PAIRED], rows)}"""


def _of_a(found: dict[str, Any]) -> list[Run]:
    return [*of_a(found, "all"), *of_a(found, "completion")]


def _run(run: Run) -> list[str]:
    return [TRAINED_ON[run["trained_on"]], str(run["seed"])]


def _best(run: Run) -> str:
    epoch = best_of(run)
    return f"{epoch}: {percent(run['recall'][epoch])}"
