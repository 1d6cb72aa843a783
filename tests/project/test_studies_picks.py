"""What each statistic picks of a run, and what that costs in the task."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.studies.picks import STATISTICS, picks_of, resampled_mean, share, worse
from lightning_pce import PercentileCrossEntropy, digest
from lightning_pce.runs.concordance import ties, verdict
from lightning_pce.runs.history import History, write_validation
from tests.helpers import checkpoint_runs as generators
from tests.helpers.checkpoint_runs import run_of, written

FACTS = 100


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    path = tmp_path_factory.mktemp("picks") / "history.jsonl"
    return History.load(written(path, run_of(generators.saturating, epochs=8)))


def recalled(counts):
    """By label: so many facts, the first ones, are recalled."""
    return {f"epoch {epoch}": (np.arange(FACTS) < count).astype(float) for epoch, count in enumerate(counts)}


@pytest.fixture(scope="module")
def found(history):
    return picks_of(history, recalled([10, 20, 40, 60, 80, 95, 99, 99]))


def test_a_pick_is_the_lowest_and_has_the_task_there(history, found):
    assert list(found["picks"]) == list(found["correlation"]) == list(STATISTICS)
    assert found["candidates"] == [f"epoch {epoch}" for epoch in range(8)]
    values = {"mean": [digest.mean(each.digest()) for each in history]}
    values["trimmed_mean"] = [digest.trimmed_mean(each.digest(), 0.05, 0.95) for each in history]
    values["p75"] = [digest.quantile(each.digest(), 0.75) for each in history]
    for name, of_epoch in values.items():
        pick, lowest = found["picks"][name], int(torch.stack(of_epoch).argmin())
        assert pick["label"] == f"epoch {lowest}"
        assert pick["value"] == pytest.approx(float(of_epoch[lowest]), abs=1e-6)
        assert pick["task"] == found["task"][pick["label"]]
        assert pick["behind"] == pytest.approx(0.99 - pick["task"])
        numbers = [float(value) for value in of_epoch]
        for kind, correlate in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            expected = correlate(numbers, list(found["task"].values())).statistic
            assert found["correlation"][name][kind] == pytest.approx(expected, abs=1e-5)
    assert found["correlation"]["p75"]["spearman"] < -0.9 < 0.5 < found["correlation"]["p99"]["pearson"]


def test_the_earliest_best_is_the_best_and_an_equal_pick_misses_nothing(found):
    assert found["best"] == "epoch 6"
    late, early = found["picks"]["p75"], found["picks"]["p95"]
    assert late["label"] == "epoch 7"
    assert (late["behind"], late["behind_high"], late["missed"]) == (0, 0, False)
    assert early["missed"]
    assert early["behind_low"] > 0.1
    assert found["not_worse"] == ["epoch 5", "epoch 6", "epoch 7"]  # 4 facts less in epoch 5: p = 0.125


def test_one_fact_less_is_no_miss(history):
    one = picks_of(history, recalled([10, 20, 40, 60, 80, 95, 99, 98]))["picks"]["p75"]
    assert (one["behind"], one["behind_low"], one["missed"]) == (0.01, 0, False)


@pytest.mark.parametrize(("lost", "gained"), [(4, 0), (5, 0), (6, 0), (7, 1), (8, 1), (12, 3), (2, 2)])
def test_of_facts_right_or_wrong_worse_is_the_exact_mcnemar_test(lost, gained):
    best = np.repeat([1.0, 0.0, 1.0], [lost, gained, 120 - lost - gained])
    other = np.repeat([0.0, 1.0, 1.0], [lost, gained, 120 - lost - gained])
    few = sum(math.comb(lost + gained, k) for k in range(gained + 1)) / 2 ** (lost + gained)
    assert worse(best, other) == (2 * few < 0.05)
    assert not worse(other, best)
    assert not worse(best, best)


def test_what_misses_and_what_the_shortlist_holds_follow_that_test_and_the_intervals_do_not(history):
    """Four of 120 facts one way and none the other: the interval leaves out 0, p is 0.125."""
    late = history[-1].label
    for count, is_worse in ((95, False), (93, True)):  # 4 and 6 less than 99
        found = picks_of(history, recalled([10, 20, 40, 60, 80, 85, 99, count]))
        assert found["picks"]["p75"]["label"] == late
        assert found["picks"]["p75"]["behind_low"] > 0
        assert found["picks"]["p75"]["missed"] == is_worse == (late not in found["not_worse"])
    assert found["not_worse"] == ["epoch 6"]
    assert found["shortlist_holds_best"] == ("epoch 6" in found["shortlist"])


def test_of_other_tasks_worse_is_where_the_interval_leaves_out_0(history):
    nats = {label: each - 3.5 for label, each in recalled([10, 20, 40, 60, 80, 85, 99, 95]).items()}
    found = picks_of(history, nats)
    assert found["picks"]["p75"]["behind_low"] > 0
    assert found["picks"]["p75"]["missed"]
    assert found["not_worse"] == ["epoch 6"]


def test_whether_groups_of_tokens_part_is_as_the_verdict_says(tmp_path):
    def record(epoch, prompt, completion):
        metric = PercentileCrossEntropy(groups=("prompt", "completion"), error_bars=True)
        hardness = torch.from_numpy(np.random.default_rng(0).uniform(0.9, 1.1, FACTS))
        losses, group = torch.stack([prompt * hardness, completion * hardness]), torch.tensor([[0], [1]])
        document = torch.arange(FACTS).expand(2, FACTS)
        metric.update(losses=losses, group=group.expand(2, FACTS), document=document)
        values = {f"ce_{name}": float(value) for name, value in metric.compute().items()}
        return {
            "epoch": epoch,
            "values": values,
            "digests": {"ce": {"": metric.digest, **metric.group_digests}},
            "documents": {"ce": {"": metric.documents, **metric.group_documents}},
        }

    def found(name, rows):
        path = tmp_path / f"{name}.jsonl"
        for epoch, (prompt, completion) in enumerate(rows):
            row = record(epoch, prompt, completion)
            write_validation(path, run="r", name="val", function="fit", step=epoch, **row)
        history = History.load(path)
        picked = picks_of(history, recalled([10, 20, 40]))
        assert picked["groups_part"] == any(
            "Groups of tokens part" in each for each in verdict(history).sentences
        )
        return picked["groups_part"]

    assert found("part", [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)])
    assert not found("agree", [(3.0, 3.0), (2.0, 2.0), (1.0, 1.0)])


def test_the_shortlist_is_that_of_the_verdict(history, found):
    said = verdict(history)
    assert found["shortlist"] == list(said.shortlist)
    assert found["shortlist_size"] == len(said.shortlist) > 1
    assert (found["agree"], found["bulk"], found["alarm"]) == (said.agree, said.bulk, said.alarm)
    assert found["saturated"] == list(said.saturated)
    assert found["ties"]["p50"] == list(ties(history, "p50").names)
    assert found["shortlist_task"] == {label: found["task"][label] for label in said.shortlist}
    assert found["shortlist_holds_best"]
    nowhere = recalled([0] * 8)
    other = next(label for label in found["candidates"] if label not in said.shortlist)
    assert not picks_of(history, nowhere | {other: np.ones(FACTS)})["shortlist_holds_best"]


def test_of_a_task_that_never_changes_there_is_no_correlation(history):
    found = picks_of(history, recalled([50] * 8))
    assert set(map(tuple, (each.values() for each in found["correlation"].values()))) == {(None, None)}
    assert found["best"] == "epoch 0"
    assert not any(pick["missed"] for pick in found["picks"].values())


def test_intervals_of_shares_are_wilsons_and_of_other_tasks_resamples(history):
    assert share(np.zeros(120)).high == pytest.approx(0.031, abs=5e-4)
    rng = np.random.default_rng(0)
    values = rng.standard_normal(400)
    found = resampled_mean(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert resampled_mean(values) == found
    accuracy = {label: each + 0.5 for label, each in recalled([10, 20, 40, 60, 80, 95, 99, 98]).items()}
    pick = picks_of(history, accuracy)["picks"]["p95"]
    assert pick["low"] < pick["task"] < pick["high"] < 2
