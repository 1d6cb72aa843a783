"""Weights of tokens by how much likelier the model now finds what follows them, after PEAR."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pce._errors import UserError
from lightning_pce.objectives._objective import exact_dtype
from lightning_pce.tokens.log_prob import TokenLogProb


class SuffixWeights(NamedTuple):
    """What :func:`suffix_weights` returns."""

    weights: Tensor
    """In the shape and dtype of the log-probabilities, 0 where a token does not count."""
    effective: Tensor
    """0-d, (sum of weights)^2 / sum of squared weights: of how many equally weighted tokens the mean is as
    noisy; 0 if none counts."""


@torch.no_grad()
def suffix_weights(
    current: TokenLogProb,
    behaviour: Tensor,
    *,
    gamma: float = 0.999,
    ratio: tuple[float, float] = (-0.08, 0.3),
    limits: tuple[float, float] = (0.1, 10.0),
) -> SuffixWeights:
    """Weights for an objective from two columns of log-probabilities, of one row's tokens in order.

    A token's weight is gamma^k times the product, over the k tokens that follow it in its row and count, of
    pi(y) / b(y): how likely the model that is trained finds each by how likely the model found it that wrote
    the data. The logarithm of each ratio is clipped first, and the weight last. *This is the formula of an
    implementation of PEAR (arXiv 2602.01058), with its defaults, and not read in the paper.*

    Args:
        current: of the model that is trained, ``[..., T]``.
        behaviour: ``[..., T]``, the log-probabilities of the same tokens under the other model.
        gamma: in (0, 1].
        ratio: what the logarithm of each token's ratio is clipped to.
        limits: what each weight is clipped to.

    Returns:
        A :class:`SuffixWeights`, without a graph.

    Raises:
        ValueError: if shapes or numbers do not fit.

    Example:
        >>> current = TokenLogProb(torch.tensor([-1.0, -1.0, -1.0]), torch.zeros(3), torch.ones(3).bool())
        >>> suffix_weights(current, torch.tensor([-1.0, -1.2, -1.0]), gamma=1.0)
        SuffixWeights(weights=tensor([1.2214, 1.0000, 1.0000]), effective=tensor(2.9719))
    """
    _check(current, behaviour, gamma, ratio, limits)
    exact = exact_dtype(current.log_prob)
    log_ratio = (current.log_prob.to(exact) - behaviour.to(exact)).clamp(*ratio) + math.log(gamma)
    log_ratio = torch.where(current.valid, log_ratio, 0.0)
    following = log_ratio.flip(-1).cumsum(-1).flip(-1) - log_ratio
    weights = torch.where(current.valid, following.exp().clamp(*limits), 0.0)
    effective = weights.sum().square() / weights.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    dtype = current.log_prob.dtype
    return SuffixWeights(weights.to(dtype), effective.to(dtype))


def _check(
    current: TokenLogProb,
    behaviour: Tensor,
    gamma: float,
    ratio: tuple[float, float],
    limits: tuple[float, float],
) -> None:
    if behaviour.shape != current.log_prob.shape or not current.log_prob.ndim:
        raise UserError(
            "Expected arguments of one shape [..., T] but got log-probabilities "
            f"{tuple(current.log_prob.shape)} and `behaviour` {tuple(behaviour.shape)}."
        )
    if not 0 < gamma <= 1:
        raise UserError(f"Expected argument `gamma` to lie in (0, 1] but got {gamma!r}.")
    for name, (low, high), least in (("ratio", ratio, -math.inf), ("limits", limits, 0.0)):
        if not least <= low <= high:
            raise UserError(
                f"Expected argument `{name}` to be a lowest and a highest number, from {least:g} on, but got "
                f"{(low, high)!r}."
            )
