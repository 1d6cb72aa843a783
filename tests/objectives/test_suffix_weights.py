"""suffix_weights against loops over tokens."""

import math

import pytest
import torch

from lightning_pce import token_log_prob
from lightning_pce.objectives import nll, suffix_weights
from tests.objectives.cases import batch


def by_loops(current, behaviour, valid, gamma, ratio, limits):
    weights = torch.zeros_like(current)
    for i, row in enumerate(valid.tolist()):
        log_weight = 0.0
        for t in reversed([t for t, counts in enumerate(row) if counts]):
            weights[i, t] = min(max(math.exp(log_weight), limits[0]), limits[1])
            step = min(max(float(current[i, t] - behaviour[i, t]), ratio[0]), ratio[1])
            log_weight += step + math.log(gamma)
    return weights


@pytest.mark.parametrize("settings", [{}, {"gamma": 0.9, "ratio": (-1.0, 1.0), "limits": (0.5, 1.5)}])
def test_a_weight_is_the_product_over_the_tokens_that_follow(settings):
    logits, labels = batch(4, 12, ignored=0.3)
    scored = token_log_prob(logits.requires_grad_(), labels)
    behaviour = scored.log_prob.detach() + 0.3 * torch.randn(4, 12, dtype=torch.float64)
    found = suffix_weights(scored, behaviour, **settings)
    defaults = {"gamma": 0.999, "ratio": (-0.08, 0.3), "limits": (0.1, 10.0)}
    wanted = by_loops(scored.log_prob.detach(), behaviour, scored.valid, **{**defaults, **settings})
    torch.testing.assert_close(found.weights, wanted, rtol=1e-12, atol=0)
    kept = wanted[scored.valid]
    torch.testing.assert_close(found.effective, kept.sum() ** 2 / (kept**2).sum(), rtol=1e-12, atol=0)
    assert not found.weights.requires_grad
    assert nll(scored, weights=found.weights).requires_grad


def test_nothing_that_counts_has_no_effective_size():
    logits, labels = batch(2, 3, ignored=2.0)
    found = suffix_weights(token_log_prob(logits, labels), torch.zeros(2, 3))
    assert found.effective == 0
    assert not found.weights.any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"behaviour": torch.zeros(3)}, "of one shape"),
        ({"gamma": 0}, "gamma"),
        ({"ratio": (1, 0)}, "ratio"),
        ({"limits": (-1, 2)}, "limits"),
    ],
)
def test_impossible_arguments_are_refused(settings, words):
    scored = token_log_prob(*batch(2, 3))
    behaviour = settings.pop("behaviour", torch.zeros(2, 3))
    with pytest.raises(ValueError, match=words):
        suffix_weights(scored, behaviour, **settings)
