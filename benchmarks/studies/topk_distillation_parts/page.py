"""The results as tables and sentences, which stand in the README of the studies between two comments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from benchmarks.studies.topk_distillation_parts.reading import (
    TASKS,
    Model,
    choices_of,
    cpu_minutes,
    labels_of,
    minutes_on_two_cores,
    models_of_label,
    named,
    open_choices,
    students_of,
)
from benchmarks.studies.topk_distillation_parts.text import QUICK_TEXTS
from benchmarks.studies.topk_distillation_parts.units import DEFAULT_SEEDS, DEFAULT_TEXTS, TEACHER, Size
from benchmarks.studies.topk_distillation_parts.verdicts import beside_the_paper, verdicts

SHOWN = ("mean", "p5", "p25", "p50", "p75", "p95", "p99", "trimmed_mean")
PICKED = ("mean", "p5", "p25", "p50", "p75", "p95")


def write_section(path: Path, found: dict[str, Any]) -> None:
    page = path.read_text(encoding="utf-8")
    written = with_section(page, "topk_distillation", section(found))
    path.write_text(written, encoding="utf-8", newline="\n")


def section(found: dict[str, Any]) -> str:
    """Everything of the study: the question, what came out, and the tables."""
    parts = (_question, verdicts, beside_the_paper, _losses, _crossings, _tasks)
    parts += (_differences, _orders, _picks)
    return "\n".join(part(found) for part in parts)


def _question(found: dict[str, Any]) -> str:
    size = found["size"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"""\
What becomes of mean, median and tail when a student learns a teacher's K most probable next tokens and
nothing else? Teacher and students are transformers of {size["layers"]} layers and {size["parameters"]:,}
parameters, which see {size["context"]} tokens of a byte-level BPE of {size["vocabulary"]:,} pieces, trained
on the text. A teacher takes {size["teacher steps"]:,} steps on cross-entropy. A student takes
{size["steps"]:,} on the teacher's K most probable tokens, renormalised (`topk_distillation`, of the 50 that
`store_topk` has stored once), or on its whole distribution (`distillation`): "full". Students of one seed
have the same teacher, beginning and order of the data: they differ in K alone. AdamW, one cycle of the rate
up to 2e-3, batches of {size["batch"]} rows; {versions}.

{_texts(found)}

    {_command(found)}

![Losses against the teacher's, statistics and tasks by K](topk_distillation.png)

Three tasks need no judge:

* **Cloze**: which word ends a held-out line, its own (of three letters or more) or one of four that end other
  held-out lines, drawn by how often they do, of as many tokens? Right if its log-probability is the highest
  of the five; chance is 20 %.
* **Top-1**: the share of held-out tokens that the model thinks likeliest.
* **The teacher's log p** of 200 samples of the student, drawn at temperature 1 from the beginning of a line,
  in nats a token. It is kind to a student that says little but likely things: beside it stands the student's
  own log p of its samples, the negative of its entropy.
"""


def _command(found: dict[str, Any]) -> str:
    """What makes these results, with the flags that are not as they are by default."""
    texts = list(found["texts"])
    if texts == list(QUICK_TEXTS):
        return "python -m benchmarks.studies.topk_distillation --quick"
    seeds = max(len(models_of_label(found, text, TEACHER)) for text in texts)
    flags = [] if texts == list(DEFAULT_TEXTS) else ["--text", *texts]
    flags += [] if seeds == DEFAULT_SEEDS else ["--seeds", str(seeds)]
    for name, value in Size()._asdict().items():
        flags += [] if found["size"][name] == value else [f"--{name}", str(found["size"][name])]
    return " ".join(["python -m benchmarks.studies.topk_distillation", *flags])


def _texts(found: dict[str, Any]) -> str:
    """A line a text: what it is and what its models took."""
    lines = []
    for name, each in found["texts"].items():
        minutes = cpu_minutes(found, name)
        words = f"{each['training_tokens']:,} tokens to learn, {each['held_out_tokens']:,} held out"
        models = each["models"] // len(minutes)
        cost = f"{spread(minutes, 0)} CPU minutes for the {models} models of a seed"
        whole = f"{minutes_on_two_cores(found, name):.0f} minutes for all {len(minutes)} seeds on two cores"
        lines.append(f"* {named(name)}: {words}; {cost}, {whole}.")
    stories = found["stories"]
    if stories is not None and "stories" in found["texts"]:
        kind, seeds = stories["precision"].removeprefix("torch."), len(stories["seeds"])
        lines.append(
            f"""\
  The stories are the first {stories["kept"]:,} tokens that SmolLM2-135M-Instruct wrote at temperature
  {stories["temperature"]}, at most {stories["tokens"]} a story, once: {seeds} seeds in {kind}, \
{stories["cpu_seconds"] / 60:.0f} CPU minutes more. (At temperature 1
  they lost the thread, which nobody can predict; at this one they repeat themselves.)"""
        )
    lines += [
        "",
        "CPU time is that of processes of one thread, on cores that others used too; on two cores a",
    ]
    lines += ["teacher goes alone and its students two at a time."]
    return "\n".join(lines)


def _losses(found: dict[str, Any]) -> str:
    rows = []
    for text in found["texts"]:
        own = {label: models_of_label(found, text, label) for label in labels_of(found)}
        students = [label for label in own if label != TEACHER]
        means = {
            name: {label: _mean(own[label], lambda model, name=name: model["ce"][name]) for label in students}
            for name in SHOWN
        }
        for label, models in own.items():
            cells = []
            for name in SHOWN:
                cell = spread([model["ce"][name] for model in models])
                lowest = label == min(students, key=means[name].__getitem__)
                cells.append(f"**{cell}**" if lowest else cell)
            rows.append([named(text), label, *cells])
    heads = ["text", "", *(name.replace("_", " ") for name in SHOWN)]
    return f"""\
### Cross-entropy on held-out text

In nats a token, the mean of the seeds (the lowest to the highest). In bold: the lowest of the students.

{table(heads, rows)}"""


def _crossings(found: dict[str, Any]) -> str:
    rows = []
    for text in found["texts"]:
        teachers = models_of_label(found, text, TEACHER)
        for label in students_of(found):
            models = models_of_label(found, text, label)
            shapes = [model["reshaped"] for model in models]
            k = models[0]["k"]
            covered = "" if k is None else percent_spread([each["within_top"][str(k)] for each in teachers])
            rows.append(
                [
                    named(text),
                    label,
                    covered,
                    " ".join(map(_crossing, shapes)),
                    percent_spread([each["surely_better"] for each in shapes]),
                    percent_spread([each["surely_worse"] for each in shapes]),
                    spread([each["gained"] for each in shapes]),
                    spread([each["lost"] for each in shapes]),
                    " ".join(_in_bold_if_sure(model["less_teacher"]["p50"]) for model in models),
                ]
            )
    heads = ["text", "", "next token in the teacher's K", "crossing", "surely better", "surely worse"]
    heads += ["gained", "lost", "median less teacher's"]
    return f"""\
### Where a student's losses cross its teacher's

Of the quantile curves of the two, by our `reshaping`: below the crossing (a share of the tokens, each seed)
the student's losses are lower, above it higher, or where it says so the other way round; of several the one
with the most area on its smaller side, "-" for none. Surely: within a band of 95 % by blocks of four rows.
Gained and lost are the areas between the curves, in nats: the mean rises by lost less gained. The median less
the teacher's, each seed; in bold where the 95 % interval leaves out 0.

{table(heads, rows)}"""


def _tasks(found: dict[str, Any]) -> str:
    rows = []
    for text in found["texts"]:
        for label in labels_of(found):
            models = models_of_label(found, text, label)

            def of(task: str, models: Sequence[Model] = models) -> list[float]:
                return [model["tasks"][task][0] for model in models]

            rows.append(
                [
                    named(text),
                    label,
                    percent_spread(of("cloze"), 1),
                    percent_spread(of("top_1"), 1),
                    " ".join(map(_with_error, models)),
                    spread([model["own_log_prob"][0] for model in models]),
                ]
            )
    heads = ["text", "", *TASKS.values(), "student's own log p"]
    return f"""\
### Tasks

The mean of the seeds (the lowest to the highest). The teacher's log p of samples is that of each seed, with
its standard error by sample.

{table(heads, rows)}"""


def _differences(found: dict[str, Any]) -> str:
    by_label: dict[tuple[str, str], dict[str, Any]] = {}
    for each in found["less full"]:
        by_label.setdefault((each["text"], each["label"]), {})[each["task"]] = each
    rows = [
        [named(text), label, *(_paired(each[task], task) for task in TASKS)]
        for (text, label), each in by_label.items()
    ]
    return f"""\
### Tasks less those of the student with the whole distribution

Each seed: their mean [95 % by line, block or sample] [by seed, Student's]; accuracies in points. The first
interval is about other lines and these models, and a line of several seeds counts once; the second is about
other trainings. In bold where both leave out 0.

{table(["text", "", *TASKS.values()], rows)}"""


def _paired(each: dict[str, Any], task: str) -> str:
    scale, digits = (1, 2) if task == "teacher_log_prob" else (100, 1)

    def cell(value: float) -> str:
        return number(scale * value, digits)

    seeds = " ".join(cell(value) for value in each["by_seed"])
    ends = [(each["low"], each["high"])]
    ends += [] if each["t_low"] is None else [(each["t_low"], each["t_high"])]
    mean = " ".join([cell(each["mean"]), *(f"[{cell(low)}, {cell(high)}]" for low, high in ends)])
    sure = all(low > 0 or high < 0 for low, high in ends)
    return f"{seeds}: " + (f"**{mean}**" if sure else mean)


def _orders(found: dict[str, Any]) -> str:
    rows = []
    for text, task in _texts_and_tasks(found):
        choices = choices_of(found, text, task)
        cells = []
        for name in SHOWN:
            rho = [each["picks"]["correlation"][name]["spearman"] for each in choices]
            tau = [each["kendall"][name] for each in choices]
            cell = f"{spread(rho)} / {spread(tau)}"
            known = [value for value in rho if value is not None]
            cells.append(f"**{cell}**" if known and sum(known) > 0 else cell)
        rows.append([named(text), TASKS[task], *cells])
    heads = ["text", "task", *(name.replace("_", " ") for name in SHOWN)]
    return f"""\
### Which statistic orders the students as a task does?

Spearman's rho / Kendall's tau over the {len(students_of(found))} students within a seed: the mean of the
seeds (the lowest to the highest). A loss that follows the task has a negative one, -1 at best; the wrong sign
is in bold.

{table(heads, rows)}"""


def _picks(found: dict[str, Any]) -> str:
    rows = []
    for text, task in _texts_and_tasks(found):
        for choice in choices_of(found, text, task):
            picks = choice["picks"]
            rows.append(
                [
                    named(text),
                    TASKS[task],
                    str(choice["seed"]),
                    f"{picks['best']}: {_value(picks['task'][picks['best']], task)}",
                    *(_pick(picks["picks"][name], task) for name in PICKED),
                    ", ".join(picks["shortlist"]),
                ]
            )
    heads = ["text", "task", "seed", "best", *(f"pick of {name}" for name in PICKED), "shortlist"]
    return f"""\
### What does each statistic pick?

The student with its lowest value, and the task there; in bold: worse than the best by more than chance
(paired). The shortlist is that of our `verdict`, from the loss alone: it holds a student that is not worse
than the best by more than chance in {_held(found)} choices in which some student is.

{table(heads, rows)}"""


def _held(found: dict[str, Any]) -> str:
    held = [picks["shortlist_holds_best"] for picks in open_choices(found)]
    return out_of(sum(held), len(held))


def _pick(pick: dict[str, Any], task: str) -> str:
    if task == "cloze":
        value = percent_interval(pick["task"], pick["low"], pick["high"])
    else:
        value = _value(pick["task"], task)
    text = f"{pick['label']}: {value}"
    return f"**{text}**" if pick["missed"] else text


def _value(value: float, task: str) -> str:
    return number(value) if task == "teacher_log_prob" else percent(value, 1)


def _crossing(shape: dict[str, Any]) -> str:
    return number(shape["crossing"]) + ("" if shape["better_below"] else " (better above)")


def _in_bold_if_sure(each: Sequence[float | None]) -> str:
    value, low, high = each
    text = number(value)
    sure = low is not None and high is not None and (low > 0 or high < 0)
    return f"**{text}**" if sure else text


def _with_error(model: Model) -> str:
    value, error = model["tasks"]["teacher_log_prob"][0], model["teacher_log_prob_error"]
    return f"{number(value)} ± {number(error, 3)}"


def _texts_and_tasks(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(text, task) for text in found["texts"] for task in TASKS]


def _mean(models: Sequence[Model], value: Callable[[Model], float]) -> float:
    return sum(map(value, models)) / len(models)
