"""The number of validation dataloaders changes in a run: no name keeps a value that is not of this model."""

import math
import warnings

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_pce import PercentileCECallback
from tests.helpers.lit_modules import (
    LoadersLM,
    Oracle,
    PlainLM,
    Returning,
    assert_logged,
    logged_under,
    make_loader,
    make_trainer,
)

ALL = ("val", "val_dl0", "val_dl1")


class Changing(L.LightningDataModule):
    """Gives another number of validation dataloaders in each epoch."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = iter(numbers)

    def train_dataloader(self):
        return make_loader(2, seed=1)

    def val_dataloader(self):
        return [make_loader(3, seed=2), make_loader(2, seed=3)][: next(self.numbers)]


def run(tmp_path, numbers, *callbacks, mixin=True, **arguments):
    """The validations of a fit and what was warned of."""
    oracle = Oracle()
    module = LoadersLM(**arguments) if mixin else Returning()
    measuring = [] if mixin else [PercentileCECallback(**arguments)]
    trainer = make_trainer(
        tmp_path,
        *measuring,
        oracle,
        *callbacks,
        max_epochs=len(numbers),
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=Changing(numbers))
    said = [str(each.message) for each in caught if "dataloaders now" in str(each.message)]
    return oracle.runs, said


@pytest.mark.parametrize("mixin", [True, False])
@pytest.mark.parametrize("numbers", [(1, 2), (2, 1), (1, 2, 1), (2, 1, 2)])
def test_names_that_are_not_measured_any_more_are_nan_and_the_others_right(tmp_path, numbers, mixin):
    runs, said = run(tmp_path, numbers, mixin=mixin)
    seen = set()
    for number, (losses, logged) in zip(numbers, runs, strict=True):
        now = ALL[:1] if number == 1 else ALL[1:]
        seen |= set(now)
        for index, prefix in enumerate(now):
            assert_logged(logged, losses[index], prefix)
        for prefix in seen - set(now):
            gone = logged_under(logged, prefix)
            assert len(gone) == 8
            assert all(math.isnan(value) for value in gone.values())
    assert len(said) == min(len(numbers) - 1, 2)
    assert f"The val stage has {numbers[1]} dataloaders now" in said[0]
    assert ("val_ce_mean ... are NaN" if numbers[1] == 2 else "val_dl0_ce_mean ... are NaN") in said[0]


def test_pooled_results_go_on_under_their_name(tmp_path):
    runs, said = run(tmp_path, (1, 2, 1), pool_loaders=True)
    for losses, logged in runs:
        assert_logged(logged, torch.cat(list(losses.values())))
    assert len(said) == 1  # only of val_dl0 and val_dl1, when they are gone


@pytest.mark.parametrize("mixin", [True, False])
def test_a_validation_that_is_left_out_for_want_of_batches_leaves_no_value(tmp_path, mixin):
    keep = ModelCheckpoint(tmp_path, "{epoch}-{val_ce_p50:.4f}", monitor="val_ce_p50", save_top_k=-1)
    runs, said = run(tmp_path, (1, 0, 0, 1), keep, mixin=mixin)
    assert len(runs) == 2
    for losses, logged in runs:
        assert_logged(logged, losses[0])
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    values = [name.split("=")[-1].removesuffix(".ckpt") for name in names]
    assert values == [f"{runs[0][1]['val_ce_p50']:.4f}", "nan", "nan", f"{runs[1][1]['val_ce_p50']:.4f}"]
    assert len(said) == 1
    assert said[0].endswith("val_ce_mean ... are NaN from here on.")


def test_a_checkpoint_is_not_chosen_by_the_value_of_a_dataloader_that_is_gone(tmp_path):
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_ce_p50", save_top_k=2)
    runs, _ = run(tmp_path, (1, 2, 2), best)
    assert float(best.best_model_score) == pytest.approx(runs[0][1]["val_ce_p50"])
    assert best.best_model_path.endswith("epoch=0.ckpt")
    assert [float(score) for path, score in best.best_k_models.items() if "epoch=0" not in path] == [math.inf]


def test_a_second_fit_begins_without_the_names_of_the_first(tmp_path):
    module = LoadersLM()
    for numbers in ((2, 2), (1, 1)):
        oracle = Oracle()
        trainer = make_trainer(
            tmp_path, oracle, max_epochs=2, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*dataloaders now")
            trainer.fit(module, datamodule=Changing(numbers))
    assert_logged(oracle.runs[-1][1], oracle.runs[-1][0][0])
    assert not logged_under(oracle.runs[-1][1], "val_dl0")


def test_a_fit_without_validation_logs_nothing_of_it(tmp_path):
    class TrainedOnly(LoadersLM):
        training_step = PlainLM.training_step

    trainer = make_trainer(tmp_path, limit_val_batches=0)
    trainer.fit(TrainedOnly(), make_loader(2), make_loader(2))
    assert not logged_under(trainer.callback_metrics, "val")
