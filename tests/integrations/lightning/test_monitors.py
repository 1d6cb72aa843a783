"""Monitors of names that will not be logged, and checkpoints that would bear old values, are said at once."""

import warnings
from datetime import timedelta

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_pce import PercentileCECallback, percentile_checkpoints
from tests.helpers.lit_modules import (
    LitLM,
    LoadersLM,
    Returning,
    ReturningLosses,
    TrainedLM,
    fit,
    make_loader,
    make_trainer,
)

NOT_LOGGED, OF_ANOTHER = "is not logged in this fit", "under the value of an earlier one"


def said(tmp_path, module, *callbacks, run=fit, **arguments):
    """What is warned of our monitors; a run that Lightning then ends is ended there."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(tmp_path, module, *callbacks, **arguments)
        except (MisconfigurationException, RuntimeError) as error:
            if "monitored key" not in str(error) and "conditioned on metric" not in str(error):
                raise
    texts = [str(each.message) for each in caught]
    return [text for text in texts if NOT_LOGGED in text or OF_ANOTHER in text]


def two():
    return [make_loader(3, seed=2), make_loader(2, seed=3)]


def checkpoint(tmp_path, name, **arguments):
    return ModelCheckpoint(tmp_path, monitor=name, **arguments)


# ------------------------------------------------------------------------- names that are not logged


@pytest.mark.parametrize(
    "name",
    ["val_ce_p5O", "val_ce_p90", "val_ce_p99.9", "val_entropy_p50", "val_web_ce_p50", "val_dl0_ce_mean"],
)
@pytest.mark.parametrize("kind", ["mixin", "callback"])
def test_a_name_that_is_not_logged_is_said_with_those_that_are(tmp_path, name, kind):
    module = LitLM() if kind == "mixin" else Returning()
    measuring = [] if kind == "mixin" else [PercentileCECallback()]
    [text] = said(tmp_path, module, *measuring, checkpoint(tmp_path, name))
    assert text.startswith(f"ModelCheckpoint monitors {name!r}, which {NOT_LOGGED}")
    assert "Percentile CE logs val_ce_mean, val_ce_p5, val_ce_p25, val_ce_p50," in text
    assert ("train_ce_p50" in text) == (kind == "mixin")


def test_it_is_said_before_the_first_step(tmp_path):
    class NeverTrained(LitLM):
        def training_step(self, batch, batch_idx):
            raise OSError("a step was made")

    with warnings.catch_warnings():
        warnings.filterwarnings("error", f".*{NOT_LOGGED}")
        with pytest.raises(UserWarning, match="val_ce_p5O"):
            fit(tmp_path, NeverTrained(), checkpoint(tmp_path, "val_ce_p5O"))


def test_it_is_said_by_rank_0_and_raised_by_both_where_warnings_are_errors(lightning_ranks):
    errors = [notes["monitor_as_error"]["error"] for notes in lightning_ranks]
    assert errors[0] == errors[1]
    assert "UserWarning: ModelCheckpoint monitors 'val_ce_p5O'" in errors[0]
    assert [notes["monitor_as_warning"]["stopped_after"] for notes in lightning_ranks] == [1, 1]
    texts = [notes.stderr.split("=== monitor_as_warning")[1].split("===")[0] for notes in lightning_ranks]
    assert [text.count("ModelCheckpoint monitors") for text in texts] == [1, 0]


@pytest.mark.parametrize("configuration", [{}, {"loader_names": ("web", "code")}])
def test_with_two_dataloaders_the_name_of_one_is_said(tmp_path, configuration):
    [text] = said(
        tmp_path, LoadersLM(percentiles=(50,), **configuration), checkpoint(tmp_path, "val_ce_p50"), val=two()
    )
    first, second = configuration.get("loader_names", ("dl0", "dl1"))
    assert f"val_{first}_ce_p50" in text
    assert f"val_{second}_ce_p50" in text


def test_of_many_names_the_closest_are_said(tmp_path):
    module = LoadersLM(groups=("prompt", "answer"), statistics=("ce", "entropy"))
    module.validation_step = lambda batch, batch_idx, dataloader_idx=0: None
    [text] = said(tmp_path, module, checkpoint(tmp_path, "val_ce_answer_p5"), val=two())
    assert "val_dl0_ce_answer_p5," in text
    assert "val_dl1_ce_answer_p5," in text
    assert " more." in text


def test_early_stopping_is_told_too(tmp_path):
    [text] = said(tmp_path, LitLM(), EarlyStopping("val_ce_p51"))
    assert text.startswith("EarlyStopping monitors 'val_ce_p51'")


def test_a_scheduler_that_waits_for_a_plateau_is_told_too(tmp_path):
    class Plateau(LitLM):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitored},
            }

    module = Plateau()
    module.monitored = "val_ce_p5_0"
    [text] = said(tmp_path, module)
    assert text.startswith("ReduceLROnPlateau monitors 'val_ce_p5_0'")
    module.monitored = "val_ce_p50"
    assert said(tmp_path, module) == []


@pytest.mark.parametrize(
    ("callback", "arguments", "part"),
    [
        (PercentileCECallback(stages=("test",)), {}, "no validation that it measures"),
        (PercentileCECallback(), {"limit_val_batches": 0}, "no validation that it measures"),
        (PercentileCECallback(stages=(), train_every_n_steps=1), {}, "logs train_ce_mean, train_ce_p5,"),
    ],
)
def test_where_validation_is_not_measured_that_is_said(tmp_path, callback, arguments, part):
    [text] = said(tmp_path, ReturningLosses(), callback, checkpoint(tmp_path, "val_ce_p50"), **arguments)
    assert part in text


def test_results_of_a_test_are_not_logged_in_a_fit(tmp_path):
    [text] = said(tmp_path, LitLM(), checkpoint(tmp_path, "test_ce_p50"))
    assert "those of trainer.test()" in text


@pytest.mark.parametrize("name", ["val_ce_p5O", "val_ce_p50", "val_dl1_ce_p50"])
@pytest.mark.parametrize("loaders", [1, 2])
def test_where_the_dataloaders_are_not_known_yet_names_of_any_number_are_taken(tmp_path, name, loaders):
    texts = said(
        tmp_path,
        LoadersLM(),
        checkpoint(tmp_path, name),
        val=two()[:loaders],
        num_sanity_val_steps=0,
        check_val_every_n_epoch=2,
    )
    assert bool(texts) == (name == "val_ce_p5O")


# --------------------------------------------------------------------------------- and where nothing is said


class OwnNamesLM(LoadersLM):
    """Logs names of its own, some of which look like ours."""

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        for name in ("val_ce", "val_ce_loss", "val_ce_median", "val_ce_p77", "val_accuracy"):
            self.log(name, 1.0)


@pytest.mark.parametrize("name", ["val_ce", "val_ce_loss", "val_ce_median", "val_ce_p77", "val_accuracy"])
def test_nothing_is_said_of_names_that_the_user_logs(tmp_path, name):
    assert said(tmp_path, OwnNamesLM(), checkpoint(tmp_path, name), val=two()) == []


@pytest.mark.parametrize(
    "name", ["val_loss", "val_ce_loss", "ce_p50", "val_ppl_p", "valid_ce_p50", "val_ce_web"]
)
def test_nothing_is_said_of_names_that_do_not_look_like_ours(tmp_path, name):
    assert said(tmp_path, LitLM(), checkpoint(tmp_path, name), num_sanity_val_steps=0) == []


@pytest.mark.parametrize(
    ("configuration", "name"),
    [
        ({"percentiles": (99.9,)}, "val_dl1_ce_p99_9"),
        ({"pool_loaders": True}, "val_ce_p50"),
        ({"loader_names": ("web", "code")}, "val_code_ce_trimmed_mean"),
        ({"statistics": ("ce", "rank")}, "val_dl0_accuracy"),
        ({}, "train_ce_p50"),
    ],
)
def test_nothing_is_said_of_names_that_are_logged(tmp_path, configuration, name):
    class Module(LoadersLM):
        training_step = TrainedLM.training_step

    assert said(tmp_path, Module(**configuration), checkpoint(tmp_path, name), val=two()) == []


def test_loaders_that_a_step_sees_together_have_one_name_in_the_callback(tmp_path):
    class AtOnce(Returning):
        def validation_step(self, batch, batch_idx):
            return [{"logits": self(each), "labels": each["labels"]} for each in batch]

    together = CombinedLoader(two(), "min_size")
    keep = checkpoint(tmp_path, "val_ce_p50")
    assert said(tmp_path, AtOnce(), PercentileCECallback(), keep, val=together) == []


@pytest.mark.parametrize("how", ["validate", "test"])
def test_nothing_is_said_in_validate_and_test(tmp_path, how):
    def run(tmp_path, module, *callbacks):
        getattr(make_trainer(tmp_path, *callbacks), how)(module, make_loader(2), verbose=False)

    keep = checkpoint(tmp_path, "val_ce_p5O", every_n_train_steps=1)
    assert said(tmp_path, LitLM(), keep, run=run) == []
    assert said(tmp_path, Returning(), PercentileCECallback(), keep, run=run) == []


# ---------------------------------------------------------------------- checkpoints that bear an old value

LATE = [
    ({"every_n_train_steps": 2}, {}, "every_n_train_steps=2 saves before that step's validation"),
    ({"train_time_interval": timedelta(hours=1)}, {}, "train_time_interval saves between validations"),
    (
        {"save_on_train_epoch_end": True},
        {"val_check_interval": 3},
        "the last validation is of an earlier step",
    ),
    (
        {"save_on_train_epoch_end": True},
        {"check_val_every_n_epoch": 2},
        "the last validation is of an earlier",
    ),
    ({"save_top_k": 2}, {"max_steps": 6, "max_epochs": -1}, "when max_steps=6 is reached, inside an epoch"),
]
IN_TIME = [
    ({}, {}),
    ({"every_n_train_steps": 2, "save_top_k": 0}, {}),
    ({"save_on_train_epoch_end": True}, {"val_check_interval": 2}),
    ({"save_on_train_epoch_end": True}, {"val_check_interval": 0.5}),
    ({"save_on_train_epoch_end": False}, {"val_check_interval": 3}),
    ({}, {"check_val_every_n_epoch": 2}),
    ({"save_top_k": 1}, {"max_steps": 6, "max_epochs": -1}),
    ({"save_top_k": 2}, {"max_steps": 8, "max_epochs": -1}),
    ({"save_top_k": 2}, {"max_steps": 6, "max_epochs": 1}),
    ({"save_top_k": 2}, {"max_steps": 6, "max_epochs": -1, "val_check_interval": 3}),
]


@pytest.mark.parametrize(("when", "trainer", "why"), LATE)
@pytest.mark.parametrize("kind", ["mixin", "callback"])
def test_a_model_checkpoint_that_saves_under_an_earlier_value_is_warned_of(
    tmp_path, when, trainer, why, kind
):
    module = LitLM() if kind == "mixin" else Returning()
    measuring = [] if kind == "mixin" else [PercentileCECallback()]
    keep = checkpoint(tmp_path, "val_ce_p50", **when)
    [text] = said(tmp_path, module, *measuring, keep, train=4, **trainer)
    assert text.startswith("ModelCheckpoint(monitor='val_ce_p50') may save a model under the value of an")
    assert why in text
    assert "save_on_train_epoch_end=False" in text


@pytest.mark.parametrize(("when", "trainer"), IN_TIME)
def test_nothing_is_said_of_one_that_saves_in_time_or_of_other_values(tmp_path, when, trainer):
    assert said(tmp_path, LitLM(), checkpoint(tmp_path, "val_ce_p50", **when), train=4, **trainer) == []


@pytest.mark.parametrize(("when", "trainer", "why"), LATE)
def test_nothing_is_said_of_other_values_and_of_our_own_checkpoints(tmp_path, when, trainer, why):
    module = OwnNamesLM()
    assert said(tmp_path, module, checkpoint(tmp_path, "val_ce_loss", **when), train=4, **trainer) == []
    when = {name: value for name, value in when.items() if name.startswith("save")}
    ours = percentile_checkpoints(tmp_path, (50,), **when)
    assert said(tmp_path, LitLM(), *ours, train=4, **trainer) == []


@pytest.mark.parametrize(
    ("when", "trainer", "late"),
    [
        ({}, {}, False),
        ({"save_on_train_epoch_end": True}, {"val_check_interval": 2}, False),
        ({}, {"val_check_interval": 2}, True),
        ({"every_n_train_steps": 4}, {}, True),
    ],
)
def test_values_of_training_epochs_are_saved_when_the_epoch_ends(tmp_path, when, trainer, late):
    keep = checkpoint(tmp_path, "train_ce_p50", **when)
    texts = said(tmp_path, TrainedLM(), keep, train=4, **trainer)
    assert ["save_on_train_epoch_end=True" in text for text in texts] == [True] * late


@pytest.mark.parametrize(("every", "late"), [(2, False), (4, False), (3, True), (1, True)])
def test_values_of_training_windows_are_saved_when_a_window_ends(tmp_path, every, late):
    keep = checkpoint(tmp_path, "train_ce_p50", every_n_train_steps=every)
    callback = PercentileCECallback(train_every_n_steps=2)
    texts = said(tmp_path, ReturningLosses(), callback, keep, train=4)
    assert [f"Let every_n_train_steps={every} be a multiple" in text for text in texts] == [True] * late
