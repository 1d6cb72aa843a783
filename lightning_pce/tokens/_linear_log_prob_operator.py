"""Log-probabilities from hidden states as operators of torch, see :mod:`._log_prob_operator`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce.tokens._linear_log_prob_rows import Layer, gradients_from_hidden, rows_from_hidden
from lightning_pce.tokens._log_prob_rows import RowLogProb, gradient_of_one_label
from lightning_pce.tokens.from_hidden_states import check_weights
from lightning_pce.tokens.labels import check_logits_and_labels, targets


@torch.library.custom_op(
    "lightning_pce::linear_token_log_prob",
    mutates_args=(),
    schema="(Tensor hidden, Tensor head, Tensor? bias, Tensor labels, int ignore_index, bool shift,"
    " float scale, float? softcap, int max_logits_bytes)"
    " -> (Tensor log_prob, Tensor logsumexp, Tensor valid, Tensor peak, Tensor target)",
)
def scored_labels(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    shift: bool,
    scale: float,
    softcap: float | None,
    max_logits_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probability and logsumexp of each label, which count, and what the gradient needs.

    Returns:
        log_prob and logsumexp ``[...]`` float64 (float32 on MPS), 0 where a label does not count; valid
        ``[...]`` bool; of each row the largest probability ``[N]`` and the target ``[N]`` int64 or -100.
    """
    # In compiled code nobody has checked.
    check_weights(hidden, head, bias)
    # What the logits would look like.
    check_logits_and_labels(hidden.new_empty(()).expand(*hidden.shape[:-1], len(head)), labels)
    found = targets(labels, len(head), ignore_index=ignore_index, shift=shift)
    target = found.labels.reshape(-1)
    layer = Layer(head, bias, scale, softcap)
    rows = rows_from_hidden(hidden.reshape(-1, hidden.shape[-1]), layer, target, max_logits_bytes)
    log_prob, logsumexp = (values.reshape(labels.shape) for values in rows[:2])
    return log_prob, logsumexp, found.valid, rows.peak, target.clone()


@scored_labels.register_fake
def _(hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor, *_: Any) -> tuple[Tensor, ...]:
    exact = torch.float32 if hidden.device.type == "mps" else torch.float64
    count = labels.numel()
    return (
        hidden.new_empty(labels.shape, dtype=exact),
        hidden.new_empty(labels.shape, dtype=exact),
        hidden.new_empty(labels.shape, dtype=torch.bool),
        hidden.new_empty(count, dtype=exact),
        hidden.new_empty(count, dtype=torch.int64),
    )


@torch.library.custom_op(
    "lightning_pce::linear_token_log_prob_backward",
    mutates_args=(),
    schema="(Tensor hidden, Tensor head, Tensor? bias, Tensor log_prob, Tensor logsumexp, Tensor peak,"
    " Tensor target, Tensor? by_log_prob, Tensor? by_logsumexp, bool[] wanted, float scale, float? softcap,"
    " int max_logits_bytes) -> (Tensor of_hidden, Tensor of_head, Tensor of_bias)",
)
def gradient_of_labels(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    log_prob: Tensor,
    logsumexp: Tensor,
    peak: Tensor,
    target: Tensor,
    by_log_prob: Tensor | None,
    by_logsumexp: Tensor | None,
    wanted: list[bool],
    scale: float,
    softcap: float | None,
    max_logits_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden states, head and bias that are wanted, of shape [0] the others."""
    u, v = (None if by is None else by.reshape(-1) for by in (by_log_prob, by_logsumexp))
    rows = RowLogProb(log_prob.reshape(-1), logsumexp.reshape(-1), peak)
    by_hidden, by_head, by_bias = wanted
    of_hidden, of_head, of_bias = gradients_from_hidden(
        hidden.reshape(-1, hidden.shape[-1]),
        Layer(head, bias, scale, softcap),
        rows,
        gradient_of_one_label(rows.log_prob, target, u, v),
        (by_hidden, by_head, by_bias),
        max_logits_bytes,
    )
    return of_hidden.view(hidden.shape if by_hidden else 0), of_head, of_bias


@gradient_of_labels.register_fake
def _(hidden: Tensor, head: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    by_hidden, by_head, by_bias = others[6]
    return (
        torch.empty(hidden.shape if by_hidden else 0, dtype=hidden.dtype, device=hidden.device),
        torch.empty(head.shape if by_head else 0, dtype=head.dtype, device=head.device),
        torch.empty(head.shape[:1] if by_bias else 0, dtype=head.dtype, device=head.device),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, head, bias, _, _, _, *ctx.settings = inputs
    log_prob, logsumexp, valid, peak, target = output
    ctx.mark_non_differentiable(valid, peak, target)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, head, bias, log_prob, logsumexp, peak, target)


def _backward(ctx: Any, *by: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    if by[0] is None and by[1] is None:
        return (None,) * 9
    found = gradient_of_labels(*ctx.saved_tensors, by[0], by[1], wanted, *ctx.settings)
    return *(each if want else None for each, want in zip(found, wanted, strict=True)), *(None,) * 6


def _not_twice(ctx: Any, *by: Tensor | None) -> None:
    raise UserError(
        "The gradient of linear_token_log_prob has no gradient of its own (create_graph=True, then "
        "backward): take -F.cross_entropy(F.linear(hidden, head), labels, reduction='none') for that."
    )


scored_labels.register_autograd(_backward, setup_context=_remember)
gradient_of_labels.register_autograd(_not_twice)
