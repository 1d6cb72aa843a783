"""Quantiles of Student's t for whole degrees of freedom, and the normal distribution: SciPy is not needed."""

from __future__ import annotations

import math
from functools import lru_cache

_LARGEST = 1e100


@lru_cache(maxsize=256)
def t_for(level: float, degrees: int) -> float:
    """The t within which Student's distribution holds ``level`` of its mass, in (0, 1), by bisection.

    Example:
        >>> round(t_for(0.95, 19), 3)
        2.093
    """
    low, high = 0.0, 1.0
    # Rounded, the mass may never reach a level that is nearly 1.
    while t_mass(high, degrees) < level and high < _LARGEST:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if t_mass(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return high


def t_mass(t: float, degrees: int) -> float:
    """The mass of Student's distribution between -t and t (Abramowitz and Stegun, 26.7.3 and 4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    # Even: sin (1 + 1/2 cos^2 + 1*3/(2*4) cos^4 ...). Odd: 2/pi (angle + sin (cos + 2/3 cos^3 ...)).
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def normal_mass(t: float) -> float:
    """The mass of the normal distribution between -t and t."""
    return math.erf(t / math.sqrt(2))
