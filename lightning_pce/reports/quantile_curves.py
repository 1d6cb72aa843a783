"""The quantile functions of digests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_pce import digest as td
from lightning_pce.reports._drawing import (
    AS_WRITTEN,
    CURVES,
    finish,
    finite_or_nan,
    new_axes,
    percentile_axis,
    shown_names,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_MARKED = (5, 50, 95)
_EDGE = 0.001  # beyond, a curve is a few tokens
_POINTS = 4001  # an even grid of which the outermost steps are still fine on a logit scale


def quantile_curve(curves: Mapping[str, Tensor], *, ax: Axes | None = None) -> Axes:
    """The quantile functions of digests: which share of the tokens lies below which cross-entropy.

    Dots mark p5, p50 and p95, dashed lines the means. The scale of the shares is the logit, which gives both
    tails as much room as the bulk. Infinite values are not drawn.

    Args:
        curves: name -> digest ``[K + 3, 2]``, in nats: a metric's ``digest`` and its ``group_digests``, say,
            or those of two validations. More than eight are drawn from light to dark in their order, and the
            legend names eight of them.
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
    percentile_axis(ax, _EDGE)
    for p in _MARKED:
        ax.axvline(p / 100, color="#dddddd", linewidth=0.8, zorder=0)
    width = 2.0 if len(curves) <= len(CURVES) else 1.0
    lines = [
        _curve(ax, name, digest.detach().cpu(), color, width)
        for (name, digest), color in zip(curves.items(), _colors(len(curves)), strict=True)
    ]
    some = any(bool(td.count(digest) > 0) for digest in curves.values())
    finish(ax, "no finite values" if some else "no tokens")
    if lines:
        _legend(ax, lines)
    return ax


def _curve(ax: Axes, name: str, digest: Tensor, color: Any, width: float) -> Line2D:
    """One quantile function, its marked percentiles and its mean."""
    q, value = td.curve(digest, _POINTS)
    edge = round(_EDGE * (_POINTS - 1))
    shown_part = slice(edge, _POINTS - edge)
    median, mean = float(td.quantile(digest, 0.5)), float(td.mean(digest))
    numbers = f"p50 {_two_digits(median)}, mean {_two_digits(mean)}" if td.count(digest) > 0 else "no tokens"
    [line] = ax.plot(
        q[shown_part].tolist(),
        finite_or_nan(value[shown_part].tolist()),
        color=color,
        linewidth=width,
        marker="o",
        markersize=3 * width,
        markevery=[round(p / 100 * (_POINTS - 1)) - edge for p in _MARKED],
        label=f"{name}: {numbers}",
    )
    if math.isfinite(mean):
        ax.axhline(mean, color=color, linewidth=0.6 * width, linestyle="--")
    return line


def _two_digits(value: float) -> str:
    """Two decimals, of a small value two digits: the median of a good model is 0.0064."""
    return f"{value:.2g}" if 0 < abs(value) < 0.095 else f"{value:.2f}"


def _colors(number: int) -> list[Any]:
    """Colours to tell apart, of more than there are such from light to dark."""
    if number <= len(CURVES):
        return list(CURVES[:number])
    from matplotlib import colormaps

    return [colormaps["viridis_r"](0.2 + 0.8 * i / (number - 1)) for i in range(number)]


def _legend(ax: Axes, lines: list[Line2D]) -> None:
    # Mostly that is the corner upper left; of an untrained model, whose curve is flat and high, it is not.
    look: dict[str, Any] = {"alignment": "left", "loc": "best", "edgecolor": "none"}
    title = "dots: p5, p50, p95; dashed: mean"
    if len(lines) > len(CURVES):
        title += f"\n{len(CURVES)} of {len(lines)} curves"
        last = len(CURVES) - 1
        lines = [lines[round(i * (len(lines) - 1) / last)] for i in range(last + 1)]
    legend = ax.legend(lines, [str(number) for number in range(len(lines))], title=title, **look)
    # Afterwards: matplotlib leaves out what begins with an underscore, as a name may.
    labels = [str(line.get_label()).rpartition(": ") for line in lines]
    names = shown_names(name for name, _, _ in labels)
    for text, name, (_, _, numbers) in zip(legend.get_texts(), names, labels, strict=True):
        text.set(text=f"{name}: {numbers}", **AS_WRITTEN)
