"""The torchmetrics Metric whose state is a digest, and scalar views of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_pce import digest as td
from lightning_pce._threads import single_threaded
from lightning_pce.metrics._base import OneStateMetric

DEFAULT_PERCENTILES = (5, 25, 50, 75, 95, 99)
# What can be part of a logged name: a module's name holds no dot, a file's no slash.
_NAME = re.compile(r"[A-Za-z0-9_]+")

# Values wait until there are this many, or this many updates. Counted together they cost a quarter of what
# they would in batches of 32,768, in batches of 512 a 25th. An accelerator sorts a million in the time it
# takes to start the 300 kernels of an update.
_WAITING_VALUES = {"cpu": 1 << 19}
_WAITING_ELSEWHERE = 1 << 20
_WAITING_UPDATES = 1 << 10


class NewEntries(NamedTuple):
    """What an update brings, all of one shape."""

    values: Tensor
    weights: Tensor | None  # bool or numbers
    groups: Tensor | None
    invalid: Tensor | None  # bool


class DigestMetric(OneStateMetric):
    """A stream of values summarised by one digest: one tensor of state, one collective per compute.

    Values wait in a short list until it is worth sorting them. While some do, the state is not an attribute:
    whoever asks for it, torchmetrics' sync, ``state_dict`` or a copy, makes them enter first.
    """

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        groups: Sequence[str] | None = None,
        compression: int = 1024,
        settings: dict[str, Any] | None = None,
        **metric_kwargs: Any,
    ) -> None:
        self.percentiles = checked_percentiles(percentiles)
        self.groups = None if groups is None else checked_names("groups", groups)
        if self.groups == ():
            raise ValueError("Expected argument `groups` to be one or several names but got none.")
        self.compression = compression
        shared = {"percentiles": self.percentiles, "compression": compression, "groups": self.groups}
        super().__init__("digest", {**shared, **(settings or {})}, td.merge, **metric_kwargs)
        self._waiting: list[NewEntries] = []
        self._waiting_values = 0
        self._settled: Tensor | None = None  # the state, while values wait
        twice = [key for index, key in enumerate(self.keys) if key in self.keys[:index]]
        if twice:
            raise ValueError(
                f"Expected argument `groups` with other names: two results would be {twice[0]!r}."
            )
        self._merged: Tensor | None = None
        self._merged_from: Tensor | None = None
        self._result: dict[str, Tensor] | None = None
        self._result_from: Tensor | None = None
        self._served: set[str] = set()

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
        self._waiting, self._waiting_values, self._settled = [], 0, None
        setattr(self, self._state_name, state)

    def _empty(self, device: torch.device | None = None) -> Tensor:
        shape = () if self.groups is None else (len(self.groups),)
        return td.empty(self.compression, shape=shape, device=device)

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_waiting") and name == self._state_name:
            self._settle()
            return self.__dict__[name]
        return super().__getattr__(name)

    @single_threaded()  # beside busy processes a parallel copy waits for every thread
    def _add(
        self,
        values: Tensor,
        weights: Tensor | None,
        groups: Tensor | None = None,
        invalid: Tensor | None = None,
    ) -> None:
        """Let checked values of one shape wait, in copies: their owner may write over them."""
        # Where there is a state nothing waits, whatever the list says.
        state = self.__dict__.get(self._state_name)
        current = self._settled if state is None else state
        assert current is not None
        device = current.device
        groups = None if groups is None else groups.int()
        others = (None if each is None else _copied(each, device) for each in (weights, groups, invalid))
        # Two dtypes cannot always be joined: float8 with none.
        values = values if values.dtype in (torch.float32, torch.float64) else values.float()
        batch = NewEntries(_copied(values, device), *others)
        if state is not None:
            self._waiting, self._waiting_values, self._settled = [], 0, current
            delattr(self, self._state_name)
        # copy.copy() shares the list. Past nn.Module's __setattr__, which took a tenth of a small update.
        waiting, number = [*self._waiting, batch], self._waiting_values + values.numel()
        self.__dict__.update(_waiting=waiting, _waiting_values=number)
        enough = _WAITING_VALUES.get(device.type, _WAITING_ELSEWHERE)
        if number >= enough or len(waiting) >= _WAITING_UPDATES:
            self._settle()

    @single_threaded()
    def _settle(self) -> None:
        """What waits enters the state."""
        assert self._settled is not None
        values = torch.cat([batch.values for batch in self._waiting])
        weights = _joined_weights(self._waiting)
        groups = None if self.groups is None else _joined([batch.groups for batch in self._waiting])
        new = td.add(self._settled, values, weights, groups=groups)
        if any(batch.invalid is not None for batch in self._waiting):
            invalid = _joined([_or_none_of(batch.invalid, batch.values) for batch in self._waiting])
            new = td.add_invalid(new, _number_in(invalid, groups, new))
        self._state = new

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

    def view(self, key: str) -> DigestView:
        """A scalar Metric that is one entry of ``compute()`` and shares this metric's state and its one sync.

        Raises:
            ValueError: if ``key`` is not in :attr:`keys`.
        """
        return DigestView(self, key)

    def _shared_result(self, key: str) -> Tensor:
        """One entry of a result that all views share.

        Each entry is served once, and a second request starts a new round. With several ranks nothing else
        does, so that all decide alike whether to enter the collective, even if only some saw a batch since.
        """
        stale = self._result_from is not self._state
        several = self.distributed_available_fn is not None and self.distributed_available_fn()
        if self._result is None or key in self._served or (stale and not several):
            with warnings.catch_warnings():
                # A rank or dataloader without batches is empty, and says so by NaN and count 0.
                warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
                self._result = self.compute()
            self._result_from = self._state
            self._served = set()
        elif stale:
            warnings.warn(
                f"The view {key!r} is of before the last update: another view has begun this round. Compute "
                "all views between updates, or reset.",
                stacklevel=3,
            )
        self._served.add(key)
        return self._result[key]

    def _report_once(self, state: Tensor) -> None:
        if state.is_meta:
            return
        (invalid, nan), (_, below), (_, above) = state[-3:].tolist()
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
        if self._state_name not in self.__dict__ and self._settled is not None:
            self._state = self._settled  # what waits is forgotten too, unsorted
        super().reset()
        self._merged = self._merged_from = self._result = self._result_from = None

    def unsync(self, should_unsync: bool = True) -> None:
        """Back to this rank's state after a sync; the merged digest stays readable."""
        synced = self._state
        super().unsync(should_unsync)
        if self._merged is synced:
            self._merged_from = self._state  # a copy of the state from before the sync

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result or several, see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class DigestView(WrapperMetric):
    """One entry of a digest metric's result as a Metric, for ``self.log``; made by ``metric.view(key)``.

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

    parent: DigestMetric

    def __init__(self, parent: DigestMetric, key: str) -> None:
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

    def forward(self, *_: Any, **__: Any) -> None:
        """Raises a ``RuntimeError``: update the parent."""
        self.update()

    def compute(self) -> Tensor:
        """The parent's result under this view's key, 0-d float64."""
        return self.parent._shared_result(self.key)

    def reset(self) -> None:
        """Reset the parent."""
        super().reset()
        self.parent.reset()

    def __repr__(self) -> str:
        return f"DigestView({self.key!r} of {type(self.parent).__name__})"


def percentile_key(percentile: float) -> str:
    """``50 -> "p50"``, ``99.9 -> "p99_9"``: no dot, which a module's name cannot hold."""
    return "p" + f"{percentile:.10f}".rstrip("0").rstrip(".").replace(".", "_")


def checked_percentiles(percentiles: Sequence[float] | str) -> tuple[float, ...]:
    """Percentiles as floats, or a ``ValueError``."""
    try:
        if isinstance(percentiles, str):
            raise TypeError
        checked = tuple(float(p) + 0.0 for p in percentiles)  # -0.0 becomes 0.0
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected argument `percentiles` to hold numbers but got {percentiles!r}."
        ) from error
    outside = [p for p in checked if not 0 <= p <= 100]
    if outside:
        raise ValueError(
            f"Expected argument `percentiles` to hold numbers in [0, 100] but got {outside[0]:g} in "
            f"{percentiles!r}."
        )
    keys = [percentile_key(p) for p in checked]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(
            f"Expected argument `percentiles` without duplicates but got {twice[0]} twice: {percentiles!r}."
        )
    return checked


def checked_names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names that can be part of a logged name, or a ``ValueError`` that names the argument."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"Expected argument `{argument}` to be one or several names but got {names!r}.")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"Expected argument `{argument}` to hold names of A-Z, a-z, 0-9, _ but got {name!r}."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"Expected argument `{argument}` without duplicates but got {list(names)!r}.")
    return tuple(names)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().reshape(-1).to(device, copy=True)


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None])


def _joined_weights(batches: Sequence[NewEntries]) -> Tensor | None:
    """Bool if all are, numbers if some are, None if there are none."""
    if all(batch.weights is None for batch in batches):
        return None
    weights = [_or_all_of(batch.weights, batch.values) for batch in batches]
    numbers = any(each.dtype != torch.bool for each in weights)
    return torch.cat([each.double() if numbers else each for each in weights])


def _or_all_of(flags: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if flags is None else flags


def _or_none_of(flags: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool) if flags is None else flags


def _number_in(flags: Tensor, groups: Tensor | None, digest: Tensor) -> Tensor:
    """How many are flagged: 0-d, or ``[G]`` of a digest of groups."""
    if groups is None:
        return flags.sum()
    number = len(digest)
    return digest.new_zeros(number).index_add_(0, groups.long().clamp(0, number - 1), flags.double())
