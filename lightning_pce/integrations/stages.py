"""The room behind mixin and callback: metrics per stage and dataloader, their names, logging and reset.

Nothing here may let ranks differ in what they log or compute, or when: whoever is alone in a collective waits
for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pce.metrics._digest_metric import DigestMetric, NewEntries, checked_names, percentile_key
from lightning_pce.metrics._process_group import lazy_group
from lightning_pce.metrics.percentiles import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce.tokens.statistics import STATISTICS, TokenStatistics, token_statistics

# Statistics that come of others, and the settings that all metrics share.
_PARTS = {"log_rank": ("rank",), "margin": ("target_prob", "max_prob")}
_SHARED = ("percentiles", "groups", "compression", "process_group")
HOOKS = {
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
        pool_loaders: with several dataloaders also measure all their tokens together.
        settings: keyword arguments of :class:`PercentileCrossEntropy`.

    Raises:
        ValueError: if a setting is impossible, or a name cannot be part of a logged name.
    """

    def __init__(
        self,
        *,
        statistics: Sequence[str] = ("ce",),
        loader_names: Sequence[str] | None = None,
        pool_loaders: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.statistics = _checked_statistics(statistics)
        self.loader_names = None if loader_names is None else checked_names("loader_names", loader_names)
        self.pool_loaders = pool_loaders
        metric = PercentileCrossEntropy(**settings)  # raises here, not at step 40,000
        self.configuration = (
            f"statistics={self.statistics}, loader_names={self.loader_names}, "
            f"pool_loaders={pool_loaders}, {metric.named_settings()}"
        )
        self.settings = {**settings, "process_group": metric.process_group}
        self._group_given = metric.process_group is not None
        keys = ("mean", *(percentile_key(p) for p in metric.percentiles), "trimmed_mean")
        self.logged_keys = (*keys, *(f"{group}_{key}" for group in metric.groups or () for key in keys))
        self.metrics = nn.ModuleDict()
        self.views = nn.ModuleDict()
        self._loaders: dict[str, int] = {}  # of the stages that are open
        self._measured: dict[str, int] = {}
        self._updated: set[str] = set()
        self._train_was_logged = False

    def metric(self, stage: str, dataloader_idx: int | None = 0, statistic: str = "ce") -> DigestMetric:
        """The metric of a stage (``"train"``, ``"val"`` or ``"test"``), dataloader and statistic.

        Args:
            stage: which.
            dataloader_idx: which; None: all together, if they are several and ``pool_loaders`` was asked for.
            statistic: which.

        Raises:
            KeyError: if that stage has not begun yet, or had fewer dataloaders when it last began.
        """
        if dataloader_idx not in self._indices(self.dataloaders(stage)):
            raise KeyError(f"{stage} has {self.dataloaders(stage)} dataloaders, not number {dataloader_idx}")
        metric = self.metrics[f"{_key(stage, dataloader_idx)}_{statistic}"]
        assert isinstance(metric, DigestMetric)
        return metric

    def dataloaders(self, stage: str) -> int:
        """How many dataloaders the stage had when it last began, 0 if it never has."""
        return self._measured.get(stage, 0)

    def forget(self) -> None:
        """A new run begins: stages that an error left open are over."""
        self._loaders.clear()
        self._updated.clear()
        self._train_was_logged = False

    def abandon(self, stage: str) -> None:
        """A stage is over without results."""
        self._loaders.pop(stage, None)

    def is_open(self, stage: str) -> bool:
        """Whether a stage has begun and was not logged yet."""
        return stage in self._loaders

    def follow_mesh(self, trainer: Any) -> None:
        """Count each token once where a device mesh has ranks that see the same tokens.

        Metrics are merged over the mesh's dimension ``"data_parallel"`` then, unless a process group was
        given.
        """
        if self._group_given:
            return
        # Not the module's, which may be of an earlier Trainer.
        mesh: Any = getattr(trainer.strategy, "device_mesh", None)
        names = getattr(mesh, "mesh_dim_names", None) or ()
        group = lazy_group(mesh["data_parallel"].get_group) if "data_parallel" in names else None
        self.settings["process_group"] = group
        for metric in self.metrics.values():
            assert isinstance(metric, DigestMetric)
            metric.process_group = group

    def open(self, stage: str, loaders: int, device: torch.device) -> None:
        """A stage begins: its metrics exist on every rank from here on, batches or not, and are empty."""
        self.check_logged(stage)
        if self.loader_names is not None and loaders > 1 and len(self.loader_names) != loaders:
            raise ValueError(
                f"Expected one of `loader_names` for each of the {loaders} {stage} dataloaders but got "
                f"{list(self.loader_names)!r}."
            )
        self._loaders[stage] = self._measured[stage] = loaders
        for index in self._indices(loaders):
            if _key(stage, index) not in self.views:
                self._make(_key(stage, index), device)
            for statistic in (*self.statistics, *self._accuracies):
                self.metric(stage, index, statistic).reset()
        self._updated.discard(stage)

    def _indices(self, loaders: int) -> list[int | None]:
        """What has metrics of its own: each dataloader, and perhaps all together."""
        return [*range(loaders), None] if self.pool_loaders and loaders > 1 else [*range(loaders)]

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
            metrics[name] = StreamingQuantiles(**{**shared, "percentiles": (), "compression": 8})
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
            start, end = HOOKS[stage]
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
        entries, values = self._measure(metric, logits, labels, arguments)
        for index in (i for i in self._indices(loaders) if i in (dataloader_idx, None)):
            metric = self.metric(stage, index)
            assert isinstance(metric, PercentileCrossEntropy)
            mean = metric.add_entries(entries)
            for name, value in values.items():
                self.metric(stage, index, name).update(value, entries.weights, group=entries.groups)
        return mean

    def _measure(
        self,
        metric: PercentileCrossEntropy,
        logits: Tensor | None,
        labels: Tensor | None,
        arguments: dict[str, Any],
    ) -> tuple[NewEntries, dict[str, Tensor]]:
        """The CE of a batch as the metric takes it, and what the other statistics say of each token."""
        if len(self.statistics) == 1:
            return metric.entries(logits, labels, **arguments), {}
        if logits is None or labels is None:
            raise ValueError(
                f"Expected arguments `logits` and `labels`: {', '.join(self.statistics[1:])} cannot be had "
                "from `losses`. Leave them out of `statistics`."
            )
        scored = self._score(metric, logits, labels)
        entries = metric.entries(logits, labels, scored=scored, **arguments)
        values = {name: getattr(scored, name).float() for name in self.statistics[1:]}
        for name, k in self._accuracies.items():
            assert scored.rank is not None
            values[name] = (scored.rank <= min(k, logits.shape[-1])).float()
        # The rank of a token whose logits are NaN is none.
        lost = entries.values.detach().isnan()
        return entries, {name: torch.where(lost, torch.nan, value) for name, value in values.items()}

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
        if stage == "train":
            # Every rank has training batches or none has, so this does not differ between them. Once logged,
            # always: Lightning shows the last value again and again, NaN is the truth.
            self._train_was_logged |= stage in self._updated
            if not self._train_was_logged:
                return
        for index in self._indices(loaders):
            key = _key(stage, index)
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
            end = HOOKS[stage][1]
            raise RuntimeError(
                f"Percentile CE of the {stage} stage was not logged: {end} did not reach it. Your module "
                f"has its own {end}: call super().{end}() in it."
            )

    def prefix(self, stage: str, dataloader_idx: int | None, loaders: int) -> str:
        """What the names of a stage and dataloader begin with: ``"val"``, or of several ``"val_dl0"`` ..."""
        if loaders == 1 or dataloader_idx is None:
            return stage
        names = self.loader_names
        return f"{stage}_{f'dl{dataloader_idx}' if names is None else names[dataloader_idx]}"


def _key(stage: str, index: int | None) -> str:
    return f"{stage}_{'all' if index is None else index}"


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
