"""What a validation has measured, by the name under which it is logged: for histories and for figures.

Read after the results of the stage were computed, on one rank alone: there is no collective here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce._names import percentile_key
from lightning_pce.integrations.settings import Settings
from lightning_pce.integrations.stages import StageMetrics
from lightning_pce.metrics._digest_metric import DigestMetric
from lightning_pce.metrics._views import ViewedMetric
from lightning_pce.runs.fingerprint import fingerprint

# In every record, whatever percentiles are logged: figures and decisions need them.
PERCENTILES = (5.0, 25.0, 50.0, 75.0, 90.0, 95.0)


class Measured(NamedTuple):
    """One dataloader in one validation."""

    values: dict[str, float]  # "ce_mean", "ce_p50", "ce_web_p50" ...
    digests: dict[str, dict[str, Tensor]]  # by statistic and group, "" of all tokens
    documents: dict[str, dict[str, Tensor]]
    fingerprint: str


def measured(
    stages: StageMetrics, stage: str, prefix: str, protocol: Mapping[str, Any] | None = None
) -> dict[str, Measured]:
    """What a stage has measured over all ranks.

    Args:
        stages: whose results have been computed.
        stage: which.
        prefix: what logged names begin with, ``"val"``.
        protocol: what tells equal data apart that are scored in another way; left out: by the settings.

    Returns:
        By what the logged names of the dataloader begin with: ``"val"``, ``"val_dl0"``.

    Raises:
        LookupError: if the results have not been computed.
    """
    settings = stages.settings
    if protocol is None:
        protocol = {"ignore_index": settings.ignore_index, "shift": settings.shift}
    return {
        f"{prefix}_{loader}" if loader else prefix: _of_loader(metrics, settings, protocol)
        for loader, metrics in stages.by_loader(stage).items()
    }


def _of_loader(
    metrics: Mapping[str, ViewedMetric], settings: Settings, protocol: Mapping[str, Any]
) -> Measured:
    digests: dict[str, dict[str, Tensor]] = {}
    documents: dict[str, dict[str, Tensor]] = {}
    values: dict[str, Tensor] = {}
    for name, metric in metrics.items():
        result = metric.last_result
        if result is None:
            raise LookupError("the results of this validation were not logged, so ranks did not meet")
        if isinstance(metric, DigestMetric):
            digests[name] = {"": metric.digest, **metric.group_digests}
            if metric.error_bars:
                documents[name] = {"": metric.documents, **metric.group_documents}
            found = {
                **result,
                **{key: value for key, value in _always(metric.digest).items() if key not in result},
            }
            values |= {f"{name}_{key}": value for key, value in found.items()}
        else:
            logged = {at: key for at, (of, key) in settings.results.items() if of == name}
            values |= {at: result[key] for at, key in logged.items()}
    numbers = torch.stack([value.to(torch.float64) for value in values.values()]).tolist()
    name_of_data = fingerprint(digests["ce"], protocol)
    return Measured(dict(zip(values, numbers, strict=True)), digests, documents, name_of_data)


def _always(digest: Tensor) -> dict[str, Tensor]:
    """The percentiles that are in every record, by their keys."""
    u = torch.tensor(PERCENTILES, dtype=torch.float64, device=digest.device) / 100
    keys = [percentile_key(percentile) for percentile in PERCENTILES]
    return dict(zip(keys, td.quantile(digest, u).unbind(), strict=True))
