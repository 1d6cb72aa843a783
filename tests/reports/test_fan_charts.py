"""Fan charts with intervals, and with what each statistic picks: every mark is where it was told to be."""

import math

import numpy as np
import pytest

from lightning_pce.reports.plot import decision_chart, fan_chart
from tests.helpers.pictures import pixels, words_of

NAN = math.nan
STEPS = [100, 200, 300, 400]
SERIES = {5: [0.2, 0.1, 0.1, 0.0], 50: [2.0, 1.5, 1.0, 0.9], 95: [8.0, 9.0, 9.5, 10.0]}
MEAN = [3.0, 2.8, 2.9, 3.1]
RECALL = [0.1, 0.3, 0.7, 0.9]


def chart(**given):
    return decision_chart(STEPS, SERIES, MEAN, **({"picks": {"mean": 200, "p50": 400}} | given))


def marks(ax, marker):
    """Where there is a marker of this kind: all points of lines that have it."""
    return [
        (float(x), float(y))
        for line in ax.get_lines()
        if line.get_marker() == marker
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def upright_lines(ax):
    """The steps at which a line goes through all of a panel."""
    ends = [line.get_xdata() for line in ax.get_lines() if list(line.get_ydata()) == [0, 1]]
    return sorted(start for start, stop in ends if start == stop)


def test_error_bars_are_caps_where_steps_are_few_and_a_ribbon_where_they_are_many():
    for number, caps, ribbons in ((12, 2, 0), (41, 0, 1)):
        steps, mean = list(range(number)), [3.0 - i / number for i in range(number)]
        series = {50: [value / 2 for value in mean]}
        low, high = [value - 0.5 for value in mean], [value + 0.5 for value in mean]
        plain = fan_chart(steps, series, mean)
        ax = fan_chart(steps, series, mean, intervals={"mean": (low, high)})
        added = len(ax.get_lines()) - len(plain.get_lines())
        assert added == caps
        assert len(ax.collections) - len(plain.collections) == 1  # bars are one collection too
        drawn = ax.collections[-1].get_datalim(ax.transData)
        assert (drawn.y0, drawn.y1) == pytest.approx((min(low), max(high)))
        assert ax.get_legend().get_title().get_text() == ("ribbons" if ribbons else "bars") + ": intervals"
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [
            text.get_text() for text in plain.get_legend().get_texts()
        ]


def test_an_interval_without_an_end_is_no_bar():
    ax = fan_chart([1, 2, 3], {50: [1, 2, 3]}, intervals={"p50": ([0, NAN, 2], [2, 3, NAN])})
    [bars] = ax.collections
    assert [np.array(path).tolist() for path in bars.get_segments()] == [[[1, 0], [1, 2]]]
    pixels(fan_chart([1, 2], {50: [1, 2]}, intervals={"p50": ([NAN, NAN], [NAN, NAN])}).figure)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"p25": ([1, 2], [1, 2])}, "Expected intervals of p50, p99_9, mean but got one of 'p25'"),
        ({"mean": ([1], [1, 2])}, "Expected 2 values of mean's lower end, one for each step, but got 1"),
        ({"p99_9": ([1, 2], [1])}, "Expected 2 values of p99_9's upper end"),
    ],
)
def test_intervals_of_what_is_not_drawn_or_of_another_length_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        fan_chart([1, 2], {50: [1, 2], 99.9: [3, 4]}, [1, 2], intervals=given)


def test_a_decision_has_a_row_for_each_pick_and_the_task_below():
    figure = chart(task=("recall", RECALL), ties={"p50": [300, 400], "mean": [100, 200, 300]}, xlabel="epoch")
    fan, rows, task = figure.axes
    assert [label.get_text() for label in rows.get_yticklabels()] == ["mean", "p50"]
    assert marks(rows, "s") == [(200, 0)]
    assert marks(rows, "D") == [(400, 1)]
    assert marks(rows, "o") == [(100, 0), (300, 0), (300, 1)]  # the pick itself is no dot
    assert [text.get_text() for text in rows.texts] == ["epoch 200: 0.3", "epoch 400: 0.9", "recall"]
    assert marks(task, "s") == [(200, 0.3)]
    assert marks(task, "D") == [(400, 0.9)]
    assert marks(task, "o") == list(zip(STEPS, RECALL, strict=True))
    assert task.get_title(loc="left") == "recall"
    assert task.get_xlabel() == "epoch"
    assert rows.get_ylim() == pytest.approx((1.6, -0.6))  # the first row is on top
    for ax in figure.axes:
        assert ax.get_xlim() == fan.get_xlim()
        assert upright_lines(ax) == [200, 400]
    assert "what each statistic picks; dots: within error of it" in words_of(figure)
    assert "what each statistic picks" in words_of(chart(ties={"p50": [400]}))


def test_only_the_lowest_panel_has_the_numbers_of_steps():
    for given, panels in (({}, 2), ({"task": ("recall", RECALL)}, 3), ({"picks": {}}, 1)):
        figure = chart(**given)
        assert len(figure.axes) == panels
        assert [word for word in words_of(figure) if word in ("100", "200", "300", "400")] == [
            "100",
            "200",
            "300",
            "400",
        ]
        assert [ax.get_xlabel() for ax in figure.axes] == [""] * (panels - 1) + ["step"]


def test_the_fan_of_a_decision_is_the_fan_chart():
    intervals = {"mean": ([2.0] * 4, [4.0] * 4)}
    drawn, alone = chart(intervals=intervals).axes[0], fan_chart(STEPS, SERIES, MEAN, intervals=intervals)
    assert len(drawn.collections) == len(alone.collections)
    labels = [text.get_text() for text in alone.get_legend().get_texts()]
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == labels
    assert drawn.get_ylim() == alone.get_ylim()


def test_picks_of_one_step_are_all_seen():
    task = chart(picks={"mean": 200, "p50": 200, "p95": 300, "p75": 200}, task=("recall", RECALL)).axes[2]
    sizes = {
        line.get_marker(): line.get_markersize() for line in task.get_lines() if len(line.get_xdata()) == 1
    }
    assert list(sizes) == ["s", "D", "^", "v"]  # each statistic has its own
    assert sizes["s"] > sizes["D"] > sizes["v"] == sizes["^"]


def test_a_task_that_was_not_measured_at_a_pick_is_said_and_a_gap():
    figure = chart(task=("recall", [0.1, NAN, 0.7, math.inf]))
    assert [text.get_text() for text in figure.axes[1].texts] == [
        "step 200: not measured",
        "step 400: not measured",
        "recall",
    ]
    task = figure.axes[2]
    assert np.isnan([marks(task, "s")[0][1], marks(task, "D")[0][1]]).all()
    assert np.array_equal(task.get_lines()[-3].get_ydata(), [0.1, NAN, 0.7, NAN], equal_nan=True)
    pixels(figure)


def test_a_validation_alone_between_gaps_shows_its_bands():
    gappy = [1.0, NAN, 2.0, NAN]
    plain = fan_chart(STEPS, {5: [NAN] * 4, 95: [NAN] * 4})
    ax = fan_chart(STEPS, {5: gappy, 95: [value + 5 for value in gappy]})
    added = ax.collections[len(plain.collections) :]
    assert [path.tolist() for bar in added for path in bar.get_segments()] == [
        [[100, 1], [100, 6]],
        [[300, 2], [300, 7]],
    ]


def test_steps_are_ticks_where_they_are_few_and_even():
    assert list(chart().axes[0].get_xticks()) == STEPS
    steps = [1, 2, 50, 51]
    uneven = decision_chart(steps, SERIES, picks={"p50": 50}).axes[0].get_xticks()
    assert all(float(tick).is_integer() for tick in uneven)
    assert list(uneven) != steps
    assert (
        len(decision_chart([i / 7 for i in range(90)], {50: [1.0] * 90}, picks={}).axes[0].get_xticks()) < 15
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"picks": {"mean": 150}}, "`picks` to hold steps that are in `steps` but 'mean' has 150"),
        ({"ties": {"p50": [400, 7]}}, "`ties` to hold steps that are in `steps` but 'p50' has 7"),
        ({"ties": {"p95": [100]}}, "ties of what is in `picks` but got those of 'p95'"),
        ({"task": ("recall", [1.0])}, "Expected 4 values of the task metric, one for each step, but got 1"),
    ],
)
def test_marks_beside_the_steps_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        chart(**given)


def test_steps_can_have_names():
    names = ["first.ckpt", "$x^{$", "third.ckpt", "last.ckpt"]
    figure = chart(names=names, task=("recall", RECALL))
    assert [text.get_text() for text in figure.axes[1].texts] == ["$x^{$: 0.3", "last.ckpt: 0.9", "recall"]
    assert [word for word in words_of(figure) if word in names] == names
    many = [f"checkpoint {i}" for i in range(100)]
    shown = words_of(decision_chart(list(range(100)), {50: [1.0] * 100}, picks={"p50": 37}, names=many))
    assert "checkpoint 37" in shown
    assert 8 < len(set(many) & set(shown)) < 18
    with pytest.raises(ValueError, match="Expected 4 values of names, one for each step, but got 1"):
        chart(names=["one"])
