"""Percentile CE of a LightningModule that is left as it is: a callback."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_pce._checks import warn_once
from lightning_pce._names import DEFAULT_PERCENTILES
from lightning_pce.integrations.lightning.figures import PercentileFigures
from lightning_pce.integrations.lightning.history_writer import PercentileHistory
from lightning_pce.integrations.lightning.logged import log_results, log_skipped_validation
from lightning_pce.integrations.lightning.mixin import PercentileCEMixin
from lightning_pce.integrations.lightning.monitors import check_monitors
from lightning_pce.integrations.lightning.step_outputs import Read, checked_read, described, update_arguments
from lightning_pce.integrations.lightning.trainer_internals import (
    callbacks_of,
    check_lengths_over_ranks,
    check_settings_over_ranks,
    data_parallel_group,
    evaluation_loops,
    logged_step,
    one_after_the_other,
    repeat_interrupted_validation,
    running_loop,
    sync_buffers,
    validation_loaders,
    warn_of_repeats,
)
from lightning_pce.integrations.settings import Settings
from lightning_pce.integrations.stages import StageMetrics
from lightning_pce.metrics._views import ViewedMetric
from lightning_pce.runs.history import History

if TYPE_CHECKING:
    from lightning_pce.metrics._process_group import Group

__all__ = ["PercentileCECallback"]

# Where the module keeps the metrics in a run: every strategy moves them with it, and Lightning finds them.
_ATTRIBUTE = "percentile_ce_of_callback"
_STEPS = {"train": "training_step", "val": "validation_step", "test": "test_step"}


class PercentileCECallback(Callback):
    """Logs the mean and percentiles of per-token CE of a module whose code stays as it is.

    It reads what ``validation_step`` and ``test_step`` return: a dict or an object with ``logits``
    ``[..., V]`` and ``labels`` ``[...]`` (or the batch has ``labels``), or with per-token ``losses`` and a
    bool ``mask`` (left out: labels of the same shape say which count, if there are any), perhaps with
    ``weights``. Losses are taken before logits if CE is all that is measured.

    At the end of the stage it logs what :class:`lightning_pce.PercentileCEMixin` would, under the same names,
    ``val_ce_mean``, ``val_ce_p50`` ..., over all tokens of all ranks, for ``ModelCheckpoint``,
    ``EarlyStopping`` and every logger.

    With several dataloaders each has its own results: ``val_dl0_ce_p50`` ... Where a step sees all of them at
    once (a ``CombinedLoader`` that is not sequential) there is one result for all, and the step may return a
    list with an output for each.

    Args:
        percentiles: which, each in [0, 100].
        read: where the step's output, or the batch, has what: a dict of names such as
            ``{"logits": "scores"}``, or a function ``(outputs, batch) -> dict`` of the arguments of
            :meth:`PercentileCEMixin.update_percentile_ce`, or a list of such dicts.
        stages: which of ``"val"`` and ``"test"`` are measured.
        train_every_n_steps: also log percentiles of the training loss, ``train_ce_p50`` ..., of the steps
            since the last multiple of this number in ``trainer.global_step`` (which counts those of every
            optimizer). ``training_step`` then returns a dict with ``loss`` and per-token ``losses`` (and
            ``mask``); logits are not read there, because some kernels have overwritten them with gradients
            by then. What is left at the end of a run is not logged.
        statistics: what is measured of each token beside CE, see
            :meth:`PercentileCEMixin.configure_percentile_ce`, as for the arguments that follow.
        groups: names of kinds of tokens that are kept apart; the step's output or the batch has ``group``.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them.
        compression: centroids of each digest.
        loader_names: names of several dataloaders, in order.
        pool_loaders: with several dataloaders also log their tokens together, as ``val_ce_p50`` ...
        process_group: the ranks that each see tokens of their own, if not all.
        error_bars: also count tokens by document, for intervals; the step's output or the batch has
            ``document`` (left out: each row of the labels is one).
        level: the probability that an interval holds the true value.
        log_intervals: also log the ends of the intervals.
        figures: also draw each validation for loggers that take figures, as
            :class:`lightning_pce.PercentileFigures` does.
        history: also write each validation down: a :class:`lightning_pce.PercentileHistory`, or the path of
            its file, or True for the usual one. The Trainer gets it as a callback of its own.

    Raises:
        ValueError: if an argument is impossible.

    Example:
        >>> import lightning.pytorch as L
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> class AnyModule(L.LightningModule):
        ...     def validation_step(self, batch, batch_idx):
        ...         return {"logits": torch.zeros(2, 3, 10), "labels": batch}
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = L.Trainer(accelerator="cpu", callbacks=[PercentileCECallback((50, 95))], **quiet)
        >>> loader = DataLoader([torch.zeros(2, 3, dtype=torch.long)], batch_size=None)
        >>> results = trainer.validate(AnyModule(), loader, verbose=False)
        >>> sorted(results[0])
        ['val_ce_mean', 'val_ce_p50', 'val_ce_p95', 'val_ce_trimmed_mean']
    """

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        read: Read | None = None,
        stages: Sequence[str] = ("val", "test"),
        train_every_n_steps: int | None = None,
        statistics: Sequence[str] = ("ce",),
        groups: Sequence[str] | None = None,
        ignore_index: int | None = -100,
        shift: bool = False,
        compression: int = 1024,
        loader_names: Sequence[str] | None = None,
        pool_loaders: bool = False,
        process_group: Group = None,
        error_bars: bool = False,
        level: float = 0.95,
        log_intervals: bool = False,
        figures: bool = True,
        history: bool | str | os.PathLike[str] | PercentileHistory = False,
    ) -> None:
        self.read = checked_read(read)
        self.stages = _checked_stages(stages)
        self.train_every_n_steps = _checked_window(train_every_n_steps)
        settings = Settings(  # which raises here, not in a run, if one is impossible
            percentiles=percentiles,
            statistics=statistics,
            groups=groups,
            ignore_index=ignore_index,
            shift=shift,
            compression=compression,
            loader_names=loader_names,
            pool_loaders=pool_loaders,
            process_group=process_group,
            error_bars=error_bars,
            level=level,
            log_intervals=log_intervals,
        )
        self._metrics = StageMetrics(settings)
        self._window = replace(settings, error_bars=False, log_intervals=False).make_metric()
        self._figures = PercentileFigures() if figures and "val" in self.stages else None
        self._draws = True
        self._writer = _checked_history(history, self.stages)
        self._first_step = self._last_step = 0
        self._said: set[str] = set()

    def metric(self, stage: str, dataloader_idx: int | None = 0, statistic: str = "ce") -> ViewedMetric:
        """The metric of a stage (``"val"`` or ``"test"``), dataloader (None: all) and statistic.

        Lightning empties it after the hooks ``on_validation_end`` and ``on_test_end``: read ``digest`` there.

        Raises:
            KeyError: if that stage has not begun yet, or had fewer dataloaders when it last began.
        """
        return self._metrics.metric(stage, dataloader_idx, statistic)

    @property
    def history(self) -> History:
        """What was written of this run so far; on rank 0.

        Raises:
            RuntimeError: if no history was asked for.
        """
        if self._writer is None:
            raise RuntimeError("PercentileCECallback writes no history: give it history=True, or a path.")
        return self._writer.history

    def state_dict(self) -> dict[str, Any]:
        """What the figures show; no digest is in a checkpoint, which would be one rank's."""
        return self._figures.state_dict() if self._figures is not None and self._draws else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._figures is not None:
            self._figures.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(pl_module, PercentileCEMixin):
            raise RuntimeError(
                f"{type(pl_module).__name__} has PercentileCEMixin and measures itself: leave "
                "PercentileCECallback out, or the mixin."
            )
        callbacks = callbacks_of(trainer)
        # One of each figure is enough.
        self._draws = not any(isinstance(callback, PercentileFigures) for callback in callbacks)
        if self._figures is not None and self._draws:
            self._figures.setup(trainer, pl_module, stage)
        if self._writer is not None:
            _add_writer(self._writer, callbacks, self)
        self._said.clear()
        self._metrics.forget()
        stages = f"stages={self.stages}, train_every_n_steps={self.train_every_n_steps}"
        check_settings_over_ranks(f"{stages}, {self._metrics.settings.described}", trainer)
        self._metrics.merge_over(data_parallel_group(trainer))
        self._window.process_group = self._metrics.settings.process_group
        setattr(pl_module, _ATTRIBUTE, self._metrics)
        in_fit, validate, test = evaluation_loops(trainer)
        measured = {"val": (in_fit, validate), "test": (test,)}
        for loop in (loop for name in self.stages for loop in measured[name]):
            check_lengths_over_ranks(loop, trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(pl_module, _ATTRIBUTE):
            delattr(pl_module, _ATTRIBUTE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")  # which Lightning leaves out then

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("val", trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update("val", outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_results(self._metrics, "val", pl_module.log, _ATTRIBUTE)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._figures is not None and self._draws:
            self._figures.on_validation_end(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("test", trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update("test", outputs, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_results(self._metrics, "test", pl_module.log, _ATTRIBUTE)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        repeat_interrupted_validation(trainer)
        self._check_monitors(trainer)
        if self._figures is not None and self._draws:
            self._figures.on_train_start(trainer, pl_module)
        self._window = self._window.to(pl_module.device)
        self._window.reset()
        self._first_step = self._last_step = trainer.global_step

    def _check_monitors(self, trainer: Trainer) -> None:
        every = self.train_every_n_steps
        loaders = validation_loaders(trainer) if "val" in self.stages else 0
        if loaders and not one_after_the_other(evaluation_loops(trainer)[0]):
            loaders = 1
        train = [] if every is None else self._window_names()
        check_monitors(self._metrics, trainer, train=train, loaders=loaders, train_every_n_steps=every)

    def _window_names(self) -> list[str]:
        return [f"train_ce_{key}" for key in self._window_keys()]

    def _window_keys(self) -> tuple[str, ...]:
        return replace(self._metrics.settings, error_bars=False, log_intervals=False).keys

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_skipped_validation(self._metrics, trainer, pl_module.log, _ATTRIBUTE)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._window.update_count and trainer.global_step == self._first_step:
            warn_once(
                self._said,
                "window",
                "PercentileCECallback logged no window of training, for trainer.global_step stayed at "
                f"{self._first_step}: Lightning counts steps of optimizers from self.optimizers().",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.train_every_n_steps is None:
            return
        with _said_of("training_step"):
            found = update_arguments(outputs, batch, self.read, self._metrics.settings, training=True)
            for arguments in found:
                if arguments is not None:
                    self._window.update(**arguments)
        # With automatic optimization a step that returned None was skipped.
        if (not found or None in found) and (outputs or not pl_module.automatic_optimization):
            self._warn_of_nothing("train", outputs)
        before, self._last_step = self._last_step, trainer.global_step
        if before // self.train_every_n_steps < self._last_step // self.train_every_n_steps:
            self._log_window(trainer, pl_module)

    def _log_window(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All ranks are here at the same step, so that they can compute together."""
        with warnings.catch_warnings():  # a window without losses is NaN, and was warned of
            warnings.filterwarnings("ignore", ".*``compute`` method.*before the ``update``")
            result = self._window.compute()
        self._window.reset()
        values = {f"train_ce_{key}": result[key].float() for key in self._window_keys()}
        # Lightning's log() writes only every log_every_n_steps; callbacks see it all the same.
        pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False)
        if trainer.is_global_zero and trainer.loggers:
            numbers = torch.stack(list(values.values())).tolist()
            for logger in trainer.loggers:
                step = logged_step(trainer)
                logger.log_metrics(dict(zip(values, numbers, strict=True)), step=step)

    def _open(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> None:
        if stage not in self.stages:
            return
        sync_buffers(trainer)
        loop = running_loop(trainer)
        loaders = loop.num_dataloaders if one_after_the_other(loop) else 1
        self._metrics.abandon(stage)  # an error left it open, in a trial of BatchSizeFinder, say
        self._metrics.open(stage, loaders, pl_module.device, trial=trainer.sanity_checking)
        warn_of_repeats(trainer)

    def _update(self, stage: str, outputs: Any, batch: Any, dataloader_idx: int) -> None:
        if stage not in self.stages:
            return
        with _said_of(_STEPS[stage]):
            found = update_arguments(outputs, batch, self.read, self._metrics.settings)
            for arguments in found:
                if arguments is not None:
                    self._metrics.measure(stage, **{"dataloader_idx": dataloader_idx, **arguments})
        if not found or None in found:
            self._warn_of_nothing(stage, outputs)

    def _warn_of_nothing(self, stage: str, outputs: Any) -> None:
        step = _STEPS[stage]
        some = self._window.update_count if stage == "train" else self._metrics.has_values(stage)
        lost = (
            "the tokens of this step and of others like it are not in the percentiles"
            if some
            else "it logs NaN, unless other steps return something"
        )
        wanted = (
            '{"loss": ..., "losses": ...}, per-token losses (reduction="none"),'
            if stage == "train"
            else '{"logits": ..., "labels": ...} or {"losses": ..., "mask": ...}'
        )
        warn_once(
            self._said,
            stage,
            f"PercentileCECallback found nothing to measure in what {step} returned, {described(outputs)}: "
            f"{lost}. Return {wanted} from {step}, or say where they are with "
            "PercentileCECallback(read=...).",
        )


@contextmanager
def _said_of(step: str) -> Iterator[None]:
    """Say where impossible arguments come from: the user has not written an update."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"PercentileCECallback cannot measure what {step} returned. {error}") from error


def _checked_stages(stages: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stages, str) or not all(stage in ("val", "test") for stage in stages):
        raise ValueError(f'Expected argument `stages` to hold "val" and "test" but got {stages!r}.')
    return tuple(stages)


def _checked_window(steps: int | None) -> int | None:
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(
            f"Expected argument `train_every_n_steps` to be a positive integer but got {steps!r}."
        )
    return steps


def _checked_history(
    history: bool | str | os.PathLike[str] | PercentileHistory, stages: Sequence[str]
) -> PercentileHistory | None:
    if history is False:
        return None
    if "val" not in stages:
        raise ValueError(f'Expected argument `stages` to hold "val" for a history but got {stages!r}.')
    if isinstance(history, PercentileHistory):
        return history
    return PercentileHistory(None if history is True else history)


def _add_writer(writer: PercentileHistory, callbacks: list[Callback], after: Callback) -> None:
    """Make a history a callback of a Trainer, behind another one, which Lightning sets up just now."""
    there = [callback for callback in callbacks if isinstance(callback, PercentileHistory)]
    if there and there != [writer]:
        raise RuntimeError(
            "PercentileCECallback(history=...) writes a history, and so does a PercentileHistory: leave one "
            "of them out."
        )
    if not there:
        callbacks.insert(callbacks.index(after) + 1, writer)
