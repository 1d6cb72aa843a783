"""The KL divergence from a teacher's whole distribution as an operator of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce.tokens._operators import operator
from lightning_pce.tokens._softmax_rows import (
    Softmax,
    Term,
    exact_dtype,
    gradient_of,
    read_divergence,
    read_softmax,
)
from lightning_pce.tokens._topk_operator import entries_of, items_of, term_where
from lightning_pce.tokens.labels import check_logits_and_labels, targets


def _scored_divergence(
    logits: Tensor,
    teacher: Tensor,
    wanted: Tensor,
    labels: Tensor | None,
    temperature: float,
    ignore_index: int,
    shift: bool,
) -> tuple[Tensor, ...]:
    """KL(teacher || student) of each token in nats, and the log-probability of its label at temperature 1.

    Args:
        logits: the student's, ``[..., V]``.
        teacher: its logits, ``[..., V]``.
        wanted: ``[...]`` bool; of other tokens the divergence is 0.
        labels: ``[...]`` integers, or None.
        temperature: what both logits are divided by, but for the labels.
        ignore_index: of the labels.
        shift: whether the labels are the inputs.

    Returns:
        divergence and label_log_prob ``[...]`` float64 (float32 on MPS); label ``[...]`` int64, negative for
        none; and what the gradient needs: log-probabilities ``[N, 2]`` of label and rest, largest
        probabilities ``[2, N]`` of the student at the temperature and of the rest, ``[N]`` of the teacher.
    """
    shape, flat = wanted.shape, wanted.reshape(-1)
    read = read_softmax(logits, flat, None, temperature)
    theirs, divergence = read_divergence(teacher, logits, flat, read.logsumexp, temperature)
    target, items, peak = wanted.new_empty(0, dtype=torch.int64), read.peak.new_empty(0), read.peak[None]
    label_log_prob = torch.zeros_like(divergence)
    if labels is not None:
        check_logits_and_labels(logits, labels)
        target = targets(labels, logits.shape[-1], ignore_index=ignore_index, shift=shift).labels
        label = target.reshape(-1)
        alone = read_softmax(logits, label >= 0, label.clamp(min=0)[:, None], 1.0)
        items, _ = items_of(alone, label[:, None] >= 0)
        label_log_prob = items[:, 0].clone()
        peak = torch.stack([read.peak, alone.peak])
    return (
        torch.where(flat, divergence, 0.0).reshape(shape),
        label_log_prob.reshape(shape),
        target,
        items,
        peak.clone(),
        theirs.peak,
    )


def _fake_scored_divergence(
    logits: Tensor,
    teacher: Tensor,
    wanted: Tensor,
    labels: Tensor | None,
    temperature: float,
    ignore_index: int,
    shift: bool,
) -> tuple[Tensor, ...]:
    shape, number, exact = wanted.shape, wanted.numel(), exact_dtype(logits.device)
    return (
        logits.new_empty(shape, dtype=exact),
        logits.new_empty(shape, dtype=exact),
        logits.new_empty(0 if labels is None else shape, dtype=torch.int64),
        logits.new_empty(0 if labels is None else (number, 2), dtype=exact),
        logits.new_empty((1 if labels is None else 2, number), dtype=exact),
        logits.new_empty(number, dtype=exact),
    )


def _gradient_of_divergence(
    logits: Tensor,
    teacher: Tensor,
    wanted: Tensor,
    label: Tensor | None,
    temperature: float,
    items: Tensor,
    peak: Tensor,
    teacher_peak: Tensor,
    by_divergence: Tensor | None,
    by_label: Tensor | None,
) -> Tensor:
    """The gradient of the logits, p - q and that of the label; None for 0."""
    number = wanted.numel()
    nothing = torch.zeros_like(teacher_peak)

    def upstream(by: Tensor | None, where: Tensor) -> Tensor:
        return nothing if by is None else torch.where(where, by.reshape(number).to(nothing.dtype), 0.0)

    by = upstream(by_divergence, wanted.reshape(number))
    used = by != 0
    terms = []
    for source, factor, largest in ((logits, by, peak[0]), (teacher, -by, teacher_peak)):
        # Tokens that were not wanted were not read.
        whole = Softmax(source, temperature, None, None, nothing, torch.where(used, largest, 1.0))
        terms.append(Term(whole, factor / temperature, None))
    if label is not None:
        label = label.reshape(number)
        both = torch.stack([upstream(by_label, label >= 0), nothing], -1)
        entry, factor = entries_of(items, both, nothing)
        alone = Softmax(logits, 1.0, label.clamp(min=0)[:, None], None, items[:, 1], peak[1])
        own = both[:, 0] != 0
        terms.append(term_where(own, Term(alone, factor, entry)))
        used = used | own
    return gradient_of(logits, used, terms)


def _fake_gradient_of_divergence(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, teacher, wanted, labels, ctx.temperature, _, _ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    # Not among the saved tensors, which must not be of inference mode, as a teacher's logits often are.
    ctx.teacher = teacher
    ctx.save_for_backward(logits, wanted, None if labels is None else output[2], *output[3:])


def _backward(ctx: Any, *by: Tensor | None) -> tuple[Tensor | None, ...]:
    found = None
    if by[0] is not None or by[1] is not None:
        logits, wanted, label, *kept = ctx.saved_tensors
        given = (logits, ctx.teacher, wanted, label, ctx.temperature)
        found = gradient_of_divergence(*given, *kept, by[0], by[1])
    return found, None, None, None, None, None, None


def _not_twice(ctx: Any, *by: Tensor | None) -> None:
    raise UserError(
        "The gradient of distillation has no gradient of its own (create_graph=True, then backward): take "
        "F.kl_div of log_softmax for double backward."
    )


scored_divergence: Any = operator(
    "divergence(Tensor logits, Tensor teacher, Tensor wanted, Tensor? labels, float "
    "temperature, int ignore_index, bool shift) -> (Tensor divergence, Tensor label_log_prob, "
    "Tensor label, Tensor items, Tensor peak, Tensor teacher_peak)",
    _scored_divergence,
    _fake_scored_divergence,
    _backward,
    _remember,
)

gradient_of_divergence: Any = operator(
    "divergence_backward(Tensor logits, Tensor teacher, Tensor wanted, Tensor? label, float "
    "temperature, Tensor items, Tensor peak, Tensor teacher_peak, Tensor? by_divergence, "
    "Tensor? by_label) -> Tensor",
    _gradient_of_divergence,
    _fake_gradient_of_divergence,
    _not_twice,
)
