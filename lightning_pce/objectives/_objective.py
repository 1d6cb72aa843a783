"""What objectives share: losses of tokens in float64, their weights, and what their sum is divided by."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_pce._errors import UserError
from lightning_pce._threads import single_threaded
from lightning_pce.tokens.labels import checked_weights
from lightning_pce.tokens.log_prob import TokenLogProb

Normalizer: TypeAlias = float | Tensor | None


class TokenObjective(nn.Module):
    """A loss that is a sum over tokens: a subclass says what the loss of a token is.

    Example:
        >>> from lightning_pce import token_log_prob
        >>> class Squared(TokenObjective):
        ...     def of_tokens(self, log_prob):
        ...         return log_prob**2
        >>> scored = token_log_prob(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 3]]))
        >>> Squared()(scored)  # the square of ln 4
        tensor(1.9218)
    """

    @abstractmethod
    def of_tokens(self, log_prob: Tensor) -> Tensor:
        """The loss of each token from its log-probability in float64, both of one shape."""

    def forward(
        self, scored: TokenLogProb, *, weights: Tensor | None = None, normalizer: Normalizer = None
    ) -> Tensor:
        """The sum of the tokens' losses by what it is divided by.

        Args:
            scored: of a batch, from :func:`lightning_pce.token_log_prob` or another primitive.
            weights: ``[...]``, numbers >= 0 that the losses are multiplied by, in the shape of
                ``scored.log_prob`` and at its positions: after ``shift=True`` position t is that of label
                t + 1. No gradient flows into them.
            normalizer: what the weighted sum is divided by; left out: the number of valid tokens of this
                batch, whatever their weights. For several micro-batches or processes see docs/objectives.md.

        Returns:
            0-d, in the dtype of ``scored.log_prob``; 0, with a gradient of zeros, if no token counts.

        Raises:
            ValueError: if shapes or numbers do not fit.
        """
        with few_numbers():
            return self.total(scored, scored.valid, weights, normalizer)

    def total(
        self, scored: TokenLogProb, counted: Tensor, weights: Tensor | None, normalizer: Normalizer
    ) -> Tensor:
        """:meth:`forward` over the tokens that ``counted`` ``[...]`` names."""
        losses = self.of_tokens(scored.log_prob.to(exact_dtype(scored.log_prob)))
        return divided_sum(losses, counted, weights, normalizer, scored)


def few_numbers() -> AbstractContextManager[object]:
    """For operations on as many numbers as tokens: one thread, except in compiled code.

    The exponential of 2,048 of them is split over threads, which takes 35 ms where other processes keep the
    cores busy, and a hundredth of that in one thread.
    """
    return nullcontext() if torch.compiler.is_compiling() else single_threaded()


def exact_dtype(like: Tensor) -> torch.dtype:
    """float64: these are as many numbers as tokens. float32 on MPS, which has no float64."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def divided_sum(
    losses: Tensor,
    counted: Tensor,
    weights: Tensor | None,
    normalizer: Normalizer,
    scored: TokenLogProb,
    count: Tensor | None = None,
) -> Tensor:
    """The weighted sum of the losses that count, by the normalizer or else ``count``, valid tokens at first.

    Args:
        losses: ``[...]``.
        counted: ``[...]`` bool, which of them.
        weights: ``[...]`` or None.
        normalizer: see :class:`TokenObjective`.
        scored: says what a valid token is and the dtype of the result.
        count: 0-d, if not the number of valid tokens.
    """
    if weights is not None:
        weights = of_tokens_checked(weights, losses).to(losses)
        counted = counted & (weights != 0)  # 0 times inf is not 0
        losses = torch.where(counted, losses, 0.0) * weights
    total = torch.where(counted, losses, 0.0).sum()
    if normalizer is None:
        count = scored.valid.sum() if count is None else count
        by = count.clamp(min=1).to(total.dtype)
    else:
        by = _checked_normalizer(normalizer, counted).to(total.device, total.dtype)
        by = torch.where((by == 0) & ~counted.any(), 1.0, by)  # of nothing: 0, as without a normalizer
    return (total / by).to(scored.log_prob.dtype)


def of_tokens_checked(weights: Tensor, like: Tensor) -> Tensor:
    """Weights in the shape of ``like``, without a graph."""
    weights = weights.detach() if isinstance(weights, Tensor) else weights
    if torch.compiler.is_compiling():  # looking at the numbers would break the graph
        return weights
    checked = checked_weights(weights, like, "log-probabilities")
    assert checked is not None
    return checked


def _checked_normalizer(normalizer: float | Tensor, counted: Tensor) -> Tensor:
    given = normalizer.detach() if isinstance(normalizer, Tensor) else normalizer
    by = torch.as_tensor(given)
    if by.numel() != 1:
        raise UserError(
            f"Expected argument `normalizer` to be one number but got a tensor {tuple(by.shape)}: pass what "
            "the sum of all losses is divided by."
        )
    by = by.reshape(())
    if by.device.type == "cpu" and not torch.compiler.is_compiling():
        value = float(by)
        if not 0 <= value < math.inf or (value == 0 and bool(counted.any())):
            raise UserError(
                f"Expected argument `normalizer` to be a finite number above 0 but got {value:g}: pass how "
                "many tokens the whole step counts."
            )
    return by
