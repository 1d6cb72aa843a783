"""A checkpoint bears the value of the model that is in it, whatever decides when it is saved."""

import re
from datetime import timedelta

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_pce import PercentileCEMixin
from lightning_pce.integrations.lightning.checkpoints import percentile_checkpoints
from tests.helpers.lit_modules import make_trainer


class StepsLM(PercentileCEMixin, L.LightningModule):
    """Its weight is the number of steps it was trained, and its losses fall with it: 100, 99, 98 ..."""

    def __init__(self):
        super().__init__()
        self.steps = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.update_percentile_ce(losses=(100 - self.steps.detach()).expand(3))
        return -self.steps

    def validation_step(self, batch, batch_idx):
        self.update_percentile_ce(losses=(100 - self.steps).expand(8))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def data(batches=8):
    return torch.utils.data.DataLoader(torch.zeros(batches, 1), batch_size=None)


def fit(tmp_path, callbacks, ckpt_path=None, **arguments):
    trainer = make_trainer(
        tmp_path, *callbacks, **{"max_epochs": -1 if "max_steps" in arguments else 1, **arguments}
    )
    trainer.fit(StepsLM(), data(), data(1), ckpt_path=ckpt_path)
    return trainer


def saved(folder):
    """The steps of the models that were saved; each file's value is that of its model."""
    steps = []
    for path in folder.glob("*.ckpt"):
        value = float(re.search(r"val_ce_\w+?=([\d.]+)-", path.name)[1])
        state = torch.load(path)
        assert value == 100 - float(state["state_dict"]["steps"])
        steps.append(state["global_step"])
    return sorted(steps)


@pytest.mark.parametrize("epoch_end", [None, True, False])
@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_epochs": 2}, [8, 16]),
        ({"max_epochs": 2, "val_check_interval": 2}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ({"max_epochs": 2, "val_check_interval": 3}, [3, 6, 11, 14]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, [16, 32]),
        ({"max_steps": 13}, [8]),
        ({"max_steps": 13, "val_check_interval": 0.5}, [4, 8, 12]),
        ({"max_steps": 13, "val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6, 9, 12]),
        ({"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 3}, [1, 3, 5, 7]),
    ],
)
def test_every_file_bears_the_value_of_its_own_model(tmp_path, arguments, steps, epoch_end):
    callbacks = percentile_checkpoints(
        tmp_path, (50,), mean=False, save_top_k=-1, save_on_train_epoch_end=epoch_end
    )
    fit(tmp_path, callbacks, **arguments)
    if epoch_end:  # asked for: of these only the ones that end an epoch
        ends = 8 // arguments.get("accumulate_grad_batches", 1)
        steps = [step for step in steps if step % ends == 0]
    assert saved(tmp_path) == steps


@pytest.mark.parametrize("max_steps", [9, 12, 15])
def test_the_best_few_are_validated_models_where_max_steps_ends_the_run_inside_an_epoch(tmp_path, max_steps):
    callbacks = percentile_checkpoints(tmp_path, (5,), mean=False, save_top_k=3)
    fit(tmp_path, callbacks, max_steps=max_steps)
    assert saved(tmp_path) == [8]
    assert callbacks[0].best_model_score == 92


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_train_steps": 2},
        {"every_n_train_steps": 1000, "save_on_train_epoch_end": False},
        {"train_time_interval": timedelta(minutes=5)},
        {"train_time_interval": timedelta(0)},
        {"save_on_exception": True},
    ],
)
def test_arguments_that_save_models_before_their_validation_are_refused(tmp_path, wrong):
    name = next(iter(wrong))
    for prefix in ("val", "val_web"):
        with pytest.raises(
            ValueError, match=rf"`{name}` to be left out .* validate at them.*without `monitor`"
        ):
            percentile_checkpoints(tmp_path, prefix=prefix, **wrong)


@pytest.mark.parametrize(
    "nothing",
    [{"every_n_train_steps": None}, {"every_n_train_steps": 0}, {"train_time_interval": None}],
)
def test_arguments_that_ask_for_nothing_are_taken(tmp_path, nothing):
    callbacks = percentile_checkpoints(tmp_path, (50,), mean=False, every_n_epochs=1, **nothing)
    fit(tmp_path, callbacks)
    assert saved(tmp_path) == [8]


def test_of_training_the_value_is_that_of_the_epoch_that_ended(tmp_path):
    callbacks = percentile_checkpoints(tmp_path, (50,), mean=False, prefix="train", save_top_k=-1)
    fit(tmp_path, callbacks, max_epochs=3, val_check_interval=2)
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    # The middle of 100 to 93, of 92 to 85, and of 84 to 77.
    assert names == [
        "best-train_ce_p50=80.5000-epoch=2-step=24.ckpt",
        "best-train_ce_p50=88.5000-epoch=1-step=16.ckpt",
        "best-train_ce_p50=96.5000-epoch=0-step=8.ckpt",
    ]


def test_of_training_steps_may_say_when(tmp_path):
    [callback] = percentile_checkpoints(tmp_path, (50,), mean=False, prefix="train", every_n_train_steps=4)
    assert callback._every_n_train_steps == 4
    with pytest.raises(ValueError, match="`train_time_interval`"):
        percentile_checkpoints(tmp_path, prefix="train", train_time_interval=timedelta(minutes=5))


def test_a_run_goes_on_from_such_a_checkpoint_with_early_stopping(tmp_path):
    """One that is saved when validation ends would lack the value that EarlyStopping asks for."""

    def callbacks(folder):
        return [*percentile_checkpoints(folder, (50,), save_top_k=-1), EarlyStopping("val_ce_p50")]

    whole = callbacks(tmp_path / "whole")
    fit(tmp_path, whole, max_epochs=3)
    second = next(path for path in (tmp_path / "whole").glob("best-val_ce_p50=*step=16.ckpt"))
    resumed = callbacks(tmp_path / "resumed")
    trainer = fit(tmp_path, resumed, max_epochs=3, ckpt_path=second)
    assert trainer.global_step == 24
    assert float(resumed[-1].best_score) == float(whole[-1].best_score) == 76
    assert saved(tmp_path / "resumed") == [24, 24]


def test_states_of_plain_model_checkpoints_in_older_files_are_found(tmp_path):
    ours = percentile_checkpoints(tmp_path, (50,), mean=False)[0]
    assert ours.state_key == ModelCheckpoint(tmp_path, monitor="val_ce_p50").state_key


def test_a_trainer_takes_the_list_itself(tmp_path):
    callbacks = percentile_checkpoints(tmp_path, (50, 95))
    trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=callbacks)
    assert [each.monitor for each in trainer.checkpoint_callbacks] == [
        "val_ce_p50",
        "val_ce_p95",
        "val_ce_mean",
    ]
    assert isinstance(callbacks, list)
