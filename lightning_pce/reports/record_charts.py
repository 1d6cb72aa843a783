"""Records beside one another: values with their intervals, and how statistics order them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lightning_pce.reports._drawing import (
    AS_WRITTEN,
    BETTER,
    CE,
    FEW,
    WORSE,
    check_lengths,
    finite_or_nan,
    new_axes,
    shown_names,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def interval_chart(
    names: Sequence[str],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    best: str | None = None,
    ties: Sequence[str] = (),
    xlabel: str = CE,
    ax: Axes | None = None,
) -> Axes:
    """One statistic of several records with its intervals, the best and its ties marked.

    Two intervals that overlap do not show that two records are tied: records of the same data are compared
    pairwise, which is far sharper, so ties are given and not guessed.

    Args:
        names: ``[R]`` of the records, drawn from top to bottom.
        values: ``[R]`` in nats.
        low: ``[R]`` lower ends of the intervals; NaN where there is none.
        high: ``[R]`` upper ends.
        best: the name of the record that is best; left out: none is marked.
        ties: names of the records within error of the best.
        xlabel: what the values are.
        ax: where to draw; left out: a new figure, made without pyplot, so that nothing needs closing.

    Returns:
        The axes.

    Raises:
        ValueError: if a series is not as long as ``names``, or ``best`` or ``ties`` is no name.

    Example:
        >>> ax = interval_chart(["epoch 1", "epoch 2"], [2.0, 1.0], [1.9, 0.9], [2.1, 1.2], best="epoch 2")
        >>> [text.get_text() for text in ax.texts]
        ['2.00 (1.90 to 2.10)', '1.00 (0.90 to 1.20)']
    """
    check_lengths(len(names), "record", {"values": values, "lower ends": low, "upper ends": high})
    strange = [name for name in (*([] if best is None else [best]), *ties) if name not in names]
    if strange:
        raise ValueError(f"Expected the best and its ties to be among the records but got {strange[0]!r}.")
    rows = len(names)
    ax = new_axes(figsize=(8, 1.3 + 0.23 * max(2, min(rows, FEW)))) if ax is None else ax
    values, low, high = (finite_or_nan(series) for series in (values, low, high))
    for kind, (label, color, marker, size) in _KINDS.items():
        rows_of_it = [i for i, name in enumerate(names) if _kind(name, best, ties) == kind]
        if rows_of_it:
            ax.hlines(
                rows_of_it,
                [low[i] for i in rows_of_it],
                [high[i] for i in rows_of_it],
                color=color,
                linewidth=1.6,
            )
            at = [values[i] for i in rows_of_it]
            ax.plot(at, rows_of_it, marker, color=color, markersize=size, label=label)
    if best is not None:
        ax.axvline(values[list(names).index(best)], color=BETTER, linewidth=0.8, linestyle=":", zorder=0)
        ax.legend(
            reverse=True, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.2
        )
    _name_rows(ax, names, values, low, high, best)
    ax.locator_params(axis="x", nbins=5)
    if all(math.isnan(value) for value in values):
        words(ax, "no finite values")
    ax.set_xlabel(xlabel, **AS_WRITTEN)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax


def concordance_map(values: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Axes:
    """How far statistics order the same records alike: Kendall's tau-b of each two as a coloured table.

    1 is the same order, -1 the reversed one. A dash is a pair without an order, such as a statistic that is
    the same for all records.

    Args:
        values: statistic -> ``[R]`` its values for the records. A task metric may be among them: -1 beside a
            loss is agreement for an accuracy.
        ax: where to draw; left out: a new figure, made without pyplot, so that nothing needs closing.

    Returns:
        The axes.

    Raises:
        ValueError: if the series are not of one length.

    Example:
        >>> ax = concordance_map({"mean": [3, 1, 2], "p50": [3, 2, 1], "p5": [0, 0, 0]})
        >>> [text.get_text() for text in ax.texts]
        ['1.00', '.33', '-', '.33', '1.00', '-', '-', '-', '-']
    """
    names, series = list(values), list(values.values())
    records = len(series[0]) if series else 0
    check_lengths(records, "record", values)
    n, short = len(names), shown_names(names, 24)
    if ax is None:
        side, words_at_the_left = min(max(0.55 * n, 1.6), 8.0), 0.085 * max(map(len, short), default=0)
        ax = new_axes(figsize=(side + 2 + words_at_the_left, side + 0.8 + words_at_the_left))
    tau = [[kendall_tau_b(a, b) for b in series] for a in series]
    if not tau:
        words(ax, "no statistics")
        return ax
    _draw_matrix(ax, tau)
    slanted: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, short)) > 5 else {}
    )
    ax.set_xticks(range(n), short, **slanted, **AS_WRITTEN)
    ax.set_yticks(range(n), short, **AS_WRITTEN)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(f"{records} record{'s' * (records != 1)}", loc="left", fontsize=11)
    return ax


def kendall_tau_b(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b of two series of the same records, by all pairs of records.

    Args:
        a: ``[R]`` values; a record with NaN in one of the series is left out of both.
        b: ``[R]`` values.

    Returns:
        From -1 to 1; NaN where a series has no two different values.

    Example:
        >>> kendall_tau_b([1, 2, 3, 4], [1, 2, 4, 3])
        0.6666666666666666
    """
    known = [(x, y) for x, y in zip(a, b, strict=True) if not (math.isnan(x) or math.isnan(y))]
    signs = [((x > z) - (x < z), (y > w) - (y < w)) for (x, y), (z, w) in combinations(known, 2)]
    untied = sum(bool(s) for s, _ in signs) * sum(bool(t) for _, t in signs)
    return sum(s * t for s, t in signs) / math.sqrt(untied) if untied else math.nan


_KINDS: dict[str, tuple[str, str, str, float]] = {
    "other": ("others", "#9a9a9a", "o", 5.5),
    "tie": ("within error of the best", BETTER, "o", 6.5),
    "best": ("best", "#013a63", "D", 8.0),
}


def _kind(name: str, best: str | None, ties: Sequence[str]) -> str:
    return "best" if name == best else "tie" if name in ties else "other"


def _name_rows(
    ax: Axes, names: Sequence[str], values: list[float], low: list[float], high: list[float], best: str | None
) -> None:
    """The names at the left, the numbers at the right; of very many records every few."""
    rows = len(names)
    every = math.ceil(rows / FEW) or 1
    chosen = [] if best is None else [list(names).index(best)]
    chosen += [i for i in range(0, rows, every) if not any(abs(i - j) < every for j in chosen)]
    chosen.sort()
    short = shown_names(names)
    ax.set_yticks(chosen, [short[i] for i in chosen], **AS_WRITTEN)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(max(rows, 1) - 0.4, -0.6)
    decimals = _decimals(values, low, high)
    for i in chosen:
        value, *ends = (f"{each:.{decimals}f}" for each in (values[i], low[i], high[i]))
        text = "-" if math.isnan(values[i]) else value
        text += "" if math.isnan(low[i]) or math.isnan(high[i]) else f" ({ends[0]} to {ends[1]})"
        ax.text(1.02, i, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9, color="#444444")


def _decimals(values: list[float], low: list[float], high: list[float]) -> int:
    """So many that the narrowest interval has two digits; without intervals the range of values."""
    widths = [b - a for a, b in zip(low, high, strict=True) if b > a]
    known = [value for value in values if not math.isnan(value)]
    width = min(widths) if widths else max(known, default=0.0) - min(known, default=0.0)
    return min(6, max(2, 1 - math.floor(math.log10(width)))) if width > 0 else 2


def _draw_matrix(ax: Axes, tau: list[list[float]]) -> None:
    """Cells coloured from -1 to 1 with their numbers, a dash where there is none, and the scale."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("concordance", [WORSE, "#f7f7f7", BETTER])
    image = ax.imshow(tau, cmap=colors, vmin=-1, vmax=1, aspect="auto")
    n = len(tau)
    ax.set_xticks([i + 0.5 for i in range(n - 1)], minor=True)
    ax.set_yticks([i + 0.5 for i in range(n - 1)], minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    if n <= 20:
        for y, row in enumerate(tau):
            for x, value in enumerate(row):
                dark = abs(value) > 0.6
                look: dict[str, Any] = {
                    "color": "white" if dark else "#222222",
                    "fontsize": 9 if n <= 12 else 7,
                }
                ax.text(x, y, _in_short(value), ha="center", va="center", **look)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03, ticks=[-1, 0, 1], label="Kendall's tau-b")
    bar.ax.set_yticklabels(["-1 reversed", "0", "1 same order"])
    bar.outline.set_visible(False)


def _in_short(value: float) -> str:
    """``.33``, ``-.50``, ``1.00``, and a dash for NaN."""
    return "-" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1)
