"""Records beside one another: intervals as error bars, and Kendall's tau-b by its definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from lightning_pce.reports.plot import concordance_map, interval_chart, kendall_tau_b, new_axes
from tests.helpers.pictures import pixels, words_of

NAN = math.nan
NAMES = ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
VALUES = [2.0, 1.0, 1.1, 1.5]
LOW, HIGH = [1.9, 0.9, 1.0, 1.4], [2.2, 1.2, 1.3, 1.7]


def rows(ax):
    """Label of the legend -> rows that are marked so."""
    return {
        line.get_label(): dict(zip(map(int, line.get_ydata()), line.get_xdata(), strict=True))
        for line in ax.get_lines()
        if not line.get_label().startswith("_")
    }


def test_each_record_has_its_value_its_interval_and_its_numbers():
    ax = interval_chart(NAMES, VALUES, LOW, HIGH, best="epoch 2", ties=["epoch 2", "epoch 3"])
    assert rows(ax) == {"others": {0: 2.0, 3: 1.5}, "within error of the best": {2: 1.1}, "best": {1: 1.0}}
    bars = {
        int(path[0][1]): (path[0][0], path[1][0]) for bar in ax.collections for path in bar.get_segments()
    }
    assert bars == {i: (low, high) for i, (low, high) in enumerate(zip(LOW, HIGH, strict=True))}
    assert [text.get_text() for text in ax.texts] == [
        "2.00 (1.90 to 2.20)",
        "1.00 (0.90 to 1.20)",
        "1.10 (1.00 to 1.30)",
        "1.50 (1.40 to 1.70)",
    ]
    labels = {
        label.get_text(): tick for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
    }
    assert labels == {name: i for i, name in enumerate(NAMES)}
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first is on top
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "best",
        "within error of the best",
        "others",
    ]
    assert ax.get_xlabel() == "cross-entropy per token (nats)"


def test_without_a_best_there_is_nothing_to_explain():
    ax = interval_chart(NAMES, VALUES, LOW, HIGH, xlabel="entropy (nats)")
    assert ax.get_legend() is None
    assert ax.get_xlabel() == "entropy (nats)"
    assert interval_chart(NAMES, VALUES, LOW, HIGH, ax=ax) is ax


@pytest.mark.parametrize(
    ("values", "width", "words"),
    [
        ([0.0064, 0.0071], 0.0003, ["0.00640 (0.00610 to 0.00670)", "0.00710 (0.00680 to 0.00740)"]),
        ([12.0, 12.5], 2.0, ["12.00 (10.00 to 14.00)", "12.50 (10.50 to 14.50)"]),
        ([1e-9, 2e-9], 1e-10, ["0.000000 (0.000000 to 0.000000)"] * 2),
        ([0.001, 0.0014], NAN, ["0.00100", "0.00140"]),
        ([NAN, math.inf], 1.0, ["-", "-"]),
    ],
)
def test_numbers_have_the_digits_that_their_intervals_need(values, width, words):
    ax = interval_chart(
        ["a", "b"], values, [value - width for value in values], [value + width for value in values]
    )
    assert [text.get_text() for text in ax.texts][:2] == words
    pixels(ax.figure)


def test_missing_values_and_ends_are_left_out():
    ax = interval_chart(
        NAMES, [2.0, NAN, 1.0, 1.0], [1.0, NAN, NAN, 0.5], [3.0, NAN, 2.0, NAN], best="epoch 3"
    )
    assert [text.get_text() for text in ax.texts] == [
        "2.00 (1.00 to 3.00)",
        "-",
        "1.00",
        "1.00",
    ]
    pixels(ax.figure)
    nothing = interval_chart(["a"], [NAN], [NAN], [NAN], best="a")
    assert "no finite values" in words_of(nothing.figure)
    pixels(interval_chart([], [], [], []).figure)


def test_of_very_many_records_every_few_are_named_and_the_best_always():
    names = [f"step {i}" for i in range(1000)]
    values = [abs(i - 501) / 100 + 1 for i in range(1000)]
    ax = interval_chart(names, values, values, values, best="step 501")
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert 30 < len(labels) <= 41
    assert "step 501" in labels
    assert len(ax.texts) == len(labels)
    ticks = sorted(ax.get_yticks())
    assert min(np.diff(ticks)) >= 25
    assert sum(map(len, rows(ax).values())) == 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": [1.0]}, "Expected 4 values of values, one for each record, but got 1"),
        ({"high": [1.0] * 5}, "Expected 4 values of upper ends, one for each record, but got 5"),
        ({"best": "epoch 9"}, "to be among the records but got 'epoch 9'"),
        ({"ties": ["epoch 1", "epoch 8"]}, "to be among the records but got 'epoch 8'"),
    ],
)
def test_series_of_another_length_and_unknown_names_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        interval_chart(**({"names": NAMES, "values": VALUES, "low": LOW, "high": HIGH} | given))


def test_tau_b_of_simple_cases():
    assert kendall_tau_b([1, 2, 3], [10, 20, 30]) == 1
    assert kendall_tau_b([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau_b([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    # Ties in both: 5 concordant, 0 discordant pairs, 1 tie in the first and 1 in the second, of 6 pairs.
    assert kendall_tau_b([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(4 / math.sqrt(5 * 5))
    assert math.isnan(kendall_tau_b([1, 1, 1], [1, 2, 3]))
    assert math.isnan(kendall_tau_b([1], [1]))
    assert math.isnan(kendall_tau_b([], []))
    assert kendall_tau_b([1, NAN, 2, 3], [5, 9, 6, NAN]) == 1
    assert kendall_tau_b([1, math.inf, 2], [1, 5, 2]) == 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_tau_b_is_the_correlation_of_the_signs_of_all_pairs(records):
    """Daniels: tau-b is Pearson's correlation, about 0, of the signs of differences over ordered pairs."""
    a, b = np.array(records, dtype=float).T
    signs = [np.sign(np.subtract.outer(series, series)).ravel() for series in (a, b)]
    expected = signs[0] @ signs[1] / math.sqrt((signs[0] @ signs[0]) * (signs[1] @ signs[1]) or NAN)
    assert kendall_tau_b(a.tolist(), b.tolist()) == pytest.approx(expected, nan_ok=True)
    assert kendall_tau_b(b.tolist(), a.tolist()) == pytest.approx(expected, nan_ok=True)


def test_a_map_shows_every_pair_and_a_dash_where_there_is_no_order():
    series = {"mean": [3, 1, 2, 4], "p50": [4, 3, 2, 1], "p5": [0, 0, 0, 0], "recall": [1, 3, 2, 0]}
    ax = concordance_map(series)
    names = list(series)
    [image] = ax.get_images()
    shown = np.ma.filled(image.get_array().astype(float), NAN)
    expected = [[kendall_tau_b(series[a], series[b]) for b in names] for a in names]
    assert np.array_equal(shown, expected, equal_nan=True)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == names
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    cells = {(int(x), int(y)): text.get_text() for text in ax.texts for x, y in [text.get_position()]}
    assert cells[0, 0] == "1.00"
    assert cells[3, 0] == cells[0, 3] == "-1.00"
    assert cells[1, 0] == "-.33"
    assert {cells[2, i] for i in range(4)} == {cells[i, 2] for i in range(4)} == {"-"}
    assert ax.get_title(loc="left") == "4 records"
    assert image.get_clim() == (-1, 1)
    assert [to_hex(image.cmap(x)) for x in (0.0, 1.0)] == ["#bc3515", "#1f6391"]
    assert min(image.cmap(0.5)) > 0.95  # nearly white


def test_a_negative_zero_is_no_agreement_and_no_sign():
    cells = concordance_map({"a": [1, 2, 3, 4], "b": [2, 4, 1, 3]}).texts
    assert [text.get_text() for text in cells] == ["1.00", ".00", ".00", "1.00"]
    series = list(range(60))
    almost = [series[i] if i % 2 else -series[i] for i in series]
    assert "-.00" not in {text.get_text() for text in concordance_map({"a": series, "b": almost}).texts}


def test_a_map_of_one_record_or_of_nothing_is_drawn():
    assert [text.get_text() for text in concordance_map({"mean": [1.0], "p50": [2.0]}).texts] == ["-"] * 4
    assert [text.get_text() for text in concordance_map({}).texts] == ["no statistics"]
    pixels(concordance_map({"mean": []}).figure)
    ax = new_axes()
    assert concordance_map({"mean": [1, 2], "p50": [2, 1]}, ax=ax) is ax


def test_series_of_different_records_are_refused():
    with pytest.raises(ValueError, match="Expected 3 values of p50, one for each record, but got 2"):
        concordance_map({"mean": [1, 2, 3], "p50": [1, 2]})
