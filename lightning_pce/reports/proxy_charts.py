"""A proxy of many models beside how good they are at the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_pce.reports._drawing import (
    AS_WRITTEN,
    BETTER,
    QUIET,
    new_axes,
    shown,
    shown_names,
    without_frame,
    words,
)
from lightning_pce.runs._population import check_one_row_each
from lightning_pce.runs._rank_correlation import spearman
from lightning_pce.runs._words import correlation
from lightning_pce.runs.ranking import ProxyTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 24  # so many points can have names
_SIZE = 8.0  # of the names, in points
_WIDTH = 0.6  # of a letter, over its size
# Which part of a text lies left of, or below, the place that it is aligned to.
_SHARE = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}

Floats = NDArray[np.float64]


def proxy_scatter(table: ProxyTable, name: str, task: str, *, ax: Axes | None = None) -> Axes:
    """How good models are at a task over a proxy of them, with Spearman's rho.

    Bars are one standard error of the proxy. Up to 24 models have their names. Models whose truth or proxy is
    not known, or infinite, are left out and counted.

    Args:
        table: one row for each model and task.
        name: of the proxy.
        task: of the table.
        ax: where to draw; left out: a new figure, made without pyplot, so that nothing needs closing.

    Returns:
        The axes.

    Raises:
        UserError: if there is no such proxy or task, or a model has several rows of it.

    Example:
        >>> table = ProxyTable(
        ...     ["a", "b", "c"], ["sums"] * 3, ["ce_uniform"], [[3.0], [1.0], [2.0]], truth=[0.1, 0.8, 0.5]
        ... )
        >>> proxy_scatter(table, "ce_uniform", "sums").get_title(loc="left")
        'sums: rho -1.00, 3 models'
    """
    part = table.select(tasks=[task])
    check_one_row_each(part)
    values, errors = part.column(name), part.errors[:, part.place(name)]
    known = np.isfinite(values) & np.isfinite(part.truth)
    ax = new_axes(figsize=(7, 4.8)) if ax is None else ax
    x, y, bars = values[known], part.truth[known], errors[known]
    ax.hlines(y, x - bars, x + bars, color=BETTER, linewidth=1.2, alpha=0.5)  # NaN is no bar
    ax.plot(x, y, "o", color=BETTER, markersize=5)
    ax.margins(0.1)
    if not known.any():
        words(ax, "no model with a proxy and a truth that are known")
    elif known.sum() <= _NAMED:
        names = shown_names([part.models[row] for row in np.flatnonzero(known)], 24)
        _write_names(ax, names, x, y, bars)
    ax.set_title(_title(task, x, y, int((~known).sum())), loc="left", fontsize=11, **AS_WRITTEN)
    ax.set_xlabel(f"{shown(name)}{' (nats)' if name.startswith('ce_') else ''}", **AS_WRITTEN)
    ax.set_ylabel("truth")
    without_frame(ax)
    return ax


def _title(task: str, x: Floats, y: Floats, left_out: int) -> str:
    models = f"{len(x)} model{'s' * (len(x) != 1)}"
    without = f" ({left_out} left out)" if left_out else ""
    rho = float(spearman(x, y)[0]) if len(x) else np.nan
    # A proxy that is the same of all has none either: 0 would be a finding.
    known = np.isfinite(rho) and len(set(x.tolist())) > 1
    return f"{shown(task)}: {f'rho {correlation(rho)}' if known else 'no rho'}, {models}{without}"


# Where a name stands beside its point: alignments, and the offset in points of a 72nd of an inch.
_SIDES: tuple[tuple[str, str, float, float], ...] = (
    ("center", "bottom", 0, 3),
    ("center", "top", 0, -3),
    ("left", "bottom", 3, 2),
    ("right", "bottom", -3, 2),
    ("left", "top", 3, -2),
    ("right", "top", -3, -2),
)


def _write_names(ax: Axes, names: list[str], x: Floats, y: Floats, bars: Floats) -> None:
    """Each on the side of its point where it covers least of other names, points and bars."""
    inch = 72 / ax.figure.dpi
    places, left, right = (
        ax.transData.transform(np.column_stack([x + away * np.nan_to_num(bars), y])) * inch
        for away in (0, -1, 1)
    )
    frame = np.asarray(ax.bbox.extents, dtype=np.float64) * inch
    taken = [np.concatenate([place - 3, place + 3]) for place in places]
    taken += [np.concatenate([a - 1, b + 1]) for a, b in zip(left, right, strict=True)]
    for name, place, point in zip(names, places, zip(x, y, strict=True), strict=True):
        found = [(_box(name, place, side), side) for side in _SIDES]
        box, (across, up, aside, above) = min(found, key=lambda each: _covered(each[0], taken, frame))
        taken.append(box)
        look: dict[str, Any] = {"ha": across, "va": up, "fontsize": _SIZE, "color": QUIET, **AS_WRITTEN}
        ax.annotate(name, point, xytext=(aside, above), textcoords="offset points", **look)


def _box(name: str, place: Floats, side: tuple[str, str, float, float]) -> Floats:
    """About where a name will be: left, bottom, right, top."""
    across, up, aside, above = side
    size = np.array([_WIDTH * _SIZE * len(name), 1.2 * _SIZE])
    corner = place + np.array([aside, above]) - size * np.array([_SHARE[across], _SHARE[up]])
    return np.concatenate([corner, corner + size])


def _covered(box: Floats, others: list[Floats], frame: Floats) -> float:
    """The area in common with others; what lies outside of the axes counts ten times."""
    inside = _common(box, frame)
    return sum(_common(box, each) for each in others) + 10 * (_common(box, box) - inside)


def _common(a: Floats, b: Floats) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0.0)))
