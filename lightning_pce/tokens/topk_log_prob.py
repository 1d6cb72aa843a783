"""Log-probabilities of K labels a token with a graph: what top-K distillation is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce._checks import plain_tensors
from lightning_pce._errors import UserError
from lightning_pce.tokens._operators import refuse_transformed
from lightning_pce.tokens._topk_operator import scored_topk
from lightning_pce.tokens._topk_slots import check_topk
from lightning_pce.tokens.labels import NONE_IGNORED, check_ignored, check_logits_and_labels

__all__ = ["TopKLogProb", "topk_log_prob"]


class TopKLogProb(NamedTuple):
    """What a model says of K labels a token; float32 (float64 for float64 logits), in nats, with a graph."""

    log_prob: Tensor
    """``[..., K]``, 0 and without a gradient where there is no label."""
    log_rest: Tensor
    """``[...]``, of all other tokens together, from their logits; -inf if there are none."""
    logsumexp: Tensor
    """``[...]``, of the logits / temperature."""
    label_log_prob: Tensor
    """``[...]``, of ``labels`` at temperature 1; 0 and without a gradient where one does not count."""
    valid: Tensor
    """``[..., K]`` bool, where there is a label."""


def topk_log_prob(
    logits: Tensor,
    index: Tensor,
    *,
    labels: Tensor | None = None,
    temperature: float = 1.0,
    ignore_index: int | None = -100,
    shift: bool = False,
) -> TopKLogProb:
    """Log-probabilities of K labels a token and of all other tokens together, for any loss made of these.

    Logits are read in chunks, once in the forward and once in the backward pass, whose gradient, in their
    dtype, is the only tensor of their size that is made: beside it at most 16 MiB are used and about 50 bytes
    for each of the K. Tokens without a label are not read, and their gradient is exactly 0. Works in
    ``torch.compile(fullgraph=True)``; there is no double backward.

    Args:
        logits: ``[..., V]`` float32, bfloat16, float16 or float64.
        index: ``[..., K]`` integers, different token ids in ``[0, V)``; negative where there are fewer.
        labels: optionally ``[...]`` integers, one label more of each token, read at temperature 1: for a mix
            with the negative log-likelihood. At any other temperature the forward pass reads twice.
        temperature: what the logits are divided by, above 0.
        ignore_index: the label of tokens that do not count; None: all do.
        shift: the labels are the inputs, as Hugging Face has them: position t is scored against label t + 1.
            ``index`` stands where the logits do.

    Returns:
        A :class:`TopKLogProb`.

    Raises:
        ValueError: if shapes or dtypes do not fit, the temperature is not above 0, or on a CPU an index is
            outside the vocabulary or twice at one token (on an accelerator such an index is none).

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0, 0.0]], requires_grad=True)
        >>> scored = topk_log_prob(logits, torch.tensor([[0, 1]]))
        >>> scored.log_prob.exp(), scored.log_rest.exp()
        (tensor([[0.6103, 0.2245]], grad_fn=<ExpBackward0>), tensor([0.1652], grad_fn=<ExpBackward0>))
    """
    if not torch.compiler.is_compiling():  # what is compiled is checked in the operator
        refuse_transformed("topk_log_prob", "F.log_softmax(logits, -1).gather(-1, index)", logits)
        logits, index, labels = _checked(logits, index, labels)
        check_ignored("topk_log_prob", labels, ignore_index)
    check_temperature(temperature)
    ignored = NONE_IGNORED if ignore_index is None else ignore_index
    found = scored_topk(logits, index.long(), labels, float(temperature), ignored, shift)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_prob, log_rest, logsumexp, label_log_prob = (values.to(dtype) for values in found[:4])
    return TopKLogProb(log_prob, log_rest, logsumexp, label_log_prob, found[4])


def check_temperature(temperature: float) -> None:
    """Raise a ``ValueError`` if it is no number above 0."""
    if isinstance(temperature, bool) or not 0 < temperature < float("inf"):
        raise UserError(f"Expected argument `temperature` to be a number above 0 but got {temperature!r}.")


@plain_tensors
def _checked(logits: Tensor, index: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    check_topk("index", logits, index)
    if labels is not None:
        check_logits_and_labels(logits, labels)
    # What the gradient needs must not be of inference mode, as a teacher's columns often are.
    return logits, index.clone() if index.is_inference() else index, labels
