"""Log-probabilities of K labels a token as an operator of torch; see :mod:`._log_prob_operator` for why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce._threads import single_threaded
from lightning_pce.tokens._operators import operator
from lightning_pce.tokens._softmax_rows import Softmax, Term, exact_dtype, gradient_of, read_softmax
from lightning_pce.tokens._topk_slots import check_topk, check_values, place_of, slots_of
from lightning_pce.tokens.labels import check_logits_and_labels, targets


def log_softmax_of(items: Tensor) -> tuple[Tensor, Tensor]:
    """Log-softmax of items ``[N, S]`` and their logsumexp ``[N]``; NaN where they are no distribution.

    The largest is left out of the sum: next to 1 - 1e-20 the rest would be lost.
    """
    best, place = items.max(-1, keepdim=True)
    others = (items - best).exp().scatter(-1, place, 0.0).sum(-1, keepdim=True)
    total = torch.where(best.isfinite(), others.log1p(), torch.nan)
    return items - best - total, (best + total)[:, 0]


def _scored_topk(
    logits: Tensor,
    index: Tensor,
    labels: Tensor | None,
    temperature: float,
    ignore_index: int,
    shift: bool,
) -> tuple[Tensor, ...]:
    """Log-probabilities of the labels, of all others together, and of a label at temperature 1.

    Args:
        logits: ``[..., V]``.
        index: ``[..., K]`` int64, negative for none.
        labels: ``[...]`` integers, or None.
        temperature: what logits are divided by, but for the labels.
        ignore_index: of the labels.
        shift: whether the labels are the inputs.

    Returns:
        float64 (float32 on MPS): log_prob ``[..., K]``, log_rest, logsumexp and label_log_prob ``[...]``, 0
        where there is no label; valid ``[..., K]``; label ``[...]`` int64, negative for none; and what the
        gradient needs: log-probabilities of all slots and the rest ``[N, S + 1]``, the largest probability
        in the rest ``[N]``, and both of the label alone if the temperature is not 1.
    """
    check_topk("index", logits, index)  # in compiled code nobody has
    vocabulary, shape = logits.shape[-1], index.shape[:-1]
    flat = index.reshape(shape.numel(), index.shape[-1])
    check_values(flat, vocabulary)
    target = index.new_empty(0)
    if labels is not None:
        check_logits_and_labels(logits, labels)
        target = targets(labels, vocabulary, ignore_index=ignore_index, shift=shift).labels
    label = None if labels is None else target.reshape(-1)
    together = temperature == 1.0
    slots = slots_of(flat, label if together else None, vocabulary)
    read = read_softmax(logits, slots.present.any(-1), slots.label, temperature)
    items, logsumexp = items_of(read, slots.present)
    count = flat.shape[-1]
    log_prob, log_rest, valid = items[:, :count], items[:, -1], slots.present[:, :count]
    label_items, label_peak = items.new_empty(0), items.new_empty(0)
    label_log_prob = items.new_zeros(len(flat))
    if label is not None and together:
        log_rest = torch.logaddexp(items[:, -2], log_rest)
        label_log_prob = items.gather(-1, place_of(label, flat)[:, None])[:, 0]
    elif label is not None:
        alone = read_softmax(logits, label >= 0, label.clamp(min=0)[:, None], 1.0)
        label_items, _ = items_of(alone, label[:, None] >= 0)
        label_log_prob, label_peak = label_items[:, 0], alone.peak
    if label is not None:
        label_log_prob = torch.where(label >= 0, label_log_prob, 0.0)
    some = valid.any(-1)
    return (
        torch.where(valid, log_prob, 0.0).reshape(index.shape),
        torch.where(some, log_rest, 0.0).reshape(shape),
        torch.where(some, logsumexp, 0.0).reshape(shape),
        label_log_prob.clone().reshape(shape),
        valid.clone().reshape(index.shape),
        target,
        items,
        read.peak,
        label_items,
        label_peak,
    )


@single_threaded()
def items_of(read: Softmax, present: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of labels and of the rest ``[N, S + 1]``, and the logsumexp ``[N]`` of all.

    A label that is not ``present`` ``[N, S]`` has -inf; a row without any has 0.
    """
    assert read.own is not None
    own = torch.where(present, read.own, -torch.inf)
    items, logsumexp = log_softmax_of(torch.cat([own, read.logsumexp[:, None]], -1))
    some = present.any(-1)
    return torch.where(some[:, None], items, 0.0), torch.where(some, logsumexp, 0.0)


def _fake_scored_topk(
    logits: Tensor,
    index: Tensor,
    labels: Tensor | None,
    temperature: float,
    ignore_index: int,
    shift: bool,
) -> tuple[Tensor, ...]:
    shape, exact = index.shape[:-1], exact_dtype(logits.device)
    number, slots = shape.numel(), index.shape[-1] + 1
    alone = labels is not None and temperature != 1.0
    slots += labels is not None and not alone

    def empty(*size: int) -> Tensor:
        return logits.new_empty(size, dtype=exact)

    return (
        empty(*index.shape),
        *(empty(*shape) for _ in range(3)),
        logits.new_empty(index.shape, dtype=torch.bool),
        logits.new_empty(0 if labels is None else shape, dtype=torch.int64),
        empty(number, slots),
        empty(number),
        empty(number, 2) if alone else empty(0),
        empty(number) if alone else empty(0),
    )


def _gradient_of_topk(
    logits: Tensor,
    index: Tensor,
    label: Tensor | None,
    temperature: float,
    items: Tensor,
    peak: Tensor,
    label_items: Tensor,
    label_peak: Tensor,
    by_log_prob: Tensor | None,
    by_log_rest: Tensor | None,
    by_logsumexp: Tensor | None,
    by_label: Tensor | None,
) -> Tensor:
    """The gradient of the logits from those of what :func:`scored_topk` returned; None for 0."""
    by = (by_log_prob, by_log_rest, by_logsumexp, by_label)
    kept = (items, peak, label_items, label_peak)
    return gradient_of(logits, *_terms(logits, index, label, temperature, kept, by))


@single_threaded()
def _terms(
    logits: Tensor,
    index: Tensor,
    label: Tensor | None,
    temperature: float,
    kept: tuple[Tensor, ...],
    by: tuple[Tensor | None, ...],
) -> tuple[Tensor, list[Term]]:
    """Which rows have a gradient ``[N]``, and of what it is the sum."""
    items, peak, label_items, label_peak = kept
    by_log_prob, by_log_rest, by_logsumexp, by_label = by
    count, number = index.shape[-1], items.shape[0]
    flat = index.reshape(number, count)
    label = None if label is None else label.reshape(-1)
    together = temperature == 1.0
    slots = slots_of(flat, label if together else None, logits.shape[-1])
    valid = slots.present[:, :count]
    some = valid.any(-1)

    def upstream(by: Tensor | None, where: Tensor) -> Tensor:
        zero = items.new_zeros(where.shape)
        return zero if by is None else torch.where(where, by.reshape(where.shape).to(items.dtype), zero)

    by_items = torch.zeros_like(items)
    by_items[:, :count] = upstream(by_log_prob, valid)
    rest = upstream(by_log_rest, some)
    if label is None or not together:
        by_items[:, -1] = rest
    else:
        # The rest of the K is the label, if it is not one of them, and all others.
        shares = items[:, -2:].softmax(-1)
        by_items[:, -2:] = torch.where(shares.isnan(), 0.0, shares) * rest[:, None]
        place = place_of(label, flat)[:, None]
        by_items.scatter_add_(-1, place, upstream(by_label, label >= 0)[:, None])
    whole = upstream(by_logsumexp, some)
    entry, factor = entries_of(items, by_items, whole)
    read = Softmax(logits, temperature, slots.label, None, items[:, -1], peak)
    terms = [Term(read, factor / temperature, entry.gather(-1, slots.source) / temperature)]
    used = (by_items != 0).any(-1) | (whole != 0)
    if label is not None and not together:
        by_both = torch.stack([upstream(by_label, label >= 0), torch.zeros_like(rest)], -1)
        entry, factor = entries_of(label_items, by_both, torch.zeros_like(rest))
        alone = Softmax(logits, 1.0, label.clamp(min=0)[:, None], None, label_items[:, -1], label_peak)
        own = by_both[:, 0] != 0
        # A row that has one of the two alone: what is not used may be NaN.
        terms[0] = term_where(used, terms[0])
        terms.append(term_where(own, Term(alone, factor, entry)))
        used = used | own
    return used, terms


@single_threaded()
def entries_of(items: Tensor, by_items: Tensor, by_logsumexp: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient at the slots ``[N, S]``, and what the softmax of the rest is multiplied by ``[N]``.

    d log p_i / dz_j = [i = j] - p_j, with 1 - p as -expm1(log p): from a rounded p it would be 0.
    """
    others = by_items.sum(-1, keepdim=True) - by_items - by_logsumexp[:, None]
    found = -by_items * items.expm1() - others * items.exp()
    return found[:, :-1], found[:, -1]


def term_where(used: Tensor, term: Term) -> Term:
    """A term that is 0 in rows without a gradient, which may not have been read."""
    assert term.entry is not None
    return Term(
        term.softmax._replace(peak=torch.where(used, term.softmax.peak, 1.0)),
        torch.where(used, term.factor, 0.0),
        torch.where(used[:, None], term.entry, 0.0),
    )


def _fake_gradient_of_topk(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, index, labels, ctx.temperature, _, _ = inputs
    ctx.mark_non_differentiable(*output[4:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, index, None if labels is None else output[5], *output[6:])


def _backward(ctx: Any, *by: Tensor | None) -> tuple[Tensor | None, ...]:
    found = None
    if any(each is not None for each in by[:4]):
        logits, index, label, *kept = ctx.saved_tensors
        found = gradient_of_topk(logits, index, label, ctx.temperature, *kept, *by[:4])
    return found, None, None, None, None, None


def _not_twice(ctx: Any, *by: Tensor | None) -> None:
    raise UserError(
        "The gradient of topk_log_prob has no gradient of its own (create_graph=True, then backward): take "
        "F.log_softmax(logits, -1).gather(-1, index) for double backward."
    )


scored_topk: Any = operator(
    "topk_log_prob(Tensor logits, Tensor index, Tensor? labels, float temperature, int "
    "ignore_index, bool shift) -> (Tensor log_prob, Tensor log_rest, Tensor logsumexp, Tensor "
    "label_log_prob, Tensor valid, Tensor label, Tensor items, Tensor peak, Tensor "
    "label_items, Tensor label_peak)",
    _scored_topk,
    _fake_scored_topk,
    _backward,
    _remember,
)

gradient_of_topk: Any = operator(
    "topk_log_prob_backward(Tensor logits, Tensor index, Tensor? label, float temperature, "
    "Tensor items, Tensor peak, Tensor label_items, Tensor label_peak, Tensor? by_log_prob, "
    "Tensor? by_log_rest, Tensor? by_logsumexp, Tensor? by_label) -> Tensor",
    _gradient_of_topk,
    _fake_gradient_of_topk,
    _not_twice,
)
