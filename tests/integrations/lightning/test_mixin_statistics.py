"""More statistics than the cross-entropy in a LightningModule: names, numbers, and one read of the logits."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_pce.tokens import statistics as token_statistics_module
from tests.helpers.distributions import exact_quantile
from tests.helpers.lit_modules import (
    IGNORED,
    VOCABULARY,
    LitLM,
    TrainedLM,
    loader,
    make_batches,
    make_trainer,
)

ALL = ("ce", "entropy", "log_rank", "rank", "target_prob", "max_prob", "margin")


def oracle(module, batches):
    """Every statistic of every token that counts, in float64, from the definitions."""
    found = {name: [] for name in (*ALL, "accuracy", "top5_accuracy")}
    for batch in batches:
        with torch.no_grad():
            logits = module(batch).double()
        for row, label in zip(logits.flatten(0, 1), batch["labels"].flatten(), strict=True):
            if label == IGNORED:
                continue
            p = row.softmax(0)
            rank = 1 + int((row > row[label]).sum())  # no ties among these logits
            found["ce"].append(-math.log(p[label]))
            found["entropy"].append(float(-(p * p.log()).sum()))
            found["rank"].append(float(rank))
            found["log_rank"].append(math.log(rank))
            found["target_prob"].append(float(p[label]))
            found["max_prob"].append(float(p.max()))
            found["margin"].append(float(p.max() - p[label]))
            found["accuracy"].append(float(rank == 1))
            found["top5_accuracy"].append(float(rank <= 5))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def validated(module, batches, tmp_path, **arguments):
    trainer = make_trainer(tmp_path, **arguments)
    return trainer.validate(module, loader(batches), verbose=False)[0]


def test_each_statistic_is_logged_under_its_name_with_its_numbers(tmp_path):
    batches, module = make_batches(5, seed=3), LitLM(statistics=ALL, percentiles=(5, 50, 95))
    logged, wanted = validated(module, batches, tmp_path), oracle(module, batches)
    for name in ALL:
        assert logged[f"val_{name}_mean"] == pytest.approx(float(wanted[name].mean()), rel=1e-5, abs=1e-6)
        for p in (5, 50, 95):
            value = float(exact_quantile(wanted[name], p / 100))
            assert logged[f"val_{name}_p{p}"] == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert logged["val_accuracy"] == pytest.approx(float(wanted["accuracy"].mean()))
    assert logged["val_top5_accuracy"] == pytest.approx(float(wanted["top5_accuracy"].mean()))
    assert 0 < logged["val_accuracy"] < logged["val_top5_accuracy"] < 1
    assert len(logged) == 5 * len(ALL) + 2


def test_accuracies_come_with_ranks_alone(tmp_path):
    batches = make_batches(2)
    assert "val_accuracy" in validated(LitLM(statistics=("ce", "log_rank")), batches, tmp_path)
    logged = validated(LitLM(statistics=("ce", "entropy")), batches, tmp_path)
    assert not [name for name in logged if "accuracy" in name or "rank" in name]
    assert "val_entropy_p50" in logged


def test_the_cross_entropy_is_that_of_a_module_without_other_statistics(tmp_path):
    batches = make_batches(4, seed=5)
    plain = validated(LitLM(), batches, tmp_path)
    logged = validated(LitLM(statistics=("entropy", "ce")), batches, tmp_path)
    for name, value in plain.items():
        assert logged[name] == pytest.approx(value, rel=1e-6)


def test_logits_are_read_once(tmp_path, monkeypatch):
    calls = []

    def counted(logits, *args):
        calls.append(logits.shape)
        return original(logits, *args)

    def forbidden(*args, **kwargs):
        raise AssertionError("a second read of the logits")

    original = token_statistics_module.read_rows
    monkeypatch.setattr(token_statistics_module, "read_rows", counted)
    monkeypatch.setattr(F, "cross_entropy", forbidden)
    batches = make_batches(3)
    validated(LitLM(statistics=("ce", "entropy", "log_rank")), batches, tmp_path)
    assert [shape[:-1] for shape in calls] == [batch["labels"].shape for batch in batches]


def test_groups_and_weights_reach_every_statistic(tmp_path):
    class GroupsLM(LitLM):
        def validation_step(self, batch, batch_idx):
            labels = batch["labels"]
            late = torch.arange(labels.shape[1]) >= 2
            weights = torch.where(late, 1, 3).expand(labels.shape)
            self.update_percentile_ce(
                self(batch), labels, weights=weights, group=late.long().expand(labels.shape)
            )

    batches = make_batches(4, seed=7)
    module = GroupsLM(statistics=("ce", "entropy", "rank"), groups=("early", "late"), percentiles=(50,))
    logged = validated(module, batches, tmp_path)
    cut = {
        "early": [{key: value[:, :2] for key, value in batch.items()} for batch in batches],
        "late": [{key: value[:, 2:] for key, value in batch.items()} for batch in batches],
    }
    parts = {group: oracle(module, some) for group, some in cut.items()}
    for group, wanted in parts.items():
        for name in ("ce", "entropy", "rank"):
            value = float(exact_quantile(wanted[name], 0.5))
            assert logged[f"val_{name}_{group}_p50"] == pytest.approx(value, rel=1e-5)
        assert logged[f"val_accuracy_{group}"] == pytest.approx(float(wanted["accuracy"].mean()))
    both = torch.cat([parts["early"]["entropy"].repeat(3), parts["late"]["entropy"]])
    assert logged["val_entropy_mean"] == pytest.approx(float(both.mean()), rel=1e-5)


def test_training_on_the_returned_loss_is_the_same_with_other_statistics(tmp_path):
    batches = make_batches(4, seed=8)
    modules = TrainedLM(), TrainedLM(statistics=("ce", "entropy", "log_rank"))
    for module in modules:
        trainer = make_trainer(tmp_path, max_epochs=1)
        trainer.fit(module, loader(batches), loader(batches[:1]))
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(one, other)
    assert "train_entropy_p50" in trainer.callback_metrics
    assert "train_accuracy" in trainer.callback_metrics


def test_shifted_labels_are_shifted_for_every_statistic(tmp_path):
    batches = make_batches(3, seed=9)
    shifted = [
        {"ids": batch["ids"], "labels": F.pad(batch["labels"], (1, 0), value=IGNORED)[:, :-1]}
        for batch in batches
    ]
    names = ("ce", "entropy", "log_rank")
    logged = validated(LitLM(statistics=names, shift=True), shifted, tmp_path)
    last = [{**batch, "labels": batch["labels"].clone()} for batch in batches]
    for batch in last:
        batch["labels"][:, -1] = IGNORED
    plain = validated(LitLM(statistics=names), last, tmp_path)
    assert logged == pytest.approx(plain, rel=1e-6)


def test_other_statistics_can_not_be_had_from_losses(tmp_path):
    class LossesLM(LitLM):
        def validation_step(self, batch, batch_idx):
            self.update_percentile_ce(losses=torch.ones(4))

    with pytest.raises(ValueError, match=r"`logits` and `labels`: entropy cannot be had"):
        validated(LossesLM(statistics=("ce", "entropy")), make_batches(1), tmp_path)


def test_a_refused_batch_reaches_no_statistic(tmp_path):
    class BadOnceLM(LitLM):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            with pytest.raises(ValueError, match="`labels`"):
                self.update_percentile_ce(self(batch), batch["labels"] + VOCABULARY * 2)

    batches = make_batches(2)
    names = ("ce", "entropy", "log_rank")
    logged = validated(BadOnceLM(statistics=names), batches, tmp_path)
    assert logged == validated(LitLM(statistics=names), batches, tmp_path)


@pytest.mark.parametrize(
    "statistics",
    [
        "ce",
        ("entropy",),
        ("ce", "ce"),
        ("ce", "perplexity"),
        (),
        ("ce", "entropy", "entropy"),
        {"ce", "entropy"},
        None,
    ],
)
def test_impossible_statistics_are_refused_where_they_are_configured(statistics):
    with pytest.raises(ValueError, match="`statistics`"):
        LitLM(statistics=statistics)


def test_statistics_are_logged_in_one_order_however_they_are_listed(tmp_path):
    batches = make_batches(1)
    one = validated(LitLM(statistics=("ce", "entropy", "log_rank")), batches, tmp_path)
    other = validated(LitLM(statistics=("log_rank", "entropy", "ce")), batches, tmp_path)
    assert list(one) == list(other)


def test_a_token_with_nan_logits_counts_in_no_statistic(tmp_path):
    class BrokenLM(LitLM):
        def validation_step(self, batch, batch_idx):
            logits = self(batch).clone()
            logits[0, 0] = torch.nan
            self.update_percentile_ce(logits, batch["labels"])

    names = ("ce", "entropy", "rank")
    batches = make_batches(1)
    logged = validated(BrokenLM(statistics=names), batches, tmp_path)
    batches[0]["labels"][0, 0] = IGNORED
    wanted = validated(LitLM(statistics=names), batches, tmp_path)
    for name in ("val_entropy_p50", "val_rank_mean", "val_accuracy", "val_top5_accuracy"):
        assert logged[name] == pytest.approx(wanted[name], rel=1e-6)
