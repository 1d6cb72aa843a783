"""Log-probabilities of labels as an operator of torch, so that compiled code and autograd take it whole.

As a plain autograd.Function it would break a compiled graph: it looks at labels and starts threads. The
backward pass is a second operator for the same reason.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce.tokens._log_prob_rows import (
    RowLogProb,
    gradient_of_one_label,
    logits_gradient,
    row_log_prob,
)
from lightning_pce.tokens._operators import operator
from lightning_pce.tokens.kernels import read_rows
from lightning_pce.tokens.labels import check_logits_and_labels, targets


def _scored_labels(
    logits: Tensor, labels: Tensor, ignore_index: int, shift: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probability and logsumexp of each label, which count, and what the gradient needs.

    Returns:
        log_prob and logsumexp ``[...]`` float64 (float32 on MPS), 0 where a label does not count; valid
        ``[...]`` bool; of each row the largest probability ``[N]`` and the target ``[N]`` int64 or -100.
    """
    check_logits_and_labels(logits, labels)  # in compiled code nobody has
    found = targets(labels, logits.shape[-1], ignore_index=ignore_index, shift=shift)
    target = found.labels.reshape(-1)
    rows = row_log_prob(read_rows(logits, target, everything=False))
    log_prob, logsumexp = (torch.where(found.valid, values.reshape(labels.shape), 0.0) for values in rows[:2])
    return log_prob, logsumexp, found.valid, rows.peak, target.clone()


def _fake_scored_labels(
    logits: Tensor, labels: Tensor, ignore_index: int, shift: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    count = labels.numel()
    return (
        logits.new_empty(labels.shape, dtype=exact),
        logits.new_empty(labels.shape, dtype=exact),
        logits.new_empty(labels.shape, dtype=torch.bool),
        logits.new_empty(count, dtype=exact),
        logits.new_empty(count, dtype=torch.int64),
    )


def _gradient_of_labels(
    logits: Tensor,
    log_prob: Tensor,
    logsumexp: Tensor,
    peak: Tensor,
    target: Tensor,
    by_log_prob: Tensor | None,
    by_logsumexp: Tensor | None,
) -> Tensor:
    """The gradient of the logits from those of log_prob and logsumexp ``[...]``, None for 0."""
    u, v = (None if by is None else by.reshape(-1) for by in (by_log_prob, by_logsumexp))
    rows = RowLogProb(log_prob.reshape(-1), logsumexp.reshape(-1), peak)
    return logits_gradient(logits, rows, gradient_of_one_label(rows.log_prob, target, u, v))


def _fake_gradient_of_labels(logits: Tensor, *_: Tensor | None) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    log_prob, logsumexp, valid, peak, target = output
    ctx.mark_non_differentiable(valid, peak, target)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], log_prob, logsumexp, peak, target)


def _backward(ctx: Any, *by: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    if by[0] is None and by[1] is None:
        return None, None, None, None
    return gradient_of_labels(*ctx.saved_tensors, by[0], by[1]), None, None, None


def _not_twice(ctx: Any, *by: Tensor | None) -> None:
    raise UserError(
        "The gradient of token_log_prob has no gradient of its own (create_graph=True, then backward): take "
        "-F.cross_entropy(logits, labels, reduction='none') for double backward."
    )


gradient_of_labels = operator(
    "token_log_prob_backward(Tensor logits, Tensor log_prob, Tensor logsumexp, Tensor peak, Tensor target,"
    " Tensor? by_log_prob, Tensor? by_logsumexp) -> Tensor",
    _gradient_of_labels,
    _fake_gradient_of_labels,
    _not_twice,
)
scored_labels = operator(
    "token_log_prob(Tensor logits, Tensor labels, int ignore_index, bool shift)"
    " -> (Tensor log_prob, Tensor logsumexp, Tensor valid, Tensor peak, Tensor target)",
    _scored_labels,
    _fake_scored_labels,
    _backward,
    _remember,
)
