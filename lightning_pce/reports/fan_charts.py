"""Percentile bands over training: by themselves, and with what each statistic picks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lightning_pce._names import percentile_key
from lightning_pce.reports._drawing import (
    AS_WRITTEN,
    BAND,
    CURVES,
    FEW,
    MEAN,
    MEDIAN,
    QUIET,
    alone,
    check_lengths,
    error_bars,
    finish,
    finite_or_nan,
    line_with_gaps,
    name_ticks,
    new_axes,
    shown,
    shown_names,
    step_ticks,
    without_frame,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour and marker of a pick, the same in every chart; mean and median have those of their lines.
_LOOKS = {
    "mean": (MEAN, "s"),
    "p50": (MEDIAN, "D"),
    "p95": (CURVES[1], "^"),
    "p75": (CURVES[2], "v"),
    "p90": (CURVES[4], "o"),
    "p99": (CURVES[5], "<"),
    "p25": (CURVES[6], ">"),
    "other": (CURVES[7], "P"),
}
_QUIET_TITLE: dict[str, Any] = {"fontsize": 9.5, "color": "#444444"}

Interval = tuple[Sequence[float], Sequence[float]]


def fan_chart(
    steps: Sequence[float],
    percentiles: Mapping[float, Sequence[float]],
    mean: Sequence[float] | None = None,
    *,
    intervals: Mapping[str, Interval] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Percentile bands over steps, the median as a line, the mean on top.

    NaN and infinite values, such as those of an epoch without tokens, are gaps.

    Args:
        steps: ``[S]`` epochs or steps.
        percentiles: percentile -> ``[S]`` values, in nats; p and 100 - p span a band, the nearer to the
            median the darker.
        mean: ``[S]`` means, in nats.
        intervals: ``"mean"`` or ``"p50"``, ``"p99_9"`` ... -> the lower and the upper ends, ``[S]`` each, in
            nats, drawn as error bars; NaN is no bar.
        ax: where to draw; left out: a new figure, made without pyplot, so that nothing needs closing.

    Returns:
        The axes.

    Raises:
        ValueError: if a series is not as long as ``steps``, or an interval is of what is not drawn.

    Example:
        >>> ax = fan_chart([1, 2], {5: [0.1, 0.0], 50: [2.0, 1.0], 95: [9.0, 12.0]}, mean=[3.0, 3.5])
        >>> ax.get_ylabel()
        'cross-entropy per token (nats)'
    """
    intervals = intervals or {}
    _check(steps, percentiles, mean, intervals)
    ax = new_axes() if ax is None else ax
    values = {float(p): finite_or_nan(series) for p, series in percentiles.items()}
    bands = sorted(p for p in values if p < 50 and 100 - p in values)
    for depth, p in enumerate(bands, start=1):
        look: dict[str, Any] = {"color": BAND, "alpha": 0.15 + 0.25 * depth / len(bands)}
        ax.fill_between(
            steps, values[p], values[100 - p], linewidth=0, label=f"p{p:g} to p{100 - p:g}", **look
        )
        for i in alone(values[p], values[100 - p]):  # an area of no width
            ax.vlines(steps[i], values[p][i], values[100 - p][i], linewidth=8, **look)
    for p in sorted(set(values) - set(bands) - {100 - b for b in bands} - {50.0}):
        line_with_gaps(ax, steps, values[p], color=BAND, linewidth=0.9, linestyle=":", label=f"p{p:g}")
    if 50.0 in values:
        line_with_gaps(ax, steps, values[50.0], color=MEDIAN, linewidth=2, label="median")
    if mean is not None:
        line_with_gaps(ax, steps, finite_or_nan(mean), color=MEAN, linewidth=2, linestyle="--", label="mean")
    for name, (low, high) in intervals.items():
        color = {"mean": MEAN, "p50": MEDIAN}.get(name, BAND)
        error_bars(ax, steps, finite_or_nan(low), finite_or_nan(high), color)
    ax.margins(x=0.02)
    finish(ax, "no finite values")
    if ax.get_legend_handles_labels()[0]:
        marks = "bars" if len(steps) <= FEW else "ribbons"
        title: dict[str, Any] = {"title": f"{marks}: intervals", "alignment": "left"} if intervals else {}
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), **title)
    return ax


def decision_chart(
    steps: Sequence[float],
    percentiles: Mapping[float, Sequence[float]],
    mean: Sequence[float] | None = None,
    *,
    picks: Mapping[str, float],
    ties: Mapping[str, Sequence[float]] | None = None,
    task: tuple[str, Sequence[float]] | None = None,
    intervals: Mapping[str, Interval] | None = None,
    xlabel: str = "step",
    names: Sequence[str] | None = None,
    called: Sequence[str] | None = None,
) -> Figure:
    """The fan chart, below it the step that each statistic picks, and below these a task metric.

    Each statistic has a row: a large marker at its pick, dots at the steps that are tied with it. So nothing
    is hidden where several statistics pick one step.

    Args:
        steps: ``[S]`` epochs or steps, ascending.
        percentiles: percentile -> ``[S]`` values, in nats, as for :func:`fan_chart`.
        mean: ``[S]`` means, in nats.
        picks: statistic -> the step it picks, one of ``steps``.
        ties: statistic -> the steps whose values are within error of that of its pick.
        task: the name of a task metric, and its ``[S]`` values; NaN where it was not measured.
        intervals: error bars, as for :func:`fan_chart`.
        xlabel: what steps are, ``"epoch"`` say.
        names: ``[S]`` what is written for each step; left out: its number.
        called: ``[S]`` what each step is called where it is picked; left out: its name, or ``xlabel`` and
            its number.

    Returns:
        A figure of its own; ``figure.axes`` are the panels, the fan chart first.

    Raises:
        ValueError: if a series is not as long as ``steps``, a pick or a tie is not one of the steps, or there
            are ties of a statistic that picks nothing.

    Example:
        >>> bands = {5: [0.1, 0.0], 50: [2.0, 1.0], 95: [9.0, 12.0]}
        >>> figure = decision_chart(
        ...     [1, 2], bands, picks={"p50": 2, "p95": 1}, task=("recall", [0.1, 0.9]), xlabel="epoch"
        ... )
        >>> [text.get_text() for text in figure.axes[1].texts]
        ['epoch 2: 0.9', 'epoch 1: 0.1', 'recall']
    """
    ties = ties or {}
    _check_picks(steps, picks, ties)
    series = {"the task metric": task[1] if task else None, "names": names, "what it is called": called}
    check_lengths(len(steps), "step", series)
    fan, rows, task_ax = _panels(len(picks), task is not None)
    fan_chart(steps, percentiles, mean, intervals=intervals, ax=fan)
    panels = [panel for panel in (fan, rows, task_ax) if panel is not None]
    for panel in panels:
        for step in set(picks.values()):
            panel.axvline(step, color="#9a9a9a", linestyle=(0, (1, 2)), linewidth=1.1, zorder=0.5)
        panel.tick_params(labelbottom=panel is panels[-1])
    if rows is not None:
        _draw_rows(rows, picks, ties)
        _say_picks(rows, steps, picks, task, xlabel, called or names)
    if task is not None and task_ax is not None:
        _draw_task(task_ax, steps, picks, *task)
    if names is None:
        step_ticks(fan, steps)
    else:
        name_ticks(panels[-1], steps, names)
    panels[-1].set_xlabel(shown(xlabel), **AS_WRITTEN)
    return cast("Figure", fan.figure)  # of its own: _panels has made it, and no subfigure


def _panels(picks: int, task: bool) -> tuple[Axes, Axes | None, Axes | None]:
    """The fan, rows of picks and the task metric, over one another; heights in inches."""
    from matplotlib.figure import Figure

    heights = [3.4, *([0.26 * picks + 0.12] if picks else []), *([1.6] if task else [])]
    figure = Figure(figsize=(8, sum(heights) + 0.6 + 0.35 * (len(heights) - 1)), layout="constrained")
    axes = list(
        figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[
            :, 0
        ]
    )
    fan, last = axes.pop(0), axes.pop() if task else None
    return fan, axes.pop() if picks else None, last


def _draw_rows(ax: Axes, picks: Mapping[str, float], ties: Mapping[str, Sequence[float]]) -> None:
    """A row for each statistic, the first on top."""
    for row, (name, (color, marker)) in enumerate(_looks(picks).items()):
        tied = [step for step in ties.get(name, ()) if step != picks[name]]
        ax.axhline(row, color="#e6e6e6", linewidth=1, zorder=0)
        ax.plot(tied, [row] * len(tied), "o", color=color, markersize=4.5, alpha=0.55, markeredgewidth=0)
        ax.plot(picks[name], row, marker, color=color, markersize=9, clip_on=False)
    ax.set_ylim(len(picks) - 0.4, -0.6)
    ax.set_yticks(range(len(picks)), shown_names(picks, 16), **AS_WRITTEN)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    dots = any(step != picks[name] for name, tied in ties.items() for step in tied)
    title = "what each statistic picks" + ("; dots: within error of it" if dots else "")
    ax.set_title(title, loc="left", **_QUIET_TITLE)


def _say_picks(
    ax: Axes,
    steps: Sequence[float],
    picks: Mapping[str, float],
    task: tuple[str, Sequence[float]] | None,
    xlabel: str,
    names: Sequence[str] | None,
) -> None:
    """At the right of each row its pick, and what the task metric is there."""
    for row, step in enumerate(picks.values()):
        place = list(steps).index(step)
        words = f"{shown(xlabel, 12)} {step:.10g}" if names is None else shown(names[place], 24)
        if task is not None:
            value = task[1][place]
            words += f": {value:.3g}" if math.isfinite(value) else ": not measured"
        ax.text(1.02, row, words, transform=ax.get_yaxis_transform(), va="center", fontsize=9.5, **AS_WRITTEN)
    if task is not None:
        at: dict[str, Any] = {"xy": (1.02, 1), "xycoords": "axes fraction"}
        at |= {"xytext": (0, 6), "textcoords": "offset points"}  # as a title is
        ax.annotate(shown(task[0], 28), **at, va="baseline", **_QUIET_TITLE, **AS_WRITTEN)


def _draw_task(
    ax: Axes, steps: Sequence[float], picks: Mapping[str, float], name: str, series: Sequence[float]
) -> None:
    values = finite_or_nan(series)
    few = {"marker": "o", "markersize": 3.5, "markevery": None} if len(steps) <= FEW else {}
    line_with_gaps(ax, steps, values, color=QUIET, linewidth=1.4, **few)
    at = dict(zip(steps, values, strict=True))
    looks, waiting = _looks(picks), list(picks.values())
    for statistic, (color, marker) in looks.items():
        waiting.pop(0)
        # The first is the largest: of several in one place all are seen.
        size = 8.5 + 4 * waiting.count(picks[statistic])
        look: dict[str, Any] = {"color": color, "markersize": size, "markeredgecolor": "white"}
        ax.plot(picks[statistic], at[picks[statistic]], marker, **look, clip_on=False)
    ax.set_title(shown(name, 60), loc="left", **_QUIET_TITLE, **AS_WRITTEN)
    ax.margins(y=0.12)
    without_frame(ax)


def _looks(picks: Mapping[str, float]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each statistic; no two are the same until there are more than eight."""
    free = [look for name, look in _LOOKS.items() if name not in picks] or list(_LOOKS.values())
    others = [name for name in picks if name not in _LOOKS]
    of_others = {name: free[-1 - i % len(free)] for i, name in enumerate(others)}
    return {name: _LOOKS.get(name) or of_others[name] for name in picks}


def _check(
    steps: Sequence[float],
    percentiles: Mapping[float, Sequence[float]],
    mean: Sequence[float] | None,
    intervals: Mapping[str, Interval],
) -> None:
    check_lengths(len(steps), "step", {**{f"{p}": series for p, series in percentiles.items()}, "mean": mean})
    drawn = [*(percentile_key(p) for p in percentiles), *(["mean"] if mean is not None else [])]
    for name, ends in intervals.items():
        if name not in drawn:
            raise ValueError(
                f"Expected intervals of {', '.join(drawn) or 'nothing'} but got one of {name!r}."
            )
        low, high = ends
        check_lengths(len(steps), "step", {f"{name}'s lower end": low, f"{name}'s upper end": high})


def _check_picks(
    steps: Sequence[float], picks: Mapping[str, float], ties: Mapping[str, Sequence[float]]
) -> None:
    unpicked = [name for name in ties if name not in picks]
    if unpicked:
        raise ValueError(f"Expected ties of what is in `picks` but got those of {unpicked[0]!r}.")
    known = set(steps)
    for argument, chosen in (("picks", {name: [step] for name, step in picks.items()}), ("ties", ties)):
        for name, chosen_steps in chosen.items():
            strange = [step for step in chosen_steps if step not in known]
            if strange:
                raise ValueError(
                    f"Expected `{argument}` to hold steps that are in `steps` but {name!r} has {strange[0]}."
                )
