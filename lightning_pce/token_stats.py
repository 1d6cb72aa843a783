"""Per-token statistics of next-token predictions: float32 losses and which tokens count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows are scored in chunks of about this many logits. On a CPU their float32 copy (8 MiB) stays in the cache;
# smaller chunks are no faster and, with other work on the cores, many times slower. An accelerator wants
# fewer, larger calls.
_CPU_CHUNK, _ACCELERATOR_CHUNK = 1 << 21, 1 << 26


def token_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = -100, shift: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of every token, in nats.

    Differentiable where gradients are recorded and ``logits`` require them. Otherwise the logits are read in
    chunks and never copied whole.

    Args:
        logits: ``[..., V]`` float32, bfloat16, float16 or float64.
        labels: ``[...]`` integers in ``[0, V)`` or ``ignore_index``.
        ignore_index: the label of tokens that do not count.
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
    labels = labels.long()  # before ignore_index is compared: in uint8 -100 is 156
    if shift and labels.ndim == 0:
        raise ValueError(
            "Expected argument `labels` to have a sequence dimension for shift=True but got a 0-d tensor."
        )
    if shift:
        labels = torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], ignore_index)], dim=-1)
    counted, vocabulary = labels != ignore_index, logits.shape[-1]
    known = (labels >= 0) & (labels < vocabulary)
    invalid = counted & ~known
    if labels.device.type == "cpu" and bool(invalid.any()):
        raise ValueError(_outside(labels[invalid], vocabulary, ignore_index))
    valid = counted & known
    target = torch.where(valid, labels, -100).reshape(-1)
    rows = logits.reshape(-1, vocabulary)
    if torch.is_grad_enabled() and logits.requires_grad:
        losses = F.cross_entropy(rows.float(), target, reduction="none")
    else:
        losses = _in_chunks(rows.detach(), target)
    return losses.reshape(labels.shape), valid, invalid


def _in_chunks(rows: Tensor, target: Tensor) -> Tensor:
    """Losses ``[N]`` float32 of rows ``[N, V]`` and targets ``[N]``, -100 where a token does not count.

    The target is left out of the sum and enters in float64, so that losses keep a relative error near 1e-7
    from 1e-20 to 1e4. (float32 log-softmax is 3e-6 low on average over 49,152 logits, and 0 below 1e-7.)
    """
    vocabulary = rows.shape[-1]
    budget = _CPU_CHUNK if rows.device.type == "cpu" else _ACCELERATOR_CHUNK
    step = min(max(1, budget // max(1, vocabulary)), max(1, len(rows)))
    losses = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    scratch = torch.empty(step, vocabulary, dtype=torch.float32, device=rows.device)
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        index = target[piece].clamp(min=0)[:, None]
        x = scratch[: len(index)].copy_(rows[piece])
        top, own = x.amax(-1, keepdim=True), x.gather(-1, index).double()
        others = x.sub_(top).exp_().scatter_(-1, index, 0.0).sum(-1, keepdim=True).double()
        behind = top.double() - own
        loss = torch.where(behind == 0, others.log1p(), behind + (others + (-behind).exp()).log())
        losses[piece] = loss[:, 0].float()
    return losses.masked_fill_(target < 0, 0.0)


def check_logits_and_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise a ``ValueError`` with what was seen if logits ``[..., V]`` and labels ``[...]`` do not fit."""
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ValueError(f"Expected argument `{name}` to be a tensor but got {type(value).__name__}.")
    if not logits.is_floating_point():
        raise ValueError(
            f"Expected argument `logits` to be floating point scores [..., V] but got {logits.dtype} of "
            f"shape {tuple(logits.shape)}. Are these predicted token ids, or the labels?"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"Expected argument `labels` to hold integer token ids but got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            "Expected argument `labels` to have the shape of the logits without their last dimension, "
            f"{tuple(logits.shape[:-1])}, but got labels {tuple(labels.shape)} for logits "
            f"{tuple(logits.shape)}."
            + (
                " Pass logits[..., :-1, :] and labels[..., 1:], or shift=True."
                if _off_by_one(logits, labels)
                else ""
            )
        )
    if logits.shape[-1] == 0:
        raise ValueError(
            f"Expected argument `logits` to have a vocabulary but got shape {tuple(logits.shape)}."
        )


def _off_by_one(logits: Tensor, labels: Tensor) -> bool:
    return logits.ndim == labels.ndim + 1 and abs(logits.shape[-2] - labels.shape[-1]) == 1


def _outside(wrong: Tensor, vocabulary: int, ignore_index: int) -> str:
    return (
        f"Expected argument `labels` to hold token ids in [0, {vocabulary}), for {vocabulary} logits a "
        f"token, or ignore_index={ignore_index}, but got {wrong.numel()} others, from {int(wrong.min())} to "
        f"{int(wrong.max())}. Usual causes: a vocabulary that is padded in the tokenizer but not in the "
        "model, labels that were not shifted or masked as the logits were, another ignore_index, another "
        "tokenizer."
    )
