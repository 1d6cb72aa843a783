"""Series made by power laws, and by what is none, with noise: for tests and benchmarks of forecasts."""

import numpy as np


def noise(random, number, correlation=0.0):
    """Noise of size 1; neighbours correlate."""
    made = random.standard_normal(number)
    for i in range(1, number if correlation else 0):
        made[i] = correlation * made[i - 1] + np.sqrt(1 - correlation**2) * made[i]
    return made


def power_law(random, c=(0.2, 1.0), rise=(0.2, 0.6), end=(0.5, 0.9), sign=1.0):
    """``f(t)``, for t from 1 on: ``rise`` is what is missing at 1."""
    c, rise, end = (random.uniform(*limits) for limits in (c, rise, end))
    return lambda t: end - sign * rise * np.asarray(t, float) ** -c


def wide_power_law(random):
    """Of more kinds."""
    return power_law(random, (0.1, 1.5), (0.1, 0.6), (0.3, 0.95))


def loss(random):
    """A falling cross-entropy."""
    return power_law(random, (0.1, 1.0), (0.5, 3.0), (2.0, 4.0), sign=-1.0)


def logistic(random, turn=(0.3, 1.2), last=80.0):
    """Logistic in log t; it turns at a part of the data's length in log t, from 1 to ``last``."""
    turn, slope = np.log(last) * random.uniform(*turn), random.uniform(0.8, 2.5)
    low, high = random.uniform(0, 0.3), random.uniform(0.5, 1)
    return lambda t: low + (high - low) / (1 + np.exp(-slope * (np.log(t) - turn)))


def late_logistic(random):
    """One that turns near the end of the data or after it."""
    return logistic(random, (0.7, 1.3))


def two_power_laws(random):
    """The sum of a fast and a slow one, which only shows after the data."""
    fast = power_law(random, (0.6, 1.5), (0.2, 0.5), (0.2, 0.4))
    slow = power_law(random, (0.05, 0.2), (0.2, 0.5), (0.3, 0.5))
    return lambda t: fast(t) + slow(t)


def decayed(random, last=80.0):
    """A power law of which the learning rate decays after the data: part of what is missing comes early."""
    f, part = power_law(random), random.uniform(0.1, 0.4)
    missing = f(1e12) - f(last)
    return lambda t: f(t) + np.where(np.asarray(t, float) > last, part * missing, 0.0)


def series(random, make=power_law, number=20, sd=0.01, correlation=0.0, last=80.0):
    """Steps from 1 to ``last``, values, and the true curve."""
    steps, curve = np.geomspace(1.0, last, number), make(random)
    return steps, curve(steps) + sd * noise(random, number, correlation), curve
