"""torchmetrics Metrics whose state is a digest, and scalar views of them."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.prints import rank_zero_warn
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_pce import digest as td
from lightning_pce.token_stats import check_logits_and_labels, token_cross_entropy

DEFAULT_PERCENTILES = (5, 25, 50, 75, 95, 99)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def not_compiled(method: _Method) -> _Method:
    """Leave a method out of ``torch.compile``.

    Compiled, every call would be a new graph, because the update count is an int on a module, until torch
    gives up and runs the whole step eagerly.
    """
    disable: Callable[[_Method], _Method] = torch.compiler.disable  # which has no types of its own
    return disable(method)


class _DigestMetric(Metric):
    """A stream of values summarised by one digest: one tensor of state, one collective per compute."""

    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        compression: int = 1024,
        settings: tuple[Any, ...] = (),
        **metric_kwargs: Any,
    ) -> None:
        # A cached rank would never enter the collective that the others wait in.
        metric_kwargs.setdefault("compute_with_cache", False)
        metric_kwargs.setdefault("dist_sync_fn", gather_digests)
        super().__init__(**metric_kwargs)
        self.percentiles = _checked_percentiles(percentiles)
        self.compression = compression
        # MetricCollection merges metrics whose states have the same names and, after the first batch, the
        # same values. The settings are part of the name, so that metrics which differ in one are never
        # merged.
        what = (type(self).__qualname__, self.percentiles, compression, *settings)
        self._state_name = f"digest_{zlib.crc32(repr(what).encode()):08x}"
        self.add_state(self._state_name, td.empty(compression), dist_reduce_fx=td.merge)
        self._merged: Tensor | None = None
        self._merged_from: Tensor | None = None
        self._result: dict[str, Tensor] | None = None
        self._result_from: Tensor | None = None
        self._served: set[str] = set()
        self._warned: set[str] = set()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of ``compute()``, in order."""
        percentiles = (percentile_key(p) for p in self.percentiles)
        return ("mean", *percentiles, "trimmed_mean", "finite_mean", "count", "nonfinite", "invalid")

    @property
    def digest(self) -> Tensor:
        """The digest ``[K + 3, 2]``: of all ranks after ``compute``, of this one from the next update on."""
        if self._merged is not None and self._merged_from is self._state:
            return self._merged
        return self._state

    @property
    def _state(self) -> Tensor:
        return cast(Tensor, getattr(self, self._state_name))

    def _add(self, values: Tensor, weights: Tensor | None, invalid: Tensor | None = None) -> None:
        device = self._state.device
        values = values.detach().to(device)
        weights = None if weights is None else weights.detach().to(device)
        new = td.add(self._state, values, weights)
        if invalid is not None:
            new = td.add_invalid(new, invalid.sum().to(device))
        # Never in place: after trainer.validate it may be an inference tensor.
        setattr(self, self._state_name, new)

    def compute(self) -> dict[str, Tensor]:
        """Summaries of everything seen on all ranks.

        Returns:
            0-d float64 tensors under :attr:`keys`. An empty metric gives NaN, and count 0.
        """
        state = self._state
        self._merged = self._merged_from = state
        q = torch.tensor([p / 100 for p in self.percentiles], dtype=torch.float64).to(state.device)
        quantiles = td.quantile(state, q).unbind()
        values = (
            td.mean(state),
            *quantiles,
            td.trimmed_mean(state, 0.05, 0.95),
            td.finite_mean(state),
            td.count(state),
            td.nonfinite(state),
            td.invalid(state).clone(),
        )
        self._report_once(state)
        return dict(zip(self.keys, values, strict=True))

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
            setattr(self, self._state_name, state)
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
        self._defaults[self._state_name] = td.empty(self.compression, device=device)
        state = self._state
        lost = state.is_meta and device.type != "meta"
        setattr(
            self, self._state_name, td.empty(self.compression, device=device) if lost else state.to(device)
        )
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
            state_dict[prefix + self._state_name] = stored.to(self._state)
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
    is repetition, 0 leaves a token out. With ``shift`` the weight stands where its label stands.

    As output of ``compute`` and ``forward``, a dict of 0-d tensors: ``mean``, ``p5`` ... ``p99`` (``p99_9``
    for 99.9), ``trimmed_mean`` (of what lies between the 5th and the 95th percentile), ``finite_mean``,
    ``count`` (of tokens that are not NaN), ``nonfinite`` and ``invalid``. Perplexity is ``exp(mean)``.

    Args:
        percentiles: which, each in [0, 100].
        ignore_index: the label of tokens that do not count.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1.
        compression: the number of centroids; the state has ``16 * (compression + 3)`` bytes.
        metric_kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if a percentile is outside [0, 100] or given twice.

    Example:
        >>> metric = PercentileCrossEntropy(percentiles=(50, 95))
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]]])
        >>> metric.update(logits, torch.tensor([[0, 1, -100]]))
        >>> metric.compute()["p50"]
        tensor(0.4100, dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    # The other alignment must be lower by this many nats before anybody is warned. On SmolLM2 it is 9.
    _shift_warning_gain: ClassVar[float] = 2.0

    def __init__(
        self,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        *,
        ignore_index: int = -100,
        shift: bool = False,
        compression: int = 1024,
        **metric_kwargs: Any,
    ) -> None:
        super().__init__(
            percentiles, compression=compression, settings=(ignore_index, shift), **metric_kwargs
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
        self._add(losses, weights, invalid)

    @not_compiled
    def update_and_mean(
        self,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
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
        self._computed = None
        self._update_count += 1
        self._add(losses, weights, invalid)
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
    numbers >= 0 of the same shape (bool: which values count).

    As output of ``compute`` and ``forward``, the dict that :class:`PercentileCrossEntropy` gives.

    Args:
        percentiles: which, each in [0, 100].
        compression: the number of centroids; the state has ``16 * (compression + 3)`` bytes.
        metric_kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if a percentile is outside [0, 100] or given twice.

    Example:
        >>> metric = StreamingQuantiles(percentiles=(50,))
        >>> metric.update(torch.tensor([-1.0, 0.0, 5.0]))
        >>> metric.compute()["p50"]
        tensor(0., dtype=torch.float64)
    """

    @not_compiled
    def update(self, values: Tensor | float | Sequence[float], weights: Tensor | None = None) -> None:
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
        self._add(values if values.is_floating_point() else values.double(), weights)


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
