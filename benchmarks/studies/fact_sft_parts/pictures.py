"""The picture: runs of part a with what is picked of them, and the recall that objectives reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

from benchmarks.studies.fact_sft_parts.comparisons import of_objectives
from benchmarks.studies.fact_sft_parts.training import OBJECTIVES

Run = dict[str, Any]
# Okabe and Ito's colours, which the colour-blind can tell apart.
STATISTICS = {
    "mean": ("#D55E00", "v"),
    "p50": ("#0072B2", "o"),
    "p75": ("#009E73", "s"),
    "p95": ("#CC79A7", "D"),
}
COLOURS = dict(zip(OBJECTIVES, ("#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00"), strict=True))
ENDS = (("b", "weak"), ("b", "strong"), ("c", "weak"), ("c", "strong"))
TITLES = {"all": "all tokens trained on and scored", "completion": "completions trained on and scored"}


def picture(found: dict[str, Any], path: Path) -> None:
    runs = found["runs"]
    panels = [["all", "completion"], ["all picks", "completion picks"]]
    compared = any(run["part"] != "a" for run in runs)
    if compared:
        panels = [[*row, "ends"] for row in panels]
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplot_mosaic(panels, width_ratios=[1, 1, 1.25][: len(panels[0])])
    for trained_on, title in TITLES.items():
        own = [run for run in runs if run["part"] == "a" and run["trained_on"] == trained_on]
        _statistics(axes[trained_on], own, trained_on)
        axes[trained_on].set_title(f"(a) {title}", fontsize=10)
        _picks(axes[f"{trained_on} picks"], own, trained_on)
    axes["all"].set_ylabel("since epoch 1, as a factor")
    axes["all picks"].set_ylabel("recall, and the picks of statistics")
    if compared:
        _ends(axes["ends"], runs)
    figure.savefig(path, dpi=110)


def _statistics(axes: Axes, runs: Sequence[Run], scored_on: str) -> None:
    """How each statistic moves, a line a seed."""
    for run in runs:
        for name, (colour, _) in STATISTICS.items():
            values = run[scored_on][name][1:]
            axes.plot(range(1, len(values) + 1), [each / values[0] for each in values], color=colour, lw=0.9)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter() if scored_on == "all" else NullFormatter())
    axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.grid(alpha=0.25)
    lines = [Line2D([], [], color=colour, label=name) for name, (colour, _) in STATISTICS.items()]
    axes.legend(handles=lines, fontsize=8, loc="best")


def _picks(axes: Axes, runs: Sequence[Run], scored_on: str) -> None:
    """Recall, a line a seed, and where the lowest value of each statistic is."""
    for run in runs:
        axes.plot(range(1, len(run["recall"])), run["recall"][1:], color="#999999", lw=0.9, zorder=1)
        for place, (name, (colour, marker)) in enumerate(STATISTICS.items()):
            epoch = int(run["choices"][scored_on]["picks"][name]["label"].removeprefix("epoch "))
            beside = epoch + 0.16 * (place - 1.5)  # so that equal picks are seen
            axes.scatter(beside, run["recall"][epoch], color=colour, marker=marker, s=30, alpha=0.8, zorder=2)
    axes.set_xlabel("epoch")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25)
    dots = [
        Line2D([], [], color=colour, marker=marker, lw=0, label=f"pick of {name}")
        for name, (colour, marker) in STATISTICS.items()
    ]
    axes.legend(handles=dots, fontsize=8, loc="lower right")


def _ends(axes: Axes, runs: Sequence[Run]) -> None:
    """Recall after the last epoch, a dot a seed; a line where the seed began."""
    for place, (part, end) in enumerate(ENDS):
        for run in of_objectives(runs, part, end):
            x = place + 0.14 * (list(COLOURS).index(run["objective"]) - 2)
            axes.scatter(x, run["recall"][-1], color=COLOURS[run["objective"]], s=26, alpha=0.8, zorder=2)
            if end == "strong":
                axes.hlines(run["recall"][0], place - 0.38, place + 0.38, color="#BBBBBB", lw=0.9, zorder=1)
    words = ("(b)\nuntrained", "(b)\nafter NLL", "(c) wrong,\nuntrained", "(c) wrong,\nafter NLL")
    axes.set_xticks(range(len(ENDS)), words)
    axes.set_xlim(-0.5, len(ENDS) - 0.5)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", alpha=0.25)
    axes.set_title("(b, c) recall after the last epoch", fontsize=10)
    dots = [Line2D([], [], color=colour, marker="o", lw=0, label=name) for name, colour in COLOURS.items()]
    axes.legend(handles=dots, fontsize=8, loc="best")
