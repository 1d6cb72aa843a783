"""The tables of parts b and c: what other objectives reach, and from where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.studies.fact_sft_parts.cells import (
    CORRELATED,
    PAIRED,
    paired_cells,
    spread_of_correlations,
)
from benchmarks.studies.fact_sft_parts.comparisons import best_of
from benchmarks.studies.fact_sft_parts.reading import (
    ENDS,
    PARTS,
    Run,
    at_pick,
    last_recall,
    of_ends,
    of_rates,
    rows_of,
    start_is_best,
)
from benchmarks.studies.fact_sft_parts.tails import tails
from benchmarks.studies.fact_sft_parts.training import PASS_AT
from benchmarks.studies.fact_sft_parts.units import RATE
from benchmarks.studies.markdown import interval, number, out_of, percent, spread, table

PICKED = ("mean", "p50", "p75", "p95")


def objectives_section(found: dict[str, Any]) -> str:
    parts = [_objectives(found, part, end) for part in PARTS for end in ENDS]
    parts += [_starts(found), _differences(found), _picks(found), _correlations(found), tails(found)]
    return "\n".join(part for part in [*parts, _rates(found)] if part)


def _objectives(found: dict[str, Any], part: str, end: str) -> str:
    passed = {
        each["objective"]: [interval(*each[f"pass_at_{n}"]) for n in PASS_AT]
        for each in found["objectives passed"]
        if (each["part"], each["end"]) == (part, end)
    }
    rows = [
        [*_objective(name, own), *passed[name], *_known(own, part)]
        for name, own in of_ends(found, part, end).items()
    ]
    if not rows:
        return ""
    heads = ["objective", "recall from epoch 0 on", "last epoch", "best epoch"]
    heads += [f"pass@{n}" for n in PASS_AT]
    heads += ["right objects", "wrong objects"] if part == "c" else ["objects"]
    shares = "right and of the wrong objects" if part == "c" else "objects"
    kept = " (epoch 0 counts)" if end == "strong" else ""
    return f"""\
### ({part}) {PARTS[part].capitalize()}, {ENDS[end]}

Recall from epoch 0 on is the mean of the seeds, after the last epoch and at the best one that of each
seed{kept}. Expected pass@N after the last epoch, with 95 % intervals by the facts of all seeds. Share of the
{shares} in training that are known: mean of the seeds, and their range.

{table(heads, rows)}"""


def _objective(name: str, runs: Sequence[Run]) -> list[str]:
    epochs = range(min(len(run["recall"]) for run in runs))
    course = [sum(run["recall"][epoch] for run in runs) / len(runs) for epoch in epochs]
    last, best = ([run["recall"][at(run)] for run in runs] for at in (lambda run: -1, best_of))
    return [
        name,
        *(" ".join(number(100 * share, 0) for share in each) + " %" for each in (course, last, best)),
    ]


def _known(runs: Sequence[Run], part: str) -> list[str]:
    kinds = ("right", "wrong") if part == "c" else ("right",)
    return [spread([run["training_set"][f"{kind}_objects"] for run in runs]) for kind in kinds]


def _starts(found: dict[str, Any]) -> str:
    """Each seed and end once: facts and validation are the same under all objectives."""
    first: dict[tuple[str, int], Run] = {}
    for run in found["runs"]:
        if run["part"] in PARTS and run["rate"] == RATE:
            first.setdefault((run["end"], run["seed"]), run)
    if not first:
        return ""
    rows = [
        [
            ENDS[end],
            str(seed),
            *_start(run["start"]),
            *_on_wrong(found["starts on wrong objects"].get(str(seed)) if end == "strong" else None),
            interval(*run["mean_p_before"]),
            percent(run["recall"][0]),
        ]
        for (end, seed), run in sorted(
            first.items(), key=lambda each: (list(ENDS).index(each[0][0]), each[0][1])
        )
    ]
    heads = ["start", "seed", "epoch of NLL", "mean p in training", "objects known there"]
    heads += ["(c): mean p in training", "right objects", "wrong objects", "mean p in validation", "recall"]
    return f"""\
### (b), (c) Where they start

Mean p is that of the tokens of completions, which says how strong a start is. The checkpoints of NLL have
learned right sentences of the same facts, in (c) too: there the wrong objects come after the right ones. In
validation mean p is read from the history by our `capability`, with its 95 % interval by fact.

{table(heads, rows)}"""


def _start(start: dict[str, Any] | None) -> list[str]:
    if start is None:
        return ["-", "-", "-"]
    return [str(start["epoch"]), number(start["mean_p"]), percent(start["right_objects"])]


def _on_wrong(known: dict[str, Any] | None) -> list[str]:
    if known is None:
        return ["-", "-", "-"]
    return [number(known["mean_p"]), percent(known["right_objects"]), percent(known["wrong_objects"])]


def _differences(found: dict[str, Any]) -> str:
    rows = [
        [
            f"({each['part']}) {each['end']}",
            each["objective"],
            *paired_cells(each["first"]),
            *paired_cells(each["last"]),
        ]
        for each in found["objectives compared"]
    ]
    if not rows:
        return ""
    heads = ["", "objective", *(f"{which} epoch: {name}" for which in ("first", "last") for name in PAIRED)]
    return f"""\
### Recall less that of NLL

In points, paired by fact, seed, start and order of the data; intervals as above.

{table(heads, rows)}"""


def _picks(found: dict[str, Any]) -> str:
    rows = rows_of(found, _picked)
    if not rows:
        return ""
    heads = [
        "",
        "objective",
        "last epoch",
        "best",
        *(f"pick of {name}" for name in PICKED),
        "best is the start",
    ]
    return f"""\
### (b), (c) What does each statistic pick?

Recall there, of each seed; completions are scored. Among the candidates of runs from a checkpoint is that
checkpoint, as epoch 0: the last column counts the runs in which no epoch recalls more.

{table(heads, rows)}"""


def _picked(runs: Sequence[Run]) -> list[str]:
    at = [last_recall, lambda run: run["recall"][best_of(run)], *(at_pick(name) for name in PICKED)]
    recalls = [" ".join(number(100 * value(run), 0) for run in runs) + " %" for value in at]
    strong = runs[0]["end"] == "strong"
    return [*recalls, out_of(sum(map(start_is_best, runs)), len(runs)) if strong else "-"]


def _correlations(found: dict[str, Any]) -> str:
    rows = rows_of(found, lambda own: [_correlation(own, statistic) for statistic in CORRELATED])
    if not rows:
        return ""
    return f"""\
### (b), (c) Correlation of each statistic with recall

Pearson over the epochs, completions scored: the lowest and the highest of the seeds. A loss that follows
recall has a negative one, the wrong sign is in bold; a dash stands where recall is the same at all epochs.
Of runs from a checkpoint that is one of them, as epoch 0.

{table(["", "objective", *CORRELATED], rows)}"""


def _correlation(runs: Sequence[Run], statistic: str) -> str:
    return spread_of_correlations(
        [run["choices"]["completion"]["correlation"][statistic]["pearson"] for run in runs]
    )


def _rates(found: dict[str, Any]) -> str:
    runs = [run for own in of_rates(found).values() for run in own]
    rows = [
        [
            run["objective"],
            f"{run['rate']:g}",
            percent(run["recall"][-1]),
            percent(run["recall"][best_of(run)]),
            *(
                interval(*run["moved"]["completion"][since][each], 1)
                for each in ("p95", "p99")
                for since in ("since_start", "since_lowest")
            ),
        ]
        for run in runs
    ]
    if not rows:
        return ""
    heads = ["objective", "learning rate", "recall, last epoch", "best epoch"]
    heads += [f"{name} since {what}" for name in ("p95", "p99") for what in ("the start", "its lowest")]
    return f"""\
### Learning rates, from the untrained model, seed {runs[0]["seed"]}

p95 and p99 of completions after the last epoch, with 95 % intervals by fact.

{table(heads, rows)}"""
