"""A level and a shape fitted to a series, for many shapes and correlations of the noise at once.

For each shape g and each correlation r of the noise of neighbours, ``level + beta g`` is a linear fit in
closed form. How likely g and r are follows with level, beta and the size of the noise integrated out, whose
priors are flat. Each point brings something new to the noise, ``e[i] - r e[i - 1]``, independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CORRELATIONS: Array = np.linspace(-0.5, 0.9, 15)
"""Negative ones are rare in training, but without them independent noise is taken for correlated, and
intervals of nominal 90 % hold 97 to 99 %."""
_PRIOR_OF_CORRELATION = 0.25
"""(1 - r)^0.25: with all r alike, intervals of ten points hold 95 to 96 % of independent measurements; with
sqrt(1 - r), those of noise of r = 0.7 hold 80 to 83 %."""
_NEW = 1 - CORRELATIONS**2  # how much of the variance of the noise is new in each point
_SMALLEST_SSR = 1e-12  # of the sum of squares of the values; below it rounding would decide
_CELLS = 1 << 21  # numbers in one array, 16 MB
_NODES = 48  # of the integral over the size of the noise
_EXACT = 0.25  # how likely errors are all of the noise, before the data are seen
_RATE = 0.25  # else the variance is larger by u e-folds, of density exp(-u / 4) / 4


class Series(NamedTuple):
    """What is fitted."""

    log_x: Array
    """log(t / t_end), ascending ``[N]``."""
    values: Array
    """Of the size of 1 ``[N]``."""
    weights: Array
    """What makes the noise of all points the same ``[N]``."""
    least: float
    """The variance of that noise is at least this; 0: nothing is known of it."""


@dataclass(frozen=True, eq=False)
class Fits:
    """The fits of S shapes and R correlations; ``[S, R]`` where nothing is said."""

    centre: Array
    """The mean of each shape ``[S]``: with it subtracted, level and slope are nearly independent."""
    spread: Array
    """From its smallest to its largest value ``[S]``."""
    level: Array
    """The fitted value where the shape is at its centre."""
    beta: Array
    level_precision: Array
    cross_precision: Array
    beta_precision: Array
    ssr: Array
    """The sum of squares of what is new in the noise of each point."""
    log_likelihood: Array
    """Relative; with all slopes alike before the data are seen."""
    number: int
    """Of points."""
    least: Array
    """The least variance of what is new ``[R]``."""

    def rows(self, which: NDArray[np.bool_]) -> Fits:
        """Those of some of the shapes."""
        of_shapes = [field.name for field in fields(self) if field.name not in ("number", "least")]
        return replace(self, **{name: getattr(self, name)[which] for name in of_shapes})

    def log_evidence(self) -> float:
        """How likely the data are on average over the shapes, with all changes over the data alike before."""
        log_likelihood = self.log_likelihood + np.log(self.spread)[:, None]
        largest = float(log_likelihood.max())
        return largest + math.log(float(np.exp(log_likelihood - largest).sum(1).mean()))

    def change_and_noise(self, shape: int, correlation: int) -> tuple[float, float]:
        """How far a curve goes from the first point to the last, and the standard deviation of the noise."""
        new = max(self.ssr[shape, correlation] / (self.number - 2), self.least[correlation])
        change = float(self.beta[shape, correlation] * self.spread[shape])
        return change, math.sqrt(new / _NEW[correlation])


def linear_fits(series: Series, shape: Callable[[Array], Array], parameters: Array) -> Fits:
    """Fit the shapes ``shape(parameters[i : j])``, which are ``[j - i, N]``."""
    rows = max(1, _CELLS // len(series.log_x))
    parts = [
        _sums(series, shape(parameters[first : first + rows])) for first in range(0, len(parameters), rows)
    ]
    centre, spread = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    one_one, one_g, g_g, one_y, g_y, y_y = (
        _of_new(np.concatenate([part[2][pair] for part in parts])) for pair in range(6)
    )
    determinant = one_one * g_g - one_g**2
    level = (g_g * one_y - one_g * g_y) / determinant
    beta = (one_one * g_y - one_g * one_y) / determinant
    ssr = np.maximum(y_y - level * one_y - beta * g_y, _SMALLEST_SSR * y_y)
    number, least = len(series.log_x), series.least * _NEW
    log_likelihood = (
        _log_over_noise(ssr, number - 2, least)
        - 0.5 * np.log(determinant)
        + 0.5 * np.log(_NEW)  # the first point's noise is all new
        + _PRIOR_OF_CORRELATION * np.log(1 - CORRELATIONS)
    )
    return Fits(centre, spread, level, beta, one_one, one_g, g_g, ssr, log_likelihood, number, least)


class Drawn(NamedTuple):
    """Parameters by how likely they are, all ``[D]``."""

    level: Array
    beta: Array
    noise: Array
    """Of one measurement each."""


def draw(
    found: Fits, shapes: NDArray[np.intp], correlations: NDArray[np.intp], random: np.random.Generator
) -> Drawn:
    """For each pair of a shape and a correlation ``[D]`` a noise, a slope and a level."""
    number = len(shapes)
    new = np.sqrt(_drawn_variance(found, shapes, correlations, random))
    for_beta, for_level, for_noise = random.standard_normal((3, number))
    at = shapes, correlations
    cross = found.cross_precision[at] / found.level_precision[at]
    off = new * for_beta / np.sqrt(found.beta_precision[at] - cross * found.cross_precision[at])
    level = found.level[at] - cross * off + new * for_level / np.sqrt(found.level_precision[at])
    return Drawn(level, found.beta[at] + off, new / np.sqrt(_NEW[correlations]) * for_noise)


def _sums(series: Series, g: Array) -> tuple[Array, Array, list[Array]]:
    """Of shapes ``[S, N]`` the centres, the spreads, and the sums for each pair of (1, g, y) ``[S, 3]``."""
    squared = series.weights**2
    centre, spread = g @ squared / squared.sum(), np.ptp(g, axis=1)
    g = (g - centre[:, None]) * series.weights
    one, y = series.weights[None], (series.values * series.weights)[None]
    pairs = [(one, one), (one, g), (g, g), (one, y), (g, y), (y, y)]
    return centre, spread, [np.broadcast_to(_lagged(*pair), (len(g), 3)) for pair in pairs]


def _lagged(a: Array, b: Array) -> Array:
    """Sums of products: of all points, of neighbours (both ways), of all but the two ends."""
    neighbours = _products(a[:, 1:], b[:, :-1]) + _products(a[:, :-1], b[:, 1:])
    return np.stack([_products(a, b), neighbours, _products(a[:, 1:-1], b[:, 1:-1])], -1)


def _products(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("sn,sn->s", *np.broadcast_arrays(a, b)))


def _of_new(sums: Array) -> Array:
    """Sums of products of what is new in each point ``[S, R]``: ``sqrt(1 - r^2)`` of the first is."""
    return np.asarray(sums[:, :1] - sums[:, 1:2] * CORRELATIONS + sums[:, 2:] * CORRELATIONS**2)


def _log_over_noise(ssr: Array, freedom: int, least: Array) -> Array:
    """The likelihood with the variance of what is new integrated out."""
    if not least.any():
        return np.asarray(-freedom / 2 * np.log(ssr))
    _, masses, largest = _over_noise(ssr / (2 * least), freedom / 2)
    return np.asarray(largest + np.log(masses.sum(-1)) - freedom / 2 * np.log(least))


def _drawn_variance(
    found: Fits, shapes: NDArray[np.intp], correlations: NDArray[np.intp], random: np.random.Generator
) -> Array:
    """A variance of what is new for each, by its likelihood."""
    freedom = found.number - 2
    if not found.least.any():
        return np.asarray(found.ssr[shapes, correlations] / random.chisquare(freedom, len(shapes)))
    # Many draws share a pair.
    pairs, which = np.unique(shapes * len(CORRELATIONS) + correlations, return_inverse=True)
    i, j = np.divmod(pairs, len(CORRELATIONS))
    nodes, masses, _ = _over_noise(found.ssr[i, j] / (2 * found.least[j]), freedom / 2)
    cumulated = np.cumsum(masses, -1)
    below, within = random.random((2, len(which)))
    node = (cumulated[which, :-1] < below[:, None] * cumulated[which, -1:]).sum(-1)
    u = nodes[which, node] + within * (nodes[which, node + 1] - nodes[which, node])
    return np.asarray(found.least[correlations] * np.exp(u))


def _over_noise(x: Array, a: float) -> tuple[Array, Array, Array]:
    """How likely it is that the variance is ``least * exp(u)``: nodes of u, masses between, log of the unit.

    The likelihood is ``exp(-a u - x exp(-u))`` with x = ssr / (2 least). The first mass is that of u = 0:
    with any u alike, errors that are all of the noise were made too large, and intervals of nominal 90 % held
    97.
    """
    a_ = a + _RATE
    top, width = np.log(np.maximum(x / a_, 1.0)), 8 / math.sqrt(a_)
    first = np.maximum(top - width, 0.0)
    nodes = np.linspace(first, top + width + 24 / a_, _NODES, axis=-1)
    log_values = -a_ * nodes - x[..., None] * np.exp(-nodes)
    largest = np.maximum(log_values.max(-1), -x)
    values = (1 - _EXACT) * _RATE * np.exp(log_values - largest[..., None])
    between = (values[..., 1:] + values[..., :-1]) / 2 * np.diff(nodes)
    exact = _EXACT * np.exp(-x - largest)[..., None]
    return np.concatenate([nodes[..., :1], nodes], -1), np.concatenate([exact, between], -1), largest
