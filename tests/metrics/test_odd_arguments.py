"""What looks like a mistake is warned of once; what cannot be is refused, with what to do instead."""

import warnings

import pytest
import torch

from lightning_pce import (
    BitsPerByte,
    PercentileCrossEntropy,
    StreamingQuantiles,
    TokenProxies,
    token_statistics,
)

LOGITS = torch.randn(2, 16, 50, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(1))


def said_by(job):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        job()
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("percentiles", [(0.05, 0.5, 0.95), (0.5,), (0.25, 1)])
def test_percentiles_that_look_like_fractions_are_warned_of(percentiles):
    for make in (PercentileCrossEntropy, StreamingQuantiles):
        [message] = said_by(lambda make=make: make(percentiles))
        assert "in percent" in message


@pytest.mark.parametrize("percentiles", [(1,), (0, 50), (0.1, 50, 99.9), (), (0,), (0.5, 5)])
def test_other_percentiles_are_not(percentiles):
    assert not said_by(lambda: StreamingQuantiles(percentiles))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_unsigned_labels_that_cannot_be_ignored_are_warned_of_once(dtype):
    labels = LABELS.to(dtype)
    metric, proxies = PercentileCrossEntropy(), TokenProxies()

    def twice(one):
        for _ in range(2):
            one.update(LOGITS, labels)

    for one in (metric, proxies):
        [message] = [text for text in said_by(lambda one=one: twice(one)) if "uint" in text]
        assert "ignore_index=-100" in message
    assert any("uint" in text for text in said_by(lambda: token_statistics(LOGITS, labels)))
    assert not said_by(lambda: PercentileCrossEntropy(ignore_index=0).update(LOGITS, labels))
    assert not said_by(lambda: PercentileCrossEntropy(ignore_index=None).update(LOGITS, labels))


@pytest.mark.parametrize("losses", [-torch.rand(100), torch.tensor([3.0, -0.5, 2.0])])
def test_negative_losses_are_warned_of_once(losses):
    metric = PercentileCrossEntropy()
    metric.update(losses=losses)
    [message] = [text for text in said_by(lambda: (metric.compute(), metric.compute())) if "negative" in text]
    assert "log-probabilities" in message
    assert not said_by(StreamingQuantiles().update(losses) or (lambda: None))


def test_without_an_ignore_index_every_token_counts():
    for metric in (PercentileCrossEntropy((50,), ignore_index=None), TokenProxies(ignore_index=None)):
        metric.update(LOGITS, LABELS)
        result = metric.compute()
        assert result["count" if "count" in result else "tokens"] == 32
        with pytest.raises(ValueError, match=r"from -100 to -100"):
            metric.update(LOGITS, LABELS.masked_fill(LABELS[0, 0] == LABELS, -100))
    shifted = PercentileCrossEntropy((50,), ignore_index=None, shift=True)
    shifted.update(LOGITS, LABELS)
    assert shifted.compute()["count"] == 30
    wanted = token_statistics(LOGITS[:, :-1], LABELS[:, 1:]).ce
    assert shifted.compute()["mean"].item() == pytest.approx(wanted.double().mean().item())
    assert token_statistics(LOGITS, LABELS, ignore_index=None, shift=True).valid.sum() == 30


@pytest.mark.parametrize("ignored", [[-100, 0], "x", 1.5, True])
def test_an_impossible_ignore_index_is_refused_where_it_is_given(ignored):
    for make in (PercentileCrossEntropy, TokenProxies):
        with pytest.raises(ValueError, match="`ignore_index` to be a whole number, or None"):
            make(ignore_index=ignored)


REFUSED = {
    "labels elsewhere": (
        {"logits": LOGITS, "labels": LABELS.to("meta")},
        r"labels on meta.*labels\.to\(logits",
    ),
    "mask elsewhere": ({"losses": LOGITS[..., 0].clone(), "mask": (LABELS > 3).to("meta")}, r"mask on meta"),
    "sparse logits": ({"logits": LOGITS.to_sparse(), "labels": LABELS}, r"`logits`.*dense.*to_dense"),
    "nested logits": (
        {"logits": torch.nested.nested_tensor([LOGITS[0], LOGITS[1, :3]]), "labels": LABELS},
        r"`logits`.*nested.*each sequence",
    ),
    "mask of integers": ({"losses": LOGITS[..., 0].clone(), "mask": LABELS.clamp(max=1)}, r"mask\.bool\(\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_is_refused_with_what_to_do(case):
    arguments, message = REFUSED[case]
    metric = PercentileCrossEntropy((50,))
    with pytest.raises(ValueError, match=message):
        metric.update(**arguments)
    assert metric.compute()["count"] == 0


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad], ids=["vmap", "grad"])
def test_transforms_of_torch_func_are_refused_in_words(transform):
    metric = PercentileCrossEntropy((50,))

    def step(logits):
        return metric.update_and_mean(logits, LABELS[0])

    with pytest.raises(ValueError, match=r"torch\.func transforms"):
        transform(step)(LOGITS if transform is torch.func.vmap else LOGITS[0])
    with pytest.raises(ValueError, match=r"torch\.func transforms"):
        torch.func.vmap(lambda losses: metric.update(losses=losses))(LOGITS[..., 0])
    assert metric.compute()["count"] == 0


def test_losses_in_float64_keep_their_digits():
    losses = torch.rand(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 5
    metric = PercentileCrossEntropy((50,))
    mean = metric.update_and_mean(losses=losses)
    assert mean.dtype == torch.float64
    assert abs(metric.compute()["mean"] / losses.mean() - 1) < 1e-14
    few = PercentileCrossEntropy((50,))
    few.update(losses=losses[:101])
    assert few.compute()["p50"] == losses[:101].median()


def test_every_metric_can_be_plotted():
    bits = BitsPerByte([1, 2])
    bits.update(torch.rand(3), torch.tensor([0, 1, 1]))
    _, ax = bits.plot()
    assert ax.get_children()
    proxies = TokenProxies()
    proxies.update(LOGITS, LABELS)
    result = proxies.compute()
    for figure, ax in (proxies.plot(), proxies.plot([result, result]), TokenProxies().plot()):
        assert figure is ax.figure
        assert len(ax.texts) == 80
    drawn = [text.get_text() for text in proxies.plot(result)[1].texts]
    assert drawn[0].startswith(f"{float(result['ce_uniform']):.3g} ±")
