"""percentile_checkpoints and EarlyStopping under a real Trainer."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_pce.integrations.lightning.checkpoints import percentile_checkpoints
from tests.helpers.lit_modules import (
    LevelsLM,
    LoadersLM,
    fit,
    logged_under,
    make_batches,
    make_loader,
    make_trainer,
    numbers,
    scripted_losses,
)

SCRIPTED = torch.cat([scripted_losses(batch).flatten() for batch in make_batches(3, seed=2)]).double()
NAN, INF = math.nan, math.inf


class ShapesLM(LevelsLM):
    """Each epoch's losses are those of the data times one level, above their p75 times another."""

    def validation_step(self, batch, batch_idx):
        losses = scripted_losses(batch)
        low, high = self.levels[self.current_epoch]
        self.update_percentile_ce(
            losses=torch.where(losses < SCRIPTED.quantile(0.75), losses * low, losses * high)
        )


def epochs(callbacks):
    return [torch.load(callback.best_model_path)["epoch"] for callback in callbacks]


def test_each_callback_keeps_the_epoch_that_is_best_by_its_own_statistic(tmp_path):
    callbacks = percentile_checkpoints(tmp_path, percentiles=(50, 95))
    levels = [(3.0, 4.0), (1.0, 90.0), (2.0, 2.5), (1.9, 9.0)]  # p50: epoch 1, p95 and mean: epoch 2
    fit(tmp_path, ShapesLM(levels), *callbacks, max_epochs=4)
    assert [callback.monitor for callback in callbacks] == ["val_ce_p50", "val_ce_p95", "val_ce_mean"]
    assert epochs(callbacks) == [1, 2, 2]
    scores = [f"best-{callback.monitor}={float(callback.best_model_score):.4f}" for callback in callbacks]
    ends = ["epoch=1-step=4.ckpt", "epoch=2-step=6.ckpt", "epoch=2-step=6.ckpt"]
    files = [path.name for path in tmp_path.glob("**/*.ckpt")]
    assert sorted(files) == sorted(f"{score}-{end}" for score, end in zip(scores, ends, strict=True))


def test_callbacks_that_are_best_at_the_same_epoch_do_not_write_over_each_other(tmp_path):
    callbacks = percentile_checkpoints(tmp_path, percentiles=(25, 50, 75))
    module = LevelsLM(levels=(3.0, 0.0, 2.0))  # in epoch 1 all four have the same value
    fit(tmp_path, module, *callbacks, max_epochs=3)
    assert [float(callback.best_model_score) for callback in callbacks] == [0, 0, 0, 0]
    assert epochs(callbacks) == [1, 1, 1, 1]
    assert len({callback.best_model_path for callback in callbacks}) == 4
    assert len(list(tmp_path.glob("*.ckpt"))) == 4


def test_names_of_fractions_have_neither_dot_nor_slash_and_the_value_is_in_the_file_name(tmp_path):
    (callback,) = percentile_checkpoints(tmp_path, percentiles=(99.9,), mean=False)
    fit(tmp_path, LevelsLM(levels=(1.0,), percentiles=(50, 99.9)), callback)
    value = float(SCRIPTED.quantile(0.999))
    assert callback.monitor == "val_ce_p99_9"
    assert [path.name for path in tmp_path.iterdir()] == [
        f"best-val_ce_p99_9={value:.4f}-epoch=0-step=2.ckpt"
    ]


def test_states_are_told_apart_and_come_back_in_a_resumed_run(tmp_path):
    callbacks = percentile_checkpoints(tmp_path / "best", percentiles=(50, 95))
    assert len({callback.state_key for callback in callbacks}) == 3
    levels = [(3.0, 4.0), (1.0, 90.0), (2.0, 2.5), (1.5, 3.0)]
    trainer = fit(tmp_path, ShapesLM(levels), *callbacks, max_epochs=3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    again = percentile_checkpoints(tmp_path / "best", percentiles=(95, 50))  # in any order
    trainer = make_trainer(tmp_path, *again, max_epochs=4)
    trainer.fit(
        ShapesLM(levels), make_loader(2, seed=1), make_loader(3, seed=2), ckpt_path=tmp_path / "three.ckpt"
    )
    scores = {callback.monitor: float(callback.best_model_score) for callback in callbacks}
    assert {callback.monitor: float(callback.best_model_score) for callback in again} == scores
    assert len(set(scores.values())) == 3
    assert epochs(again) == [2, 1, 2]


@pytest.mark.parametrize(("save_top_k", "kept"), [(2, [0, 2]), (-1, [0, 1, 2]), (0, [])])
def test_save_top_k_and_other_arguments_reach_every_callback(tmp_path, save_top_k, kept):
    callbacks = percentile_checkpoints(tmp_path, (50,), save_top_k=save_top_k, save_weights_only=True)
    fit(tmp_path, LevelsLM(levels=(1.0, 3.0, 2.0)), *callbacks, max_epochs=3)
    for monitor in ("val_ce_p50", "val_ce_mean"):
        states = [torch.load(path) for path in tmp_path.glob(f"best-{monitor}=*.ckpt")]
        assert sorted(state["epoch"] for state in states) == kept
        assert not any("optimizer_states" in state for state in states)


def test_a_prefix_names_one_of_several_dataloaders(tmp_path):
    callbacks = percentile_checkpoints(tmp_path, (50,), mean=False, prefix="val_web")
    callbacks += percentile_checkpoints(tmp_path, (50,), mean=False, prefix="val_code")
    loaders = [make_loader(3, seed=2), make_loader(2, seed=3)]
    trainer = fit(tmp_path, LoadersLM(loader_names=("web", "code")), *callbacks, val=loaders)
    logged = numbers(trainer.callback_metrics)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"best-val_{name}_ce_p50={logged[f'val_{name}_ce_p50']:.4f}-epoch=0-step=2.ckpt"
        for name in ("code", "web")
    ]


@pytest.mark.parametrize("odd", [NAN, INF])
@pytest.mark.parametrize("odd_epochs", [(0,), (1,), (0, 2), (3,)])
def test_a_nan_or_infinite_epoch_is_never_the_best_beside_a_finite_one(tmp_path, odd, odd_epochs):
    finite = [4.0, 3.0, 2.0, 2.5]
    module = LevelsLM(levels=[odd if epoch in odd_epochs else finite[epoch] for epoch in range(4)])
    callbacks = percentile_checkpoints(tmp_path, save_top_k=2)
    fit(tmp_path, module, *callbacks, max_epochs=4)
    best = min((epoch for epoch in range(4) if epoch not in odd_epochs), key=lambda epoch: finite[epoch])
    assert epochs(callbacks) == [best] * 3
    assert all(math.isfinite(callback.best_model_score) for callback in callbacks)
    # Two finite ones have pushed it out.
    assert not any("nan" in path.name or "inf" in path.name for path in tmp_path.iterdir())


def test_where_every_epoch_is_nan_the_first_is_kept_with_an_infinite_score(tmp_path):
    (callback,) = percentile_checkpoints(tmp_path, (50,), mean=False)
    fit(tmp_path, LevelsLM(levels=(NAN, NAN)), callback, max_epochs=2)
    assert callback.best_model_score == INF
    assert [path.name for path in tmp_path.iterdir()] == ["best-val_ce_p50=nan-epoch=0-step=2.ckpt"]


def test_one_infinite_loss_takes_the_mean_away_and_leaves_the_median_its_order(tmp_path):
    class OneInfiniteLM(LevelsLM):
        def validation_step(self, batch, batch_idx):
            losses = scripted_losses(batch) * self.levels[self.current_epoch]
            if batch_idx == 0 and self.current_epoch == 1:
                losses[0, 0] = INF
            self.update_percentile_ce(losses=losses)

    callbacks = percentile_checkpoints(tmp_path, (50,))
    fit(tmp_path, OneInfiniteLM(levels=(3.0, 1.0, 2.0)), *callbacks, max_epochs=3)
    assert epochs(callbacks) == [1, 2]


@pytest.mark.parametrize("wrong", [(101,), (50, 50), "50", ("p50",)])
def test_impossible_percentiles_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="`percentiles`"):
        percentile_checkpoints(tmp_path, wrong)


def test_nothing_to_keep_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`mean` is False"):
        percentile_checkpoints(tmp_path, (), mean=False)
    assert [callback.monitor for callback in percentile_checkpoints(tmp_path, ())] == ["val_ce_mean"]


@pytest.mark.parametrize("prefix", ["val/web", "val.web", "", "{epoch}"])
def test_a_prefix_that_file_names_can_not_hold_is_refused(tmp_path, prefix):
    with pytest.raises(ValueError, match="`prefix`"):
        percentile_checkpoints(tmp_path, prefix=prefix)


def test_a_percentile_that_is_not_logged_is_named_by_lightning(tmp_path):
    with pytest.raises(Exception, match=r"val_ce_p42.*could not find the monitored key"):
        fit(tmp_path, LevelsLM(levels=(1.0,)), *percentile_checkpoints(tmp_path, (42,)))


# ------------------------------------------------------------------------------------------- EarlyStopping


@pytest.mark.parametrize("odd", [NAN, INF])
def test_early_stopping_ends_a_run_at_a_nan_or_infinite_percentile(tmp_path, odd):
    stop = EarlyStopping("val_ce_p50", patience=3)
    trainer = fit(tmp_path, LevelsLM(levels=(3.0, odd, 1.0)), stop, max_epochs=3)
    assert trainer.current_epoch == 2
    assert (stop.stopped_epoch, stop.wait_count) == (1, 0)  # not for want of patience


@pytest.mark.parametrize("odd", [NAN, INF])
def test_without_check_finite_a_nan_or_infinite_percentile_is_an_epoch_without_progress(tmp_path, odd):
    stop = EarlyStopping("val_ce_p50", patience=2, check_finite=False)
    trainer = fit(tmp_path, LevelsLM(levels=(3.0, odd, 2.0, odd, odd, 1.0)), stop, max_epochs=6)
    assert trainer.current_epoch == 5
    assert float(stop.best_score) == pytest.approx(2 * float(SCRIPTED.quantile(0.5)))


def test_early_stopping_on_the_median_goes_on_where_the_mean_is_infinite(tmp_path):
    class OneInfiniteLM(LevelsLM):
        def validation_step(self, batch, batch_idx):
            losses = scripted_losses(batch) * self.levels[self.current_epoch]
            losses[0, 0] = INF
            self.update_percentile_ce(losses=losses)

    for monitor, ended in (("val_ce_p50", 3), ("val_ce_mean", 1)):
        stop = EarlyStopping(monitor)
        trainer = fit(tmp_path, OneInfiniteLM(levels=(3.0, 2.0, 1.0)), stop, max_epochs=3)
        assert trainer.current_epoch == ended
    assert logged_under(numbers(trainer.callback_metrics), "val")["val_ce_mean"] == INF


def test_the_callbacks_are_model_checkpoints_in_the_order_asked_for(tmp_path):
    callbacks = percentile_checkpoints(str(tmp_path), (95, 5))
    assert [isinstance(callback, ModelCheckpoint) for callback in callbacks] == [True] * 3
    assert [callback.monitor for callback in callbacks] == ["val_ce_p95", "val_ce_p5", "val_ce_mean"]
    assert {callback.mode for callback in callbacks} == {"min"}
    assert {Path(callback.dirpath) for callback in callbacks} == {tmp_path.resolve()}
