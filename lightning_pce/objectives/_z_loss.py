"""The square of the logsumexp, which keeps logits from drifting."""

from __future__ import annotations

from torch import Tensor

from lightning_pce.objectives._objective import Normalizer, divided_sum, exact_dtype
from lightning_pce.tokens.log_prob import TokenLogProb


def z_loss(scored: TokenLogProb, *, weights: Tensor | None = None, normalizer: Normalizer = None) -> Tensor:
    """The mean square of the logsumexp, to be added to an objective times a small number, such as 1e-4.

    The logits are read no more often for it: their gradient is that of the sum.

    Args:
        scored: ``[...]``, of :func:`lightning_pce.token_log_prob` or another primitive.
        weights: ``[...]``, numbers >= 0 that the squares are multiplied by.
        normalizer: what their sum is divided by; left out: the number of valid tokens.

    Returns:
        0-d, the square of nats.

    Raises:
        ValueError: if shapes or numbers do not fit.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> from lightning_pce.objectives import nll
        >>> scored = token_log_prob(torch.zeros(2, 4), torch.tensor([0, 3]))
        >>> z_loss(scored)
        tensor(1.9218)
        >>> loss = nll(scored) + 1e-4 * z_loss(scored)
    """
    square = scored.logsumexp.to(exact_dtype(scored.logsumexp)).square()
    return divided_sum(square, scored.valid, weights, normalizer, scored)
