"""Distillation from a teacher's K most probable tokens, or from its whole distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce._errors import UserError
from lightning_pce.objectives._objective import Normalizer, divided_sum
from lightning_pce.objectives._teacher import (
    counted_targets,
    divergence_of,
    probabilities,
    remainder_of,
    teacher_shares,
)
from lightning_pce.tokens._divergence_operator import scored_divergence
from lightning_pce.tokens._operators import refuse_transformed
from lightning_pce.tokens._topk_operator import scored_topk
from lightning_pce.tokens._topk_slots import check_topk
from lightning_pce.tokens.labels import check_ignored, check_logits_and_labels
from lightning_pce.tokens.log_prob import TokenLogProb
from lightning_pce.tokens.topk_log_prob import check_temperature

_INSTEAD = "F.kl_div of F.log_softmax(logits, -1)"
RESTS = ("renormalise", "bucket", "drop")


class StoredTopK(NamedTuple):
    """A teacher's K most probable tokens, 6 bytes each; what :func:`topk_distillation` takes."""

    token_ids: Tensor
    """``[..., K]`` int32, the most probable first; of equal logits any."""
    log_prob: Tensor
    """``[..., K]`` float16, in nats, of the teacher's whole distribution."""


class TeacherRest(NamedTuple):
    """What :func:`teacher_rest` returns."""

    rest: Tensor
    """``[...]`` float64 (float32 on MPS), the probability of all tokens but the K."""
    negative: Tensor
    """0-d int64, at how many tokens it would have been below 0 and was made 0."""


def store_topk(logits: Tensor, k: int, *, temperature: float = 1.0) -> StoredTopK:
    """The K most probable tokens of each position, to be stored: 6 bytes x K a token.

    Args:
        logits: the teacher's, ``[..., V]``; read in chunks, without a copy and without a graph.
        k: how many, from 1 to V.
        temperature: what the logits are divided by: that of the distillation.

    Returns:
        A :class:`StoredTopK`.

    Raises:
        ValueError: if ``k``, the temperature or the logits are impossible.

    Example:
        >>> stored = store_topk(torch.tensor([[2.0, 0.0, 1.0, 0.0]]), 2)
        >>> stored.token_ids
        tensor([[0, 2]], dtype=torch.int32)
        >>> stored.log_prob
        tensor([[-0.4939, -1.4941]], dtype=torch.float16)
    """
    index, log_prob, _ = _most_probable(logits, k, temperature)
    return StoredTopK(index.int(), log_prob.half())


def teacher_rest(log_prob: Tensor, valid: Tensor | None = None) -> TeacherRest:
    """The probability that a teacher gives to all tokens but the K of ``log_prob``.

    Stored precision may make it negative where the K are nearly certain: it is 0 there, and counted.

    Args:
        log_prob: ``[..., K]`` floating point, of the teacher, in nats.
        valid: optionally ``[..., K]`` bool, which of them there are: ``index >= 0``.

    Returns:
        A :class:`TeacherRest`.

    Example:
        >>> teacher_rest(torch.tensor([[0.5, 0.25], [0.75, 0.5]], dtype=torch.float64).log())
        TeacherRest(rest=tensor([0.2500, 0.0000], dtype=torch.float64), negative=tensor(1))
    """
    valid = torch.ones_like(log_prob, dtype=torch.bool) if valid is None else valid
    return TeacherRest(*remainder_of(probabilities(log_prob.detach(), valid), valid))


def topk_distillation(
    logits: Tensor,
    teacher_index: Tensor,
    teacher_log_prob: Tensor,
    *,
    temperature: float = 1.0,
    rest: str = "renormalise",
    labels: Tensor | None = None,
    nll_weight: float = 0.0,
    mask: Tensor | None = None,
    ignore_index: int | None = -100,
    shift: bool = False,
    weights: Tensor | None = None,
    normalizer: Normalizer = None,
) -> Tensor:
    """The forward KL divergence from a teacher of which K tokens are known, in nats.

    With q the teacher's and p the student's probabilities, each of its whole vocabulary, at one token:

    * ``rest="renormalise"``: sum over the K of r log(r / p), r = q / sum of q. The student is asked to give
      everything to the K; the smaller K, the more of its losses are very small or very large.
    * ``rest="bucket"``: sum of q log(q / p), and the same of all other tokens as one. The student's share of
      these comes from the logits outside the K, not from a difference.
    * ``rest="drop"``: sum of q log(q / p) alone, which may be negative.

    The logits are read in chunks, once in the forward and once in the backward pass, the NLL included
    (with a temperature and an NLL: twice in the forward pass). Beside their gradient at most 16 MiB and about
    100 bytes for each of the K are used.

    Args:
        logits: the student's, ``[..., V]`` float32, bfloat16, float16 or float64.
        teacher_index: ``[..., K]`` integers, different token ids in ``[0, V)``, -1 where there are fewer.
            They stand where the logits do: the teacher's distribution of the *next* token.
        teacher_log_prob: ``[..., K]`` floating point, of the teacher's whole distribution at this
            temperature, as ``store_topk(logits, k, temperature=...)`` gives it; anything where the index is
            -1. It gets no gradient.
        temperature: what the student's logits are divided by. The loss is not multiplied by its square.
        rest: what becomes of all other tokens.
        labels: optionally ``[...]`` integers: tokens whose label is ``ignore_index`` do not count.
        nll_weight: the negative log-likelihood of the labels, at temperature 1, is added times this.
        mask: optionally ``[...]`` bool, true where a token counts. A token without a teacher never does.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1.
        weights: optionally ``[...]`` numbers >= 0 that the tokens' losses are multiplied by.
        normalizer: what the sum over tokens is divided by. Left out: the tokens that count in this batch.

    Returns:
        0-d float32 (float64 for float64 logits). If no token counts 0, with a gradient of zeros.

    Raises:
        ValueError: if shapes, dtypes or names do not fit; or on a CPU if an index is outside the vocabulary
            or twice at one token, or the teacher's K probabilities add up to more than 1.1.

    Example:
        >>> teacher = store_topk(torch.tensor([[[2.0, 1.0, 0.0, 0.0]]]), 2)
        >>> student = torch.zeros(1, 1, 4, requires_grad=True)
        >>> loss = topk_distillation(student, *teacher, rest="bucket")
        >>> loss.backward()
        >>> student.grad.sum(-1).abs().max() < 1e-6
        tensor(True)
    """
    _check_arguments(temperature, rest, labels, nll_weight)
    if not torch.compiler.is_compiling():  # what is compiled is checked in the operators
        refuse_transformed("topk_distillation", _INSTEAD, logits, teacher_log_prob)
        logits, teacher_index, teacher_log_prob, labels = _checked(
            logits, teacher_index, teacher_log_prob, labels
        )
        check_ignored("topk_distillation", labels, ignore_index)
    index = teacher_index.long()
    counted, target, ignored = counted_targets(labels, mask, index[..., 0], ignore_index, shift)
    index = torch.where(counted[..., None], index, -1)
    read = target if nll_weight else None
    log_prob, log_rest, _, label_log_prob, valid, found, *_ = scored_topk(
        logits, index, read, float(temperature), ignored, False
    )
    shares, remainder = teacher_shares(teacher_log_prob.detach(), valid, rest)
    counted = valid.any(-1) if read is None else valid.any(-1) & (found >= 0)
    if index.shape[-1] == logits.shape[-1]:  # there is no rest but rounding
        remainder = torch.where(valid.all(-1), 0.0, remainder)
    losses = divergence_of(shares, remainder, log_prob, log_rest) - nll_weight * label_log_prob
    return _divided(losses, counted, weights, normalizer, logits)


def distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    k: int | None = None,
    temperature: float = 1.0,
    rest: str = "renormalise",
    labels: Tensor | None = None,
    nll_weight: float = 0.0,
    mask: Tensor | None = None,
    ignore_index: int | None = -100,
    shift: bool = False,
    weights: Tensor | None = None,
    normalizer: Normalizer = None,
) -> Tensor:
    """The forward KL divergence from a teacher's logits, in nats: of all tokens, or of its K most probable.

    Neither softmax is ever made whole: beside the gradient of the student's logits at most 16 MiB and 100
    bytes a token are used. The teacher's logits get no gradient.

    Args:
        logits: the student's, ``[..., V]`` float32, bfloat16, float16 or float64.
        teacher_logits: ``[..., V]``, of any of these dtypes.
        k: None for the whole distribution; else as :func:`topk_distillation` from the K most probable.
        temperature: what both logits are divided by. The loss is not multiplied by its square.
        rest: what becomes of all but the K; see there, as for the others.
        labels: optionally ``[...]`` integers: tokens whose label is ``ignore_index`` do not count.
        nll_weight: the negative log-likelihood of the labels, at temperature 1, is added times this.
        mask: optionally ``[...]`` bool, true where a token counts.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1.
        weights: optionally ``[...]`` numbers >= 0 that the tokens' losses are multiplied by.
        normalizer: what the sum over tokens is divided by. Left out: the tokens that count in this batch.

    Returns:
        0-d float32 (float64 for float64 logits). If no token counts 0, with a gradient of zeros.

    Raises:
        ValueError: if shapes, dtypes or names do not fit, such as vocabularies of two sizes.

    Example:
        >>> teacher, student = torch.tensor([[2.0, 1.0, 0.0]]), torch.zeros(1, 3, requires_grad=True)
        >>> distillation(student, teacher)
        tensor(0.2662, grad_fn=<ToCopyBackward0>)
    """
    _check_arguments(temperature, rest, labels, nll_weight)
    if not torch.compiler.is_compiling():  # what is compiled is checked in the operators
        refuse_transformed("distillation", _INSTEAD, logits, teacher_logits)
        logits, teacher_logits, labels = _checked_pair(logits, teacher_logits, labels)
        check_ignored("distillation", labels, ignore_index)
    settings = (ignore_index, shift)
    counted, target, ignored = counted_targets(labels, mask, logits[..., 0], *settings)
    read = target if nll_weight else None
    if k is None:
        losses, label_log_prob, found, *_ = scored_divergence(
            logits, teacher_logits.detach(), counted, read, float(temperature), ignored, False
        )
    else:
        index, teacher, log_rest_of_teacher = _most_probable(teacher_logits, k, temperature)
        index = torch.where(counted[..., None], index, -1)
        log_prob, log_rest, _, label_log_prob, valid, found, *_ = scored_topk(
            logits, index, read, float(temperature), ignored, False
        )
        shares, remainder = teacher_shares(teacher, valid, rest)
        if rest == "bucket":  # from the logits, not from a difference
            remainder = torch.where(counted, log_rest_of_teacher.exp(), 0.0)
        losses = divergence_of(shares, remainder, log_prob, log_rest)
    counted = counted if read is None else counted & (found >= 0)
    losses = losses - nll_weight * label_log_prob
    return _divided(losses, counted, weights, normalizer, logits)


def _most_probable(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and log-probabilities ``[..., K]`` and the log-probability of the rest ``[...]``, exact."""
    vocabulary = logits.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= vocabulary:
        raise UserError(
            f"Expected argument `k` to be a whole number from 1 to {vocabulary}, the vocabulary, but got "
            f"{k!r}."
        )
    check_temperature(temperature)
    with torch.no_grad():
        index = logits.topk(k, dim=-1).indices
        log_prob, log_rest, *_ = scored_topk(logits.detach(), index, None, float(temperature), -100, False)
    return index, log_prob, log_rest


def _divided(
    losses: Tensor, counted: Tensor, weights: Tensor | None, normalizer: Normalizer, logits: Tensor
) -> Tensor:
    """As the other objectives divide, in whose terms these are."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scored = TokenLogProb(losses.to(dtype), losses, counted)
    return divided_sum(losses, counted, weights, normalizer, scored)


def _check_arguments(temperature: float, rest: str, labels: Tensor | None, nll_weight: float) -> None:
    check_temperature(temperature)
    if rest not in RESTS:
        raise UserError(f"Expected argument `rest` to be one of {', '.join(RESTS)} but got {rest!r}.")
    if not 0 <= nll_weight < float("inf"):
        raise UserError(f"Expected argument `nll_weight` to be a number from 0 but got {nll_weight!r}.")
    if nll_weight and labels is None:
        raise UserError(f"Expected argument `labels` for nll_weight={nll_weight!r}: the NLL is theirs.")


@plain_tensors
def _checked(
    logits: Tensor, teacher_index: Tensor, teacher_log_prob: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    check_topk("teacher_index", logits, teacher_index)
    is_number = isinstance(teacher_log_prob, Tensor) and teacher_log_prob.is_floating_point()
    if not is_number or teacher_log_prob.shape != teacher_index.shape:
        what = (
            f"{teacher_log_prob.dtype} {tuple(teacher_log_prob.shape)}"
            if isinstance(teacher_log_prob, Tensor)
            else type(teacher_log_prob).__name__
        )
        raise UserError(
            "Expected argument `teacher_log_prob` to be floating point in the shape of `teacher_index`, "
            f"{tuple(teacher_index.shape)}, but got {what}."
        )
    if labels is not None:
        check_logits_and_labels(logits, labels)
    return logits, teacher_index, teacher_log_prob, labels


@plain_tensors
def _checked_pair(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    check_logits_and_labels(logits, _none_of(logits) if labels is None else labels)
    check_logits_and_labels(teacher_logits, _none_of(teacher_logits))
    if logits.shape != teacher_logits.shape or logits.device != teacher_logits.device:
        raise UserError(
            "Expected argument `teacher_logits` to have the shape and device of `logits`, "
            f"{tuple(logits.shape)} on {logits.device}, but got {tuple(teacher_logits.shape)} on "
            f"{teacher_logits.device}. Of vocabularies padded to two sizes cut the longer one."
        )
    return logits, teacher_logits, labels


def _none_of(logits: Tensor) -> Tensor:
    """Labels in the shape that fits, if these are logits at all."""
    whole = isinstance(logits, Tensor)
    return torch.empty(
        logits.shape[:-1] if whole else 0, dtype=torch.long, device=logits.device if whole else None
    )
