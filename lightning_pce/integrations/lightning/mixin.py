"""Percentile CE in a LightningModule: three lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_pce._names import DEFAULT_PERCENTILES
from lightning_pce.integrations.lightning.logged import (
    check_begun,
    check_logged,
    end_hook,
    log_results,
    log_skipped_validation,
)
from lightning_pce.integrations.lightning.monitors import check_monitors
from lightning_pce.integrations.lightning.trainer_internals import (
    check_lengths_over_ranks,
    check_settings_over_ranks,
    data_parallel_group,
    evaluation_loops,
    repeat_interrupted_validation,
    resumed_inside_epoch,
    sync_buffers,
    validation_loaders,
    warn_of_repeats,
)
from lightning_pce.integrations.settings import Settings
from lightning_pce.integrations.stages import StageMetrics
from lightning_pce.metrics._base import not_compiled
from lightning_pce.tokens.labels import GroupIds, Logits

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Module

    from lightning_pce.metrics._process_group import Group
else:
    # A plain class: lightning.pytorch and pytorch_lightning each have a LightningModule of their own.
    _Module = object

__all__ = ["PercentileCEMixin"]


class PercentileCEMixin(_Module):
    """Logs the mean and percentiles of per-token cross-entropy of a LightningModule.

    Stands before ``LightningModule`` in the list of base classes. ``validation_step``, ``test_step`` or
    ``training_step`` call :meth:`update_percentile_ce`; at the end of the stage ``val_ce_mean``,
    ``val_ce_p50`` ... are logged, over all tokens of all ranks, for ``ModelCheckpoint``, ``EarlyStopping``
    and every logger. Validation and test log in any case (NaN if nothing came), training if the step called
    it.

    With several dataloaders of a stage each has its own: ``val_dl0_ce_p50``, ``val_dl1_ce_p50`` ...

    A module that overrides one of the hooks used here (``setup``, ``teardown``, ``on_train_start``,
    ``on_train_epoch_start``, ``on_train_epoch_end``, ``on_train_end``, and those of validation and test but
    their ``start``) calls ``super()`` in it.

    Digests are in no checkpoint. Resumed inside an epoch, ``train_ce_p50`` ... of that epoch are of the
    tokens since then, which is said in a warning.

    Example:
        >>> import lightning.pytorch as L
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> class LitLM(PercentileCEMixin, L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.configure_percentile_ce(percentiles=(50, 95))
        ...         self.head = torch.nn.Linear(4, 10)
        ...     def validation_step(self, batch, batch_idx):
        ...         self.update_percentile_ce(self.head(batch["x"]), batch["labels"])
        >>> batch = {"x": torch.ones(2, 3, 4), "labels": torch.zeros(2, 3, dtype=torch.long)}
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = L.Trainer(accelerator="cpu", **quiet)
        >>> results = trainer.validate(LitLM(), DataLoader([batch], batch_size=None), verbose=False)
        >>> sorted(results[0])
        ['val_ce_mean', 'val_ce_p50', 'val_ce_p95', 'val_ce_trimmed_mean']
    """

    if TYPE_CHECKING:  # TorchScript reads the annotations of a class
        percentile_ce: StageMetrics

    def configure_percentile_ce(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
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
    ) -> None:
        """Choose what is measured; optional, and called in ``__init__`` after ``super().__init__()``.

        Args:
            percentiles: which, each in [0, 100].
            statistics: what is measured of each token: ``"ce"`` and any of ``"entropy"``, ``"log_rank"``,
                ``"rank"``, ``"target_prob"``, ``"max_prob"`` and ``"margin"``, each with results of its own,
                ``val_entropy_p50`` ... Ranks also give ``val_accuracy`` and ``val_top5_accuracy`` (of a group
                ``val_accuracy_prompt``). Except in training the logits are read once for all.
            groups: names of kinds of tokens that are kept apart, such as prompt and completion: each also has
                results of its own, ``val_ce_prompt_p50`` ...
            ignore_index: the label of tokens that do not count; None: all do.
            shift: the labels are the inputs, as Hugging Face has them: position t is scored against label
                t + 1.
            compression: centroids of each digest, see :class:`lightning_pce.PercentileCrossEntropy`.
            loader_names: names of several dataloaders, in order, for the logged names; left out: ``dl0``,
                ``dl1`` ...
            pool_loaders: with several dataloaders also log their tokens together, as ``val_ce_p50`` ...
            process_group: the ranks that each see tokens of their own, if not all: a ProcessGroup, or a
                function without arguments that returns it when it is needed, such as
                ``lambda: self.device_mesh["data_parallel"].get_group()``. Left out: all ranks, or under
                ``ModelParallelStrategy`` those of the mesh's dimension ``"data_parallel"``, because
                tensor-parallel ranks see the same tokens.
            error_bars: also count tokens by ``document``, for intervals of results and of
                differences; 99 KB for each statistic and group, and one ``all_reduce`` for each dataloader.
            level: the probability that an interval holds the true value.
            log_intervals: also log the ends of the intervals, ``val_ce_p50_low``, ``val_ce_p50_high`` ...

        Raises:
            ValueError: if an argument is impossible.
        """
        settings = Settings(
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
        self.percentile_ce = StageMetrics(settings)

    @not_compiled
    def update_percentile_ce(
        self,
        logits: Logits | None = None,
        labels: Tensor | None = None,
        dataloader_idx: int | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        group: GroupIds | None = None,
        document: GroupIds | None = None,
    ) -> Tensor:
        """Add the tokens of a batch to the percentiles of the running stage.

        Args:
            logits: ``[..., V]``, or a list of chunks of it along the sequence, with ``labels``.
            labels: ``[...]`` integers.
            dataloader_idx: which dataloader the batch is from; required if the stage has several.
            losses: per-token losses in nats, instead of ``logits`` and ``labels``.
            mask: bool shaped like ``losses``, true where the token counts.
            weights: numbers >= 0 shaped like ``labels`` or ``losses``.
            group: if there are groups, the number of each token's, of each sequence's or of all.
            document: with error bars, an id of the document of each token, of each sequence or of all, any
                integers. Left out, each row of labels ``[B, T]`` is a document.

        Returns:
            The mean CE of the batch over the tokens that count, in nats, 0-d, NaN if there are none.
            It is differentiable where gradients are recorded, so that ``training_step`` can return it.

        Raises:
            ValueError: if the arguments do not fit, see :class:`lightning_pce.PercentileCrossEntropy`.
            RuntimeError: outside of a Trainer's train, validation or test stage.
        """
        stage, stages = self._running_stage(), self._percentile_stages()
        if stage == "train" and not stages.is_open(stage) and resumed_inside_epoch(self.trainer):
            stages.open(stage, 1, self.device)
        check_begun(stages, stage, self)
        return stages.measure(
            stage,
            logits,
            labels,
            dataloader_idx,
            losses=losses,
            mask=mask,
            weights=weights,
            group=group,
            document=document,
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        stages = self._percentile_stages()
        stages.forget()
        check_settings_over_ranks(stages.settings.described, self.trainer)
        stages.merge_over(data_parallel_group(self.trainer))
        for loop in evaluation_loops(self.trainer):
            check_lengths_over_ranks(loop, self.trainer)
        self._percentile_ce_set_up = True

    def on_train_start(self) -> None:
        repeat_interrupted_validation(self.trainer)
        stages = self._percentile_stages()
        loaders = validation_loaders(self.trainer)
        check_monitors(stages, self.trainer, train=stages.names("train", 1), loaders=loaders)
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        self._begin("train", 1)
        super().on_train_epoch_start()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        log_results(self._percentile_stages(), "train", self.log, "percentile_ce")
        log_skipped_validation(self._percentile_stages(), self.trainer, self.log, "percentile_ce")

    def on_train_end(self) -> None:
        super().on_train_end()
        check_logged(self._percentile_stages(), "train")

    def on_validation_epoch_start(self) -> None:
        self._check_set_up()
        sync_buffers(self.trainer)
        self._begin("val", len(self.trainer.num_val_batches))
        warn_of_repeats(self.trainer)
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        log_results(self._percentile_stages(), "val", self.log, "percentile_ce")

    def on_validation_end(self) -> None:
        super().on_validation_end()
        check_logged(self._percentile_stages(), "val")

    def on_test_epoch_start(self) -> None:
        self._check_set_up()
        self._begin("test", len(self.trainer.num_test_batches))
        warn_of_repeats(self.trainer)
        super().on_test_epoch_start()

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        log_results(self._percentile_stages(), "test", self.log, "percentile_ce")

    def on_test_end(self) -> None:
        super().on_test_end()
        check_logged(self._percentile_stages(), "test")

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        for name in ("train", "val", "test"):
            check_logged(self._percentile_stages(), name)

    def _begin(self, stage: str, loaders: int) -> None:
        end, stages = end_hook(stage), self._percentile_stages()
        if getattr(type(self), end) is getattr(PercentileCEMixin, end):
            # No hook without super(): an error left the stage open, in a trial of BatchSizeFinder, say.
            stages.abandon(stage)
        check_logged(stages, stage)
        stages.open(stage, loaders, self.device, trial=self.trainer.sanity_checking)

    def _check_set_up(self) -> None:
        if self.trainer.world_size > 1 and not getattr(self, "_percentile_ce_set_up", False):
            raise RuntimeError(
                "Percentile CE could not compare the dataloaders of the ranks: setup did not reach it. Your "
                "module has its own setup: call super().setup(stage) in it."
            )

    def _percentile_stages(self) -> StageMetrics:
        if not isinstance(getattr(self, "percentile_ce", None), StageMetrics):
            self.configure_percentile_ce()
        return self.percentile_ce

    def _running_stage(self) -> str:
        trainer = self._trainer
        if trainer is None:
            raise RuntimeError(
                f"{type(self).__name__} is not attached to a Trainer: update a PercentileCrossEntropy "
                "directly."
            )
        if trainer.testing:
            return "test"
        if trainer.validating or trainer.sanity_checking:
            return "val"
        if trainer.training:
            return "train"
        raise RuntimeError("update_percentile_ce() works in training_step, validation_step and test_step.")
