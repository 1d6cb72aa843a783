"""Metrics that tell kinds of tokens apart: each kind as if it were alone."""

import math
import warnings

import pytest
import torch

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.distributions import bound, values_of, worst_rank_error
from tests.helpers.summaries import (
    KEYS,
    PERCENTILES,
    assert_same_result,
    assert_summarises,
    of_group,
    overall,
)
from tests.helpers.token_batches import GROUP_NAMES, grouped_batch, grouped_losses, losses_of

INF, NAN = math.inf, math.nan


def test_the_keys_of_each_group_follow_those_of_all_with_its_name_in_front():
    metric = PercentileCrossEntropy(percentiles=(50, 99.9), groups=GROUP_NAMES)
    keys = ("mean", "p50", "p99_9", "trimmed_mean", "finite_mean", "count", "nonfinite", "invalid")
    wanted = (*keys, *(f"prompt_{key}" for key in keys), *(f"completion_{key}" for key in keys))
    assert metric.keys == wanted
    losses, group = grouped_losses()
    metric.update(losses=losses, group=group)
    result = metric.compute()
    assert tuple(result) == wanted
    assert {(value.dtype, value.ndim) for value in result.values()} == {(torch.float64, 0)}
    assert "p50" in PercentileCrossEntropy().keys
    assert not any("prompt" in key for key in PercentileCrossEntropy().keys)


def test_few_tokens_give_each_group_what_torch_gives_and_all_together_too():
    metric, alone = PercentileCrossEntropy(groups=GROUP_NAMES), PercentileCrossEntropy()
    batches = [grouped_batch(seed) for seed in range(5)]
    for logits, labels, group in batches:
        metric.update(logits, labels, group=group)
        alone.update(logits, labels)
    result = metric.compute()
    assert_same_result(overall(result), alone.compute(), rtol=1e-12)
    losses, labels, group = (
        torch.cat([one.flatten() for one in parts])
        for parts in zip(*((losses_of(x, y), y, g) for x, y, g in batches), strict=True)
    )
    for index, name in enumerate(GROUP_NAMES):
        assert_summarises(of_group(result, name), losses[(labels != -100) & (group == index)], rtol=1e-6)
    assert result["prompt_count"] > result["completion_count"] > 0


def test_many_tokens_keep_the_promise_in_each_group_and_together():
    values = values_of("ce like", 300_000)
    group = (torch.rand(300_000, generator=torch.Generator().manual_seed(0)) < 0.2).long()
    values = torch.where(group == 1, values / 3, values)
    metric = PercentileCrossEntropy(groups=GROUP_NAMES)
    for one, its in zip(values.split(7000), group.split(7000), strict=True):
        metric.update(losses=one, group=its)
    result = metric.compute()
    q = [p / 100 for p in PERCENTILES]
    for prefix, own in (
        ("", values),
        ("prompt_", values[group == 0]),
        ("completion_", values[group == 1]),
    ):
        estimates = [result[f"{prefix}p{p}"].item() for p in PERCENTILES]
        assert worst_rank_error(own, estimates, torch.tensor(q).numpy()) <= bound(len(own))
        assert result[f"{prefix}count"] == len(own)
        torch.testing.assert_close(result[f"{prefix}mean"], own.double().mean(), rtol=1e-12, atol=0)


def test_each_group_is_bit_for_bit_a_metric_fed_only_its_tokens():
    metric = StreamingQuantiles(groups=("a", "b", "c"), compression=64)
    alone = [StreamingQuantiles(compression=64) for _ in range(3)]
    values, group = values_of("normal", 20_000), torch.arange(20_000) % 7 // 3
    metric.update(values, group=group)
    for index, one in enumerate(alone):
        one.update(values[group == index])
    for one, digest in zip(alone, metric.group_digests.values(), strict=True):
        assert torch.equal(one.digest, digest)


FORMS = {
    "per token": lambda group, shape: group,
    "int32": lambda group, shape: group.int(),
    "uint8": lambda group, shape: group.to(torch.uint8),
    "bool": lambda group, shape: group.bool(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_group_per_token_may_be_of_any_integer_type_or_bool(form):
    logits, labels, group = grouped_batch()
    metric, twin = PercentileCrossEntropy(groups=GROUP_NAMES), PercentileCrossEntropy(groups=GROUP_NAMES)
    metric.update(logits, labels, group=FORMS[form](group, labels.shape))
    metric.update(logits, labels, group=group)
    twin.update(logits, labels, group=group)
    twin.update(logits, labels, group=group)
    assert_same_result(metric.compute(), twin.compute())
    assert metric.compute()["completion_count"] == 2 * ((labels != -100) & (group == 1)).sum()


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("form", ["tensor", "list", "bool"])
def test_a_group_per_sequence_is_that_of_all_its_tokens(shift, form):
    logits, labels, _ = grouped_batch()
    each = torch.tensor([0, 1, 1, 0])
    given = {"tensor": each, "list": each.tolist(), "bool": each.bool()}[form]
    metric, twin = (PercentileCrossEntropy(groups=GROUP_NAMES, shift=shift) for _ in range(2))
    metric.update(logits, labels, group=given)
    twin.update(logits, labels, group=each[:, None].expand(4, 16))
    assert_same_result(metric.compute(), twin.compute())
    own = labels[1:3, 1:] if shift else labels[1:3]
    assert metric.compute()["completion_count"] == (own != -100).sum()


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("number", [1, True, torch.tensor(1), torch.tensor(True)])
def test_a_single_number_is_the_group_of_the_whole_batch(shift, number):
    logits, labels, _ = grouped_batch()
    metric = PercentileCrossEntropy(groups=GROUP_NAMES, shift=shift)
    alone = PercentileCrossEntropy(shift=shift)
    metric.update(logits, labels, group=number)
    alone.update(logits, labels)
    result = metric.compute()
    assert_same_result(of_group(result, "completion"), alone.compute())
    assert result["prompt_count"] == 0
    assert result["prompt_p50"].isnan()


def test_with_shift_the_group_of_a_token_stands_where_its_label_stands():
    logits, labels, group = grouped_batch()
    metric = PercentileCrossEntropy(groups=GROUP_NAMES, shift=True)
    metric.update(logits, labels, group=group)
    losses, kept = losses_of(logits[:, :-1], labels[:, 1:]), labels[:, 1:] != -100
    result = metric.compute()
    for index, name in enumerate(GROUP_NAMES):
        assert_summarises(of_group(result, name), losses[kept & (group[:, 1:] == index)], rtol=1e-6)


def test_losses_made_elsewhere_are_not_shifted_and_neither_is_their_group():
    losses, group = grouped_losses()
    metric = PercentileCrossEntropy(groups=GROUP_NAMES, shift=True)
    metric.update(losses=losses.reshape(4, 25), group=group.reshape(4, 25))
    for index, name in enumerate(GROUP_NAMES):
        assert_summarises(of_group(metric.compute(), name), losses[group == index])


def test_mask_and_weights_count_in_the_group_of_their_token():
    losses, group = grouped_losses()
    weights, mask = torch.arange(100) % 4, torch.arange(100) % 5 > 0
    metric = PercentileCrossEntropy(groups=GROUP_NAMES)
    mean = metric.update_and_mean(losses=losses, mask=mask, weights=weights, group=group)
    repeat = weights * mask
    result = metric.compute()
    for index, name in enumerate(GROUP_NAMES):
        own = group == index
        assert_summarises(of_group(result, name), losses[own].repeat_interleave(repeat[own]))
    assert_summarises(overall(result), losses.repeat_interleave(repeat))
    torch.testing.assert_close(mean, losses.repeat_interleave(repeat).mean())


@pytest.mark.parametrize("strange", [-100, 2, -1, 10**9])
@pytest.mark.parametrize("shift", [False, True])
def test_an_ignored_token_may_have_any_group(strange, shift):
    logits, labels, group = grouped_batch()
    metric, twin = (PercentileCrossEntropy(groups=GROUP_NAMES, shift=shift) for _ in range(2))
    metric.update(logits, labels, group=torch.where(labels == -100, strange, group))
    twin.update(logits, labels, group=group)
    assert_same_result(metric.compute(), twin.compute())
    assert metric.compute()["invalid"] == 0
    losses, group = grouped_losses()
    for nothing in ({"mask": group == 0}, {"weights": (group == 0).float()}):
        metric.update(losses=losses, group=torch.where(group == 0, 0, strange), **nothing)


def test_nan_and_infinite_losses_are_counted_in_their_group():
    metric = PercentileCrossEntropy(groups=GROUP_NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.update(
            losses=torch.tensor([1.0, NAN, 2.0, INF, INF, 4.0]), group=torch.tensor([0, 0, 1, 1, 1, 1])
        )
        result = metric.compute()
    assert [result[f"{name}nonfinite"] for name in ("", "prompt_", "completion_")] == [3, 1, 2]
    assert [result[f"{name}count"] for name in ("", "prompt_", "completion_")] == [5, 1, 4]
    assert [result[f"{name}mean"] for name in ("", "prompt_", "completion_")] == [INF, 1, INF]
    assert result["completion_finite_mean"] == 3


def test_a_group_without_tokens_is_nan_and_counts_0_beside_the_others():
    metric = StreamingQuantiles(groups=("a", "b"))
    metric.update([1.0, 2.0, 3.0], group=torch.zeros(3, dtype=torch.long))
    result = metric.compute()
    assert all(result[f"b_{key}"].isnan() for key in KEYS[:-3])
    assert [result[f"b_{key}"] for key in KEYS[-3:]] == [0, 0, 0]
    assert result["p50"] == result["a_p50"] == 2


def test_streaming_quantiles_take_groups_with_weights_and_python_numbers():
    metric = StreamingQuantiles(groups=("a", "b"))
    metric.update(-3, group=1)
    metric.update([2, 4], torch.tensor([3, 1]), group=[0, 1])
    metric.update(torch.tensor([[1.0, 2.0], [5.0, 6.0]]), group=torch.tensor([1, 0]))
    result = metric.compute()
    assert_summarises(of_group(result, "a"), torch.tensor([2.0, 2, 2, 5, 6]), rtol=1e-12)
    assert_summarises(of_group(result, "b"), torch.tensor([-3.0, 4, 1, 2]), rtol=1e-12)
    assert_summarises(overall(result), torch.tensor([2.0, 2, 2, 5, 6, -3, 4, 1, 2]), rtol=1e-12)


def test_group_digests_and_digest_are_those_of_what_was_seen():
    metric = PercentileCrossEntropy(groups=GROUP_NAMES, compression=64)
    assert list(metric.group_digests) == list(GROUP_NAMES)
    assert all(torch.equal(one, td.empty(64)) for one in metric.group_digests.values())
    losses, group = grouped_losses(n=300)
    metric.update(losses=losses, group=group)
    for index, name in enumerate(GROUP_NAMES):
        assert metric.group_digests[name].shape == (67, 2)
        assert td.count(metric.group_digests[name]) == (group == index).sum()
    assert metric.digest.shape == (67, 2)
    assert td.count(metric.digest) == 300
    metric.compute()
    assert td.count(metric.digest) == 300
    metric.reset()
    assert td.count(metric.digest) == 0
    assert PercentileCrossEntropy().group_digests == {}


LOSSES, GROUP = (each.reshape(3, 4) for each in grouped_losses(n=12))
