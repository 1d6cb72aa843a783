"""log(1 - p + eps), of the code to arXiv 2510.00526."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce.objectives._logarithms import one_minus_exp
from lightning_pce.objectives._objective import Normalizer, TokenObjective
from lightning_pce.tokens.log_prob import TokenLogProb


class Unlikelihood(TokenObjective):
    """log(1 - p + eps), which falls as p rises: from log(1 + eps) to log(eps), so mostly below 0.

    On the label's logit it has the weight p (1 - p) / (1 - p + eps), about p: tokens that the model is sure
    of already count most. It makes labels *likelier*. "Unlikelihood training", -log(1 - p) of tokens that are
    not wanted, is something else. The name and 1e-3 are those of the code of arXiv 2510.00526, which takes it
    on one side of a threshold: ``Threshold(Unlikelihood(), q)``.

    Args:
        eps: above 0; its logarithm bounds the loss from below.

    Raises:
        UserError: if ``eps`` is no finite number above 0.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> Unlikelihood()(token_log_prob(torch.zeros(2, 4), torch.tensor([0, 3])))
        tensor(-0.2863)
    """

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        if not 0 < eps < math.inf:
            raise UserError(f"Expected argument `eps` to be a finite number above 0 but got {eps!r}.")
        self.eps = eps

    def of_tokens(self, log_prob: Tensor) -> Tensor:
        return (one_minus_exp(log_prob) + self.eps).log()

    def extra_repr(self) -> str:
        return f"{self.eps:g}"


def unlikelihood(
    scored: TokenLogProb,
    eps: float = 1e-3,
    *,
    weights: Tensor | None = None,
    normalizer: Normalizer = None,
) -> Tensor:
    """log(1 - p + eps), see :class:`Unlikelihood` and :class:`TokenObjective`.

    Args:
        scored: ``[...]``, of :func:`lightning_pce.token_log_prob` or another primitive.
        eps: above 0.
        weights: ``[...]``, numbers >= 0 that the losses are multiplied by.
        normalizer: what their sum is divided by; left out: the number of valid tokens.

    Returns:
        0-d, mostly below 0.

    Raises:
        ValueError: if shapes or numbers do not fit.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> unlikelihood(token_log_prob(torch.zeros(2, 4), torch.tensor([0, 3])))
        tensor(-0.2863)
    """
    return Unlikelihood(eps).forward(scored, weights=weights, normalizer=normalizer)
