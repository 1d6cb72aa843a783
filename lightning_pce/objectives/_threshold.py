"""Another objective on the tokens above, or below, a probability."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce.objectives._objective import Normalizer, TokenObjective
from lightning_pce.tokens.log_prob import TokenLogProb


class Threshold(TokenObjective):
    """Another objective where p >= q ("above") or p <= q ("below"), and 0 elsewhere.

    p is that of the model as it is now, at each step. Tokens left out have a gradient of exactly 0, whose
    rows are not computed. By default the sum is divided by all valid tokens, so that how a batch is cut
    changes nothing.

    Args:
        objective: of the tokens that are kept: ``NLL()``, ``Power(1)`` ...
        q: the probability, in [0, 1]; arXiv 2510.00526 takes 0.2.
        keep: ``"above"`` or ``"below"``.
        divide_by_kept: divide by the number of tokens that are kept, as the authors' code does. *The loss
            then depends on how a batch is cut*: a micro-batch that keeps few tokens weighs each of them more,
            so that gradient accumulation and several processes train on another objective than one large
            batch (a batch with a loss of 0.149 has 0.161 in eight micro-batches). There is no ``normalizer``
            then.

    Raises:
        UserError: if an argument is impossible.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> from lightning_pce.objectives import NLL, Power
        >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> scored = token_log_prob(logits, torch.tensor([0, 1]))
        >>> Threshold(NLL(), 0.2)(scored)
        tensor(0.3466)
        >>> Threshold(NLL(), 0.2, divide_by_kept=True)(scored)
        tensor(0.6931)
    """

    def __init__(
        self, objective: TokenObjective, q: float, keep: str = "above", *, divide_by_kept: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(objective, TokenObjective):
            raise UserError(
                "Expected argument `objective` to be an objective of tokens, such as NLL() or Power(1), but "
                f"got {objective!r:.80}."
            )
        if not 0 <= q <= 1:
            raise UserError(f"Expected argument `q` to be a probability in [0, 1] but got {q!r}.")
        if keep not in ("above", "below"):
            raise UserError(f"Expected argument `keep` to be 'above' or 'below' but got {keep!r}.")
        self.objective, self.q, self.keep, self.divide_by_kept = objective, q, keep, divide_by_kept

    def kept(self, log_prob: Tensor) -> Tensor:
        """Which tokens are, ``[...]`` bool, of those that count."""
        bound = math.log(self.q) if self.q else -math.inf
        left_out = log_prob < bound if self.keep == "above" else log_prob > bound
        return ~left_out  # NaN is kept, to be seen

    def of_tokens(self, log_prob: Tensor) -> Tensor:
        return self.objective.of_tokens(log_prob).where(self.kept(log_prob), 0.0)

    def total(
        self, scored: TokenLogProb, counted: Tensor, weights: Tensor | None, normalizer: Normalizer
    ) -> Tensor:
        if self.divide_by_kept and normalizer is not None:
            raise UserError(
                "Expected no argument `normalizer` beside divide_by_kept=True, which divides by the number "
                "of tokens kept: leave out one of the two."
            )
        counted = counted & self.kept(scored.log_prob)
        if self.divide_by_kept:
            normalizer = counted.sum()
        return self.objective.total(scored, counted, weights, normalizer)

    def extra_repr(self) -> str:
        kept = ", divide_by_kept=True" if self.divide_by_kept else ""
        return f"{self.q:g}, keep={self.keep!r}{kept}"


def threshold(
    scored: TokenLogProb,
    objective: TokenObjective,
    q: float,
    keep: str = "above",
    *,
    divide_by_kept: bool = False,
    weights: Tensor | None = None,
    normalizer: Normalizer = None,
) -> Tensor:
    """Another objective where p >= q or p <= q, see :class:`Threshold` and :class:`TokenObjective`.

    Args:
        scored: ``[...]``, of :func:`lightning_pce.token_log_prob` or another primitive.
        objective: of the tokens that are kept.
        q: the probability, in [0, 1].
        keep: ``"above"`` or ``"below"``.
        divide_by_kept: divide by the number of tokens that are kept; there is no ``normalizer`` then.
        weights: ``[...]``, numbers >= 0 that the losses are multiplied by.
        normalizer: what their sum is divided by; left out: the number of valid tokens.

    Returns:
        0-d, in the unit of the objective.

    Raises:
        ValueError: if shapes or numbers do not fit.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> from lightning_pce.objectives import NLL, Power
        >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> threshold(token_log_prob(logits, torch.tensor([0, 1])), Power(1), 0.2)
        tensor(0.2500)
    """
    return Threshold(objective, q, keep, divide_by_kept=divide_by_kept).forward(
        scored, weights=weights, normalizer=normalizer
    )
