"""Fan charts and quantile curves: what is drawn is what was given."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from lightning_pce import digest as td
from lightning_pce.reports.plot import fan_chart, new_axes, quantile_curve
from tests.helpers.distributions import ce_like, exact_quantile

NAN, INF = math.nan, math.inf

STEPS = [1, 2, 3]
SERIES = {
    5: [0.1, 0.1, 0.0],
    25: [1.0, 0.5, 0.2],
    50: [2, 1, 0.5],
    75: [4, 4, 4],
    95: [8, 9, 10],
    99: [12, 13, 14],
}


def test_bands_pair_percentiles_and_the_rest_are_lines(tmp_path):
    ax = fan_chart(STEPS, SERIES, mean=[3.0, 3.2, 3.4])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["p5 to p95", "p25 to p75", "p99", "median", "mean"]
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
    assert drawn["median"] == SERIES[50]
    assert drawn["mean"] == [3.0, 3.2, 3.4]
    assert drawn["p99"] == SERIES[99]
    ax.figure.savefig(tmp_path / "fan.png")
    assert (tmp_path / "fan.png").stat().st_size > 5000


def test_series_of_another_length_is_refused():
    with pytest.raises(ValueError, match="Expected 3 values of 50"):
        fan_chart(STEPS, {50: [1.0]})
    with pytest.raises(ValueError, match="Expected 3 values of mean"):
        fan_chart(STEPS, SERIES, mean=[1.0])


def drawn_ink(ax):
    """Draws it, and says how many pixels are not white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return int((np.asarray(canvas.buffer_rgba())[..., :3] < 255).any(-1).sum())


def line(ax, label):
    """``[2, N]``: what the line with this label goes through."""
    [found] = [line for line in ax.get_lines() if line.get_label() == label]
    return np.array([found.get_xdata(), found.get_ydata()], dtype=float)


def words(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_fan_chart_has_a_gap_where_a_value_is_not_finite(odd, where):
    series = {p: [float(value) for value in values] for p, values in SERIES.items()}
    mean = [3.0, 3.2, 3.4]
    for values in (*series.values(), mean):
        values[where] = odd
    ax = fan_chart(STEPS, series, mean)
    drawn_ink(ax)
    for label, values in (("median", series[50]), ("p99", series[99]), ("mean", mean)):
        expected = [NAN if step == STEPS[where] else value for step, value in zip(STEPS, values, strict=True)]
        assert np.array_equal(line(ax, label)[1], expected, equal_nan=True)
    low, high = ax.get_ylim()
    assert low == 0
    assert 14 <= high < 20 or where == 2


def test_one_value_alone_between_gaps_is_a_dot():
    def chart(median):
        return fan_chart(STEPS, {50: median})

    alone, together, nothing = chart([NAN, 1.0, NAN]), chart([0.5, 1.0, NAN]), chart([NAN, INF, NAN])
    assert [ax.get_lines()[0].get_marker() for ax in (alone, together)] == ["o", "None"]
    assert alone.get_lines()[0].get_markevery() == [1]
    assert words(alone) == words(together) == []
    assert words(nothing) == ["no finite values"]
    assert fan_chart([], {50: []}).get_ylabel()


def test_a_quantile_curve_goes_through_the_exact_percentiles_of_few_tokens():
    values = torch.from_numpy(ce_like(1000, np.random.default_rng(0)))
    ax = quantile_curve({"all": td.from_values(values)})
    median, mean = float(exact_quantile(values, 0.5)), float(values.double().mean())
    label = f"all: p50 {median:.2f}, mean {mean:.2f}"
    shares, curve = line(ax, label)
    assert shares[0] == pytest.approx(0.001)
    assert shares[-1] == pytest.approx(0.999)
    assert len(shares) > 1000
    assert np.allclose(curve, [exact_quantile(values, share) for share in shares], atol=1e-6)
    [drawn] = [line for line in ax.get_lines() if line.get_label() == label]
    assert shares[drawn.get_markevery()] == pytest.approx([0.05, 0.5, 0.95])
    [dashed] = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert list(dashed.get_ydata()) == pytest.approx([mean, mean])


def test_the_axis_of_a_quantile_curve_shows_both_tails():
    ax = quantile_curve({"all": td.from_values(torch.arange(10.0))})
    assert ax.get_xscale() == "logit"
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks == ["0.1", "1", "5", "25", "50", "75", "95", "99", "99.9"]
    assert np.allclose(ax.get_xticks(), [float(tick) / 100 for tick in ticks])
    assert ax.get_xlim() == pytest.approx((0.001, 0.999))
    assert ax.get_xlabel() == "percentile of the tokens (logit scale)"
    assert ax.get_ylabel() == "cross-entropy per token (nats)"
    assert ax.get_ylim()[0] == 0


def test_a_small_median_keeps_two_digits():
    """Of a good model most tokens are certain: 0.00 would say nothing."""
    for value, shown in ((0.00642, "0.0064"), (0.0942, "0.094"), (0.0961, "0.10"), (0.0, "0.00")):
        ax = quantile_curve({"all": td.from_values(torch.full((9,), value, dtype=torch.float64))})
        assert ax.get_legend().get_texts()[0].get_text() == f"all: p50 {shown}, mean {shown}"


def test_several_digests_are_curves_of_their_own_colors_with_their_means():
    digests = {name: td.from_values(torch.arange(11.0) * scale) for name, scale in (("web", 1), ("code", 2))}
    ax = quantile_curve(digests)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["web: p50 5.00, mean 5.00", "code: p50 10.00, mean 10.00"]
    assert line(ax, legend[1])[1].max() == pytest.approx(20, rel=0.01)
    curves = [each for each in ax.get_lines() if each.get_label() in legend]
    means = [each for each in ax.get_lines() if each.get_linestyle() == "--"]
    assert [each.get_color() for each in curves] == [each.get_color() for each in means]
    assert curves[0].get_color() != curves[1].get_color()
    assert [each.get_ydata()[0] for each in means] == [5, 10]


@pytest.mark.filterwarnings("error")
def test_a_name_that_begins_with_an_underscore_is_in_the_legend_like_any():
    ax = quantile_curve({name: td.from_values(torch.arange(11.0)) for name in ("all", "_web", "code")})
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == [f"{name}: p50 5.00, mean 5.00" for name in ("all", "_web", "code")]
    colors = [handle.get_color() for handle in ax.get_legend().get_lines()]
    assert colors == [each.get_color() for each in ax.get_lines() if each.get_label() in legend]
    assert len(set(colors)) == 3
    drawn_ink(ax)


@pytest.mark.filterwarnings("error")
def test_a_fan_chart_of_nothing_has_words_and_no_legend():
    ax = fan_chart(STEPS, {})
    assert words(ax) == ["no finite values"]
    assert ax.get_legend() is None
    drawn_ink(ax)


def test_a_digest_of_nothing_is_words_and_not_an_error():
    empty = quantile_curve({"all": td.empty(64)})
    assert words(empty) == ["no tokens"]
    assert words(quantile_curve({})) == ["no tokens"]
    assert words(quantile_curve({"all": td.from_values(torch.tensor([NAN]))})) == ["no tokens"]
    beside = quantile_curve({"all": td.from_values(torch.tensor([1.0, 2.0])), "web": td.empty(64)})
    assert words(beside) == []
    assert beside.get_legend().get_texts()[1].get_text() == "web: no tokens"
    for ax in (empty, beside):
        assert drawn_ink(ax) > 1000


def test_infinite_percentiles_and_an_infinite_mean_are_not_drawn():
    ax = quantile_curve({"all": td.from_values(torch.tensor([1.0] * 8 + [INF] * 2))})
    shares, curve = line(ax, "all: p50 1.00, mean inf")
    assert set(curve[shares < 0.75]) == {1.0}
    assert np.isnan(curve[shares > 0.85]).all()
    assert not [each for each in ax.get_lines() if each.get_linestyle() == "--"]
    drawn_ink(ax)
    assert words(quantile_curve({"all": td.from_values(torch.tensor([INF]))})) == ["no finite values"]


def test_charts_draw_where_they_are_told():
    for draw in (partial(fan_chart, STEPS, SERIES), partial(quantile_curve, {"all": td.empty(64)})):
        ax = new_axes()
        assert draw(ax=ax) is ax


def test_several_digests_in_one_tensor_are_refused():
    with pytest.raises(ValueError, match=r"digest of 'all' to be \[K \+ 3, 2\] but got \[2, 67, 2\]"):
        quantile_curve({"all": td.empty(64, shape=(2,))})


def test_package_imports_no_matplotlib_or_transformers():
    code = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "transformers", "triton", "tdigest"):
            raise ModuleNotFoundError(f"blocked {name}", name=name)

import torch, torchmetrics, lightning.pytorch  # they import some of them when installed
for name in ("matplotlib", "transformers", "triton", "tdigest"):
    for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[loaded]
sys.meta_path.insert(0, Block())
import lightning_pce, lightning_pce.reports.plot, lightning_pce.integrations.stages, lightning_pce.digest
import lightning_pce.integrations.transformers, lightning_pce.integrations.lightning.figures
print("clean")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "clean", result.stderr
