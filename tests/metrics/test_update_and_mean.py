"""update_and_mean: the loss to train on, and what it leaves in the state."""

import math

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from lightning_pce import PercentileCrossEntropy
from tests.helpers.summaries import assert_same_result, assert_summarises
from tests.helpers.token_batches import V, batch, counted_losses


def test_update_and_mean_is_the_mean_of_cross_entropy_and_its_gradient_and_updates():
    logits, labels = batch()
    metric = PercentileCrossEntropy()
    mine, wanted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = metric.update_and_mean(mine, labels)
    expected = F.cross_entropy(wanted.reshape(-1, V), labels.reshape(-1))
    torch.testing.assert_close(loss, expected)
    assert loss.ndim == 0
    loss.backward()
    expected.backward()
    assert wanted.grad.abs().sum() > 0.1
    torch.testing.assert_close(mine.grad, wanted.grad)
    assert_summarises(metric.compute(), counted_losses(logits, labels), rtol=1e-6)
    assert metric.update_count == 1


def test_update_and_mean_heeds_weights_and_shift():
    logits, labels = batch()
    weights = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(1))
    metric = PercentileCrossEntropy(shift=True)
    loss = metric.update_and_mean(logits, labels, weights=weights)
    kept = weights[:, 1:][labels[:, 1:] != -100]
    expected = counted_losses(logits[:, :-1], labels[:, 1:]).repeat_interleave(kept)
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(metric.compute()["mean"], expected.double().mean(), rtol=1e-6, atol=0)


def test_update_and_mean_of_nothing_is_nan():
    logits, labels = batch()
    assert PercentileCrossEntropy().update_and_mean(logits, torch.full_like(labels, -100)).isnan()


def test_a_token_of_weight_0_gives_no_gradient_though_its_loss_is_infinite():
    metric = PercentileCrossEntropy()
    losses = torch.tensor([1.0, math.inf, 3.0], requires_grad=True)
    loss = metric.update_and_mean(losses=losses, weights=torch.tensor([1.0, 0.0, 1.0]))
    loss.backward()
    assert loss == 2
    assert losses.grad.tolist() == [0.5, 0.0, 0.5]


def test_update_and_mean_keeps_no_graph_and_follows_inference_mode():
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()
    with torch.inference_mode():
        metric.update_and_mean(*batch(0))
        metric.compute()
    logits, labels = batch(1)
    assert metric.update_and_mean(logits.clone().requires_grad_(), labels).requires_grad
    assert not metric.digest.requires_grad
    assert not any(value.requires_grad for value in metric.compute().values())
    for seed in range(2):
        twin.update(*batch(seed))
    assert_same_result(metric.compute(), twin.compute(), rtol=1e-6)


def test_a_compiled_function_may_use_update_and_mean():
    metric, twin, counter = PercentileCrossEntropy(), PercentileCrossEntropy(), CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(lambda logits, labels: metric.update_and_mean(logits * 2, labels), backend=counter)
    for seed in range(12):
        logits, labels = batch(seed)
        mean = step(logits, labels)
        twin.update(logits * 2, labels)
        assert mean.item() == pytest.approx(counted_losses(logits * 2, labels).mean().item(), rel=1e-5)
    torch._dynamo.reset()
    assert counter.frame_count <= 2
    torch.testing.assert_close(metric.compute(), twin.compute(), rtol=1e-6, atol=1e-6)
