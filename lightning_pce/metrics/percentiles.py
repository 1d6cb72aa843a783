"""Percentiles of per-token cross-entropy, and of any stream of numbers, as torchmetrics Metrics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.utilities.prints import rank_zero_warn

from lightning_pce.metrics._base import not_compiled
from lightning_pce.metrics._digest_metric import DEFAULT_PERCENTILES, DigestMetric, NewEntries
from lightning_pce.tokens.statistics import TokenStatistics, check_logits_and_labels, token_cross_entropy


class PercentileCrossEntropy(DigestMetric):
    """Mean and percentiles of per-token cross-entropy, in nats, over all tokens of all ranks.

    The state is a t-digest of fixed size: exact up to ``compression`` tokens, a rank error of at most
    ``max(5e-5, 0.1 / sqrt(N))`` above, whatever the number of batches and ranks.

    As input to ``update`` and ``forward``, either

    * ``logits``: ``[..., V]`` float32, bfloat16 or float16, and ``labels``: ``[...]`` integers; or
    * ``losses``: per-token losses in nats of any shape, made by somebody else's kernel, and optionally
      ``mask``: bool, true where the token counts (left out: all do; ``ignore_index`` and ``shift`` play no
      part then);

    and in both cases optionally ``weights``: numbers >= 0 shaped like the labels (or losses); a whole number
    is repetition, 0 leaves a token out. With ``groups`` also ``group``: for each token, for each sequence or
    for all, the number of its group. With ``shift`` weight and group of a token stand where its label stands.

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
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

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
            settings={"ignore_index": ignore_index, "shift": shift},
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
        group: Tensor | Sequence[int] | int | None = None,
    ) -> None:
        """Add a batch; see the class for the two forms of arguments.

        Raises:
            ValueError: if arguments are missing, do not fit or hold impossible values; nothing of the batch
                enters the state then. On accelerators impossible values are counted as ``invalid`` instead,
                because looking would make the host wait.
        """
        self._add(*self.entries(logits, labels, losses=losses, mask=mask, weights=weights, group=group))

    @not_compiled
    def update_and_mean(
        self,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        group: Tensor | Sequence[int] | int | None = None,
    ) -> Tensor:
        """:meth:`update`, and the weighted mean loss of the batch: 0-d float32, differentiable, NaN if
        nothing counts.

        Example:
            >>> metric = PercentileCrossEntropy()
            >>> metric.update_and_mean(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
            tensor(1.3863)
        """
        return self.add_entries(
            self.entries(logits, labels, losses=losses, mask=mask, weights=weights, group=group)
        )

    def add_entries(self, entries: NewEntries) -> Tensor:
        """Add what :meth:`entries` gave; the mean that :meth:`update_and_mean` returns."""
        self._computed = None
        self._update_count += 1
        self._add(*entries)
        losses, weights, _, _ = entries
        assert weights is not None
        share = weights.to(losses.dtype)
        return (torch.where(share > 0, losses, 0.0) * share).sum() / share.sum()

    def entries(
        self,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        group: Tensor | Sequence[int] | int | None = None,
        scored: TokenStatistics | None = None,
    ) -> NewEntries:
        """What :meth:`update` would add: losses, weights and groups of one shape, and impossible labels.

        Args:
            logits: as in :meth:`update`, like the arguments that follow.
            labels: as there.
            losses: as there.
            mask: as there.
            weights: as there.
            group: as there.
            scored: statistics with ``ce`` of these logits and labels, which are not read again then.

        Returns:
            losses float32, with their graph if there is one; weights, bool if none were given; groups, int64
            or None; invalid, bool or None.
        """
        if losses is None:
            losses, weights, invalid = self._scored(logits, labels, mask, weights, scored)
        elif logits is not None or labels is not None:
            raise ValueError(
                "Expected either `losses` or `logits` and `labels`, not both, but got "
                f"{_given(logits=logits, labels=labels, losses=losses)}."
            )
        else:
            losses, counted = checked_losses(losses, mask)
            self._warn_of_half_precision(losses)
            weights = _weights_where(counted, _checked_weights(weights, losses, "losses"))
            losses, invalid = losses.float(), None
        shifted = self.shift and logits is not None
        groups = _checked_group_ids(group, self.groups, losses, weights, shifted=shifted)
        return NewEntries(losses, weights, groups, invalid)

    def _warn_of_half_precision(self, losses: Tensor) -> None:
        if losses.dtype in (torch.bfloat16, torch.float16) and "dtype" not in self._warned:
            self._warned.add("dtype")
            rank_zero_warn(
                f"{type(self).__name__}: the losses are {losses.dtype}, so that percentiles go in steps (in "
                "bfloat16 of 0.4 %). Compute them of logits.float(), or pass the logits, which are read so."
            )

    def _scored(
        self,
        logits: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None,
        weights: Tensor | None,
        scored: TokenStatistics | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses, weights and invalid labels of logits and labels."""
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
        if scored is not None and scored.ce is not None:
            losses, counted, invalid = scored.ce, scored.valid, scored.invalid
        else:
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
        if gain is not None and not gain.is_meta and float(gain) > self._shift_warning_gain:
            warnings.warn(
                "The labels seem not to be shifted: scored one position further on, the mean cross-entropy "
                f"of the first batch is {float(gain):.1f} nats lower. Logits at position t predict token t "
                "+ 1. Pass shift=True if your labels are the inputs, or shift them yourself.",
                stacklevel=2,
            )


class StreamingQuantiles(DigestMetric):
    """Mean and percentiles of any stream of numbers: gradient norms, rewards, lengths, negative values too.

    As input to ``update`` and ``forward``, ``values``: numbers of any shape, and optionally ``weights``:
    numbers >= 0 of the same shape (bool: which values count), and with ``groups`` the number of each value's
    ``group``.

    As output of ``compute`` and ``forward``, the dict that :class:`PercentileCrossEntropy` gives.

    Args:
        percentiles: which, each in [0, 100].
        groups: names of kinds of values that are told apart, of A-Z, a-z, 0-9, _.
        compression: the number of centroids; the state has ``16 * (compression + 3)`` bytes, for each group.
        metric_kwargs: see :class:`torchmetrics.Metric`; ``process_group`` may also be a function that returns
            the group when it is needed.

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
        group: Tensor | Sequence[int] | int | None = None,
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


def _whole_numbers(group: Tensor | Sequence[int] | int, device: torch.device) -> Tensor:
    try:
        ids = torch.as_tensor(group, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected argument `group` to hold integers but got {group!r:.80}.") from error
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"Expected argument `group` to hold integers but got {ids.dtype}.")
    return ids.long()


def _checked_group_ids(
    group: Tensor | Sequence[int] | int | None,
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
    ids = _whole_numbers(group, like.device)
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


def checked_losses(losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
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
        weights = weights.double()  # some dtypes cannot be compared
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
