"""How often a forecast holds what is measured later; benchmarks/forecasting.py has more."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from lightning_pce.runs.forecasting import fit_power_law
from tests.helpers.power_laws import late_logistic, series, wide_power_law

FACTORS = np.array([4.0, 18.0])


def held_and_kept(count, sd=0.01, errors=False, bounds=None, **how):
    """Shares of measurements in the intervals at 4 and 18 times the last step, and of series kept."""
    random, held, kept = np.random.default_rng(3), [], []
    for _ in range(count):
        steps, values, curve = series(random, sd=sd, **how)
        forecast = fit_power_law(steps, values, np.full(len(steps), sd) if errors else None, bounds)
        later = curve(FACTORS * steps[-1]) + sd * random.standard_normal(2)
        predicted = [forecast.predict(at, force=True) for at in FACTORS * steps[-1]]
        held.append([each.low <= true <= each.high for each, true in zip(predicted, later, strict=True)])
        kept.append(forecast.refused is None)
    return np.array(held).mean(0), np.mean(kept)


# 400 series: 90 % is measured to 1.5 %.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "least", "most"),
    [
        ({}, 0.87, 0.97),
        ({"make": wide_power_law, "number": 30}, 0.87, 0.97),
        ({"bounds": (0, 1)}, 0.87, 0.97),
        ({"errors": True}, 0.87, 0.98),
        ({"correlation": 0.7}, 0.79, 0.92),
    ],
)
def test_intervals_hold_nine_in_ten(how, least, most):
    held, kept = held_and_kept(400, **how)
    assert (least < held).all()
    assert (held < most).all()
    assert kept > 0.9


@pytest.mark.slow
def test_what_has_not_turned_yet_is_refused():
    for number in (10, 30):
        assert held_and_kept(200, number=number, make=late_logistic)[1] <= 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of SciPy, on its way from a bad start
def test_it_is_as_good_as_scipy_with_a_start_value_and_better_without():
    """In raw steps SciPy from ones ends elsewhere in some series, without a word."""
    random, errors = np.random.default_rng(0), []
    for _ in range(150):
        steps, values, curve = series(random)
        steps, true = 1000 * steps, curve(18 * steps[-1])

        def law(t, a, b, c):
            return a - b * t**-c

        x = steps / steps[-1]
        start, bounds = (values[-1], 0.1, 0.5), ([-np.inf, -np.inf, 0], [np.inf, np.inf, 3])
        near = law(18.0, *curve_fit(law, x, values, p0=start, bounds=bounds)[0])
        far = law(18 * steps[-1], *curve_fit(law, steps, values, p0=(1, 1, 1), maxfev=5000)[0])
        ours = fit_power_law(steps, values).predict(18 * steps[-1], force=True).median
        errors.append([guess - true for guess in (ours, near, far)])
    ours, near, far = np.sqrt(np.mean(np.square(errors), 0))
    assert ours < 1.05 * near
    assert ours < 0.85 * far
