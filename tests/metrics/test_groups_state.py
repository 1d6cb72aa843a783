"""Metrics with groups: views, state, copies, merging, collections, two ranks."""

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.wrappers import Running

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.metric_states import state_of
from tests.helpers.ranks import counted_collectives, run_function_on_ranks
from tests.helpers.summaries import assert_same_result, assert_summarises, of_group, overall
from tests.helpers.token_batches import GROUP_NAMES, grouped_losses

LOSSES, GROUP = (each.reshape(3, 4) for each in grouped_losses(n=12))


def test_views_of_a_group_are_entries_of_the_shared_result():
    metric = PercentileCrossEntropy(groups=GROUP_NAMES)
    views = {key: metric.view(key) for key in metric.keys}
    for seed in range(2):
        losses, group = grouped_losses(seed)
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
    assert state_of(metric).shape == (3, 67, 2)


def test_a_collection_of_metrics_with_and_without_groups_gives_group_to_those_that_have_them():
    with_groups = StreamingQuantiles(groups=("x", "y"))
    collection = MetricCollection({"a": with_groups, "b": PercentileCrossEntropy(groups=("x", "y"))})
    losses, group = grouped_losses()
    collection["a"].update(losses, group=group)
    collection["b"].update(losses=losses, group=group)
    result = collection.compute()
    assert result["a_y_p50"] == result["b_y_p50"]


def test_running_covers_its_window_group_by_group():
    running = Running(StreamingQuantiles(groups=("x", "y")), window=2)
    for seed in range(3):
        values, group = grouped_losses(seed)
        running.update(values, group=group)
    values, group = (torch.cat(part) for part in zip(grouped_losses(1), grouped_losses(2), strict=True))
    assert_summarises(of_group(running.compute(), "y"), values[group == 1], rtol=1e-12)


def test_groups_on_an_accelerator_are_never_read_on_the_host():
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        metric = PercentileCrossEntropy(shift=True, groups=GROUP_NAMES)
        logits, labels = torch.empty(2, 2000, 7), torch.empty(2, 2000, dtype=torch.long)
        metric.update(logits, labels, group=labels)
        metric.update(logits, labels, weights=torch.empty(2, 2000), group=labels[:, 0])
        metric.update(losses=torch.empty(4000), group=torch.empty(4000, dtype=torch.int32))
        metric.update(losses=torch.empty(4000), group=torch.tensor(1))
        assert metric.compute()["prompt_p50"].is_meta
    assert state_of(metric).shape == (2, 1027, 2)


def part_of(rank, n=70):
    """Rank 0 has no token of the second group, nobody has one of the third."""
    losses, group = grouped_losses(50 + rank, n + 11 * rank)
    return losses, group * rank


def groups_of_rank(rank, _):
    metric = PercentileCrossEntropy(groups=(*GROUP_NAMES, "tool"))
    losses, group = part_of(rank)
    for one, its in zip(losses.split(30), group.split(30), strict=True):
        metric.update(losses=one, group=its)
    local = {name: td.count(digest) for name, digest in metric.group_digests.items()}
    with counted_collectives() as calls:
        result = metric.compute()
    views = [metric.view(key) for key in metric.keys]
    with counted_collectives() as view_calls:
        viewed = [view.compute() for view in views]
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
    return run_function_on_ranks(groups_of_rank, 2)


def test_two_ranks_give_the_groups_of_all_tokens_together(two_ranks):
    losses, group = (torch.cat(part) for part in zip(part_of(0), part_of(1), strict=True))
    for outcome in two_ranks:
        for index, name in enumerate(GROUP_NAMES):
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


@pytest.mark.parametrize("groups", [None, ("prompt",)])
def test_states_of_fewer_groups_are_neither_merged_nor_loaded(groups):
    metric, other = PercentileCrossEntropy(groups=GROUP_NAMES), PercentileCrossEntropy(groups=groups)
    metric.update(losses=LOSSES, group=GROUP)
    before = state_of(metric).clone()
    for form in (other, other.metric_state):
        with pytest.raises(ValueError, match="Expected"):
            metric.merge_state(form)
    for each in (metric, other):
        each.persistent(True)
    with pytest.raises(ValueError, match="same settings"):
        other.load_state_dict(metric.state_dict(), strict=False)
    assert torch.equal(state_of(metric), before)
