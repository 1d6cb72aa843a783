"""Labels that seem not to be shifted are warned of, and others are not."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from lightning_pce import PercentileCrossEntropy
from tests.helpers.token_batches import V, batch


def next_token_model(rows=4, length=24, seed=0):
    """Token ids by a deterministic bigram rule, and the logits of a model that knows it."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (rows, 1), generator=random)
    for _ in range(length - 1):
        ids = torch.cat([ids, (5 * ids[:, -1:] + 3) % V], dim=1)
    return 12.0 * F.one_hot((5 * ids + 3) % V, V) + torch.randn(rows, length, V, generator=random), ids


def shift_warnings(metric, logits, labels, call="update"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            getattr(metric, call)(logits, labels)
        metric.compute()
    return [str(warning.message) for warning in caught if "shift" in str(warning.message)]


@pytest.mark.parametrize("call", ["update", "forward", "update_and_mean"])
def test_labels_that_were_not_shifted_are_warned_of_once(call):
    (message,) = shift_warnings(PercentileCrossEntropy(), *next_token_model(), call)
    assert "shift=True" in message


def test_labels_that_are_right_are_not_warned_of():
    logits, ids = next_token_model()
    shifted = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    assert PercentileCrossEntropy()(logits, shifted)["mean"] < 1
    assert shift_warnings(PercentileCrossEntropy(), logits, shifted) == []
    assert shift_warnings(PercentileCrossEntropy(), logits[:, :-1], ids[:, 1:]) == []
    assert shift_warnings(PercentileCrossEntropy(shift=True), logits, ids) == []


def test_an_infinite_loss_is_no_sign_of_labels_that_were_not_shifted():
    logits, labels = batch(ignored=0)
    logits[0, 0, labels[0, 0]] = -math.inf
    logits[0, 0, labels[0, 1]] = 0
    assert shift_warnings(PercentileCrossEntropy(), logits, labels) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_knows_nothing_is_not_warned_of(seed):
    logits, ids = next_token_model(seed=seed)
    noise = 3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    assert shift_warnings(PercentileCrossEntropy(), noise, ids) == []


def test_unshifted_labels_are_not_noticed_if_a_model_gives_its_input_away():
    _, ids = next_token_model()
    given_away = 12.0 * F.one_hot(ids, V)  # as tied embeddings do before training
    assert PercentileCrossEntropy()(given_away, ids)["mean"] < 0.01
    assert shift_warnings(PercentileCrossEntropy(), given_away, ids) == []
    assert PercentileCrossEntropy(shift=True)(given_away, ids)["mean"] > math.log(V)
    assert shift_warnings(PercentileCrossEntropy(shift=True), given_away, ids) == []


def next_token_logits(labels, vocabulary=11):
    """Logits that are sure of the next token: position t predicts label t + 1."""
    following = torch.cat([labels[..., 1:], labels[..., :1]], dim=-1)
    return 8.0 * torch.nn.functional.one_hot(following, vocabulary).float()


def test_unshifted_labels_are_noticed_in_flattened_batches_and_after_batches_of_few_tokens():
    labels = torch.randint(11, (4, 40), generator=torch.Generator().manual_seed(3))
    logits = next_token_logits(labels)
    with pytest.warns(UserWarning, match="not to be shifted"):
        PercentileCrossEntropy().update(logits.flatten(0, 1), labels.flatten())
    metric = PercentileCrossEntropy()
    metric.update(logits, torch.full_like(labels, -100))
    metric.update(logits, torch.where(torch.arange(40) < 3, labels, -100))
    with pytest.warns(UserWarning, match="not to be shifted"):
        metric.update(logits, labels)
