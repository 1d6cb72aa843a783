"""Why a series gets no forecast, each reason in one sentence; None: it is none."""

from __future__ import annotations

import math

import numpy as np

from lightning_pce.runs._forecast_input import Bounds
from lightning_pce.runs._linear_fits import Array
from lightning_pce.runs._power_law import Best, PowerLaws, Turning
from lightning_pce.runs._words import number, two_digits

_FEWEST = 6
_ROUNDING = 1e-14  # of the values
_LEAST_RISE = 4.0  # times the noise
_LEAST_EXPONENT, _LEAST_CERTAINTY = 0.05, 0.9
_MOST_ODDS = 10.0  # for a curve with a turn: of power laws 1 in 100 reaches it
_LATE_TURN = -0.1  # e-folds before the end: no points are left to fit then


def too_few(count: int) -> str | None:
    """Fewer points than can be told from a straight line."""
    if count >= _FEWEST:
        return None
    few = {0: "There are no points", 1: "1 point is too few"}.get(count, f"{count} points are too few")
    return f"{few}: a power law takes {_FEWEST}."


def constant(values: Array) -> str | None:
    """Values that are one but for rounding."""
    if np.ptp(values) > _ROUNDING * np.abs(values).max():
        return None
    return f"All values are {number(float(values[0]))}: nothing rises or falls."


def not_moving(best: Best, turn: Turning, size: float, direction: bool | None) -> str | None:
    """A rise within the noise, or in the wrong direction; ``size`` is the unit of the fit, of either sign."""
    # Of a curve that fits: of one that cannot accelerate, what accelerates is noise.
    of = turn.best if _turns(turn) else best
    risen, noise, rising = abs(of.change * size), of.noise * abs(size), of.change * size > 0
    if risen <= _LEAST_RISE * noise:
        # Not "do not rise": where noise is correlated, or no curve fits, the eye sees a rise.
        return (
            f"The values {'rise' if rising else 'fall'} by {two_digits(risen)}, less than {_LEAST_RISE:g} "
            f"times what they scatter around the curve ({two_digits(noise)}): too little to say where they "
            "go."
        )
    if direction is not None and rising != direction:
        return "The values fall, and were to rise." if direction else "The values rise, and were to fall."
    return None


def accelerating(both_signs: PowerLaws) -> str | None:
    """An exponent that may be negative as well."""
    certain = float(both_signs.weights[both_signs.c > _LEAST_EXPONENT].sum())
    if certain >= _LEAST_CERTAINTY:
        return None
    return (
        f"The values may still be accelerating, as the exponent is above {_LEAST_EXPONENT} with a "
        f"probability of {certain:.2f} only: where they end is not in the data yet."
    )


def turning(turn: Turning, last: float) -> str | None:
    """A curve that accelerates and then slows down fits better."""
    if not _turns(turn):
        return None
    step = step_name(last * math.exp(turn.log_x))
    if turn.log_x >= _LATE_TURN:
        return f"The values may still be accelerating: a curve that turns only near step {step} fits better."
    return (
        "The values first accelerate, as no power law does: a curve that turns near step "
        f"{step} fits better. Leave out the steps before."
    )


def _turns(turn: Turning) -> bool:
    return turn.log_odds > math.log(_MOST_ODDS)


def out_of_bounds(bounds: Bounds) -> str:
    """Bounds that no likely curve ends within."""
    low, high = ("any" if bound is None else number(bound) for bound in bounds)
    return f"No curve through the values ends within the bounds ({low}, {high})."


def step_name(step: float) -> str:
    """A step as it is read: ``"33,000"``, ``"6e+21"`` of compute."""
    return f"{step:,.0f}" if 100 <= step < 1e15 else f"{step:.3g}"
