"""Metrics that tell kinds of tokens apart: one state, one collective, and each kind as if it were alone."""

import copy
import math
import pickle
import re
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchmetrics import MetricCollection
from torchmetrics.wrappers import Running

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.distributions import bound, exact_quantile, exact_trimmed_mean, values_of, worst_rank_error
from tests.helpers.lit_modules import IGNORED, LitLM, make_batches, make_trainer
from tests.helpers.processes import run_ranks

V = 29
NAMES = ("prompt", "completion")
PERCENTILES = (5, 25, 50, 75, 95, 99)
KEYS = ["mean", "p5", "p25", "p50", "p75", "p95", "p99"]
KEYS += ["trimmed_mean", "finite_mean", "count", "nonfinite", "invalid"]
INF, NAN = math.inf, math.nan


def batch(seed=0, shape=(4, 16), ignored=0.3):
    """Logits, labels, and a group for each label, 0 more often than 1."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, V, generator=random)
    labels = torch.randint(0, V, shape, generator=random)
    group = (torch.rand(shape, generator=random) < 0.3).long()
    return logits, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels), group


def some(seed=0, n=100):
    random = torch.Generator().manual_seed(seed)
    return 1 + 5 * torch.rand(n, generator=random), torch.randint(0, 2, (n,), generator=random)


def losses_at(logits, labels):
    return F.cross_entropy(logits.reshape(-1, V), labels.reshape(-1), reduction="none").reshape(labels.shape)


def of_group(result, name):
    """The entries of one group under their own keys."""
    return {key: result[f"{name}_{key}"] for key in KEYS}


def overall(result):
    return {key: result[key] for key in KEYS}


def assert_summarises(result, values, rtol=1e-6):
    values = values.double().reshape(-1)
    zero = torch.tensor(0.0).double()
    expected = {
        "mean": values.mean(),
        **dict(zip(KEYS[1:7], exact_quantile(values, [p / 100 for p in PERCENTILES]), strict=True)),
        "trimmed_mean": torch.tensor(exact_trimmed_mean(values, 0.05, 0.95), dtype=torch.float64),
        "finite_mean": values.mean(),
        "count": torch.tensor(len(values)).double(),
        "nonfinite": zero,
        "invalid": zero,
    }
    torch.testing.assert_close(dict(result), expected, rtol=rtol, atol=1e-12)


def assert_same_result(actual, expected, rtol=0.0):
    torch.testing.assert_close(dict(actual), dict(expected), rtol=rtol, atol=0, equal_nan=True)


def bits(metric):
    return next(iter(metric.metric_state.values())).clone()


# ------------------------------------------------------------------------------------------------ results


def test_the_keys_of_each_group_follow_those_of_all_with_its_name_in_front():
    metric = PercentileCrossEntropy(percentiles=(50, 99.9), groups=NAMES)
    keys = ("mean", "p50", "p99_9", "trimmed_mean", "finite_mean", "count", "nonfinite", "invalid")
    wanted = (*keys, *(f"prompt_{key}" for key in keys), *(f"completion_{key}" for key in keys))
    assert metric.keys == wanted
    losses, group = some()
    metric.update(losses=losses, group=group)
    result = metric.compute()
    assert tuple(result) == wanted
    assert {(value.dtype, value.ndim) for value in result.values()} == {(torch.float64, 0)}
    assert "p50" in PercentileCrossEntropy().keys
    assert not any("prompt" in key for key in PercentileCrossEntropy().keys)


def test_few_tokens_give_each_group_what_torch_gives_and_all_together_too():
    metric, alone = PercentileCrossEntropy(groups=NAMES), PercentileCrossEntropy()
    batches = [batch(seed) for seed in range(5)]
    for logits, labels, group in batches:
        metric.update(logits, labels, group=group)
        alone.update(logits, labels)
    result = metric.compute()
    assert_same_result(overall(result), alone.compute(), rtol=1e-12)
    losses, labels, group = (
        torch.cat([one.flatten() for one in parts])
        for parts in zip(*((losses_at(x, y), y, g) for x, y, g in batches), strict=True)
    )
    for index, name in enumerate(NAMES):
        assert_summarises(of_group(result, name), losses[(labels != -100) & (group == index)])
    assert result["prompt_count"] > result["completion_count"] > 0


def test_many_tokens_keep_the_promise_in_each_group_and_together():
    values = values_of("ce like", 300_000)
    group = (torch.rand(300_000, generator=torch.Generator().manual_seed(0)) < 0.2).long()
    values = torch.where(group == 1, values / 3, values)
    metric = PercentileCrossEntropy(groups=NAMES)
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
    logits, labels, group = batch()
    metric, twin = PercentileCrossEntropy(groups=NAMES), PercentileCrossEntropy(groups=NAMES)
    metric.update(logits, labels, group=FORMS[form](group, labels.shape))
    metric.update(logits, labels, group=group)
    twin.update(logits, labels, group=group)
    twin.update(logits, labels, group=group)
    assert_same_result(metric.compute(), twin.compute())
    assert metric.compute()["completion_count"] == 2 * ((labels != -100) & (group == 1)).sum()


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("form", ["tensor", "list", "bool"])
def test_a_group_per_sequence_is_that_of_all_its_tokens(shift, form):
    logits, labels, _ = batch()
    each = torch.tensor([0, 1, 1, 0])
    given = {"tensor": each, "list": each.tolist(), "bool": each.bool()}[form]
    metric, twin = (PercentileCrossEntropy(groups=NAMES, shift=shift) for _ in range(2))
    metric.update(logits, labels, group=given)
    twin.update(logits, labels, group=each[:, None].expand(4, 16))
    assert_same_result(metric.compute(), twin.compute())
    own = labels[1:3, 1:] if shift else labels[1:3]
    assert metric.compute()["completion_count"] == (own != -100).sum()


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("number", [1, True, torch.tensor(1), torch.tensor(True)])
def test_a_single_number_is_the_group_of_the_whole_batch(shift, number):
    logits, labels, _ = batch()
    metric = PercentileCrossEntropy(groups=NAMES, shift=shift)
    alone = PercentileCrossEntropy(shift=shift)
    metric.update(logits, labels, group=number)
    alone.update(logits, labels)
    result = metric.compute()
    assert_same_result(of_group(result, "completion"), alone.compute())
    assert result["prompt_count"] == 0
    assert result["prompt_p50"].isnan()


def test_with_shift_the_group_of_a_token_stands_where_its_label_stands():
    logits, labels, group = batch()
    metric = PercentileCrossEntropy(groups=NAMES, shift=True)
    metric.update(logits, labels, group=group)
    losses, kept = losses_at(logits[:, :-1], labels[:, 1:]), labels[:, 1:] != -100
    result = metric.compute()
    for index, name in enumerate(NAMES):
        assert_summarises(of_group(result, name), losses[kept & (group[:, 1:] == index)])


def test_losses_made_elsewhere_are_not_shifted_and_neither_is_their_group():
    losses, group = some()
    metric = PercentileCrossEntropy(groups=NAMES, shift=True)
    metric.update(losses=losses.reshape(4, 25), group=group.reshape(4, 25))
    for index, name in enumerate(NAMES):
        assert_summarises(of_group(metric.compute(), name), losses[group == index])


def test_mask_and_weights_count_in_the_group_of_their_token():
    losses, group = some()
    weights, mask = torch.arange(100) % 4, torch.arange(100) % 5 > 0
    metric = PercentileCrossEntropy(groups=NAMES)
    mean = metric.update_and_mean(losses=losses, mask=mask, weights=weights, group=group)
    repeat = weights * mask
    result = metric.compute()
    for index, name in enumerate(NAMES):
        own = group == index
        assert_summarises(of_group(result, name), losses[own].repeat_interleave(repeat[own]))
    assert_summarises(overall(result), losses.repeat_interleave(repeat))
    torch.testing.assert_close(mean, losses.repeat_interleave(repeat).mean())


@pytest.mark.parametrize("strange", [-100, 2, -1, 10**9])
@pytest.mark.parametrize("shift", [False, True])
def test_an_ignored_token_may_have_any_group(strange, shift):
    logits, labels, group = batch()
    metric, twin = (PercentileCrossEntropy(groups=NAMES, shift=shift) for _ in range(2))
    metric.update(logits, labels, group=torch.where(labels == -100, strange, group))
    twin.update(logits, labels, group=group)
    assert_same_result(metric.compute(), twin.compute())
    assert metric.compute()["invalid"] == 0
    losses, group = some()
    for nothing in ({"mask": group == 0}, {"weights": (group == 0).float()}):
        metric.update(losses=losses, group=torch.where(group == 0, 0, strange), **nothing)


def test_nan_and_infinite_losses_are_counted_in_their_group():
    metric = PercentileCrossEntropy(groups=NAMES)
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
    metric = PercentileCrossEntropy(groups=NAMES, compression=64)
    assert list(metric.group_digests) == list(NAMES)
    assert all(torch.equal(one, td.empty(64)) for one in metric.group_digests.values())
    losses, group = some(n=300)
    metric.update(losses=losses, group=group)
    for index, name in enumerate(NAMES):
        assert metric.group_digests[name].shape == (67, 2)
        assert td.count(metric.group_digests[name]) == (group == index).sum()
    assert metric.digest.shape == (67, 2)
    assert td.count(metric.digest) == 300
    metric.compute()
    assert td.count(metric.digest) == 300
    metric.reset()
    assert td.count(metric.digest) == 0
    assert PercentileCrossEntropy().group_digests == {}


# ------------------------------------------------------------------------------------------------- errors

LOSSES, GROUP = some(n=12)
LOSSES, GROUP = LOSSES.reshape(3, 4), GROUP.reshape(3, 4)
REFUSED = {
    "none": {"losses": LOSSES},
    "one too large": {"losses": LOSSES, "group": GROUP + 1},
    "one negative": {"losses": LOSSES, "group": GROUP - 1},
    "a sequence too large": {"losses": LOSSES, "group": torch.tensor([0, 1, 2])},
    "a number too large": {"losses": LOSSES, "group": 2},
    "floats": {"losses": LOSSES, "group": GROUP.float()},
    "complex": {"losses": LOSSES, "group": GROUP.to(torch.complex64)},
    "too few": {"losses": LOSSES, "group": GROUP[:2]},
    "per position": {"losses": LOSSES, "group": torch.zeros(4, dtype=torch.long)},
    "flat": {"losses": LOSSES, "group": GROUP.flatten()},
    "another weight": {"losses": LOSSES, "group": GROUP + 1, "weights": torch.ones(3, 4)},
    "unmasked": {"losses": LOSSES, "group": GROUP + 1, "mask": torch.ones(3, 4, dtype=torch.bool)},
}


@pytest.mark.parametrize("call", ["update", "forward", "update_and_mean"])
@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_group_is_refused_by_name_and_changes_not_one_bit(case, call):
    metric = PercentileCrossEntropy(groups=NAMES)
    metric.update(losses=LOSSES * 2, group=GROUP)
    before = bits(metric)
    with pytest.raises(ValueError, match="`group`"):
        getattr(metric, call)(**REFUSED[case])
    assert torch.equal(bits(metric), before)
    metric.update(losses=LOSSES, group=GROUP)
    result = metric.compute()
    assert result["count"] == 24
    assert result["prompt_count"] == 2 * (GROUP == 0).sum()


@pytest.mark.parametrize("shift", [False, True])
def test_an_impossible_group_of_a_label_that_counts_is_refused(shift):
    logits, labels, group = batch(ignored=0)
    metric = PercentileCrossEntropy(groups=NAMES, shift=shift)
    group[2, 0] = 2
    if shift:  # nothing is scored against the first label
        metric.update(logits, labels, group=group)
        assert metric.compute()["count"] == 60
    else:
        with pytest.raises(ValueError, match=r"`group`.*\[0, 2\).*prompt, completion.*got 2"):
            metric.update(logits, labels, group=group)
    group[2, 0], group[2, 15] = 0, 5
    with pytest.raises(ValueError, match=r"`group`.*got 5"):
        metric.update(logits, labels, group=group)


def test_a_group_for_a_metric_without_groups_is_refused():
    for metric, arguments in (
        (PercentileCrossEntropy(), {"losses": LOSSES}),
        (StreamingQuantiles(), {"values": LOSSES}),
    ):
        with pytest.raises(ValueError, match=r"`group`.*`groups`"):
            metric.update(**arguments, group=GROUP)
        assert metric.compute()["count"] == 0


@pytest.mark.parametrize("cls", [PercentileCrossEntropy, StreamingQuantiles])
@pytest.mark.parametrize(
    "groups",
    [
        (),
        "prompt",
        ("prompt", "prompt"),
        ("a b",),
        ("a.b",),
        ("a/b",),
        ("",),
        ("a\n",),
        ("ä",),
        (1,),
        (None,),
        ("finite",),
        ("trimmed",),
        ("a", "a_finite"),
        ("a_trimmed", "a"),
    ],
)
def test_names_that_can_not_be_told_apart_or_logged_are_refused(cls, groups):
    with pytest.raises(ValueError, match="`groups`"):
        cls(groups=groups)


def test_names_that_only_look_alike_are_taken():
    metric = StreamingQuantiles(groups=("A", "a", "p50", "count", "a_", "_", "0"))
    assert len(set(metric.keys)) == len(metric.keys) == 8 * len(KEYS)
    metric.update([1.0, 2.0], group=[2, 3])
    assert metric.compute()["p50_p50"] == 1
    assert metric.compute()["count_count"] == 1


# -------------------------------------------------------------------------------------------- one metric


def test_views_of_a_group_are_entries_of_the_shared_result():
    metric = PercentileCrossEntropy(groups=NAMES)
    views = {key: metric.view(key) for key in metric.keys}
    for seed in range(2):
        losses, group = some(seed)
        metric.update(losses=losses, group=group)
        assert_same_result({key: view.compute() for key, view in views.items()}, metric.compute())
    assert views["prompt_p50"].compute() != views["completion_p50"].compute() != views["p50"].compute()
    with pytest.raises(ValueError, match=r"`key`.*prompt_p50"):
        metric.view("prompt_p51")
    with pytest.raises(ValueError, match="`key`"):
        PercentileCrossEntropy().view("prompt_p50")


def test_the_state_is_one_float64_tensor_with_a_digest_for_each_group():
    metric = PercentileCrossEntropy(groups=("a", "b", "c"), compression=64)
    for _ in range(2):
        (state,) = metric.metric_state.values()
        assert state.dtype == torch.float64
        assert state.shape == (3, 67, 2)
        metric.update(losses=LOSSES, group=GROUP)
    metric.reset()
    assert bits(metric).shape == (3, 67, 2)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "set_dtype"])
def test_a_cast_never_touches_the_digests_of_groups(cast):
    metric, twin = (PercentileCrossEntropy(groups=NAMES) for _ in range(2))
    for seed in range(3):
        losses, group = some(seed, 3000)
        metric.update(losses=losses, group=group)
        twin.update(losses=losses, group=group)
        if cast == "set_dtype":
            metric.set_dtype(torch.float16)
        else:
            getattr(torch.nn.ModuleDict({"metric": metric}), cast)()
        assert bits(metric).dtype == torch.float64
        assert torch.equal(bits(metric), bits(twin))
    metric.reset()
    assert bits(metric).dtype == torch.float64


def test_forward_gives_the_groups_of_the_batch_and_accumulates_like_update():
    forwarded, updated = (PercentileCrossEntropy(groups=NAMES) for _ in range(2))
    for seed in range(3):
        losses, group = some(seed)
        result = forwarded(losses=losses, group=group)
        for index, name in enumerate(NAMES):
            assert_summarises(of_group(result, name), losses[group == index], rtol=1e-12)
        updated.update(losses=losses, group=group)
    assert torch.equal(bits(forwarded), bits(updated))
    assert_same_result(forwarded.compute(), updated.compute())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_the_same_groups_and_goes_its_own_way(how):
    metric = PercentileCrossEntropy(groups=NAMES, compression=64)
    losses, group = some()
    metric.update(losses=losses, group=group)
    clone = how(metric)
    assert clone.groups == NAMES
    assert_same_result(clone.compute(), metric.compute())
    clone.update(losses=losses, group=1 - group)
    assert metric.compute()["prompt_count"] == (group == 0).sum()
    assert clone.compute()["prompt_count"] == 100


def test_a_persistent_metric_with_groups_is_saved_and_loaded():
    metric, other = (PercentileCrossEntropy(groups=NAMES) for _ in range(2))
    for each in (metric, other):
        each.persistent(True)
    losses, group = some()
    metric.update(losses=losses, group=group)
    other.load_state_dict(metric.state_dict())
    assert_same_result(other.compute(), metric.compute())
    other.update(losses=losses, group=group)
    assert other.compute()["prompt_count"] == 2 * metric.compute()["prompt_count"]


@pytest.mark.parametrize("groups", [None, ("completion", "prompt"), ("prompt",), ("prompt", "answer")])
def test_a_checkpoint_of_other_groups_is_refused(groups):
    metric, other = PercentileCrossEntropy(groups=NAMES), PercentileCrossEntropy(groups=groups)
    for each in (metric, other):
        each.persistent(True)
    metric.update(losses=LOSSES, group=GROUP)
    with pytest.raises(ValueError, match="same settings"):
        other.load_state_dict(metric.state_dict(), strict=False)


@pytest.mark.parametrize("form", ["metric", "dict"])
def test_merge_state_adds_group_by_group(form):
    metric, other = (PercentileCrossEntropy(groups=NAMES) for _ in range(2))
    parts = [some(seed) for seed in range(2)]
    for each, (losses, group) in zip((metric, other), parts, strict=True):
        each.update(losses=losses, group=group)
    metric.merge_state(other if form == "metric" else other.metric_state)
    losses, group = (torch.cat(part) for part in zip(*parts, strict=True))
    for index, name in enumerate(NAMES):
        assert_summarises(of_group(metric.compute(), name), losses[group == index], rtol=1e-12)


@pytest.mark.parametrize("groups", [None, ("completion", "prompt"), ("prompt",), ("prompt", "answer")])
@pytest.mark.parametrize("form", ["metric", "dict"])
def test_merge_state_refuses_other_groups(groups, form):
    metric, other = PercentileCrossEntropy(groups=NAMES), PercentileCrossEntropy(groups=groups)
    metric.update(losses=LOSSES, group=GROUP)
    before = bits(metric)
    with pytest.raises(ValueError):
        metric.merge_state(other if form == "metric" else other.metric_state)
    assert torch.equal(bits(metric), before)


def test_a_collection_never_merges_metrics_that_differ_only_in_groups():
    collection = MetricCollection(
        {
            "a": StreamingQuantiles(groups=("x", "y")),
            "b": StreamingQuantiles(groups=("y", "x")),
            "c": StreamingQuantiles(groups=("x", "y")),
        }
    )
    for seed in range(3):
        values, group = some(seed)
        collection.update(values, group=group)
    assert sorted(map(sorted, collection.compute_groups.values())) == [["a", "c"], ["b"]]
    result = collection.compute()
    assert result["a_x_p50"] == result["b_y_p50"] == result["c_x_p50"] != result["b_x_p50"]
    assert result["a_x_count"] == sum((some(seed)[1] == 0).sum() for seed in range(3))


def test_a_collection_of_metrics_with_and_without_groups_gives_group_to_those_that_have_them():
    with_groups = StreamingQuantiles(groups=("x", "y"))
    collection = MetricCollection({"a": with_groups, "b": PercentileCrossEntropy(groups=("x", "y"))})
    losses, group = some()
    collection["a"].update(losses, group=group)
    collection["b"].update(losses=losses, group=group)
    result = collection.compute()
    assert result["a_y_p50"] == result["b_y_p50"]


def test_running_covers_its_window_group_by_group():
    running = Running(StreamingQuantiles(groups=("x", "y")), window=2)
    for seed in range(3):
        values, group = some(seed)
        running.update(values, group=group)
    values, group = (torch.cat(part) for part in zip(some(1), some(2), strict=True))
    assert_summarises(of_group(running.compute(), "y"), values[group == 1], rtol=1e-12)


def test_groups_on_an_accelerator_are_never_read_on_the_host():
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        metric = PercentileCrossEntropy(shift=True, groups=NAMES)
        logits, labels = torch.empty(2, 2000, 7), torch.empty(2, 2000, dtype=torch.long)
        metric.update(logits, labels, group=labels)
        metric.update(logits, labels, weights=torch.empty(2, 2000), group=labels[:, 0])
        metric.update(losses=torch.empty(4000), group=torch.empty(4000, dtype=torch.int32))
        metric.update(losses=torch.empty(4000), group=torch.tensor(1))
        assert metric.compute()["prompt_p50"].is_meta
    assert bits(metric).shape == (2, 1027, 2)


# ---------------------------------------------------------------------------------------------- two ranks


def counted_gathers(function):
    """What a function returns, and how often it called ``all_gather`` or any other collective."""
    calls, originals = [], {}
    for name in ("all_gather", "all_gather_into_tensor", "all_reduce", "barrier", "all_gather_object"):
        original = originals[name] = getattr(dist, name)

        def counting(*args, name=name, original=original, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        setattr(dist, name, counting)
    try:
        return function(), calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def part_of(rank, n=70):
    """Rank 0 has no token of the second group, nobody has one of the third."""
    losses, group = some(50 + rank, n + 11 * rank)
    return losses, group * rank


def groups_of_rank(rank, _):
    metric = PercentileCrossEntropy(groups=(*NAMES, "tool"))
    losses, group = part_of(rank)
    for one, its in zip(losses.split(30), group.split(30), strict=True):
        metric.update(losses=one, group=its)
    local = {name: td.count(digest) for name, digest in metric.group_digests.items()}
    result, calls = counted_gathers(metric.compute)
    views = [metric.view(key) for key in metric.keys]
    viewed, view_calls = counted_gathers(lambda: [view.compute() for view in views])
    everyone = {name: digest.clone() for name, digest in metric.group_digests.items()}
    metric.update(losses=losses, group=group)
    return {
        "local": local,
        "result": result,
        "calls": calls,
        "viewed": viewed,
        "view_calls": view_calls,
        "digests": everyone,
        "digest": metric.digest,
        "later": metric.compute(),
    }


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(groups_of_rank, 2, timeout=60)


def test_two_ranks_give_the_groups_of_all_tokens_together(two_ranks):
    losses, group = (torch.cat(part) for part in zip(part_of(0), part_of(1), strict=True))
    for outcome in two_ranks:
        for index, name in enumerate(NAMES):
            own = losses[group == index]
            assert_summarises(of_group(outcome["result"], name), own, rtol=1e-12)
            assert td.count(outcome["digests"][name]) == len(own)
        assert_summarises(overall(outcome["result"]), losses, rtol=1e-12)
        assert outcome["result"]["tool_count"] == 0
        assert outcome["result"]["tool_p50"].isnan()
        assert outcome["later"]["count"] == 2 * len(losses)
        assert outcome["later"]["completion_count"] == 2 * (group == 1).sum()
    assert two_ranks[0]["local"] == {"prompt": 70, "completion": 0, "tool": 0}
    assert two_ranks[1]["local"]["completion"] > 0


def test_two_ranks_with_groups_take_one_collective_and_have_the_same_bits(two_ranks):
    first, second = two_ranks
    for outcome in two_ranks:
        assert outcome["calls"] == ["all_gather"]
        assert outcome["view_calls"] == ["all_gather"]
        assert_same_result(dict(enumerate(outcome["viewed"])), dict(enumerate(outcome["result"].values())))
    for name in ("result", "later"):
        assert torch.equal(
            *(torch.stack(list(outcome[name].values())).view(torch.int64) for outcome in two_ranks)
        )
    for name, digest in first["digests"].items():
        assert torch.equal(digest, second["digests"][name])


# -------------------------------------------------------------------------------------------------- mixin


class GroupsLM(LitLM):
    """The first two tokens of a sequence are its prompt."""

    def validation_step(self, batch, batch_idx):
        labels = batch["labels"]
        group = (torch.arange(labels.shape[1]) >= 2).long().expand(labels.shape)
        self.update_percentile_ce(self(batch), labels, group=group)


def validated_losses(module, batches):
    losses, group = [], []
    for one in batches:
        logits, labels = module(one).detach().float(), one["labels"]
        kept = labels != IGNORED
        losses.append(F.cross_entropy(logits[kept], labels[kept], reduction="none"))
        group.append((torch.arange(labels.shape[1]) >= 2).expand(labels.shape)[kept])
    return torch.cat(losses), torch.cat(group)


def test_validation_logs_each_group_under_its_name(tmp_path):
    batches = make_batches(6, seed=3)
    module = GroupsLM(percentiles=(50, 95), groups=NAMES)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    (result,) = make_trainer(tmp_path).validate(module, loader, verbose=False)
    kinds = ("mean", "p50", "p95", "trimmed_mean")
    assert sorted(result) == sorted(
        f"val_ce_{prefix}{kind}" for prefix in ("", "prompt_", "completion_") for kind in kinds
    )
    losses, group = validated_losses(module, batches)
    for prefix, own in (("", losses), ("prompt_", losses[~group]), ("completion_", losses[group])):
        assert result[f"val_ce_{prefix}mean"] == pytest.approx(own.mean().item(), rel=1e-6)
        for p in (50, 95):
            wanted = exact_quantile(own, p / 100).item()
            assert result[f"val_ce_{prefix}p{p}"] == pytest.approx(wanted, rel=1e-6)
        wanted = exact_trimmed_mean(own, 0.05, 0.95)
        assert result[f"val_ce_{prefix}trimmed_mean"] == pytest.approx(wanted, rel=1e-6)
    assert result["val_ce_prompt_p50"] != result["val_ce_completion_p50"]


def test_a_second_validation_holds_nothing_of_the_first(tmp_path):
    module = GroupsLM(percentiles=(50,), groups=NAMES)
    trainer = make_trainer(tmp_path)
    for seed in (3, 4):
        batches = make_batches(3, seed=seed)
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        (result,) = trainer.validate(module, loader, verbose=False)
        losses, group = validated_losses(module, batches)
        wanted = exact_quantile(losses[~group], 0.5).item()
        assert result["val_ce_prompt_p50"] == pytest.approx(wanted, rel=1e-6)


def test_a_step_that_forgets_the_group_is_told(tmp_path):
    loader = torch.utils.data.DataLoader(make_batches(2), batch_size=None)
    with pytest.raises(ValueError, match=r"`group`.*prompt, completion"):
        make_trainer(tmp_path).validate(LitLM(groups=NAMES), loader, verbose=False)
    with pytest.raises(ValueError, match=r"`group`.*`groups`"):
        make_trainer(tmp_path).validate(GroupsLM(), loader, verbose=False)


@pytest.mark.parametrize("groups", [("a b",), ("finite",), ("a", "a"), "prompt"])
def test_impossible_groups_are_refused_where_they_are_configured(groups):
    with pytest.raises(ValueError, match=re.escape("`groups`")):
        LitLM(groups=groups)
