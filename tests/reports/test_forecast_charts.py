"""The picture of a forecast: its band holds what it predicts, and without one the reason stands there."""

import math

import numpy as np
import pytest

from lightning_pce.reports.forecast_charts import _in_short
from lightning_pce.reports.plot import forecast_band
from lightning_pce.runs.forecasting import fit_power_law
from tests.helpers.pictures import NAMES, contrast_to_white, crowded, pixels, words_of
from tests.helpers.series_runs import STEPS, falling, numbers, rising


def fitted(curve=falling, errors=0.005, **more):
    values = numbers(curve)
    given = None if errors is None else [errors] * len(values)
    return fit_power_law(list(values), list(values.values()), given, **more)


@pytest.fixture(scope="module")
def forecast():
    return fitted(bounds=(0, None))


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bands_of(ax):
    """First and last step, lower and upper end there, of each band."""
    found = []
    for band in ax.collections:
        if hasattr(band, "get_paths") and band.get_linewidth()[0] == 0:
            corners = band.get_paths()[0].vertices
            steps = sorted({corners[:, 0].min(), corners[:, 0].max()})
            found.append([(step, *ends(corners, step)) for step in steps])
    return found


def ends(corners, step):
    there = corners[np.isclose(corners[:, 0], step, rtol=1e-9), 1]
    return there.min(), there.max()


def test_the_band_is_the_interval_and_beyond_4_times_it_is_pale(forecast):
    ax = forecast_band(forecast, until=200_000)
    within, ahead, far = bands_of(ax)
    assert [each[0] for each in (*within, *ahead, *far)] == pytest.approx(
        [STEPS[4], 10_000, 10_000, 40_000, 40_000, 200_000]
    )
    for step, low, high in (*within, *ahead, *far):
        assert (low, high) == pytest.approx(forecast.predict(step)[1:3])
    alphas = [band.get_alpha() for band in ax.collections if band.get_linewidth()[0] == 0]
    assert alphas[0] == alphas[1] > alphas[2]
    medians = [line for line in ax.get_lines() if len(line.get_xdata()) > 50]
    assert medians[-1].get_ydata()[-1] == pytest.approx(forecast.predict(200_000).median)
    limit = forecast.asymptote
    assert legend_of(ax) == [
        "measured, with 95 % intervals",
        "90 % of what will be measured",
        "median",
        "beyond 4 times the last step",
        f"limit {limit.median:.3f} ({limit.low:.3f} to {limit.high:.3f})",
    ]
    assert [line.get_ydata()[0] for line in ax.get_lines() if line.get_label().startswith("limit")] == [
        limit.median
    ]


def test_points_have_their_intervals_and_early_ones_are_counted(forecast):
    ax = forecast_band(forecast)
    [points] = [line for line in ax.get_lines() if line.get_marker() == "o"]
    kept = [step for step in STEPS if step >= 10_000 / 30]
    assert list(points.get_xdata()) == kept
    assert list(points.get_ydata()) == [numbers()[step] for step in kept]
    assert ax.get_title(loc="left") == f"{len(STEPS) - len(kept)} earlier values not shown."
    [bars] = [each for each in ax.collections if hasattr(each, "get_segments") and len(each.get_segments())][
        -1:
    ]
    halves = [(high - low) / 2 for (_, low), (_, high) in bars.get_segments()]
    assert halves == pytest.approx([1.96 * 0.005] * len(kept), rel=1e-4)
    assert ax.get_xlim() == pytest.approx((kept[0] / 1.15, 40_000 * 1.15))
    assert ax.get_xscale() == "log"


def test_what_was_measured_later_is_drawn_and_widens_the_picture(forecast):
    ax = forecast_band(forecast, np.array([20_000, 180_000, 30_000]), [2.2, 2.07, math.nan])
    [later] = [line for line in ax.get_lines() if line.get_label() == "measured later"]
    assert list(later.get_xdata()) == [20_000, 180_000, 30_000]
    assert ax.get_xlim()[1] == pytest.approx(180_000 * 1.15)
    assert legend_of(ax)[:2] == ["measured, with 95 % intervals", "measured later"]
    none = forecast_band(forecast, [100, 20_000], [9.0, math.nan])  # before what is drawn, and no number
    assert "measured later" not in legend_of(none)
    assert none.get_ylim()[1] < 9
    one = forecast_band(forecast, 20_000, 3.5)
    assert one.get_ylim()[1] > 3.5


def test_a_limit_that_is_far_off_is_said_and_does_not_press_the_picture():
    far = fitted(lambda step: 1000 - 1000 * step**-0.06 - 300, bounds=(None, None))
    ax = forecast_band(far)
    assert far.asymptote.median > 2 * ax.get_ylim()[1]
    assert legend_of(ax)[-1].endswith(", outside of the picture")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([3.0, 2.0, 1.5], "No forecast: 3 points are too few"),
        ([2.0] * 8, "No forecast: All values are 2.000: nothing rises or falls."),
        ([math.nan], "no finite values"),
        ([], "no finite values"),
    ],
    ids=["few", "constant", "nan", "none"],
)
def test_a_refused_forecast_has_its_points_and_the_reason(values, words):
    refused = fit_power_law(range(1, 1 + len(values)), values)
    ax = forecast_band(refused)
    assert any(each.startswith(words) for each in words_of(ax.figure))
    assert bands_of(ax) == []
    finite = [value for value in values if math.isfinite(value)]
    assert [list(line.get_ydata()) for line in ax.get_lines() if len(line.get_ydata())] == [finite] * bool(
        finite
    )
    later = forecast_band(refused, [50], [2.5])
    assert 2.5 in [value for line in later.get_lines() for value in line.get_ydata()]


@pytest.mark.parametrize("name", [*NAMES[::3], NAMES[-1]])
def test_names_are_drawn_as_they_are_written(forecast, name):
    ax = forecast_band(forecast, name=name)
    pixels(ax.figure)
    assert "\n" not in ax.get_ylabel()
    assert ax.get_ylabel().startswith(name[:2].strip())


@pytest.mark.parametrize(("curve", "until"), [(falling, None), (rising, None), (falling, 900_000)])
def test_nothing_overlaps_and_the_legend_is_where_the_curve_is_not(curve, until):
    forecast = fitted(curve)
    ax = forecast_band(forecast, until=until)
    assert crowded(ax.figure) == []
    box = ax.get_legend().get_window_extent().transformed(ax.transData.inverted())
    at = forecast.curve([box.x0, min(box.x1, until or 40_000)])
    assert box.y0 > at.high.max() if curve is falling else box.y1 < at.low.min()


def test_of_very_many_points_only_some_are_drawn_and_it_is_said():
    steps = np.arange(1, 20_001)
    values = falling(steps) + 0.01 * np.random.default_rng(0).normal(size=len(steps))
    ax = forecast_band(fit_power_law(steps, values))
    [points] = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert 75 < len(points.get_xdata()) <= 150
    assert points.get_xdata()[-1] == 20_000
    assert legend_of(ax)[0] == f"measured, {len(points.get_xdata())} of 19,334"


def test_words_can_be_read(forecast):
    ax = forecast_band(forecast)
    colors = [line.get_color() for line in ax.get_lines() if line.get_label() not in ("", "_child0")]
    assert min(contrast_to_white(color) for color in colors if color != "#9a9a9a") > 4.5


def test_steps_are_plain_numbers():
    assert [_in_short(step) for step in (5, 2_000, 1e4, 5e4, 2e5, 1e6, 2e9, 5e21)] == [
        *("5", "2,000", "10k", "50k", "200k", "1M", "2B", "5e+21")
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": [1]}, "or neither"),
        ({"values": [1]}, "or neither"),
        ({"steps": [1, 2], "values": [1]}, "one for each later step"),
        ({"steps": [0], "values": [1]}, "`steps` above 0 but got 0"),
        ({"steps": [math.inf], "values": [1]}, "`steps` above 0 but got inf"),
        ({"until": 0}, "`until` to be a step above 0"),
        ({"until": math.nan}, "`until` to be a step above 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(forecast, given, words):
    with pytest.raises(ValueError, match=words):
        forecast_band(forecast, **given)
