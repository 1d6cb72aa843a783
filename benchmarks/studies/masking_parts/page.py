"""The results as tables and sentences, which stand in the README of the studies between two comments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.studies.markdown import (
    number,
    out_of,
    percent,
    percent_interval,
    percent_spread,
    spread,
    table,
    with_section,
)
from benchmarks.studies.masking_parts.numbers import STATISTICS, cell

WORDS = {"all": "all tokens", "completion": "completions"}
NAMES = {"mean": "mean", "p50": "median", "p75": "p75", "p95": "p95"}


def write_section(path: Path, found: dict[str, Any]) -> None:
    page = path.read_text(encoding="utf-8")
    path.write_text(with_section(page, "masking", section(found)), encoding="utf-8", newline="\n")


def section(found: dict[str, Any]) -> str:
    parts = (_question, _verdict, _picks, _moves, _rises, _theirs)
    return "\n".join(part(found) for part in parts)


def _question(found: dict[str, Any]) -> str:
    shares = percent_spread([rise["prompt"]["share of tokens"] for rise in found["rises"]])
    return f"""\
Nobody wants the model to write prompts. Where they are scored too they are part of the mean, and may be what
makes it rise. These are the runs of part (a) above, by seed one trained on all tokens and one on completions
({len(found["seeds"])} of each). Each is scored twice: with its prompts, {shares} of the tokens validated on,
and without. If those runs are there nothing is trained, and it takes a minute.

    python -m benchmarks.studies.masking

![The mean over the epochs with and without prompts, and what is picked of each run](masking.png)
"""


def _verdict(found: dict[str, Any]) -> str:
    return "### Is it the prompts?\n\n" + "\n".join(f"* {each}" for each in sentences(found)) + "\n"


def sentences(found: dict[str, Any]) -> list[str]:
    """What came out, in words; each follows from the numbers."""
    return [
        _is_it(found),
        *(_rescored(found, trained_on) for trained_on in WORDS),
        *_others(found),
        _risen(found),
    ]


def _is_it(found: dict[str, Any]) -> str:
    """Whether the mean fails with prompts, and whether it still does without."""
    unmasked, masked = cell(found, "all", "all"), cell(found, "completion", "completion")
    of = len(found["seeds"])
    before, after = unmasked["missed"]["mean"], masked["missed"]["mean"]
    if not before:
        answer = "With prompts the mean does not fail in these runs, so that there is nothing to explain."
    elif not after:
        answer = "Yes: the failure of the mean is a matter of the prompts here, and is gone without them."
    elif after < before:
        answer = "In part: without prompts the mean fails in fewer runs, but it still fails."
    else:
        answer = "No: the mean fails without prompts too."
    return (
        f"**{answer}** Trained and scored on all tokens, the checkpoint of the lowest mean recalls "
        f"{_recall(unmasked, 'mean')} of the facts, the best one {_best(unmasked)}; it is worse than the "
        f"best by more than chance in {out_of(before, of)} runs. Trained and scored on completions these are "
        f"{_recall(masked, 'mean')}, {_best(masked)} and {out_of(after, of)}."
    )


def _rescored(found: dict[str, Any], trained_on: str) -> str:
    with_prompts, without = (cell(found, trained_on, scored_on) for scored_on in WORDS)
    moved = _move(found, (trained_on, "all"), (trained_on, "completion"), "mean")
    return (
        f"The same runs, trained on {WORDS[trained_on]}: scored without prompts the mean picks epochs "
        f"{_epochs(without, 'mean')} instead of {_epochs(with_prompts, 'mean')} (by seed), and recall at its "
        f"pick changes by {_points(moved)} points."
    )


def _others(found: dict[str, Any]) -> list[str]:
    """Whether other statistics pick better than the mean where prompts are masked, and where they are not."""
    said = []
    for tokens in WORDS:
        each = [f"{NAMES[name]} {_points(_beside(found, tokens, name))}" for name in STATISTICS[1:]]
        saturated = sum("p50" in run["saturated"] for run in cell(found, tokens, tokens)["runs"])
        said.append(
            f"Trained and scored on {WORDS[tokens]}, recall at other picks less that at the mean's, in "
            f"points: {', '.join(each)}. The median is saturated (under 0.01 nats at its best) in "
            f"{out_of(saturated, len(found['seeds']))} runs."
        )
    return said


def _risen(found: dict[str, Any]) -> str:
    said = []
    for trained_on, words in WORDS.items():
        rises = [rise for rise in found["rises"] if rise["trained_on"] == trained_on]
        change, prompt, completion = (
            spread([_of(rise, part) for rise in rises]) for part in ("change", "prompt", "completion")
        )
        said.append(
            f"trained on {words} it rises by {change} nats a token, of which {prompt} are prompts and "
            f"{completion} completions"
        )
    return f"From the lowest epoch of the mean of all tokens to the last one, {'; '.join(said)}."


def _picks(found: dict[str, Any]) -> str:
    rows = [
        [
            WORDS[each["trained_on"]],
            WORDS[each["scored_on"]],
            NAMES[name],
            *(_pick(run["picks"][name]) for run in each["runs"]),
            _recall(each, name),
        ]
        for each in found["cells"]
        for name in STATISTICS
    ]
    heads = ["trained on", "scored on", "", *(f"seed {seed}" for seed in found["seeds"]), "all seeds"]
    return f"""\
### What each statistic picks

Epoch: share of the facts recalled there, with its 95 % interval by fact. Bold: worse than the best epoch of
the run by more than chance (exact McNemar test by fact, two-sided, 5 %).

{table(heads, rows)}"""


def _moves(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{_cell_words(each['from'])} → {_cell_words(each['to'])}",
            NAMES[each["statistic"]],
            " ".join(number(100 * value, 0) for value in each["by_seed"]),
            _points(each),
            _ends(each["t_low"], each["t_high"]),
        ]
        for each in found["moves"]
    ]
    return f"""\
### How recall changes at the picks

In points, paired by fact; before the slash what is trained on, after it what is scored. The first interval is
by fact (other facts, these runs), the second by seed (other runs, Student's t).

{table(["from and to", "pick of", "each seed", "mean [by fact]", "[by seed]"], rows)}"""


def _rises(found: dict[str, Any]) -> str:
    rows = [
        [
            WORDS[rise["trained_on"]],
            str(rise["seed"]),
            f"{_epoch(rise['lowest'])} → {_epoch(rise['last'])}",
            number(rise["at the lowest"]),
            _signed(rise["change"]),
            *(_part(rise[group]) for group in ("prompt", "completion")),
        ]
        for trained_on in WORDS
        for rise in found["rises"]
        if rise["trained_on"] == trained_on
    ]
    heads = ["trained on", "seed", "epochs", "lowest mean", "change", "of prompts", "of completions"]
    return f"""\
### What the mean of all tokens rises by

From its lowest epoch to the last, in nats a token of all tokens. In brackets, by how much tokens that became
worse raise the mean, and those that became better lower it (`reshaping`).

{table(heads, rows)}"""


def _theirs(found: dict[str, Any]) -> str:
    theirs = found["theirs"]
    rows = [
        [
            f"theirs ({theirs['model']})",
            percent(theirs["prompt share of tokens"], 1),
            *(
                f"{percent(theirs[which]['pick'], 1)} of {percent(theirs[which]['best'], 1)}"
                for which in ("unmasked", "masked")
            ),
        ],
        [
            f"ours ({found['model'] or 'SmolLM2-135M-Instruct'}, {found['facts']} facts)",
            percent_spread([rise["prompt"]["share of tokens"] for rise in found["rises"]], 1),
            *(
                f"{_recall(each, 'mean')} of {_best(each)}"
                for each in (cell(found, "all", "all"), cell(found, "completion", "completion"))
            ),
        ],
    ]
    prompt, completion = theirs["prompt and completion tokens"]
    seeds = ", ".join(percent(share, 1).removesuffix(" %") for share in theirs["four seeds"])
    return f"""\
### Beside somebody else's run

{theirs["who"]} reported a run like it (third party: we read a description, and repeated nothing). On average
{prompt} tokens of prompt stood before {completion} of completion. The lowest validation loss picked a bad
checkpoint, and with prompts masked a good one. Its accuracy in four seeds was {seeds} %.

{table(["", "prompts' share of tokens", "unmasked: pick of best", "masked: pick of best"], rows)}"""


def _recall(each: dict[str, Any], name: str) -> str:
    return percent_spread([run["picks"][name]["task"] for run in each["runs"]])


def _best(each: dict[str, Any]) -> str:
    return percent_spread([run["best_task"] for run in each["runs"]])


def _epochs(each: dict[str, Any], name: str) -> str:
    """One of each seed."""
    return ", ".join(_epoch(run["picks"][name]["label"]) for run in each["runs"])


def _move(
    found: dict[str, Any], before: tuple[str, str], after: tuple[str, str], name: str
) -> dict[str, Any]:
    wanted = (list(before), list(after), name)
    [each] = [each for each in found["moves"] if (each["from"], each["to"], each["statistic"]) == wanted]
    return dict(each)


def _beside(found: dict[str, Any], tokens: str, name: str) -> dict[str, Any]:
    wanted = (tokens, tokens, name)
    [each] = [
        each
        for each in found["beside the mean"]
        if (each["trained_on"], each["scored_on"], each["pick"]) == wanted
    ]
    return dict(each)


def _points(each: dict[str, Any]) -> str:
    return f"{_signed(100 * each['mean'], 0)} {_ends(each['low'], each['high'])}"


def _ends(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"[{number(100 * low, 0)}, {number(100 * high, 0)}]"


def _signed(value: float, digits: int = 2) -> str:
    text = number(value, digits)
    return f"+{text}" if value > 0 and float(text) else text


def _pick(pick: dict[str, Any]) -> str:
    text = f"{_epoch(pick['label'])}: {percent_interval(pick['task'], pick['low'], pick['high'])}"
    return f"**{text}**" if pick["missed"] else text


def _part(part: dict[str, float]) -> str:
    return f"{_signed(part['change'])} (+{number(part['lost'])}, -{number(part['gained'])})"


def _of(rise: dict[str, Any], name: str) -> float:
    return float(rise["change"] if name == "change" else rise[name]["change"])


def _cell_words(words: list[str]) -> str:
    return " / ".join(WORDS[each] for each in words)


def _epoch(label: str) -> str:
    return label.removeprefix("epoch ")
