"""Log-probabilities of labels with a graph: what objectives are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce.tokens._log_prob_operator import scored_labels
from lightning_pce.tokens._operators import refuse_transformed
from lightning_pce.tokens.labels import (
    NONE_IGNORED,
    Logits,
    check_ignored,
    check_logits_and_labels,
    targets,
    vocabulary_of,
)

__all__ = ["TokenLogProb", "token_log_prob"]


class TokenLogProb(NamedTuple):
    """What a primitive says of each label, in the shape of the labels; the first two have a graph."""

    log_prob: Tensor
    """float32 (float64 for float64 logits), in nats; 0, without a gradient, where a token does not count; NaN
    where logits are no distribution; -inf where the label's logit is."""
    logsumexp: Tensor
    """The same type, of the token's logits; 0, without a gradient, where a token does not count."""
    valid: Tensor
    """bool, which tokens count."""


def token_log_prob(
    logits: Logits, labels: Tensor, *, ignore_index: int | None = -100, shift: bool = False
) -> TokenLogProb:
    """Log-probability of each label and the logsumexp of its logits, for any loss made of these.

    The logits are read in chunks, once in the forward and once in the backward pass. Their gradient, in their
    own dtype, is the only tensor of their size that is made: beside it at most 16 MiB are used and 50 bytes a
    token. They are never overwritten. Where log p is -1e-20 it is not rounded to 0, and neither is
    1 - p in the gradient at the label. Rows without a gradient (that do not count, or have weight 0, or lie
    below a threshold) get exactly 0 whatever is in them.

    Works in ``torch.compile(fullgraph=True)`` (not with a list of chunks), under autocast and gradient
    checkpointing. It has no double backward and does not go through torch.func: ``F.cross_entropy`` does.

    Args:
        logits: ``[..., V]`` float32, bfloat16, float16 or float64, or a list of chunks ``[..., t, V]`` of
            that along the sequence, which are not joined.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1,
            and the last position does not count.

    Returns:
        A :class:`TokenLogProb`, in the shape of the labels.

    Raises:
        ValueError: if shapes or dtypes do not fit, the vocabulary is sharded (a DTensor), on a CPU a label is
            outside the vocabulary (on an accelerator such a token does not count), or in a double backward.

    Example:
        >>> logits = torch.zeros(1, 3, 4, requires_grad=True)
        >>> scored = token_log_prob(logits, torch.tensor([[0, -100, 3]]))
        >>> scored.log_prob
        tensor([[-1.3863,  0.0000, -1.3863]], grad_fn=<ToCopyBackward0>)
        >>> (1 - scored.log_prob.exp())[scored.valid].mean().backward()
        >>> logits.grad[0, 0]
        tensor([-0.0938,  0.0312,  0.0312,  0.0312])
    """
    if not torch.compiler.is_compiling():  # what is compiled is checked in the operator
        given = [logits] if isinstance(logits, Tensor) else logits
        instead = "-F.cross_entropy(logits, labels, reduction='none')"
        refuse_transformed("token_log_prob", instead, *given, labels)
        logits, labels = _checked(logits, labels)
        check_ignored("token_log_prob", labels, ignore_index)
    ignored = NONE_IGNORED if ignore_index is None else ignore_index
    if isinstance(logits, Tensor):
        return _of_tensor(logits, labels, ignored, shift)
    target = targets(labels, vocabulary_of(logits), ignore_index=ignore_index, shift=shift).labels
    pieces = torch.split(target, [chunk.shape[-2] for chunk in logits], dim=-1)
    parts = [_of_tensor(chunk, piece, -100, False) for chunk, piece in zip(logits, pieces, strict=True)]
    return TokenLogProb(*(torch.cat(values, dim=-1) for values in zip(*parts, strict=True)))


def _of_tensor(logits: Tensor, labels: Tensor, ignore_index: int, shift: bool) -> TokenLogProb:
    log_prob, logsumexp, valid, _, _ = scored_labels(logits, labels, ignore_index, shift)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return TokenLogProb(log_prob.to(dtype), logsumexp.to(dtype), valid)


@plain_tensors
def _checked(logits: Logits, labels: Tensor) -> tuple[Logits, Tensor]:
    check_logits_and_labels(logits, labels)
    return logits, labels
