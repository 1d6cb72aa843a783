"""The picture: the mean of all tokens, of prompts and of completions, and what is picked with and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from benchmarks.studies.masking_parts.numbers import cell
from benchmarks.studies.masking_parts.page import NAMES, WORDS

# Okabe and Ito's colours, which the colour-blind can tell apart.
LINES = {
    "prompt": ("#E69F00", "prompts"),
    "all": ("#000000", "all tokens"),
    "completion": ("#0072B2", "completions"),
}
MARKS = {"mean": ("#D55E00", "v"), "p50": ("#0072B2", "o")}


def picture(path: Path, found: dict[str, Any]) -> None:
    """Columns: trained on all tokens, on completions. Above the means, below recall with the picks."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (trained_on, words) in enumerate(WORDS.items()):
        curves = [each for each in found["curves"] if each["trained_on"] == trained_on]
        _means(axes[0, column], curves)
        _recall(axes[1, column], curves)
        for scored_on in WORDS:
            _marks(axes[1, column], curves, cell(found, trained_on, scored_on))
        axes[0, column].set_title(f"trained on {words}", fontsize=10)
    axes[0, 0].set_ylabel("mean cross-entropy (nats)")
    axes[1, 0].set_ylabel("facts recalled")
    axes[0, 0].legend(fontsize=8)
    axes[1, 0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _means(ax: Axes, curves: Sequence[dict[str, Any]]) -> None:
    for name, (colour, words) in LINES.items():
        for number, curve in enumerate(curves):
            values = curve["means"][name][1:]  # after training has begun
            label = words if number == 0 else None
            ax.plot(range(1, len(values) + 1), values, color=colour, linewidth=1, alpha=0.7, label=label)
    ax.grid(alpha=0.3)


def _recall(ax: Axes, curves: Sequence[dict[str, Any]]) -> None:
    for curve in curves:
        values = curve["recall"][1:]
        ax.plot(range(1, len(values) + 1), values, color="#999999", linewidth=1, zorder=1)
    ax.set_xlabel("epoch")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)


def _marks(ax: Axes, curves: Sequence[dict[str, Any]], picked: dict[str, Any]) -> None:
    """Filled where prompts are scored, hollow where they are not."""
    filled = picked["scored_on"] == "all"
    for name, (colour, marker) in MARKS.items():
        epochs = [int(run["picks"][name]["label"].removeprefix("epoch ")) for run in picked["runs"]]
        ax.scatter(
            epochs,
            [curve["recall"][epoch] for curve, epoch in zip(curves, epochs, strict=True)],
            marker=marker,
            s=45 if filled else 110,
            facecolor=colour if filled else "none",
            edgecolor=colour,
            label=f"lowest {NAMES[name]}, {'with' if filled else 'without'} prompts",
            zorder=3,
        )
