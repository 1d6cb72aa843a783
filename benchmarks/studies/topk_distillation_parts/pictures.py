"""The picture: a row a text. Losses against the teacher's, statistics and tasks by K."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from benchmarks.studies.topk_distillation_parts.measuring import PERCENTILES
from benchmarks.studies.topk_distillation_parts.reading import Model, labels_of, models_of_label, named
from benchmarks.studies.topk_distillation_parts.units import TEACHER

TICKS = (-1, -0.5, 0, 0.5, 1, 2, 5, 10)
# Okabe and Ito's colours, which the colour-blind can tell apart.
STATISTICS = {"mean": "#D55E00", "p25": "#009E73", "p50": "#0072B2"}
ACCURACIES = {"cloze": "#0072B2", "top_1": "#E69F00"}
WORDS = {"cloze": "cloze", "top_1": "top-1"}


def picture(found: dict[str, Any], path: Path) -> None:
    texts = list(found["texts"])
    figure = Figure(figsize=(14, 3.3 * len(texts)), layout="constrained")
    axes = figure.subplots(len(texts), 4, squeeze=False)
    for row, text in zip(axes, texts, strict=True):
        by_label = {label: models_of_label(found, text, label) for label in labels_of(found)}
        students = {label: models for label, models in by_label.items() if label != TEACHER}
        _against_teacher(row[0], students)
        _by_k(row[1], by_label, STATISTICS, lambda model, name: model["ce"][name])
        _by_k(row[2], by_label, ACCURACIES, lambda model, name: model["tasks"][name][0])
        row[2].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        row[2].yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        _samples(row[3], by_label)
        row[0].set_ylabel(f"{named(text)}\nnats")
    for each in axes[1:].flat:
        each.get_legend().remove()  # the same as above it, and over its lines
    titles = (
        "student less teacher, by percentile",
        "cross-entropy, nats",
        "accuracy",
        "log p of samples, nats",
    )
    for place, title in zip(axes[0], titles, strict=True):
        place.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)


def _against_teacher(axes: Axes, students: dict[str, list[Model]]) -> None:
    """A line a student, the mean of the seeds; each seed is a dot."""
    colours = colormaps["viridis"]
    for number, (label, models) in enumerate(students.items()):
        colour = colours(0.95 * number / max(len(students) - 1, 1))
        values = [[model["less_teacher"][f"p{p}"][0] for p in PERCENTILES] for model in models]
        places = range(len(PERCENTILES))
        axes.plot(
            places, [sum(each) / len(each) for each in zip(*values, strict=True)], color=colour, label=label
        )
        for each in values:
            axes.scatter(places, each, color=[colour], s=6, alpha=0.6)
    axes.axhline(0, color="#555555", lw=0.8)
    axes.set_yscale("symlog", linthresh=0.5)
    axes.set_yticks(TICKS, map(str, TICKS))
    axes.minorticks_off()
    axes.set_xticks(range(len(PERCENTILES)), [f"p{p}" for p in PERCENTILES])
    axes.legend(fontsize=7, loc="upper left")
    axes.grid(alpha=0.25)


def _by_k(
    axes: Axes,
    by_label: dict[str, list[Model]],
    colours: dict[str, str],
    value: Callable[[Model, str], float],
) -> None:
    """A line a seed over the students; the teacher of each is a line across."""
    for name, colour in colours.items():
        for seed in range(len(by_label[TEACHER])):
            axes.axhline(value(by_label[TEACHER][seed], name), color=colour, lw=0.8, ls=":")
            _line(axes, [value(models[seed], name) for models in _students(by_label)], colour)
    _finish(axes, by_label, [Line2D([], [], color=c, label=WORDS.get(n, n)) for n, c in colours.items()])


def _samples(axes: Axes, by_label: dict[str, list[Model]]) -> None:
    """What the teacher gives to samples, and what the student itself does."""
    for seed in range(len(by_label[TEACHER])):
        own = [models[seed]["own_log_prob"][0] for models in _students(by_label)]
        judged = [models[seed]["tasks"]["teacher_log_prob"][0] for models in _students(by_label)]
        axes.axhline(by_label[TEACHER][seed]["own_log_prob"][0], color="#555555", lw=0.8, ls=":")
        _line(axes, judged, "#CC79A7")
        _line(axes, own, "#555555")
    lines = [("#CC79A7", "teacher's"), ("#555555", "student's own")]
    _finish(axes, by_label, [Line2D([], [], color=colour, label=label) for colour, label in lines])


def _line(axes: Axes, values: Sequence[float], colour: str) -> None:
    axes.plot(range(len(values)), values, color=colour, lw=1, marker="o", ms=3)


def _finish(axes: Axes, by_label: dict[str, list[Model]], lines: list[Line2D]) -> None:
    labels = [label.removeprefix("K = ") for label in by_label if label != TEACHER]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("K")
    axes.grid(alpha=0.25)
    axes.legend(handles=[*lines, Line2D([], [], color="#888888", ls=":", label="teacher")], fontsize=7)


def _students(by_label: dict[str, list[Model]]) -> list[list[Model]]:
    return [models for label, models in by_label.items() if label != TEACHER]
