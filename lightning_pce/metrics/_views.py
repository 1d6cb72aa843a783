"""Scalar views of metrics whose result is a dict, and the one gather that several metrics share."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_pce.metrics._base import StateMetric, gather_states, sum_over_ranks


class ViewedMetric(StateMetric):
    """A metric whose ``compute`` gives a dict, each entry of which can be logged by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._result: dict[str, Tensor] | None = None
        self._result_from: Tensor | None = None
        self._served: set[str] = set()
        self._shared_gather: SharedGather | None = None
        self._in_forward = False  # which computes the result of one batch
        self._shares = False  # whether the merge that is running is that of all its metrics

    @property
    @abstractmethod
    def keys(self) -> tuple[str, ...]:
        """The keys of ``compute()``, in order."""

    def view(self, key: str) -> DigestView:
        """A scalar Metric that is one entry of ``compute()`` and shares this metric's state and its one sync.

        Raises:
            ValueError: if ``key`` is not in :attr:`keys`.
        """
        return DigestView(self, key)

    def shared_result(self, key: str) -> Tensor:
        """One entry of a result that all views share.

        Each entry is served once, and a second request starts a new round. With several ranks nothing else
        does, so that all decide alike whether to enter the collective, even if only some saw a batch since.
        """
        return self._shared_by(key)[key]

    @property
    def last_result(self) -> dict[str, Tensor] | None:
        """The result that views have shared since the last reset, without a collective; None: not yet."""
        return self._result

    def _shared_by(self, view: str) -> dict[str, Tensor]:
        """The result of the round in which a view has not been served yet."""
        stale = self._result_from is not self._state
        several = self.distributed_available_fn is not None and self.distributed_available_fn()
        if self._result is None or view in self._served or (stale and not several):
            self._result = self._computed_together()
            self._result_from = self._state
            self._served = set()
        elif stale:
            warnings.warn(
                f"The view {view!r} is of before the last update: another view has begun this round. Compute "
                "all views between updates, or reset.",
                stacklevel=4,
            )
        self._served.add(view)
        return self._result

    def _computed_together(self) -> dict[str, Tensor]:
        """The result, by the collectives that are shared with other metrics, if there are some."""
        self._shares = self._shared_gather is not None
        try:
            with warnings.catch_warnings():
                # A rank or dataloader without batches is empty, and says so by NaN and count 0.
                warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
                result: dict[str, Tensor] = self.compute()
        finally:
            self._shares = False
        return result

    def _over_ranks(self, gather: Callable[..., Any], group: Any) -> dict[str, Tensor]:
        if self._shares and self._shared_gather is not None:
            return self._shared_gather.over_ranks(self, group)
        return super()._over_ranks(gather, group)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        # torchmetrics resets the metric for the batch. A rank that has forgotten the shared result would
        # enter the next collective alone.
        shared = self._result, self._result_from, self._served
        self._in_forward = True
        try:
            return super()._forward(*args, **kwargs)
        finally:
            self._in_forward = False
            self._result, self._result_from, self._served = shared

    def reset(self) -> None:
        """Forget everything seen."""
        super().reset()
        self._result = self._result_from = None


class SharedGather:
    """One ``all_gather`` for the states of several metrics, whose views are computed one after the other.

    States that are plain sums, document counts, are added up by one ``all_reduce`` more, if there are some.

    The first metric of a round merges the states of all; each of the others takes its own, once. A metric
    that has taken its own begins a new round. So the sequence of calls alone decides when the ranks meet,
    and never what one of them has seen.
    """

    def __init__(self) -> None:
        self._members: list[ViewedMetric] = []
        # By place among the members: the number of updates, and the states of all ranks by name.
        self._waiting: dict[int, tuple[int, dict[str, Tensor]]] = {}

    def add(self, metric: ViewedMetric) -> None:
        """Let the views of a metric take part."""
        metric._shared_gather = self
        self._members.append(metric)

    def begin(self) -> None:
        """A new round: the next metric gathers, whatever was not taken."""
        self._waiting.clear()

    def over_ranks(self, metric: ViewedMetric, group: Any | None = None) -> dict[str, Tensor]:
        """The states of all ranks for one metric, by name."""
        place = next(index for index, member in enumerate(self._members) if member is metric)
        if place not in self._waiting:
            self._waiting = self._merged(group)
        updates, states = self._waiting.pop(place)
        if updates != metric._update_count:
            warnings.warn(
                f"A result of {type(metric).__name__} is of before its last update: a view of another metric "
                "has begun this round. Compute all views between updates, or reset.",
                stacklevel=3,
            )
        return states

    def _merged(self, group: Any | None) -> dict[int, tuple[int, dict[str, Tensor]]]:
        """The states of all members over all ranks."""
        counts = [member._update_count for member in self._members]
        own = {
            (place, name): state
            for place, member in enumerate(self._members)
            for name, state in member._own_states().items()
        }
        sums = {key: state for key, state in own.items() if self._members[key[0]]._is_summed(key[1])}
        gathered = {key: state for key, state in own.items() if key not in sums}
        ranks = [_split(flat, gathered) for flat in gather_states(_joined(gathered), group)]
        merged = {
            (place, name): self._members[place]._merge_ranks(name, [rank[place, name] for rank in ranks])
            for place, name in gathered
        }
        if sums:
            merged |= _split(sum_over_ranks(_joined(sums), group), sums)
        return {
            place: (count, {name: merged[place, name] for name in member._defaults})
            for place, (count, member) in enumerate(zip(counts, self._members, strict=True))
        }


def _joined(states: Mapping[Any, Tensor]) -> Tensor:
    """States of any shapes as one vector."""
    return torch.cat([state.reshape(-1) for state in states.values()])


def _split(flat: Tensor, like: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """What :func:`_joined` has joined."""
    parts = torch.split(flat, [state.numel() for state in like.values()])
    return {key: part.reshape(state.shape) for part, (key, state) in zip(parts, like.items(), strict=True)}


class DigestView(WrapperMetric):
    """One entry of a metric's result as a Metric, for ``self.log``; made by ``metric.view(key)``.

    Views of one metric share its state, its reset and one collective. (Members of a MetricCollection with
    equal settings share one state that only the first updates: for views of the others pass
    ``compute_groups=False``.)

    Example:
        >>> from lightning_pce import StreamingQuantiles
        >>> metric = StreamingQuantiles()
        >>> median = metric.view("p50")
        >>> metric.update(torch.tensor([1.0, 2.0, 9.0]))
        >>> median.compute()
        tensor(2., dtype=torch.float64)
    """

    is_differentiable = False
    full_state_update = False

    if TYPE_CHECKING:  # else torch.jit.script would look for a type of its own
        parent: ViewedMetric

    def __init__(self, parent: ViewedMetric, key: str) -> None:
        if key not in parent.keys:
            raise ValueError(
                f"Expected argument `key` to be one of {', '.join(parent.keys)} but got {key!r}."
            )
        super().__init__()
        self.key = key
        # Not as a submodule: the parent is owned, moved and saved where it was made.
        self.__dict__["parent"] = parent

    def update(self, *_: Any, **__: Any) -> None:
        """Raises a ``RuntimeError``: update the parent."""
        raise RuntimeError(
            f"A view has no state of its own: update the {type(self.parent).__name__} it was made from."
        )

    @torch.jit.unused
    def forward(self, *_: Any, **__: Any) -> None:
        """Raises a ``RuntimeError``: update the parent."""
        self.update()

    def compute(self) -> Tensor:
        """The parent's result under this view's key, 0-d float64."""
        return self.parent.shared_result(self.key)

    def reset(self) -> None:
        """Reset the parent."""
        super().reset()
        self.parent.reset()

    def __repr__(self) -> str:
        return f"DigestView({self.key!r} of {type(self.parent).__name__})"
