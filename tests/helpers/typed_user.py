"""What a user writes, for mypy: ``make lint`` checks it; nothing runs it."""

from __future__ import annotations

import lightning.pytorch as L
import torch
from torch import Tensor
from typing_extensions import assert_type

from lightning_pce import (
    BitsPerByte,
    DigestView,
    PercentileCECallback,
    PercentileCEMixin,
    PercentileCrossEntropy,
    StreamingQuantiles,
    TokenProxies,
    linear_token_statistics,
    percentile_checkpoints,
    token_statistics,
)
from lightning_pce import digest as td


class LitLM(PercentileCEMixin, L.LightningModule):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.configure_percentile_ce(percentiles=(5, 50, 95), shift=True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.update_percentile_ce(self.model(batch["x"]), batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self.model(batch["x"])
        assert_type(self.update_percentile_ce(logits, batch["labels"], dataloader_idx), Tensor)


def metrics(logits: Tensor, labels: Tensor) -> None:
    metric = PercentileCrossEntropy(percentiles=(50, 99.9))
    metric.update(logits, labels)
    metric.update([logits, logits], labels)
    assert_type(metric.compute(), dict[str, Tensor])
    assert_type(metric.view("p50"), DigestView)
    assert_type(td.quantile(metric.digest, 0.5), Tensor)
    assert_type(TokenProxies().compute(), dict[str, Tensor])
    assert_type(BitsPerByte([1, 2]).compute(), Tensor)


def statistics(logits: Tensor, labels: Tensor, head: torch.nn.Linear) -> None:
    stats = token_statistics(logits, labels)
    entropy = StreamingQuantiles()
    entropy.update(stats.entropy, stats.valid)
    assert_type((stats.rank <= 5)[stats.valid].float().mean(), Tensor)
    assert_type(stats.margin, Tensor)
    bits = BitsPerByte(torch.randint(1, 8, (1000,)))
    bits.update(stats.ce, labels, mask=stats.valid)
    PercentileCrossEntropy().update(losses=linear_token_statistics(logits, head.weight, labels).ce)


def trainer(model: torch.nn.Module) -> None:
    callbacks = [PercentileCECallback(percentiles=(5, 50, 95)), *percentile_checkpoints("checkpoints")]
    L.Trainer(callbacks=callbacks).fit(LitLM(model))
    best = percentile_checkpoints("checkpoints", percentiles=(50, 95))
    L.Trainer(callbacks=best)
    [median] = percentile_checkpoints("checkpoints", (50,), mean=False)
    assert_type(median.best_model_path, str)
    assert_type({each.monitor: each.best_model_path for each in best}, dict[str | None, str])
