"""The difference of two quantile functions: which percentiles moved, and how far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lightning_pce.reports._drawing import (
    AS_WRITTEN,
    BETTER,
    WORSE,
    check_lengths,
    finite_or_nan,
    new_axes,
    percentile_axis,
    shown,
    without_frame,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Band = tuple[list[float], list[float]]


def difference_curve(
    u: Sequence[float],
    difference: Sequence[float],
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    *,
    gained: float | None = None,
    lost: float | None = None,
    crossings: Sequence[float] | None = None,
    names: tuple[str, str] = ("before", "after"),
    ax: Axes | None = None,
) -> Axes:
    """The change D(u) of every percentile from one record to another: where it is better, where worse.

    Below 0 the second record is better. What is surely so, because the band lies on one side of 0, is shaded
    strongly, the rest weakly. A dot marks where the curve crosses 0; with a band only between a range that
    is surely better and one that is surely worse, and a bar covers the percentiles between these. The scale
    of the shares is the logit, as in :func:`quantile_curve`: areas in the tails look larger than they are,
    which is why the true ones are given in words.

    Args:
        u: ``[N]`` shares of the tokens, ascending in (0, 1).
        difference: ``[N]`` D(u), in nats: the second record's quantile less the first's.
        low: ``[N]`` the lower end of a simultaneous band, in nats.
        high: ``[N]`` its upper end.
        gained: the area below 0, in nats a token; left out: no number.
        lost: the area above 0, in nats a token.
        crossings: the shares at which the curve is said to cross 0; left out: found as above.
        names: of the first and the second record.
        ax: where to draw; left out: a new figure, made without pyplot, so that nothing needs closing.

    Returns:
        The axes.

    Raises:
        ValueError: if a series is not as long as ``u``, ``u`` is not ascending in (0, 1), or the band has one
            end only.

    Example:
        >>> ax = difference_curve([0.25, 0.5, 0.75], [-0.5, -0.1, 0.3], gained=0.2, lost=0.1)
        >>> [text.get_text() for text in ax.texts]
        ['p56.2', '↑ worse: loses 0.10 nats a token', '↓ better: gains 0.20 nats a token']
    """
    _check(u, difference, low, high)
    ax = new_axes() if ax is None else ax
    percentile_axis(ax, min(0.05, *u, *(1 - a for a in u)) if len(u) else 0.05)
    d = finite_or_nan(difference)
    ends = None if low is None or high is None else (finite_or_nan(low), finite_or_nan(high))
    if ends is not None and all(math.isnan(value) for value in ends[0]):
        ends = None  # as of records without counts of documents
    if all(math.isnan(value) for value in d):
        words(ax, "no finite values")
        ax.set_yticks([])
    else:
        _shade(ax, u, d, ends)
        ax.axhline(0, color="#444444", linewidth=1)
        ax.plot(u, d, color="#222222", linewidth=1.8, solid_capstyle="butt")
        ax.set_ylim(*_room(d, ends))
    sure = _sure_signs(d, ends)
    found = _crossings(u, d, sure) if crossings is None else crossings
    for at in found:
        reach = (at, at) if ends is None else _around(at, u, sure)
        _mark(ax, at, reach, above=_rises(at, u, d) == (at > 0.5), named=len(found) <= 3)
    _say(ax, 0.98, WORSE, "↑ worse" + _area("loses", lost))
    _say(ax, 0.02, BETTER, "↓ better" + _area("gains", gained))
    ax.set_ylabel("change of cross-entropy (nats)")
    first, second = (shown(name, 32) for name in names)
    ax.set_title(f"{second} minus {first}", loc="left", fontsize=11, **AS_WRITTEN)
    without_frame(ax)
    return ax


def _check(
    u: Sequence[float],
    difference: Sequence[float],
    low: Sequence[float] | None,
    high: Sequence[float] | None,
) -> None:
    check_lengths(
        len(u), "share", {"the difference": difference, "its lower end": low, "its upper end": high}
    )
    if (low is None) != (high is None):
        raise ValueError(
            f"Expected both ends of the band but got {'no lower' if low is None else 'no upper'}."
        )
    if not all(0 < a < 1 for a in u) or not all(a < b for a, b in pairwise(u)):
        raise ValueError("Expected `u` to ascend in (0, 1); percentiles are to be divided by 100.")


def _say(ax: Axes, height: float, color: str, text: str) -> None:
    """A line of words at the left edge, above or below all that is drawn."""
    look: dict[str, Any] = {"color": color, "fontweight": "bold", "va": "top" if height > 0.5 else "bottom"}
    ax.text(0.015, height, text, transform=ax.transAxes, **look)


def _area(what: str, nats: float | None) -> str:
    """Two digits, ``0.090``; a thousandth and less is 0 to the eye. NaN, of infinite values, is no number."""
    if nats is None or math.isnan(nats):
        return ""
    digits = (
        f"{nats:,.0f}" if nats >= 99.5 else f"{nats:#.2g}".rstrip(".") if nats >= 0.001 else f"{nats:.1g}"
    )
    return f": {what} {digits} nats a token"


def _shade(ax: Axes, u: Sequence[float], d: list[float], band: _Band | None) -> None:
    """The areas between curve and 0, strongly where the band is on one side, and the band."""
    if band is not None:
        ax.fill_between(u, *band, color="#e9e9e9", linewidth=0)
        for end in band:
            ax.plot(u, end, color="#8a8a8a", linewidth=0.8)
        ax.fill_between(u, d, 0, color="white", linewidth=0)  # so that the areas have one tone
    for color, sign in ((BETTER, -1), (WORSE, 1)):
        side = [sign * value > 0 for value in d]
        strength = 0.55 if band is None else 0.25
        ax.fill_between(u, d, 0, where=side, interpolate=True, color=color, alpha=strength, linewidth=0)
        if band is not None:
            sure = [sign * (low if sign > 0 else high) > 0 for low, high in zip(*band, strict=True)]
            ax.fill_between(u, d, 0, where=sure, color=color, alpha=0.45, linewidth=0)


def _room(d: list[float], band: _Band | None) -> tuple[float, float]:
    """Limits with place for a line of words above and below all that is drawn."""
    values = [value for series in (d, *(band or ())) for value in series if not math.isnan(value)]
    low, high = min([0.0, *values]), max([0.0, *values])
    span = (high - low) or 1.0
    return low - 0.14 * span, high + 0.14 * span


def _sure_signs(d: list[float], band: _Band | None) -> list[int]:
    """-1 where a share is better, 1 where worse, 0 where that is not sure."""
    low, high = (d, d) if band is None else band
    return [(b > 0) - (t < 0) for b, t in zip(low, high, strict=True)]


def _crossings(u: Sequence[float], d: list[float], sure: list[int]) -> list[float]:
    """The shares at which the curve goes from what is surely better to surely worse, or back."""
    signed = [i for i, sign in enumerate(sure) if sign]
    return [
        _zero(u[i : j + 1], d[i : j + 1], rising=sure[j] > 0)
        for i, j in pairwise(signed)
        if sure[i] != sure[j]
    ]


def _zero(u: Sequence[float], d: Sequence[float], rising: bool) -> float:
    """The first share at which a curve changes to the sign of its end."""
    signs = [value > 0 if rising else value < 0 for value in d]
    j = max(1, signs.index(True)) if True in signs else len(u) - 1
    step = d[j] - d[j - 1]
    return u[j] - d[j] / step * (u[j] - u[j - 1]) if abs(step) > 0 else u[j]  # NaN is not > 0


def _around(at: float, u: Sequence[float], sure: list[int]) -> tuple[float, float]:
    """The nearest shares that are surely better and surely worse; no range if both are the same."""
    before = [(share, sign) for share, sign in zip(u, sure, strict=True) if sign and share < at]
    after = [(share, sign) for share, sign in zip(u, sure, strict=True) if sign and share > at]
    if not before or not after or before[-1][1] == after[0][1]:
        return at, at
    return before[-1][0], after[0][0]


def _rises(at: float, u: Sequence[float], d: list[float]) -> bool:
    """Whether it is better below a crossing and worse above."""
    known = [(share, value) for share, value in zip(u, d, strict=True) if not math.isnan(value)]
    return sum(v for share, v in known if share < at) <= sum(v for share, v in known if share > at)


def _mark(ax: Axes, at: float, reach: tuple[float, float], *, above: bool, named: bool) -> None:
    """A crossing, and its percentile towards the middle, above or below 0, where the curve is not."""
    from matplotlib.patheffects import withStroke

    start, stop = reach
    ax.plot([start, stop], [0, 0], color="#222222", linewidth=4, solid_capstyle="butt", zorder=3)
    ax.plot(at, 0, "o", color="white", markeredgecolor="#222222", markeredgewidth=1.8, markersize=7, zorder=4)
    if not named:
        return
    text = f"p{100 * at:.3g}" + (f" (p{100 * start:.3g} to p{100 * stop:.3g})" if stop > start else "")
    left = at > 0.5
    ax.annotate(
        text,
        (at, 0),
        xytext=(-8 if left else 8, 9 if above else -9),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom" if above else "top",
        path_effects=[withStroke(linewidth=3, foreground="white")],
        zorder=5,
    )
