"""Results of a stage go to ``self.log``, and what says that a hook did not get here."""

from __future__ import annotations

from collections.abc import Callable

from lightning_pce.integrations.stages import StageMetrics

_HOOKS = {
    "train": ("on_train_epoch_start", "on_train_epoch_end"),
    "val": ("on_validation_epoch_start", "on_validation_epoch_end"),
    "test": ("on_test_epoch_start", "on_test_epoch_end"),
}


def log_results(stages: StageMetrics, stage: str, log: Callable[..., None], attribute: str) -> None:
    """Log the scalar views of a stage; Lightning computes them later, in one order on all ranks.

    Args:
        stages: whose.
        stage: which.
        log: the module's ``log``.
        attribute: where the module keeps ``stages``.
    """
    for name, (path, view) in stages.close(stage).items():
        # Lightning looks a Metric's name up once, before later stages exist.
        log(f"{stage}_{name}", view, add_dataloader_idx=False, metric_attribute=f"{attribute}.{path}")


def end_hook(stage: str) -> str:
    """The hook in which the results of a stage are logged."""
    return _HOOKS[stage][1]


def check_begun(stages: StageMetrics, stage: str) -> None:
    """Raise a ``RuntimeError`` if a stage runs but its first hook did not get to the mixin."""
    if not stages.is_open(stage):
        start, end = _HOOKS[stage]
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
