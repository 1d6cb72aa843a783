"""The negative log-likelihood: cross-entropy, the objective that the others reshape."""

from __future__ import annotations

from torch import Tensor

from lightning_pce.objectives._objective import Normalizer, TokenObjective
from lightning_pce.tokens.log_prob import TokenLogProb


class NLL(TokenObjective):
    """-log p, in nats: plain cross-entropy.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> logits, labels = torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]])
        >>> NLL()(token_log_prob(logits, labels))
        tensor(1.3863)
    """

    def of_tokens(self, log_prob: Tensor) -> Tensor:
        return 0.0 - log_prob  # minus 0 would be -0


def nll(scored: TokenLogProb, *, weights: Tensor | None = None, normalizer: Normalizer = None) -> Tensor:
    """-log p: plain cross-entropy, see :class:`NLL` and :class:`TokenObjective`.

    Args:
        scored: ``[...]``, of :func:`lightning_pce.token_log_prob` or another primitive.
        weights: ``[...]``, numbers >= 0 that the losses are multiplied by.
        normalizer: what their sum is divided by; left out: the number of valid tokens.

    Returns:
        0-d, in nats a token.

    Raises:
        ValueError: if shapes or numbers do not fit.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> scored = token_log_prob(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
        >>> nll(scored), nll(scored, normalizer=8)
        (tensor(1.3863), tensor(0.3466))
    """
    return NLL().forward(scored, weights=weights, normalizer=normalizer)
