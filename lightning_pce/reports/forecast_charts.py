"""The picture of a forecast: what was measured, the band of what is to come, the limit; or why none is."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_pce.reports._drawing import (
    AS_WRITTEN,
    BAND,
    FEW,
    MEAN,
    MEDIAN,
    check_lengths,
    error_bars,
    finite_or_nan,
    new_axes,
    shown,
    without_frame,
    words,
)
from lightning_pce.runs._forecast_words import end_of
from lightning_pce.runs._one_series import WIDTH
from lightning_pce.runs._words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    from lightning_pce.runs.forecasting import Forecast

_TIMES = 4.0  # the last step: so far a forecast goes without a warning
# The values of a beginning are so far off that the band would be a line.
_EARLIEST = 1 / 30
_POINTS = 60
_MOST_POINTS = 150  # each is 130 bytes of a page
_NEAR = 0.6  # so many heights of all else
_MEASURED, _LIMIT = "#222222", "#00794a"
_FAR = "beyond 4 times the last step"


class Measured(NamedTuple):
    """What was measured after the fit."""

    steps: list[float]
    values: list[float]


def forecast_band(
    forecast: Forecast,
    steps: ArrayLike | None = None,
    values: ArrayLike | None = None,
    *,
    until: float | None = None,
    name: str = "value",
    ax: Axes | None = None,
) -> Axes:
    """A forecast over steps on a log scale: measured values, median, prediction interval and limit.

    The band holds single measurements to come, with the probability ``forecast.level``; beyond 4 times the
    last step, where it does not know its own error, it is pale. Values at less than 1/30 of the last step
    are left out, and it is said how many. A refused forecast has all its values and the reason, and no band.

    Args:
        forecast: of :func:`lightning_pce.runs.forecasting.fit_power_law` or of a history.
        steps: ``[M]`` steps of what was measured later, if it is known.
        values: ``[M]`` what was measured there.
        until: where the band ends, if that is behind the data; left out: at 4 times their last step. It
                reaches to the last of ``steps``, too.
        name: what the values are.
        ax: where to draw; left out: a new figure, made without pyplot, so that nothing needs closing.

    Returns:
        The axes.

    Raises:
        ValueError: if only one of ``steps`` and ``values`` is given, they are not of one length, or ``until``
            is no step.

    Example:
        >>> from lightning_pce.runs.forecasting import fit_power_law
        >>> steps = [100 * 2**k for k in range(10)]
        >>> forecast = fit_power_law(steps, [2 + 30 * step**-0.5 for step in steps], bounds=(0, None))
        >>> forecast_band(forecast, [204_800], [2.07], name="val_ce_p50").get_ylabel()
        'val_ce_p50'
    """
    later = _later(steps, values)
    if until is not None and not (math.isfinite(until) and until > 0):
        raise ValueError(f"Expected argument `until` to be a step above 0 but got {until!r}.")
    ax = new_axes() if ax is None else ax
    ax.set_xscale("log")
    first, last = _ends(forecast, later)
    end = max([until or 0.0, last, *later.steps, 0.0 if forecast.refused or until else _TIMES * last])
    seen = [] if forecast.refused else _draw_band(ax, forecast, first, end)
    seen += _draw_values(ax, forecast, first, later)
    seen += [] if forecast.refused else _draw_limit(ax, forecast, seen)
    ax.set_xlim(first / 1.15, end * 1.15)
    _step_axis(ax, end / first)
    _limit_y(ax, seen)
    ax.set_ylabel(shown(name, 60), **AS_WRITTEN)
    without_frame(ax)
    _say(ax, forecast, sum(step < first for step in [*forecast.steps.tolist(), *later.steps]))
    return ax


def _later(steps: ArrayLike | None, values: ArrayLike | None) -> Measured:
    if (steps is None) != (values is None):
        raise ValueError("Expected both `steps` and `values` of what was measured later, or neither.")
    at, found = (
        [] if given is None else np.atleast_1d(np.asarray(given, dtype=np.float64)).tolist()
        for given in (steps, values)
    )
    check_lengths(len(at), "later step", {"what was measured": found})
    wrong = [step for step in at if not (math.isfinite(step) and step > 0)]
    if wrong:
        raise ValueError(f"Expected `steps` above 0 but got {wrong[0]:g}.")
    return Measured(at, finite_or_nan(found))


def _ends(forecast: Forecast, later: Measured) -> tuple[float, float]:
    """The first step that is drawn, and the last of the fit."""
    if not len(forecast.steps):
        return min(later.steps, default=1.0), max(later.steps, default=1.0)
    last = float(forecast.steps[-1])
    kept = forecast.steps >= (_EARLIEST * last if forecast.refused is None else 0.0)
    return float(forecast.steps[kept][0]), last


def _draw_band(ax: Axes, forecast: Forecast, first: float, end: float) -> list[float]:
    """The band and the median; what of the band must be seen."""
    last, seen = float(forecast.steps[-1]), []
    share = f"{100 * forecast.level:g} % of what will be measured"
    parts = ((first, last, 0.28, share), (last, _TIMES * last, 0.28, ""), (_TIMES * last, end, 0.12, _FAR))
    for start, stop, alpha, label in parts:
        if start < min(stop, end):
            found = forecast.curve(np.geomspace(start, min(stop, end), _POINTS))
            look: dict[str, Any] = {"color": BAND, "alpha": alpha, "linewidth": 0, "label": label}
            ax.fill_between(found.steps, found.low, found.high, **look)
            line: dict[str, Any] = {"color": MEDIAN, "linewidth": 2}
            ax.plot(found.steps, found.median, label="median" if start == first else "", **line)
            seen += [*found.low, *found.high] if start >= last else [*found.median]
    ax.axvline(last, color="#9a9a9a", linestyle=(0, (1, 2)), linewidth=1.1, zorder=0.5)
    return [float(value) for value in seen]


def _draw_limit(ax: Axes, forecast: Forecast, seen: Sequence[float]) -> list[float]:
    """The limit where it is near; far off it would press all else together, and is said alone."""
    limit = forecast.asymptote
    if not math.isfinite(limit.median):
        return []
    ends = f"{end_of(limit.low)} to {end_of(limit.high)}"
    room = _NEAR * (max(seen) - min(seen))
    near = min(seen) - room <= limit.median <= max(seen) + room
    label = f"limit {number(limit.median)} ({ends})" + ("" if near else ", outside of the picture")
    look: dict[str, Any] = {"color": _LIMIT, "linewidth": 1.4, "linestyle": (0, (5, 2)), "label": label}
    ax.axhline(limit.median, **look)
    return [limit.median] if near else []


def _draw_values(ax: Axes, forecast: Forecast, first: float, later: Measured) -> list[float]:
    """Points with their error bars, the later ones in another colour; all that is drawn."""
    kept = _few_of(forecast.steps, first)
    steps, values = forecast.steps[kept], forecast.values[kept]
    seen: list[float] = values.tolist()
    if forecast.errors is not None:
        errors = WIDTH / 2 * forecast.errors[kept]
        low, high = (finite_or_nan(ends.tolist()) for ends in (values - errors, values + errors))
        error_bars(ax, steps.tolist(), low, high, _MEASURED)
        seen += low + high
    size = 5 if len(steps) <= FEW else 3
    label = "measured" if forecast.errors is None else "measured, with 95 % intervals"
    every = int((forecast.steps >= first).sum())
    label += f", {len(steps)} of {every:,}" if len(steps) < every else ""
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "zorder": 3}
    ax.plot(steps, values, color=_MEASURED, markersize=size, label=label, **look)
    drawn = [(step, value) for step, value in zip(*later, strict=True) if step >= first]
    if any(math.isfinite(value) for _, value in drawn):
        ax.plot(*zip(*drawn, strict=True), color=MEAN, markersize=size + 1, label="measured later", **look)
    return seen + [value for _, value in drawn]


def _few_of(steps: NDArray[np.float64], first: float) -> NDArray[np.intp]:
    """The places of steps from ``first`` on; of very many those that are drawn beside one another."""
    places = np.flatnonzero(steps >= first)
    if len(places) <= _MOST_POINTS:
        return places
    columns = np.ceil((_MOST_POINTS - 1) * np.log(steps[places] / first) / np.log(steps[-1] / first))
    return places[np.flatnonzero(np.diff(columns, append=np.inf))]


def _limit_y(ax: Axes, seen: Sequence[float]) -> None:
    known = [value for value in seen if math.isfinite(value)]
    if not known:
        ax.set_xticks([])
        ax.set_yticks([])
        words(ax, "no finite values")
        return
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set_ylim(low - room, high + room)


def _step_axis(ax: Axes, ratio: float) -> None:
    """Steps as plain numbers; of few decades some between the powers of ten too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    subs = (1.0,) if ratio > 300 else (1.0, 2.0, 5.0) if ratio > 6 else tuple(map(float, range(1, 10)))
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: _in_short(step)))
    ax.set_xlabel("step (log scale)")


def _in_short(step: float) -> str:
    """``"2,000"``, ``"50k"``, ``"2M"``; of compute ``"5e+21"``."""
    if step >= 1e15:
        return f"{step:.6g}"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if step >= size * (1 - 1e-9):
            return f"{step / (1e3 if unit == 'k' else size):,.6g}{unit}"
    return f"{step:,.6g}"


def _say(ax: Axes, forecast: Forecast, earlier: int) -> None:
    """Above the axes why there is no band, and what is not seen."""
    said = [] if forecast.refused is None else [f"No forecast: {forecast.refused}"]
    said += [f"{earlier} earlier value{'s' * (earlier != 1)} not shown."] if earlier else []
    dropped = forecast.dropped
    said += [f"{dropped} value{'s' * (dropped != 1)} not finite or at no step above 0."] if dropped else []
    if said:
        text = "\n".join(textwrap.wrap(shown(" ".join(said), 400), 96))
        ax.set_title(text, loc="left", fontsize=9.5, color="#444444", **AS_WRITTEN)
    marks, labels = ax.get_legend_handles_labels()
    if len(labels) > 1:
        order = sorted(range(len(labels)), key=lambda place: not labels[place].startswith("measured"))
        look: dict[str, Any] = {"frameon": False, "loc": "lower right" if forecast.rising else "upper right"}
        ax.legend([marks[i] for i in order], [labels[i] for i in order], **look)
