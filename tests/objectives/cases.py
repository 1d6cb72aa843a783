"""Objectives with their definitions on p, by plain operations of autograd; batches they are tried on."""

import math

import torch

from lightning_pce import token_log_prob
from lightning_pce.objectives import NLL, Power, Threshold, Unlikelihood

# name: the objective, its loss of a token from log p, and s(p) = -f'(p) p
FAMILY = {
    "nll": (NLL(), lambda log_p: -log_p, lambda p: torch.ones_like(p)),
    "power 0.1": (Power(0.1), lambda log_p: (1 - log_p.exp() ** 0.1) / 0.1, lambda p: p**0.1),
    "power 1": (Power(1), lambda log_p: 1 - log_p.exp(), lambda p: p),
    "power 10": (Power(10), lambda log_p: (1 - log_p.exp() ** 10) / 10, lambda p: p**10),
    "above 0.2": (
        Threshold(NLL(), 0.2),
        lambda log_p: torch.where(log_p >= math.log(0.2), -log_p, 0),
        lambda p: (p >= 0.2).to(p),
    ),
    "power below 0.1": (
        Threshold(Power(1), 0.1, keep="below"),
        lambda log_p: torch.where(log_p <= math.log(0.1), 1 - log_p.exp(), 0),
        lambda p: p * (p <= 0.1),
    ),
    "unlikelihood": (
        Unlikelihood(1e-3),
        lambda log_p: (1 - log_p.exp() + 1e-3).log(),
        lambda p: p / (1 - p + 1e-3),
    ),
}


def batch(*shape, vocabulary=7, dtype=torch.float64, ignored=0.2, seed=0, scale=2.0):
    """Logits ``[*shape, V]`` and labels ``[*shape]`` of which some are ignored."""
    random = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(*shape, vocabulary, generator=random, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, vocabulary, shape, generator=random)
    return logits, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)


def loss_and_gradient(objective, logits, labels, **settings):
    """What the objective gives for the batch, and its gradient with respect to the logits."""
    leaf = logits.detach().requires_grad_()
    loss = objective(token_log_prob(leaf, labels), **settings)
    loss.backward()
    return loss.detach(), leaf.grad


def by_autograd(of_tokens, logits, labels, weights=1.0, normalizer=None):
    """The same through ``log_softmax`` in float64 for a loss of tokens from log p."""
    leaf = logits.detach().double().requires_grad_()
    valid = labels != -100
    own = leaf.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    total = (of_tokens(own) * weights)[valid].sum()
    loss = total / (max(int(valid.sum()), 1) if normalizer is None else normalizer)
    loss.backward()
    return loss.detach(), leaf.grad
