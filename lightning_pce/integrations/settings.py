"""What is measured in each stage of a run: one frozen, checked object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_pce._names import DEFAULT_PERCENTILES, checked_names, interval_keys, percentile_key
from lightning_pce.metrics.percentiles import PercentileCrossEntropy
from lightning_pce.tokens.statistics import DERIVED, STATISTICS, TOP_K

if TYPE_CHECKING:
    from lightning_pce.metrics._process_group import Group

KNOWN_STATISTICS = (*STATISTICS, *(name for name in DERIVED if name not in TOP_K))


@dataclass(frozen=True)
class Settings:
    """The arguments of ``configure_percentile_ce`` and of the callback, checked.

    Args:
        percentiles: which, each in [0, 100].
        statistics: what is measured of each token, ``"ce"`` and others; kept in one order on all ranks.
        groups: names of kinds of tokens that are kept apart.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them.
        compression: centroids of each digest.
        loader_names: names of several dataloaders, in order; left out: ``dl0``, ``dl1`` ...
        pool_loaders: with several dataloaders also measure all their tokens together.
        process_group: the ranks that each see tokens of their own, if not all.
        error_bars: also count tokens by document, for intervals.
        level: the probability that an interval holds the true value.
        log_intervals: also log the ends of the intervals.

    Raises:
        ValueError: if a setting is impossible, or a name cannot be part of a logged name.
    """

    percentiles: Sequence[float] = DEFAULT_PERCENTILES
    statistics: Sequence[str] = ("ce",)
    groups: Sequence[str] | None = None
    ignore_index: int | None = -100
    shift: bool = False
    compression: int = 1024
    loader_names: Sequence[str] | None = None
    pool_loaders: bool = False
    process_group: Group = None
    error_bars: bool = False
    level: float = 0.95
    log_intervals: bool = False

    def __post_init__(self) -> None:
        metric = self.make_metric()  # which raises now, not at step 40,000
        checked: dict[str, Any] = {
            "percentiles": metric.percentiles,
            "statistics": _checked_statistics(self.statistics),
            "groups": metric.groups,
            "process_group": metric.process_group,
        }
        if self.loader_names is not None:
            checked["loader_names"] = checked_names("loader_names", self.loader_names)
        self._check_error_bars()
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _check_error_bars(self) -> None:
        if self.log_intervals and not self.error_bars:
            raise ValueError("Expected argument `error_bars=True` because `log_intervals` is.")
        if self.error_bars and "rank" in self.statistics:
            raise ValueError(
                'Expected "log_rank" instead of "rank" among the statistics: with error bars values are '
                "counted in bins up to 1,000, which ranks pass."
            )

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments that the metrics of all token statistics have in common."""
        return {
            "groups": self.groups,
            "compression": self.compression,
            "error_bars": self.error_bars,
            "level": self.level,
            "process_group": self.process_group,
        }

    def make_metric(self) -> PercentileCrossEntropy:
        """A metric of the cross-entropy with these settings."""
        return PercentileCrossEntropy(
            self.percentiles, ignore_index=self.ignore_index, shift=self.shift, **self.shared
        )

    @property
    def accuracies(self) -> tuple[str, ...]:
        """The names of accuracies, which cost nothing where ranks are measured."""
        return tuple(TOP_K) if {"rank", "log_rank"} & set(self.statistics) else ()

    @property
    def keys(self) -> tuple[str, ...]:
        """What of each statistic is logged, in order; the keys of a group begin with its name."""
        keys = ("mean", *(percentile_key(p) for p in self.percentiles), "trimmed_mean")
        if self.log_intervals:
            keys += interval_keys(self.percentiles)
        return (*keys, *(f"{group}_{key}" for group in self.groups or () for key in keys))

    @property
    def results(self) -> dict[str, tuple[str, str]]:
        """What is logged of a dataloader, in order: ``"ce_p50"``, and of which statistic it is which key."""
        named = {f"{name}_{key}": (name, key) for name in self.statistics for key in self.keys}
        for name in self.accuracies:
            named[name] = (name, "mean")
            named |= {f"{name}_{group}": (name, f"{group}_mean") for group in self.groups or ()}
        return named

    @property
    def described(self) -> str:
        """All that ranks must agree on, in words."""
        return (
            f"statistics={self.statistics}, loader_names={self.loader_names}, "
            f"pool_loaders={self.pool_loaders}, log_intervals={self.log_intervals}, "
            f"{self.make_metric().named_settings()}"
        )


def _checked_statistics(statistics: Sequence[str]) -> tuple[str, ...]:
    several = isinstance(statistics, Sequence) and not isinstance(statistics, str)
    if not several or "ce" not in statistics or len(set(statistics)) < len(statistics):
        raise ValueError(
            f'Expected argument `statistics` to hold "ce" and others, each once, but got {statistics!r}.'
        )
    unknown = [name for name in statistics if name not in KNOWN_STATISTICS]
    if unknown:
        raise ValueError(
            f"Expected argument `statistics` to hold names among {', '.join(KNOWN_STATISTICS)} but got "
            f"{unknown[0]!r}."
        )
    return tuple(name for name in KNOWN_STATISTICS if name in statistics)
