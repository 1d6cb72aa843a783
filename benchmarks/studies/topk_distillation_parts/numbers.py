"""Everything that the page says about the models, from their files of results and their histories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.studies.picks import STATISTICS, TRIMMED, Floats, picks_of, resampled_mean, share
from benchmarks.studies.topk_distillation_parts.comparing import Integers, paired
from benchmarks.studies.topk_distillation_parts.kept import agree, precisions
from benchmarks.studies.topk_distillation_parts.measuring import cloze_of
from benchmarks.studies.topk_distillation_parts.stories import ENOUGH
from benchmarks.studies.topk_distillation_parts.text import text_of
from benchmarks.studies.topk_distillation_parts.units import FULL, TEACHER, Size
from examples.resumable import Unit, read
from lightning_pce.intervals import differences
from lightning_pce.runs import History, Record, reshaping

TASKS = ("cloze", "top_1", "teacher_log_prob")
Result = dict[str, Any]
Family = dict[str, tuple[Unit, Result]]  # the teacher of a text and a seed, and its students, by label


def numbers(units: Sequence[Unit], stories: Sequence[Unit]) -> dict[str, Any]:
    """What JSON holds of the texts and seeds of which all models are done.

    Raises:
        SystemExit: if models of several versions, or stories of several precisions, are mixed; if no family
            is done.
    """
    families = finished(units)
    every = [result for family in families for _, result in family.values()]
    if not every:
        raise SystemExit("No teacher has all of its students yet.")
    agree({result["settings"]["name"]: result["versions"] for result in every})
    settings = every[0]["settings"]
    return {
        "recipe": settings["recipe"],
        "versions": every[0]["versions"],
        "size": {name: settings[name] for name in Size._fields if name != "steps"}
        | {
            "steps": families[0][FULL][1]["settings"]["steps"],
            "teacher steps": settings["steps"],
            "parameters": every[0]["parameters"],
        },
        "stories": _written(stories),
        "texts": _texts(families),
        "models": [_model(family, label) for family in families for label in family],
        "choices": [_choice(family, task) for family in families for task in TASKS],
        "less full": [each for text in _names(families) for each in _less_full(families, text)],
    }


def finished(units: Sequence[Unit]) -> list[Family]:
    """By text and seed, in order, what is whole."""
    families: dict[tuple[str, int], Family] = {}
    missing = set()
    for unit in units:
        of = (unit.settings["text"], unit.settings["seed"])
        result = read(unit)
        if result is None:
            missing.add(of)
        else:
            families.setdefault(of, {})[unit.settings["label"]] = (unit, result)
    return [family for of, family in sorted(families.items()) if of not in missing]


def students_of(family: Family) -> History:
    """Candidates of one run: the students, by K."""
    return records_of([unit for label, (unit, _) in family.items() if label != TEACHER])


def records_of(units: Sequence[Unit]) -> History:
    """The lines of some units."""
    return History.load(*(unit.path.with_suffix(".jsonl") for unit in units))


def task_of(family: Family, task: str) -> dict[str, Floats]:
    """The task's value of each line, block or sample, by label."""
    return {label: np.array(result["tasks"][task]) for label, (_, result) in family.items()}


def _written(stories: Sequence[Unit]) -> dict[str, Any] | None:
    """How the stories were made, of all pieces together."""
    pieces = [piece for unit in stories if (piece := read(unit)) is not None]
    if not pieces:
        return None
    agree(precisions(stories))
    settings = pieces[0]["settings"]
    return {
        **{name: settings[name] for name in ("recipe", "stories", "tokens", "temperature")},
        "precision": pieces[0]["precision"],
        "seeds": [piece["settings"]["seed"] for piece in pieces],
        "written": sum(sum(piece["tokens"]) for piece in pieces),
        "kept": ENOUGH,
        **{name: round(sum(piece[name] for piece in pieces), 1) for name in ("seconds", "cpu_seconds")},
    }


def _texts(families: Sequence[Family]) -> dict[str, Any]:
    """What each text is, and what all of its models took one after the other."""
    found = {}
    for name in _names(families):
        own = [result for family in families if _text_of(family) == name for _, result in family.values()]
        first = own[0]
        found[name] = {
            "digest": first["settings"]["data"],
            "training_tokens": first["training_tokens"],
            "held_out_tokens": first["held_out_tokens"],
            "cloze_lines": len(first["tasks"]["cloze"]),
            "models": len(own),
            "seconds": round(sum(result["seconds"] for result in own)),
            "cpu_seconds": {
                part: round(sum(result["cpu_seconds"][part] for result in own))
                for part in ("training", "measuring")
            },
        }
    return found


def _model(family: Family, label: str) -> dict[str, Any]:
    unit, result = family[label]
    settings = result["settings"]
    tasks = {task: values[label] for task in TASKS for values in [task_of(family, task)]}
    found = {
        **{name: settings[name] for name in ("name", "text", "seed", "label", "k")},
        **{name: result[name] for name in ("seconds", "cpu_seconds", "training_loss", "within_top")},
        "ce": {name: round(result["ce"][name], 4) for name in STATISTICS},
        "tasks": {task: _with_ends(values) for task, values in tasks.items()},
        "teacher_log_prob_error": round(float(stats.sem(tasks["teacher_log_prob"])), 4),
        "own_log_prob": _with_ends(np.array(result["own_log_prob"])),
        "sample": result["sample"],
    }
    if label != TEACHER:
        teacher, student = records_of([family[TEACHER][0], unit])
        found |= {"less_teacher": _less(teacher, student), "reshaped": _reshaped(teacher, student)}
    return found


def _with_ends(values: Floats) -> list[float]:
    """The mean of lines, blocks or samples, and its 95 % interval."""
    found = share(values) if np.isin(values, (0.0, 1.0)).all() else resampled_mean(values)
    return [round(each, 4) for each in found]


def _less(teacher: Record, student: Record) -> dict[str, list[float | None]]:
    """Statistics of a student less those of its teacher, with their 95 % ends by document."""
    records = [(each.digest(), each.documents()) for each in (teacher, student)]
    names = [name for name in STATISTICS if name != TRIMMED]
    found = differences(records[0], records[1], names)
    return {
        name: [None if math.isnan(value) else round(value, 4) for value in (each.value, each.low, each.high)]
        for name, each in found.items()
    }


def _reshaped(teacher: Record, student: Record) -> dict[str, Any]:
    """How the distribution of the losses differs from the teacher's, see our ``reshaping``."""
    found = reshaping(teacher, student)
    u = found.u
    return {
        "crossing": None if found.crossing is None else round(found.crossing, 3),
        "better_below": found.better_below,
        "surely_better": _length(found.better, float(u[1] - u[0])),
        "surely_worse": _length(found.worse, float(u[1] - u[0])),
        "gained": round(found.gained.total, 4),
        "lost": round(found.lost.total, 4),
        "lost_in_top_5_percent": round(found.lost.upper, 4),
    }


def _length(ranges: Sequence[tuple[float, float]], step: float) -> float:
    """The share of the tokens in ranges of u, ends included."""
    return round(sum(end - begin + step for begin, end in ranges), 3)


def _choice(family: Family, task: str) -> dict[str, Any]:
    """Which student each statistic picks, and how all seven are ordered."""
    history = students_of(family)
    values = task_of(family, task)
    _, full = family[FULL]
    settings = full["settings"]
    return {
        "name": f"{settings['text']}, seed {settings['seed']}, {task}",
        "text": settings["text"],
        "seed": settings["seed"],
        "task": task,
        "kendall": _kendall(family, {label: float(each.mean()) for label, each in values.items()}),
        "picks": picks_of(history, values, seed=settings["seed"]),
    }


def _kendall(family: Family, task: Mapping[str, float]) -> dict[str, float | None]:
    """Kendall's tau-b of each statistic and a task over the students; negative is good."""
    labels = [label for label in family if label != TEACHER]
    found = {}
    for name in STATISTICS:
        losses = [family[label][1]["ce"][name] for label in labels]
        tau = float(stats.kendalltau(losses, [task[label] for label in labels]).statistic)
        found[name] = None if math.isnan(tau) else round(tau, 4)
    return found


def _less_full(families: Sequence[Family], text: str) -> list[dict[str, Any]]:
    """Tasks of each student of a text less those of the one with the whole KL, paired within a seed."""
    own = [family for family in families if _text_of(family) == text]
    students = [label for label in own[0] if label not in (TEACHER, FULL)]
    found = []
    for task in TASKS:
        values = [task_of(family, task) for family in own]
        units = [_units(family, task) for family in own]
        for label in students:
            differences = paired([each[label] - each[FULL] for each in values], units)
            found.append({"text": text, "task": task, "label": label, **differences})
    return found


def _units(family: Family, task: str) -> Integers:
    """``[n]``: which line or block each value of a task is of. The samples of several seeds are not the same,
    so that it is no matter which of them are averaged."""
    unit, result = family[FULL]
    return cloze_lines(unit) if task == "cloze" else np.arange(len(result["tasks"][task]))


def cloze_lines(unit: Unit) -> Integers:
    """``[lines]``: which lines of the text held out a model was asked about."""
    settings = unit.settings
    text = text_of(settings["text"], unit.path.parents[1], settings["vocabulary"])
    lines: Integers = cloze_of(text, settings["context"], settings["seed"]).lines.numpy()
    return lines


def _names(families: Sequence[Family]) -> list[str]:
    return list(dict.fromkeys(_text_of(family) for family in families))


def _text_of(family: Family) -> str:
    _, (_, result) = next(iter(family.items()))
    return str(result["settings"]["text"])
