"""What Lightning does differently in a run that goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

from torchmetrics.utilities.prints import rank_zero_warn


def resumed_inside_epoch(trainer: Any) -> bool:
    """Whether training went on inside an epoch, from a checkpoint; says so in a warning.

    Lightning calls no ``on_train_epoch_start`` in the epoch that it resumes.

    Args:
        trainer: the trainer.
    """
    if not trainer.fit_loop.restarted_mid_epoch:
        return False
    if trainer.fit_loop.epoch_loop.batch_idx:
        rank_zero_warn(
            f"Training was resumed inside epoch {trainer.current_epoch}: percentile CE of the train stage is "
            "of the tokens since then, in this epoch only."
        )
    return True


def repeat_interrupted_validation(trainer: Any) -> None:
    """Let a validation that a checkpoint was written in begin anew.

    Lightning leaves out as many batches as had been validated, but of the end: it starts the dataloader from
    its beginning. Neither the digests nor the dataloader are where they were.

    Args:
        trainer: the trainer, when training starts.
    """
    validation = trainer.fit_loop.epoch_loop.val_loop
    if validation.restarted_mid_evaluation:
        validation.restarting = False
