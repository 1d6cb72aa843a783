"""The fit of a power law: against least squares, under other units, and what its result promises."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_pce import runs
from lightning_pce.runs import _power_law as power_law
from lightning_pce.runs._linear_fits import _EXACT, _RATE, CORRELATIONS, Series, _log_over_noise
from lightning_pce.runs.forecasting import Forecast, fit_power_law
from tests.helpers.power_laws import loss, series


def steps_and_values(seed=0, number=20, **settings):
    steps, values, _ = series(np.random.default_rng(seed), number=number, **settings)
    return 1000 * steps, values


def numbers(forecast, factor=4.0):
    """All that a forecast says, as an array."""
    at = factor * forecast.steps[-1]
    return np.array([*forecast.asymptote, *forecast.exponent, *forecast.predict(at)[:3]])


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("r", [-0.5, 0.0, 0.7])
def test_closed_form_is_generalised_least_squares(errors, r):
    random = np.random.default_rng(1)
    steps, values, _ = series(random)
    log_x = np.log(steps / steps[-1])
    weights = random.uniform(0.5, 2, len(steps)) if errors else np.ones_like(steps)
    laws = power_law.of_both_signs(Series(log_x, values, weights, 0.0))
    j = int(np.argmin(np.abs(CORRELATIONS - r)))
    lags = np.abs(np.subtract.outer(np.arange(20), np.arange(20)))
    whiten = np.linalg.inv(np.linalg.cholesky(CORRELATIONS[j] ** lags / (1 - CORRELATIONS[j] ** 2)))
    for i in (0, 100, 181, 200, 362):  # c from -3 to 3, 0 among them
        x = np.stack([np.ones(20), power_law.shape(laws.c[i], log_x)], 1)
        design, target = whiten @ (weights[:, None] * x), whiten @ (weights * values)
        (alpha, beta), ssr, _, _ = np.linalg.lstsq(design, target, rcond=None)
        fits = laws.fits
        assert fits.beta[i, j] == pytest.approx(beta, rel=1e-8)
        assert fits.level[i, j] - beta * fits.centre[i] == pytest.approx(alpha, rel=1e-8)
        assert fits.ssr[i, j] == pytest.approx(ssr[0], rel=1e-8)
        determinant = fits.level_precision[i, j] * fits.beta_precision[i, j] - fits.cross_precision[i, j] ** 2
        assert determinant == pytest.approx(np.linalg.det(design.T @ design), rel=1e-6)


def test_size_of_the_noise_is_integrated_out_as_a_fine_sum_does():
    """Errors are all of the noise, or too small by exp(-u / 2) with u exponential."""
    ssr, least, u = np.geomspace(0.1, 1000, 9)[:, None], np.array([0.5]), np.linspace(0, 30, 60_001)
    for freedom in (4, 18, 400):
        exact = []
        for x in ssr[:, 0]:
            log_likelihood = -freedom / 2 * u - x * np.exp(-u)  # of the variance 0.5 * exp(u)
            largest = log_likelihood.max()
            likelihood = np.exp(log_likelihood - largest)
            over_u = (likelihood * _RATE * np.exp(-_RATE * u)).sum() * (u[1] - u[0])
            exact.append(largest + np.log(_EXACT * likelihood[0] + (1 - _EXACT) * over_u))
        ours = _log_over_noise(ssr, freedom, least)[:, 0]
        assert ours - ours[0] == pytest.approx(np.array(exact) - exact[0], abs=0.03)


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize(
    ("of_steps", "of_values", "shift"),
    [
        (1e-9, 1.0, 0.0),
        (1e9, 1.0, 0.0),
        (1.0, 1e-9, 0.0),
        (1.0, 1e12, 0.0),
        (1.0, 1.0, -3.0),
        (7.0, 3.0, 1e4),
    ],
)
def test_other_units_give_the_same_forecast(errors, of_steps, of_values, shift):
    steps, values = steps_and_values()
    error = np.full(20, 0.008) if errors else None
    plain = fit_power_law(steps, values, error, bounds=(0, 1))
    other = fit_power_law(
        of_steps * steps,
        of_values * values + shift,
        None if error is None else of_values * error,
        bounds=(shift, of_values + shift),
    )
    expected = numbers(plain)
    expected[[0, 1, 2, 6, 7, 8]] = of_values * expected[[0, 1, 2, 6, 7, 8]] + shift
    np.testing.assert_allclose(numbers(other) - shift, expected - shift, rtol=1e-5)
    gain, far = 0.01, 10 * steps[-1]
    assert other.chance_below(of_values * gain, of_steps * far) == pytest.approx(
        plain.chance_below(gain, far), abs=2e-3
    )


def test_a_falling_series_is_a_rising_one_in_a_mirror():
    steps, values = steps_and_values()
    rising = fit_power_law(steps, values, bounds=(0, 1))
    falling = fit_power_law(steps, -values, bounds=(-1, 0))
    assert (rising.rising, falling.rising) == (True, False)
    up, down = rising.predict(4 * steps[-1]), falling.predict(4 * steps[-1])
    assert [-down.median, -down.high, -down.low] == pytest.approx([up.median, up.low, up.high], rel=1e-9)
    assert -falling.asymptote.median == pytest.approx(rising.asymptote.median, rel=1e-9)
    # An improvement is positive in both.
    gains = (0.0, 0.01, 0.03)
    assert [falling.chance_below(gain, 4 * steps[-1]) for gain in gains] == pytest.approx(
        [rising.chance_below(gain, 4 * steps[-1]) for gain in gains], rel=1e-9
    )


def test_a_power_law_without_noise_is_found():
    steps = np.geomspace(100, 8000, 12)
    for c in (0.2, 0.5, 1.3):
        forecast = fit_power_law(steps, 0.8 - 3 * steps**-c)
        assert forecast.refused is None
        assert forecast.exponent.median == pytest.approx(c, abs=1e-3)
        assert forecast.asymptote.median == pytest.approx(0.8, abs=1e-3)
        later = forecast.predict(144_000)
        assert later.median == pytest.approx(0.8 - 3 * 144_000**-c, abs=1e-3)
        assert later.high - later.low < 1e-3


def test_a_long_series_knows_its_exponent_better_than_the_first_grid():
    steps = np.arange(1, 3001.0)
    random = np.random.default_rng(0)
    forecast = fit_power_law(steps, 0.8 - 0.5 * steps**-0.3 + 1e-4 * random.standard_normal(3000))
    assert forecast.exponent.high - forecast.exponent.low < 0.002
    assert forecast.exponent.low < 0.3 < forecast.exponent.high


def test_order_of_the_points_does_not_matter_and_a_seed_gives_the_same_again():
    steps, values = steps_and_values()
    mixed = np.random.default_rng(1).permutation(20)
    error = np.linspace(0.01, 0.02, 20)
    one, other = fit_power_law(steps, values, error), fit_power_law(steps[mixed], values[mixed], error[mixed])
    assert list(numbers(one)) == list(numbers(other))
    np.testing.assert_array_equal(other.steps, steps)
    np.testing.assert_array_equal(other.values, values)
    np.testing.assert_array_equal(other.errors, error)
    third = fit_power_law(steps, values, error, seed=1)
    assert 0 < np.abs(numbers(third) - numbers(one)).max() < 0.01


def test_draws_are_enough_for_the_ends_of_the_interval():
    steps, values = steps_and_values()
    ends = np.array(
        [fit_power_law(steps, values, seed=seed).predict(4 * steps[-1])[1:3] for seed in range(12)]
    )
    assert (ends.std(0) < 0.02 * np.ptp(ends.mean(0))).all()


def test_lists_and_tensors_are_taken_too():
    steps, values = steps_and_values()
    expected = list(numbers(fit_power_law(steps, values)))
    assert list(numbers(fit_power_law(list(steps), list(values)))) == expected
    tensors = torch.tensor(steps, requires_grad=True), torch.tensor(values)
    assert list(numbers(fit_power_law(*tensors))) == expected
    low = fit_power_law(torch.tensor(steps).bfloat16(), torch.tensor(values).bfloat16())
    assert numbers(low)[0] == pytest.approx(expected[0], abs=0.05)
    compute = [int(step) * 10**24 for step in steps]  # more than 64 bits
    assert fit_power_law(compute, values).steps[-1] == 80_000 * 1e24
    hidden = np.ma.masked_array(values, mask=np.arange(20) < 3)
    assert fit_power_law(steps, hidden).dropped == 3


def test_what_no_curve_goes_through_is_left_out_and_counted():
    steps, values = steps_and_values()
    error = np.full(20, 0.01)
    plain = fit_power_law(steps, values, error)
    more = fit_power_law(
        [0, -5, np.inf, *steps, 1e9, 2e9],
        [0.1, 0.2, 0.3, *values, np.nan, 0.9],
        [0.01, 0.01, 0.01, *error, 0.01, np.nan],
    )
    assert plain.dropped == 0
    assert plain.warnings == ()
    assert more.dropped == 5
    assert more.warnings == ("5 points were left out: not finite, or at a step that is not above 0.",)
    assert list(numbers(more)) == list(numbers(plain))
    assert more.warnings[0] in str(more)


def test_errors_are_weights_and_the_least_noise():
    steps, values = steps_and_values(sd=0.0)
    later = 4 * steps[-1]
    random = np.random.default_rng(0)
    values = values + 0.003 * random.standard_normal(20)

    def width(errors):
        interval = fit_power_law(steps, values, errors).predict(later)
        return interval.high - interval.low

    unknown = width(None)
    assert width(np.full(20, 0.02)) > 4 * unknown
    assert width(np.full(20, 0.0001)) == pytest.approx(unknown, rel=0.2)  # the residuals say more
    bad = values.copy()
    bad[12] -= 0.1  # a wrong value with a large error does not count
    error = np.full(20, 0.003)
    error[12] = 1.0
    expected = fit_power_law(steps, values, np.full(20, 0.003)).predict(later)
    assert fit_power_law(steps, bad, error).predict(later).median == pytest.approx(expected.median, abs=0.003)


def test_an_error_of_0_is_no_infinite_weight():
    steps, values = steps_and_values()
    error = np.full(20, 0.01)
    error[3] = 0.0
    forecast = fit_power_law(steps, values, error)
    assert forecast.warnings == ("1 error is taken for 0.005, half the median one.",)
    assert forecast.errors.min() == 0.005
    expected = fit_power_law(steps, values, np.full(20, 0.01)).predict(4 * steps[-1])
    assert forecast.predict(4 * steps[-1]).median == pytest.approx(expected.median, abs=0.01)
    none = fit_power_law(steps, values, np.zeros(20))
    assert none.errors is None
    assert none.warnings == ("All errors are 0: they are not used.",)
    assert list(numbers(none)) == list(numbers(fit_power_law(steps, values)))


def test_bounds_hold_the_asymptote_and_what_moves_towards_them():
    steps, values = steps_and_values(make=lambda random: lambda t: 1.05 - 0.8 * t**-0.15)
    free, held = fit_power_law(steps, values), fit_power_law(steps, values, bounds=(0, 1))
    far = 1000 * steps[-1]
    assert free.predict(far, force=True).high > 1
    assert held.predict(far, force=True).high <= 1
    assert held.curve([far, 2 * far], force=True).high.max() <= 1
    assert held.asymptote.median < 1 < free.asymptote.median
    assert held.asymptote.high <= 1
    # The other bound is no bound of the values: they are above the highest loss that they may end at.
    steps, values, _ = series(np.random.default_rng(0), loss, sd=0.01)
    ends_low = fit_power_law(steps, values, bounds=(0, values.min()))
    assert ends_low.predict(steps[3]).median > values.min()
    assert (ends_low.bounds, ends_low.asymptote.high <= values.min()) == ((0, values.min()), True)


def test_a_curve_is_its_predictions_and_the_data_lie_in_it():
    steps, values = steps_and_values()
    forecast = fit_power_law(steps, values)
    curve = forecast.curve(steps)
    assert ((curve.low < values) & (values < curve.high)).mean() >= 0.85
    assert (curve.median[4], curve.low[4], curve.high[4]) == forecast.predict(steps[4])[:3]
    assert len(forecast.curve([]).median) == 0
    wider = fit_power_law(steps, values, level=0.99).predict(steps[-1])
    assert wider.low < forecast.predict(steps[-1]).low < forecast.predict(steps[-1]).high < wider.high


def test_chance_below_is_of_the_curve():
    steps, values = steps_and_values()
    forecast = fit_power_law(steps, values)
    later = 3 * steps[-1]
    gain = forecast.predict(later).median - forecast.predict(steps[-1]).median
    chances = [forecast.chance_below(each, later) for each in (-1, 0, gain / 2, gain, 2 * gain, 1)]
    assert chances == sorted(chances)
    assert (chances[0], chances[-1]) == (0, 1)
    assert chances[1] < 0.01  # it rises, whatever the noise of a measurement
    assert 0.3 < chances[3] < 0.7
    assert forecast.chance_below(1e-9, steps[-1]) == 1


def test_beyond_four_times_the_last_step_it_warns():
    steps, values = steps_and_values()
    forecast = fit_power_law(steps, values)
    assert forecast.predict(4 * steps[-1]).warning is None
    assert "18 times the last one" in forecast.predict(18 * steps[-1]).warning
    assert len(forecast.predict(1e300).warning) < 250


def test_it_reads_as_sentences():
    steps, values = steps_and_values(sd=1e-4, make=lambda random: lambda t: 0.8 - 0.5 * t**-0.5)
    text = str(fit_power_law(steps, values))
    assert text.startswith("A power law through 20 points up to step 80,000 rises to 0.800 [0.800, 0.800]")
    assert "in the end, with an exponent of 0.5 [0.5, 0.5]" in text
    assert "(90 % intervals). Beyond step 320,000" in text
    assert str(fit_power_law(steps[:3], values[:3])) == (
        "No forecast from 3 points up to step 1,586: 3 points are too few: a power law takes 6."
    )


def test_it_is_public_and_needs_no_torch():
    assert (runs.fit_power_law, runs.Forecast) == (fit_power_law, Forecast)
    code = (
        "import sys; from lightning_pce.runs import fit_power_law; "
        "fit_power_law(range(1, 9), [1, 2, 3, 4, 4.5, 4.7, 4.9, 5]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
