"""What all pictures share: names as they are written, no text on another, colours to tell apart."""

from functools import cache, partial

import numpy as np
import pytest
import torch

from lightning_pce import digest as td
from lightning_pce.reports import _drawing, fan_charts
from lightning_pce.reports.plot import (
    concordance_map,
    decision_chart,
    difference_curve,
    interval_chart,
    new_axes,
    quantile_curve,
)
from tests.helpers.pictures import (
    LONG,
    NAMES,
    contrast_to_white,
    crowded,
    drawn_texts,
    least_difference,
    words_of,
)


def falling(number, start=3.0):
    """A loss over training, with some noise."""
    noise = np.random.default_rng(number).normal(0, 0.02, number)
    return (start * (0.3 + np.exp(-np.arange(number) / (number / 3))) * (1 + noise)).tolist()


def fan_of(number, **more):
    series = {5: 0.01, 25: 0.3, 50: 1.0, 75: 3.0, 95: 8.0, 99: 13.0}
    return (
        list(range(1, number + 1)),
        {p: falling(number, v) for p, v in series.items()},
        falling(number),
        more,
    )


def decision(number, names=("mean", "p50", "p95"), task="accuracy"):
    steps, series, mean, _ = fan_of(number)
    picks = {name: steps[-1 - i % number] for i, name in enumerate(names)}
    ties = dict.fromkeys(names, steps[number // 2 :])
    mean_low, mean_high = [value - 0.2 for value in mean], [value + 0.2 for value in mean]
    return decision_chart(
        steps,
        series,
        mean,
        picks=picks,
        ties=ties,
        task=(task, falling(number)),
        intervals={"mean": (mean_low, mean_high)},
    )


def intervals(number, names=None):
    values = falling(number)
    names = names or [f"step {100 * i}" for i in range(number)]
    best = names[int(np.argmin(values))]
    low, high = [value - 0.1 for value in values], [value + 0.2 for value in values]
    return interval_chart(names, values, low, high, best=best, ties=names[number // 2 :]).figure


def concordance(number, names):
    return concordance_map({name: falling(number, i + 1) for i, name in enumerate(names)}).figure


def quantiles(names):
    values = torch.logspace(-5, 1, 500)
    return quantile_curve({name: td.from_values(values * (1 + i)) for i, name in enumerate(names)}).figure


def change(**more):
    u = [(i + 1) / 200 for i in range(199)]
    d = [2 * (share - 0.4) ** 3 - 0.1 * share for share in u]
    return difference_curve(
        u, d, [x - 0.02 for x in d], [x + 0.02 for x in d], gained=0.24, lost=0.34, **more
    ).figure


PICTURES = {
    **{f"decision, {n} records": partial(decision, n) for n in (1, 2, 12, 100)},
    "decision, names": partial(decision, 12, NAMES, LONG),
    **{f"intervals, {n} records": partial(intervals, n) for n in (1, 2, 12, 100)},
    "intervals, names": partial(intervals, len(NAMES), list(NAMES)),
    **{f"concordance, {n} records": partial(concordance, n, ("mean", "p50", "p95")) for n in (1, 100)},
    "concordance, 2 statistics": partial(concordance, 12, ("mean", "p50")),
    "concordance, 25 statistics": partial(concordance, 12, [f"web_p{i}" for i in range(25)]),
    "concordance, names": partial(concordance, 12, NAMES),
    **{f"quantiles, {n} records": partial(quantiles, [f"step {i}" for i in range(n)]) for n in (2, 12)},
    "quantiles, names": partial(quantiles, NAMES),
    "difference": change,
    "difference, names": partial(change, names=NAMES[:2]),
    "difference, long names": partial(change, names=(LONG, LONG)),
}


@cache
def figure(picture):
    return PICTURES[picture]()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("picture", PICTURES)
def test_no_text_covers_another_or_is_cut_off(picture):
    assert crowded(figure(picture)) == []


def test_texts_that_overlap_or_are_cut_off_are_found():
    ax = new_axes(layout=None)
    ax.text(0.5, 0.5, "here")
    ax.text(0.51, 0.5, "there")
    ax.text(1.1, 0.1, "beside the figure")
    assert crowded(ax.figure) == [("here", "there"), "beside the figure"]


@pytest.mark.parametrize("picture", [name for name in PICTURES if name.endswith("names")])
def test_no_name_is_parsed_as_mathematics(picture):
    texts = [text for text in drawn_texts(figure(picture)) if "$" in text.get_text()]
    assert texts or "long" in picture
    assert not any(text.get_parse_math() or text.get_usetex() for text in texts)


def test_names_are_drawn_as_they_are_written():
    for picture in ("quantiles, names", "intervals, names", "concordance, names"):
        words = " | ".join(words_of(figure(picture)))
        for name in ("$x^{$", "$a_b$ 50%", "_hidden", "two lines", r"\frac{"):
            assert name in words
    [axis] = {text.get_text() for text in drawn_texts(decision(3, task="$x^{$")) if "$" in text.get_text()}
    assert axis == "$x^{$"
    assert change(names=("$a$", "_b\nc")).axes[0].get_title(loc="left") == "_b c minus $a$"


def test_a_long_name_loses_its_middle_and_what_then_looks_alike_is_numbered():
    assert _drawing.shown("short") == "short"
    assert _drawing.shown(" a\n\tb\x00c ") == "a b c"
    long = _drawing.shown("begin" + "-" * 100 + "end", 20)
    assert len(long) == 20
    assert long.startswith("begin")
    assert long.endswith("end")
    names = _drawing.shown_names([LONG.format(1), "other", LONG.format(2)], 30)
    assert len(set(names)) == 3
    assert names[1] == "other"
    assert [name[-3:] for name in (names[0], names[2])] == [" #1", " #3"]


def test_colors_can_be_told_apart_without_red_green_or_blue():
    curves = least_difference(_drawing.CURVES)
    assert min(curves.values()) > 20, curves
    assert least_difference(("#e07a1f", "#b58900"))["no green"] < 5  # as two of them once were
    assert min(least_difference((_drawing.BETTER, _drawing.WORSE)).values()) > 40
    assert min(least_difference((_drawing.MEDIAN, _drawing.MEAN, _drawing.BAND)).values()) > 20
    looks = fan_charts._looks(dict.fromkeys(["recall", "mean", "p50", "p75", "p90", "p95", "bulk", "p1"], 1))
    assert len({marker for _, marker in looks.values()}) == 8
    assert min(least_difference([color for color, _ in looks.values()]).values()) > 20
    assert min(contrast_to_white(color) for color in _drawing.CURVES) > 2.9
    assert min(contrast_to_white(color) for color in (_drawing.BETTER, _drawing.WORSE, _drawing.QUIET)) > 4.5
