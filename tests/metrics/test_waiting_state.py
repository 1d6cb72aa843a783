"""The state while values wait: refused batches, reset, copies, merging, moves, sync by hand, two ranks."""

import copy
import io

import pytest
import torch
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.casts_and_copies import COPIES
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


@pytest.mark.parametrize("call", ["update", "update_and_mean", "forward"])
def test_impossible_labels_leave_waiting_losses_as_they_were(call):
    metric = holding(0, 1, cls=PercentileCrossEntropy)
    with pytest.raises(ValueError, match="`labels`"):
        getattr(metric, call)(torch.zeros(2, 3, V), torch.full((2, 3), V))
    assert_holds(metric, 0, 1)


@pytest.mark.parametrize("computed_before", [False, True])
def test_reset_forgets_what_waits_and_nothing_comes_back(computed_before):
    metric = holding(0)
    if computed_before:
        metric.compute()
        add(metric, forty(1))
    assert waits(metric)
    metric.reset()
    assert not waits(metric)
    assert torch.equal(state_of(metric), td.empty(1024))
    assert_holds(metric)
    add(metric, forty(2))
    assert_holds(metric, 2)
    metric.reset()
    metric.reset()
    assert_holds(metric)


ALL_COPIES = COPIES | {"copy": copy.copy}


@pytest.mark.parametrize("how", ALL_COPIES)
@pytest.mark.parametrize("groups", [None, ("a", "b")])
def test_a_copy_of_a_metric_with_waiting_values_goes_its_own_way(how, groups):
    more = {} if groups is None else {"group": 1}
    metric = StreamingQuantiles(groups=groups)
    metric.update(forty(0), **more)
    metric.compute()
    metric.update(forty(1), **more)
    assert waits(metric)
    clone = ALL_COPIES[how](metric)
    clone.update(forty(2), **more)
    metric.update(forty(3), **more)
    metric.update(forty(4), **more)
    assert_holds(clone, 0, 1, 2)
    assert_holds(metric, 0, 1, 3, 4)
    clone.reset()
    assert_holds(clone)
    assert_holds(metric, 0, 1, 3, 4)


def test_torch_save_holds_what_waits():
    metric, file = holding(0, 1), io.BytesIO()
    torch.save(metric, file)
    file.seek(0)
    assert_holds(torch.load(file, weights_only=False), 0, 1)


def test_the_state_dict_of_a_persistent_metric_holds_what_waits():
    metric, other = holding(0, 1), holding(2)
    for each in (metric, other):
        each.persistent(True)
        assert waits(each)
    (saved,) = metric.state_dict().values()
    assert td.count(saved) == 80
    other.load_state_dict(metric.state_dict())  # what waited in the other is replaced, as a state is
    assert not waits(other)
    assert_holds(other, 0, 1)
    add(other, forty(3))
    assert_holds(other, 0, 1, 3)
    assert_holds(metric, 0, 1)
    assert td.count(saved) == 80


def test_loading_a_module_that_saves_no_state_keeps_what_waits():
    metric = holding(0)
    module = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    module.load_state_dict(module.state_dict())
    add(metric, forty(1))
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


def test_merge_state_that_is_refused_keeps_what_waits():
    metric = holding(0, 1)
    for other in (holding(2, percentiles=(50,)), {"nothing": torch.zeros(3)}, holding(2).compute()):
        with pytest.raises(ValueError):
            metric.merge_state(other)
    add(metric, forty(2))
    assert_holds(metric, 0, 1, 2)


MOVES = {
    "to cpu": lambda module: module.to("cpu"),
    "half": lambda module: module.half(),
    "double": lambda module: module.double(),
    "bfloat16": lambda module: module.bfloat16(),
    "to(float16)": lambda module: module.to(torch.float16),
    "set_dtype": lambda module: module["metric"].set_dtype(torch.bfloat16),
    "train and eval": lambda module: module.train().eval(),
    "requires_grad_": lambda module: module.requires_grad_(False),
}


@pytest.mark.parametrize("move", MOVES)
def test_moves_and_casts_lose_nothing_that_waits_nor_its_precision(move):
    metric = StreamingQuantiles()
    module = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    metric.update(torch.tensor([1 + 1e-12, 2 + 1e-12], dtype=torch.float64))
    MOVES[move](module)
    metric.update(torch.tensor([3 + 1e-12], dtype=torch.float64))
    MOVES[move](module)
    assert state_of(metric).dtype == torch.float64
    assert metric.compute()["p50"] == 2 + 1e-12
    assert metric.compute()["count"] == 3


def test_what_waits_on_the_meta_device_is_not_there_on_the_cpu():
    with torch.device("meta"):
        metric = PercentileCrossEntropy()
        metric.update(losses=torch.empty(40))
    assert waits(metric)
    metric = metric.to_empty(device="cpu")
    metric.update(losses=forty(0))
    assert_holds(metric, 0)


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
