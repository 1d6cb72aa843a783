"""All power laws through a series at once: a mixture over the exponent, and what speaks against it.

The curve is ``alpha + beta (1 - (t / t_end)^-c) / c``: its value and its slope by e-fold at the end of the
data, which all exponents c have in common; c = 0 is growth in log t. There is nothing to start from and
nothing to converge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_pce.runs._linear_fits import CORRELATIONS, Array, Fits, Series, draw, linear_fits

POSITIVE: Array = np.linspace(0.03, 3.0, 181)
_PRIOR_OF_CHANGE = 0.5
"""What is alike before the data are seen: all slopes at the end (0) or all changes over the data (1). With 0
true power laws are expected to flatten too late (rmse 1 to 5 % larger than with 1), with 1 real accuracies
too early (7 % larger than with 0)."""
_LEAST_WEIGHT = 1e-10  # of the likeliest exponent: less does not count
_FEWEST_EXPONENTS = 30  # that count; with fewer the grid is laid anew where they are
_MOST_REFINEMENTS = 8


@dataclass(frozen=True, eq=False)
class PowerLaws:
    """The fits of a grid of exponents."""

    c: Array
    """Ascending ``[C]``."""
    fits: Fits

    @property
    def log_density(self) -> Array:
        """How likely each exponent and correlation is, relative and in logarithms ``[C, R]``."""
        return np.asarray(self.fits.log_likelihood + _PRIOR_OF_CHANGE * np.log(self.fits.spread)[:, None])

    @property
    def weights(self) -> Array:
        """The same as probabilities, which sum to 1; all c are alike before."""
        edges = np.concatenate([self.c[:1], (self.c[1:] + self.c[:-1]) / 2, self.c[-1:]])
        weights = np.exp(self.log_density - self.log_density.max()) * np.diff(edges)[:, None]
        return np.asarray(weights / weights.sum())

    def not_negative(self) -> PowerLaws:
        """Those of the exponents from 0 on."""
        return PowerLaws(self.c[self.c >= 0], self.fits.rows(self.c >= 0))

    def best(self) -> Best:
        """The likeliest."""
        i, j = np.unravel_index(int(np.argmax(self.log_density)), self.fits.beta.shape)
        return Best(*self.fits.change_and_noise(int(i), int(j)))


class Best(NamedTuple):
    """The likeliest curve."""

    change: float
    """From the first point to the last; negative: it falls."""
    noise: float
    """The standard deviation of what it leaves."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Curves that may be behind the data, and to each the noise of a future measurement; all ``[D]``."""

    alpha: Array
    beta: Array
    c: Array
    noise: Array

    def at(self, log_x: float) -> Array:
        """Their values where log(t / t_end) is ``log_x``, without noise."""
        return np.asarray(self.alpha + self.beta * shape(self.c, log_x))

    def asymptotes(self) -> Array:
        """Where they end: at infinity if c <= 0."""
        ends = self.alpha + self.beta / np.where(self.c > 0, self.c, 1.0)
        return np.where(self.c > 0, ends, np.copysign(np.inf, self.beta))

    def where(self, keep: NDArray[np.bool_]) -> Draws:
        return Draws(self.alpha[keep], self.beta[keep], self.c[keep], self.noise[keep])


def joined(every: Sequence[Draws]) -> Draws:
    """Draws one after the other."""
    alpha, beta, c, noise = (
        np.concatenate([getattr(draws, name) for draws in every]) for name in ("alpha", "beta", "c", "noise")
    )
    return Draws(alpha, beta, c, noise)


def shape(c: Array | float, log_x: Array | float) -> Array:
    """``(1 - x^-c) / c``, which is log x for c = 0."""
    c, log_x = np.asarray(c, np.float64), np.asarray(log_x, np.float64)
    return np.where(c == 0, log_x, -np.expm1(-c * log_x) / np.where(c == 0, 1.0, c))


def of_both_signs(series: Series) -> PowerLaws:
    """Exponents from -3 to 3: below 0 a curve accelerates even in log t."""
    return _power_laws(series, np.concatenate([-POSITIVE[::-1], [0.0], POSITIVE]))


def refined(series: Series, found: PowerLaws) -> PowerLaws:
    """The same on a grid that is fine where the weight is: of long series c is known to less than 0.01."""
    for _ in range(_MOST_REFINEMENTS):
        likely = found.weights.sum(1)
        counting = np.flatnonzero(likely > _LEAST_WEIGHT * likely.max())
        if len(counting) >= _FEWEST_EXPONENTS:
            break
        low = found.c[max(counting[0] - 1, 0)]
        high = found.c[min(counting[-1] + 1, len(likely) - 1)]
        found = _power_laws(series, np.linspace(low, high, 2 * _FEWEST_EXPONENTS + 1))
    return found


def drawn(found: PowerLaws, number: int, random: np.random.Generator) -> Draws:
    """Curves by how likely they are."""
    cumulated = np.cumsum(found.weights.ravel())
    places = (np.arange(number) + random.random()) / number * cumulated[-1]  # evenly: less is left to chance
    cells = np.searchsorted(cumulated, places).clip(0, len(cumulated) - 1)
    c, r = np.divmod(cells, len(CORRELATIONS))
    of = draw(found.fits, c, r, random)
    return Draws(of.level - of.beta * found.fits.centre[c], of.beta, found.c[c], of.noise)


class Turning(NamedTuple):
    """A curve that first accelerates and then slows down, as accuracies do."""

    log_x: float
    """Where the likeliest of them turns."""
    log_odds: float
    """How much likelier they make the data than power laws do, in logarithms."""
    best: Best


# In parts of the data's length in log t: where they turn, and how steeply.
_TURNS, _SLOPES = np.linspace(0.1, 1.2, 12), np.geomspace(2, 40, 9)


def turning(series: Series, found: PowerLaws) -> Turning:
    """Compare power laws of a wide grid to logistic curves in log t, which turn within the data."""
    length = -float(series.log_x[0])
    turns, slopes = (grid.ravel() for grid in np.meshgrid((_TURNS - 1) * length, _SLOPES / length))

    def logistic(which: Array) -> Array:
        i = which.astype(np.intp)
        return np.asarray(0.5 * np.tanh(slopes[i, None] / 2 * (series.log_x - turns[i, None])))

    curves = linear_fits(series, logistic, np.arange(len(turns), dtype=np.float64))
    log_density = curves.log_likelihood + np.log(curves.spread)[:, None]
    i, j = map(int, np.unravel_index(int(np.argmax(log_density)), log_density.shape))
    log_odds = curves.log_evidence() - found.fits.log_evidence()
    return Turning(float(turns[i]), log_odds, Best(*curves.change_and_noise(i, j)))


def _power_laws(series: Series, exponents: Array) -> PowerLaws:
    return PowerLaws(exponents, linear_fits(series, lambda c: shape(c[:, None], series.log_x), exponents))
