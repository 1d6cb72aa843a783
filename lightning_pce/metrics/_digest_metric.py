"""The torchmetrics Metric whose state is a digest, or one of each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce._names import DEFAULT_PERCENTILES, checked_names, checked_percentiles, percentile_key
from lightning_pce._threads import single_threaded
from lightning_pce.digest._format import (
    check_state,
    invalid_of,
    nan_weight_of,
    weight_above_of,
    weight_below_of,
)
from lightning_pce.metrics._views import ViewedMetric
from lightning_pce.metrics._waiting import Waiting


class DigestMetric(ViewedMetric):
    """A stream of values summarised by one digest: one tensor of state, one collective per compute.

    Values wait in a short list until it is worth sorting them. While some do, the state is not an attribute:
    any access to the state, by torchmetrics' sync or ``state_dict``, makes them enter first.
    """

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        groups: Sequence[str] | None = None,
        compression: int = 1024,
        settings: dict[str, Any] | None = None,
        defaults: dict[str, Any] | None = None,
        **metric_kwargs: Any,
    ) -> None:
        self.percentiles = checked_percentiles(percentiles)
        self.groups = None if groups is None else checked_names("groups", groups)
        if self.groups == ():
            raise ValueError("Expected argument `groups` to be one or several names but got none.")
        self.compression = compression
        self._waiting: Waiting | None = None
        shared = {"percentiles": self.percentiles, "compression": compression, "groups": self.groups}
        super().__init__(
            "digest",
            {**shared, **(settings or {})},
            td.merge,
            defaults={"percentiles": DEFAULT_PERCENTILES, "compression": 1024, **(defaults or {})},
            old_settings=("percentiles", "compression", "groups", "ignore_index", "shift"),
            **metric_kwargs,
        )
        twice = [key for index, key in enumerate(self.keys) if key in self.keys[:index]]
        if twice:
            raise ValueError(
                f"Expected argument `groups` with other names: two results would be {twice[0]!r}."
            )
        self._merged: Tensor | None = None
        self._merged_from: Tensor | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of ``compute()``, in order; those of a group begin with its name."""
        percentiles = (percentile_key(p) for p in self.percentiles)
        keys = ("mean", *percentiles, "trimmed_mean", "finite_mean", "count", "nonfinite", "invalid")
        return (*keys, *(f"{group}_{key}" for group in self.groups or () for key in keys))

    @property
    def digest(self) -> Tensor:
        """The digest ``[K + 3, 2]``: of all ranks after ``compute``, of this one from the next update on."""
        state = self._seen
        return state if self.groups is None else td.merge(state)

    @property
    def group_digests(self) -> dict[str, Tensor]:
        """The digest ``[K + 3, 2]`` of each group, as in :attr:`digest`."""
        return {} if self.groups is None else dict(zip(self.groups, self._seen.unbind(), strict=True))

    @property
    def _seen(self) -> Tensor:
        if self._merged is not None and self._merged_from is self._state:
            return self._merged
        return self._state

    @property
    def _state(self) -> Tensor:
        return cast(Tensor, getattr(self, self._state_name))

    @_state.setter
    def _state(self, state: Tensor) -> None:
        with self._lock:
            self._waiting = None
            setattr(self, self._state_name, state)

    def _empty(self, device: torch.device | None = None) -> Tensor:
        shape = () if self.groups is None else (len(self.groups),)
        return td.empty(self.compression, shape=shape, device=device)

    def _check_state(self, state: Tensor) -> None:
        check_state(state)

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_waiting") is not None and name == self._state_name:
            with self._lock:
                waiting = self._waiting
                if waiting is not None and name not in self.__dict__:  # another thread may have been faster
                    self._state = waiting.entered()
                return self.__dict__[name]
        return super().__getattr__(name)

    def add_values(
        self,
        values: Tensor,
        weights: Tensor | None,
        groups: Tensor | None = None,
        invalid: Tensor | None = None,
    ) -> None:
        """:meth:`update` with tensors of one shape that have been checked."""
        self._computed = None
        self._update_count += 1
        self._add(values, weights, groups, invalid)

    def _add(
        self,
        values: Tensor,
        weights: Tensor | None,
        groups: Tensor | None = None,
        invalid: Tensor | None = None,
    ) -> None:
        """Let checked values of one shape wait."""
        # In one thread: beside busy processes a parallel copy waits for every thread.
        with self._lock, single_threaded():
            state = self.__dict__.get(self._state_name)
            # Where there is a state nothing waits: something has set it since.
            before = self._waiting if state is None else Waiting(state)
            assert before is not None
            waiting = before.with_batch(values, weights, groups, invalid)
            # Past nn.Module's __setattr__, which took a tenth of a small update.
            self.__dict__["_waiting"] = waiting
            if state is not None:
                delattr(self, self._state_name)
            if waiting.is_enough:
                self._state = waiting.entered()

    def compute(self) -> dict[str, Tensor]:
        """Summaries of everything seen on all ranks.

        Returns:
            0-d float64 tensors under :attr:`keys`. An empty metric gives NaN, and count 0.
        """
        state = self._state
        self._merged = self._merged_from = state
        overall = state if self.groups is None else td.merge(state)
        q = torch.tensor([p / 100 for p in self.percentiles], dtype=torch.float64).to(state.device)
        digests = overall[None] if self.groups is None else torch.cat([overall[None], state])
        values = torch.stack(
            [
                td.mean(digests),
                *td.quantile(digests, q).unbind(-1),
                td.trimmed_mean(digests, 0.05, 0.95),
                td.finite_mean(digests),
                td.count(digests),
                td.nonfinite(digests),
                td.invalid(digests),
            ],
            dim=-1,
        )
        self._report_once(overall)
        return dict(zip(self.keys, values.flatten().unbind(), strict=True))

    def _report_once(self, state: Tensor) -> None:
        if state.is_meta:
            return
        counts = (invalid_of, nan_weight_of, weight_below_of, weight_above_of)
        invalid, nan, below, above = torch.stack([number(state) for number in counts]).tolist()
        self._warn_once("nan", nan, "values were NaN. They are left out and counted.")
        self._warn_once(
            "inf",
            below + above,
            "values were infinite. They lie beyond all percentiles of the others and make `mean` infinite; "
            "`finite_mean` leaves them out.",
        )
        self._warn_once(
            "invalid",
            invalid,
            "entries were left out because their label was outside the vocabulary, their group unknown or "
            "their weight negative or not a number.",
        )

    def reset(self) -> None:
        """Forget everything seen."""
        with self._lock:
            if self._waiting is not None and self._state_name not in self.__dict__:
                self._state = self._waiting.digest  # what waits is forgotten too, unsorted
            super().reset()
            self._merged = self._merged_from = None

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> DigestMetric:
        with self._lock:
            merged = self._merged if self._merged_from is self._state else None
            super()._apply(fn, *args, **kwargs)
            if merged is not None:  # a digest of all ranks stays readable where the metric moves
                self._merged, self._merged_from = merged.to(self._state.device), self._state
        return self

    def unsync(self, should_unsync: bool = True) -> None:
        """Back to this rank's state after a sync; the merged digest stays readable."""
        synced = self._state
        super().unsync(should_unsync)
        if self._merged is synced:
            self._merged_from = self._state  # a copy of the state from before the sync
