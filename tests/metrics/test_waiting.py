"""Values wait before they are sorted; nobody who looks at a metric may notice."""

import copy
import math
import operator
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.distributions import exact_quantile
from tests.helpers.holding import add, assert_holds, forty, holding
from tests.helpers.metric_states import state_name_of, state_of, waits
from tests.helpers.token_batches import V

INF, NAN = math.inf, math.nan
CLASSES = [PercentileCrossEntropy, StreamingQuantiles]


@pytest.mark.parametrize("cls", CLASSES)
def test_values_wait_until_somebody_asks_for_the_state(cls):
    metric = cls()
    assert not waits(metric)
    for seed in range(3):
        add(metric, forty(seed))
        assert waits(metric)
    assert_holds(metric, 0, 1, 2)
    assert not waits(metric)
    add(metric, forty(3))
    assert waits(metric)
    assert_holds(metric, 0, 1, 2, 3)


LOOKS = {
    "compute": lambda metric: metric.compute(),
    "digest": lambda metric: metric.digest,
    "group_digests and digest": lambda metric: (metric.group_digests, metric.digest),
    "metric_state": lambda metric: metric.metric_state,
    "attribute": lambda metric: getattr(metric, state_name_of(metric)),
    "to": lambda metric: metric.to("cpu"),
    "view": lambda metric: metric.view("p50").compute(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_sees_what_waits_and_looking_twice_adds_nothing(look):
    metric = holding(0)
    for seed in (1, 2):
        assert waits(metric)
        LOOKS[look](metric)
        assert not waits(metric)
        before = state_of(metric)
        LOOKS[look](metric)
        assert torch.equal(state_of(metric), before)
        add(metric, forty(seed))
    assert_holds(metric, 0, 1, 2)


def test_a_hash_makes_nothing_enter_and_does_not_change_when_it_does():
    metric = holding(0)
    before = hash(metric)
    assert waits(metric)
    add(metric, forty(1))
    assert_holds(metric, 0, 1)
    assert hash(metric) == before


def test_the_state_is_that_of_a_metric_that_never_waited():
    metric, eager = holding(0, 1, 2), StreamingQuantiles()
    for seed in range(3):
        add(eager, forty(seed))
        assert state_of(eager).dtype == torch.float64
        assert td.count(state_of(eager)) == 40 * (seed + 1)
    torch.testing.assert_close(state_of(metric), state_of(eager), rtol=1e-15, atol=0)
    assert state_of(metric) is state_of(metric)


def test_an_unknown_attribute_is_still_unknown_while_values_wait():
    metric = holding(0)
    with pytest.raises(AttributeError, match="digest_of_somebody"):
        operator.attrgetter("digest_of_somebody")(metric)
    assert not hasattr(metric, "nothing")
    assert waits(metric)


def forwarded(metric, seen, seed):
    assert metric(forty(seed))["count"] == 40
    return metric, [*seen, seed]


def merged(metric, seen, seed):
    metric.merge_state(holding(seed, 100 + seed))
    return metric, [*seen, seed, 100 + seed]


def looked_at(metric, seen, seed):
    assert td.count(state_of(metric)) == 40 * len(seen)
    return metric, seen


def refused(metric, seen, seed):
    with pytest.raises(ValueError, match="`weights`"):
        metric.update(forty(seed), torch.ones(3))
    return metric, seen


STEPS = {
    "update": lambda metric, seen, seed: (metric.update(forty(seed)), (metric, [*seen, seed]))[1],
    "compute": lambda metric, seen, seed: (metric.compute() if seen else None, (metric, seen))[1],
    "reset": lambda metric, seen, seed: (metric.reset(), (metric, []))[1],
    "copy": lambda metric, seen, seed: (copy.deepcopy(metric), seen),
    "move": lambda metric, seen, seed: (metric.to("cpu").half(), seen),
    "forward": forwarded,
    "merge": merged,
    "look": looked_at,
    "refuse": refused,
}


@settings(max_examples=40)
@given(steps=st.lists(st.sampled_from(list(STEPS)), max_size=14))
def test_any_order_of_calls_gives_what_was_added_since_the_last_reset(steps):
    metric, seen = StreamingQuantiles(), []
    for seed, step in enumerate(steps):
        metric, seen = STEPS[step](metric, seen, seed)
    assert_holds(metric, *seen)


def test_the_list_is_emptied_after_so_many_updates():
    metric = StreamingQuantiles()
    for _ in range((1 << 10) - 1):
        metric.update(1.0)
    assert waits(metric)
    metric.update(2.0)
    assert not waits(metric)
    metric.update(3.0)
    assert waits(metric)
    result = metric.compute()
    assert result["count"] == 1025
    assert result["mean"] == 1028 / 1025


def test_the_list_is_emptied_after_so_many_values():
    metric, piece = StreamingQuantiles(), torch.zeros(1 << 14)
    metric.update(piece)
    while waits(metric) and metric.update_count < 64:
        metric.update(piece)
    number = metric.update_count
    assert 1 < number < 64
    metric.update(torch.ones(number << 14))
    assert not waits(metric)
    metric.update(1.0)
    assert waits(metric)
    assert metric.compute()["count"] == 2 * (number << 14) + 1
    assert metric.compute()["mean"].item() == pytest.approx(0.5, rel=1e-4)


def test_twenty_thousand_updates_of_one_value_are_all_counted_and_few_are_kept():
    metric = StreamingQuantiles(percentiles=(50,))
    values = torch.arange(20_000.0)
    longest = 0
    for value in values[torch.randperm(20_000, generator=torch.Generator().manual_seed(0))]:
        metric.update(value)
        if metric._waiting is not None:
            longest = max(longest, len(metric._waiting.batches))
    assert 1 < longest < 1 << 10
    result = metric.compute()
    assert metric.update_count == result["count"] == 20_000
    assert result["mean"] == 9999.5
    assert abs(result["p50"] - 9999.5) <= 20_000 * 7e-4


def test_empty_batches_wait_too_and_add_nothing():
    metric = StreamingQuantiles()
    for _ in range(1100):
        metric.update([])
    metric.update(forty(0))
    metric.update(torch.empty(0), torch.empty(0))
    assert_holds(metric, 0)


def test_nothing_but_empty_batches_is_an_empty_metric():
    metric = StreamingQuantiles()
    metric.update([])
    metric.update(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.bool))
    assert torch.equal(state_of(metric), td.empty(1024))
    metric = StreamingQuantiles(groups=("a", "b"))
    metric.update([], group=torch.empty(0, dtype=torch.long))
    assert torch.equal(state_of(metric), td.empty(1024, shape=(2,)))


def test_forward_between_updates_gives_its_own_batch_and_keeps_what_waits():
    metric = holding(0, 1)
    assert waits(metric)
    result = metric(forty(2))
    assert result["count"] == 40
    torch.testing.assert_close(result["p50"], exact_quantile(forty(2), 0.5), rtol=1e-12, atol=0)
    add(metric, forty(3))
    assert_holds(metric, 0, 1, 2, 3)
    assert metric.update_count == 4


def test_updates_after_compute_are_in_the_next_one():
    metric = holding(0)
    for seed in range(1, 4):
        metric.compute()
        add(metric, forty(seed))
    assert_holds(metric, 0, 1, 2, 3)


def test_a_view_sees_what_waits():
    metric = holding(0)
    views = [metric.view("count"), metric.view("mean")]
    assert views[0].compute() == 40
    add(metric, forty(1))
    assert waits(metric)
    assert views[0].compute() == 80
    assert views[1].compute() == metric.compute()["mean"]


def test_update_and_mean_waits_and_has_its_mean_at_once():
    metric = PercentileCrossEntropy()
    for seed in range(3):
        mean = metric.update_and_mean(losses=forty(seed).requires_grad_())
        assert waits(metric)
        assert mean.item() == pytest.approx(forty(seed).mean().item())
        assert mean.requires_grad
    assert_holds(metric, 0, 1, 2)
    assert metric.update_count == 3


def test_tensors_overwritten_after_update_have_been_copied():
    metric = PercentileCrossEntropy(groups=("a", "b"))
    own = {
        "losses": forty(0).double(),
        "mask": torch.arange(40) < 30,
        "weights": 1 + torch.arange(40.0) % 3,
        "group": torch.arange(40) % 2,
    }
    before = {name: tensor.clone() for name, tensor in own.items()}
    metric.update(**own)
    for tensor in own.values():
        tensor.zero_()
    twin = PercentileCrossEntropy(groups=("a", "b"))
    twin.update(**before)
    result = metric.compute()
    assert all(torch.equal(value, result[key]) for key, value in twin.compute().items())
    assert result["count"] == before["weights"][:30].sum()
    assert result["b_count"] == before["weights"][1:30:2].sum()
    assert result["mean"] > 1


def test_a_number_and_an_expanded_tensor_overwritten_after_update_have_been_copied():
    metric, one = StreamingQuantiles(groups=("a", "b")), torch.tensor([2.0])
    group = torch.tensor(0)
    metric.update(one.expand(7), group=group)
    one.fill_(9)
    group.fill_(1)
    result = metric.compute()
    assert result["a_count"] == 7
    assert result["a_p50"] == 2


def test_a_buffer_that_is_filled_again_and_again_gives_every_filling():
    metric, buffer = PercentileCrossEntropy(), torch.empty(40)
    for seed in range(6):
        metric.update(losses=buffer.copy_(forty(seed)))
    buffer.fill_(NAN)
    assert_holds(metric, *range(6))


def test_values_without_weights_with_a_mask_and_with_numbers_wait_together():
    values, mask, numbers = forty(0), torch.arange(40) % 3 > 0, torch.arange(40) % 4
    forms = [None, mask, numbers, numbers.double() / 2, numbers.half(), numbers.bool(), None]
    metric, eager = StreamingQuantiles(), StreamingQuantiles()
    for weights in forms:
        metric.update(values, weights)
        eager.update(values, weights)
        eager.compute()
    assert waits(metric)
    torch.testing.assert_close(metric.compute(), eager.compute(), rtol=1e-12, atol=0)
    total = sum(40 if each is None else each.double().sum().item() for each in forms)
    assert metric.compute()["count"] == total


def test_what_a_mask_leaves_out_is_not_counted_as_nan_nor_invalid():
    metric = StreamingQuantiles()
    values, mask = forty(0), torch.arange(40) % 3 > 0
    metric.update(torch.where(mask, values, NAN), mask)
    metric.update(values)
    weights = td.centroids(metric.digest)[1]
    assert weights.sort(descending=True).values[:40].tolist() == [2.0] * 26 + [1.0] * 14
    result = metric.compute()
    assert result["nonfinite"] == result["invalid"] == 0
    assert result["count"] == 26 + 40


def test_values_of_several_dtypes_that_wait_together_are_kept_as_they_are():
    metric = StreamingQuantiles()
    parts = [
        torch.tensor([0.1, 1.0], dtype=torch.float32),
        torch.tensor([0.1, 1 + 1e-12], dtype=torch.float64),
        torch.tensor([0.1], dtype=torch.bfloat16),
        torch.tensor([0.1], dtype=torch.float16),
        torch.tensor([2**53 - 1]),
    ]
    for part in parts:
        metric.update(part)
    assert waits(metric)
    means, weights, _ = td.centroids(metric.digest)
    wanted = torch.cat([part.double() for part in parts]).unique()
    assert torch.equal(means[weights > 0], wanted)
    assert metric.compute()["count"] == 7


def test_values_of_an_8_bit_dtype_wait_with_others():
    metric = StreamingQuantiles()
    metric.update(torch.tensor([1.0, 2.0]))
    metric.update(torch.tensor([3.0]).to(torch.float8_e4m3fn))
    metric.update(torch.tensor([4.0, 5.0]))
    assert metric.compute()["count"] == 5
    assert metric.compute()["p50"] == 3


def test_nan_and_infinities_wait_and_are_counted_and_warned_of_once():
    metric = StreamingQuantiles()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric.update([1.0, NAN, INF])
        metric.update([NAN, -INF])
        assert not caught
        result = metric.compute()
    assert result["nonfinite"] == 4
    assert result["count"] == 3
    assert sorted("NaN" in str(warning.message) for warning in caught) == [False, True]


@pytest.mark.parametrize("first", ["inference", "normal"])
@pytest.mark.parametrize("weighted", [False, True])
def test_updates_in_inference_mode_and_out_of_it_wait_together(first, weighted):
    metric = PercentileCrossEntropy()
    modes = [first == "inference", first != "inference"] * 2
    for seed, inference in enumerate(modes):
        with torch.inference_mode(inference):
            weights = torch.ones(40) if weighted else None
            metric.update(losses=forty(seed), weights=weights)
    assert waits(metric)
    assert_holds(metric, 0, 1, 2, 3)
    with torch.inference_mode():
        metric.update(losses=forty(4))
        metric.compute()
    metric.update(losses=forty(5))
    assert_holds(metric, 0, 1, 2, 3, 4, 5)
    with torch.inference_mode():
        metric.update(losses=forty(6))
    metric.reset()
    metric.update(losses=forty(7))
    assert_holds(metric, 7)


def test_what_waits_keeps_no_graph():
    metric = PercentileCrossEntropy()
    metric.update_and_mean(torch.randn(2, 5, V, requires_grad=True), torch.zeros(2, 5, dtype=torch.long))
    metric.update(losses=forty(0).requires_grad_())
    assert not any(each.values.requires_grad for each in metric._waiting.batches)
    assert not state_of(metric).requires_grad
