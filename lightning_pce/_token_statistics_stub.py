"""Stands in for the token statistics of ``token_stats`` until those are merged: same name, same results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce.token_stats import token_cross_entropy

ALL = ("ce", "entropy", "target_prob", "max_prob", "rank")


class TokenStatistics(NamedTuple):
    """Per-token statistics shaped like the labels; None where one was not asked for."""

    ce: Tensor | None
    entropy: Tensor | None
    target_prob: Tensor | None
    max_prob: Tensor | None
    rank: Tensor | None
    valid: Tensor
    invalid: Tensor


def token_statistics(
    logits: Tensor,
    labels: Tensor,
    *,
    statistics: Sequence[str] = ALL,
    ignore_index: int = -100,
    shift: bool = False,
    backend: str = "auto",
) -> TokenStatistics:
    """Statistics of every prediction, float32, in nats; ranks int64, 1-based, ties in the order of ids."""
    ce, valid, invalid = token_cross_entropy(
        logits.detach(), labels, ignore_index=ignore_index, shift=shift
    )  # which also checks
    if shift:
        labels = torch.cat([labels[..., 1:], torch.zeros_like(labels[..., :1])], dim=-1)
    index = torch.where(valid, labels.long(), 0)[..., None]
    scores = logits.detach().float()
    own = scores.gather(-1, index)
    log_probabilities = scores.log_softmax(-1)
    probabilities = log_probabilities.exp()
    entropy = -torch.where(probabilities == 0, 0.0, probabilities * log_probabilities).sum(-1)
    before = torch.arange(logits.shape[-1], device=logits.device) < index
    rank = 1 + ((scores > own) | ((scores == own) & before)).sum(-1)
    found = {
        "ce": ce,
        "entropy": entropy,
        "target_prob": probabilities.gather(-1, index)[..., 0],
        "max_prob": probabilities.amax(-1),
        "rank": rank,
    }
    asked = {name: found[name] if name in statistics else None for name in ALL}
    return TokenStatistics(**asked, valid=valid, invalid=invalid)
