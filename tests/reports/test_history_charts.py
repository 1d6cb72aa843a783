"""Pictures of a history: what is drawn is what its records hold and what comparing them gives."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from lightning_pce import digest as td
from lightning_pce import intervals as error_bars
from lightning_pce.reports.history_charts import Drawn, decision_of
from lightning_pce.reports.plot import concordance, decision, difference, intervals, kendall_tau_b
from lightning_pce.runs.concordance import reshaping, ties, verdict
from lightning_pce.runs.history import History, write_validation
from tests.helpers.pictures import crowded, drawn_texts, words_of
from tests.helpers.scored_runs import scored

NAN = math.nan
EPOCHS, DOCUMENTS, LENGTH = 6, 80, 6
# Of each epoch what a statistic of the tail is multiplied by, and one of the bulk: they disagree.
BULK, TAIL = (1.0, 0.8, 0.6, 0.5, 0.42, 0.4), (1.0, 0.95, 1.1, 1.3, 1.5, 1.7)
RECALL = (0.0, 0.1, 0.4, 0.7, 0.9, 0.95)


@cache
def measured():
    """A digest and counts of documents for each epoch."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(DOCUMENTS, 1, generator=generator) + torch.randn(
        DOCUMENTS, LENGTH, generator=generator
    )
    slots = error_bars.slots_of(torch.arange(DOCUMENTS)).repeat_interleave(LENGTH)
    found = []
    for bulk, tail in zip(BULK, TAIL, strict=True):
        losses = (base.exp() * torch.where(base > 1.5, tail, bulk)).flatten()
        counts = error_bars.add(error_bars.empty(), losses, None, slots)
        found.append((td.from_values(losses), counts))
    return found


def write(path, run="run", of="ce", group="", epochs=range(EPOCHS), documents=True, **places):
    for k in epochs:
        digest, counts = measured()[k]
        write_validation(
            path,
            run=run,
            function="fit",
            name="val",
            **({"step": 10 * (k + 1), "epoch": k, "batch": 10 * (k + 1)} | places),
            values={},
            scalars={"val_$recall$": RECALL[k]},
            fingerprint="data",
            digests={of: {group: digest}},
            documents={of: {group: counts}} if documents else {},
        )
    return History.load(path)


@pytest.fixture
def history(tmp_path):
    return write(tmp_path / "history.jsonl")


def as_items():
    return [(f"epoch {k}", digest, counts) for k, (digest, counts) in enumerate(measured())]


def line(ax, label):
    [found] = [line for line in ax.get_lines() if line.get_label() == label]
    return [list(found.get_xdata()), list(found.get_ydata())]


def marks(ax, row):
    """Where there are marks in a row: the ties, and last the pick."""
    lines = [
        line for line in ax.get_lines() if line.get_marker() != "None" and set(line.get_ydata()) == {row}
    ]
    return [x for line in lines for x in line.get_xdata()]


def test_a_decision_shows_the_numbers_of_the_records_and_the_picks_of_the_verdict(history):
    figure = decision(history, "val_$recall$")
    fan, rows, task = figure.axes
    epochs = list(range(EPOCHS))
    assert line(fan, "median") == [epochs, [float(td.quantile(digest, 0.5)) for digest, _ in measured()]]
    assert line(fan, "mean") == [epochs, [float(td.mean(digest)) for digest, _ in measured()]]
    found = verdict(history).ties
    assert [label.get_text() for label in rows.get_yticklabels()] == list(found) == ["mean", "p50", "p95"]
    for row, each in enumerate(found.values()):
        *dots, pick = marks(rows, row)
        assert f"epoch {pick:g}" == each.best
        assert {f"epoch {x:g}" for x in dots} == set(each.names) - {each.best}
    assert found["mean"].best != found["p50"].best
    assert task.get_title(loc="left") == "val_$recall$"
    assert any(list(line.get_ydata()) == list(RECALL) for line in task.get_lines())
    assert task.get_xlabel() == "epoch"
    assert f"epoch 5: {RECALL[5]:.3g}" in words_of(figure)
    assert crowded(figure) == []


def test_error_bars_of_a_decision_are_the_intervals_of_mean_and_median(history, tmp_path):
    bars = [np.array(bar.get_segments()) for bar in decision(history).axes[0].collections[-2:]]
    for statistic, drawn in zip(("mean", "p50"), bars, strict=True):
        expected = [error_bars.interval(*each, statistic) for each in measured()]
        assert drawn[:, 0, 1].tolist() == [each.low for each in expected]
        assert drawn[:, 1, 1].tolist() == [each.high for each in expected]
    without = decision(write(tmp_path / "without.jsonl", documents=False)).axes[0]
    assert without.get_legend().get_title().get_text() == ""
    assert len(without.collections) == 2  # the bands


def test_records_without_an_epoch_are_drawn_at_their_steps_and_others_by_their_names(tmp_path):
    by_step = decision(write(tmp_path / "steps.jsonl", epoch=None))
    assert by_step.axes[-1].get_xlabel() == "step"
    assert line(by_step.axes[0], "median")[0] == [10, 20, 30, 40, 50, 60]
    inside = decision(write(tmp_path / "inside.jsonl", epoch=0))  # several validations in an epoch
    assert inside.axes[-1].get_xlabel() == "step"
    items = [(f"$x_{{{k}.ckpt", *each) for k, each in enumerate(measured())]
    by_name = decision(items, {name: value for (name, *_), value in zip(items, RECALL, strict=True)})
    assert by_name.axes[-1].get_xlabel() == "record"
    assert [text.get_text() for text in drawn_texts(by_name) if text.get_rotation() == 40] == [
        name for name, *_ in items
    ]
    assert "$x_{5.ckpt: 0.95" in words_of(by_name)
    assert crowded(by_name) == []


def test_epochs_that_were_written_in_another_order_are_drawn_in_theirs(tmp_path):
    fan = decision(write(tmp_path / "order.jsonl", epochs=(4, 0, 5, 2)), "val_$recall$")
    medians = [float(td.quantile(measured()[k][0], 0.5)) for k in (0, 2, 4, 5)]
    assert line(fan.axes[0], "median") == [[0, 2, 4, 5], medians]
    assert any(
        list(each.get_ydata()) == [RECALL[k] for k in (0, 2, 4, 5)] for each in fan.axes[2].get_lines()
    )


def test_an_epoch_of_nan_is_a_gap_and_not_left_out():
    items = as_items()
    items.insert(2, ("NaN", td.from_values(torch.full((DOCUMENTS * LENGTH,), NAN)), None))
    fan = decision(items).axes[0]
    x, y = line(fan, "median")
    assert x == list(range(1, EPOCHS + 2))
    assert [math.isnan(value) for value in y] == [False, False, True, False, False, False, False]
    assert [label.get_text() for label in intervals(items, "p50").get_yticklabels()] == [
        name for name, *_ in as_items()
    ]


def test_a_difference_shows_the_reshaping_of_two_records(history):
    before, after = history[1], history[5]
    found = reshaping(before, after)
    ax = difference(before, after)
    [curve] = [line for line in ax.get_lines() if list(line.get_ydata()) == found.difference.tolist()]
    assert list(curve.get_xdata()) == found.u.tolist()
    ends = [list(line.get_ydata()) for line in ax.get_lines()]
    assert found.low.tolist() in ends
    assert found.high.tolist() in ends
    dots = [float(line.get_xdata()[0]) for line in ax.get_lines() if line.get_marker() == "o"]
    assert dots == [found.crossing]
    words = words_of(ax.figure)
    assert f"↓ better: gains {found.gained.total:.2g} nats a token" in words
    assert f"↑ worse: loses {found.lost.total:.2g} nats a token" in words
    assert ax.get_title(loc="left") == "epoch 5 minus epoch 1"


def test_a_difference_without_counts_has_no_band_and_of_one_record_no_crossing():
    (_, digest, _), *_ = as_items()
    ax = difference(("a", digest, None), ("b", digest, None))
    assert not [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert len(ax.get_lines()) == 2  # the curve and 0


def test_a_map_is_of_mean_and_percentiles_and_the_task(history):
    ax = concordance(history, "val_$recall$")
    names = ["mean", "p5", "p25", "p50", "p75", "p90", "p95", "p99", "val_$recall$"]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    [image] = ax.get_images()
    means = [float(td.mean(digest)) for digest, _ in measured()]
    tails = [float(td.quantile(digest, 0.95)) for digest, _ in measured()]
    assert image.get_array()[0, 6] == kendall_tau_b(means, tails)
    assert image.get_array()[3, 8] == -1  # the median falls while recall rises
    assert len(concordance(history).get_yticklabels()) == 8


@pytest.mark.parametrize("statistic", ["mean", "bulk", "p95"])
def test_intervals_are_those_of_each_record_with_the_ties_of_the_best(history, statistic):
    found = ties(history, statistic)
    ax = intervals(history, statistic)
    assert ax.get_xlabel() == f"{found.statistic} of cross-entropy per token (nats)"
    expected = [error_bars.interval(*each, found.statistic) for each in measured()]
    drawn = {
        int(path[0][1]): (path[0][0], path[1][0]) for bar in ax.collections for path in bar.get_segments()
    }
    assert drawn == {row: (each.low, each.high) for row, each in enumerate(expected)}
    rows = {line.get_label(): [f"epoch {int(y)}" for y in line.get_ydata()] for line in ax.get_lines()}
    assert rows["best"] == [found.best]
    assert rows.get("within error of the best", []) == [name for name in found.names if name != found.best]


def test_other_statistics_and_groups_have_their_own_unit(tmp_path):
    history = write(tmp_path / "entropy.jsonl", of="entropy", group="$web$").select(
        of="entropy", group="$web$"
    )
    label = "entropy per token (nats), $web$"
    assert decision(history).axes[0].get_ylabel() == label
    ax = intervals(history, "p50")
    assert ax.get_xlabel() == f"p50 of {label}"
    assert not any(text.get_parse_math() for text in drawn_texts(ax.figure) if "$" in text.get_text())


def test_a_list_of_records_is_as_good_as_their_history(history):
    for draw in (lambda runs: decision(runs).axes[1], lambda runs: intervals(runs, "p50")):
        of_list, of_history = draw(list(history)), draw(history)
        assert [text.get_text() for text in of_list.texts] == [text.get_text() for text in of_history.texts]


def test_what_cannot_be_compared_is_refused(tmp_path, history):
    both = write(tmp_path / "history.jsonl", run="another")
    for draw in (decision, concordance, lambda runs: intervals(runs, "mean")):
        with pytest.raises(ValueError, match="records of one run"):
            draw(both)
        with pytest.raises(ValueError, match="at least one record"):
            draw([])
    for draw in (decision, concordance):
        with pytest.raises(ValueError, match="No record has 'val_acc'"):
            draw(history, "val_acc")


def test_what_was_scored_is_drawn_at_its_step_and_called_by_its_model(tmp_path):
    history = scored(tmp_path / "a.jsonl", 1, step=300)
    history = scored(tmp_path / "a.jsonl", 1, model=lambda _: "run/first", step=100)
    entries = [Drawn(each.label, each.digest(), each.documents(), each) for each in history]
    ties_of_all = verdict([each[:3] for each in entries]).ties
    figure = decision_of(entries, ties_of_all, None, "cross-entropy")
    assert line(figure.axes[0], "median")[0] == [100, 300]
    assert figure.axes[-1].get_xlabel() == "step"
    picked = {entry.best for entry in ties_of_all.values()}
    assert picked <= {"run/first", "checkpoints/step-1", "first", "step-1"}
    assert {text.get_text() for text in figure.axes[1].texts} == picked
