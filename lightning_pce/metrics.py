"""torchmetrics Metrics whose state is a digest, and scalar views of them."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.prints import rank_zero_warn
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_pce import digest as td
from lightning_pce.token_stats import check_logits_and_labels, token_cross_entropy

DEFAULT_PERCENTILES = (5, 25, 50, 75, 95, 99)
# What can be part of a logged name: a module's name holds no dot, a file's no slash.
NAME = re.compile(r"[A-Za-z0-9_]+")

# Values wait until there are this many, or this many updates: sorted together they cost a fifth of what they
# cost in batches of 8,192, in batches of 512 a thirtieth, and fewer kernels on an accelerator.
_WAITING_VALUES = 1 << 17
_WAITING_UPDATES = 1 << 10

_Method = TypeVar("_Method", bound=Callable[..., Any])


def not_compiled(method: _Method) -> _Method:
    """Leave a method out of ``torch.compile``.

    Compiled, every call would be a new graph, because the update count is an int on a module, until torch
    gives up and runs the whole step eagerly.
    """
    disable: Callable[[_Method], _Method] = torch.compiler.disable  # which has no types of its own
    return disable(method)


class _Batch(NamedTuple):
    """What an update brings, all of one shape."""

    values: Tensor
    weights: Tensor | None  # bool or numbers
    groups: Tensor | None
    invalid: Tensor | None  # bool


class _DigestMetric(Metric):
    """A stream of values summarised by one digest: one tensor of state, one collective per compute.

    Values wait in a short list until it is worth sorting them. While some do, the state is not an attribute:
    whoever asks for it, torchmetrics' sync, ``state_dict`` or a copy, makes them enter first.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        groups: Sequence[str] | None = None,
        compression: int = 1024,
        settings: tuple[Any, ...] = (),
        **metric_kwargs: Any,
    ) -> None:
        # A cached rank would never enter the collective that the others wait in.
        metric_kwargs.setdefault("compute_with_cache", False)
        metric_kwargs.setdefault("dist_sync_fn", gather_digests)
        super().__init__(**metric_kwargs)
        self.percentiles = _checked_percentiles(percentiles)
        self.groups = None if groups is None else _checked_groups(groups)
        self.compression = compression
        # MetricCollection merges metrics whose states have the same names and, after the first batch, the
        # same values. The settings are part of the name, so that metrics which differ in one are never
        # merged.
        what: tuple[Any, ...] = (type(self).__qualname__, self.percentiles, compression, *settings)
        what = what if self.groups is None else (*what, self.groups)
        self._state_name = f"digest_{zlib.crc32(repr(what).encode()):08x}"
        self._waiting: list[_Batch] = []
        self._waiting_values = 0
        self._settled: Tensor | None = None  # the state, while values wait
        self.add_state(self._state_name, self._empty(), dist_reduce_fx=td.merge)
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
        self._warned: set[str] = set()

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
        # Never in place: after trainer.validate it may be an inference tensor.
        setattr(self, self._state_name, state)

    def _empty(self, device: torch.device | None = None) -> Tensor:
        shape = () if self.groups is None else (len(self.groups),)
        return td.empty(self.compression, shape=shape, device=device)

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_waiting") and name == self._state_name:
            self._settle()
            return self.__dict__[name]
        return super().__getattr__(name)

    def _add(
        self,
        values: Tensor,
        weights: Tensor | None,
        groups: Tensor | None = None,
        invalid: Tensor | None = None,
    ) -> None:
        """Let checked values of one shape wait, in copies: their owner may write over them."""
        if not self._waiting:
            self._settled = self._state
            delattr(self, self._state_name)
        assert self._settled is not None
        device = self._settled.device
        others = (None if each is None else _copied(each, device) for each in (weights, groups, invalid))
        self._waiting.append(_Batch(_copied(values, device), *others))
        self._waiting_values += values.numel()
        if self._waiting_values >= _WAITING_VALUES or len(self._waiting) >= _WAITING_UPDATES:
            self._settle()

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
        book = state[-3:].tolist()
        (invalid, nan), (_, below), (_, above) = book
        if nan and "nan" not in self._warned:
            self._warned.add("nan")
            rank_zero_warn(
                f"{type(self).__name__}: {nan:.0f} values were NaN. They are left out and counted."
            )
        if (above or below) and "inf" not in self._warned:
            self._warned.add("inf")
            rank_zero_warn(
                f"{type(self).__name__}: {above + below:.0f} values were infinite. They lie beyond all "
                "percentiles of the others and make `mean` infinite; `finite_mean` leaves them out."
            )
        if invalid and "invalid" not in self._warned:
            self._warned.add("invalid")
            rank_zero_warn(
                f"{type(self).__name__}: {invalid:.0f} entries were left out because their label was "
                "outside the vocabulary or their weight was negative or not a number."
            )

    def reset(self) -> None:
        """Forget everything seen."""
        if self._settled is not None:
            self._state = self._settled  # what waits is forgotten too, unsorted
        super().reset()
        self._merged = self._merged_from = self._result = self._result_from = None

    @not_compiled
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its own summaries; a refused batch leaves the state as it was."""
        state, count = self._state, self._update_count
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            # torchmetrics empties the state before it looks at the batch.
            self._state = state
            self._update_count, self._computed = count, None
            self._is_synced, self._cache = False, None
            self._should_unsync, self._to_sync, self._enable_grad = True, self.sync_on_compute, False
            raise

    def unsync(self, should_unsync: bool = True) -> None:
        """Back to this rank's state after a sync; the merged digest stays readable."""
        synced = self._state
        super().unsync(should_unsync)
        if self._merged is synced:
            self._merged_from = self._state  # a copy of the state from before the sync

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[..., Any] | None = None,
    ) -> None:
        """Merge the digests of all ranks; by this metric's one collective also when called by hand."""
        super().sync(dist_sync_fn or self.dist_sync_fn, process_group, should_sync, distributed_available)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric of the same settings has seen, or its ``metric_state``.

        Raises:
            ValueError: if it is something else, or its settings differ.
        """
        updates = 1
        if isinstance(incoming_state, _DigestMetric):
            updates = incoming_state.update_count
            if incoming_state._state_name != self._state_name:
                raise ValueError(
                    f"Expected a {type(self).__name__} with the same settings but got "
                    f"{type(incoming_state).__name__} with percentiles {incoming_state.percentiles} and "
                    f"compression {incoming_state.compression}, here {self.percentiles} and "
                    f"{self.compression}, or another setting that differs."
                )
        if isinstance(incoming_state, dict):
            state = incoming_state.get(self._state_name)
            if state is None or state.shape != self._state.shape:
                raise ValueError(
                    f"Expected a state `{self._state_name}` of shape {tuple(self._state.shape)} but got "
                    f"{list(incoming_state)}{'' if state is None else f' of shape {tuple(state.shape)}'}."
                )
        super().merge_state(incoming_state)
        self._computed = None
        self._update_count += updates

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> _DigestMetric:
        """Move with the module, but never change the dtype of the state: bfloat16 stops counting at 256."""
        super()._apply(fn, exclude_state=(self._state_name,))
        self._computed = None
        device = torch.device("cpu") if self.device.type == "mps" else self.device  # MPS has no float64
        self._defaults[self._state_name] = self._empty(device)
        state = self._state
        lost = state.is_meta and device.type != "meta"
        self._state = self._empty(device) if lost else state.to(device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + self._state_name)
        others = [key for key in state_dict if key.startswith(f"{prefix}digest_")]
        if stored is None and others:
            raise ValueError(
                f"Expected the state of a {type(self).__name__} with the same settings (percentiles, "
                f"compression, ...) of shape {tuple(self._state.shape)} under `{prefix}{self._state_name}` "
                f"but got `{others[0]}` of shape {tuple(state_dict[others[0]].shape)}."
            )
        if stored is not None:
            if stored.shape != self._state.shape:
                raise ValueError(
                    f"Expected a digest of shape {tuple(self._state.shape)} in the checkpoint under "
                    f"`{prefix + self._state_name}` but got {tuple(stored.shape)}."
                )
            self._state = stored.to(self._state)
            state_dict[prefix + self._state_name] = self._state
            self._computed = None
            self._update_count = max(self._update_count, 1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result or several, see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class PercentileCrossEntropy(_DigestMetric):
    """Mean and percentiles of per-token cross-entropy, in nats, over all tokens of all ranks.

    The state is a t-digest of fixed size: exact up to ``compression`` tokens, a rank error of at most
    ``max(5e-5, 0.1 / sqrt(N))`` above, whatever the number of batches and ranks.

    As input to ``update`` and ``forward``, either

    * ``logits``: ``[..., V]`` float32, bfloat16 or float16, and ``labels``: ``[...]`` integers; or
    * ``losses``: per-token losses in nats of any shape, made by somebody else's kernel, and optionally
      ``mask``: bool, true where the token counts (left out: all do; ``ignore_index`` and ``shift`` play no
      part then);

    and in both cases optionally ``weights``: numbers >= 0 shaped like the labels (or losses); a whole number
    is repetition, 0 leaves a token out. With ``groups`` also ``group``: for each token, or for each sequence,
    the number of its group. With ``shift`` weight and group of a token stand where its label stands.

    As output of ``compute`` and ``forward``, a dict of 0-d tensors: ``mean``, ``p5`` ... ``p99`` (``p99_9``
    for 99.9), ``trimmed_mean`` (of what lies between the 5th and the 95th percentile), ``finite_mean``,
    ``count`` (of tokens that are not NaN), ``nonfinite`` and ``invalid``; then the same of each group, with
    its name in front: ``prompt_p50``. Perplexity is ``exp(mean)``.

    Args:
        percentiles: which, each in [0, 100].
        groups: names of kinds of tokens that are told apart, of A-Z, a-z, 0-9, _.
        ignore_index: the label of tokens that do not count.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1.
        compression: the number of centroids; the state has ``16 * (compression + 3)`` bytes, for each group.
        metric_kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if a percentile is outside [0, 100] or given twice, or a group's name is.

    Example:
        >>> metric = PercentileCrossEntropy(percentiles=(50, 95))
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]]])
        >>> metric.update(logits, torch.tensor([[0, 1, -100]]))
        >>> metric.compute()["p50"]
        tensor(0.4100, dtype=torch.float64)
        >>> metric = PercentileCrossEntropy(percentiles=(50,), groups=("prompt", "completion"))
        >>> metric.update(losses=torch.tensor([[4.0, 2.0, 1.0, 0.5]]), group=torch.tensor([[0, 0, 1, 1]]))
        >>> metric.compute()["prompt_p50"], metric.compute()["completion_p50"]
        (tensor(3., dtype=torch.float64), tensor(0.7500, dtype=torch.float64))
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    # The other alignment must be lower by this many nats before anybody is warned. On SmolLM2 it is 9.
    _shift_warning_gain: ClassVar[float] = 2.0

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        groups: Sequence[str] | None = None,
        ignore_index: int = -100,
        shift: bool = False,
        compression: int = 1024,
        **metric_kwargs: Any,
    ) -> None:
        super().__init__(
            percentiles,
            groups=groups,
            compression=compression,
            settings=(ignore_index, shift),
            **metric_kwargs,
        )
        self.ignore_index = ignore_index
        self.shift = shift
        self._shift_checked = shift
        self._shift_gain: Tensor | None = None

    @not_compiled
    def update(
        self,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        group: Tensor | None = None,
    ) -> None:
        """Add a batch; see the class for the two forms of arguments.

        Raises:
            ValueError: if arguments are missing, do not fit or hold impossible values; nothing of the batch
                enters the state then. On accelerators impossible values are counted as ``invalid`` instead,
                because looking would make the host wait.
        """
        losses, weights, invalid = self.token_losses(
            logits, labels, losses=losses, mask=mask, weights=weights
        )
        self._add(losses, weights, self._groups_of(losses, weights, group, logits), invalid)

    @not_compiled
    def update_and_mean(
        self,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """:meth:`update`, and the weighted mean loss of the batch: 0-d float32, differentiable, NaN if
        nothing counts.

        Example:
            >>> metric = PercentileCrossEntropy()
            >>> metric.update_and_mean(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
            tensor(1.3863)
        """
        losses, weights, invalid = self.token_losses(
            logits, labels, losses=losses, mask=mask, weights=weights
        )
        groups = self._groups_of(losses, weights, group, logits)
        self._computed = None
        self._update_count += 1
        self._add(losses, weights, groups, invalid)
        share = weights.to(losses.dtype)
        return (torch.where(share > 0, losses, 0.0) * share).sum() / share.sum()

    def token_losses(
        self,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What :meth:`update` would add: losses and weights of one shape, and where a label was impossible.

        Returns:
            losses float32, with their graph if there is one; weights, bool if none were given; invalid, bool
            or None.
        """
        if losses is None:
            return self._scored(logits, labels, mask, weights)
        if logits is not None or labels is not None:
            raise ValueError(
                "Expected either `losses` or `logits` and `labels`, not both, but got "
                f"{_given(logits=logits, labels=labels, losses=losses)}."
            )
        losses, counted = _checked_losses(losses, mask)
        return losses.float(), _weights_where(counted, _checked_weights(weights, losses, "losses")), None

    def _scored(
        self, logits: Tensor | None, labels: Tensor | None, mask: Tensor | None, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """:meth:`token_losses` of logits and labels."""
        if logits is None or labels is None:
            raise ValueError(
                "Expected arguments `logits` and `labels`, or argument `losses`, but got "
                f"{_given(logits=logits, labels=labels, losses=None)}."
            )
        if mask is not None:
            raise ValueError(
                "Expected no argument `mask` beside `logits` and `labels`: the labels say which tokens count "
                f"(ignore_index={self.ignore_index}), and `weights` may be 0."
            )
        check_logits_and_labels(logits, labels)
        weights = _checked_weights(weights, labels, "labels")
        losses, counted, invalid = token_cross_entropy(
            logits, labels, ignore_index=self.ignore_index, shift=self.shift
        )
        self._check_shift(logits, labels, losses, counted)
        if weights is not None and self.shift:
            weights = torch.cat([weights[..., 1:], torch.zeros_like(weights[..., :1])], dim=-1)
        refused = None if labels.device.type == "cpu" else invalid  # on a CPU it has raised
        return losses, _weights_where(counted, weights), refused

    def _groups_of(
        self, losses: Tensor, weights: Tensor, group: Tensor | None, logits: Tensor | None
    ) -> Tensor | None:
        """The group of each token, where its loss stands."""
        shifted = self.shift and logits is not None
        return _checked_group_ids(group, self.groups, losses, weights, shifted=shifted)

    def compute(self) -> dict[str, Tensor]:
        """Summaries of everything seen on all ranks, see the class."""
        self._warn_of_shift()
        return super().compute()

    def _check_shift(self, logits: Tensor, labels: Tensor, losses: Tensor, counted: Tensor) -> None:
        """Score the first batch also one position on; a far lower loss means the labels were not shifted."""
        if self._shift_checked or labels.ndim < 1 or labels.shape[-1] < 8 or labels.shape[:-1].numel() == 0:
            return
        few = slice(0, 4)
        logits = logits.detach().reshape(-1, *logits.shape[-2:])[few]
        labels, losses, counted = (
            part.detach().reshape(-1, part.shape[-1])[few] for part in (labels, losses, counted)
        )
        with torch.no_grad():
            other, other_counts, _ = token_cross_entropy(
                logits, labels, ignore_index=self.ignore_index, shift=True
            )
        enough = other_counts.sum() >= 16
        gain = _finite_mean(losses, counted) - _finite_mean(other, other_counts)
        self._shift_gain = torch.where(enough, gain, 0.0)
        if labels.device.type == "cpu":
            self._shift_checked = bool(enough)  # a batch of few tokens says nothing
            self._warn_of_shift()
        else:
            self._shift_checked = True

    def _warn_of_shift(self) -> None:
        gain, self._shift_gain = self._shift_gain, None
        if gain is not None and float(gain) > self._shift_warning_gain:
            warnings.warn(
                "The labels seem not to be shifted: scored one position further on, the mean cross-entropy "
                f"of the first batch is {float(gain):.1f} nats lower. Logits at position t predict token t "
                "+ 1. Pass shift=True if your labels are the inputs, or shift them yourself.",
                stacklevel=2,
            )


class StreamingQuantiles(_DigestMetric):
    """Mean and percentiles of any stream of numbers: gradient norms, rewards, lengths, negative values too.

    As input to ``update`` and ``forward``, ``values``: numbers of any shape, and optionally ``weights``:
    numbers >= 0 of the same shape (bool: which values count), and with ``groups`` the number of each value's
    ``group``.

    As output of ``compute`` and ``forward``, the dict that :class:`PercentileCrossEntropy` gives.

    Args:
        percentiles: which, each in [0, 100].
        groups: names of kinds of values that are told apart, of A-Z, a-z, 0-9, _.
        compression: the number of centroids; the state has ``16 * (compression + 3)`` bytes, for each group.
        metric_kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if a percentile is outside [0, 100] or given twice.

    Example:
        >>> metric = StreamingQuantiles(percentiles=(50,))
        >>> metric.update(torch.tensor([-1.0, 0.0, 5.0]))
        >>> metric.compute()["p50"]
        tensor(0., dtype=torch.float64)
    """

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        groups: Sequence[str] | None = None,
        compression: int = 1024,
        **metric_kwargs: Any,
    ) -> None:
        super().__init__(percentiles, groups=groups, compression=compression, **metric_kwargs)

    @not_compiled
    def update(
        self,
        values: Tensor | float | Sequence[float],
        weights: Tensor | None = None,
        *,
        group: Tensor | None = None,
    ) -> None:
        """Add values.

        Raises:
            ValueError: if shapes do not fit or, on a CPU, a weight is negative or not a number; nothing
                enters the state then.
        """
        if not isinstance(values, Tensor):
            try:  # float64, not the default dtype, which Lightning changes
                values = torch.tensor(values, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    "Expected argument `values` to be a tensor, a number or numbers but got "
                    f"{repr(values)[:80]}."
                ) from error
        if values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"Expected argument `values` to hold real numbers but got {values.dtype}.")
        weights = _checked_weights(weights, values, "values")
        groups = _checked_group_ids(group, self.groups, values, weights)
        self._add(values if values.is_floating_point() else values.double(), weights, groups)


class DigestView(WrapperMetric):
    """One entry of a digest metric's result as a Metric, for ``self.log``; made by ``metric.view(key)``.

    Views of one metric share its state, its reset and one collective. (Members of a MetricCollection with
    equal settings share one state that only the first updates: for views of the others pass
    ``compute_groups=False``.)

    Example:
        >>> metric = StreamingQuantiles()
        >>> median = metric.view("p50")
        >>> metric.update(torch.tensor([1.0, 2.0, 9.0]))
        >>> median.compute()
        tensor(2., dtype=torch.float64)
    """

    is_differentiable = False
    full_state_update = False

    parent: _DigestMetric

    def __init__(self, parent: _DigestMetric, key: str) -> None:
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


def gather_digests(digest: Tensor, group: Any | None = None) -> list[Tensor]:
    """The digests of all ranks by one ``all_gather``; torchmetrics' own way takes a barrier and two."""
    device = digest.device
    if (
        device.type == "cpu"
        and "nccl" in str(dist.get_backend(group))
        and "gloo" not in str(dist.get_backend(group))
    ):
        digest = digest.to(torch.device("cuda", torch.cuda.current_device()))
    everyone = digest.new_empty((dist.get_world_size(group), *digest.shape))
    parts = list(everyone.unbind())
    dist.all_gather(parts, digest.contiguous(), group=group)
    return [part.to(device) for part in parts]


def percentile_key(percentile: float) -> str:
    """``50 -> "p50"``, ``99.9 -> "p99_9"``: no dot, which a module's name can not hold."""
    return "p" + f"{percentile:.10f}".rstrip("0").rstrip(".").replace(".", "_")


def _checked_percentiles(percentiles: Sequence[float] | str) -> tuple[float, ...]:
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


def _checked_groups(groups: Sequence[str]) -> tuple[str, ...]:
    if isinstance(groups, str) or not groups:
        raise ValueError(f"Expected argument `groups` to be one or several names but got {groups!r}.")
    for name in groups:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"Expected argument `groups` to hold names of A-Z, a-z, 0-9, _ but got {name!r}."
            )
    if len(set(groups)) < len(groups):
        raise ValueError(f"Expected argument `groups` without duplicates but got {list(groups)!r}.")
    return tuple(groups)


def _checked_group_ids(
    group: Tensor | Sequence[int] | None,
    names: tuple[str, ...] | None,
    like: Tensor,
    weights: Tensor | None,
    *,
    shifted: bool = False,
) -> Tensor | None:
    """Group numbers of the shape of the values; on a CPU those that count are in range."""
    if names is None and group is None:
        return None
    if names is None:
        raise ValueError("Expected no argument `group`: the metric was made without `groups`.")
    if group is None:
        raise ValueError(
            f"Expected argument `group`: which of the groups {', '.join(names)} each entry is of."
        )
    ids = torch.as_tensor(group, device=like.device)
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"Expected argument `group` to hold integers but got {ids.dtype}.")
    per_sequence = ids.ndim < like.ndim and ids.shape == like.shape[:-1]
    if ids.shape != like.shape and not per_sequence and ids.ndim:
        raise ValueError(
            f"Expected argument `group` with a number for each token, {tuple(like.shape)}, or for each "
            f"sequence, {tuple(like.shape[:-1])}, but got {tuple(ids.shape)}."
        )
    if per_sequence or not ids.ndim:
        ids = (ids[..., None] if like.ndim else ids).expand(like.shape)
    elif shifted:
        ids = torch.cat([ids[..., 1:], ids[..., -1:]], dim=-1)
    if ids.device.type == "cpu":
        counted = torch.ones_like(ids, dtype=torch.bool) if weights is None else weights > 0
        wrong = ids[counted & ((ids < 0) | (ids >= len(names)))]
        if wrong.numel():
            raise ValueError(
                f"Expected argument `group` to hold numbers in [0, {len(names)}), for {', '.join(names)}, "
                f"but got {wrong[0].item()}."
            )
    return ids


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().reshape(-1).to(device, copy=True)


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None])


def _joined_weights(batches: Sequence[_Batch]) -> Tensor | None:
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


def _checked_losses(losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per-token losses, and which of them count."""
    for name, value in (("losses", losses), ("mask", mask)):
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(f"Expected argument `{name}` to be a tensor but got {type(value).__name__}.")
    if not losses.is_floating_point():
        raise ValueError(f"Expected argument `losses` to be floating point but got {losses.dtype}.")
    if losses.ndim == 0:
        raise ValueError(
            "Expected argument `losses` to hold one loss per token but got a single number: ask the loss for "
            "reduction='none'."
        )
    if mask is None:
        return losses, torch.ones_like(losses, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.shape != losses.shape:
        raise ValueError(
            f"Expected argument `mask` to be bool of the shape of the losses, {tuple(losses.shape)}, but got "
            f"{mask.dtype} {tuple(mask.shape)}."
        )
    return losses, mask


def _checked_weights(weights: Tensor | None, like: Tensor, name: str) -> Tensor | None:
    if weights is None:
        return None
    weights = torch.as_tensor(weights, device=like.device)
    if weights.is_complex():
        raise ValueError(f"Expected argument `weights` to hold real numbers but got {weights.dtype}.")
    if weights.shape != like.shape:
        raise ValueError(
            f"Expected argument `weights` to have the shape of the {name}, {tuple(like.shape)}, but got "
            f"{tuple(weights.shape)}."
        )
    if weights.device.type == "cpu" and weights.dtype != torch.bool:
        wrong = ~((weights >= 0) & (weights < torch.inf))
        if bool(wrong.any()):
            raise ValueError(
                "Expected argument `weights` to hold finite numbers >= 0 but got "
                f"{weights[wrong][0].item():g}."
            )
    return weights


def _weights_where(counted: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return counted
    return counted & weights if weights.dtype == torch.bool else torch.where(counted, weights, 0)


def _finite_mean(losses: Tensor, counted: Tensor) -> Tensor:
    counted = counted & losses.isfinite()
    return torch.where(counted, losses, 0.0).sum() / counted.sum()


def _given(**arguments: Tensor | None) -> str:
    return ", ".join(
        f"{name}={None if value is None else tuple(value.shape)}" for name, value in arguments.items()
    )
