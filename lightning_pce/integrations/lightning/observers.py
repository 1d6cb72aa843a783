"""What callbacks share that only look at a validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_pce.integrations.stages import StageMetrics

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def all_stages_of(module: LightningModule) -> list[StageMetrics]:
    """The metrics of percentile CE in a module, of which one measures."""
    return [part for part in module.modules() if isinstance(part, StageMetrics)]


def validated_stages_of(module: LightningModule) -> StageMetrics:
    """The metrics of a module that has measured a validation.

    Raises:
        LookupError: if it has not.
    """
    for stages in all_stages_of(module):
        if stages.dataloaders("val"):
            return stages
    raise LookupError(
        f"{type(module).__name__} measures no percentile CE in validation. Give it PercentileCEMixin as a "
        "base class, or the Trainer a PercentileCECallback."
    )
