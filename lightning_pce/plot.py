"""What a person looks at: percentile bands over training. Needs matplotlib (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND, _MEDIAN, _MEAN = "#2a6f97", "#013a63", "#d1495b"


def fan_chart(
    steps: Sequence[float],
    percentiles: Mapping[float, Sequence[float]],
    mean: Sequence[float] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Percentile bands over steps, the median as a line, the mean on top.

    Args:
        steps: ``[S]`` epochs or steps.
        percentiles: percentile -> ``[S]`` values, in nats; p and 100 - p span a band, the nearer to the
            median the darker.
        mean: ``[S]`` means, in nats.
        ax: where to draw; left out: a new figure, made without pyplot, so that nothing needs closing.

    Returns:
        The axes.

    Raises:
        ValueError: if a series is not as long as ``steps``.

    Example:
        >>> ax = fan_chart([1, 2], {5: [0.1, 0.0], 50: [2.0, 1.0], 95: [9.0, 12.0]}, mean=[3.0, 3.5])
        >>> ax.get_ylabel()
        'cross-entropy per token (nats)'
    """
    for name, series in [*percentiles.items(), ("mean", mean if mean is not None else steps)]:
        if len(series) != len(steps):
            raise ValueError(
                f"Expected {len(steps)} values of {name}, one for each step, but got {len(series)}."
            )
    ax = new_axes() if ax is None else ax
    values = {float(p): list(series) for p, series in percentiles.items()}
    bands = sorted(p for p in values if p < 50 and 100 - p in values)
    for depth, p in enumerate(bands, start=1):
        ax.fill_between(
            steps,
            values[p],
            values[100 - p],
            color=_BAND,
            alpha=0.15 + 0.25 * depth / len(bands),
            linewidth=0,
            label=f"p{p:g} to p{100 - p:g}",
        )
    for p in sorted(set(values) - set(bands) - {100 - b for b in bands} - {50.0}):
        ax.plot(steps, values[p], color=_BAND, linewidth=0.9, linestyle=":", label=f"p{p:g}")
    if 50.0 in values:
        ax.plot(steps, values[50.0], color=_MEDIAN, linewidth=2, label="median")
    if mean is not None:
        ax.plot(steps, mean, color=_MEAN, linewidth=2, linestyle="--", label="mean")
    ax.set_ylabel("cross-entropy per token (nats)")
    drawn = [*percentiles.values(), *([mean] if mean is not None else [])]
    ax.set_ylim(bottom=min(0.0, *(min(series) for series in drawn)))
    ax.margins(x=0.02)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def new_axes(**figure: Any) -> Axes:
    """Axes of a figure of their own that no global state knows."""
    from matplotlib.figure import Figure

    return Figure(**({"figsize": (8, 4.5), "layout": "constrained"} | figure)).add_subplot()
