"""What a person looks at: percentile bands over training, quantile functions. Needs matplotlib (``plot``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_pce import digest as td

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_BAND, _MEDIAN, _MEAN = "#2a6f97", "#013a63", "#d1495b"
_CURVES = ("#013a63", "#e07a1f", "#3a8f5c", "#7d4fa6", "#b58900", "#12a3a8", "#c2327d", "#6b6b6b")
_CE = "cross-entropy per token (nats)"
_MARKED = (5, 50, 95)
# On a logit scale; beyond, a curve is a few tokens.
_TICKS = (0.1, 1, 5, 25, 50, 75, 95, 99, 99.9)
_POINTS = 4001  # an even grid of which the outermost steps are still fine on a logit scale


def fan_chart(
    steps: Sequence[float],
    percentiles: Mapping[float, Sequence[float]],
    mean: Sequence[float] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Percentile bands over steps, the median as a line, the mean on top.

    NaN and infinite values, such as those of an epoch without tokens, are gaps.

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
    values = {float(p): _finite_or_nan(series) for p, series in percentiles.items()}
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
        _line(ax, steps, values[p], color=_BAND, linewidth=0.9, linestyle=":", label=f"p{p:g}")
    if 50.0 in values:
        _line(ax, steps, values[50.0], color=_MEDIAN, linewidth=2, label="median")
    if mean is not None:
        _line(ax, steps, _finite_or_nan(mean), color=_MEAN, linewidth=2, linestyle="--", label="mean")
    ax.margins(x=0.02)
    _finish(ax, "no finite values")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def quantile_curve(curves: Mapping[str, Tensor], *, ax: Axes | None = None) -> Axes:
    """The quantile functions of digests: which share of the tokens lies below which cross-entropy.

    Dots mark p5, p50 and p95, dashed lines the means. The scale of the shares is the logit, which gives both
    tails as much room as the bulk. Infinite values are not drawn.

    Args:
        curves: name -> digest ``[K + 3, 2]``, in nats: a metric's ``digest`` and its ``group_digests``, say,
            or those of two validations.
        ax: where to draw; left out: a new figure, made without pyplot, so that nothing needs closing.

    Returns:
        The axes.

    Raises:
        ValueError: if a tensor has not the shape of one digest.

    Example:
        >>> import torch
        >>> ax = quantile_curve({"all tokens": td.from_values(torch.arange(101.0))})
        >>> ax.get_legend().get_texts()[0].get_text()
        'all tokens: p50 50.00, mean 50.00'
    """
    for name, digest in curves.items():
        if digest.ndim != 2 or digest.shape[1] < 2:
            raise ValueError(
                f"Expected the digest of {name!r} to be [K + 3, 2] but got {list(digest.shape)}."
            )
    ax = new_axes() if ax is None else ax
    shares = [p / 100 for p in _TICKS]
    ax.set_xscale("logit")
    ax.set_xticks(shares, [f"{p:g}" for p in _TICKS])
    ax.set_xticks([], minor=True)
    ax.set_xlim(shares[0], shares[-1])
    ax.set_xlabel("percentile of the tokens (logit scale)")
    for p in _MARKED:
        ax.axvline(p / 100, color="#dddddd", linewidth=0.8, zorder=0)
    lines = [
        _curve(ax, name, digest.detach().cpu(), _CURVES[number % len(_CURVES)])
        for number, (name, digest) in enumerate(curves.items())
    ]
    some = any(bool(td.count(digest) > 0) for digest in curves.values())
    _finish(ax, "no finite values" if some else "no tokens")
    # Mostly that is the corner upper left; of an untrained model, whose curve is flat and high, it is not.
    if lines:
        look: dict[str, Any] = {"alignment": "left", "loc": "best", "edgecolor": "none"}
        numbers = [str(number) for number in range(len(lines))]
        legend = ax.legend(lines, numbers, title="dots: p5, p50, p95; dashed: mean", **look)
        # Afterwards: matplotlib leaves out what begins with an underscore, as a name may.
        for text, line in zip(legend.get_texts(), lines, strict=True):
            text.set_text(str(line.get_label()))
    return ax


def new_axes(**figure: Any) -> Axes:
    """Axes of a figure of their own that no global state knows."""
    from matplotlib.figure import Figure

    return Figure(**({"figsize": (8, 4.5), "layout": "constrained"} | figure)).add_subplot()


def _curve(ax: Axes, name: str, digest: Tensor, color: str) -> Line2D:
    """One quantile function, its marked percentiles and its mean."""
    q, value = td.curve(digest, _POINTS)
    edge = round(_TICKS[0] / 100 * (_POINTS - 1))
    shown = slice(edge, _POINTS - edge)
    median, mean = float(td.quantile(digest, 0.5)), float(td.mean(digest))
    numbers = f"p50 {median:.2f}, mean {mean:.2f}" if td.count(digest) > 0 else "no tokens"
    [line] = ax.plot(
        q[shown].tolist(),
        _finite_or_nan(value[shown].tolist()),
        color=color,
        linewidth=2,
        marker="o",
        markevery=[round(p / 100 * (_POINTS - 1)) - edge for p in _MARKED],
        label=f"{name}: {numbers}",
    )
    if math.isfinite(mean):
        ax.axhline(mean, color=color, linewidth=1.2, linestyle="--")
    return line


def _finite_or_nan(series: Sequence[float]) -> list[float]:
    """What matplotlib leaves out it finds as NaN; infinities spoil limits."""
    return [float(value) if math.isfinite(value) else math.nan for value in series]


def _line(ax: Axes, steps: Sequence[float], values: list[float], **look: Any) -> None:
    """A line with gaps; a point alone between gaps is a dot, or nobody would see it."""
    there = [False, *(not math.isnan(value) for value in values), False]
    alone = [i for i in range(len(values)) if there[i + 1] and not there[i] and not there[i + 2]]
    dots: dict[str, Any] = {"marker": "o", "markersize": 4, "markevery": alone} if alone else {}
    ax.plot(steps, values, **dots, **look)


def _finish(ax: Axes, nothing: str) -> None:
    """What both charts share: unit, limits, and words where there is nothing to see."""
    lowest = ax.dataLim.y0
    if math.isfinite(lowest):
        ax.set_ylim(bottom=min(0.0, lowest))
    else:
        ax.set_yticks([])
        ax.text(0.5, 0.5, nothing, transform=ax.transAxes, ha="center", va="center")
    ax.set_ylabel(_CE)
    ax.spines[["top", "right"]].set_visible(False)
