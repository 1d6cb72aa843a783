"""Where a series of validations is going: a power law with an error bar, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.runs import _forecast_refusals as reasons
from lightning_pce.runs import _power_law as power_law
from lightning_pce.runs._forecast_input import (
    Array,
    Bounds,
    Points,
    checked_bounds,
    checked_gain,
    checked_level,
    checked_rising,
    checked_step,
    checked_steps,
    points,
)
from lightning_pce.runs._forecast_refusals import step_name
from lightning_pce.runs._linear_fits import Series
from lightning_pce.runs._seeds import checked_seed
from lightning_pce.runs._words import number, two_digits

__all__ = ["Curve", "Estimate", "Forecast", "Prediction", "fit_power_law"]

_FEWEST_FORCED = 4
_FARTHEST = 4.0  # times the last step: beyond it the form of the curve is the error, which no interval knows
_DRAWS = 8192  # the 5 % and 95 % quantiles are then stable to 1 % of the interval
_FEWEST_DRAWS, _ROUNDS = 400, 8
_LATE = 4  # one in so many points is a late one


class Estimate(NamedTuple):
    """A number with its interval; nan where nothing could be fitted."""

    median: float
    low: float
    high: float


class Prediction(NamedTuple):
    """What a measurement at a step will be."""

    median: float
    """As likely to be passed as not."""
    low: float
    """Lower end of the interval of probability ``level``, as likely to be missed as the upper one."""
    high: float
    """Upper end."""
    warning: str | None
    """Why the interval may be too narrow; None: no reason known."""


class Curve(NamedTuple):
    """Predictions at many steps, all ``[S]``."""

    steps: Array
    median: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Forecast:
    """A power law through a series, as :func:`fit_power_law` makes it; its text says it in sentences."""

    steps: Array
    """The steps used, ascending ``[N]``."""
    values: Array
    errors: Array | None
    """As they were used: none below half the median one."""
    dropped: int
    """How many points were left out."""
    level: float
    """Of all intervals."""
    bounds: Bounds
    """Of the asymptote."""
    rising: bool | None
    """Whether the curve rises; None: nothing was fitted."""
    asymptote: Estimate
    """Where the curve ends; infinite, or at a bound, where growth in log t is likely too."""
    exponent: Estimate
    """c of ``a - b t^-c``."""
    refused: str | None
    """Why no forecast is made; None: one is."""
    warnings: tuple[str, ...]
    """What was done to the data."""
    _draws: power_law.Draws | None = field(repr=False)

    def predict(self, step: float, *, force: bool = False) -> Prediction:
        """Predict a measurement at a step, which may lie within the data too.

        Args:
            step: of any kind the series had.
            force: predict although a forecast is refused.

        Returns:
            Median and interval of what will be *measured*, noise included: that of the series, or with errors
            that of its late ones. A bound that the curve moves towards is not passed.

        Raises:
            UserError: if the forecast is refused, or the step is not a finite number above 0.
        """
        at = checked_step(step)
        low, median, high = self._quantiles(self._measured(at, force))
        return Prediction(median, low, high, self._warning(at))

    def curve(self, steps: object, *, force: bool = False) -> Curve:
        """Predict measurements at many steps, for a picture.

        Args:
            steps: ``[S]``, in any order.
            force: predict although a forecast is refused.

        Returns:
            At each step what :meth:`predict` gives; :meth:`predict` has the warnings too.

        Raises:
            UserError: as :meth:`predict` does.
        """
        at = checked_steps(steps)
        rows = [self._quantiles(self._measured(float(step), force)) for step in at]
        low, median, high = np.array(rows, np.float64).reshape(-1, 3).T
        return Curve(at, median, low, high)

    def chance_below(self, gain: float, step: float, *, force: bool = False) -> float:
        """How likely the curve gains less than ``gain`` from the last step of the data to ``step``.

        Args:
            gain: in units of the values; an improvement is positive: upwards in a series that rises,
                downwards in one that falls.
            step: where the run would end.
            force: answer although a forecast is refused.

        Returns:
            Between 0 and 1; of the curve, without the noise of a measurement.

        Raises:
            UserError: as :meth:`predict` does.
        """
        least, at = checked_gain(gain), checked_step(step)
        draws = self._usable(force)
        gained = self._within_bounds(draws.at(math.log(at / self.steps[-1]))) - self._within_bounds(
            draws.alpha
        )
        return float(np.mean((gained if self.rising else -gained) < least))

    def __str__(self) -> str:
        points = f"{len(self.steps)} points"
        if len(self.steps):
            points += f" up to step {step_name(float(self.steps[-1]))}"
        sentences = [f"No forecast from {points}: {self.refused}"] if self.refused else self._said(points)
        return " ".join([*sentences, *self.warnings])

    def _said(self, points: str) -> list[str]:
        to, c = self.asymptote, self.exponent
        return [
            f"A power law through {points} {'rises' if self.rising else 'falls'} to "
            f"{number(to.median)} [{number(to.low)}, {number(to.high)}] in the end, with an exponent of "
            f"{two_digits(c.median)} [{two_digits(c.low)}, {two_digits(c.high)}] "
            f"({100 * self.level:g} % intervals).",
            f"Beyond step {step_name(_FARTHEST * float(self.steps[-1]))} the intervals do not know whether "
            "it stays a power law.",
        ]

    def _usable(self, force: bool) -> power_law.Draws:
        if self.refused is not None and not force:
            raise UserError(f"No forecast: {self.refused} (force=True makes it all the same.)")
        if self._draws is None:
            raise UserError(f"No forecast, not even by force: {self.refused}")
        return self._draws

    def _measured(self, step: float, force: bool) -> Array:
        draws = self._usable(force)
        return self._within_bounds(draws.at(math.log(step / self.steps[-1])) + draws.noise)

    def _within_bounds(self, values: Array) -> Array:
        return _stopped(values, self.bounds, bool(self.rising))

    def _quantiles(self, values: Array) -> tuple[float, float, float]:
        return _quantiles(values, self.level)

    def _warning(self, step: float) -> str | None:
        times = step / self.steps[-1]
        if times <= _FARTHEST:
            return None
        return (
            f"Step {step_name(step)} is {two_digits(times)} times the last one: beyond {_FARTHEST:g} times "
            "real runs leave the form of the curve, and the interval does not know it."
        )


def fit_power_law(
    steps: object,
    values: object,
    errors: object = None,
    bounds: object = None,
    rising: bool | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Forecast:
    """Fit ``f(t) = a - b t^-c`` to a series, or say why it should not be extended.

    The fit needs no start values and always ends; see docs/forecasting.md for what it was measured to cover.

    Args:
        steps: steps, tokens or compute of the measurements, in any order; distinct ``[N]``. What is not
            finite, or at a step of 0 and less, is left out and counted.
        values: what was measured ``[N]``.
        errors: its standard errors ``[N]``: they are weights, and the noise is taken to be as large at
            least. None: the noise is learned from the residuals alone.
        bounds: (lowest, highest) of what the curve may end at, None for no such bound: (0, 1) for an
            accuracy, (0, None) for a cross-entropy, an entropy or the logarithm of a rank.
        rising: whether the series has to rise (True) or to fall (False); None: the data say.
        level: the probability that an interval holds what will be measured, above 0 and at most 0.999.
        seed: of the draws that intervals are made of; equal seeds give equal results.

    Returns:
        The forecast; where ``refused`` is not None, it predicts only by force.

    Raises:
        UserError: if the arguments are no series. Too little or unsuited data are no error: they are refused.

    Example:
        >>> steps = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000]
        >>> forecast = fit_power_law(steps, [3.52, 3.31, 3.12, 2.98, 2.87, 2.78, 2.71], bounds=(0, None))
        >>> print(forecast.refused)
        None
        >>> later = forecast.predict(128_000)
        >>> 2.6 < later.low < later.median < later.high < 2.71
        True
    """
    data = points(steps, values, errors)
    within, direction = checked_bounds(bounds), checked_rising(rising)
    level, seed = checked_level(level), checked_seed(seed)
    unknown = Estimate(math.nan, math.nan, math.nan)
    empty = Forecast(
        *data[:4], level, within, None, unknown, unknown, refused=None, warnings=data.notes, _draws=None
    )
    refused = reasons.too_few(len(data.steps)) if len(data.steps) < _FEWEST_FORCED else None
    refused = refused or reasons.constant(data.values)
    return replace(empty, refused=refused) if refused else _fitted(empty, data, direction, seed)


def _fitted(empty: Forecast, data: Points, direction: bool | None, seed: int) -> Forecast:
    """The forecast of a series that a curve can go through."""
    log_x = np.log(data.steps / data.steps[-1])
    middle, size = float(np.mean(data.values)), float(np.ptp(data.values))
    if (data.values - middle) @ (log_x - np.mean(log_x)) < 0:
        size = -size  # what falls is fitted in a mirror, draw by draw
    scaled = (data.values - middle) / size
    weights, least = np.ones_like(scaled), 0.0
    if data.errors is not None:
        # A future measurement will have the error of a late one.
        typical = float(np.median(data.errors[-max(3, len(log_x) // _LATE) :]))
        weights, least = typical / data.errors, (typical / size) ** 2
    series = Series(log_x, scaled, weights, least)
    both_signs = power_law.of_both_signs(series)
    coarse = both_signs.not_negative()
    found = power_law.refined(series, coarse)
    draws, inside = _drawn(found, middle, size, empty.bounds, seed)
    rising = found.best().change * size > 0
    turn = power_law.turning(series, coarse)
    refused = (
        reasons.too_few(len(log_x))
        or reasons.not_moving(both_signs.best(), turn, size, direction)
        or reasons.accelerating(both_signs)
        or reasons.turning(turn, float(data.steps[-1]))
        or (None if inside else reasons.out_of_bounds(empty.bounds))
    )
    return replace(
        empty,
        rising=rising,
        asymptote=_estimate(_stopped(draws.asymptotes(), empty.bounds, rising), empty.level),
        exponent=_estimate(draws.c, empty.level),
        refused=refused,
        _draws=draws,
    )


def _drawn(
    found: power_law.PowerLaws, middle: float, size: float, bounds: Bounds, seed: int
) -> tuple[power_law.Draws, bool]:
    """Curves in the units of the values that end within the bounds; all, and False, if too few do."""
    random = np.random.default_rng(seed)
    low, high = (
        (-math.inf if bounds[0] is None else bounds[0]),
        (math.inf if bounds[1] is None else bounds[1]),
    )
    inside: list[power_law.Draws] = []
    for _ in range(_ROUNDS):
        every = power_law.drawn(found, _DRAWS, random)
        every = power_law.Draws(every.alpha * size + middle, every.beta * size, every.c, every.noise * size)
        ends = every.asymptotes()
        inside.append(every.where((every.c <= 0) | ((low <= ends) & (ends <= high))))
        if sum(len(draws.c) for draws in inside) >= _DRAWS:
            break
    kept = power_law.joined(inside)
    # Growth in log t ends nowhere: alone, it says nothing of the bounds.
    ending = int((kept.c > 0).sum())
    return (kept, True) if ending >= max(_FEWEST_DRAWS, len(kept.c) / 2) else (every, False)


def _stopped(values: Array, bounds: Bounds, rising: bool) -> Array:
    """What moves towards a bound stops there."""
    # The other bound says nothing of values: a loss is now above the highest loss it may end at.
    bound = bounds[1] if rising else bounds[0]
    if bound is None:
        return values
    return np.minimum(values, bound) if rising else np.maximum(values, bound)


def _estimate(draws: Array, level: float) -> Estimate:
    low, median, high = _quantiles(draws, level)
    return Estimate(median, low, high)


def _quantiles(draws: Array, level: float) -> tuple[float, float, float]:
    """Lower end, median and upper end; the ends not interpolated, as asymptotes may be infinite."""
    ordered = np.sort(draws)
    last = len(ordered) - 1
    tail = round((1 - level) / 2 * last)
    median = (ordered[last // 2] + ordered[last - last // 2]) / 2
    return float(ordered[tail]), float(median), float(ordered[last - tail])
