"""PercentileHistory under a real Trainer: what is in its file, beside an oracle that scores every token."""

import json
import logging
import math
import warnings
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_pce import History, PercentileCECallback, PercentileHistory
from tests.helpers.lit_modules import (
    LevelsLM,
    LitLM,
    LoadersLM,
    Oracle,
    PlainLM,
    Returning,
    fit,
    make_loader,
    make_trainer,
)

KEYS = {"mean", "p5", "p25", "p50", "p75", "p90", "p95", "p99", "trimmed_mean", "finite_mean", "count"}


class TaskLM(LitLM):
    """Logs metrics of its own, in every place where it can."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val_step_task", float(batch_idx))

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val_hook_task", 10.0 + self.global_step)
        if self.current_epoch == 0:
            self.log("val_sometimes", 1.0)


class OtherCallback(L.Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("other_task", 20.0 + trainer.global_step)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "history.jsonl"


def keys(history):
    return [(each.function, each.name, each.step, each.epoch, each.batch) for each in history]


def assert_measured(record, losses):
    """The record is of these losses, and so is its digest."""
    losses = losses.double()
    assert {f"ce_{key}" for key in KEYS} <= record.values.keys()
    for p in (5, 25, 50, 75, 90, 95, 99):
        assert record.values[f"ce_p{p}"] == pytest.approx(float(torch.quantile(losses, p / 100)), rel=1e-5)
    assert record.values["ce_mean"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert record.values["ce_count"] == len(losses)
    means, weights = record.digest().T
    assert float(weights[:-3].sum()) == len(losses)
    assert float((means * weights)[:-3].sum() / len(losses)) == pytest.approx(record.values["ce_mean"])


def test_each_validation_of_a_fit_is_a_record_and_the_sanity_check_is_none(tmp_path, path):
    callback, oracle = PercentileHistory(path), Oracle()
    fit(tmp_path, LitLM(), callback, oracle, max_epochs=3, num_sanity_val_steps=2)
    history = History.load(path)
    assert keys(history) == [("fit", "val", 2 * epoch + 2, epoch, 2 * epoch + 2) for epoch in range(3)]
    assert [record.label for record in history] == ["epoch 0", "epoch 1", "epoch 2"]
    assert (history.runs, history.torn) == ((callback.run,), 0)
    for record, (losses, _) in zip(history, oracle.single, strict=True):
        assert_measured(record, losses)
    assert keys(callback.history) == keys(history)
    assert len({record.fingerprint for record in history}) == 1


def test_with_accumulation_several_validations_of_one_step_are_told_apart(tmp_path, path):
    oracle = Oracle()
    arguments = {"accumulate_grad_batches": 4, "val_check_interval": 1}
    fit(tmp_path, LitLM(), PercentileHistory(path), oracle, train=4, max_epochs=2, **arguments)
    history = History.load(path)
    assert [(record.step, record.batch) for record in history] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 4),
        (1, 5),
        (1, 6),
        (1, 7),
        (2, 8),
    ]
    assert history[1].label == "batch 2"
    for record, (losses, _) in zip(history, oracle.single, strict=True):
        assert_measured(record, losses)


@pytest.mark.parametrize("pooled", [False, True])
def test_each_dataloader_has_records_and_all_together_if_they_are_pooled(tmp_path, path, pooled):
    oracle, callback = Oracle(), PercentileHistory(path)
    loaders = [make_loader(3, seed=2), make_loader(2, seed=3)]
    module = LoadersLM(loader_names=("web", "code"), pool_loaders=pooled)
    fit(tmp_path, module, callback, oracle, val=loaders, max_epochs=2)
    names = ["val_web", "val_code", *(["val"] if pooled else [])]
    history = callback.history
    assert [record.name for record in history] == names * 2
    for epoch, (losses, _) in enumerate(oracle.runs):
        parts = [*losses.values(), torch.cat([*losses.values()])][: len(names)]
        for name, part in zip(names, parts, strict=True):
            assert_measured(history.select(name=name)[epoch], part)
    fingerprints = {record.name: record.fingerprint for record in history}
    assert len(set(fingerprints.values())) == len(names)


def test_groups_and_other_statistics_have_digests_of_their_own(tmp_path, path):
    class GroupsLM(LitLM):
        def validation_step(self, batch, batch_idx):
            group = torch.tensor([0, 1])
            self.update_percentile_ce(
                self(batch), batch["labels"], group=group, document=group + 2 * batch_idx
            )

    module = GroupsLM(groups=("web", "code"), statistics=("ce", "log_rank"), error_bars=True)
    fit(tmp_path, module, PercentileHistory(path), val=32)
    [record] = History.load(path)
    assert (record.statistics, record.groups) == (("ce", "log_rank"), ("", "web", "code"))
    for of in record.statistics:
        for group in record.groups:
            prefix = f"{of}_{group}_" if group else f"{of}_"
            tokens = record.values[f"{prefix}count"]
            assert float(record.digest(of, group)[:-3, 1].abs().sum()) == tokens
            assert float(record.documents(of, group)[:, :96].sum()) == tokens
            low, high = record.values[f"{prefix}p50_low"], record.values[f"{prefix}p50_high"]
            assert low < record.values[f"{prefix}p50"] < high
    assert 0 <= record.values["accuracy_web"] <= 1


def test_what_others_log_in_a_validation_is_in_its_record_and_what_is_stale_is_apart(tmp_path, path):
    callbacks = [OtherCallback(), PercentileHistory(path), OtherCallback()][1:]
    fit(tmp_path, TaskLM(), *callbacks, train=4, max_epochs=2, val_check_interval=2)
    history = History.load(path)
    for record in history:
        sometimes = {"val_sometimes": 1.0}
        assert record.scalars == {
            "val_step_task": 1.0,
            "val_hook_task": 10.0 + record.step,
            "other_task": 20.0 + record.step,
            **(sometimes if record.epoch == 0 else {}),
        }
        assert record.stale.keys() == {"train_loss", *([] if record.epoch == 0 else sometimes)}


def test_validate_after_a_fit_is_a_record_and_of_a_checkpoint_the_step_is_unknown(tmp_path, path):
    callback, module, val = PercentileHistory(path), TaskLM(), make_loader(3, seed=2)
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1)
    trainer = make_trainer(tmp_path, callback, keep, max_epochs=2)
    trainer.validate(module, val, verbose=False)
    trainer.fit(module, make_loader(2, seed=1), val)
    trainer.validate(module, val, verbose=False)
    first = tmp_path / "kept" / "step=2.ckpt"
    trainer.validate(module, val, ckpt_path=first, verbose=False)
    fresh = PercentileHistory(path)
    make_trainer(tmp_path, fresh).validate(
        TaskLM(), val, ckpt_path=tmp_path / "kept/step=4.ckpt", verbose=False
    )
    history = History.load(path)
    assert keys(history) == [
        ("validate", "val", 0, None, 0),
        ("fit", "val", 2, 0, 2),
        ("fit", "val", 4, 1, 4),
        ("validate", "val", 4, None, 4),
        ("validate", "val", None, None, None),
        ("validate", "val", None, None, None),
    ]
    for unknown, known in ((history[4], history[1]), (history[5], history[2])):
        assert unknown.values["ce_p50"] == known.values["ce_p50"]
    assert history[4].checkpoints == ((str(first), None, False),)
    assert history[4].label.endswith("validate step=2.ckpt")
    assert "ce_better_share" not in history[3].values


def test_the_path_may_begin_in_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    callback = PercentileHistory("~/history.jsonl")
    fit(tmp_path, LitLM(), callback)
    assert callback.path == tmp_path / "history.jsonl"
    assert len(callback.history) == 1


@pytest.mark.parametrize("load", ["validate", "test"])
def test_weights_of_a_checkpoint_stay_loaded_so_the_step_stays_unknown_until_training_goes_on(
    tmp_path, path, load
):
    callback, module, val = PercentileHistory(path), LitLM(), make_loader(3, seed=2)
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1)
    trainer = make_trainer(tmp_path, callback, keep, max_epochs=2)
    trainer.fit(module, make_loader(2, seed=1), val)
    trainer.validate(module, val, verbose=False)
    first = tmp_path / "kept" / "step=2.ckpt"
    getattr(trainer, load)(module, val, ckpt_path=first, verbose=False)
    trainer.validate(module, val, verbose=False)
    *fitted, known, unknown = callback.history
    assert keys([known, unknown]) == [("validate", "val", 4, None, 4), ("validate", "val", None, None, None)]
    assert unknown.checkpoints == ((str(first), None, False),)
    for record, of in ((known, fitted[1]), (unknown, fitted[0])):
        assert record.values["ce_mean"] == of.values["ce_mean"]
    trainer.validate(LitLM(), val, verbose=False)  # another one
    assert callback.history[-1].step == 4
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, make_loader(2, seed=1), val)
    trainer.validate(module, val, verbose=False)
    assert [record.step for record in callback.history[-2:]] == [6, 6]


def test_several_checkpoints_that_one_trainer_validates_are_several_records(tmp_path, path):
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1)
    fit(tmp_path, LitLM(), keep, max_epochs=3)
    trainer = make_trainer(tmp_path, PercentileHistory(path))
    for step in (2, 4, 6, 4):
        kept = tmp_path / "kept" / f"step={step}.ckpt"
        trainer.validate(LitLM(), make_loader(3, seed=2), ckpt_path=kept, verbose=False)
    assert [record.label for record in History.load(path)] == ["step=2.ckpt", "step=6.ckpt", "step=4.ckpt"]


KEPT = {
    "at the end of epochs": ({}, {2: [2], 4: [4]}),
    "after validation": ({"save_on_train_epoch_end": False}, {1: [1], 2: [2], 3: [3], 4: [4]}),
    "by steps": ({"every_n_train_steps": 3}, {3: [3]}),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kept", KEPT)
def test_checkpoints_are_found_by_their_step_and_last_is_of_none(tmp_path, path, kept, last):
    arguments, expected = KEPT[kept]
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1, save_last=last, **arguments)
    fit(tmp_path, LitLM(), keep, PercentileHistory(path), max_epochs=2, val_check_interval=1)
    assert (tmp_path / "kept" / "last.ckpt").exists() == last
    for record in History.load(path):
        files = [str(tmp_path / "kept" / f"step={step}.ckpt") for step in expected.get(record.step, [])]
        assert record.checkpoints == tuple((file, None, False) for file in files)


def test_a_checkpoint_from_before_a_validation_is_noted_before_it(tmp_path, path):
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1, every_n_train_steps=2)
    fit(tmp_path, LitLM(), keep, PercentileHistory(path), max_epochs=2)
    kinds = [(line["kind"], line["step"]) for line in map(json.loads, path.read_text().splitlines())]
    assert kinds == [
        ("start", 0),
        *((kind, step) for step in (2, 4) for kind in ("checkpoint", "validation")),
    ]


def test_of_a_single_best_file_the_others_are_shown_as_deleted(tmp_path, path):
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", monitor="val_ce_p50", save_top_k=1)
    fit(tmp_path, LevelsLM([3, 2, 4, 1]), keep, PercentileHistory(path), max_epochs=4)
    found = [each for record in History.load(path) for each in record.checkpoints]
    assert [each.deleted for each in found] == [True, True, False]
    assert {each.path for each in found if not each.deleted} == {keep.best_model_path}
    assert {each.monitor for each in found} == {"val_ce_p50"}


def test_a_file_that_is_written_over_is_of_the_last_step(tmp_path, path):
    keep = ModelCheckpoint(tmp_path / "kept", "same")
    fit(tmp_path, LitLM(), keep, PercentileHistory(path), max_epochs=3)
    assert [len(record.checkpoints) for record in History.load(path)] == [0, 0, 1]


def test_two_runs_share_a_file(tmp_path, path):
    callbacks = [PercentileHistory(path, {"lr": name}) for name in ("low", "high")]
    for callback in callbacks:
        fit(tmp_path, LitLM(), callback, max_epochs=2)
    history = History.load(path)
    assert history.runs == tuple(callback.run for callback in callbacks)
    assert [record.metadata["lr"] for record in history] == ["low", "low", "high", "high"]
    assert keys(callbacks[0].history) == keys(callbacks[1].history)
    assert len({record.fingerprint for record in history}) == 1
    assert len({record.label for record in history}) == 4


def test_one_callback_in_two_trainers_writes_two_runs(tmp_path, path):
    callback = PercentileHistory(path)
    for _ in range(2):
        fit(tmp_path, LitLM(), callback)
    assert len(History.load(path).runs) == 2
    assert [math.isnan(record.values["ce_better_share"]) for record in History.load(path)] == [True, True]


def test_what_the_user_says_of_the_data_is_part_of_the_fingerprint(tmp_path, path):
    for data in ("a", "b", "a"):
        fit(tmp_path, LitLM(), PercentileHistory(path, {"data": data}))
    first, second, third = (record.fingerprint for record in History.load(path))
    assert first == third != second


def test_other_data_have_another_fingerprint(tmp_path, path):
    for val in (3, 2):
        fit(tmp_path, LitLM(), PercentileHistory(path), val=val)
    assert len({record.fingerprint for record in History.load(path)}) == 2


def test_metadata_that_json_cannot_hold_is_refused_at_once():
    with pytest.raises(ValueError, match="Expected argument `metadata` to hold what JSON can hold"):
        PercentileHistory(metadata={"x": torch.zeros(1)})


# Where it is written


def test_by_default_the_file_is_where_the_logger_writes_or_else_in_the_root(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*exists and is not empty.*")
        fit(tmp_path, LitLM(), PercentileHistory(), logger=CSVLogger(tmp_path, name="csv", version=3))
    assert len(History.load(tmp_path / "csv" / "version_3" / "percentile_history.jsonl")) == 1
    fit(tmp_path, LitLM(), PercentileHistory(), logger=False)
    assert len(History.load(tmp_path / "percentile_history.jsonl")) == 1


def test_fast_dev_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = PercentileHistory("history.jsonl")
    fit(tmp_path, LitLM(), callback, fast_dev_run=2)
    fit(tmp_path, LitLM(), PercentileHistory(), fast_dev_run=True)
    assert list(tmp_path.rglob("*.jsonl")) == []
    assert list(callback.history) == []


def said(record):
    return [str(each.message) for each in record if "PercentileHistory" in str(each.message)]


def test_a_file_that_cannot_be_written_is_one_warning_and_the_run_goes_on(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.warns(match="PercentileHistory") as record:
        trainer = fit(tmp_path, LitLM(), PercentileHistory(tmp_path / "folder"), max_epochs=3)
    assert trainer.global_step == 6
    [message] = said(record)
    assert "could not write" in message
    assert str(tmp_path / "folder") in message
    assert "IsADirectoryError" in message


def test_where_warnings_are_errors_the_log_has_the_words(tmp_path, caplog):
    (tmp_path / "file").touch()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.filterwarnings("error", message=".*PercentileHistory")
        trainer = fit(tmp_path, LitLM(), PercentileHistory(tmp_path / "file" / "below.jsonl"), max_epochs=2)
    assert trainer.global_step == 4
    [message] = [each.message for each in caplog.records if each.name.endswith("history_writer")]
    assert "could not write" in message


def test_a_module_that_measures_nothing_is_named_once(tmp_path, path):
    with pytest.warns(match="PercentileHistory") as record:
        fit(tmp_path, PlainLM(), PercentileHistory(path), max_epochs=2)
    [message] = said(record)
    assert "PlainLM measures no percentile CE" in message
    assert list(History.load(path)) == []


# The share of percentiles that are better


def shares_by_hand(runs):
    """Of the losses of each validation, beside those with the lowest mean before it."""
    best, found, u = None, [], torch.arange(1, 200, dtype=torch.float64) / 200
    for losses in (each.double() for each in runs):
        now = torch.quantile(losses, u)
        found.append(math.nan if best is None else float((now < torch.quantile(best, u)).double().mean()))
        best = losses if best is None or losses.mean() < best.mean() else best
    return found


@pytest.mark.parametrize("sanity", [0, 2])
def test_the_better_share_is_logged_and_is_that_of_the_best_mean_so_far(tmp_path, path, sanity):
    oracle = Oracle()
    callback = PercentileHistory(path)
    trainer = fit(
        tmp_path,
        LitLM(),
        callback,
        oracle,
        train=4,
        max_epochs=3,
        val_check_interval=2,
        num_sanity_val_steps=sanity,
    )
    expected = shares_by_hand(losses for losses, _ in oracle.single)
    assert len(set(expected[1:])) > 2
    logged = [float(metrics["val_ce_better_share"]) for _, metrics in oracle.runs]
    assert logged == pytest.approx(expected, nan_ok=True)
    recorded = [record.values["ce_better_share"] for record in callback.history]
    assert recorded == pytest.approx(expected, nan_ok=True)
    assert not any("better_share" in name for record in callback.history for name in record.scalars)
    trainer.validate(LitLM(), make_loader(3), verbose=False)
    assert "val_ce_better_share" not in trainer.callback_metrics  # there is no training to be better in


def test_checkpoints_and_early_stopping_can_go_by_the_better_share(tmp_path, path):
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", monitor="val_ce_better_share", mode="max")
    stop = EarlyStopping("val_ce_better_share", mode="max", patience=2, check_finite=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, LitLM(), keep, stop, PercentileHistory(path), train=2, max_epochs=12)
    assert not [each for each in caught if "better_share" in str(each.message)]
    shares = {record.step: record.values["ce_better_share"] for record in History.load(path)}
    best = max((share, -step) for step, share in shares.items() if not math.isnan(share))
    assert keep.best_model_path.endswith(f"step={-best[1]}.ckpt")
    assert trainer.should_stop == (trainer.global_step < 24)


# The measuring callback writes by itself


@pytest.mark.parametrize("how", ["path", "callback", "true"])
def test_the_measuring_callback_writes_by_itself(tmp_path, path, how):
    given = {"path": path, "callback": PercentileHistory(path), "true": True}[how]
    callback, oracle = PercentileCECallback(history=given), Oracle()
    loaders = [make_loader(2, seed=3), make_loader(3, seed=4)]
    trainer = fit(tmp_path, Returning(), callback, oracle, val=loaders, max_epochs=2, logger=False)
    written = History.load(tmp_path / "percentile_history.jsonl" if how == "true" else path)
    assert keys(callback.history) == keys(written)
    assert [record.name for record in written] == ["val_dl0", "val_dl1"] * 2
    for record, losses in zip(
        written, [each for run, _ in oracle.runs for each in run.values()], strict=True
    ):
        assert_measured(record, losses)
    assert "val_dl1_ce_better_share" in trainer.callback_metrics
    trainer.validate(Returning(), loaders, verbose=False)
    assert [record.function for record in callback.history][-2:] == ["validate"] * 2


def test_the_measuring_callback_in_another_trainer_writes_another_run(tmp_path, path):
    callback = PercentileCECallback(history=path)
    for _ in range(2):
        fit(tmp_path, Returning(), callback)
    assert len(History.load(path).runs) == 2


def test_a_history_that_the_measuring_callback_cannot_write_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match='`stages` to hold "val" for a history'):
        PercentileCECallback(stages=("test",), history=True)
    callback = PercentileCECallback(history=path)
    with pytest.raises(RuntimeError, match="leave one of them out"):
        fit(tmp_path, Returning(), callback, PercentileHistory(path))
    with pytest.raises(RuntimeError, match="writes no history"):
        _ = PercentileCECallback().history


def test_the_measuring_callback_leaves_the_file_to_a_history_beside_it(tmp_path, path):
    fit(tmp_path, Returning(), PercentileHistory(path), PercentileCECallback())
    [record] = History.load(path)
    assert "ce_better_share" in record.values
    assert Path(path).parent.exists()
