"""Which series get no forecast, and which arguments are no series."""

import re

import numpy as np
import pytest
import torch

from lightning_pce._errors import UserError
from lightning_pce.runs.forecasting import fit_power_law
from tests.helpers.power_laws import late_logistic, logistic, loss, power_law, series

STEPS = np.geomspace(1000, 80_000, 20)
VALUES = 0.8 - 20 * STEPS**-0.5


def made(make, seed=0, **settings):
    steps, values, _ = series(np.random.default_rng(seed), make, **settings)
    return steps, values


FLAT = 0.5 + 0.01 * np.random.default_rng(0).standard_normal(20)
REFUSED = {
    "no points": (([], []), {}, "There are no points: a power law takes 6"),
    "one point": (([5.0], [1.0]), {}, "1 point is too few"),
    "five points": ((STEPS[:5], VALUES[:5]), {}, "5 points are too few: a power law takes 6"),
    "only step 0": (([0, 0, 0], [1, 2, 3]), {}, "There are no points: a power law takes 6"),
    "constant": ((STEPS, np.full(20, 0.25)), {}, "All values are 0.250: nothing rises or falls"),
    "constant but for rounding": (
        (STEPS, 0.1 + 0.2 + 1e-16 * (STEPS > 9e3)),
        {},
        "All values are 0.300: nothing rises or falls",
    ),
    "noise": ((STEPS, FLAT), {}, "less than 4 times what they scatter"),
    "two values in turn": ((STEPS, np.arange(20) % 2), {}, "less than 4 times what they scatter"),
    "less than errors": ((STEPS, VALUES, np.full(20, 0.2)), {}, "less than 4 times what they scatter"),
    "falls": ((STEPS, -VALUES), {"rising": True}, "fall, and were to rise"),
    "rises": ((STEPS, VALUES), {"rising": False}, "rise, and were to fall"),
    "linear": ((STEPS, STEPS / 1e5), {}, "may still be accelerating"),
    "log t": ((STEPS, np.log(STEPS) / 20 + 0.001 * FLAT), {}, "may still be accelerating"),
    "turns late": (made(late_logistic), {}, "may still be accelerating"),
    # The best power law that decelerates leaves all of the rise as noise: that is not the reason.
    "an accuracy that just rises": (
        (STEPS, 0.36 / (1 + (10_000 / STEPS) ** 3), np.full(20, 0.03)),
        {},
        "may still be accelerating",
    ),
    "one step": ((STEPS, (STEPS > 9_000) * 1.0), {}, "accelerat"),
    "turned early": (
        made(lambda random: logistic(random, (0.45, 0.46)), number=30, sd=0.003),
        {},
        "curve that turns near step .* Leave out the steps before|may still be accelerating",
    ),
    "out of bounds": ((STEPS, VALUES), {"bounds": (0, 0.75)}, r"ends within the bounds \(0, 0.750\)"),
    "below its bounds": ((STEPS, VALUES), {"bounds": (0.9, None)}, r"ends within the bounds \(0.900, any\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_series_that_cannot_be_extended_is_refused_in_one_sentence(case):
    arguments, settings, reason = REFUSED[case]
    forecast = fit_power_law(*arguments, **settings)
    assert forecast.refused is not None
    assert re.search(reason, forecast.refused), forecast.refused
    assert str(forecast).startswith("No forecast from")
    for asked in (
        lambda: forecast.predict(1e6),
        lambda: forecast.curve([1e5, 1e6]),
        lambda: forecast.chance_below(0.01, 1e6),
    ):
        with pytest.raises(UserError, match=r"No forecast: .*force=True") as error:
            asked()
        assert "\n" not in str(error.value)


def test_force_predicts_all_the_same_where_there_is_a_curve():
    forecast = fit_power_law(*REFUSED["linear"][0])
    forced = forecast.predict(160_000, force=True)
    assert forced.low < forced.median < forced.high
    assert len(forecast.curve([1e5], force=True).median) == 1
    assert 0 <= forecast.chance_below(0.1, 160_000, force=True) <= 1
    held = fit_power_law(STEPS, VALUES, bounds=(0, 0.75)).predict(1e6, force=True)  # then without the bounds
    assert held.median == 0.75
    for case in ("no points", "one point", "constant"):
        with pytest.raises(UserError, match="not even by force"):
            fit_power_law(*REFUSED[case][0]).predict(1e6, force=True)


def test_unknown_numbers_are_nan():
    forecast = fit_power_law([], [])
    assert np.isnan([*forecast.asymptote, *forecast.exponent]).all()
    assert forecast.rising is None


@pytest.mark.parametrize("make", [power_law, loss])
def test_most_power_laws_are_kept(make):
    refused = [fit_power_law(*made(make, seed, number=30)).refused for seed in range(40)]
    assert sum(reason is None for reason in refused) >= 36


def test_a_direction_that_is_right_changes_nothing():
    plain, told = fit_power_law(STEPS, VALUES), fit_power_law(STEPS, VALUES, rising=True)
    assert told.refused is None
    assert told.predict(1e5) == plain.predict(1e5)


WRONG = {
    "lengths": ((STEPS, VALUES[:-1]), {}, "20 steps, 19 values"),
    "length of errors": ((STEPS, VALUES, [0.1]), {}, "20 steps, 20 values, 1 errors"),
    "a step twice": (
        ([1, 2, 2, 3], [1, 2, 3, 4]),
        {},
        "`steps` to be distinct but got step 2 more than once",
    ),
    "negative errors": ((STEPS, VALUES, -0.1 * VALUES), {}, "`errors` to be at least 0 but got -0.0"),
    "strings": ((STEPS, ["0.1"] * 20), {}, "`values` to be numbers but got"),
    "None": ((STEPS, [None] * 20), {}, "`values` to be numbers but got .* None.*nan"),
    "bools": ((STEPS, [True, False] * 10), {}, "`values` to be numbers but got bool"),
    "complex": ((STEPS + 0j, VALUES), {}, "`steps` to be numbers but got complex128"),
    "a table": ((STEPS, VALUES[None]), {}, r"`values` to be a list of numbers but got the shape \(1, 20\)"),
    "a number": ((5, 6), {}, r"`steps` to be a list of numbers but got the shape \(\)"),
    "tensors in a list": ((STEPS, [torch.tensor(1.0, requires_grad=True)] * 20), {}, "`values` to be a list"),
    "too large a number": (([*STEPS[1:], 10**400], VALUES), {}, "`steps` to be a list of numbers"),
    "ragged": ((STEPS, [[1], [1, 2]]), {}, "`values` to be a list of numbers"),
    "steps too wide": (([1e-40, *STEPS], [0, *VALUES]), {}, "within a factor of 1e"),
    "huge values": ((STEPS, VALUES * 1e200), {}, "`values` to be below"),
    "one bound": ((STEPS, VALUES), {"bounds": 1}, "`bounds` to be a pair"),
    "bounds in the wrong order": ((STEPS, VALUES), {"bounds": (1, 0)}, "a lower and an upper one"),
    "a lower bound of infinity": ((STEPS, VALUES), {"bounds": (np.inf, None)}, "a lower and an upper one"),
    "bounds of words": ((STEPS, VALUES), {"bounds": ("0", 1)}, "`bounds` to be a number but got '0'"),
    "level": ((STEPS, VALUES), {"level": 90}, "`level` to be above 0 and at most 0.999 but got 90"),
    "more than draws tell": ((STEPS, VALUES), {"level": 0.9999}, "at most 0.999 but got 0.9999"),
    "level in words": ((STEPS, VALUES), {"level": "90 %"}, "`level` to be a number"),
    "seed": ((STEPS, VALUES), {"seed": -1}, "`seed` to be a whole number from 0 on but got -1"),
    "half a seed": ((STEPS, VALUES), {"seed": 0.5}, "`seed` to be a whole number"),
    "rising": ((STEPS, VALUES), {"rising": "up"}, "`rising` to be True, False or None but got 'up'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_in_one_line(case):
    arguments, settings, message = WRONG[case]
    with pytest.raises(UserError, match=message) as error:
        fit_power_law(*arguments, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("step", [0, -1, np.nan, np.inf, "soon", None])
def test_a_step_that_is_none_is_refused(step):
    forecast = fit_power_law(STEPS, VALUES)
    with pytest.raises(UserError, match="`step` to be"):
        forecast.predict(step)
    with pytest.raises(UserError, match="`step` to be"):
        forecast.chance_below(0.1, step)
    if not isinstance(step, str | None):
        with pytest.raises(UserError, match="`steps` to be finite and above 0"):
            forecast.curve([1.0, step])
    with pytest.raises(UserError, match="`gain` to be a number but got nan"):
        forecast.chance_below(np.nan, 1e6)
