from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torchmetrics import MetricCollection, SumMetric
from torchmetrics.wrappers import MetricTracker, Running

from lightning_pce import DigestView, PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.casts_and_copies import CASTS, COPIES
from tests.helpers.distributions import bound, ce_like, exact_quantile, exact_trimmed_mean, worst_rank_error

V = 29
PERCENTILES = (5, 25, 50, 75, 95, 99)
KEYS = ["mean", "p5", "p25", "p50", "p75", "p95", "p99"]
KEYS += ["trimmed_mean", "finite_mean", "count", "nonfinite", "invalid"]


class OtherCrossEntropy(PercentileCrossEntropy):
    """Differs from its parent in nothing but the class."""


def batch(seed=0, shape=(4, 16), ignored=0.3):
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, V, generator=random)
    labels = torch.randint(0, V, shape, generator=random)
    return logits, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)


def some_losses(seed=0, n=100):
    return 1 + 5 * torch.rand(n, generator=torch.Generator().manual_seed(seed))


def kept_losses(logits, labels, ignore_index=-100):
    losses = F.cross_entropy(
        logits.reshape(-1, V), labels.reshape(-1), reduction="none", ignore_index=ignore_index
    )
    return losses[labels.reshape(-1) != ignore_index]


def assert_summarises(result, values, rtol=1e-12):
    """The result is that of all these finite values, by torch.quantile and by hand."""
    values = values.double().reshape(-1)
    expected = {
        "mean": values.mean(),
        **dict(zip(KEYS[1:7], exact_quantile(values, [p / 100 for p in PERCENTILES]), strict=True)),
        "trimmed_mean": torch.tensor(exact_trimmed_mean(values, 0.05, 0.95), dtype=torch.float64),
        "finite_mean": values.mean(),
        "count": torch.tensor(len(values)).double(),
        "nonfinite": torch.tensor(0.0).double(),
        "invalid": torch.tensor(0.0).double(),
    }
    torch.testing.assert_close(dict(result), expected, rtol=rtol, atol=1e-12)


def assert_same_result(actual, expected):
    assert list(actual) == list(expected)
    for key, value in actual.items():
        assert torch.equal(value.nan_to_num(-1), expected[key].nan_to_num(-1)), key


# ------------------------------------------------------------------------------------------------ results


def test_compute_gives_these_keys_in_this_order_as_0d_float64():
    metric = PercentileCrossEntropy()
    metric.update(*batch())
    result = metric.compute()
    assert list(result) == KEYS == list(metric.keys)
    assert {(value.dtype, value.ndim) for value in result.values()} == {(torch.float64, 0)}


def test_percentiles_are_computed_in_the_order_given_and_a_fraction_has_an_underscore():
    metric = PercentileCrossEntropy(percentiles=(99.9, 50, 0, 100))
    losses = some_losses()
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
    assert_summarises(metric.compute(), torch.cat([kept_losses(*both) for both in batches]), rtol=1e-6)


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
    assert_summarises(metric.compute(), kept_losses(logits, labels, ignore_index=7), rtol=1e-6)


def test_with_shift_labels_are_the_inputs():
    logits, labels = batch()
    metric = PercentileCrossEntropy(shift=True)
    metric.update(logits, labels)
    assert_summarises(metric.compute(), kept_losses(logits[:, :-1], labels[:, 1:]), rtol=1e-6)


def test_bfloat16_logits_are_not_scored_in_bfloat16():
    logits, labels = batch()
    metric = PercentileCrossEntropy()
    metric.update(logits.bfloat16(), labels)
    assert_summarises(metric.compute(), kept_losses(logits.bfloat16().float(), labels), rtol=1e-6)


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
    losses = some_losses().reshape(4, 25)
    losses[0, 0] = 0.0
    metric.update(losses=losses)
    assert_summarises(metric.compute(), losses)


def test_a_whole_weight_is_repetition_and_0_is_absence():
    metric = PercentileCrossEntropy()
    losses, weights = some_losses(), torch.arange(100) % 5
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
    assert_summarises(metric.compute(), kept_losses(logits, labels).repeat_interleave(weights), rtol=1e-6)


def test_bool_weights_choose_tokens():
    logits, labels = batch()
    metric = PercentileCrossEntropy()
    metric.update(logits, labels, weights=torch.arange(16).expand(4, 16) < 5)
    assert_summarises(metric.compute(), kept_losses(logits[:, :5], labels[:, :5]), rtol=1e-6)


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
    assert_summarises(metric.compute(), kept_losses(logits, labels), rtol=1e-6)


def test_nan_losses_are_left_out_and_counted_in_a_single_warning():
    metric = PercentileCrossEntropy()
    losses = some_losses()
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
    others = kept_losses(logits.half().float(), labels)[1:].double()
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


# ------------------------------------------------------------------------------------- StreamingQuantiles


def test_streaming_quantiles_of_any_numbers():
    metric = StreamingQuantiles()
    values = torch.linspace(-50, 70, 83)
    metric.update(values[:40].reshape(5, 8))
    metric.update(torch.tensor([-7, 0, 1_000_000_007]))
    metric.update(values[40:].tolist())
    metric.update(-3)
    metric.update(2.5)
    metric.update([4, -4])
    metric.update([])
    extra = torch.tensor([-7, 0, 1_000_000_007, -3, 2.5, 4, -4], dtype=torch.float64)
    assert_summarises(metric.compute(), torch.cat([values.double(), extra]))


def test_streaming_quantiles_take_weights_and_masks():
    values, weights = some_losses() - 3, torch.arange(100) % 4
    weighted, masked = StreamingQuantiles(), StreamingQuantiles()
    weighted.update(values, weights)
    masked.update(values, weights == 2)
    assert_summarises(weighted.compute(), values.repeat_interleave(weights))
    assert_summarises(masked.compute(), values[weights == 2])


def test_python_floats_do_not_depend_on_the_default_dtype():
    usual, under_bfloat16 = StreamingQuantiles(), StreamingQuantiles()
    usual.update([1.001, -2.003])
    torch.set_default_dtype(torch.bfloat16)
    try:
        under_bfloat16.update([1.001, -2.003])
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_result(under_bfloat16.compute(), usual.compute())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("values", {"values": torch.ones(3, dtype=torch.bool)}),
        ("values", {"values": torch.ones(3, dtype=torch.complex64)}),
        ("weights", {"values": torch.ones(3), "weights": torch.ones(2)}),
        ("weights", {"values": torch.ones(3), "weights": torch.tensor([1.0, -1.0, 0.0])}),
        ("weights", {"values": torch.ones(3), "weights": torch.tensor([1.0, math.nan, 0.0])}),
    ],
)
def test_streaming_quantiles_refuse_bad_input_and_keep_what_they_have(name, arguments):
    metric = StreamingQuantiles()
    metric.update(some_losses())
    before = metric.digest.clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        metric.update(**arguments)
    assert torch.equal(metric.digest, before)


# ---------------------------------------------------------------------------------------------- bad input

LOGITS, LABELS, LOSSES = torch.zeros(2, 3, V), torch.ones(2, 3, dtype=torch.long), torch.ones(6)
BAD = {
    "mismatched shapes": ("labels", {"logits": LOGITS, "labels": LABELS[:, :2]}),
    "integer logits": ("logits", {"logits": LOGITS.long(), "labels": LABELS}),
    "float labels": ("labels", {"logits": LOGITS, "labels": LABELS.float()}),
    "labels beyond the vocabulary": ("labels", {"logits": LOGITS, "labels": LABELS + V - 1}),
    "negative labels": ("labels", {"logits": LOGITS, "labels": LABELS - 2}),
    "no labels": ("labels", {"logits": LOGITS}),
    "nothing": ("losses", {}),
    "losses and logits": ("losses", {"logits": LOGITS, "labels": LABELS, "losses": LOSSES}),
    "losses and labels": ("losses", {"labels": LABELS, "losses": LOSSES}),
    "mask with logits": ("mask", {"logits": LOGITS, "labels": LABELS, "mask": LABELS > 0}),
    "mean-reduced loss": ("losses", {"losses": torch.tensor(2.0)}),
    "integer losses": ("losses", {"losses": LOSSES.long()}),
    "mask of another shape": ("mask", {"losses": LOSSES, "mask": torch.ones(5, dtype=torch.bool)}),
    "mask of another dtype": ("mask", {"losses": LOSSES, "mask": torch.ones(6)}),
    "negative weights": ("weights", {"losses": LOSSES, "weights": -LOSSES}),
    "negative weights with logits": ("weights", {"logits": LOGITS, "labels": LABELS, "weights": LABELS - 2}),
    "weights that are NaN": ("weights", {"losses": LOSSES, "weights": LOSSES * math.nan}),
    "weights that are infinite": ("weights", {"losses": LOSSES, "weights": LOSSES * math.inf}),
    "weights of another shape": ("weights", {"losses": LOSSES, "weights": torch.ones(5)}),
    "weights of the logits' shape": ("weights", {"logits": LOGITS, "labels": LABELS, "weights": LOGITS}),
}


@pytest.mark.parametrize("call", ["update", "update_and_mean"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_nothing_of_it_enters(case, call):
    name, arguments = BAD[case]
    metric = PercentileCrossEntropy()
    metric.update(*batch())
    before = metric.digest.clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        getattr(metric, call)(**arguments)
    assert torch.equal(metric.digest, before)
    metric.update(*batch(1))
    twin = PercentileCrossEntropy()
    twin.update(*batch())
    twin.update(*batch(1))
    assert_same_result(metric.compute(), twin.compute())


def test_bad_input_to_forward_does_not_lose_what_was_seen():
    metric = PercentileCrossEntropy()
    metric.update(*batch())
    before = metric.digest.clone()
    with pytest.raises(ValueError, match="`labels`"):
        metric(LOGITS, LABELS + V)
    assert torch.equal(metric.digest, before)


def test_a_mean_reduced_loss_is_told_about_reduction_none():
    with pytest.raises(ValueError, match="reduction='none'"):
        PercentileCrossEntropy().update(losses=torch.tensor(2.0))


@pytest.mark.parametrize("cls", [PercentileCrossEntropy, StreamingQuantiles])
@pytest.mark.parametrize(
    "percentiles", [(-1,), (50, 100.5), (50, 50.0), (99.9, 5, 99.9), ("many",), (math.nan,)]
)
def test_impossible_percentiles_are_refused(cls, percentiles):
    with pytest.raises(ValueError, match="`percentiles`"):
        cls(percentiles=percentiles)


def test_too_few_centroids_are_refused():
    with pytest.raises(ValueError, match="`compression`"):
        PercentileCrossEntropy(compression=7)


# -------------------------------------------------------------------------------------- state and dtypes


@pytest.mark.parametrize("cls", [PercentileCrossEntropy, StreamingQuantiles])
def test_the_state_is_one_float64_tensor_of_fixed_size(cls):
    metric = cls(compression=64)
    (state,) = metric.metric_state.values()
    assert len(metric._defaults) == 1
    assert state is metric.digest
    assert state.dtype == torch.float64
    assert state.shape == (67, 2)
    name = "losses" if cls is PercentileCrossEntropy else "values"
    metric.update(**{name: some_losses(n=5000)})
    assert metric.digest.shape == (67, 2)


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_of_the_module_never_touches_the_digest(cast):
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()
    parent = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    for round_ in range(2):  # the second works on what reset brings back
        CASTS[cast](parent)
        for seed in range(3):
            metric.update(*batch(seed))
            twin.update(*batch(seed))
            CASTS[cast](parent)
            assert metric.digest.dtype == torch.float64
            assert torch.equal(metric.digest, twin.digest), round_
        assert_same_result(metric(*batch(9)), twin(*batch(9)))
        assert_same_result(metric.compute(), twin.compute())
        metric.reset()
        twin.reset()


def from_meta_through_parent():
    with torch.device("meta"):
        parent = torch.nn.ModuleDict({"metric": PercentileCrossEntropy(), "layer": torch.nn.Linear(2, 2)})
    assert parent["metric"].digest.is_meta
    return parent.to_empty(device="cpu")["metric"]


def from_meta_directly():
    with torch.device("meta"):
        metric = PercentileCrossEntropy()
    return metric.to_empty(device="cpu")


def under_default_bfloat16():
    torch.set_default_dtype(torch.bfloat16)
    try:
        return PercentileCrossEntropy()
    finally:
        torch.set_default_dtype(torch.float32)


ORIGINS = {
    "meta, parent.to_empty": from_meta_through_parent,
    "meta, metric.to_empty": from_meta_directly,
    "cpu, metric.to_empty": lambda: PercentileCrossEntropy().to_empty(device="cpu"),
    "default dtype bfloat16": under_default_bfloat16,
    "inside no module, bfloat16": lambda: PercentileCrossEntropy().to(torch.bfloat16),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_metric_counts_the_same_wherever_it_was_made(origin):
    metric, twin = ORIGINS[origin](), PercentileCrossEntropy()
    assert metric.digest.device.type == "cpu"
    for _ in range(2):  # the second works on what reset brings back
        for seed in range(3):
            metric.update(*batch(seed))
            twin.update(*batch(seed))
        assert metric.digest.dtype == torch.float64
        assert torch.equal(metric.digest, twin.digest)
        assert_same_result(metric.compute(), twin.compute())
        metric.reset()
        twin.reset()


def test_default_dtype_bfloat16_during_update_and_compute_changes_nothing():
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()
    logits, labels = batch()
    twin.update(logits, labels, weights=labels % 5)
    torch.set_default_dtype(torch.bfloat16)
    try:
        metric.update(logits, labels, weights=labels % 5)
        result = metric.compute()
        metric.reset()
        assert metric.digest.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_result(result, twin.compute())


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("computed_before", [False, True])
def test_a_copy_has_the_same_content_and_goes_its_own_way(how, computed_before):
    metric = PercentileCrossEntropy(percentiles=(50, 99.9), ignore_index=3, shift=True, compression=64)
    metric.update(*batch(ignored=0))
    if computed_before:
        metric.compute()
    clone = COPIES[how](metric)
    assert_same_result(clone.compute(), metric.compute())
    before = metric.digest.clone()
    clone.update(*batch(1, ignored=0))
    assert torch.equal(metric.digest, before)
    metric.update(*batch(1, ignored=0))
    assert not torch.equal(metric.digest, before)
    assert_same_result(clone.compute(), metric.compute())
    clone.reset()
    assert metric.compute()["count"] > 0


def test_nothing_is_saved_with_the_module():
    metric = PercentileCrossEntropy()
    metric.update(*batch())
    assert metric.state_dict() == {}
    assert list(torch.nn.ModuleDict({"metric": metric}).state_dict()) == []
    assert list(metric.buffers()) == list(metric.parameters()) == []


@pytest.mark.parametrize("used_before", [False, True])
def test_a_persistent_metric_is_saved_and_loaded(used_before):
    metric, other = PercentileCrossEntropy(), PercentileCrossEntropy()
    metric.persistent(True)
    other.persistent(True)
    metric.update(*batch())
    if used_before:
        other.update(*batch(5))
        other.compute()
    assert len(metric.state_dict()) == 1
    other.load_state_dict(metric.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # among others, that of compute before update
        assert_same_result(other.compute(), metric.compute())
    saved = metric.digest.clone()
    other.update(*batch(1))
    assert torch.equal(metric.digest, saved)
    metric.update(*batch(1))
    assert_same_result(other.compute(), metric.compute())


@pytest.mark.parametrize("compute_with_cache", [False, True])
def test_a_loaded_or_merged_state_is_seen_by_the_next_compute_and_by_views(compute_with_cache):
    metric, other = (PercentileCrossEntropy(compute_with_cache=compute_with_cache) for _ in range(2))
    metric.persistent(True)
    metric.update(losses=some_losses(0))
    other.update(losses=some_losses(1))
    view = other.view("mean")
    assert other.compute()["mean"] == view.compute()
    other.load_state_dict(metric.state_dict())
    assert other.compute()["mean"] == view.compute() == metric.compute()["mean"]
    other.merge_state(metric)
    assert other.compute()["count"] == 200
    assert other.view("count").compute() == 200


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_with_another_compression_is_refused(strict):
    metric, other = PercentileCrossEntropy(compression=64), PercentileCrossEntropy(compression=128)
    metric.persistent(True)
    other.persistent(True)
    metric.update(*batch())
    parent = torch.nn.ModuleDict({"metric": other})
    with pytest.raises(ValueError, match=r"\(131, 2\).*\(67, 2\)"):
        parent.load_state_dict(torch.nn.ModuleDict({"metric": metric}).state_dict(), strict=strict)


# ------------------------------------------------------------------------- forward, merge, reset, digest


def test_forward_gives_the_batch_and_accumulates_like_update():
    forwarded, updated = PercentileCrossEntropy(), PercentileCrossEntropy()
    for seed in range(3):
        result = forwarded(*batch(seed))
        assert_summarises(result, kept_losses(*batch(seed)), rtol=1e-6)
        updated.update(*batch(seed))
    assert torch.equal(forwarded.digest, updated.digest)
    assert_same_result(forwarded.compute(), updated.compute())
    assert forwarded.update_count == 3


def test_an_update_after_compute_is_seen_by_the_next_compute():
    metric = PercentileCrossEntropy()
    metric.update(losses=some_losses(0))
    metric.compute()
    metric.update(losses=some_losses(1))
    assert_summarises(metric.compute(), torch.cat([some_losses(0), some_losses(1)]))


@pytest.mark.parametrize("form", ["metric", "dict"])
def test_merge_state_adds_the_other_and_leaves_no_stale_result(form):
    metric, other = PercentileCrossEntropy(), PercentileCrossEntropy()
    metric.update(losses=some_losses(0))
    other.update(losses=some_losses(1))
    view = metric.view("count")
    assert metric.compute()["count"] == view.compute() == 100
    others = other.digest.clone()
    metric.merge_state(other if form == "metric" else other.metric_state)
    assert_summarises(metric.compute(), torch.cat([some_losses(0), some_losses(1)]))
    assert view.compute() == 200
    assert torch.equal(other.digest, others)


def test_merge_state_into_a_fresh_metric_does_not_warn_of_compute_before_update():
    metric, other = PercentileCrossEntropy(), PercentileCrossEntropy()
    other.update(losses=some_losses())
    metric.merge_state(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_summarises(metric.compute(), some_losses())


@pytest.mark.parametrize(
    "other",
    [
        PercentileCrossEntropy(percentiles=(50,)),
        PercentileCrossEntropy(compression=64),
        PercentileCrossEntropy(ignore_index=0),
        PercentileCrossEntropy(shift=True),
        OtherCrossEntropy(),
        StreamingQuantiles(),
        SumMetric(),
    ],
    ids=["percentiles", "compression", "ignore_index", "shift", "class", "StreamingQuantiles", "SumMetric"],
)
@pytest.mark.parametrize("form", ["metric", "dict"])
def test_merge_state_refuses_other_settings(other, form):
    metric = PercentileCrossEntropy()
    metric.update(losses=some_losses())
    before = metric.digest.clone()
    with pytest.raises(ValueError):
        metric.merge_state(other if form == "metric" else other.metric_state)
    assert torch.equal(metric.digest, before)
    assert metric.update_count == 1


def test_merge_state_shows_both_settings_when_it_refuses():
    metric, other = (
        PercentileCrossEntropy((50,), compression=64),
        PercentileCrossEntropy((95,), compression=128),
    )
    with pytest.raises(ValueError, match=r"50.*64.*95.*128"):
        metric.merge_state(other)


def test_digest_is_readable_at_any_time():
    metric = PercentileCrossEntropy()
    empty = metric.digest.clone()
    assert torch.equal(empty, td.empty(1024))
    metric.update(losses=some_losses(0))
    assert td.count(metric.digest) == 100
    metric.compute()
    assert td.count(metric.digest) == 100
    metric.update(losses=some_losses(1))
    assert td.count(metric.digest) == 200
    metric.reset()
    assert torch.equal(metric.digest, empty)


def test_digest_is_not_that_of_an_old_compute_after_a_bare_sync():
    metric = PercentileCrossEntropy()
    metric.update(losses=some_losses(0))
    metric.compute()
    metric.update(losses=some_losses(1))
    metric.sync(dist_sync_fn=lambda state, group=None: [state, state], distributed_available=lambda: True)
    assert td.count(metric.digest) == 400
    metric.unsync()
    assert td.count(metric.digest) in (200, 400)
    assert metric.compute()["count"] == 200


def test_reset_forgets_everything():
    metric = PercentileCrossEntropy()
    view = metric.view("count")
    metric.update(losses=some_losses(0))
    view.compute()
    metric.reset()
    assert metric.update_count == 0
    assert view.compute() == 0
    metric.update(losses=some_losses(1))
    assert_summarises(metric.compute(), some_losses(1))


@pytest.mark.parametrize("call", ["update", "forward", "update_and_mean"])
def test_what_was_made_in_inference_mode_can_be_used_in_normal_mode(call):
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()
    with torch.inference_mode():
        getattr(metric, call)(*batch(0))
        metric.compute()
    getattr(metric, call)(*batch(1))
    for seed in range(2):
        twin.update(*batch(seed))
    assert_same_result(metric.compute(), twin.compute())
    with torch.inference_mode():
        metric.reset()
    getattr(metric, call)(*batch(0))
    twin.reset()
    twin.update(*batch(0))
    assert_same_result(metric.compute(), twin.compute())


def test_update_keeps_no_graph():
    metric = PercentileCrossEntropy()
    logits, labels = batch()
    metric.update(logits.requires_grad_(), labels)
    metric(logits, labels)
    metric.update_and_mean(logits, labels)
    assert not metric.digest.requires_grad
    assert not any(value.requires_grad for value in metric.compute().values())


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
    assert_summarises(metric.compute(), kept_losses(logits, labels), rtol=1e-6)
    assert metric.update_count == 1


def test_update_and_mean_heeds_weights_and_shift():
    logits, labels = batch()
    weights = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(1))
    metric = PercentileCrossEntropy(shift=True)
    loss = metric.update_and_mean(logits, labels, weights=weights)
    kept = weights[:, 1:][labels[:, 1:] != -100]
    expected = kept_losses(logits[:, :-1], labels[:, 1:]).repeat_interleave(kept)
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


# -------------------------------------------------------------------------- collections and wrappers

DIFFERENT = {
    "percentiles": lambda: PercentileCrossEntropy(percentiles=(50,)),
    "ignore_index": lambda: PercentileCrossEntropy(ignore_index=3),
    "shift": lambda: PercentileCrossEntropy(shift=True),
    "compression": lambda: PercentileCrossEntropy(compression=512),
    "class": OtherCrossEntropy,
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_collection_never_merges_metrics_that_differ(what):
    collection = MetricCollection({"a": PercentileCrossEntropy(), "b": DIFFERENT[what]()})
    alone = {"a": PercentileCrossEntropy(), "b": DIFFERENT[what]()}
    logits, labels = batch(ignored=0)
    labels[0, :5] = 3
    for arguments in [{"losses": some_losses()}, {"logits": logits, "labels": labels}]:
        collection.update(**arguments)
        for metric in alone.values():
            metric.update(**arguments)
    assert len(collection.compute_groups) == 2
    for name, metric in collection.items():
        assert_same_result(metric.compute(), alone[name].compute())


def test_a_collection_with_different_ignore_index_is_right_though_the_first_batch_has_no_ignored_token():
    collection = MetricCollection(
        {"a": PercentileCrossEntropy(), "b": PercentileCrossEntropy(ignore_index=3)}
    )
    logits, labels = batch(ignored=0)
    labels[labels == 3] = 4
    collection.update(logits, labels)
    labels = torch.where(torch.arange(16) < 5, 3, labels)
    collection.update(logits, labels)
    assert collection["a"].compute()["count"] == 128
    assert collection["b"].compute()["count"] == 64 + 44


def test_a_collection_may_update_equal_metrics_once_and_both_are_right():
    collection = MetricCollection({"a": PercentileCrossEntropy(), "b": PercentileCrossEntropy()})
    for seed in range(3):
        collection.update(losses=some_losses(seed))
    assert len(collection.compute_groups) == 1  # so the test above can fail
    for metric in collection.values():
        assert_summarises(metric.compute(), torch.cat([some_losses(seed) for seed in range(3)]))
    result = collection.compute()
    assert result["a_p50"] == result["b_p50"]


def test_views_of_every_member_of_a_collection_see_every_update():
    metrics = {"a": PercentileCrossEntropy(), "b": PercentileCrossEntropy()}
    collection, views = MetricCollection(metrics), [metric.view("count") for metric in metrics.values()]
    for seed in range(3):
        collection.update(losses=some_losses(seed))
        assert [float(view.compute()) for view in views] == [100 * (seed + 1)] * 2
    assert len(collection.compute_groups) == 1  # only the first member is updated
    collection.reset()
    collection.update(losses=some_losses(3))
    assert [float(view.compute()) for view in views] == [100, 100]


def test_running_covers_its_window():
    running = Running(PercentileCrossEntropy(), window=2)
    for seed in range(3):
        running.update(losses=some_losses(seed))
    assert_summarises(running.compute(), torch.cat([some_losses(1), some_losses(2)]))
    assert_summarises(running(losses=some_losses(3)), some_losses(3))
    assert_summarises(running.compute(), torch.cat([some_losses(2), some_losses(3)]))


def test_metric_tracker_keeps_one_result_per_step():
    tracker = MetricTracker(PercentileCrossEntropy(), maximize=None)  # the default since torchmetrics 1.7
    assert tracker.maximize is False
    for seed in range(3):
        tracker.increment()
        tracker.update(losses=some_losses(seed))
    result = tracker.compute_all()
    assert list(result) == KEYS
    for seed in range(3):
        assert_summarises({key: value[seed] for key, value in result.items()}, some_losses(seed))


# -------------------------------------------------------------------------------------------------- views


def test_a_view_is_one_entry_of_the_result_of_its_parent():
    metric = PercentileCrossEntropy()
    views = {key: metric.view(key) for key in metric.keys}
    assert all(isinstance(view, DigestView) for view in views.values())
    for seed in range(3):
        metric.update(losses=some_losses(seed))
        assert_same_result({key: view.compute() for key, view in views.items()}, metric.compute())
        assert_same_result({key: view.compute() for key, view in views.items()}, metric.compute())


def test_a_view_sees_what_came_after_another_view_was_computed():
    metric = PercentileCrossEntropy()
    metric.update(losses=some_losses(0))
    metric.view("p50").compute()
    metric.update(losses=some_losses(1))
    assert metric.view("count").compute() == 200
    metric.reset()
    assert metric.view("p95").compute().isnan()


@pytest.mark.parametrize("call", ["update", "forward", "__call__"])
def test_a_view_can_not_be_updated_and_names_its_parent(call):
    metric = PercentileCrossEntropy()
    metric.update(losses=some_losses())
    with pytest.raises(RuntimeError, match="PercentileCrossEntropy"):
        getattr(metric.view("p50"), call)(losses=some_losses())
    assert metric.compute()["count"] == 100


def test_reset_of_a_view_resets_its_parent():
    metric = PercentileCrossEntropy()
    view = metric.view("p50")
    metric.update(losses=some_losses())
    view.compute()
    view.reset()
    assert metric.update_count == 0
    assert metric.compute()["count"] == 0
    assert view.compute().isnan()


@pytest.mark.parametrize("key", ["p51", "median", "", "p5.0"])
def test_a_view_of_an_unknown_key_is_refused(key):
    with pytest.raises(ValueError, match="`key`"):
        PercentileCrossEntropy().view(key)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("order", [("metric", "view"), ("view", "metric")])
def test_copies_of_parent_and_view_stay_linked_to_each_other(how, order):
    metric = PercentileCrossEntropy()
    parts = {"metric": metric, "view": metric.view("count")}
    modules = torch.nn.ModuleDict({name: parts[name] for name in order})
    metric.update(losses=some_losses())
    modules["view"].compute()
    copied = how(modules)
    assert copied["view"].parent is copied["metric"]
    copied["metric"].update(losses=some_losses())
    assert copied["view"].compute() == 200
    assert modules["view"].compute() == 100


def test_a_view_adds_no_submodule_and_nothing_to_the_checkpoint():
    metric = PercentileCrossEntropy()
    metric.persistent(True)
    view = metric.view("p50")
    assert list(view.named_modules()) == [("", view)]
    assert view.state_dict() == {}


# -------------------------------------------------------------------------------- the labels' alignment


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


# ------------------------------------------------------------------------------------------ torch.compile


@pytest.fixture
def compiled():
    """Compile a function and count its frames."""

    def compile_(function):
        counter = CompileCounter()
        return torch.compile(function, backend=counter), counter

    torch._dynamo.reset()
    yield compile_
    torch._dynamo.reset()


def test_a_compiled_function_that_updates_is_not_compiled_again_and_again(compiled):
    metric = PercentileCrossEntropy()

    def step(logits, labels):
        logits = logits * 2
        metric.update(logits, labels)
        return logits.sum()

    step, counter = compiled(step)
    for seed in range(12):
        step(*batch(seed, ignored=0))
    assert 1 <= counter.frame_count <= 2
    assert metric.compute()["count"] == 12 * 64


@pytest.mark.parametrize("call", ["update_and_mean", "forward"])
def test_a_compiled_function_may_also_use(compiled, call):
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()

    def step(logits, labels):
        result = getattr(metric, call)(logits * 2, labels)
        return result if call == "update_and_mean" else result["mean"]

    step, counter = compiled(step)
    for seed in range(12):
        logits, labels = batch(seed)
        mean = step(logits, labels)
        twin.update(logits * 2, labels)
        assert mean.item() == pytest.approx(kept_losses(logits * 2, labels).mean().item(), rel=1e-5)
    assert counter.frame_count <= 2
    torch.testing.assert_close(metric.compute(), twin.compute(), rtol=1e-6, atol=1e-6)


def test_update_on_an_accelerator_reads_nothing_on_the_host():
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        metric, stream = PercentileCrossEntropy(shift=True), StreamingQuantiles()
        logits, labels = torch.empty(2, 2000, 7), torch.empty(2, 2000, dtype=torch.long)
        metric.update(logits, labels)
        metric.update(logits, labels, weights=torch.empty(2, 2000))
        metric.update(losses=torch.empty(4000), mask=torch.empty(4000, dtype=torch.bool))
        stream.update(torch.empty(5000))
    assert metric.digest.shape == stream.digest.shape == (1027, 2)
    assert metric.digest.is_meta


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


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"logits": [[0.0, 1.0]], "labels": torch.tensor([0])}, "logits"),
        ({"logits": torch.zeros(1, 2), "labels": [0]}, "labels"),
        ({"losses": [1.0, 2.0]}, "losses"),
        ({"losses": torch.ones(2), "mask": [True, False]}, "mask"),
        ({"losses": torch.ones(2), "weights": torch.ones(2, dtype=torch.complex64)}, "weights"),
    ],
)
def test_what_is_no_tensor_or_no_number_is_named(arguments, name):
    metric = PercentileCrossEntropy()
    before = metric.digest.clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        metric.update(**arguments)
    assert torch.equal(metric.digest, before)


def test_settings_and_values_of_the_wrong_kind_are_named():
    for wrong in ({"percentiles": "50"}, {"compression": 100.0}, {"compression": None}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            PercentileCrossEntropy(**wrong)
    for wrong in ("abc", None, [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="`values`"):
            StreamingQuantiles().update(wrong)
    metric = StreamingQuantiles(percentiles=(-0.0, 1e-7))
    assert metric.keys[1:3] == ("p0", "p0_0000001")
    with pytest.raises(ValueError, match="Expected a state"):
        metric.merge_state({next(iter(metric.metric_state)): torch.zeros(3, 2)})


def test_an_impossible_label_is_explained_by_vocabulary_and_shift():
    with pytest.raises(ValueError, match=r"\[0, 5\).*padded.*shifted"):
        PercentileCrossEntropy().update(torch.zeros(3, 5), torch.tensor([0, 5, -1]))


def test_editing_a_result_does_not_edit_the_state():
    metric = StreamingQuantiles()
    metric.update([1.0, 2.0])
    for value in metric.compute().values():
        value += 5
    assert metric.compute()["invalid"] == 0
    assert metric.compute()["count"] == 2


def test_compute_on_the_meta_device_does_not_raise():
    with torch.device("meta"):
        metric = PercentileCrossEntropy()
    assert metric.compute()["p50"].is_meta


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
