"""Results of a stage go to ``self.log``, and what says that a hook did not get here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lightning_pce.integrations.stages import StageMetrics

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_HOOKS = {
    "train": ("on_train_epoch_start", "on_train_epoch_end"),
    "val": ("on_validation_epoch_start", "on_validation_epoch_end"),
    "test": ("on_test_epoch_start", "on_test_epoch_end"),
}


def log_results(stages: StageMetrics, stage: str, log: Callable[..., None], attribute: str) -> None:
    """Log the scalar views of a stage; Lightning computes them later, in one order on all ranks.

    What was logged earlier in the run, with another number of dataloaders, is logged as NaN: Lightning keeps
    the last value of each name, and a checkpoint would be chosen by it.

    Args:
        stages: whose.
        stage: which.
        log: the module's ``log``.
        attribute: where the module keeps ``stages``.
    """
    for name, (path, view) in {**stages.close(stage), **stages.outdated(stage)}.items():
        # Lightning looks a Metric's name up once, before later stages exist.
        log(f"{stage}_{name}", view, add_dataloader_idx=False, metric_attribute=f"{attribute}.{path}")


def log_skipped_validation(
    stages: StageMetrics, trainer: Trainer, log: Callable[..., None], attribute: str
) -> None:
    """Log NaN for a validation that Lightning leaves out, without any hook: a reload gave no batches.

    Args:
        stages: whose.
        trainer: at the end of a training epoch.
        log: as in :func:`log_results`.
        attribute: as there.
    """
    if stages.dataloaders("val") and not sum(trainer.num_val_batches):
        stages.open("val", 0, trainer.strategy.root_device)
        log_results(stages, "val", log, attribute)


def end_hook(stage: str) -> str:
    """The hook in which the results of a stage are logged."""
    return _HOOKS[stage][1]


def check_begun(stages: StageMetrics, stage: str, module: LightningModule) -> None:
    """Raise a ``RuntimeError`` if a stage runs but its first hook did not get to the mixin of this module."""
    if not stages.is_open(stage):
        start, end = _HOOKS[stage]
        outer = module.trainer.lightning_module
        if outer is not module and any(part is module for part in outer.modules()):
            raise _of_a_part(module, outer)
        raise RuntimeError(
            f"Percentile CE missed the beginning of the {stage} stage: {start} did not reach it. If "
            f"your module has its own {start} or {end}, call super().{start}() and super().{end}() in "
            "it; and PercentileCEMixin stands before LightningModule in the list of base classes."
        )


def check_logged(stages: StageMetrics, stage: str) -> None:
    """Raise a ``RuntimeError`` if a stage has ended but its last hook did not get to the mixin."""
    left = stages.is_open(stage)
    stages.abandon(stage)
    if left and (stage != "train" or stages.has_values(stage)):
        end = end_hook(stage)
        raise RuntimeError(
            f"Percentile CE of the {stage} stage was not logged: {end} did not reach it. Your module "
            f"has its own {end}: call super().{end}() in it."
        )


def _of_a_part(module: LightningModule, outer: LightningModule) -> RuntimeError:
    part, whole = type(module).__name__, type(outer).__name__
    own = "" if hasattr(outer, "update_percentile_ce") else f"Give PercentileCEMixin to {whole} and "
    return RuntimeError(
        f"{part} is a part of {whole}, which is what the Trainer runs: Lightning calls no hooks of {part} "
        f"and would log nothing of it. {own or 'So '}call self.update_percentile_ce(...) in the steps of "
        f"{whole}, with the logits and labels, or the losses, that {part} gives. What only {part} can "
        "measure goes into a PercentileCrossEntropy of its own, whose view(...) is logged."
    )
