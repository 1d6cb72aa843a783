"""The room behind the mixin: metrics per stage and dataloader, their names, logging and reset.

Nothing here may let ranks differ in what they log or compute, or when: whoever is alone in a collective waits
for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_pce.digest_metric import DigestMetric, checked_names, percentile_key
from lightning_pce.metrics import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce.token_stats import STATISTICS, TokenStatistics, token_statistics

# Statistics that come of others, and the settings that all metrics share.
_PARTS = {"log_rank": ("rank",), "margin": ("target_prob", "max_prob")}
_SHARED = ("percentiles", "groups", "compression")
_HOOKS = {
    "train": ("on_train_epoch_start", "on_train_epoch_end"),
    "val": ("on_validation_epoch_start", "on_validation_epoch_end"),
    "test": ("on_test_epoch_start", "on_test_epoch_end"),
}


class StageMetrics(nn.Module):
    """Percentiles of CE and other token statistics of a LightningModule, for each stage and dataloader.

    It is a submodule, so that every strategy moves it with the module; it has no parameters, and its metrics
    put nothing into a checkpoint.

    Args:
        statistics: what is measured of each token, ``"ce"`` and others of
            :class:`lightning_pce.TokenStatistics`.
        loader_names: names of several validation or test dataloaders, in order; left out: ``dl0``, ``dl1``.
        settings: keyword arguments of :class:`PercentileCrossEntropy`.

    Raises:
        ValueError: if a setting is impossible, or a name cannot be part of a logged name.
    """

    def __init__(
        self,
        *,
        statistics: Sequence[str] = ("ce",),
        loader_names: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.statistics = _checked_statistics(statistics)
        self.loader_names = None if loader_names is None else checked_names("loader_names", loader_names)
        self.settings = settings
        metric = PercentileCrossEntropy(**settings)  # raises here, not at step 40,000
        keys = ("mean", *(percentile_key(p) for p in metric.percentiles), "trimmed_mean")
        self.logged_keys = (*keys, *(f"{group}_{key}" for group in metric.groups or () for key in keys))
        self.metrics = nn.ModuleDict()
        self.views = nn.ModuleDict()
        self._loaders: dict[str, int] = {}  # of the stages that are open
        self._updated: set[str] = set()

    def metric(self, stage: str, dataloader_idx: int = 0, statistic: str = "ce") -> DigestMetric:
        """The metric of a stage (``"train"``, ``"val"`` or ``"test"``), dataloader and statistic.

        Raises:
            KeyError: if that stage has not begun yet, or has fewer dataloaders.
        """
        metric = self.metrics[f"{stage}_{dataloader_idx}_{statistic}"]
        assert isinstance(metric, DigestMetric)
        return metric

    def measures(self, stage: str) -> bool:
        """Whether that stage has begun once."""
        return f"{stage}_0" in self.views

    def forget(self) -> None:
        """A new run begins: stages that an error left open are over."""
        self._loaders.clear()
        self._updated.clear()

    def open(self, stage: str, loaders: int, device: torch.device) -> None:
        """A stage begins: its metrics exist on every rank from here on, batches or not, and are empty."""
        self.check_logged(stage)
        if self.loader_names is not None and loaders > 1 and len(self.loader_names) != loaders:
            raise ValueError(
                f"Expected one of `loader_names` for each of the {loaders} {stage} dataloaders but got "
                f"{list(self.loader_names)!r}."
            )
        for index in range(loaders):
            if f"{stage}_{index}" not in self.views:
                self._make(f"{stage}_{index}", device)
            for statistic in (*self.statistics, *self._accuracies):
                self.metric(stage, index, statistic).reset()
        self._loaders[stage] = loaders
        self._updated.discard(stage)

    @property
    def _accuracies(self) -> dict[str, int]:
        """The names of accuracies and their k, if ranks are known anyway."""
        ranked = {"rank", "log_rank"} & set(self.statistics)
        return {"accuracy": 1, "top5_accuracy": 5} if ranked else {}

    def _make(self, key: str, device: torch.device) -> None:
        """The metrics of a stage and dataloader, and the views of them that are logged."""
        metrics: dict[str, DigestMetric] = {"ce": PercentileCrossEntropy(**self.settings)}
        shared = {name: self.settings[name] for name in _SHARED if name in self.settings}
        for statistic in self.statistics[1:]:
            metrics[statistic] = StreamingQuantiles(**shared)
        views = {
            f"{statistic}_{name}": metric.view(name)
            for statistic, metric in metrics.items()
            for name in self.logged_keys
        }
        for name in self._accuracies:  # the mean of values 0 and 1, which stay exact
            metrics[name] = StreamingQuantiles((), groups=shared.get("groups"), compression=8)
            views[name] = metrics[name].view("mean")
            for group in metrics[name].groups or ():
                views[f"{name}_{group}"] = metrics[name].view(f"{group}_mean")
        for name, metric in metrics.items():
            self.metrics[f"{key}_{name}"] = metric.to(device)
        self.views[key] = nn.ModuleDict(views)

    def update(
        self,
        stage: str,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        dataloader_idx: int | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Add a batch to a stage that has begun; the batch's mean CE, 0-d, NaN if no token counts."""
        loaders = self._loaders.get(stage)
        if loaders is None:
            start, end = _HOOKS[stage]
            raise RuntimeError(
                f"Percentile CE missed the beginning of the {stage} stage: {start} did not reach it. If "
                f"your module has its own {start} or {end}, call super().{start}() and super().{end}() in "
                "it; and PercentileCEMixin stands before LightningModule in the list of base classes."
            )
        if dataloader_idx is None:
            if loaders > 1:
                raise ValueError(
                    f"Expected argument `dataloader_idx` because there are {loaders} {stage} dataloaders: "
                    "take it as the last argument of your step and pass it on (or the number of the loader, "
                    "if one step sees all)."
                )
            dataloader_idx = 0
        elif not 0 <= dataloader_idx < loaders:
            raise ValueError(
                f"Expected argument `dataloader_idx` in [0, {loaders}) but got {dataloader_idx}."
            )
        self._updated.add(stage)
        metric = self.metric(stage, dataloader_idx)
        assert isinstance(metric, PercentileCrossEntropy)
        if len(self.statistics) == 1:
            return metric.add_entries(metric.entries(logits, labels, **arguments))
        if logits is None or labels is None:
            raise ValueError(
                f"Expected arguments `logits` and `labels`: {', '.join(self.statistics[1:])} can not be had "
                "from `losses`. Leave them out of `statistics`."
            )
        scored = self._score(metric, logits, labels)
        entries = metric.entries(logits, labels, scored=scored, **arguments)
        mean = metric.add_entries(entries)
        values = {name: getattr(scored, name).float() for name in self.statistics[1:]}
        for name, k in self._accuracies.items():
            assert scored.rank is not None
            values[name] = (scored.rank <= min(k, logits.shape[-1])).float()
        for name, value in values.items():
            # The rank of a token whose logits are NaN is none.
            value = torch.where(entries.values.detach().isnan(), torch.nan, value)
            self.metric(stage, dataloader_idx, name).update(value, entries.weights, group=entries.groups)
        return mean

    def _score(self, metric: PercentileCrossEntropy, logits: Tensor, labels: Tensor) -> TokenStatistics:
        """What is asked of each token, by one read of the logits; CE not if it must be differentiable."""
        trained = torch.is_grad_enabled() and logits.requires_grad
        wanted = {part for statistic in self.statistics for part in _PARTS.get(statistic, (statistic,))}
        return token_statistics(
            logits,
            labels,
            statistics=tuple(wanted - {"ce"} if trained else wanted),
            ignore_index=metric.ignore_index,
            shift=metric.shift,
        )

    def log(self, stage: str, log: Callable[..., None], attribute: str) -> None:
        """Log the scalar views of a stage; Lightning computes them later, in one order on all ranks.

        Args:
            stage: which.
            log: the module's ``log``.
            attribute: where the module keeps this object.
        """
        loaders = self._loaders.pop(stage, 0)
        if stage == "train" and stage not in self._updated:
            return  # every rank has training batches or none has, so this does not differ between them
        for index in range(loaders):
            key = f"{stage}_{index}"
            views = self.views[key]
            assert isinstance(views, nn.ModuleDict)
            prefix = self.prefix(stage, index, loaders)
            for name, view in views.items():
                log(
                    f"{prefix}_{name}",
                    view,
                    add_dataloader_idx=False,
                    # Lightning looks a Metric's name up once, before later stages exist.
                    metric_attribute=f"{attribute}.views.{key}.{name}",
                )

    def check_logged(self, stage: str) -> None:
        """Raise a ``RuntimeError`` if a stage has ended but its hook did not come here."""
        if self._loaders.pop(stage, 0) and (stage != "train" or stage in self._updated):
            end = _HOOKS[stage][1]
            raise RuntimeError(
                f"Percentile CE of the {stage} stage was not logged: {end} did not reach it. Your module "
                f"has its own {end}: call super().{end}() in it."
            )

    def prefix(self, stage: str, dataloader_idx: int, loaders: int) -> str:
        """What the names of a stage and dataloader begin with: ``"val"``, or of several ``"val_dl0"`` ..."""
        if loaders == 1:
            return stage
        names = self.loader_names
        return f"{stage}_{f'dl{dataloader_idx}' if names is None else names[dataloader_idx]}"


def _checked_statistics(statistics: Sequence[str]) -> tuple[str, ...]:
    known = (*STATISTICS, *_PARTS)
    several = isinstance(statistics, Sequence) and not isinstance(statistics, str)
    if not several or "ce" not in statistics or len(set(statistics)) < len(statistics):
        raise ValueError(
            f'Expected argument `statistics` to hold "ce" and others, each once, but got {statistics!r}.'
        )
    unknown = [name for name in statistics if name not in known]
    if unknown:
        raise ValueError(
            f"Expected argument `statistics` to hold names among {', '.join(known)} but got {unknown[0]!r}."
        )
    return tuple(name for name in known if name in statistics)  # in one order on all ranks


def check_lengths_over_ranks(loop: Any, trainer: Any) -> None:
    """Make an evaluation loop raise on all ranks if the dataloaders of some are empty.

    Lightning skips the whole loop on a rank whose sized loaders are empty (or raises there alone), and the
    others wait for it in their first collective.

    Args:
        loop: an evaluation loop of the trainer.
        trainer: the trainer.
    """
    if trainer.world_size == 1 or getattr(loop, "checks_lengths_over_ranks", False):
        return
    setup_data = loop.setup_data

    def setup_data_and_check() -> None:
        before, module = loop._combined_loader, trainer.lightning_module
        own = module.allow_zero_length_dataloader_with_multiple_devices
        data = trainer.datamodule
        allowed = own or (data is not None and data.allow_zero_length_dataloader_with_multiple_devices)
        module.allow_zero_length_dataloader_with_multiple_devices = True  # else it raises on this rank alone
        failure: Exception | None = None
        try:
            setup_data()
        except Exception as error:  # a fraction of a short loader that is less than a batch, say
            failure = error
        finally:
            module.allow_zero_length_dataloader_with_multiple_devices = own
        if failure is None and loop._combined_loader is before:
            return
        failed = [rank for rank, (flag,) in enumerate(_gather([float(failure is not None)], trainer)) if flag]
        if failure is not None:
            raise failure
        if failed:
            raise RuntimeError(f"The dataloaders of rank {failed[0]} could not be set up: see its own error.")
        batches = [math.inf if math.isinf(count) else int(count) for count in loop.max_batches]
        everywhere = _gather(batches, trainer)
        skipped = any(sum(rank) == 0 for rank in everywhere) and any(sum(rank) > 0 for rank in everywhere)
        forbidden = not allowed and any(
            min(counts) == 0 and max(counts) > 0 for counts in zip(*everywhere, strict=True)
        )
        if skipped or forbidden:
            raise RuntimeError(
                "Some ranks have an empty dataloader, others do not, so that some would wait for ever for "
                f"the others' percentiles. Batches per dataloader, rank by rank: {everywhere}. Give every "
                "rank at least one batch (a DistributedSampler does), or use an IterableDataset without a "
                "length."
            )

    loop.setup_data, loop.checks_lengths_over_ranks = setup_data_and_check, True


def _gather(batches: list[float], trainer: Any) -> list[list[float]]:
    local = torch.tensor(batches, dtype=torch.float32, device=trainer.strategy.root_device)
    everyone = [torch.empty_like(local) for _ in range(trainer.world_size)]
    dist.all_gather(everyone, local)
    return [[math.inf if math.isinf(count) else int(count) for count in rank.tolist()] for rank in everyone]
