"""The results as tables and sentences, which stand in the README of the studies between two comments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.fact_sft_parts.comparisons import best_of, of_objectives
from benchmarks.studies.fact_sft_parts.units import PARTS as ALL_PARTS
from benchmarks.studies.fact_sft_parts.units import RATE
from benchmarks.studies.fact_sft_parts.verdicts import beside_the_papers, verdicts
from benchmarks.studies.markdown import (
    interval,
    number,
    percent,
    percent_interval,
    spread,
    table,
    with_section,
)

Run = dict[str, Any]
SHOWN = ("mean", "p50", "p75", "p95")
CORRELATED = ("mean", "trimmed_mean", "p25", "p50", "p75", "p90", "p95", "p99")
PASSED = ("pass_at_1", "pass_at_8", "pass_at_64")
MISSING = "Not run yet:"
TRAINED_ON = {"all": "all tokens", "completion": "completions"}
PARTS = {"b": "right sentences", "c": "a fifth of the objects wrong"}
ENDS = {"weak": "from the untrained model", "strong": "from a checkpoint of NLL"}


def write_section(path: Path, found: dict[str, Any]) -> None:
    """The section in the page at a path, with the sentences on what came out."""
    page = path.read_text(encoding="utf-8")
    text = section(found, verdicts(found))
    path.write_text(with_section(page, "fact_sft", text), encoding="utf-8", newline="\n")


def section(found: dict[str, Any], said: str = "") -> str:
    """Everything of the study; ``said``: sentences on these results."""
    runs = found["runs"]
    parts = [
        _question(found),
        said,
        _picture(runs) if said else "",
        _choices(runs),
        _correlations(runs),
        _compared(found),
    ]
    for part in PARTS:
        parts += [_objectives(runs, part, end) for end in ENDS]
    parts += [_starts(runs), _differences(found), _rates(runs), beside_the_papers(found) if said else ""]
    return "\n".join(part for part in parts if part)


def _question(found: dict[str, Any]) -> str:
    cost = found["cost"]
    spent = "; ".join(
        f"({part}) {each['runs']} runs, {each['cpu_seconds'] / 60:.0f} minutes of CPU"
        f" ({each['seconds'] / 60:.0f} by the clock)"
        for part, each in cost.items()
    )
    missing = [f"({part})" for part in ALL_PARTS if part not in cost]
    not_yet = f"\n{MISSING} {' and '.join(missing)}.\n" if missing else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    model = found["model"] or "SmolLM2-135M-Instruct"
    return f"""\
Does the median of the validation loss choose a better checkpoint than its mean, and do other objectives make
a better one? {model} learns {found["facts"]} invented facts in two sentences each and is validated on two
other sentences. **Recall** is the share of facts whose object greedy decoding gives after a held-out prompt.
(a) NLL on all tokens, or on completions only (the object and what follows it). (b) Five objectives on
completions, from the untrained model and from the first checkpoint of NLL whose mean p on the training set
has passed 0.75. (c) The same where a fifth of the objects in training are those of other facts.

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


def _choices(runs: Sequence[Run]) -> str:
    own = _of_a(runs)
    if not own:
        return ""
    rows = [
        [
            TRAINED_ON[run["trained_on"]],
            str(run["seed"]),
            _best(run),
            *(_pick(run["choices"][run["trained_on"]]["picks"][name]) for name in SHOWN),
            ", ".join(
                f"{_epoch(label)}: {percent(recall)}"
                for label, recall in run["choices"][run["trained_on"]]["shortlist_task"].items()
            ),
        ]
        for run in own
    ]
    heads = ["trained and scored on", "seed", "best", *(f"pick of {name}" for name in SHOWN), "shortlist"]
    return f"""\
### (a) What does each statistic pick, and what does that recall?

Epoch: recall there, with its 95 % interval by fact. In bold: worse than the best epoch by more than chance
(paired by fact). The shortlist is that of our `verdict`, from the loss alone.

{table(heads, rows)}"""


def _correlations(runs: Sequence[Run]) -> str:
    own = _of_a(runs)
    if not own:
        return ""
    rows = [
        [
            TRAINED_ON[run["trained_on"]],
            str(run["seed"]),
            *(_correlation(run["choices"][run["trained_on"]]["correlation"][name]) for name in CORRELATED),
        ]
        for run in own
    ]
    heads = ["trained and scored on", "seed", *CORRELATED]
    return f"""\
### (a) Correlation of each statistic with recall

Over the epochs, Pearson / Spearman. A loss that follows recall has a negative one; the wrong sign is in bold.

{table(heads, rows)}"""


def _compared(found: dict[str, Any]) -> str:
    rows = [
        [
            TRAINED_ON[each["trained_on"]],
            f"{each['pick']} less {each['less']}",
            *_paired(each),
        ]
        for each in found["choices compared"]
        if each["trained_on"] == each["scored_on"]
    ]
    if not rows:
        return ""
    return f"""\
### (a) Recall at one statistic's pick less that at another's

In points, paired by fact. Intervals: by fact (other facts, these runs) and by seed (other runs, Student's t).

{table(["trained and scored on", "picks", *PAIRED], rows)}"""


PAIRED = ("each seed", "mean [by fact]", "[by seed]")


def _paired(each: dict[str, Any]) -> list[str]:
    def points(value: float | None) -> str:
        return number(None if value is None else 100 * value, 0)

    by_seed = " ".join(points(value) for value in each["by_seed"])
    mean = f"{points(each['mean'])} [{points(each['low'])}, {points(each['high'])}]"
    return [by_seed, mean, f"[{points(each['t_low'])}, {points(each['t_high'])}]"]


def _objectives(runs: Sequence[Run], part: str, end: str) -> str:
    own = of_objectives(runs, part, end)
    if not own:
        return ""
    rows = [_objective(name, each) for name, each in _by_objective(own).items()]
    heads = ["objective", "recall from epoch 0 on", "last epoch", "best epoch", "pass@1", "pass@8", "pass@64"]
    heads += ["p95 since the start", "since its lowest", "p99 since the start", "since its lowest"]
    heads += ["right objects", "wrong objects"]
    shares = "right and of the wrong objects"
    if part == "b":
        rows, heads, shares = [row[:-1] for row in rows], heads[:-1], "objects"
    return f"""\
### ({part}) {PARTS[part].capitalize()}, {ENDS[end]}

Recall from epoch 0 on is the mean of the seeds, after the last epoch and at best that of each seed; other
columns are means of the seeds (and their range). Expected pass@N after the last epoch; by how much p95 and
p99 of completions are higher there, in nats; the share of the {shares} in training that are known.

{table(heads, rows)}"""


def _objective(name: str, runs: Sequence[Run]) -> list[str]:
    epochs = range(min(len(run["recall"]) for run in runs))
    course = [sum(run["recall"][epoch] for run in runs) / len(runs) for epoch in epochs]
    last, best = [run["recall"][-1] for run in runs], [max(run["recall"][1:]) for run in runs]
    passed = [spread([run[each][-1] for run in runs]) for each in PASSED]
    moved = [
        spread([run["moved"]["completion"][since][each][0] for run in runs], 1)
        for each in ("p95", "p99")
        for since in ("since_start", "since_lowest")
    ]
    known = [[run["training_set"][f"{which}_objects"] for run in runs] for which in ("right", "wrong")]
    recalls = [" ".join(number(100 * share, 0) for share in shares) + " %" for shares in (course, last, best)]
    return [name, *recalls, *passed, *moved, *(spread(each) for each in known)]


def _starts(runs: Sequence[Run]) -> str:
    """Each seed and end once, as part b has it: its facts and validation are those of part c."""
    first = {(run["end"], run["seed"]): run for run in runs if run["part"] == "b" and run["rate"] == RATE}
    if not first:
        return ""
    rows = [
        [
            ENDS[end],
            str(seed),
            *_start(run["start"]),
            interval(*run["mean_p_before"]),
            percent(run["recall"][0]),
        ]
        for (end, seed), run in sorted(first.items(), reverse=True)
    ]
    heads = ["start", "seed", "epoch of NLL", "mean p in training", "objects known there"]
    heads += ["mean p in validation", "recall"]
    return f"""\
### (b), (c) Where they start

Mean p is that of the tokens of completions, which says how strong a start is. In validation it is read from
the history by our `capability`, with its 95 % interval by fact.

{table(heads, rows)}"""


def _start(start: dict[str, Any] | None) -> list[str]:
    if start is None:
        return ["-", "-", "-"]
    return [str(start["epoch"]), number(start["mean_p"]), percent(start["right_objects"])]


def _differences(found: dict[str, Any]) -> str:
    rows = [
        [
            f"({each['part']}) {each['end']}",
            each["objective"],
            *_paired(each["first"]),
            *_paired(each["last"]),
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


def _rates(runs: Sequence[Run]) -> str:
    first = min((run["seed"] for run in runs), default=0)
    weak = [run for run in runs if (run["part"], run["end"], run["seed"]) == ("b", "weak", first)]
    others = {run["objective"] for run in weak if run["rate"] != RATE}
    own = sorted((run for run in weak if run["objective"] in others), key=lambda run: run["rate"])
    rows = [
        [
            run["objective"],
            f"{run['rate']:g}",
            percent(run["recall"][-1]),
            percent(max(run["recall"][1:])),
            *(interval(*run["moved"]["completion"]["since_start"][each], 1) for each in ("p95", "p99")),
        ]
        for name in dict.fromkeys(run["objective"] for run in weak)
        for run in own
        if run["objective"] == name
    ]
    if not rows:
        return ""
    heads = ["objective", "learning rate", "recall, last epoch", "best epoch", "p95 since the start", "p99"]
    return f"""\
### Learning rates, from the untrained model, seed {first}

{table(heads, rows)}"""


def _of_a(runs: Sequence[Run]) -> list[Run]:
    own = [run for run in runs if run["part"] == "a"]
    return sorted(own, key=lambda run: (run["trained_on"], run["seed"]))


def _by_objective(runs: Sequence[Run]) -> dict[str, list[Run]]:
    names = dict.fromkeys(run["objective"] for run in runs)
    return {
        name: sorted((run for run in runs if run["objective"] == name), key=lambda run: run["seed"])
        for name in names
    }


def _best(run: Run) -> str:
    epoch = best_of(run)
    return f"{epoch}: {percent(run['recall'][epoch])}"


def _epoch(label: str) -> str:
    return label.removeprefix("epoch ")


def _pick(pick: dict[str, Any]) -> str:
    text = f"{_epoch(pick['label'])}: {percent_interval(pick['task'], pick['low'], pick['high'])}"
    return f"**{text}**" if pick["missed"] else text


def _correlation(each: dict[str, float | None]) -> str:
    wrong = {name: value is not None and value > 0 for name, value in each.items()}
    return " / ".join(f"**{number(each[name])}**" if wrong[name] else number(each[name]) for name in each)
