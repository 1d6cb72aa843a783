"""Per-token statistics of next-token predictions: float32 values and which tokens count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce._compiling import not_compiled
from lightning_pce._threads import single_threaded
from lightning_pce.tokens._log_prob_operator import scored_labels
from lightning_pce.tokens.kernels import read_rows
from lightning_pce.tokens.kernels.row_sums import RowSums, totals
from lightning_pce.tokens.labels import (
    Logits,
    Targets,
    check_ignored,
    check_logits_and_labels,
    shifted,
    targets,
    vocabulary_of,
)

__all__ = ["STATISTICS", "TokenStatistics", "token_cross_entropy", "token_statistics"]

STATISTICS = ("ce", "entropy", "target_prob", "max_prob", "rank")
"""What is read of the logits; CE and entropy are in nats, ranks begin at 1."""
# What is made of these: the logits are read for the parts.
DERIVED = {
    "log_rank": ("rank",),
    "margin": ("target_prob", "max_prob"),
    "accuracy": ("rank",),
    "top5_accuracy": ("rank",),
}
TOP_K = {"accuracy": 1, "top5_accuracy": 5}


class TokenStatistics(NamedTuple):
    """What :func:`token_statistics` returns: tensors shaped like the labels, None for what was not asked for.

    A token that does not count has 0 everywhere and rank V + 1. A row that is no distribution (a NaN or +inf
    among the logits, or -inf everywhere) has NaN everywhere and rank V + 1. So ``rank <= k`` is top-k
    correctness for every k up to V.

    Fields have the type of a tensor also where they are None: a type cannot follow what was asked for.
    """

    ce: Tensor
    """float32, the cross-entropy in nats; inf where the target's logit is -inf."""
    entropy: Tensor
    """float32, of the predicted distribution, in nats."""
    target_prob: Tensor
    """float32, the probability of the target."""
    max_prob: Tensor
    """float32, the largest probability."""
    rank: Tensor
    """int64, 1-based position of the target in a stable descending sort: of equal logits the first leads."""
    valid: Tensor
    """bool, which tokens count."""
    invalid: Tensor
    """bool, where a label was outside the vocabulary (on an accelerator; on a CPU that is an error)."""

    @property
    def margin(self) -> Tensor:
        """``max_prob - target_prob``, 0 where the target leads; None unless both were asked for."""
        return _of_parts(lambda: self.max_prob - self.target_prob, self.max_prob, self.target_prob)

    @property
    def log_rank(self) -> Tensor:
        """The logarithm of the rank, float32, in nats; None unless the rank was asked for."""
        return _of_parts(lambda: self.rank.float().log(), self.rank)


def _of_parts(make: Callable[[], Tensor], *parts: Tensor | None) -> Tensor:
    return cast(Tensor, None if any(part is None for part in parts) else make())


@not_compiled
@plain_tensors
def token_statistics(
    logits: Logits,
    labels: Tensor,
    *,
    statistics: Sequence[str] = STATISTICS,
    ignore_index: int | None = -100,
    shift: bool = False,
    backend: str = "auto",
) -> TokenStatistics:
    """Cross-entropy, entropy, probabilities and rank of every token from one pass over the logits.

    The logits are neither modified nor copied whole, whatever their strides: beyond them and the results at
    most 16 MiB and 130 bytes a token are used. Nothing is differentiable; for a loss to train on see
    :func:`token_cross_entropy`.
    Cross-entropies are within 1e-6 of their value from 1e-20 to 1e4 nats (2e-6 if hundreds of thousands of
    logits are equal to the last bit), ranks are exact. Asking for probabilities costs no more than the
    cross-entropy; entropy and rank cost as much again, compiled less.

    Args:
        logits: ``[..., V]`` float32, bfloat16, float16 or float64, or a list of chunks ``[..., t, V]`` of
            that along the sequence, which are not joined.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        statistics: which of ``"ce"``, ``"entropy"``, ``"target_prob"``, ``"max_prob"`` and ``"rank"``.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1,
            and the last position does not count.
        backend: ``"eager"`` runs on every device. ``"compile"`` of all is twice as fast on a CPU once
            torch.compile has compiled it, which takes seconds, up to half a minute the first time, and a C++
            compiler; where it does not work it warns and is eager. ``"triton"`` is for CUDA and not for
            float64. ``"auto"`` is triton on CUDA where it can be and eager elsewhere.

    Returns:
        A :class:`TokenStatistics`.

    Raises:
        ValueError: if shapes, dtypes or names do not fit, the vocabulary is sharded (a DTensor), the backend
            cannot read these logits or, on a CPU, a label is outside the vocabulary.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
        >>> stats = token_statistics(logits, torch.tensor([0, 2, -100]), statistics=("ce", "rank"))
        >>> stats.ce
        tensor([0.2395, 1.0986, 0.0000])
        >>> stats.rank
        tensor([1, 3, 4])
        >>> stats.valid
        tensor([ True,  True, False])
    """
    check_statistics(statistics)
    check_logits_and_labels(logits, labels)
    check_ignored("token_statistics", labels, ignore_index)
    target = targets(labels, vocabulary_of(logits), ignore_index=ignore_index, shift=shift)
    return statistics_of(logits, target, statistics, backend)


def statistics_of(
    logits: Logits, target: Targets, statistics: Sequence[str], backend: str = "auto"
) -> TokenStatistics:
    """:func:`token_statistics` of checked logits ``[..., V]`` and the targets that belong to them."""
    everything = "entropy" in statistics or "rank" in statistics
    found = []
    for rows, part in _along_sequence(logits, target):
        sums = read_rows(rows, part.labels.reshape(-1), everything, backend)
        found.append(finished(sums, statistics, part, rows.shape[-1]))
    return TokenStatistics(*(_together(values) for values in zip(*found, strict=True)))


def _along_sequence(logits: Logits, target: Targets) -> Iterable[tuple[Tensor, Targets]]:
    """Logits and their targets; of chunks ``[..., t, V]`` each with its own ``[..., t]``."""
    if isinstance(logits, Tensor):
        return [(logits, target)]
    lengths = [chunk.shape[-2] for chunk in logits]
    parts = zip(*(torch.split(values, lengths, dim=-1) for values in target), strict=True)
    return zip(logits, (Targets(*part) for part in parts), strict=True)


def _together(parts: Sequence[Tensor | None]) -> Any:
    """What was found of each chunk ``[..., t]`` as that of all ``[..., T]``."""
    some = [part for part in parts if part is not None]
    return torch.cat(some, dim=-1) if len(some) > 1 else next(iter(some), None)


@single_threaded()  # these are many small operations
def finished(sums: RowSums, statistics: Sequence[str], target: Targets, vocabulary: int) -> TokenStatistics:
    """The statistics asked for of tokens ``[...]``, from the sums over their rows ``[N]``."""
    proper, _, lag, behind, rest, log_total = known = totals(sums)
    scale, share = lag.exp(), (-behind).exp()
    total = rest + share

    def shaped(name: str, value: Tensor | None, improper: float, missing: float) -> Any:
        if name not in statistics or value is None:
            return None
        value = torch.where(proper, value, improper)
        value = value if name == "rank" else value.float()
        return value.reshape(target.valid.shape).masked_fill(~target.valid, missing)

    entropy = rank = None
    if sums.dot is not None:
        spread = scale * sums.dot.to(scale.dtype) + torch.where(scale > 0, lag, 0.0) * rest
        spread = spread - torch.where(share > 0, behind, 0.0) * share
        entropy = (log_total - spread / total).clamp(min=0.0)
    if sums.ahead is not None:
        rank = sums.ahead.long() + 1
    return TokenStatistics(
        shaped("ce", known.ce, torch.nan, 0.0),
        shaped("entropy", entropy, torch.nan, 0.0),
        shaped("target_prob", share / total, torch.nan, 0.0),
        shaped("max_prob", 1 / total, torch.nan, 0.0),
        shaped("rank", rank, vocabulary + 1, vocabulary + 1),
        target.valid,
        target.invalid,
    )


def scored(logits: Logits, target: Targets, statistics: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The cross-entropy, with a graph if one is recorded, and other statistics, by as few reads as can be.

    Args:
        logits: ``[..., V]``, or chunks of it.
        target: of their tokens.
        statistics: ``"ce"`` and others of :data:`STATISTICS` and :data:`DERIVED`.

    Returns:
        ``[...]`` float32 in nats, and by name what the others are, ``[...]`` float32: NaN where the
        cross-entropy is; an accuracy is 1 where the target is among the first k and 0 elsewhere.
    """
    others = [name for name in statistics if name != "ce"]
    parts = {part for name in others for part in DERIVED.get(name, (name,))}
    if torch.is_grad_enabled() and _requires_grad(logits):
        ce = differentiable_cross_entropy(logits, target)
        found = statistics_of(logits, target, tuple(parts)) if parts else None
    else:
        found = statistics_of(logits, target, ("ce", *parts))
        ce = found.ce
    if found is None:
        return ce, {}
    # The rank of a token whose logits are NaN is none.
    lost, vocabulary = ce.detach().isnan(), vocabulary_of(logits)
    values = {name: _value(name, found, vocabulary).masked_fill(lost, torch.nan) for name in others}
    return ce, values


def _requires_grad(logits: Logits) -> bool:
    return any(chunk.requires_grad for chunk in ([logits] if isinstance(logits, Tensor) else logits))


def _value(name: str, found: TokenStatistics, vocabulary: int) -> Tensor:
    """One statistic as float32, of those that hold its parts."""
    if name in TOP_K:
        return (found.rank <= min(TOP_K[name], vocabulary)).float()  # rank V + 1 is none
    value: Tensor = getattr(found, name)
    return value.float()


def gain_by_shift(logits: Logits, target: Targets, ce: Tensor) -> Tensor | None:
    """By how many nats the mean of the first sequences falls if they are scored one position further on.

    Args:
        logits: ``[..., T, V]``, or chunks of it.
        target: of their tokens, not shifted.
        ce: their cross-entropies ``[..., T]``.

    Returns:
        0-d, NaN if too few tokens count for a judgement; None if the sequences are too short for one.
    """
    shape = target.labels.shape
    if len(shape) < 1 or shape[-1] < 8 or shape[:-1].numel() == 0:
        return None
    few = slice(0, 4)
    chunks = [logits] if isinstance(logits, Tensor) else logits
    chunks = [
        chunk.detach().flatten(0, -3)[few] if chunk.ndim > 2 else chunk.detach()[None] for chunk in chunks
    ]
    ce, labels = (part.detach().reshape(-1, shape[-1])[few] for part in (ce, target.labels))
    later = shifted(labels, -100)
    with torch.no_grad():
        other, _ = scored(chunks, Targets(later, later >= 0, later < -100), ("ce",))
    gain = _finite_mean(ce, labels >= 0) - _finite_mean(other, later >= 0)
    return torch.where((later >= 0).sum() >= 16, gain, torch.nan)


def _finite_mean(losses: Tensor, counted: Tensor) -> Tensor:
    counted = counted & losses.isfinite()
    return torch.where(counted, losses, 0.0).sum() / counted.sum()


@plain_tensors
def token_cross_entropy(
    logits: Logits, labels: Tensor, *, ignore_index: int | None = -100, shift: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of every token, in nats.

    Differentiable where gradients are recorded and ``logits`` require them, as
    :func:`lightning_pce.tokens.log_prob.token_log_prob` is. The logits are read in chunks and never copied
    whole.

    Args:
        logits: ``[..., V]`` float32, bfloat16, float16 or float64, or a list of chunks ``[..., t, V]`` of
            that along the sequence, which are not joined.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1,
            and the last position does not count.

    Returns:
        losses ``[...]`` float32, 0 where a token does not count; valid ``[...]`` bool, true where it does;
        and invalid ``[...]`` bool, true where a label was outside the vocabulary (on an accelerator only,
        where looking would make the host wait; on a CPU that is an error).

    Raises:
        ValueError: if shapes or dtypes do not fit, or on a CPU a label is outside the vocabulary.

    Example:
        >>> losses, valid, _ = token_cross_entropy(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
        >>> losses
        tensor([[1.3863, 0.0000, 1.3863]])
        >>> valid
        tensor([[ True, False,  True]])
    """
    check_logits_and_labels(logits, labels)
    target = targets(labels, vocabulary_of(logits), ignore_index=ignore_index, shift=shift)
    losses, _ = scored(logits, target, ("ce",))
    return losses, target.valid, target.invalid


def differentiable_cross_entropy(logits: Logits, target: Targets) -> Tensor:
    """The cross-entropy of every token, ``[...]`` float32 nats with a graph, 0 where one does not count."""
    losses = []
    for chunk, part in _along_sequence(logits, target):
        log_prob, *_ = scored_labels(chunk, part.labels, -100, False)
        losses.append((0.0 - log_prob).float())  # minus 0 would be -0
    return cast(Tensor, _together(losses))


def check_statistics(statistics: Sequence[str]) -> None:
    """Raise a ``ValueError`` with what was seen if these are no names of statistics."""
    if isinstance(statistics, str) or not all(name in STATISTICS for name in statistics):
        raise ValueError(
            f"Expected argument `statistics` to hold names among {', '.join(STATISTICS)} but got "
            f"{statistics!r}."
        )
