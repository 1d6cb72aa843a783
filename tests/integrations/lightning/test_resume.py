"""A run that is stopped and resumed from a checkpoint logs what the rest of an uninterrupted run logs.

What Lightning does where it cannot go on is pinned down here too: docs/traps.md tells of it.
"""

import warnings
from functools import cache

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_pce import PercentileCECallback
from tests.helpers.lit_modules import (
    Oracle,
    PlainLM,
    ResumableLoader,
    TrainedLM,
    assert_logged,
    loader,
    logged_under,
    make_batches,
    make_loader,
    make_trainer,
    token_losses,
)

BATCHES, EPOCHS = 4, 3


def train_loader(resumable):
    batches = make_batches(BATCHES, seed=1)
    return ResumableLoader(batches, batch_size=None) if resumable else loader(batches)


def run(folder, *callbacks, resumable, module=None, ckpt_path=None, **arguments):
    """What an oracle saw of a run that keeps checkpoints, and everything it warned of."""
    oracle = Oracle()
    trainer = make_trainer(folder, oracle, *callbacks, max_epochs=EPOCHS, **arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(
            module or TrainedLM(), train_loader(resumable), make_loader(3, seed=2), ckpt_path=ckpt_path
        )
    return oracle, [str(warning.message) for warning in caught if "resum" in str(warning.message)]


KEPT = {
    "epoch end": {},
    "validation end": {"save_on_train_epoch_end": False},
    "step": {"every_n_train_steps": 1},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Runs that go through, each made once: an oracle, and the folder of the checkpoints."""
    root = tmp_path_factory.mktemp("uninterrupted")

    @cache
    def made_once(kept, resumable, interval):
        folder = root / f"{kept}, {resumable}, {interval}"
        keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, **KEPT[kept])
        return run(folder, keep, resumable=resumable, val_check_interval=interval)[0], folder

    return lambda kept, resumable=True, interval=BATCHES: made_once(kept, resumable, interval)


def assert_goes_on(whole, resumed, *, validations, epochs):
    """The last validations and whole epochs of training have the same numbers, of all their tokens."""
    assert len(resumed.single) == validations
    for (_, logged), (losses, again) in zip(whole.single[-validations:], resumed.single, strict=True):
        assert_logged(again, losses)
        assert logged_under(again, "val") == logged_under(logged, "val")
    for (_, logged), (losses, again) in zip(whole.epochs[-epochs:], resumed.epochs[-epochs:], strict=True):
        assert_logged(again, losses, "train")
        assert logged_under(again, "train") == logged_under(logged, "train")


@pytest.mark.parametrize("kept", ["epoch end", "validation end"])
@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_resumed_at_the_end_of_an_epoch_goes_on_with_the_same_numbers(
    tmp_path, uninterrupted, kept, resumable, epoch
):
    whole, kept_in = uninterrupted(kept, resumable)
    resumed, said = run(tmp_path, resumable=resumable, ckpt_path=kept_in / f"step={BATCHES * epoch}.ckpt")
    assert len(whole.single) == len(whole.epochs) == EPOCHS
    assert len(resumed.epochs) == EPOCHS - epoch
    assert_goes_on(whole, resumed, validations=EPOCHS - epoch, epochs=EPOCHS - epoch)
    assert said == []


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_resumed_after_a_validation_inside_an_epoch_goes_on_with_the_same_numbers(
    tmp_path, uninterrupted, epoch
):
    whole, kept_in = uninterrupted("validation end", interval=2)
    resumed, said = run(
        tmp_path, resumable=True, ckpt_path=kept_in / f"step={BATCHES * epoch + 2}.ckpt", val_check_interval=2
    )
    left = EPOCHS - epoch
    assert_goes_on(whole, resumed, validations=2 * left - 1, epochs=left - 1)
    # Nobody has the tokens of the first half of this epoch any more; the warning says so.
    losses, logged = resumed.epochs[0]
    assert len(losses) == sum(len(token_losses(TrainedLM(), batch)) for batch in make_batches(BATCHES, 1)[2:])
    assert_logged(logged, losses, "train")
    assert [f"resumed inside epoch {epoch}" in message for message in said] == [True]


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("step", [3, 6])
def test_resumed_inside_an_epoch_training_percentiles_are_of_the_batches_since_then(
    tmp_path, uninterrupted, step, resumable
):
    resumed, said = run(
        tmp_path, resumable=resumable, ckpt_path=uninterrupted("step", resumable)[1] / f"step={step}.ckpt"
    )
    epoch, done = divmod(step, BATCHES)
    # A plain loader starts again with its first batch, and gives as many as are left of the epoch.
    batches = make_batches(BATCHES, seed=1)
    ran = batches[done:] if resumable else batches[: BATCHES - done]
    assert len(resumed.epochs) == EPOCHS - epoch
    assert len(resumed.epochs[0][0]) == sum(len(token_losses(TrainedLM(), batch)) for batch in ran)
    for losses, logged in resumed.epochs:
        assert_logged(logged, losses, "train")
    # Validation is always of all its tokens.
    tokens = sum(len(token_losses(TrainedLM(), batch)) for batch in make_batches(3, seed=2))
    assert len(resumed.single) == EPOCHS - epoch
    for losses, logged in resumed.single:
        assert len(losses) == tokens
        assert_logged(logged, losses)
    assert any(f"Training was resumed inside epoch {epoch}" in message for message in said)
    assert any("your dataloader is not resumable" in message for message in said) == (not resumable)


def test_a_validation_that_a_checkpoint_came_before_is_not_made_up_for_and_the_others_are_right(
    tmp_path, uninterrupted
):
    whole, kept_in = uninterrupted("step")
    resumed, said = run(tmp_path, resumable=True, ckpt_path=kept_in / f"step={BATCHES}.ckpt")
    assert len(whole.single) == EPOCHS
    assert said == []
    # Written by every_n_train_steps after the last batch of epoch 0 and before its validation.
    assert_goes_on(whole, resumed, validations=EPOCHS - 1, epochs=EPOCHS - 1)


class BreakingLM(TrainedLM):
    """An error stops it inside the validation of its first epoch."""

    def __init__(self, broken_at):
        super().__init__()
        self.broken_at = broken_at

    def validation_step(self, batch, batch_idx):
        if self.broken_at == batch_idx and not self.trainer.sanity_checking:
            raise OSError("the disk is full")
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("broken_at", [0, 1, 2])
@pytest.mark.parametrize("interval", [2, 4])
def test_a_validation_that_was_interrupted_is_repeated_as_a_whole(
    tmp_path, uninterrupted, broken_at, interval
):
    whole, _ = uninterrupted("validation end", interval=interval)
    with pytest.raises(OSError, match="the disk is full"):
        run(
            tmp_path,
            OnExceptionCheckpoint(tmp_path, "broken"),
            module=BreakingLM(broken_at),
            resumable=True,
            val_check_interval=interval,
        )
    resumed, _ = run(
        tmp_path, resumable=True, val_check_interval=interval, ckpt_path=tmp_path / "broken.ckpt"
    )
    assert_goes_on(whole, resumed, validations=len(whole.single), epochs=EPOCHS - 1)


def test_the_callback_repeats_an_interrupted_validation_too(tmp_path):
    class BreakingPlainLM(PlainLM):
        broken_at = None

        def validation_step(self, batch, batch_idx):
            if self.broken_at == batch_idx and not self.trainer.sanity_checking:
                raise OSError("the disk is full")
            return {"logits": self(batch), "labels": batch["labels"]}

    first, again = BreakingPlainLM(), BreakingPlainLM()
    first.broken_at = 2
    with pytest.raises(OSError, match="the disk is full"):
        run(
            tmp_path,
            PercentileCECallback(),
            OnExceptionCheckpoint(tmp_path, "broken"),
            module=first,
            resumable=True,
        )
    resumed, _ = run(
        tmp_path,
        PercentileCECallback(),
        module=again,
        resumable=True,
        ckpt_path=tmp_path / "broken.ckpt",
    )
    tokens = sum(len(token_losses(PlainLM(), batch)) for batch in make_batches(3, seed=2))
    assert len(resumed.single) == EPOCHS
    for losses, logged in resumed.single:
        assert len(losses) == tokens
        assert_logged(logged, losses)


def test_an_own_on_train_start_without_super_still_measures_a_resumed_epoch(tmp_path, uninterrupted):
    class OwnStartLM(TrainedLM):
        def on_train_start(self):
            pass

    resumed, _ = run(
        tmp_path, module=OwnStartLM(), resumable=True, ckpt_path=uninterrupted("step")[1] / "step=6.ckpt"
    )
    for losses, logged in resumed.epochs:
        assert_logged(logged, losses, "train")


def test_resuming_does_not_hide_a_missing_call_of_super(tmp_path, uninterrupted):
    class OwnEpochStartLM(TrainedLM):
        def on_train_epoch_start(self):
            pass

    with pytest.raises(RuntimeError, match=r"super\(\)\.on_train_epoch_start\(\)"):
        run(
            tmp_path,
            module=OwnEpochStartLM(),
            resumable=True,
            ckpt_path=uninterrupted("step")[1] / "step=6.ckpt",
        )


def test_a_checkpoint_written_inside_an_epoch_holds_no_digest(uninterrupted):
    checkpoint = torch.load(uninterrupted("step")[1] / "step=3.ckpt")
    assert sorted(checkpoint["state_dict"]) == ["embedding.weight", "head.bias", "head.weight"]
    assert not any("ercentile" in key for key in checkpoint["callbacks"])


def test_two_ranks_go_on_each_with_its_own_tokens_and_the_same_numbers(lightning_ranks):
    notes = [rank["resumed"] for rank in lightning_ranks]
    for own in notes:
        assert not any("ercentile" in key for key in own["keys"])
        # Whole: validations after steps 2, 4, 6 and 8. The first was before the checkpoint.
        whole, again = (
            [logged_under(logged, "val") for _, logged in part["runs"]] for part in (own["whole"], own)
        )
        assert len(again) == 3
        assert again == whole[1:]
        assert own["whole"]["epochs"][1] == own["epochs"][1]
    for both in zip(*(own["runs"] for own in notes), strict=True):
        losses = [torch.tensor(by_loader["0"]) for by_loader, _ in both]
        assert len(losses[0]) < len(losses[1])
        for _, logged in both:
            assert_logged(logged, torch.cat(losses))
    for both in zip(*(own["epochs"] for own in notes), strict=True):
        losses = [torch.tensor(losses) for losses, _ in both]
        assert not torch.equal(*[part[:5] for part in losses])
        for _, logged in both:
            assert_logged(logged, torch.cat(losses), "train")
    tokens = [[len(losses) for losses, _ in own["epochs"]] for own in notes]
    assert all(first < second for first, second in tokens)  # of the resumed epoch its second half
