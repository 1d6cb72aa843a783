"""A batch scored once: logits or losses become what every metric takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce.tokens.labels import (
    GroupIds,
    Targets,
    check_logits_and_labels,
    checked_groups,
    checked_losses,
    checked_weights,
    shifted,
    targets,
    weights_where,
)
from lightning_pce.tokens.statistics import (
    DERIVED,
    TOP_K,
    TokenStatistics,
    derived,
    differentiable_cross_entropy,
    statistics_of,
    token_cross_entropy,
)


class ScoredTokens(NamedTuple):
    """The tokens of a batch, in tensors of one shape ``[...]``; weights and groups are the labels'."""

    ce: Tensor
    """float32, the cross-entropy in nats, with its graph if there is one."""
    weights: Tensor
    """bool or numbers >= 0: False or 0 where a token does not count."""
    groups: Tensor | None
    """int64, the number of each token's group."""
    invalid: Tensor | None
    """bool, tokens left out because of an impossible label; only on an accelerator."""
    statistics: Mapping[str, Tensor]
    """float32 values of other statistics by name, NaN where the cross-entropy is."""
    labels: Tensor | None
    """int64, the id of each token that counts, -100 elsewhere; None of losses."""

    def mean(self) -> Tensor:
        """The weighted mean cross-entropy, 0-d in nats, differentiable, NaN if nothing counts."""
        share = self.weights.to(self.ce.dtype)
        return (torch.where(share > 0, self.ce, 0.0) * share).sum() / share.sum()


def score_tokens(
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    losses: Tensor | None = None,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    group: GroupIds | None = None,
    groups: tuple[str, ...] | None = None,
    ignore_index: int = -100,
    shift: bool = False,
    statistics: Sequence[str] = ("ce",),
) -> ScoredTokens:
    """Check, shift and score a batch, once.

    Args:
        logits: ``[..., V]`` float32, bfloat16, float16 or float64, with ``labels``.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        losses: ``[...]`` losses of tokens in nats, instead of logits and labels.
        mask: bool shaped like ``losses``, true where a token counts; left out: all do.
        weights: numbers >= 0 shaped like labels or losses; 0 leaves a token out.
        group: if there are groups, the number of each token's, of each sequence's or of all.
        groups: the names of the groups.
        ignore_index: the label of tokens that do not count.
        shift: the labels are the inputs: position t is scored against label t + 1, and so are weights and
            groups of tokens. It plays no part beside ``losses``.
        statistics: ``"ce"`` and others of :data:`lightning_pce.tokens.statistics.STATISTICS` and ``DERIVED``.

    Raises:
        ValueError: if arguments are missing, do not fit or hold impossible values (on an accelerator, where
            looking would make the host wait, a token with an impossible label is left out and counted).

    Example:
        >>> scored = score_tokens(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
        >>> scored.ce, scored.weights
        (tensor([[1.3863, 0.0000, 1.3863]]), tensor([[ True, False,  True]]))
        >>> scored.mean()
        tensor(1.3863)
    """
    if losses is not None:
        return _from_losses(logits, labels, losses, mask, weights, group, groups, statistics)
    if logits is None or labels is None:
        raise ValueError(
            "Expected arguments `logits` and `labels`, or argument `losses`, but got "
            f"{_given(logits=logits, labels=labels, losses=losses)}."
        )
    if mask is not None:
        raise ValueError(
            "Expected no argument `mask` beside `logits` and `labels`: the labels say which tokens count "
            f"(ignore_index={ignore_index}), and `weights` may be 0."
        )
    check_logits_and_labels(logits, labels)
    weights = checked_weights(weights, labels, "labels")
    target = targets(labels, logits.shape[-1], ignore_index=ignore_index, shift=shift)
    if weights is not None and shift:
        weights = shifted(weights, 0)
    weights = weights_where(target.valid, weights)
    numbers = checked_groups(group, groups, labels, weights, shift=shift)
    ce, others = _scored(logits, target, statistics)
    # On a CPU an impossible label has raised.
    invalid = None if labels.device.type == "cpu" else target.invalid
    return ScoredTokens(ce, weights, numbers, invalid, others, target.labels)


def _from_losses(
    logits: Tensor | None,
    labels: Tensor | None,
    losses: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    group: GroupIds | None,
    groups: tuple[str, ...] | None,
    statistics: Sequence[str],
) -> ScoredTokens:
    others = [name for name in statistics if name != "ce"]
    if others:
        named = [name for name in others if name not in TOP_K] or others
        raise ValueError(
            f"Expected arguments `logits` and `labels`: {', '.join(named)} cannot be had from `losses`. "
            "Leave them out of `statistics`."
        )
    if logits is not None or labels is not None:
        raise ValueError(
            "Expected either `losses` or `logits` and `labels`, not both, but got "
            f"{_given(logits=logits, labels=labels, losses=losses)}."
        )
    losses, counted = checked_losses(losses, mask)
    weights = weights_where(counted, checked_weights(weights, losses, "losses"))
    numbers = checked_groups(group, groups, losses, weights)
    return ScoredTokens(losses.float(), weights, numbers, None, {}, None)


def _scored(logits: Tensor, target: Targets, statistics: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The cross-entropy, and the values of the other statistics by name, by as few reads as can be."""
    others = [name for name in statistics if name != "ce"]
    parts = {part for name in others for part in DERIVED.get(name, (name,))}
    if torch.is_grad_enabled() and logits.requires_grad:
        ce = differentiable_cross_entropy(logits, target)
        found = statistics_of(logits, target, tuple(parts)) if parts else None
    else:
        found = statistics_of(logits, target, ("ce", *parts))
        assert found.ce is not None
        ce = found.ce
    # The rank of a token whose logits are NaN is none.
    lost = ce.detach().isnan()

    def value(name: str, found: TokenStatistics) -> Tensor:
        return derived(name, found, logits.shape[-1]).masked_fill(lost, torch.nan)

    return ce, {} if found is None else {name: value(name, found) for name in others}


def gain_by_shift(logits: Tensor, labels: Tensor, scored: ScoredTokens, ignore_index: int) -> Tensor | None:
    """By how many nats the mean of a few sequences falls if they are scored one position further on.

    Args:
        logits: ``[..., T, V]``.
        labels: ``[..., T]``.
        scored: their tokens, not shifted.
        ignore_index: the label of tokens that do not count.

    Returns:
        0-d, NaN if too few tokens count for a judgement; None if the batch is too short for one.
    """
    if scored.labels is None or labels.ndim < 1 or labels.shape[-1] < 8 or labels.shape[:-1].numel() == 0:
        return None
    few = slice(0, 4)
    logits = logits.detach().reshape(-1, *logits.shape[-2:])[few]
    labels, losses, counted = (
        part.detach().reshape(-1, part.shape[-1])[few] for part in (labels, scored.ce, scored.labels >= 0)
    )
    with torch.no_grad():
        other, other_counts, _ = token_cross_entropy(logits, labels, ignore_index=ignore_index, shift=True)
    gain = _finite_mean(losses, counted) - _finite_mean(other, other_counts)
    return torch.where(other_counts.sum() >= 16, gain, torch.nan)


def _finite_mean(losses: Tensor, counted: Tensor) -> Tensor:
    counted = counted & losses.isfinite()
    return torch.where(counted, losses, 0.0).sum() / counted.sum()


def _given(**arguments: Tensor | None) -> str:
    return ", ".join(
        f"{name}={None if value is None else tuple(value.shape)}" for name, value in arguments.items()
    )
