"""Logits in chunks along the sequence, as litgpt and torchtune return them: read one by one, never joined."""

import pytest
import torch

from lightning_pce import PercentileCrossEntropy, TokenProxies
from lightning_pce._threads import single_threaded
from lightning_pce.tokens.batch import score_tokens
from lightning_pce.tokens.statistics import token_cross_entropy, token_statistics
from tests.helpers.token_cases import Allocations, V, message_of, tokens

SPLITS = [lambda x: list(x.split(5, dim=-2)), lambda x: x.chunk(8, dim=-2), lambda x: [x]]


def assert_equal(values, others):
    for value, other in zip(values, others, strict=True):
        assert (value is None and other is None) or torch.equal(value, other)


@pytest.mark.parametrize("split", SPLITS, ids=["of 5", "8 in a tuple", "one"])
@pytest.mark.parametrize("shape", [(33,), (4, 33), (2, 2, 33)])
@pytest.mark.parametrize("shift", [False, True])
def test_statistics_are_those_of_the_whole(split, shape, shift):
    logits, labels = tokens(*shape, ignored=0.3)
    assert_equal(
        token_statistics(split(logits), labels, shift=shift), token_statistics(logits, labels, shift=shift)
    )
    some = {"shift": shift, "statistics": ("ce", "rank")}
    assert_equal(token_statistics(split(logits), labels, **some), token_statistics(logits, labels, **some))
    assert_equal(
        token_cross_entropy(split(logits), labels, shift=shift),
        token_cross_entropy(logits, labels, shift=shift),
    )


def test_gradients_go_into_each_chunk():
    logits, labels = tokens(4, 33, ignored=0.3)
    whole, parts = (
        logits.clone().requires_grad_(),
        [part.clone().requires_grad_() for part in logits.split(8, 1)],
    )
    token_cross_entropy(whole, labels, shift=True)[0].sum().backward()
    token_cross_entropy(parts, labels, shift=True)[0].sum().backward()
    torch.testing.assert_close(torch.cat([part.grad for part in parts], dim=1), whole.grad)


def test_weights_groups_and_other_statistics_are_those_of_the_whole():
    logits, labels = tokens(4, 33, ignored=0.3)
    settings = {
        "weights": torch.rand(4, 33),
        "group": torch.arange(33).expand(4, 33) % 2,
        "groups": ("a", "b"),
        "statistics": ("ce", "margin", "accuracy", "log_rank"),
        "shift": True,
    }
    scored, whole = (score_tokens(x, labels, **settings) for x in (list(logits.split(5, 1)), logits))
    for name in ("ce", "weights", "groups", "labels"):
        assert torch.equal(getattr(scored, name), getattr(whole, name))
    assert scored.statistics.keys() == whole.statistics.keys()
    assert_equal(scored.statistics.values(), whole.statistics.values())


@pytest.mark.parametrize(
    "make", [lambda: PercentileCrossEntropy(shift=True), lambda: TokenProxies(shift=True)]
)
def test_metrics_take_them(make):
    logits, labels = tokens(4, 33, ignored=0.3)
    metric, whole = make(), make()
    metric.update(list(logits.split(5, 1)), labels)
    whole.update(logits, labels)
    for key, value in whole.compute().items():
        assert torch.equal(metric.compute()[key], value) or value.isnan()


def test_labels_that_were_not_shifted_are_noticed():
    labels = torch.randint(0, V, (4, 33), generator=torch.Generator().manual_seed(0))
    logits = 9 * torch.nn.functional.one_hot(labels.roll(-1, 1), V).float()
    with pytest.warns(UserWarning, match="not to be shifted"):
        PercentileCrossEntropy().update(list(logits.split(5, 1)), labels)


def test_chunks_are_not_joined():
    chunks, labels = [torch.randn(2, 8, 50_000) for _ in range(16)], torch.zeros(2, 128, dtype=torch.long)
    with single_threaded(), Allocations(*chunks) as seen:
        PercentileCrossEntropy(shift=True).update(chunks, labels)
    assert seen.largest <= 3_200_000  # a chunk


def test_what_does_not_fit_is_refused_and_shown():
    logits, labels = tokens(2, 9)
    first, second = logits.split(5, 1)
    assert "shift=True" in message_of([first, second[:, :-1]], labels)
    assert "(2, 5, 60)" in message_of([first[..., 1:], second], labels)
    assert "torch.bfloat16" in message_of([first, second.bfloat16()], labels)
    assert "nothing" in message_of([], labels)
    assert "int" in message_of([1, 2], labels)
    assert "int64" in message_of([first.long(), second.long()], labels)
    labels[0, 7] = V
    assert f"{V}" in message_of([first, second], labels)
    with pytest.raises(ValueError, match=r"\(2, 5, 61\)"):
        score_tokens([first, second])
