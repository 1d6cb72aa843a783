"""Metrics for each stage and dataloader of a run: opened, filled, and read as results. It knows no Trainer.

Nothing here may let ranks differ in what they compute, or when: a rank that is alone in a collective waits
for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_pce._checks import warn_once
from lightning_pce.integrations.settings import Settings
from lightning_pce.metrics._digest_metric import DigestFunction, DigestMetric
from lightning_pce.metrics._process_group import lazy_group
from lightning_pce.metrics._views import DigestView, SharedGather, ViewedMetric
from lightning_pce.metrics.percentiles import PercentileCrossEntropy, StreamingQuantiles, slots_of
from lightning_pce.metrics.weighted_mean import WeightedMean
from lightning_pce.tokens.labels import Logits

if TYPE_CHECKING:
    from lightning_pce.metrics._process_group import Group


# A result that is computed from the digest of CE of a dataloader, by the dataloader's name.
DigestResult = Callable[[str, Tensor], Tensor]


class StageMetrics(nn.Module):
    """Percentiles of CE and other token statistics, for each stage and dataloader.

    It is a submodule, so that every strategy moves it with the module; it has no parameters, and its metrics
    put nothing into a checkpoint. The metrics of one dataloader are merged over ranks by one ``all_gather``.

    Args:
        settings: what is measured.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.metrics = nn.ModuleDict()
        self.views = nn.ModuleDict()
        self._gathers: dict[str, SharedGather] = {}
        self._open: dict[str, int] = {}  # the dataloaders of stages that have begun
        self._measured: dict[str, int] = {}
        self._given: dict[str, dict[str, str]] = {}  # of each stage: what gave results, and its loader's name
        self._said: set[str] = set()
        self._updated: set[str] = set()
        self._derived: dict[str, dict[str, DigestResult]] = {}  # of stages, by name
        self._train_had_results = False
        self._group_was_given = settings.process_group is not None

    def metric(self, stage: str, dataloader_idx: int | None = 0, statistic: str = "ce") -> ViewedMetric:
        """The metric of a stage (``"train"``, ``"val"`` or ``"test"``), dataloader and statistic.

        Args:
            stage: which.
            dataloader_idx: which; None: all together, if they are several and ``pool_loaders`` was asked for.
            statistic: which, also ``"accuracy"`` and ``"top5_accuracy"``, which are no digests but sums.

        Raises:
            KeyError: if that stage has not begun yet, or had fewer dataloaders when it last began.
        """
        loaders = self.dataloaders(stage)
        if dataloader_idx not in self._indices(loaders):
            raise KeyError(f"{stage} has {loaders} dataloaders, not number {dataloader_idx}")
        metric = self.metrics[f"{_key(stage, dataloader_idx, loaders)}_{statistic}"]
        assert isinstance(metric, ViewedMetric)
        return metric

    def dataloaders(self, stage: str) -> int:
        """How many dataloaders the stage had when it last began, 0 if it never has."""
        return self._measured.get(stage, 0)

    def merge_over(self, group: Group) -> None:
        """Merge over these ranks from now on, None: over all, unless the settings named a process group."""
        if self._group_was_given:
            return
        self.settings = replace(self.settings, process_group=lazy_group(group))
        for metric in self.metrics.values():
            assert isinstance(metric, ViewedMetric)
            metric.process_group = self.settings.process_group

    def forget(self) -> None:
        """A new run begins: stages that an error left open are over."""
        self._open.clear()
        self._given.clear()
        self._said.clear()
        self._updated.clear()
        self._derived.clear()
        self._train_had_results = False

    def derive(self, stage: str, results: Mapping[str, DigestResult]) -> None:
        """From the next time a stage opens, also give what is computed from the digest of all ranks.

        Args:
            stage: which.
            results: functions of the name of a dataloader and of its digest of CE, by the name of the result,
                on all ranks alike; ``{}``: none any more.
        """
        self._derived[stage] = dict(results)

    def abandon(self, stage: str) -> None:
        """A stage is over without results."""
        self._open.pop(stage, None)

    def is_open(self, stage: str) -> bool:
        """Whether a stage has begun and was not closed yet."""
        return stage in self._open

    def has_values(self, stage: str) -> bool:
        """Whether this rank has updated the stage since it began."""
        return stage in self._updated

    def open(self, stage: str, loaders: int, device: torch.device, *, trial: bool = False) -> None:
        """A stage begins: its metrics exist on every rank from here on, batches or not, and are empty.

        Args:
            stage: which.
            loaders: how many dataloaders it has.
            device: where its metrics are.
            trial: it sees a few batches only, too few for error bars, of which nothing is said then.

        Raises:
            ValueError: if there are names for another number of dataloaders.
        """
        names = self.settings.loader_names
        if names is not None and loaders > 1 and len(names) != loaders:
            raise ValueError(
                f"Expected one of `loader_names` for each of the {loaders} {stage} dataloaders but got "
                f"{list(names)!r}."
            )
        results = self.names(stage, loaders)
        twice = sorted({name for name in results if results.count(name) > 1})
        if twice:
            raise ValueError(
                f"Expected argument `loader_names` with other names: two results would be {twice[0]!r}."
            )
        self._open[stage] = self._measured[stage] = loaders
        for index in self._indices(loaders):
            key = _key(stage, index, loaders)
            if key not in self.views:
                self._make(key, device)
            self._renew_derived(stage, key, self.loader_name(index, loaders))
        for key in {**self._keys(stage, loaders), **self._given.get(stage, {})}:
            for statistic in (*self.settings.statistics, *self.settings.accuracies):
                metric = self.metrics[f"{key}_{statistic}"]
                assert isinstance(metric, ViewedMetric)
                metric.reset()
                if isinstance(metric, DigestMetric):
                    metric.says_reasons = statistic == "ce" and not trial  # once for all
            self._gathers[key].begin()
        self._updated.discard(stage)
        self._warn_of_outdated(stage, loaders)

    def _indices(self, loaders: int) -> list[int | None]:
        """What has metrics of its own: each dataloader, and perhaps all together."""
        return [*range(loaders), None] if self.settings.pool_loaders and loaders > 1 else [*range(loaders)]

    def _make(self, key: str, device: torch.device) -> None:
        """The metrics of a stage and dataloader, and the views of them that are logged."""
        settings = self.settings
        metrics: dict[str, ViewedMetric] = {"ce": settings.make_metric()}
        for name in settings.statistics[1:]:
            metrics[name] = StreamingQuantiles(settings.percentiles, **settings.shared)
        for name in settings.accuracies:
            metrics[name] = WeightedMean(groups=settings.groups, process_group=settings.process_group)
        self._gathers[key] = SharedGather()
        for name, metric in metrics.items():
            self.metrics[f"{key}_{name}"] = metric.to(device)
            self._gathers[key].add(metric)
        self.views[key] = nn.ModuleDict(
            {at: metrics[name].view(each) for at, (name, each) in settings.results.items()}
        )

    def _renew_derived(self, stage: str, key: str, loader: str) -> None:
        """Give a dataloader's views those of its results that are derived, and no others."""
        metric, views = self.metrics[f"{key}_ce"], self.views[key]
        assert isinstance(metric, DigestMetric)
        assert isinstance(views, nn.ModuleDict)
        logged = self.settings.results
        for name in [name for name in views if name not in logged]:
            del views[name]
        for name, function in self._derived.get(stage, {}).items():
            views[name] = DigestFunction(metric, name, partial(function, loader))

    def measure(
        self,
        stage: str,
        logits: Logits | None = None,
        labels: Tensor | None = None,
        dataloader_idx: int | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Add a batch to a stage that has begun; the batch's mean CE, 0-d, NaN if no token counts.

        Args:
            stage: which.
            logits: as :meth:`PercentileCrossEntropy.update` takes them, like the arguments that follow.
            labels: as there.
            dataloader_idx: which dataloader the batch is from; required if there are several.
            arguments: others of that method.

        Raises:
            RuntimeError: if the stage has not begun.
            ValueError: if the arguments do not fit; nothing of the batch enters then.
        """
        index = self._checked_index(stage, dataloader_idx)
        metric = self.metric(stage, index)
        assert isinstance(metric, PercentileCrossEntropy)
        wanted = (*self.settings.statistics, *self.settings.accuracies)
        scored = metric.score_batch(logits, labels, statistics=wanted, **arguments)
        self._updated.add(stage)
        slots = slots_of(scored)  # once for all statistics
        for each in (i for i in self._indices(self._open[stage]) if i in (index, None)):
            for name in wanted:
                to = self.metric(stage, each, name)
                if isinstance(to, PercentileCrossEntropy):
                    to.add_values(scored.ce, scored.weights, scored.groups, scored.invalid, slots)
                elif isinstance(to, StreamingQuantiles):
                    to.add_values(scored.statistics[name], scored.weights, scored.groups, slots=slots)
                else:
                    assert isinstance(to, WeightedMean)
                    to.add_values(scored.statistics[name], scored.weights, scored.groups)
        return scored.mean()

    def _checked_index(self, stage: str, dataloader_idx: int | None) -> int:
        if stage not in self._open:
            raise RuntimeError(f"The {stage} stage has not begun, or is over: it takes no batch.")
        loaders = self._open[stage]
        if dataloader_idx is None and loaders > 1:
            raise ValueError(
                f"Expected argument `dataloader_idx` because there are {loaders} {stage} dataloaders: "
                "take it as the last argument of your step and pass it on (or the number of the loader, "
                "if one step sees all)."
            )
        index = dataloader_idx or 0
        if not 0 <= index < loaders:
            raise ValueError(
                f"Expected argument `dataloader_idx` in [0, {loaders}) but got {dataloader_idx}."
            )
        return index

    def close(self, stage: str) -> Mapping[str, tuple[str, DigestView]]:
        """A stage is over; its results, still to be computed, on all ranks alike and in this order.

        Returns:
            By name, ``"ce_p50"`` or of several dataloaders ``"dl0_ce_p50"``: where the view is below this
            module, and the view itself, a Metric. Nothing of training before it was ever measured.
        """
        loaders = self._open.pop(stage, 0)
        if stage == "train":
            # Every rank has training batches or none has, so this does not differ between them. Once there
            # were results there are always: Lightning shows the last value again and again, NaN is the truth.
            self._train_had_results |= stage in self._updated
            loaders = loaders if self._train_had_results else 0
        keys = self._keys(stage, loaders)
        self._given.setdefault(stage, {}).update(keys)
        for key in keys:
            self._gathers[key].begin()
        return self._views(keys)

    def outdated(self, stage: str) -> Mapping[str, tuple[str, DigestView]]:
        """What was closed in this run under names that the stage no longer has, as :meth:`close` gives it.

        The number of dataloaders has changed since. These metrics are empty, so that their results are NaN:
        whoever keeps results by name would go on with the last value.
        """
        now = self._keys(stage, self.dataloaders(stage))
        return self._views({key: name for key, name in self._given.get(stage, {}).items() if key not in now})

    def names(self, stage: str, loaders: int) -> list[str]:
        """The names of a stage's results, ``"val_ce_p50"``, if it has so many dataloaders."""
        prefixes = [f"{stage}_{loader}_" if loader else f"{stage}_" for loader in self._loader_names(loaders)]
        results = [*self.settings.results, *self._derived.get(stage, {})]
        return [f"{prefix}{result}" for prefix in prefixes for result in results]

    def _loader_names(self, loaders: int) -> list[str]:
        return [self.loader_name(index, loaders) for index in self._indices(loaders)]

    def _keys(self, stage: str, loaders: int) -> dict[str, str]:
        """Where the metrics of a stage are, and the name of the dataloader."""
        return {
            _key(stage, index, loaders): self.loader_name(index, loaders) for index in self._indices(loaders)
        }

    def _views(self, keys: Mapping[str, str]) -> dict[str, tuple[str, DigestView]]:
        found = {}
        for key, loader in keys.items():
            views = self.views[key]
            assert isinstance(views, nn.ModuleDict)
            for name, view in views.items():
                assert isinstance(view, DigestView)
                found[f"{loader}_{name}" if loader else name] = (f"views.{key}.{name}", view)
        return found

    def _warn_of_outdated(self, stage: str, loaders: int) -> None:
        outdated, now = self.outdated(stage), self._views(self._keys(stage, loaders))
        if outdated:
            new = f", and {stage}_{next(iter(now))} ... are measured" if now else ""
            warn_once(
                self._said,
                f"{stage} {loaders}",
                f"The {stage} stage has {loaders} dataloaders now, not as many as before: "
                f"{stage}_{next(iter(outdated))} ... are NaN from here on{new}.",
            )

    def results(self, stage: str) -> dict[str, Tensor]:
        """Close a stage and compute its results over all ranks: one collective for each dataloader.

        Returns:
            0-d float64 tensors by name: ``"ce_p50"``, or of several dataloaders ``"dl0_ce_p50"``.
        """
        return {name: view.compute() for name, (_, view) in self.close(stage).items()}

    def digests(self, stage: str, statistic: str = "ce") -> dict[str, dict[str, Tensor]]:
        """The digests ``[K + 3, 2]`` of a stage: of all ranks once its results have been computed.

        Args:
            stage: which.
            statistic: which, no accuracy.

        Returns:
            By the name of the dataloader (``""``: the only one) and of the group (``""``: all tokens).
        """
        return {
            loader: {"": metric.digest, **metric.group_digests}
            for loader, metric in self._of_loaders(stage, statistic).items()
        }

    def documents(self, stage: str, statistic: str = "ce") -> dict[str, dict[str, Tensor]]:
        """The document counts ``[128, 97]`` of a stage, as :meth:`digests` gives digests; perhaps none."""
        if not self.settings.error_bars:
            return {}
        return {
            loader: {"": metric.documents, **metric.group_documents}
            for loader, metric in self._of_loaders(stage, statistic).items()
        }

    def _of_loaders(self, stage: str, statistic: str) -> dict[str, DigestMetric]:
        """The metrics of a stage by the name of the dataloader."""
        loaders, found = self.dataloaders(stage), {}
        for index in range(loaders):
            metric = self.metric(stage, index, statistic)
            assert isinstance(metric, DigestMetric)
            found[self.loader_name(index, loaders)] = metric
        return found

    def by_loader(self, stage: str) -> dict[str, dict[str, ViewedMetric]]:
        """The metrics of a stage by the name of the dataloader, ``""`` of all together, and by statistic."""
        loaders = self.dataloaders(stage)
        names = (*self.settings.statistics, *self.settings.accuracies)
        return {
            self.loader_name(index, loaders): {name: self.metric(stage, index, name) for name in names}
            for index in self._indices(loaders)
        }

    def loader_name(self, dataloader_idx: int | None, loaders: int) -> str:
        """The name of a dataloader in the names of results; ``""`` where no name is needed."""
        if loaders == 1 or dataloader_idx is None:
            return ""
        names = self.settings.loader_names
        return f"dl{dataloader_idx}" if names is None else names[dataloader_idx]


def _key(stage: str, index: int | None, loaders: int) -> str:
    """Where metrics are: "all" is what has no dataloader in its name, so that one name is one place."""
    return f"{stage}_all" if loaders == 1 or index is None else f"{stage}_{index}"
