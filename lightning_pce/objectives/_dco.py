"""The loss of the chance that one of n samples is the answer, of arXiv 2502.07154 (DCO)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_pce._errors import UserError
from lightning_pce.objectives._logarithms import log_one_minus_exp
from lightning_pce.objectives._objective import (
    Normalizer,
    divided_sum,
    exact_dtype,
    few_numbers,
    of_tokens_checked,
)
from lightning_pce.tokens.labels import GroupIds, checked_answers
from lightning_pce.tokens.log_prob import TokenLogProb

# p and n p are so small that log(1 - (1 - p)^n) is log(n p) to the last digit, and p may be 0 in any float.
_NEGLIGIBLE = -40.0


class DCO(nn.Module):
    """-log(1 - (1 - p)^n), where p is the probability of a whole answer: pass@n, if only it is right.

    Its gradient is that of -log p times n (1 - p)^(n - 1) p / (1 - (1 - p)^n): 1 for n = 1 and for p far
    below 1 / n, about 0 for p far above. log p is the sum over the tokens of an answer that count, in
    float64, and may be -1e5.

    Args:
        n: how many samples, a whole number from 1 on.

    Raises:
        UserError: if ``n`` is not.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> scored = token_log_prob(torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2], [3, -100, -100]]))
        >>> DCO(1)(scored), DCO(8)(scored)
        (tensor(2.7726), tensor(1.1197))
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise UserError(f"Expected argument `n` to be a whole number from 1 on but got {n!r}.")
        self.n = n

    def of_answers(self, log_prob: Tensor) -> Tensor:
        """The loss of each answer from its log-probability in float64, both of one shape."""
        if self.n == 1:
            return 0.0 - log_prob
        # An answer of probability 1 has a loss of 0 and no gradient, and log(0) none at all.
        log_p = torch.where(log_prob > -1e-300, -1e-300, log_prob)  # NaN stays NaN
        tiny = log_p + math.log(self.n) < _NEGLIGIBLE
        log_p = torch.where(tiny, -1.0, log_p)
        exact = -log_one_minus_exp(self.n * log_one_minus_exp(log_p))
        return torch.where(tiny, -(log_prob + math.log(self.n)), exact)

    def forward(
        self,
        scored: TokenLogProb,
        *,
        answer: GroupIds | None = None,
        weights: Tensor | None = None,
        normalizer: Normalizer = None,
    ) -> Tensor:
        """The sum of the answers' losses by what it is divided by.

        Args:
            scored: of a batch ``[..., T]``.
            answer: ``[..., T]`` integers, for packed rows, or one for each row or for all: tokens of a row
                with one number are of one answer, those with a negative one of none. They stand at the
                positions of ``scored.log_prob``: after ``shift=True`` position t is that of label t + 1. Left
                out: each row is an answer. An answer ends with its row.
            weights: ``[..., T]``, numbers >= 0; an answer's is the mean of those of its valid tokens.
            normalizer: what the sum is divided by; left out: the number of answers of this batch, those
                without a valid token apart.

        Returns:
            0-d, in the dtype of ``scored.log_prob``; 0, with a gradient of zeros, if there is no answer.

        Raises:
            ValueError: if shapes or numbers do not fit, or there are no rows and no ``answer``: a flattened
                batch would be one long answer.
        """
        with few_numbers():
            return self._total(scored, answer, weights, normalizer)

    def _total(
        self, scored: TokenLogProb, answer: GroupIds | None, weights: Tensor | None, normalizer: Normalizer
    ) -> Tensor:
        ids = _ids(answer, scored.valid)
        valid = _rows(scored.valid if ids is None else scored.valid & (ids >= 0))
        log_prob = _rows(scored.log_prob)
        exact = torch.where(valid, log_prob, 0.0).to(exact_dtype(log_prob))
        columns = [exact, valid.to(exact.dtype)]
        if weights is not None:
            given = _rows(of_tokens_checked(weights, scored.log_prob))
            columns.append(torch.where(valid, given.to(columns[0]), 0.0))
        if ids is None:
            sums = [column.sum(-1) for column in columns]
        else:
            slots = _slots(_rows(ids))
            sums = [torch.zeros_like(column).scatter_add(-1, slots, column).reshape(-1) for column in columns]
        counted = sums[1] > 0
        of_answers = sums[2] / sums[1].clamp(min=1) if weights is not None else None
        losses = self.of_answers(torch.where(counted, sums[0], -1.0))
        return divided_sum(losses, counted, of_answers, normalizer, scored, counted.sum())

    def extra_repr(self) -> str:
        return f"{self.n}"


def dco(
    scored: TokenLogProb,
    n: int,
    *,
    answer: GroupIds | None = None,
    weights: Tensor | None = None,
    normalizer: Normalizer = None,
) -> Tensor:
    """-log(1 - (1 - p)^n) of whole answers, see :class:`DCO`.

    Args:
        scored: ``[..., T]``, of :func:`lightning_pce.token_log_prob` or another primitive.
        n: how many samples, a whole number from 1 on.
        answer: integers ``[..., T]``, or one for each row or for all: which tokens are of one answer, with a
            negative number of none. Left out: each row is an answer.
        weights: ``[..., T]``, numbers >= 0; an answer's is the mean of those of its tokens.
        normalizer: what the sum is divided by; left out: the number of answers with a valid token.

    Returns:
        0-d, in nats an answer.

    Raises:
        ValueError: if shapes or numbers do not fit, or a flat batch comes without ``answer``.

    Example:
        >>> import torch
        >>> from lightning_pce import token_log_prob
        >>> scored = token_log_prob(torch.zeros(1, 4, 4), torch.tensor([[0, 1, 2, 3]]))
        >>> dco(scored, 8, answer=torch.tensor([[0, 0, 0, 1]]))
        tensor(1.1197)
    """
    return DCO(n).forward(scored, answer=answer, weights=weights, normalizer=normalizer)


def _rows(values: Tensor) -> Tensor:
    """``[..., T]`` as ``[B, T]``."""
    return values.reshape(values.shape[:-1].numel(), values.shape[-1] if values.ndim else 1)


def _ids(answer: GroupIds | None, like: Tensor) -> Tensor | None:
    if answer is not None:
        return checked_answers(answer, like)
    if like.ndim < 2:
        raise UserError(
            "Expected log-probabilities [..., T], whose rows are answers, but got "
            f"{tuple(like.shape)} without `answer`: do not flatten the batch, or pass the answer of each "
            "token, answer=0 if all are of one."
        )
    return None


def _slots(answer: Tensor) -> Tensor:
    """A number in [0, T) for each token of rows ``[B, T]``, one for all tokens of an answer.

    By sorting, because how many answers there are would have to be known on the host.
    """
    ordered, order = answer.sort(dim=-1, stable=True)
    new = torch.zeros_like(ordered)
    new[..., 1:] = (ordered[..., 1:] != ordered[..., :-1]).long()
    return torch.zeros_like(ordered).scatter_(-1, order, new.cumsum(-1))
