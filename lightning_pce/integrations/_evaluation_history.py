"""The history of the evaluations of transformers' Trainer, written by its first process."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lightning_pce.integrations.measured import measured
from lightning_pce.integrations.quietly import said, warn
from lightning_pce.integrations.stages import StageMetrics
from lightning_pce.runs._writing import new_run_id
from lightning_pce.runs.history import (
    FILE_NAME,
    run_that_saved,
    write_checkpoint,
    write_start,
    write_validation,
)


class EvaluationHistory(TrainerCallback):
    """Writes evaluations, the beginnings of training and its checkpoints to a file.

    Transformers keeps no state of ours in its checkpoints, so a training that is resumed takes up the run
    that has saved the checkpoint, as the file says.

    Args:
        path: the file; None: the usual name in ``output_dir``.
        output_dir: that of the training arguments.
    """

    def __init__(self, path: str | os.PathLike[str] | None, output_dir: str | None) -> None:
        self.path = Path(output_dir or ".", FILE_NAME) if path is None else Path(path).expanduser()
        self.run = new_run_id()
        self.resumed_from: str | None = None  # what train() was given
        self._has_started = self._has_warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The state of a checkpoint has been loaded."""
        if state.is_world_process_zero:
            self._quietly(self._begin, args, state)

    def _begin(self, args: TrainingArguments, state: TrainerState) -> None:
        resumed = None
        if state.global_step:
            resumed = os.path.abspath(self.resumed_from or _checkpoint(args, state))
        if self._has_started or resumed is not None:
            self.run = (resumed and run_that_saved(self.path, resumed)) or new_run_id()
        self._has_started = True
        write_start(self.path, run=self.run, step=state.global_step, batch=None, resumed_from=resumed)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint has been written."""
        path = os.path.abspath(_checkpoint(args, state))
        if state.is_world_process_zero and os.path.isdir(path):  # a trial of a search has another folder
            place = {"checkpoint": path, "step": state.global_step}
            self._quietly(write_checkpoint, self.path, run=self.run, **place)

    def write(self, *arguments: Any) -> None:
        """Write an evaluation, see :meth:`_write`; what goes wrong is one warning."""
        self._quietly(self._write, *arguments)

    def _quietly(self, write: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
        try:
            write(*arguments, **keywords)
        except Exception as error:  # in one process alone: the others would wait for it for ever
            if not self._has_warned:
                warn(
                    f"Percentile CE could not write {self.path}, and the run goes on: {said(error)}", __name__
                )
            self._has_warned = True

    def _write(
        self,
        stages: StageMetrics,
        name: str,
        metrics: Mapping[str, Any],
        ours: Collection[str],
        protocol: Mapping[str, Any],
        state: TrainerState,
        of_checkpoint: str | None,
    ) -> None:
        """Write an evaluation.

        Args:
            stages: whose results have been computed.
            name: what the names of its values begin with, ``"eval"``.
            metrics: all values, of which numbers are kept.
            ours: the names of those that are in the record already.
            protocol: see :func:`~lightning_pce.integrations.measured.measured`.
            state: of the Trainer.
            of_checkpoint: the checkpoint that was evaluated, if it is not the model of this step.
        """
        epoch = state.epoch if of_checkpoint is None else None
        scalars = {
            at: float(value)
            for at, value in metrics.items()
            if isinstance(value, int | float) and at not in ours and at != "epoch"
        }
        for at, part in measured(stages, "val", name, protocol).items():
            write_validation(
                self.path,
                run=self.run,
                function="evaluate",
                name=at,
                step=state.global_step if of_checkpoint is None else None,
                epoch=int(epoch) if epoch is not None and epoch == int(epoch) else None,
                values=part.values,
                scalars=scalars,
                fingerprint=part.fingerprint,
                checkpoint=of_checkpoint,
                digests=part.digests,
                documents=part.documents,
            )


def _checkpoint(args: TrainingArguments, state: TrainerState) -> str:
    return os.path.join(args.output_dir or "", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
