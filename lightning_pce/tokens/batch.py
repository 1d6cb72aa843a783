"""A batch scored once: logits or losses become what every metric takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_pce.tokens.labels import (
    NONE_IGNORED,
    GroupIds,
    Logits,
    Pairing,
    check_ids,
    check_logits_and_labels,
    checked_documents,
    checked_groups,
    checked_losses,
    checked_weights,
    documents_by_content,
    pair_losses,
    shifted,
    targets,
    vocabulary_of,
    weights_where,
)
from lightning_pce.tokens.statistics import TOP_K, gain_by_shift, scored

__all__ = ["ScoredTokens", "score_tokens"]


class ScoredTokens(NamedTuple):
    """The tokens of a batch, in tensors of one shape ``[...]``; weights and groups are the labels'."""

    ce: Tensor
    """float32, or float64 of losses that are, the cross-entropy in nats, with its graph if there is one."""
    weights: Tensor
    """bool or numbers >= 0: False or 0 where a token does not count."""
    groups: Tensor | None
    """int64, the number of each token's group."""
    invalid: Tensor | None
    """bool, tokens left out because of an impossible label; only on an accelerator."""
    statistics: Mapping[str, Tensor]
    """float32 values of other statistics by name, NaN where the cross-entropy is."""
    labels: Tensor | None
    """int64, the id of each token that counts, -100 elsewhere; None of losses whose labels are not known."""
    gain_by_shift: Tensor | None = None
    """0-d: by how many nats the mean of a few sequences falls if they are scored one position further on; NaN
    if too few tokens count for a judgement. None if it was not asked for, or the sequences are too short."""
    masked: bool = True
    """Whether labels or a mask said which tokens count; else all do."""
    documents: Tensor | None = None
    """int64, the id of each token's document; None unless it was asked for."""
    positions: Tensor | None = None
    """int64, where in its row of labels ``[..., T]`` the token's label stands; None where labels are."""

    def known_labels(self) -> Tensor:
        """The labels, or a ``ValueError`` if they are not known."""
        if self.labels is None:
            raise ValueError(
                "Expected argument `labels` with the token id of each loss, in the shape of the losses, "
                f"{tuple(self.ce.shape)}, or of one that a shift by one makes that."
            )
        return self.labels

    def mean(self) -> Tensor:
        """The weighted mean cross-entropy, 0-d in nats, differentiable, NaN if nothing counts."""
        share = self.weights.to(self.ce.dtype)
        # On an accelerator impossible weights are found later, and count for nothing.
        share = torch.where((share > 0) & (share < torch.inf), share, 0.0)
        return (torch.where(share > 0, self.ce, 0.0) * share).sum() / share.sum()


def score_tokens(
    logits: Logits | None = None,
    labels: Tensor | None = None,
    *,
    losses: Tensor | None = None,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    group: GroupIds | None = None,
    groups: tuple[str, ...] | None = None,
    document: GroupIds | None = None,
    by_document: bool = False,
    ignore_index: int | None = -100,
    shift: bool = False,
    statistics: Sequence[str] = ("ce",),
    judge_shift: bool = False,
) -> ScoredTokens:
    """Check, shift and score a batch, once.

    Args:
        logits: ``[..., V]`` float32, bfloat16, float16 or float64, or a list of chunks ``[..., t, V]`` of
            that along the sequence, with ``labels``.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        losses: ``[...]`` losses of tokens in nats, instead of logits.
        mask: bool shaped like ``losses``, true where a token counts. Left out: where ``labels`` are given
            and fit, perhaps after a shift by one, those that are not ignored; else all.
        weights: numbers >= 0 shaped like labels or losses; 0 leaves a token out. Like groups of tokens they
            belong to the labels, if these are given, and move with them.
        group: if there are groups, the number of each token's, of each sequence's or of all.
        groups: the names of the groups.
        document: an id of each token's document, of each sequence's or of all: any integers. Left out, each
            row of labels ``[..., T]`` is a document, known by a hash of the labels in it that count.
        by_document: whether documents are wanted.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs: position t is scored against label t + 1, and so are weights and
            groups of tokens. Beside ``losses`` it decides where these do not show which label is theirs.
        statistics: ``"ce"`` and others of :data:`lightning_pce.tokens.statistics.STATISTICS` and ``DERIVED``.
        judge_shift: also score a few sequences one position further on, to see whether labels seem unshifted.

    Returns:
        :class:`ScoredTokens` in the shape of the labels or losses; with ``shift=True`` the last position of a
        row of labels has no label and does not count.

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
        if logits is not None:
            raise ValueError(
                "Expected either `losses` or `logits` and `labels`, not both, but got "
                f"{_given(logits=logits, labels=labels, losses=losses)}."
            )
        _check_ce_alone(statistics)
        losses, _ = checked_losses(losses, mask)
        own = positions = None
        rows = None
        if by_document and document is None and labels is not None:
            rows = _rows_of_losses(losses, labels, ignore_index, shift)
        if labels is not None and mask is None:
            check_ids(labels)
            pairing = pair_losses(losses, labels, ignore_index=ignore_index, shift=shift)
            if pairing is not None:
                mask = pairing.mask
                own, positions = _beside_labels(labels, pairing, ignore_index)
                weights, group, document, rows = (
                    _beside_losses(each, labels, pairing) for each in (weights, group, document, rows)
                )
        documents = _documents(_if_fits(rows, losses, document), losses, by_document)
        found = _from_losses(losses, mask, weights, group, groups)
        return found._replace(documents=documents, labels=own, positions=positions)
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
    target = targets(labels, vocabulary_of(logits), ignore_index=ignore_index, shift=shift)
    if weights is not None and shift:
        weights = shifted(weights, 0)
    weights = weights_where(target.valid, weights)
    numbers = checked_groups(group, groups, labels, weights, shift=shift)
    if by_document and document is None:
        document = _rows(target.labels)
    documents = _documents(document, labels, by_document, shift=shift)
    ce, others = scored(logits, target, statistics)
    # On a CPU an impossible label has raised.
    invalid = None if labels.device.type == "cpu" else target.invalid
    gain = gain_by_shift(logits, target, ce) if judge_shift and not shift else None
    return ScoredTokens(
        ce,
        weights,
        numbers,
        invalid,
        others,
        target.labels,
        gain,
        documents=documents,
        positions=_positions(labels, int(shift)),
    )


def _from_losses(
    losses: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    group: GroupIds | None,
    groups: tuple[str, ...] | None,
) -> ScoredTokens:
    losses, counted = checked_losses(losses, mask)
    weights = weights_where(counted, checked_weights(weights, losses, "losses"))
    numbers = checked_groups(group, groups, losses, weights)
    ce = losses if losses.dtype == torch.float64 else losses.float()
    return ScoredTokens(ce, weights, numbers, None, {}, None, masked=mask is not None)


def _documents(
    document: GroupIds | None, like: Tensor, by_document: bool, *, shift: bool = False
) -> Tensor | None:
    """The id of each token's document, or a ``ValueError`` if they are wanted and cannot be known."""
    if document is not None and not by_document:
        raise ValueError("Expected no argument `document`: the metric was made without `error_bars`.")
    if not by_document:
        return None
    if document is None:
        raise ValueError(
            f"Expected argument `document` with an id of each token's document, {tuple(like.shape)}, or of "
            "each sequence's: any integers. It is needed where there are no labels [B, T], T > 1, "
            "whose rows could be taken for documents."
        )
    return checked_documents(document, like, shift=shift)


def _rows(labels: Tensor) -> Tensor | None:
    """Rows of targets ``[..., T]`` as documents, an id each; None of flat labels, and of single tokens."""
    return documents_by_content(labels) if labels.ndim > 1 and labels.shape[-1] > 1 else None


def _rows_of_losses(losses: Tensor, labels: Tensor, ignore_index: int | None, shift: bool) -> Tensor | None:
    """Rows of labels beside losses as documents: an id of each row, or of each label if losses are flat.

    The ids are those that the labels have beside logits.
    """
    check_ids(labels)
    ignored = labels == (NONE_IGNORED if ignore_index is None else ignore_index)
    target = torch.where(ignored, -100, labels.long()).to(losses.device)
    rows = losses.ndim == labels.ndim and losses.shape[:-1] == labels.shape[:-1]
    cut = rows and losses.shape[-1] == labels.shape[-1] - 1
    ids = _rows(shifted(target, -100) if labels.ndim and (shift or cut) else target)
    return ids if ids is None or rows else ids[..., None].expand(labels.shape)


def _if_fits(rows: Tensor | None, losses: Tensor, document: GroupIds | None) -> GroupIds | None:
    """Rows as documents, or else what was given: of losses that were filtered nobody knows the rows."""
    fits = rows is not None and rows.shape in (losses.shape, losses.shape[:-1])
    return rows if fits else document


def _positions(labels: Tensor, first: int = 0) -> Tensor:
    """Where in its row each label stands, int64 in the shape of the labels, counted from ``first``."""
    if labels.ndim == 0:
        return torch.full_like(labels, first, dtype=torch.int64)
    length = labels.shape[-1]
    return torch.arange(first, first + length, device=labels.device).expand(labels.shape)


def _beside_labels(labels: Tensor, pairing: Pairing, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """The labels of losses, -100 where none counts, and their positions, int64 in the shape of the losses."""
    labels = labels.to(pairing.mask.device).long().reshape(labels.shape or (1,))
    ignored = labels == (NONE_IGNORED if ignore_index is None else ignore_index)
    own = pairing.of_losses(torch.where(ignored, -100, labels))
    return torch.where(pairing.mask, own, -100), pairing.of_losses(_positions(labels))


def _beside_losses(given: Any, labels: Tensor, pairing: Pairing) -> Any:
    """Weights or groups as they belong to losses, if they were given in the shape of the labels."""
    if given is None or isinstance(given, int):
        return given
    try:
        values = torch.as_tensor(given, device=pairing.mask.device)
    except (TypeError, ValueError, RuntimeError):
        return given  # which is refused by its name
    if values.shape != labels.shape or (values.ndim == 0 and pairing.mask.ndim != 1):
        return given
    return pairing.of_losses(values.reshape(values.shape or (1,)))


def _check_ce_alone(statistics: Sequence[str]) -> None:
    others = [name for name in statistics if name != "ce"]
    if others:
        named = [name for name in others if name not in TOP_K] or others
        raise ValueError(
            f"Expected arguments `logits` and `labels`: {', '.join(named)} cannot be had from `losses`. "
            "Leave them out of `statistics`."
        )


def _given(**arguments: Logits | None) -> str:
    def shape(value: Logits | None) -> str:
        if value is None or isinstance(value, Tensor):
            return f"{None if value is None else tuple(value.shape)}"
        return f"[{', '.join(shape(each) for each in value)}]"

    return ", ".join(f"{name}={shape(value)}" for name, value in arguments.items())
