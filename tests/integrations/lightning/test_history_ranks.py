"""PercentileHistory on two real ranks: one file, written once, and the same better share on both."""

import math
import os
from pathlib import Path

import pytest
import torch

from lightning_pce import History


@pytest.fixture
def ranks(lightning_ranks):
    return lightning_ranks


@pytest.fixture
def root(ranks, tmp_path_factory):
    """Where the ranks have written."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"


def pooled(both, loader="0"):
    """For each validation: the losses of both ranks together, and what was logged on both alike."""
    for runs in zip(*(notes["runs"] for notes in both), strict=True):
        assert repr(runs[0][1]) == repr(runs[1][1])
        yield torch.cat([torch.tensor(losses.get(loader, [])) for losses, _ in runs]).double(), runs[0][1]


def shares_by_hand(runs):
    best, found, u = None, [], torch.arange(1, 200, dtype=torch.float64) / 200
    for losses in runs:
        now = torch.quantile(losses, u)
        found.append(math.nan if best is None else float((now < torch.quantile(best, u)).double().mean()))
        best = losses if best is None or losses.mean() < best.mean() else best
    return found


def assert_shares(both, **where):
    runs = list(pooled(both, **where))
    logged = [metrics["val_ce_better_share"] for _, metrics in runs]
    assert logged == pytest.approx(shares_by_hand(losses for losses, _ in runs), nan_ok=True)
    assert len(set(logged)) > 2


def test_rank_0_writes_each_validation_once_with_the_tokens_of_both(ranks, root):
    both = [notes["history"] for notes in ranks]
    history = History.load(root / "history" / "history0.jsonl")
    assert not (root / "history" / "history1.jsonl").exists()
    text = (root / "history" / "history0.jsonl").read_text()
    assert text.count('"kind":"validation"') == 3
    assert text.count('"kind":"start"') == 1
    assert [record.step for record in history] == [3, 6, 9]
    for record, (losses, _) in zip(history, pooled(both), strict=True):
        assert record.values["ce_count"] == len(losses)
        assert record.values["ce_mean"] == pytest.approx(float(losses.mean()))
        assert float(record.digest()[:-3, 1].sum()) == len(losses)
    assert both[0]["run"] == both[1]["run"] == history.runs[0]
    assert_shares(both)


def test_the_measuring_callback_writes_each_dataloader_once_to_the_file_of_rank_0(ranks, root):
    both = [notes["history_of_callback"] for notes in ranks]
    path = root / "history_of_callback" / "percentile_history.jsonl"
    history = History.load(path)
    assert path.read_text().count('"kind":"validation"') == len(history) == 6
    for index, name in enumerate(("val_web", "val_code")):
        counts = [record.values["ce_count"] for record in history.select(name=name)]
        assert counts == [len(losses) for losses, _ in pooled(both, str(index))]


def test_monitors_of_the_share_decide_alike_where_a_rank_has_no_batches(ranks, root):
    both = [notes["history_monitored"] for notes in ranks]
    assert [losses for losses, _ in both[0]["runs"]] == [{}] * len(both[0]["runs"])
    assert_shares(both)
    assert both[0]["kept"] == both[1]["kept"] != []
    assert both[0]["best"] == both[1]["best"] != ""
    assert both[0]["stopped_after"] == both[1]["stopped_after"] < 6
    history = History.load(root / "monitored" / "history0.jsonl")
    files = [each.path for record in history for each in record.checkpoints]
    assert sorted(files) == both[0]["kept"]


def test_after_a_resume_the_best_digest_of_rank_0_counts_on_both(ranks, root):
    whole, again = ([notes["history_resumed"][part] for notes in ranks] for part in ("whole", "again"))
    last = [[runs["runs"][-1][1] for runs in both] for both in (whole, again)]
    assert len({repr(logged) for both in last for logged in both}) == 1
    assert 0 <= last[0][0]["val_ce_better_share"] <= 1
    assert len({notes["run"] for notes in (*whole, *again)}) == 1
    history = History.load(root / "resumed" / "history0.jsonl")
    assert [record.step for record in history] == [3, 6, 9]
    assert not Path(root / "resumed" / "history1.jsonl").exists()


def test_a_history_adds_no_collective_to_a_validation(ranks):
    for notes in ranks:
        counted = notes["history_collectives"]
        assert counted["with"] == counted["without"] == [["all_gather"]] * 3
