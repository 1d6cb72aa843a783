"""The power family of arXiv 2510.00526: from cross-entropy over the probability itself to beyond."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce.objectives._logarithms import one_minus_exp
from lightning_pce.objectives._objective import Normalizer, TokenObjective
from lightning_pce.tokens.log_prob import TokenLogProb


class Power(TokenObjective):
    """(1 - p^a) / a, in [0, 1/a].

    Near a = 0 it is -log p; a = 1 is 1 - p, whose gradient is that of DFT (arXiv 2508.05629), cross-entropy
    times p without a gradient through p. On the label's logit it has the weight p^a (1 - p), largest at
    p = a / (a + 1): the greater a, the less do tokens count that the model finds unlikely.

    Args:
        a: above 0.

    Raises:
        UserError: if ``a`` is no finite number above 0.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> scored = token_log_prob(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
        >>> Power(1)(scored), Power(10)(scored)
        (tensor(0.7500), tensor(0.1000))
    """

    def __init__(self, a: float) -> None:
        super().__init__()
        if not 0 < a < math.inf:
            raise UserError(
                f"Expected argument `a` to be a finite number above 0 but got {a!r}: its limit at 0 is NLL()."
            )
        self.a = a

    def of_tokens(self, log_prob: Tensor) -> Tensor:
        return one_minus_exp(self.a * log_prob) / self.a

    def extra_repr(self) -> str:
        return f"{self.a:g}"


def power(
    scored: TokenLogProb, a: float, *, weights: Tensor | None = None, normalizer: Normalizer = None
) -> Tensor:
    """(1 - p^a) / a, see :class:`Power` and :class:`TokenObjective`.

    Args:
        scored: ``[...]``, of :func:`lightning_pce.token_log_prob` or another primitive.
        a: above 0.
        weights: ``[...]``, numbers >= 0 that the losses are multiplied by.
        normalizer: what their sum is divided by; left out: the number of valid tokens.

    Returns:
        0-d, from 0 to ``1 / a`` without weights and normalizer.

    Raises:
        ValueError: if shapes or numbers do not fit.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> power(token_log_prob(torch.zeros(2, 4), torch.tensor([0, 3])), 1)
        tensor(0.7500)
    """
    return Power(a).forward(scored, weights=weights, normalizer=normalizer)
