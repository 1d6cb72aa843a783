"""A callback that writes down what every validation has measured, for decisions after the run."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from lightning_pce.integrations.lightning.observers import all_stages_of, validated_stages_of
from lightning_pce.integrations.lightning.saved_checkpoints import SavedCheckpoints
from lightning_pce.integrations.lightning.trainer_internals import (
    evaluated_checkpoint,
    is_fast_dev_run,
    logged_values,
    trained_batches,
)
from lightning_pce.integrations.measured import measured
from lightning_pce.integrations.quietly import said, warn
from lightning_pce.integrations.stages import StageMetrics
from lightning_pce.metrics._digest_metric import DigestMetric
from lightning_pce.metrics.label_totals import LabelTotals
from lightning_pce.runs._writing import copy_run, new_run_id
from lightning_pce.runs.better_share import BestSoFar
from lightning_pce.runs.first_split import FirstSplit
from lightning_pce.runs.history import (
    FILE_NAME,
    History,
    write_checkpoint,
    write_start,
    write_validation,
)

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["PercentileHistory"]

BETTER_SHARE = "ce_better_share"


class PercentileHistory(Callback):
    """Writes what every validation has measured to a file, one line each, that outlives the run.

    A line holds the percentiles and the mean of each dataloader, all other scalars that were logged in this
    validation (task metrics, of the module or of other callbacks), digests, and document counts if there are
    error bars; further lines say which checkpoint is of which step. ``History.load(path)`` reads them. What
    measures is :class:`lightning_pce.PercentileCEMixin`; :class:`lightning_pce.PercentileCECallback` writes
    by itself with ``history=True``.

    A run that is resumed from a checkpoint goes on with the same id, and what it does again takes the place
    of what it had done after that checkpoint. If it writes to another file than before that file begins with
    what was written before. Lines are whole or, after a kill, the last one is torn and skipped. The sanity
    check is not written down, nor is ``fast_dev_run``. ``trainer.validate`` after a fit is; of a checkpoint,
    ``trainer.validate(ckpt_path=...)``, the step is not known.

    In training it also logs ``val_ce_better_share`` (``val_dl0_ce_better_share`` ...): the share of 199 even
    percentiles that are lower than at the validation with the lowest mean so far; NaN at the first one. Near
    1 all of the distribution gets better, near 0 all gets worse. The digest of that validation is kept in
    checkpoints.

    A history is not worth a run: what goes wrong becomes one warning.

    Args:
        path: the file; several runs may share one. Left out: ``percentile_history.jsonl`` in
            ``trainer.log_dir``, which is ``default_root_dir`` without a logger.
        metadata: whatever JSON can hold, written with each record. An entry ``data`` is part of the
            fingerprint, by which records of other data are told apart.

    Raises:
        ValueError: if JSON can't hold the metadata.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> history = PercentileHistory("runs.jsonl", metadata={"data": "wikitext-2, packed"})
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[history])
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.metadata = _checked_metadata(metadata)
        self._default_path = path is None
        self._trainer: weakref.ref[Trainer] | None = None
        self._logged_before: dict[str, Any] = {}
        self._totals_before: dict[str, torch.Tensor] = {}
        self._saves = SavedCheckpoints()
        self._damaged = False  # the state in a checkpoint
        self._said: set[str] = set()
        self._begin_run()

    def _begin_run(self) -> None:
        self.run = new_run_id()
        self._earlier_path: Path | None = None  # where a resumed run has written until now
        self._best = BestSoFar()
        self._split = FirstSplit()

    @property
    def state_key(self) -> str:
        return "lightning_pce.PercentileHistory"

    @property
    def history(self) -> History:
        """What was written of this run so far; on rank 0."""
        if self.path is None or not self.path.exists():
            return History([])
        history = History.load(self.path)
        return history.select(run=self.run) if self.run in history.runs else history[:0]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trainer": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> PercentileHistory:
        # For another Trainer: in one file its start would take back what the run of the same id has written.
        copied = copy(self)
        copied._said = set()
        copied._begin_run()
        return copied

    def state_dict(self) -> dict[str, Any]:
        """Text and tensors in plain containers: checkpoints may be read with ``weights_only=True``."""
        path = None if self.path is None else str(self.path.absolute())
        return {"run": self.run, "path": path, "best": self._best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of a checkpoint. A damaged state is left out, with a warning."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None and trainer.state.fn != "fit":
            return  # what is validated by itself is not gone on with
        try:
            run, path = state_dict["run"], state_dict["path"]
            if not isinstance(run, str) or not isinstance(path, str | None):
                raise TypeError
            self._best.load_state_dict(state_dict["best"])
        except (AttributeError, KeyError, TypeError, ValueError):
            self._damaged = True
            return
        self.run, self._earlier_path = run, None if path is None else Path(path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        before = self._trainer
        if before is not None and before() is not trainer:  # a run is what one Trainer does
            self._begin_run()
        self._trainer = weakref.ref(trainer)
        evaluated_checkpoint(trainer)  # which stays loaded after a test, too
        self._saves = SavedCheckpoints()
        self._said.clear()
        if self._default_path and not is_fast_dev_run(trainer):
            # A collective: all ranks get the folder of rank 0.
            self.path = Path(trainer.log_dir or trainer.default_root_dir, FILE_NAME)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for stages in all_stages_of(pl_module):
            stages.derive("val", {})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._note_checkpoints(trainer)
        self.teardown(trainer, pl_module, "")  # which Lightning leaves out then

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for stages in all_stages_of(pl_module):
            stages.derive("val", {BETTER_SHARE: self._best.share})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note_checkpoints(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writes(trainer):
            if self._damaged:
                self._warn(
                    "damaged",
                    "begins a new history: its state in the checkpoint is damaged, the id of the run lost.",
                )
            self._saves.begin(trainer)
            self._write(self._start, trainer)
        self._damaged = False
        # Rank 0 has read the file, and the checkpoint that counts.
        self.run, best = trainer.strategy.broadcast((self.run, self._best.state_dict()))
        self._best.load_state_dict(best)

    def _start(self, trainer: Trainer, path: Path) -> None:
        earlier, resumed = self._earlier_path, trainer.ckpt_path
        self._earlier_path = None
        if earlier is not None and earlier.exists() and not (path.exists() and earlier.samefile(path)):
            copy_run(earlier, path, self.run)
        place = {"step": trainer.global_step, "batch": trained_batches(trainer)}
        from_path = None if resumed is None else str(resumed)
        write_start(path, run=self.run, epoch=trainer.current_epoch, resumed_from=from_path, **place)
        known = self._saves.known()
        if from_path is not None and from_path in known:  # after a kill nobody has noted it
            write_checkpoint(path, run=self.run, checkpoint=from_path, monitor=known[from_path], **place)
        if place["batch"]:
            self._take_best(self.history)

    def _take_best(self, history: History) -> None:
        """Take the best records that are left: a checkpoint from before a validation does not know of it."""
        for name in history.names:
            records = [record for record in history if (record.function, record.name) == ("fit", name)]
            best = min(
                records, key=lambda each: (math.isnan(mean := each.values["ce_mean"]), mean), default=None
            )
            if best is not None:
                self._best.take(_loader(name), best.digest())

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._note_checkpoints(trainer)

    def _note_checkpoints(self, trainer: Trainer) -> None:
        """Write which files were saved since the last hook: nothing was trained in between."""
        if not self._writes(trainer) or trainer.state.fn != "fit":
            return
        for name, monitor in self._saves.new(trainer).items():
            self._write(self._checkpoint, trainer, name, monitor)

    def _checkpoint(self, trainer: Trainer, path: Path, name: str, monitor: str | None) -> None:
        place = {"step": trainer.global_step, "batch": trained_batches(trainer)}
        write_checkpoint(path, run=self.run, checkpoint=name, monitor=monitor, **place)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._note_checkpoints(trainer)
            self._logged_before = logged_values(trainer)
            self._totals_before = _label_totals_of(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        # By now all ranks have merged their digests. From here on there is no collective.
        if trainer.state.fn == "fit":
            for stages in all_stages_of(pl_module):
                for loader, metrics in stages.by_loader("val").items():
                    metric = metrics["ce"]
                    if isinstance(metric, DigestMetric) and metric.last_result is not None:
                        self._best.take(loader, metric.digest)
        if self._writes(trainer):
            self._write(self._validation, trainer, pl_module)
            if trainer.state.fn == "fit":
                self._write(self._compare, trainer, pl_module)

    def _compare(self, trainer: Trainer, path: Path, module: LightningModule) -> None:
        stages = validated_stages_of(module)
        if not stages.settings.error_bars:
            return
        words = self._split.look(lambda: self.history, written=len(stages.by_loader("val")))
        if words is not None:
            self._warn("split", words)

    def _protocol(self, stages: StageMetrics) -> dict[str, Any]:
        settings = stages.settings
        data = {"data": self.metadata["data"]} if "data" in self.metadata else {}
        return {"ignore_index": settings.ignore_index, "shift": settings.shift, **data}

    def _validation(self, trainer: Trainer, path: Path, module: LightningModule) -> None:
        stages = validated_stages_of(module)
        found = measured(stages, "val", "val", self._protocol(stages))
        ours = set(stages.names("val", stages.dataloaders("val")))
        fit, checkpoint = trainer.state.fn == "fit", evaluated_checkpoint(trainer)
        known = checkpoint is None
        now, before = logged_values(trainer), self._logged_before
        numbers = {name: float(value) for name, value in now.items() if _is_number(value)}
        fresh = {name for name in numbers if now[name] is not before.get(name)}
        totals = {
            at: total
            for at, total in _label_totals_of(module).items()
            if total is not self._totals_before.get(at)
        }
        for name, part in found.items():
            share = f"{name}_{BETTER_SHARE}"
            derived = {BETTER_SHARE: numbers[share]} if share in fresh else {}
            write_validation(
                path,
                run=self.run,
                function=str(trainer.state.fn.value) if trainer.state.fn is not None else "",
                name=name,
                step=trainer.global_step if known else None,
                epoch=trainer.current_epoch if fit else None,
                batch=trained_batches(trainer) if known else None,
                values={**part.values, **derived},
                scalars={at: number for at, number in numbers.items() if at in fresh and at not in ours},
                stale={at: number for at, number in numbers.items() if at not in fresh},
                fingerprint=part.fingerprint,
                metadata=self.metadata,
                checkpoint=checkpoint,
                digests=part.digests,
                documents=part.documents,
                label_totals=totals,
            )

    def _writes(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and not is_fast_dev_run(trainer)

    def _write(self, write: Callable[..., None], trainer: Trainer, *arguments: Any) -> None:
        assert self.path is not None
        try:
            write(trainer, self.path, *arguments)
        except LookupError as error:
            self._warn("nothing", f"has nothing to write: {error.args[0]}")
        except Exception as error:  # on rank 0 alone: the others would wait for it for ever
            self._warn("unwritable", f"could not write {self.path}, and the run goes on: {said(error)}")

    def _warn(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warn(f"PercentileHistory {message}", __name__)


def _label_totals_of(module: LightningModule) -> dict[str, torch.Tensor]:
    """What the LabelTotals of a module have given last, by their names in it."""
    metrics = {name: part for name, part in module.named_modules() if isinstance(part, LabelTotals)}
    return {name: part.last_result for name, part in metrics.items() if part.last_result is not None}


def _loader(name: str) -> str:
    """The name of the dataloader in the name of a record: ``"val_dl0" -> "dl0"``."""
    return name.removeprefix("val").removeprefix("_")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    checked = dict(metadata or {})
    try:
        json.dumps(checked, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected argument `metadata` to hold what JSON can hold but got {metadata!r}: {error}."
        ) from error
    return checked
