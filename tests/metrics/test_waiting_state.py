"""The state while values wait: refused batches, merging, sync by hand, two ranks."""

import pytest
import torch
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.distributions import exact_quantile
from tests.helpers.holding import add, assert_holds, forty, holding
from tests.helpers.metric_states import state_name_of, state_of, waits
from tests.helpers.ranks import counted_collectives, run_function_on_ranks
from tests.helpers.token_batches import V

REFUSED = {
    "shape of the weights": {"values": torch.ones(3), "weights": torch.ones(2)},
    "negative weights": {"values": torch.ones(3), "weights": -torch.ones(3)},
    "no numbers": {"values": "abc"},
    "complex": {"values": torch.ones(3, dtype=torch.complex64)},
    "a group": {"values": torch.ones(3), "group": torch.zeros(3, dtype=torch.long)},
    "values without data": {"values": torch.ones(3, device="meta")},
    "sparse values": {"values": torch.tensor([0.0, 1.0]).to_sparse()},
    "weights elsewhere": {"values": torch.ones(3, device="meta"), "weights": torch.ones(3)},
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("waiting", [True, False])
def test_a_refused_batch_leaves_state_and_waiting_values_as_they_were(case, call, waiting):
    metric = holding(0, 1)
    if not waiting:
        metric.compute()
    with pytest.raises((ValueError, RuntimeError)):  # of torch, where it is not the metric that refuses
        getattr(metric, call)(**REFUSED[case])
    add(metric, forty(2))
    assert_holds(metric, 0, 1, 2)
    metric.reset()
    add(metric, forty(3))
    assert_holds(metric, 3)


def test_a_refused_batch_leaves_a_metric_usable_that_has_seen_nothing():
    metric = StreamingQuantiles()
    with pytest.raises(RuntimeError):
        metric.update(torch.tensor([0.0, 1.0]).to_sparse())
    assert torch.equal(state_of(metric), td.empty(1024))


def test_impossible_labels_for_update_and_mean_leave_waiting_losses_as_they_were():
    metric = holding(0, 1, cls=PercentileCrossEntropy)
    with pytest.raises(ValueError, match="`labels`"):
        metric.update_and_mean(torch.zeros(2, 3, V), torch.full((2, 3), V))
    assert_holds(metric, 0, 1)


def test_a_state_assigned_from_outside_takes_the_place_of_what_waits():
    metric, other = holding(0, 1), holding(2)
    setattr(metric, state_name_of(metric), state_of(other))
    assert_holds(metric, 2)
    add(metric, forty(3))
    assert_holds(metric, 2, 3)


@pytest.mark.parametrize("form", ["metric", "dict"])
@pytest.mark.parametrize("settled", ["neither", "this", "other"])
def test_merge_state_takes_what_waits_on_both_sides(form, settled):
    metric, other = holding(0, 1), holding(2, 3)
    if settled != "neither":
        {"this": metric, "other": other}[settled].compute()
    metric.merge_state(other if form == "metric" else other.metric_state)
    assert_holds(metric, 0, 1, 2, 3)
    assert_holds(other, 2, 3)
    add(metric, forty(4))
    add(other, forty(5))
    assert_holds(metric, 0, 1, 2, 3, 4)
    assert_holds(other, 2, 3, 5)


def doubled(metric):
    metric.sync(dist_sync_fn=lambda state, group=None: [state, state], distributed_available=lambda: True)


def test_a_sync_by_hand_takes_what_waits_and_unsync_brings_it_back_once():
    metric = holding(0, 1)
    assert waits(metric)
    doubled(metric)
    assert td.count(state_of(metric)) == 160
    metric.unsync()
    assert td.count(state_of(metric)) == 80
    add(metric, forty(2))
    assert_holds(metric, 0, 1, 2)


def test_what_came_while_synced_is_gone_after_unsync():
    metric = holding(0)
    doubled(metric)
    add(metric, forty(1))
    assert waits(metric)
    metric.unsync()
    assert not waits(metric)
    assert_holds(metric, 0)
    add(metric, forty(2))
    assert_holds(metric, 0, 2)


def test_forward_of_a_synced_metric_is_refused_and_unsync_still_works():
    metric = holding(0)
    doubled(metric)
    with pytest.raises(TorchMetricsUserError, match="synced"):
        metric(forty(1))
    metric.unsync()
    add(metric, forty(2))
    assert_holds(metric, 0, 2)


def test_reset_of_a_synced_metric_with_waiting_values_forgets_all():
    metric = holding(0)
    doubled(metric)
    add(metric, forty(1))
    metric.reset()
    add(metric, forty(2))
    assert_holds(metric, 2)
    with pytest.raises(TorchMetricsUserError):
        metric.unsync()


def waiting_on_one_rank(rank, _):
    metric = PercentileCrossEntropy()
    add(metric, forty(rank))
    if rank == 1:
        state_of(metric)
        add(metric, forty(2))
        assert waits(metric)
    else:
        state_of(metric)
        assert not waits(metric)
    with counted_collectives() as calls:
        first = metric.compute()
    if rank == 0:
        add(metric, forty(3))
    second = metric.compute()
    metric.sync()
    synced = td.count(state_of(metric))
    metric.unsync()
    add(metric, forty(4 + rank))
    own = td.count(state_of(metric))
    return {"first": first, "second": second, "calls": calls, "synced": synced, "own": own}


def test_values_that_wait_on_one_rank_only_are_in_the_result_of_both():
    ranks = run_function_on_ranks(waiting_on_one_rank, 2)
    for name, seeds in {"first": (0, 1, 2), "second": (0, 1, 2, 3)}.items():
        values = torch.cat([forty(seed) for seed in seeds]).double()
        for outcome in ranks:
            assert outcome[name]["count"] == len(values)
            torch.testing.assert_close(outcome[name]["p50"], exact_quantile(values, 0.5), rtol=1e-12, atol=0)
        first, second = (torch.stack(list(outcome[name].values())).view(torch.int64) for outcome in ranks)
        assert torch.equal(first, second)
    assert [outcome["calls"] for outcome in ranks] == [["all_gather"]] * 2
    assert [outcome["synced"] for outcome in ranks] == [160, 160]
    assert [outcome["own"] for outcome in ranks] == [120, 120]
