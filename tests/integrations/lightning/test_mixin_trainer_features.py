"""PercentileCEMixin beside what a Trainer has: checkpoints, loggers, precisions, bars, averaging."""

import csv
import math
from copy import deepcopy
from pathlib import Path

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger

from lightning_pce import PercentileCrossEntropy
from lightning_pce import digest as td
from tests.helpers.lit_modules import (
    LevelsLM,
    LitLM,
    Oracle,
    PlainLM,
    TinyLM,
    TrainedLM,
    all_ignored,
    assert_logged,
    fit,
    logged_under,
    make_batches,
    make_lm,
    make_loader,
    make_trainer,
    scripted_losses,
    token_losses,
)


def test_model_checkpoint_keeps_the_epoch_of_the_lowest_median_under_a_safe_file_name(tmp_path):
    best = ModelCheckpoint(tmp_path, "{epoch}-{val_ce_p50:.3f}", monitor="val_ce_p50")
    fit(tmp_path, LevelsLM(levels=(3.0, 1.0, 2.0)), best, max_epochs=3)
    median = torch.cat([scripted_losses(batch).flatten() for batch in make_batches(3, seed=2)]).quantile(0.5)
    assert float(best.best_model_score) == pytest.approx(float(median))
    assert Path(best.best_model_path) == tmp_path / f"epoch=1-val_ce_p50={median:.3f}.ckpt"
    assert torch.load(best.best_model_path)["epoch"] == 1


def test_early_stopping_on_p95_stops_when_it_rises(tmp_path):
    stop, oracle = EarlyStopping("val_ce_p95", patience=1), Oracle()
    trainer = fit(tmp_path, LevelsLM(levels=(3.0, 1.0, 2.0, 0.5)), stop, oracle, max_epochs=4)
    assert (trainer.current_epoch, stop.stopped_epoch) == (3, 2)
    assert float(stop.best_score) == pytest.approx(min(logged["val_ce_p95"] for _, logged in oracle.single))


def test_csv_logger_has_a_column_for_each_name_and_a_row_for_each_epoch(tmp_path):
    oracle = Oracle()
    trainer = fit(
        tmp_path, TrainedLM(percentiles=(50,)), oracle, max_epochs=2, logger=CSVLogger(tmp_path, version=0)
    )
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for prefix, observed in (("val", oracle.single), ("train", oracle.epochs)):
        written = [
            {name: float(value) for name, value in logged_under(row, prefix).items()}
            for row in rows
            if row[f"{prefix}_ce_p50"]
        ]
        assert len(written) == 2
        for row, (losses, _) in zip(written, observed, strict=True):
            assert_logged(row, losses, prefix, percentiles=(50,))


@pytest.mark.parametrize("namespace", [L, pytorch_lightning], ids=["lightning.pytorch", "pytorch_lightning"])
def test_both_names_of_lightning_fit_validate_and_test(tmp_path, namespace):
    module, data = make_lm(namespace.LightningModule)(percentiles=(50,)), make_loader(3, seed=2)
    fit(tmp_path, module, val=data, namespace=namespace)
    trainer = make_trainer(tmp_path, namespace=namespace)
    losses = torch.cat([token_losses(module, batch) for batch in data])
    assert_logged(trainer.validate(module, data, verbose=False)[0], losses, percentiles=(50,))
    assert_logged(trainer.test(module, data, verbose=False)[0], losses, "test", percentiles=(50,))


def test_an_epoch_without_a_counted_token_logs_nan_and_model_checkpoint_survives_it(tmp_path):
    class SilentEpochLM(LevelsLM):
        def validation_step(self, batch, batch_idx):
            if self.current_epoch == 1:
                batch = all_ignored([batch])[0]
                loss = self.update_percentile_ce(self(batch), batch["labels"])
                assert math.isnan(float(loss))
            else:
                super().validation_step(batch, batch_idx)

    best, oracle = ModelCheckpoint(tmp_path, monitor="val_ce_p50"), Oracle()
    fit(tmp_path, SilentEpochLM(levels=(3.0, 2.0, 1.0)), best, oracle, max_epochs=3)
    medians = [logged["val_ce_p50"] for _, logged in oracle.single]
    assert [math.isnan(median) for median in medians] == [False, True, False]
    assert all(math.isnan(value) for value in logged_under(oracle.single[1][1], "val").values())
    assert torch.load(best.best_model_path)["epoch"] == 2
    assert float(best.best_model_score) == pytest.approx(medians[2])


def test_a_checkpoint_holds_nothing_of_ours_and_loads_strictly_with_and_without_the_mixin(tmp_path):
    paths = {}
    for module in (TrainedLM(), PlainLM()):
        trainer = fit(tmp_path, module)
        paths[type(module)] = tmp_path / f"{type(module).__name__}.ckpt"
        trainer.save_checkpoint(paths[type(module)])
    ours = torch.load(paths[TrainedLM])["state_dict"]
    assert list(ours) == list(torch.load(paths[PlainLM])["state_dict"])
    PlainLM.load_from_checkpoint(paths[TrainedLM], strict=True)
    TrainedLM.load_from_checkpoint(paths[PlainLM], strict=True)
    used = TrainedLM()
    fit(tmp_path, used)
    used.load_state_dict(ours, strict=True)


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU.*")
@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("bf16-true", 1e-6), ("16-true", 1e-6), ("64-true", 1e-6), ("bf16-mixed", 0.02), ("16-mixed", 0.02)],
)
def test_every_precision_keeps_float64_states_and_the_percentiles_of_its_logits(
    tmp_path, precision, tolerance
):
    class PreciseLM(LitLM):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if precision != "16-true" else None

        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            digest = self.percentile_ce.metric("val").digest
            seen.append((digest.dtype, int(td.count(digest))))

    # The oracle's own logits have the accuracy of the weights: tight unless autocast has lowered them.
    seen, oracle = [], Oracle()
    module = PreciseLM()
    module.configure_percentile_ce(percentiles=(5, 50, 95))
    # The metrics exist before Lightning converts the module; and bfloat16 could not count over 256 tokens.
    make_trainer(tmp_path).validate(module, make_loader(1), verbose=False)
    seen.clear()
    fit(tmp_path, module, oracle, val=40, precision=precision, num_sanity_val_steps=0, limit_train_batches=1)
    losses, logged = oracle.single[0]
    assert len(losses) > 256
    assert seen == [(torch.float64, len(losses))]
    assert_logged(logged, losses, percentiles=(5, 50, 95), tolerance=tolerance)
    assert all(
        state.dtype == torch.float64
        for metric in module.percentile_ce.metrics.values()
        for state in metric._defaults.values()
    )


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_progress_bar_with_another_epoch_log_beside_ours_in_training_and_validation(tmp_path, capsys, bar):
    class BusyLM(TrainedLM):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val_batches", 1.0, on_epoch=True, prog_bar=True, reduce_fx="sum")

    oracle = Oracle()
    fit(tmp_path, BusyLM(), oracle, bar(), max_epochs=2, enable_progress_bar=True)
    assert "train_loss_epoch" in "".join(capsys.readouterr())
    assert len(oracle.single) == len(oracle.epochs) == 2
    for losses, logged in oracle.single:
        assert logged["val_batches"] == 3
        assert_logged(logged, losses)
    for losses, logged in oracle.epochs:
        assert "train_loss_epoch" in logged
        assert_logged(logged, losses, "train")


def test_a_compiled_module_validates_with_the_same_values(tmp_path):
    compiled = torch.compile(LitLM(), backend="eager")
    trainer = make_trainer(tmp_path)
    with torch._dynamo.config.patch(error_on_recompile=True):
        result = trainer.validate(compiled, make_loader(4), verbose=False)[0]
    torch._dynamo.reset()
    assert_logged(result, torch.cat([token_losses(LitLM(), batch) for batch in make_batches(4)]))


def test_a_deepcopy_measures_for_itself(tmp_path):
    original = LitLM(percentiles=(50,))
    fit(tmp_path, original)
    copy, oracle = deepcopy(original), Oracle()
    with torch.no_grad():
        copy.head.bias += torch.arange(11.0)
    fit(tmp_path, copy, oracle, max_epochs=2)
    for losses, logged in oracle.single:
        assert_logged(logged, losses, percentiles=(50,))
    assert copy.percentile_ce.metric("val") is not original.percentile_ce.metric("val")
    view = copy.percentile_ce.views["val_all"]["ce_p50"]
    assert view.parent is copy.percentile_ce.metric("val")


def test_weight_averaging_which_copies_the_module_keeps_the_values(tmp_path):
    oracle = Oracle()
    fit(
        tmp_path,
        TrainedLM(),
        oracle,
        StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1),
        max_epochs=3,
    )
    assert len(oracle.single) == 3
    for losses, logged in oracle.single:
        assert_logged(logged, losses)


if hasattr(callbacks, "EMAWeightAveraging"):  # from Lightning 2.6 on

    @pytest.mark.parametrize("use_buffers", [True, False])
    def test_a_moving_average_of_the_weights_keeps_the_values_and_averages_no_digest(tmp_path, use_buffers):
        oracle, module = Oracle(), TrainedLM()
        fit(
            tmp_path,
            module,
            oracle,
            callbacks.EMAWeightAveraging(decay=0.5, use_buffers=use_buffers),
            max_epochs=3,
        )
        assert len(oracle.single) == len(oracle.epochs) == 3
        for losses, logged in oracle.single:
            assert_logged(logged, losses)
        for losses, logged in oracle.epochs:
            assert_logged(logged, losses, "train")
        assert not list(module.buffers())


def test_on_step_a_view_shows_nothing_and_the_returned_mean_does(tmp_path):
    class OnStepLM(TrainedLM):
        def training_step(self, batch, batch_idx):
            mean = super().training_step(batch, batch_idx)
            view = self.percentile_ce.views["train_all"]["ce_p50"]
            where = {"metric_attribute": "percentile_ce.views.train_all.ce_p50", "on_step": True}
            self.log("view", view, on_epoch=False, **where)
            self.log("batch_mean", mean, on_step=True)
            means.append(float(mean))
            return mean

    means, logger = [], CSVLogger(tmp_path, version=0)
    fit(tmp_path, OnStepLM(), logger=logger, log_every_n_steps=1)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert "view" not in rows[0]
    shown = [float(row["batch_mean"]) for row in rows if row["batch_mean"]]
    assert shown == pytest.approx(means)


def test_lightning_refuses_to_log_the_metric_itself_and_takes_its_views(tmp_path):
    class WholeLM(TinyLM, L.LightningModule):
        def __init__(self, key):
            super().__init__()
            self.make_layers()
            self.metric = PercentileCrossEntropy()
            self.shown = self.metric if key is None else self.metric.view(key)

        def validation_step(self, batch, batch_idx):
            self.metric.update(self(batch), batch["labels"])

        def on_validation_epoch_end(self):
            self.log("shown", self.shown)

    with pytest.raises(ValueError, match="must be a tensor"):
        make_trainer(tmp_path).validate(WholeLM(None), make_loader(2), verbose=False)
    result = make_trainer(tmp_path).validate(WholeLM("p50"), make_loader(2), verbose=False)[0]
    losses = torch.cat([token_losses(WholeLM("p50"), batch) for batch in make_batches(2)])
    assert result["shown"] == pytest.approx(float(losses.double().quantile(0.5)))
