"""The torchmetrics Metric whose state is a digest, or one of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lightning_pce import digest as td
from lightning_pce import intervals
from lightning_pce._names import (
    DEFAULT_PERCENTILES,
    checked_names,
    checked_percentiles,
    interval_keys,
    percentile_key,
)
from lightning_pce._threads import single_threaded
from lightning_pce.digest._format import (
    check_state,
    invalid_of,
    nan_weight_of,
    weight_above_of,
    weight_below_of,
)
from lightning_pce.intervals._counts import check_counts
from lightning_pce.intervals._records import check_level
from lightning_pce.metrics._base import added_up
from lightning_pce.metrics._views import DigestView, ViewedMetric
from lightning_pce.metrics._waiting import Waiting


class DigestMetric(ViewedMetric):
    """A stream of values summarised by one digest: one tensor of state, one collective per compute.

    With error bars a second state holds document counts, and ``compute`` takes one collective more.

    Values wait in a short list until it is worth sorting them. While some do, the states are no attributes:
    any access to them, by torchmetrics' sync or ``state_dict``, makes the values enter first.
    """

    says_reasons = True  # why there are no error bars; False in a trial run of a few batches
    _documents_name = ""  # of the state with document counts; none without error bars

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        groups: Sequence[str] | None = None,
        compression: int = 1024,
        error_bars: bool = False,
        level: float = 0.95,
        settings: dict[str, Any] | None = None,
        defaults: dict[str, Any] | None = None,
        **metric_kwargs: Any,
    ) -> None:
        self.percentiles = checked_percentiles(percentiles)
        self.groups = None if groups is None else checked_names("groups", groups)
        if self.groups == ():
            raise ValueError("Expected argument `groups` to be one or several names but got none.")
        self.compression = compression
        check_level(level)
        self.error_bars, self.level = bool(error_bars), float(level)
        self._waiting: Waiting | None = None
        shared = {"percentiles": self.percentiles, "compression": compression, "groups": self.groups}
        bars = {"error_bars": self.error_bars, "level": self.level}
        super().__init__(
            "digest",
            {**shared, **bars, **(settings or {})},
            td.merge,
            defaults={
                "percentiles": DEFAULT_PERCENTILES,
                "compression": 1024,
                "error_bars": False,
                "level": 0.95,
                **(defaults or {}),
            },
            old_settings=("percentiles", "compression", "groups", "ignore_index", "shift"),
            **metric_kwargs,
        )
        if self.error_bars:
            self._documents_name = self._state_name.replace("digest", "documents", 1)
            self._add_state(self._documents_name, added_up)
        twice = [key for index, key in enumerate(self.keys) if key in self.keys[:index]]
        if twice:
            raise ValueError(
                f"Expected argument `groups` with other names: two results would be {twice[0]!r}."
            )
        # The states of all ranks, and the state of this rank for which they were computed.
        self._merged: dict[str, Tensor] | None = None
        self._merged_from: Tensor | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of ``compute()``, in order; those of a group begin with its name."""
        percentiles = (percentile_key(p) for p in self.percentiles)
        keys = ("mean", *percentiles, "trimmed_mean", "finite_mean", "count", "nonfinite", "invalid")
        if self.error_bars:
            keys += interval_keys(self.percentiles)
        return (*keys, *(f"{group}_{key}" for group in self.groups or () for key in keys))

    @property
    def digest(self) -> Tensor:
        """The digest ``[K + 3, 2]``: of all ranks after ``compute``, of this one from the next update on."""
        state = self._seen(self._state_name)
        return state if self.groups is None else td.merge(state)

    @property
    def group_digests(self) -> dict[str, Tensor]:
        """The digest ``[K + 3, 2]`` of each group, as in :attr:`digest`."""
        return self._by_group(self._state_name)

    @property
    def documents(self) -> Tensor:
        """The document counts ``[128, 97]`` for :mod:`lightning_pce.intervals`, as in :attr:`digest`.

        Raises:
            AttributeError: if the metric was made without ``error_bars=True``.
        """
        state = self._seen(self._checked_documents_name())
        return state if self.groups is None else state.sum(0)

    @property
    def group_documents(self) -> dict[str, Tensor]:
        """The document counts ``[128, 97]`` of each group, as in :attr:`documents`."""
        return self._by_group(self._checked_documents_name())

    def _checked_documents_name(self) -> str:
        if not self.error_bars:
            raise AttributeError  # after which Python asks __getattr__, as for all that is not there
        return self._documents_name

    def _by_group(self, name: str) -> dict[str, Tensor]:
        return {} if self.groups is None else dict(zip(self.groups, self._seen(name).unbind(), strict=True))

    def _seen(self, name: str) -> Tensor:
        if self._merged is not None and self._merged_from is self._state:
            return self._merged[name]
        state: Tensor = getattr(self, name)
        return state

    @property
    def _state(self) -> Tensor:
        return cast(Tensor, getattr(self, self._state_name))

    @_state.setter
    def _state(self, state: Tensor) -> None:
        self._set_states({self._state_name: state})

    def _set_states(self, states: Mapping[str, Tensor]) -> None:
        with self._lock:
            self._waiting = None
            super()._set_states(states)

    def _empty_states(self, device: torch.device | None = None) -> dict[str, Tensor]:
        states = super()._empty_states(device)
        if self._documents_name:
            shape = () if self.groups is None else (len(self.groups),)
            states[self._documents_name] = intervals.empty(shape, device=device)
        return states

    def _empty(self, device: torch.device | None = None) -> Tensor:
        shape = () if self.groups is None else (len(self.groups),)
        return td.empty(self.compression, shape=shape, device=device)

    def _check_state(self, name: str, state: Tensor) -> None:
        if name == self._documents_name:
            check_counts(state)
        else:
            check_state(state)

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_waiting") is not None and name in self._defaults:
            with self._lock:
                waiting = self._waiting
                if waiting is not None and name not in self.__dict__:  # another thread may have been faster
                    self._enter(waiting)
                return self.__dict__[name]
        if name in ("documents", "group_documents") and not self.error_bars:
            raise AttributeError(f"{type(self).__name__} has no {name}: make it with error_bars=True.")
        return super().__getattr__(name)

    def _enter(self, waiting: Waiting) -> None:
        """Make what waits the states."""
        digest, documents = waiting.entered()
        self._set_states(self._named(digest, documents))

    def _named(self, digest: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        if documents is None:
            return {self._state_name: digest}
        return {self._state_name: digest, self._documents_name: documents}

    def add_values(
        self,
        values: Tensor,
        weights: Tensor | None,
        groups: Tensor | None = None,
        invalid: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> None:
        """:meth:`update` with tensors of one shape that have been checked, and the slots of documents.

        Groups and slots that another metric has scored by are left out where this one does not count by them.

        Raises:
            ValueError: if groups or slots are missing, as in a batch that another metric has scored.
        """
        if groups is None and self.groups is not None:
            raise ValueError(
                "Expected a batch with groups: let a metric that was made with `groups` score it."
            )
        if slots is None and self.error_bars:
            raise ValueError(
                "Expected a batch with documents: let a metric made with error_bars=True score it."
            )
        groups = None if self.groups is None else groups
        slots = slots if self.error_bars else None
        self._note_update()
        self._add(values, weights, groups, invalid, slots)

    def _add(
        self,
        values: Tensor,
        weights: Tensor | None,
        groups: Tensor | None = None,
        invalid: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> None:
        """Let checked values of one shape wait."""
        # In one thread: beside busy processes a parallel copy waits for every thread.
        with self._lock, single_threaded():
            attributes, name = self.__dict__, self._state_name
            # Where there is a state nothing waits: something has set it since.
            state = attributes.get(name)
            before = self._waiting if state is None else Waiting(state, attributes.get(self._documents_name))
            assert before is not None
            waiting = before.with_batch(values, weights, groups, invalid, slots)
            # Past nn.Module's __setattr__, which took a tenth of a small update.
            attributes["_waiting"] = waiting
            if state is not None:
                for each in self._defaults:
                    delattr(self, each)
            if waiting.is_enough:
                self._enter(waiting)

    def compute(self) -> dict[str, Tensor]:
        """Summaries of everything seen on all ranks.

        Returns:
            0-d float64 tensors under :attr:`keys`. An empty metric gives NaN, and count 0.
        """
        state = self._state
        self._merged, self._merged_from = self._states(), state
        overall = state if self.groups is None else td.merge(state)
        q = torch.tensor([p / 100 for p in self.percentiles], dtype=torch.float64).to(state.device)
        digests = overall[None] if self.groups is None else torch.cat([overall[None], state])
        columns = [*self._summaries(digests, q), *self._bounds(digests)]
        self._report_once(overall)
        return dict(zip(self.keys, torch.stack(columns, dim=-1).flatten().unbind(), strict=True))

    def _summaries(self, digests: Tensor, q: Tensor) -> list[Tensor]:
        """All keys but those of intervals, ``[N]`` each, of digests ``[N, K + 3, 2]``."""
        return [
            td.mean(digests),
            *td.quantile(digests, q).unbind(-1),
            td.trimmed_mean(digests, 0.05, 0.95),
            td.finite_mean(digests),
            td.count(digests),
            td.nonfinite(digests),
            td.invalid(digests),
        ]

    def _bounds(self, digests: Tensor) -> list[Tensor]:
        """The ends of intervals, ``[N]`` each, of digests ``[N, K + 3, 2]``: all tokens, and each group."""
        if not self.error_bars:
            return []
        states: Tensor = getattr(self, self._documents_name)
        documents = states[None] if self.groups is None else torch.cat([states.sum(0)[None], states])
        statistics = ("mean", *(percentile_key(p) for p in self.percentiles))
        if digests.is_meta:
            return [digests.new_empty(len(digests)) for _ in interval_keys(self.percentiles)]
        # On the CPU: that is a few milliseconds, and many small kernels elsewhere.
        pairs = zip(digests.cpu(), documents.cpu(), strict=True)
        found = [intervals.intervals(*pair, statistics, self.level) for pair in pairs]
        if td.count(digests[0]) > 0:
            self._say_reasons(found[0].values())
        ends = [[end for each in those.values() for end in (each.low, each.high)] for those in found]
        return list(torch.tensor(ends, dtype=torch.float64).to(digests.device).unbind(-1))

    def _say_reasons(self, found: Iterable[intervals.Interval]) -> None:
        """Why there are no error bars, or not to be trusted ones: once, and not of a batch or a trial."""
        reason = next((each.reason for each in found if each.reason is not None), None)
        if reason is not None and self.says_reasons and not self._in_forward:
            self._say_once("error bars", f"error bars: {reason}")

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
            waiting = self._waiting
            if waiting is not None and self._state_name not in self.__dict__:  # it is forgotten too, unsorted
                self._set_states(self._named(waiting.digest, waiting.documents))
            super().reset()
            self._merged = self._merged_from = None

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> DigestMetric:
        with self._lock:
            merged = self._merged if self._merged_from is self._state else None
            super()._apply(fn, *args, **kwargs)
            if merged is not None:  # what all ranks have seen stays readable where the metric moves
                device, self._merged_from = self._state.device, self._state
                self._merged = {name: state.to(device) for name, state in merged.items()}
        return self

    def unsync(self, should_unsync: bool = True) -> None:
        """Back to this rank's state after a sync; the merged digest stays readable."""
        synced = self._state
        super().unsync(should_unsync)
        if self._merged is not None and self._merged[self._state_name] is synced:
            self._merged_from = self._state  # a copy of the state from before the sync


class DigestFunction(DigestView):
    """A function of the digest of all ranks, as a view that takes part in the collective of the others.

    Args:
        parent: whose digest.
        key: the name of the view, none of the parent's keys.
        function: of a digest ``[K + 3, 2]``; it gives a 0-d float64 tensor, on any device.
    """

    if TYPE_CHECKING:
        parent: DigestMetric
        function: Callable[[Tensor], Tensor]

    def __init__(self, parent: DigestMetric, key: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(parent, parent.keys[0])
        self.key = key
        self.__dict__["function"] = function  # else torch.jit.script would look at it

    def compute(self) -> Tensor:
        """The function's value, 0-d float64 on the parent's device."""
        self.parent._shared_by(self.key)
        return self.function(self.parent.digest).to(self.parent.device)
