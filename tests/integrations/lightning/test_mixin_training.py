"""PercentileCEMixin in training steps: what is logged of training, and what the returned loss trains."""

import math
from copy import deepcopy

import pytest
import torch

from tests.helpers.lit_modules import (
    LitLM,
    Oracle,
    PlainLM,
    TrainedLM,
    assert_logged,
    fit,
    logged_under,
    make_batches,
    make_loader,
    make_trainer,
    numbers,
    token_losses,
)
from tests.helpers.summaries import PERCENTILES


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
        assert len(values) == len(PERCENTILES) + 2
        assert values == pytest.approx(logged_under(whole[-1][1], prefix))


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
