"""Metrics that hold numbered batches of forty losses, and a check of which batches a metric holds."""

import warnings

import torch

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.distributions import exact_quantile
from tests.helpers.token_batches import random_losses


def forty(seed=0):
    """The forty losses of one batch."""
    return random_losses(seed, 40)


def add(metric, values, **more):
    metric.update(**{"losses" if isinstance(metric, PercentileCrossEntropy) else "values": values}, **more)


def holding(*seeds, cls=StreamingQuantiles, **settings):
    """A metric after an update with each of these batches."""
    metric = cls(**settings)
    for seed in seeds:
        add(metric, forty(seed))
    return metric


def assert_holds(metric, *seeds):
    """The metric has seen these batches and nothing else, each as often as it is named."""
    values = torch.cat([forty(seed) for seed in seeds]).double() if seeds else torch.empty(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = metric.compute()
    assert result["count"] == len(values)
    if seeds:
        torch.testing.assert_close(result["mean"], values.mean(), rtol=1e-12, atol=0)
        torch.testing.assert_close(result["p50"], exact_quantile(values, 0.5), rtol=1e-12, atol=0)
        torch.testing.assert_close(result["p95"], exact_quantile(values, 0.95), rtol=1e-12, atol=0)
    assert td.count(metric.digest) == len(values)
