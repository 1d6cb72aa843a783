"""PercentileCrossEntropy: its results are those of the tokens that count."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from tests.helpers.distributions import bound, ce_like, exact_quantile, worst_rank_error
from tests.helpers.summaries import KEYS, assert_summarises
from tests.helpers.token_batches import V, batch, counted_losses, random_losses


def test_compute_gives_these_keys_in_this_order_as_0d_float64():
    metric = PercentileCrossEntropy()
    metric.update(*batch())
    result = metric.compute()
    assert list(result) == KEYS == list(metric.keys)
    assert {(value.dtype, value.ndim) for value in result.values()} == {(torch.float64, 0)}


def test_percentiles_are_computed_in_the_order_given_and_a_fraction_has_an_underscore():
    metric = PercentileCrossEntropy(percentiles=(99.9, 50, 0, 100))
    losses = random_losses()
    metric.update(losses=losses)
    result = metric.compute()
    assert list(result)[1:5] == ["p99_9", "p50", "p0", "p100"]
    torch.testing.assert_close(result["p99_9"], exact_quantile(losses, 0.999), rtol=1e-12, atol=0)
    assert result["p0"] == losses.min()
    assert result["p100"] == losses.max()


def test_few_tokens_give_exactly_what_torch_gives_without_the_ignored_ones():
    metric = PercentileCrossEntropy()
    batches = [batch(seed) for seed in range(5)]
    for logits, labels in batches:
        metric.update(logits, labels)
    assert_summarises(metric.compute(), torch.cat([counted_losses(*both) for both in batches]), rtol=1e-6)


def test_an_ignored_token_does_not_enter_as_0():
    metric = PercentileCrossEntropy()
    labels = torch.tensor([[-100, 3, -100, -100, 5, -100]])
    metric.update(torch.zeros(1, 6, V), labels)
    result = metric.compute()
    assert result["count"] == 2
    for key in ["mean", "p5", "p50", "trimmed_mean", "finite_mean"]:
        assert result[key] == pytest.approx(math.log(V), rel=1e-6), key


def test_a_loss_of_exactly_0_counts():
    metric = PercentileCrossEntropy(percentiles=(50,))
    logits = torch.full((1, 3, V), -1000.0)
    logits[..., 2] = 1000.0
    metric.update(logits, torch.tensor([[2, 2, -100]]))
    assert metric.compute()["count"] == 2
    assert metric.compute()["p50"] == 0


def test_another_ignore_index_is_heeded():
    logits, labels = batch(ignored=0)
    labels[:, ::2] = 7
    metric = PercentileCrossEntropy(ignore_index=7)
    metric.update(logits, labels)
    assert_summarises(metric.compute(), counted_losses(logits, labels, ignore_index=7), rtol=1e-6)


def test_with_shift_labels_are_the_inputs():
    logits, labels = batch()
    metric = PercentileCrossEntropy(shift=True)
    metric.update(logits, labels)
    assert_summarises(metric.compute(), counted_losses(logits[:, :-1], labels[:, 1:]), rtol=1e-6)


def test_bfloat16_logits_are_not_scored_in_bfloat16():
    logits, labels = batch()
    metric = PercentileCrossEntropy()
    metric.update(logits.bfloat16(), labels)
    assert_summarises(metric.compute(), counted_losses(logits.bfloat16().float(), labels), rtol=1e-6)


def test_losses_and_mask_give_the_same_as_logits_and_labels():
    logits, labels = batch()
    from_logits, from_losses = PercentileCrossEntropy(), PercentileCrossEntropy()
    from_logits.update(logits, labels)
    losses = F.cross_entropy(logits.reshape(-1, V), labels.reshape(-1), reduction="none").reshape(
        labels.shape
    )
    from_losses.update(losses=losses, mask=labels != -100)
    assert from_losses.compute()["count"] == (labels != -100).sum()
    torch.testing.assert_close(from_losses.compute(), from_logits.compute(), rtol=1e-6, atol=1e-6)


def test_losses_without_a_mask_all_count_whatever_ignore_index_and_shift():
    metric = PercentileCrossEntropy(ignore_index=0, shift=True)
    losses = random_losses().reshape(4, 25)
    losses[0, 0] = 0.0
    metric.update(losses=losses)
    assert_summarises(metric.compute(), losses)


def test_a_whole_weight_is_repetition_and_0_is_absence():
    metric = PercentileCrossEntropy()
    losses, weights = random_losses(), torch.arange(100) % 5
    mask = torch.arange(100) % 7 > 0
    metric.update(losses=losses, mask=mask, weights=weights)
    assert_summarises(metric.compute(), losses.repeat_interleave(weights * mask))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_a_weight_stands_where_its_label_stands(shift, dtype):
    logits, labels = batch()
    weights = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(1))
    metric = PercentileCrossEntropy(shift=shift)
    metric.update(logits, labels, weights=weights.to(dtype))
    if shift:
        logits, labels, weights = logits[:, :-1], labels[:, 1:], weights[:, 1:]
    weights = weights[labels != -100]
    assert_summarises(metric.compute(), counted_losses(logits, labels).repeat_interleave(weights), rtol=1e-6)


def test_bool_weights_choose_tokens():
    logits, labels = batch()
    metric = PercentileCrossEntropy()
    metric.update(logits, labels, weights=torch.arange(16).expand(4, 16) < 5)
    assert_summarises(metric.compute(), counted_losses(logits[:, :5], labels[:, :5]), rtol=1e-6)


@pytest.mark.parametrize("cls", [PercentileCrossEntropy, StreamingQuantiles])
def test_an_empty_metric_gives_nan_and_counts_of_0(cls):
    metric = cls()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        result = metric.compute()
    assert list(result) == KEYS
    assert all(result[key].isnan() for key in KEYS[:-3])
    assert [result[key] for key in KEYS[-3:]] == [0, 0, 0]


def test_a_batch_that_is_ignored_as_a_whole_changes_nothing():
    logits, labels = batch()
    metric = PercentileCrossEntropy()
    metric.update(logits, torch.full_like(labels, -100))
    assert metric.compute()["count"] == 0
    assert metric.compute()["p50"].isnan()
    metric.update(logits, labels)
    metric.update(logits, torch.full_like(labels, -100))
    metric.update(logits[:0], labels[:0])
    assert_summarises(metric.compute(), counted_losses(logits, labels), rtol=1e-6)


def test_nan_losses_are_left_out_and_counted_in_a_single_warning():
    metric = PercentileCrossEntropy()
    losses = random_losses()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric.update(losses=torch.cat([losses, torch.tensor([math.nan] * 3)]))
        first = metric.compute()
        metric.update(losses=torch.tensor([math.nan]))
        second = metric.compute()
    (warning,) = [str(w.message) for w in caught if "NaN" in str(w.message)]
    assert "3 values" in warning
    assert first["nonfinite"] == 3
    assert second["nonfinite"] == 4
    assert second["count"] == 100
    assert_summarises({**second, "nonfinite": second["nonfinite"] - 4}, losses)


def test_infinite_losses_count_and_leave_the_median_and_finite_mean_finite():
    metric = PercentileCrossEntropy()
    logits, labels = batch(ignored=0)
    labels[0, 0] = 3
    logits[0, 0, 3] = -math.inf
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric.update(logits.half(), labels)
        result = metric.compute()
        metric.compute()
    (message,) = [str(w.message) for w in caught if "infinite" in str(w.message)]
    assert "1 values were infinite" in message
    others = counted_losses(logits.half().float(), labels)[1:].double()
    assert result["count"] == 64
    assert result["nonfinite"] == 1
    assert result["mean"] == math.inf
    torch.testing.assert_close(result["finite_mean"], others.mean(), rtol=1e-6, atol=0)
    with_inf = torch.cat([others, torch.tensor([math.inf])])
    torch.testing.assert_close(result["p50"], exact_quantile(with_inf, 0.5), rtol=1e-6, atol=0)


def test_between_the_highest_finite_loss_and_an_infinite_one_lies_infinity():
    losses = torch.tensor([1.0, 2.0, 3.0, math.inf])
    metric = PercentileCrossEntropy(percentiles=(60, 66, 67, 70, 80, 100))
    metric.update(losses=losses)
    result = metric.compute()
    percentiles = [result[key].item() for key in metric.keys[1:7]]
    assert percentiles == pytest.approx([2.8, 2.98, math.inf, math.inf, math.inf, math.inf])


def test_counts_beyond_2_to_the_24_are_exact():
    metric = PercentileCrossEntropy(percentiles=(50,))
    weights = torch.tensor([2**24, 1, 2**40])
    metric.update(losses=torch.tensor([1.0, 2.0, 3.0]), weights=weights)
    for _ in range(3):
        metric.update(losses=torch.tensor([2.0]))
    assert int(metric.compute()["count"]) == 2**40 + 2**24 + 4


@pytest.mark.parametrize("cls", [PercentileCrossEntropy, StreamingQuantiles])
def test_a_million_losses_keep_the_promised_rank_error(cls):
    n = 1_000_000
    values = ce_like(n, np.random.default_rng(0))
    percentiles = (0.1, *range(1, 100), 99.9)
    metric = cls(percentiles=percentiles)
    name = "losses" if cls is PercentileCrossEntropy else "values"
    for piece in torch.from_numpy(values).split(32_768):
        metric.update(**{name: piece})
    result = metric.compute()
    estimates = [result[key].item() for key in metric.keys[1:-5]]
    assert worst_rank_error(values, estimates, np.array(percentiles) / 100) <= bound(n)
    assert result["count"] == n
    assert result["mean"].item() == pytest.approx(values.mean(dtype=np.float64), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_in_half_precision_are_named_once_and_counted(dtype):
    metric = PercentileCrossEntropy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            metric.update(losses=torch.tensor([1.0, 2.0], dtype=dtype))
        metric.update(torch.randn(1, 4, 8).to(dtype), torch.zeros(1, 4, dtype=torch.long))
    said = [str(each.message) for each in caught]
    assert len(said) == 1
    assert f"the losses are {dtype}" in said[0]
    assert metric.compute()["count"] == 8


def test_losses_in_single_precision_are_not_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PercentileCrossEntropy().update(losses=torch.tensor([1.0, 2.0]))
