"""Difference curves: areas, band and crossings are where the numbers say."""

import math

import numpy as np
import pytest

from lightning_pce.reports.plot import difference_curve, new_axes
from tests.helpers.pictures import pixels, words_of

NAN = math.nan
U = [(i + 1) / 200 for i in range(199)]


def rising(zero):
    return [u - zero for u in U]


def around(series, width):
    return [value - width for value in series], [value + width for value in series]


def dots(ax):
    """The shares of the crossings that are marked."""
    return [float(line.get_xdata()[0]) for line in ax.get_lines() if line.get_marker() == "o"]


def bars(ax):
    """The ranges of the crossings."""
    return [tuple(map(float, line.get_xdata())) for line in ax.get_lines() if line.get_linewidth() == 4]


def areas(ax):
    """Colour and strength -> the shares from which to which something is shaded so."""
    found = {}
    for area in ax.collections:
        key = tuple(area.get_facecolor()[0].round(2))
        for path in area.get_paths():
            x = path.vertices[:, 0]
            found.setdefault(key, []).append((float(x.min()), float(x.max())))
    return found


def test_the_curve_is_what_was_given():
    d = rising(0.5)
    ax = difference_curve(U, d)
    [curve] = [line for line in ax.get_lines() if len(line.get_xdata()) == 199]
    assert list(curve.get_xdata()) == U
    assert list(curve.get_ydata()) == d
    assert ax.get_xscale() == "logit"
    assert ax.get_xlim() == pytest.approx((0.005, 0.995))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "5", "25", "50", "75", "95", "99"]
    assert ax.get_ylabel() == "change of cross-entropy (nats)"
    assert ax.get_title(loc="left") == "after minus before"
    low, high = ax.get_ylim()
    assert low < min(d)
    assert high > max(d)


def test_without_a_band_every_change_of_sign_is_a_crossing():
    ax = difference_curve(U, rising(0.5025))
    assert dots(ax) == pytest.approx([0.5025])
    assert "p50.2" in words_of(ax.figure)
    waves = [math.sin(20 * u) for u in U]
    ax = difference_curve(U, waves)
    assert dots(ax) == pytest.approx([k * math.pi / 20 for k in range(1, 7)], abs=1e-3)
    assert not any(
        word[0] == "p" and word[1].isdigit() for word in words_of(ax.figure)
    )  # too many to be named


def test_with_a_band_a_crossing_is_between_what_is_surely_better_and_surely_worse():
    d = [value + 0.01 * math.sin(300 * u) for value, u in zip(rising(0.8), U, strict=True)]
    ax = difference_curve(U, d, *around(d, 0.0825))
    assert len(dots(ax)) == 1
    assert dots(ax)[0] == pytest.approx(0.8, abs=0.02)
    [(start, stop)] = bars(ax)
    assert start == max(u for u, value in zip(U, d, strict=True) if value < -0.0825)
    assert stop == min(u for u, value in zip(U, d, strict=True) if value > 0.0825)
    [text] = [word for word in words_of(ax.figure) if " to p" in word]
    assert text == f"p{100 * dots(ax)[0]:.3g} (p{100 * start:.3g} to p{100 * stop:.3g})"
    assert dots(difference_curve(U, d, *around(d, 2.0))) == []


def test_a_falling_curve_is_marked_too():
    assert dots(difference_curve(U, [-value for value in rising(0.3)])) == pytest.approx([0.3])


def test_better_is_below_and_what_is_sure_is_shaded_more_strongly():
    d = rising(0.5)
    found = areas(difference_curve(U, d, *around(d, 0.1025)))
    blue = {color[3]: spans for color, spans in found.items() if color[2] > color[0]}
    red = {color[3]: spans for color, spans in found.items() if color[0] > color[2]}
    assert blue[0.25] == [pytest.approx((0.005, 0.5))]
    assert red[0.25] == [pytest.approx((0.5, 0.995))]
    assert blue[0.45] == [pytest.approx((0.005, 0.395))]
    assert red[0.45] == [pytest.approx((0.605, 0.995))]
    plain = areas(difference_curve(U, d))
    assert sorted(color[3] for color in plain) == [0.55, 0.55]


@pytest.mark.parametrize(
    ("gained", "lost", "words"),
    [
        (0.24, 0.339, ["↑ worse: loses 0.34 nats a token", "↓ better: gains 0.24 nats a token"]),
        (0.09, 0.0, ["↑ worse: loses 0 nats a token", "↓ better: gains 0.090 nats a token"]),
        (0.00012, 12.3, ["↑ worse: loses 12 nats a token", "↓ better: gains 0.0001 nats a token"]),
        (None, None, ["↑ worse", "↓ better"]),
        (NAN, 123.4, ["↑ worse: loses 123 nats a token", "↓ better"]),
    ],
)
def test_areas_are_said_in_nats_a_token(gained, lost, words):
    ax = difference_curve(U, rising(0.5), gained=gained, lost=lost)
    assert [text.get_text() for text in ax.texts][-2:] == words


def test_what_is_not_finite_is_a_gap_and_not_an_error():
    d = rising(0.5)
    d[:40], d[90:110], d[198] = [NAN] * 40, [math.inf] * 20, -math.inf
    low, high = around(d, 0.01)
    for band in ((), (low, high)):
        ax = difference_curve(U, d, *band)
        pixels(ax.figure)
        assert dots(ax) == [U[110]]  # somewhere in the gap: at its end
        assert np.isfinite(ax.get_ylim()).all()
    nothing = difference_curve(U, [NAN] * 199, [NAN] * 199, [NAN] * 199)
    assert "no finite values" in words_of(nothing.figure)
    pixels(difference_curve([], []).figure)
    pixels(difference_curve([0.5], [0.0]).figure)


def test_a_band_of_nan_is_no_band():
    """As of two records of which one has no counts of documents."""
    d = rising(0.5025)
    without = difference_curve(U, d, [NAN] * 199, [NAN] * 199)
    assert areas(without) == areas(difference_curve(U, d))
    assert dots(without) == pytest.approx([0.5025])


def test_no_change_at_all_has_no_crossing():
    ax = difference_curve(U, [0.0] * 199, [0.0] * 199, [0.0] * 199)
    assert dots(ax) == []
    pixels(ax.figure)


def test_it_draws_where_it_is_told():
    ax = new_axes()
    assert difference_curve(U, rising(0.5), ax=ax) is ax


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([0.5], [1.0, 2.0]), "Expected 1 values of the difference, one for each share, but got 2"),
        (([0.5], [1.0], [1.0, 2.0], [2.0]), "1 values of its lower end"),
        (([0.5], [1.0], [1.0]), "both ends of the band but got no upper"),
        (([0.5], [1.0], None, [1.0]), "both ends of the band but got no lower"),
        (([50, 95], [1.0, 2.0]), r"`u` to ascend in \(0, 1\); percentiles are to be divided by 100"),
        (([0.5, 0.5], [1.0, 2.0]), "`u` to ascend"),
        (([0.0, 0.5], [1.0, 2.0]), "`u` to ascend"),
        (([NAN], [1.0]), "`u` to ascend"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        difference_curve(*given)


@pytest.mark.parametrize("zero", [0.2, 0.8])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_crossing_is_named_where_the_curve_is_not(zero, sign):
    d = [sign * 4 * value for value in rising(zero)]
    ax = difference_curve(U, d)
    pixels(ax.figure)
    [text] = [text for text in ax.texts if text.get_text() == f"p{100 * zero:g}"]
    box = text.get_window_extent()
    curve = ax.transData.transform(list(zip(U, d, strict=True)))
    beside = [y for x, y in curve if box.x0 <= x <= box.x1]
    assert not any(box.y0 <= y <= box.y1 for y in beside)
