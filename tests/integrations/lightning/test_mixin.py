"""PercentileCEMixin under a real Trainer, in one process."""

import csv
import math
import warnings
from copy import deepcopy
from pathlib import Path

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger

from lightning_pce import PercentileCEMixin, PercentileCrossEntropy
from lightning_pce import digest as td
from tests.helpers.lit_modules import (
    DEFAULT,
    LevelsLM,
    LitLM,
    Oracle,
    PlainLM,
    TinyLM,
    TrainedLM,
    all_ignored,
    assert_logged,
    expected,
    fit,
    loader,
    logged_under,
    make_batches,
    make_lm,
    make_loader,
    make_trainer,
    numbers,
    scripted_losses,
    token_losses,
)


def test_fit_logs_mean_percentiles_and_trimmed_mean_of_all_tokens_of_each_validation(tmp_path):
    oracle = Oracle()
    fit(tmp_path, LitLM(percentiles=(5, 50, 99.9)), oracle, max_epochs=3)
    assert len(oracle.single) == 3
    for losses, logged in oracle.single:
        assert_logged(logged, losses, percentiles=(5, 50, 99.9))
    assert set(logged) == {"val_ce_mean", "val_ce_p5", "val_ce_p50", "val_ce_p99_9", "val_ce_trimmed_mean"}
    assert len({logged["val_ce_p50"] for _, logged in oracle.single}) == 3


def test_without_any_configuration_the_default_percentiles_are_logged(tmp_path):
    module, oracle = LitLM(), Oracle()
    fit(tmp_path, module, oracle)
    assert_logged(oracle.single[0][1], oracle.single[0][0], percentiles=DEFAULT)


def test_configuration_may_come_before_the_layers_after_them_or_again_between_two_fits(tmp_path):
    module = LitLM(percentiles=(10,))  # LitLM configures before it makes its layers
    for percentiles in ((10,), (20, 30)):
        module.configure_percentile_ce(percentiles=percentiles)
        oracle = Oracle()
        fit(tmp_path, module, oracle)
        assert_logged(oracle.single[0][1], oracle.single[0][0], percentiles=percentiles)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"percentiles": (101,)}, "percentiles"), ({"percentiles": (5, 5)}, "percentiles")],
)
def test_impossible_configuration_raises_where_it_is_written(wrong, named):
    with pytest.raises(ValueError, match=named):
        LitLM(**wrong)


def test_configured_ignore_index_and_shift_decide_which_tokens_count(tmp_path):
    batches = make_batches(3, seed=2)
    module = LitLM(percentiles=(50,), ignore_index=0, shift=True)
    for batch in batches:
        batch["labels"][batch["labels"] == -100] = 0
    result = make_trainer(tmp_path).validate(module, loader(batches), verbose=False)[0]
    losses = []
    for batch in batches:
        logits, labels = module(batch).detach()[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        losses.append(F.cross_entropy(logits, labels, reduction="none")[labels != 0])
    assert_logged(result, torch.cat(losses), percentiles=(50,))


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_nothing_of_the_sanity_check_enters_the_first_epoch(tmp_path, sanity_steps):
    oracle = Oracle()
    fit(tmp_path, LitLM(), oracle, num_sanity_val_steps=sanity_steps)
    assert oracle.batches == sanity_steps + 3
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_nothing_leaks_from_one_validation_to_the_next_inside_an_epoch(tmp_path):
    oracle = Oracle()
    fit(tmp_path, LitLM(), oracle, train=4, max_epochs=2, val_check_interval=2)
    assert len(oracle.single) == 4
    for losses, logged in oracle.single:
        assert_logged(logged, losses)


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


def test_validate_then_test_then_fit_then_validate_in_one_process_each_see_their_own_tokens(tmp_path):
    module, oracle = TrainedLM(), Oracle()
    trainer = make_trainer(tmp_path, oracle)
    trainer.validate(module, make_loader(3, seed=2), verbose=False)
    trainer.test(module, make_loader(2, seed=3), verbose=False)
    trainer.fit(module, make_loader(2, seed=1), make_loader(3, seed=4))
    trainer.validate(module, make_loader(1, seed=5), verbose=False)
    for (losses, logged), stage in zip(oracle.single, ("val", "test", "val", "val"), strict=True):
        assert_logged(logged, losses, stage)
    assert_logged(oracle.epochs[0][1], oracle.epochs[0][0], "train")


def test_the_returned_loss_trains_exactly_like_cross_entropy(tmp_path):
    ours, plain = TrainedLM(), PlainLM()
    before = deepcopy(plain.state_dict())
    for module in (ours, plain):
        fit(tmp_path, module, train=4, max_epochs=2, accumulate_grad_batches=2)
    for name, value in plain.state_dict().items():
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_percentiles_are_of_the_tokens_of_their_epoch_whatever_is_validated_inside(
    tmp_path, accumulate
):
    oracle = Oracle()
    fit(
        tmp_path,
        TrainedLM(),
        oracle,
        train=4,
        max_epochs=2,
        val_check_interval=2,
        accumulate_grad_batches=accumulate,
    )
    assert len(oracle.epochs) == 2
    assert len(oracle.single) == 4
    for losses, logged in oracle.epochs:
        assert_logged(logged, losses, "train")
    for losses, logged in oracle.single:
        assert_logged(logged, losses)


def test_a_training_step_that_does_not_update_logs_nothing_of_training(tmp_path):
    trainer = fit(tmp_path, LitLM())
    assert logged_under(numbers(trainer.callback_metrics), "val")
    assert not logged_under(numbers(trainer.callback_metrics), "train")


def test_a_training_epoch_without_an_update_logs_nan_and_not_the_last_value_again(tmp_path):
    class SometimesLM(TrainedLM):
        def training_step(self, batch, batch_idx):
            return (PlainLM if self.current_epoch == 1 else TrainedLM).training_step(self, batch, batch_idx)

    oracle = Oracle()
    fit(tmp_path, SometimesLM(), oracle, max_epochs=3)
    (first, logged), (_, missing), (last, logged_last) = oracle.epochs
    assert_logged(logged, first, "train")
    assert sorted(logged_under(missing, "train")) == sorted(logged_under(logged, "train"))
    assert all(math.isnan(value) for value in logged_under(missing, "train").values())
    assert_logged(logged_last, last, "train")


def test_fit_without_validation_logs_training_alone(tmp_path):
    oracle = Oracle()
    trainer = make_trainer(tmp_path, oracle)
    trainer.fit(TrainedLM(), make_loader(3))
    losses, logged = oracle.epochs[0]
    assert_logged(logged, losses, "train")
    assert not logged_under(logged, "val")


def test_limit_val_batches_0_logs_nothing_and_does_not_fail(tmp_path):
    oracle = Oracle()
    trainer = fit(tmp_path, TrainedLM(), oracle, limit_val_batches=0)
    metrics = numbers(trainer.callback_metrics)
    assert oracle.batches == 0
    assert not logged_under(metrics, "val")
    assert logged_under(metrics, "train")


def test_limit_val_batches_and_fast_dev_run_measure_the_batches_that_ran(tmp_path):
    for limits in ({"limit_val_batches": 2}, {"fast_dev_run": 2}):
        oracle = Oracle()
        fit(tmp_path, LitLM(), oracle, val=5, **limits)
        losses, logged = oracle.single[0]
        assert len(losses) < len(torch.cat([token_losses(LitLM(), b) for b in make_loader(3, seed=2)]))
        assert_logged(logged, losses)


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


def test_a_validation_that_never_updates_logs_nan(tmp_path):
    class Forgetful(LitLM):
        def validation_step(self, batch, batch_idx):
            pass

    result = make_trainer(tmp_path).validate(Forgetful(), make_loader(2), verbose=False)[0]
    assert sorted(result) == sorted(expected(torch.ones(1)))
    assert all(math.isnan(value) for value in result.values())


def test_losses_mask_and_weights_say_what_counts_and_the_batch_mean_is_returned(tmp_path):
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    weights = torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 1.0]])
    forms = {
        "losses": ({}, [1, 2, 4, 8, 16, 32]),
        "mask": ({"mask": mask}, [1, 2, 8, 16, 32]),
        "weights": ({"weights": weights}, [1, 4, 8, 8, 16, 32]),
        "both": ({"mask": mask, "weights": weights}, [1, 8, 8, 16, 32]),
    }

    class FormLM(LitLM):
        def __init__(self, arguments):
            super().__init__()
            self.arguments = arguments

        def validation_step(self, batch, batch_idx):
            self.returned.append(self.update_percentile_ce(losses=losses, **self.arguments))

    for arguments, counted in forms.values():
        module, returned = FormLM(arguments), []
        module.returned = returned
        counted = torch.tensor(counted, dtype=torch.float32)
        result = make_trainer(tmp_path).validate(module, make_loader(1), verbose=False)[0]
        assert_logged(result, counted)
        assert (returned[0].shape, returned[0].dtype) == ((), torch.float32)
        assert float(returned[0]) == pytest.approx(float(counted.mean()))


def test_weights_beside_logits_are_repetition(tmp_path):
    class WeightedLM(LitLM):
        def validation_step(self, batch, batch_idx):
            weights = 1 + batch["ids"] % 3
            mean = self.update_percentile_ce(self(batch), batch["labels"], weights=weights)
            counted = weights[batch["labels"] != -100]
            self.parts.append(token_losses(self, batch).repeat_interleave(counted))
            assert float(mean) == pytest.approx(float(self.parts[-1].mean()))

    module = WeightedLM()
    module.parts = []
    result = make_trainer(tmp_path).validate(module, make_loader(3), verbose=False)[0]
    assert_logged(result, torch.cat(module.parts))


def test_the_returned_mean_is_over_the_counted_tokens_of_the_batch(tmp_path):
    class MeansLM(LitLM):
        def validation_step(self, batch, batch_idx):
            mean = self.update_percentile_ce(self(batch), batch["labels"])
            means.append((float(mean), float(token_losses(self, batch).mean())))

    means = []
    make_trainer(tmp_path).validate(MeansLM(), make_loader(3), verbose=False)
    assert len(means) == 3
    for mean, promised in means:
        assert mean == pytest.approx(promised)


def test_wrong_arguments_raise_in_the_step_and_nothing_of_the_batch_enters(tmp_path):
    class CarefulLM(LitLM):
        def validation_step(self, batch, batch_idx):
            with pytest.raises(ValueError, match="labels"):
                self.update_percentile_ce(self(batch), batch["labels"] + 100)
            with pytest.raises(ValueError, match="losses"):
                self.update_percentile_ce()
            super().validation_step(batch, batch_idx)

    oracle = Oracle()
    make_trainer(tmp_path, oracle).validate(CarefulLM(), make_loader(3), verbose=False)
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_users_hooks_that_call_super_run_and_can_read_the_digest_of_the_epoch(tmp_path):
    class HookedLM(TrainedLM):
        def setup(self, stage):
            super().setup(stage)
            self.calls = [stage]

        def on_validation_epoch_start(self):
            super().on_validation_epoch_start()
            self.calls.append("start")

        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            digest = self.percentile_ce.metric("val").digest
            self.log("val_median_by_hand", td.quantile(digest, 0.5).float())
            self.log("val_tokens", td.count(digest).float())

        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            self.log("train_tokens", td.count(self.percentile_ce.metric("train").digest).float())

    module, oracle = HookedLM(), Oracle()
    fit(tmp_path, module, oracle, max_epochs=2, num_sanity_val_steps=0)
    assert module.calls == ["fit", "start", "start"]
    for losses, logged in oracle.single:
        assert logged["val_median_by_hand"] == pytest.approx(logged["val_ce_p50"])
        assert logged["val_tokens"] == len(losses)
        assert_logged(logged, losses)
    for losses, logged in oracle.epochs:
        assert logged["train_tokens"] == len(losses)
        assert_logged(logged, losses, "train")


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


def test_fit_resumes_from_a_checkpoint(tmp_path):
    oracle, again = Oracle(), Oracle()
    trainer = fit(tmp_path, TrainedLM(), oracle, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    trainer = make_trainer(tmp_path, again, max_epochs=2)
    trainer.fit(TrainedLM(), make_loader(2, seed=1), make_loader(3, seed=2), ckpt_path=tmp_path / "one.ckpt")
    fit(tmp_path, TrainedLM(), straight := Oracle(), max_epochs=2)
    assert len(again.single) == 1
    for prefix, resumed, whole in (
        ("val", again.single, straight.single),
        ("train", again.epochs, straight.epochs),
    ):
        values = logged_under(resumed[-1][1], prefix)
        assert len(values) == len(DEFAULT) + 2
        assert values == pytest.approx(logged_under(whole[-1][1], prefix))


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


def test_a_compiled_module_trains_on_the_returned_loss_like_one_that_is_not(tmp_path):
    module, plain = TrainedLM(), PlainLM()
    trainer = make_trainer(tmp_path)
    trainer.fit(torch.compile(module, backend="eager"), make_loader(2, seed=1), make_loader(3, seed=2))
    torch._dynamo.reset()
    fit(tmp_path, plain)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)
    assert_logged(
        numbers(trainer.callback_metrics), torch.cat([token_losses(module, b) for b in make_batches(3, 2)])
    )


def test_update_outside_a_trainer_or_outside_a_measured_stage_says_so(tmp_path):
    class PredictingLM(LitLM):
        def predict_step(self, batch, batch_idx):
            self.update_percentile_ce(self(batch), batch["labels"])

    batch = make_batches(1)[0]
    module = PredictingLM()
    with pytest.raises(RuntimeError, match=r"PredictingLM is not attached to a Trainer"):
        module.update_percentile_ce(module(batch), batch["labels"])
    with pytest.raises(RuntimeError, match="training_step, validation_step and test_step"):
        make_trainer(tmp_path).predict(module, make_loader(1))
    fit(tmp_path, module)
    with pytest.raises(RuntimeError, match="training_step, validation_step and test_step"):
        module.update_percentile_ce(module(batch), batch["labels"])


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
    view = copy.percentile_ce.views["val_0"]["ce_p50"]
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
            view = self.percentile_ce.views["train_0"]["ce_p50"]
            where = {"metric_attribute": "percentile_ce.views.train_0.ce_p50", "on_step": True}
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


def test_a_fit_says_nothing_about_its_metrics(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, TrainedLM(), max_epochs=2)
        trainer.test(TrainedLM(), make_loader(1), verbose=False)
    ours = ("compute", "metric", "percentile", "_ce_", "digest", "lightning_pce")
    said = [str(w.message) for w in caught if any(word in str(w.message).lower() for word in ours)]
    assert said == []


def test_a_model_may_inherit_the_mixin_through_a_base_class_of_its_own(tmp_path):
    class Base(PercentileCEMixin, L.LightningModule):
        pass

    class Derived(TinyLM, Base):
        def __init__(self):
            super().__init__()
            self.make_layers()

        def validation_step(self, batch, batch_idx):
            return self.update_percentile_ce(self(batch), batch["labels"])

    oracle = Oracle()
    make_trainer(tmp_path, oracle).validate(Derived(), make_loader(3), verbose=False)
    assert_logged(oracle.single[0][1], oracle.single[0][0])


def test_hooks_of_the_module_behind_the_mixin_still_run(tmp_path):
    def recording(hook):
        return lambda self, *arguments: calls.append(hook)

    hooks = ["setup"] + [
        f"on_{stage}_{moment}"
        for stage, moments in (
            ("train", ("epoch_start", "epoch_end", "end")),
            ("validation", ("epoch_start", "epoch_end", "end")),
            ("test", ("epoch_start", "epoch_end", "end")),
        )
        for moment in moments
    ]
    base = type("Base", (L.LightningModule,), {hook: recording(hook) for hook in hooks})
    calls, module, oracle = [], make_lm(base)(), Oracle()
    fit(tmp_path, module, oracle, num_sanity_val_steps=0)
    make_trainer(tmp_path, oracle).test(module, make_loader(1), verbose=False)
    assert sorted(calls) == sorted([*hooks, "setup"])
    for (losses, logged), stage in zip(oracle.single, ("val", "test"), strict=True):
        assert_logged(logged, losses, stage)
