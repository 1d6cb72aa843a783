"""The table: picks, their costs under other statistics, and a task metric beside them."""

import math

import numpy as np
import pytest
import torch

from lightning_pce import digest
from lightning_pce.intervals import interval
from lightning_pce.runs import concordance
from lightning_pce.runs._task import pearson, spearman
from lightning_pce.runs.history import History
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import run_of, written

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def run():
    return run_of(generators.saturating)


@pytest.fixture(scope="module")
def recall(run):
    """A task that follows the bulk."""
    return {name: k / 12 for k, (name, *_) in enumerate(run)}


def test_a_row_is_the_pick_its_interval_its_ties_and_what_it_costs_elsewhere(run):
    table = concordance.table(run)
    rows = {row.statistic: row for row in table.rows}
    assert list(rows) == ["mean", "p25", "p50", "p75", "p90", "p95", "p99"]
    by_name = {name: record for name, *record in run}
    every = {statistic: concordance.ties(run, statistic) for statistic in rows}
    for statistic, row in rows.items():
        within = every[statistic]
        assert row.pick == within.best
        assert row.ties == within.names
        assert row.value == interval(*by_name[row.pick], statistic)
        for other, cost in row.costs.items():
            assert cost == every[other].costs[row.pick]
        assert row.costs[statistic] == 0
    assert rows["p75"].costs["p95"] > 0.5
    assert table.task is table.best is None
    assert all(math.isnan(row.task) for row in table.rows)


def test_statistics_can_be_chosen(run):
    table = concordance.table(run, statistics=("mean", "p99_9"))
    assert [row.statistic for row in table.rows] == ["mean", "p99_9"]
    assert list(table.rows[0].costs) == ["mean", "p99_9"]


def test_correlations_are_those_of_all_records(run, recall):
    rows = {row.statistic: row for row in concordance.table(run, recall).rows}
    task = np.array(list(recall.values()))
    for statistic in ("p75", "p95"):
        values = [digest.quantile(state, float(statistic[1:]) / 100).item() for _, state, _ in run]
        assert rows[statistic].pearson == pytest.approx(np.corrcoef(values, task)[0, 1])
        ranks = np.argsort(np.argsort(values))
        assert rows[statistic].spearman == pytest.approx(np.corrcoef(ranks, np.arange(12))[0, 1])
        assert rows[statistic].task == recall[rows[statistic].pick]


def test_a_positive_sign_is_flagged_and_of_errors_a_negative_one(run, recall):
    rows = {row.statistic: row for row in concordance.table(run, recall).rows}
    assert rows["p99"].pearson > 0.5
    assert rows["p99"].misleading
    assert rows["p75"].pearson < -0.5
    assert not rows["p75"].misleading
    errors = {name: 1 - value for name, value in recall.items()}
    table = concordance.table(run, errors, higher_is_better=False)
    assert table.best == ("epoch 12", 1 - 11 / 12)
    assert [row.misleading for row in table.rows] == [row.misleading for row in rows.values()]


def test_ranks_of_equal_values_are_their_mean():
    x, y = torch.tensor([1.0, 1.0, 2.0, 9.0]), torch.tensor([4.0, 3.0, 2.0, 2.0])
    want = np.corrcoef([1.5, 1.5, 3, 4], [4, 3, 1.5, 1.5])[0, 1]
    assert spearman(x, y) == pytest.approx(want)
    assert math.isnan(pearson(x[:2], y[:2]))
    assert math.isnan(pearson(x, torch.ones(4)))
    assert pearson(torch.tensor([1.0, NAN, 2.0, 4.0, INF]), torch.tensor([2.0, 7.0, 4.0, 8.0, 1.0])) == 1


def test_a_task_is_a_scalar_of_the_same_validation(run, tmp_path):
    scalars = [{"val_recall": k / 10} if k != 2 else {} for k in range(4)]
    history = History.load(written(tmp_path / "history.jsonl", run[:4], scalars=scalars))
    table = concordance.table(history, "val_recall")
    assert table.task == "val_recall"
    assert table.best == (history[3].label, 0.3)
    at = {record.label: record.scalars.get("val_recall", NAN) for record in history}
    for row in table.rows:
        assert row.task == pytest.approx(at[row.pick], nan_ok=True)


def test_an_infinite_task_is_none(run, recall):
    table = concordance.table(run, recall | {"epoch 2": INF})
    assert table.best == ("epoch 12", recall["epoch 12"])
    assert all(math.isfinite(row.pearson) for row in table.rows)


def test_a_task_that_is_not_there_raises_and_lists_what_is(run, tmp_path):
    scalars = [{"val_acc": 0.1, "val_f1": 0.2}] * 2
    history = History.load(written(tmp_path / "history.jsonl", run[:2], scalars=scalars))
    with pytest.raises(ValueError, match=r"No record has 'val_recall' .* there is val_acc, val_f1"):
        concordance.table(history, "val_recall")
    with pytest.raises(ValueError, match=r"{name: value} for a list without records but got 'val_recall'"):
        concordance.verdict(run, "val_recall")
    with pytest.raises(ValueError, match="but got one for 'epoch 99'"):
        concordance.table(run, {"epoch 1": 0.1, "epoch 99": 0.2})
    with pytest.raises(ValueError, match="a number as the task value of 'epoch 1' but got None"):
        concordance.table(run, {"epoch 1": None})


# Signal to noise


def test_the_signal_is_the_range_and_the_noise_the_spread_around_a_line():
    values = torch.tensor([9.0, 5.0, 4.0, 3.0, 2.2, 0.8, 0.2, -1.0], dtype=torch.float64)
    last = values[-5:].numpy()
    line = np.polyval(np.polyfit(np.arange(5), last, 1), np.arange(5))
    noise = math.sqrt(((last - line) ** 2).sum() / 3)
    assert concordance.signal_to_noise(values) == pytest.approx(10 / noise)


def test_the_last_half_of_a_long_run_is_its_noise():
    random = torch.Generator().manual_seed(0)
    half = torch.rand(10, generator=random).double()
    values = torch.cat([100 + 50 * torch.rand(10, generator=random).double(), half])
    line = np.polyval(np.polyfit(np.arange(10), half.numpy(), 1), np.arange(10))
    noise = math.sqrt(((half.numpy() - line) ** 2).sum() / 8)
    assert concordance.signal_to_noise(values) == pytest.approx(float(values.max() - values.min()) / noise)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([1.0, 2.0, 3.0, 4.0], NAN),
        ([2.0] * 6, NAN),
        ([1.0, 2.0, INF, 4.0, 5.0], NAN),
        ([5.0, 1, 1, 1, 1, 1], INF),
    ],
)
def test_without_noise_or_records_there_is_no_quotient(values, want):
    assert concordance.signal_to_noise(torch.tensor(values)) == pytest.approx(want, nan_ok=True)


# As text


def test_the_text_has_every_number_in_columns(run, recall):
    table = concordance.table(run, recall)
    picks, costs, tasks = str(table).split("\n\n")
    lines = picks.split("\n")
    assert " ".join(lines[0].split()) == "statistic pick value 95 % interval signal/noise within error"
    assert lines[1].startswith("mean       epoch 4  ")
    assert lines[1].endswith("  epoch 4")
    starts = {line.index("epoch") for line in lines[1:]}
    assert len(lines) == 8
    assert len(starts) == 1
    assert "What the pick of each line costs" in costs
    first, *rest = costs.split("\n")[1:]
    assert first.split() == ["mean", "p25", "p50", "p75", "p90", "p95", "p99"]
    assert rest[3].split()[0] == "p75"
    assert rest[3].split()[1].endswith("*")
    assert rest[3].split()[4] == "0"
    assert "wrong sign" in tasks
    p95 = next(row for row in table.rows if row.statistic == "p95")
    assert f" {p95.pearson:+.2f} " in tasks
    assert f" {p95.spearman:+.2f} " in tasks
    assert tasks.split("\n")[-1].split() == ["best", "epoch", "12", "0.917"]
    assert not any(line.endswith(" ") for line in str(table).split("\n"))
    assert max(map(len, str(table).split("\n"))) < 130


def test_the_text_says_why_there_are_no_error_bars(run):
    said = str(concordance.table([(name, state, None) for name, state, _ in run]))
    assert "No error bars: no documents were given." in said
    assert "95 % interval" not in said
    rough = str(concordance.table(run_of(generators.agreeing, 2, 40)))
    assert "Error bars are rough: only" in rough
