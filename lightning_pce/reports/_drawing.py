"""What the pictures share: colours, axes, names as they are written, lines with gaps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Any two differ by 20 or more (CIE 1976) also for who sees no red, no green or no blue; a test counts it.
CURVES = ("#013a63", "#d18400", "#00ab59", "#bc3515", "#966ea0", "#6f86e3", "#6232b4", "#637767")
BAND, MEDIAN, MEAN = "#2a6f97", CURVES[0], CURVES[3]
BETTER, WORSE = "#1f6391", CURVES[3]
# On a logit scale; beyond, a curve is a few tokens.
_PERCENTILES = (0.1, 1, 5, 25, 50, 75, 95, 99, 99.9)
QUIET = "#767676"
FEW = 40  # so many records can each have a mark, a name or a bar of their own
CE = "cross-entropy per token (nats)"
# For every text with a name in it: matplotlib takes what is between dollars for mathematics.
AS_WRITTEN: dict[str, Any] = {"parse_math": False, "usetex": False}


def new_axes(**figure: Any) -> Axes:
    """Axes of a figure of their own that no global state knows, and that nobody must close.

    Args:
        figure: arguments of ``matplotlib.figure.Figure``; left out: 8 by 4.5 inches, a constrained layout.

    Example:
        >>> new_axes(figsize=(4, 3)).figure.get_size_inches().tolist()
        [4.0, 3.0]
    """
    from matplotlib.figure import Figure

    return Figure(**({"figsize": (8, 4.5), "layout": "constrained"} | figure)).add_subplot()


def shown(name: object, width: int = 40) -> str:
    """A name in one line: a space for what cannot be printed, a long one without its middle."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(name)).split())
    return line if len(line) <= width else f"{line[: width - width // 2 - 1]}…{line[-(width // 2) :]}"


def shown_names(names: Iterable[object], width: int = 40) -> list[str]:
    """Each name as :func:`shown`; those that then look alike with their number."""
    short = [shown(name, width) for name in names]
    return [
        name if short.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(short, start=1)
    ]


def finite_or_nan(series: Sequence[float]) -> list[float]:
    """What matplotlib leaves out it finds as NaN; infinities spoil limits."""
    return [float(value) if math.isfinite(value) else math.nan for value in series]


def check_lengths(length: int, of_what: str, series: Mapping[str, Sequence[Any] | None]) -> None:
    """Raise a ``ValueError`` unless each series that is given has this length."""
    for name, values in series.items():
        if values is not None and len(values) != length:
            raise ValueError(
                f"Expected {length} values of {name}, one for each {of_what}, but got {len(values)}."
            )


def alone(*series: Sequence[float]) -> list[int]:
    """Where all series have a number, but not all of them one step before or after."""
    there = [
        False,
        *(not any(math.isnan(value) for value in values) for values in zip(*series, strict=True)),
        False,
    ]
    return [i for i in range(len(there) - 2) if there[i + 1] and not there[i] and not there[i + 2]]


def line_with_gaps(ax: Axes, steps: Sequence[float], values: list[float], **look: Any) -> None:
    """A line with gaps; a point alone between gaps is a dot, or nobody would see it."""
    single = alone(values)
    dots: dict[str, Any] = {"marker": "o", "markersize": 4, "markevery": single} if single else {}
    ax.plot(steps, values, **dots | look)


def percentile_axis(ax: Axes, edge: float) -> None:
    """Shares on a logit scale from ``edge`` to 1 - ``edge``, as percentiles: both tails have as much room."""
    shares = [
        p / 100 for p in _PERCENTILES if edge <= p / 100 * (1 + 1e-9) and p / 100 <= (1 - edge) * (1 + 1e-9)
    ]
    ax.set_xscale("logit")
    ax.set_xticks(shares, [f"{100 * share:g}" for share in shares])
    ax.set_xticks([], minor=True)
    ax.set_xlim(edge, 1 - edge)
    ax.set_xlabel("percentile of the tokens (logit scale)")


def error_bars(ax: Axes, steps: Sequence[float], low: list[float], high: list[float], color: str) -> None:
    """Intervals at steps, where both ends are known; of many steps a ribbon, for bars would be a hatching."""
    if len(steps) > FEW:
        ax.fill_between(steps, low, high, color=color, alpha=0.3, linewidth=0)
        return
    known = [i for i in range(len(steps)) if not (math.isnan(low[i]) or math.isnan(high[i]))]
    at, low, high = ([series[i] for i in known] for series in (steps, low, high))
    ax.vlines(at, low, high, linewidth=1.2, color=color)
    for ends in (low, high):
        ax.plot(at, ends, marker="_", markersize=6, linestyle="", color=color)


def without_frame(ax: Axes) -> None:
    """Axes at the left and below, no box."""
    ax.spines[["top", "right"]].set_visible(False)


def step_ticks(ax: Axes, steps: Sequence[float]) -> None:
    """A tick at each of few steps that are evenly spaced; else none between whole numbers."""
    gaps = {float(b - a) for a, b in pairwise(steps)}
    if len(gaps) <= 1 and sum(len(f"{step:g}") + 1 for step in steps) <= 60:
        ax.set_xticks(list(steps))
    elif all(float(step).is_integer() for step in steps):
        ax.locator_params(axis="x", integer=True)


def name_ticks(ax: Axes, steps: Sequence[float], names: Sequence[str]) -> None:
    """A name at each step, of many steps at every few."""
    every = -(-len(steps) // 16) or 1
    look: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(list(steps)[::every], shown_names(names, 20)[::every], **look, **AS_WRITTEN)


def finish(ax: Axes, nothing: str) -> None:
    """What charts of CE share: unit, limits, and words where there is nothing to see."""
    lowest = ax.dataLim.y0
    if math.isfinite(lowest):
        ax.set_ylim(bottom=min(0.0, lowest))
    else:
        ax.set_yticks([])
        words(ax, nothing)
    ax.set_ylabel(CE)
    without_frame(ax)


def words(ax: Axes, text: str) -> None:
    """Words in the middle of axes without data."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center")
