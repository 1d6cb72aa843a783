"""Ties: which records are within error of the best one, and which are not compared at all."""

import math

import numpy as np
import pytest
import torch

from lightning_pce import digest, intervals
from lightning_pce.runs import concordance
from lightning_pce.runs.history import History, write_validation
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import losses_of, records_of, run_of, written

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def run():
    return run_of(generators.agreeing)


def without_documents(run):
    return [(name, state, None) for name, state, _ in run]


def shifted(*shifts, losses=None):
    """Records of the same losses, each higher by a number."""
    losses = torch.linspace(0.1, 8, 501, dtype=torch.float64) if losses is None else losses
    return [(f"epoch {k}", digest.from_values(losses + by), None) for k, by in enumerate(shifts, start=1)]


def test_within_error_is_the_tolerance_or_a_multiple_of_the_paired_spread(run):
    for statistic in ("mean", "p50", "p95"):
        found = concordance.ties(run, statistic)
        drawn = np.stack([intervals.replicates(d, c, [statistic])[:, 0].numpy() for _, d, c in run])
        values = [
            float(digest.mean(d) if statistic == "mean" else digest.quantile(d, float(statistic[1:]) / 100))
            for _, d, _ in run
        ]
        best = int(np.argmin(values))
        difference = drawn - drawn[best]
        spread = difference.std(1, ddof=1)
        others = [k for k in range(len(run)) if k != best]
        scaled = (difference[others] - difference[others].mean(1, keepdims=True)) / spread[others, None]
        largest = scaled.max(0)
        allowed = np.maximum(0.01, np.quantile(largest, 0.95) * spread)
        assert found.best == run[best][0]
        np.testing.assert_allclose(list(found.costs.values()), np.array(values) - values[best], rtol=1e-12)
        np.testing.assert_allclose(list(found.allowed.values()), allowed, rtol=1e-9)
        within = [run[k][0] for k in range(len(run)) if values[k] - values[best] <= allowed[k]]
        assert found.names == tuple(within)
        assert found.reason is None


def test_choosing_among_many_is_paid_for(run):
    few = concordance.ties(run[8:], "p50")
    many = concordance.ties(run, "p50")
    name = next(name for name in few.allowed if name != few.best == many.best)
    assert many.allowed[name] > few.allowed[name] > 0.01


def test_without_documents_the_tolerance_alone_decides_and_that_is_said():
    found = concordance.ties(shifted(0.0, 0.009, 0.011, 0.5), "mean")
    assert found.names == ("epoch 1", "epoch 2")
    assert found.reason == "no documents were given"
    assert set(found.allowed.values()) == {0.01}


def test_one_record_without_documents_is_named(run):
    mixed = [*run[:3], *without_documents(run[3:4])]
    found = concordance.ties(mixed, "p50")
    assert found.reason == "epoch 4: no documents were given"
    assert set(found.allowed.values()) == {0.01}


def test_few_documents_give_no_error_or_a_caution():
    few, some = (run_of(generators.agreeing, 3, number) for number in (10, 40))
    assert "20 are needed" in concordance.ties(few, "p50").reason
    found = concordance.ties(some, "p50")
    assert "too narrow" in found.reason
    assert max(found.allowed.values()) > 0.01


def test_one_record_is_its_own_tie(run):
    found = concordance.ties(run[:1], "p50")
    assert found.names == (found.best,) == ("epoch 1",)
    assert found.costs == {"epoch 1": 0.0}


def test_equal_records_all_tie_and_the_first_is_the_best(run):
    same = [(name, *run[0][1:]) for name in ("a", "b", "c")]
    found = concordance.ties(same, "p50")
    assert found.best == "a"
    assert found.names == ("a", "b", "c")


def test_a_record_with_more_nan_than_others_is_left_out():
    values = torch.rand(600, generator=torch.Generator().manual_seed(0)) * 4
    broken = torch.where(torch.arange(600) % 50 == 0, NAN, values / 100)
    slots = intervals.slots_of(torch.arange(600) // 5)
    records = [
        (name, digest.from_values(each), intervals.add(intervals.empty(), each, None, slots))
        for name, each in (("good", values), ("broken", broken), ("better", values - 0.5))
    ]
    records.append(("nothing", digest.from_values(torch.full((600,), NAN)), intervals.empty()))
    found = concordance.ties(records, "p50")
    assert found.names == ("better",)
    assert list(found.costs) == ["good", "better"]
    said = str(concordance.table(records))
    assert "Left out: broken (NaN in 12 of its tokens)." in said
    assert "Left out: nothing (NaN in 600 of its tokens)." in said


def test_the_same_nan_in_every_record_leaves_none_out():
    values = torch.tensor([1.0, 2.0, NAN, 3.0])
    records = [("a", digest.from_values(values), None), ("b", digest.from_values(values / 2), None)]
    assert concordance.ties(records, "mean").names == ("b",)


def test_an_infinite_mean_is_never_within_error():
    records = run_of(generators.agreeing, 3)
    ids, losses = losses_of(generators.agreeing, 3)
    losses[2, 7] = INF
    records[2] = records_of(ids, losses)[2]
    found = concordance.ties(records, "mean")
    assert "epoch 3" not in found.names
    assert found.costs["epoch 3"] == INF
    assert "epoch 3" in concordance.ties(records, "p50").names


def test_infinite_means_alone_all_tie():
    values = torch.tensor([1.0, 2.0, INF])
    records = [("a", digest.from_values(values), None), ("b", digest.from_values(values / 2), None)]
    found = concordance.ties(records, "mean")
    assert found.names == ("a", "b")
    assert found.costs == {"a": 0.0, "b": 0.0}


def test_the_bulk_is_the_lowest_percentile_that_is_not_saturated():
    losses = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for power, bulk, low in ((1, "p50", ()), (8, "p75", ("p5", "p25", "p50")), (30, "p90", None)):
        records = [("a", digest.from_values(losses**power), None)]
        assert concordance.ties(records, "bulk").statistic == bulk
        if low is not None:
            assert concordance.saturated(records) == low
    certain = [("a", digest.from_values(losses**60), None)]
    assert concordance.saturated(certain) == ("p5", "p25", "p50", "p75", "p90")
    with pytest.raises(ValueError, match="p50, p75, p90 are all saturated"):
        concordance.ties(certain, "bulk")


def test_saturation_is_about_the_best_value_of_a_run():
    high, low = (torch.linspace(0, top, 101, dtype=torch.float64) for top in (2.0, 0.015))
    records = [("a", digest.from_values(high), None), ("b", digest.from_values(low), None)]
    assert concordance.saturated(records[:1]) == ()
    assert concordance.saturated(records) == ("p5", "p25", "p50")


# What cannot be compared


def test_other_data_are_refused_by_name(run):
    ids, losses = losses_of(generators.agreeing, 2)
    other_documents = records_of(torch.roll(ids, 1) * 7, losses)[1]
    with pytest.raises(ValueError, match="'epoch 1' and 'epoch 2' are not of the same data: their slots"):
        concordance.ties([run[0], other_documents], "p50")
    fewer = ("epoch 2", digest.from_values(losses[1][:-1]), None)
    with pytest.raises(ValueError, match="they have 3,600 and 3,599 tokens"):
        concordance.verdict([run[0], fewer])
    marked = [(*record, mark) for record, mark in zip(run[:3], ("a1", "a1", "b7"), strict=True)]
    with pytest.raises(ValueError, match=r"'epoch 1' and 'epoch 3' .* fingerprints are a1 and b7") as raised:
        concordance.table(marked)
    assert "Only equal data are compared" in str(raised.value)
    with pytest.raises(ValueError, match="fingerprints are b7 and a1"):
        concordance.reshaping(marked[2], marked[0])


def test_an_unknown_fingerprint_is_no_other(run):
    assert concordance.ties([(*run[0], "a1"), run[1]], "p50").best == "epoch 2"


@pytest.mark.parametrize("function", ["ties", "shortlist", "saturated", "table", "verdict"])
def test_nothing_to_compare_raises(function):
    call = getattr(concordance, function)
    more = ("p50",) if function == "ties" else ()
    with pytest.raises(ValueError, match="at least one record but got none"):
        call([], *more)
    with pytest.raises(ValueError, match="none of 2 has a token"):
        call([("a", digest.empty(8), None), ("b", digest.empty(8), None)], *more)


@pytest.mark.parametrize(
    ("records", "message"),
    {
        "a dict": ({"a": 1}, "a History or a list of .* but got dict"),
        "no tuple": ([torch.zeros(11, 2)], r"tuple \(name, .* but got a tensor of shape \[11, 2\]"),
        "no name": ([(torch.zeros(11, 2), None)], "but got tuple of 2"),
        "no digest": ([("a", torch.zeros(3), None)], r"digest of 'a' .* but got a tensor of shape \[3\]"),
        "a list for a digest": ([("a", [1.0], None)], "digest of 'a' .* but got list"),
        "a name twice": ([("a", digest.empty(8), None)] * 2, "'a' twice"),
        "no counts": ([("a", digest.from_values(torch.ones(3)), torch.zeros(3, 4))], r"\[128, 97\]"),
    }.values(),
)
def test_what_is_no_record_raises(records, message):
    with pytest.raises(ValueError, match=message):
        concordance.ties(records, "p50")


@pytest.mark.parametrize("statistic", ["median", "p101", "50", "p50.0", ""])
def test_an_unknown_statistic_raises(statistic, run):
    with pytest.raises(ValueError, match="p99_9"):
        concordance.ties(run[:1], statistic)


# A history


def test_a_history_is_compared_by_its_labels(run, tmp_path):
    history = History.load(written(tmp_path / "history.jsonl", run[:4]))
    found, listed = concordance.ties(history, "p50"), concordance.ties(run[:4], "p50")
    assert list(found.costs) == [record.label for record in history]
    assert list(found.costs.values()) == list(listed.costs.values())
    assert list(found.allowed.values()) == list(listed.allowed.values())
    assert concordance.ties(list(history), "p50") == found


@pytest.mark.parametrize(
    ("more", "chosen", "there"),
    [
        ({"run_id": "b"}, {"run": "b"}, "run but got 'a', 'b'"),
        ({"name": "val_dl1"}, {"name": "val_dl1"}, "name but got 'val', 'val_dl1'"),
    ],
)
def test_several_runs_or_loaders_are_listed_and_chosen_by_select(run, tmp_path, more, chosen, there):
    path = written(tmp_path / "history.jsonl", run[:2])
    history = History.load(written(path, run[2:4], **more))
    with pytest.raises(ValueError, match=there) as raised:
        concordance.verdict(history)
    assert "select(run=, name=, of=)" in str(raised.value)
    assert len(concordance.ties(history.select(**chosen), "p50").costs) == 2


def test_the_only_statistic_is_taken_and_one_that_is_not_there_is_refused_with_those_that_are(run, tmp_path):
    history = History.load(written(tmp_path / "history.jsonl", run[:2], statistic="entropy"))
    assert concordance.ties(history, "p50").best == history[1].label
    with pytest.raises(ValueError, match="entropy"):
        concordance.verdict(history.select(of="ce"))


def test_several_statistics_are_listed_and_chosen_by_select(run, tmp_path):
    path = tmp_path / "history.jsonl"
    for step, (_, state, documents) in enumerate(run[:3]):
        digests = {"ce": {"": state}, "entropy": {"": run[4 - 2 * step][1]}}
        write_validation(
            path, run="a", name="val", step=step, digests=digests, documents={"ce": {"": documents}}
        )
    history = History.load(path)
    with pytest.raises(ValueError, match="one statistic but got 'ce', 'entropy'") as raised:
        concordance.verdict(history)
    assert "select(run=, name=, of=)" in str(raised.value)
    assert concordance.ties(history.select(of="ce"), "p50").best == history[2].label
    assert concordance.ties(history.select(of="entropy"), "p50").best == history[0].label


def test_the_tolerance_in_nats_holds_for_ce_and_entropy_only(tmp_path):
    records = shifted(0.0, 0.005)
    for statistic, number in (("entropy", 2), ("log_rank", 1)):
        path = written(tmp_path / statistic, records, statistic=statistic)
        history = History.load(path).select(of=statistic)
        assert len(concordance.ties(history, "p50").names) == number
    small = [(name, digest.from_values(torch.zeros(5)), None) for name in ("a", "b")]
    path = written(tmp_path / "small", small, statistic="log_rank")
    assert concordance.saturated(History.load(path).select(of="log_rank")) == ()


def test_a_statistic_that_is_better_when_higher_is_refused(tmp_path):
    path = written(tmp_path / "history.jsonl", shifted(0.0, 0.1), statistic="target_prob")
    with pytest.raises(ValueError, match="better when lower, one of ce, entropy, log_rank, margin"):
        concordance.verdict(History.load(path).select(of="target_prob"))


# A warning in training


def test_mean_and_bulk_have_a_tie_in_common_or_not():
    assert concordance.common_tie(run_of(generators.agreeing))
    assert concordance.common_tie(run_of(generators.tail_regression))
    assert not concordance.common_tie(run_of(generators.saturating))
    assert not concordance.common_tie(run_of(generators.split, 6, 1600))


def test_where_nothing_can_be_said_there_is_no_warning(run):
    assert concordance.common_tie([])
    assert concordance.common_tie(run[:1])
    assert concordance.common_tie([run[0], ("epoch 2", digest.from_values(torch.ones(5)), None)])
    certain = [(name, digest.from_values(torch.full((9,), 1e-5)), None) for name in ("a", "b")]
    assert concordance.common_tie(certain)


def test_of_many_records_the_lowest_of_each_are_looked_at():
    bulk = torch.linspace(0.5, 1, 99)
    records = [
        (f"{k}", digest.from_values(torch.cat([bulk - k / 500, torch.tensor([50.0 + k])])), None)
        for k in range(120)
    ]
    assert not concordance.common_tie(records)
    assert concordance.common_tie([*records, ("both", digest.from_values(bulk.new_full((100,), 0.1)), None)])


@pytest.mark.parametrize("group", ["", "web"])
def test_of_a_long_history_only_the_lowest_are_read(group, tmp_path):
    bulk, path = torch.linspace(0.5, 1, 99), tmp_path / "history.jsonl"
    prefix = f"ce_{group}_" if group else "ce_"
    for k in range(100):
        state = digest.from_values(torch.cat([bulk - k / 500, torch.tensor([50.0 + k])]))
        values = {
            "mean": digest.mean(state),
            **{f"p{p}": digest.quantile(state, p / 100) for p in (50, 75, 90)},
        }
        write_validation(
            path,
            run="a",
            name="val",
            step=k,
            values={f"{prefix}{name}": float(value) for name, value in values.items()},
            # Of those between the lowest means and the lowest percentiles none that could be read.
            digests={"ce": {group: state}} if k < 20 or k >= 80 else {},
        )
    history = History.load(path).select(group=group)
    assert not concordance.common_tie(history)
    assert concordance.common_tie(history[:2])
