"""Metrics that are merged over some of the ranks: a token that several ranks see is counted once."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torchmetrics import MetricCollection
from torchmetrics.wrappers import MetricTracker

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from tests.helpers.casts_and_copies import COPIES
from tests.helpers.distributions import exact_quantile
from tests.helpers.metric_contract import CASES
from tests.helpers.ranks import counted_collectives, run_function_on_ranks
from tests.helpers.token_batches import random_losses

PERCENTILES = (5, 50, 95)
MESH = None  # of this process, when it is one of the ranks


def data_parallel_group():
    return MESH["data_parallel"].get_group()


def losses_of_part(part):
    """What one data-parallel rank sees, and all its tensor-parallel ranks with it."""
    return random_losses(part, 30 + 10 * part)


def ce_of(part, group, **arguments):
    metric = PercentileCrossEntropy(PERCENTILES, process_group=group, **arguments)
    metric.update(losses=losses_of_part(part))
    return metric


def flat(result):
    values = result.values() if isinstance(result, dict) else [result]
    values = result if isinstance(result, tuple) else values
    return torch.cat([value.double().reshape(-1) for value in values])


# ------------------------------------------ scenarios, run in every rank: (data-parallel part) -> what it saw


def every_metric(part):
    outcome = {}
    for how, group in {
        "group": data_parallel_group(),
        "function": data_parallel_group,
        "method": MESH["data_parallel"].get_group,
    }.items():
        for name, case in CASES.items():
            metric = case.metric(case.batches[part], process_group=group)
            with counted_collectives() as calls:
                outcome[f"{how} {name}"] = flat(metric.compute())
            outcome[f"{how} {name} calls"] = calls
    return outcome


def one_gather_in_that_group(part):
    seen, all_gather = [], dist.all_gather

    def spy(parts, state, group=None):
        seen.append([group is data_parallel_group(), len(parts)])
        return all_gather(parts, state, group=group)

    dist.all_gather = spy
    try:
        ce_of(part, data_parallel_group).compute()
    finally:
        dist.all_gather = all_gather
    return seen


def without_a_group(part):
    return ce_of(part, None).compute()["count"]


def a_function_that_returns_all_ranks(part):
    return ce_of(part, everyone).compute()["count"]


def everyone():
    return None


def syncs_by_hand(part):
    metric = ce_of(part, data_parallel_group, sync_on_compute=False)
    with counted_collectives() as calls:
        counts = [metric.compute()["count"]]
        before = list(calls)
        metric.sync()
        counts.append(metric.compute()["count"])  # and is as it was before the sync
        metric.sync(process_group=lambda: MESH["tensor_parallel"].get_group())
        counts.append(metric.compute()["count"])
        counts.append(metric.compute()["count"])
    return counts, before, calls


def views_share_the_collective(part):
    metric = ce_of(part, data_parallel_group)
    with counted_collectives() as calls:
        result = torch.stack([metric.view(key).compute() for key in ("mean", "p50", "count")])
    return result, calls


def copies(part):
    metric = ce_of(part, data_parallel_group())
    tracker = MetricTracker(PercentileCrossEntropy(PERCENTILES, process_group=data_parallel_group()))
    tracker.increment()
    tracker.update(losses=losses_of_part(part))
    copied = [metric.clone(), copy.deepcopy(torch.nn.ModuleList([metric]))[0], copy.copy(metric)]
    copied += [change(ce_of(part, data_parallel_group)) for change in COPIES.values()]
    copied += [change(ce_of(part, MESH["data_parallel"].get_group)) for change in COPIES.values()]
    return [flat(each.compute()) for each in [metric, tracker, *copied]]


def pickled_with_a_group(part):
    try:
        pickle.dumps(ce_of(part, data_parallel_group()))
    except pickle.PicklingError as error:
        return str(error)
    return None


def two_groups_in_a_collection(part):
    """Metrics of equal settings and equal states, which the collection joins to one."""
    metrics = MetricCollection(
        {
            "once": PercentileCrossEntropy(PERCENTILES, process_group=data_parallel_group),
            "twice": PercentileCrossEntropy(PERCENTILES),
        }
    )
    for _ in range(2):
        metrics.update(losses=losses_of_part(part))
    result = metrics.compute()
    assert len(metrics.compute_groups) == 1
    return [result["once_count"], result["twice_count"]]


def a_group_that_some_are_not_in(part):
    group = dist.new_group([0, 1])  # -100 on the others
    metric = ce_of(part, group)
    try:
        outcome = metric.compute()["count"]
    except RuntimeError as error:
        outcome = str(error)
    metric.process_group = None
    return outcome, metric.compute()["count"]


def a_function_that_returns_no_group(part):
    try:
        ce_of(part, lambda: "data_parallel").compute()
    except RuntimeError as error:
        return str(error)
    return None


SCENARIOS = [
    every_metric,
    one_gather_in_that_group,
    without_a_group,
    a_function_that_returns_all_ranks,
    syncs_by_hand,
    views_share_the_collective,
    copies,
    pickled_with_a_group,
    two_groups_in_a_collection,
    a_group_that_some_are_not_in,
    a_function_that_returns_no_group,
]


def all_scenarios(rank, _):
    global MESH
    MESH = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    return {scenario.__name__: scenario(rank // 2) for scenario in SCENARIOS}


def groups_of_one(rank, _):
    groups = [dist.new_group([0]), dist.new_group([1])]
    metric = ce_of(rank, groups[rank])
    with counted_collectives() as calls:
        result = metric.compute()
    return result["count"], result["p50"], calls


# ----------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def four_ranks():
    return run_function_on_ranks(all_scenarios, 4, timeout=120)


@pytest.fixture(scope="module")
def once():
    """What one process computes that sees each token once."""
    metrics = {name: case.metric(*case.batches) for name, case in CASES.items()}
    return {name: flat(metric.compute()) for name, metric in metrics.items()}


@pytest.fixture(scope="module")
def ce_once():
    metric = ce_of(0, None)
    metric.update(losses=losses_of_part(1))
    return flat(metric.compute())


def of(ranks, scenario):
    return [rank[scenario.__name__] for rank in ranks]


@pytest.mark.parametrize("how", ["group", "function", "method"])
@pytest.mark.parametrize("name", CASES)
def test_each_token_is_counted_once_by_one_collective(four_ranks, once, how, name):
    for outcome in of(four_ranks, every_metric):
        torch.testing.assert_close(outcome[f"{how} {name}"], once[name], rtol=1e-12, atol=0, equal_nan=True)
        assert outcome[f"{how} {name} calls"] == list(CASES[name].collectives)


def test_the_percentiles_are_those_of_the_tokens_themselves(ce_once):
    losses = torch.cat([losses_of_part(0), losses_of_part(1)]).double()
    expected = [losses.mean(), *(exact_quantile(losses, p / 100) for p in PERCENTILES)]
    torch.testing.assert_close(ce_once[:4], torch.stack(expected), rtol=1e-12, atol=0)


def test_all_ranks_have_the_same_bits(four_ranks):
    first, *others = of(four_ranks, every_metric)
    for outcome in others:
        for name, value in first.items():
            if not name.endswith("calls"):
                assert torch.equal(value.view(torch.int64), outcome[name].view(torch.int64)), name


def test_only_the_states_of_the_group_are_merged(four_ranks):
    assert of(four_ranks, one_gather_in_that_group) == [[[True, 2]]] * 4


def test_without_a_group_or_with_none_returned_all_ranks_count(four_ranks):
    assert of(four_ranks, without_a_group) == [140] * 4
    assert of(four_ranks, a_function_that_returns_all_ranks) == [140] * 4


def test_a_sync_by_hand_is_of_the_group_unless_it_is_given_another(four_ranks):
    for rank, (counts, before, calls) in enumerate(of(four_ranks, syncs_by_hand)):
        own = 30 + 10 * (rank // 2)
        assert counts == [own, 70, 2 * own, own]
        assert before == []
        assert calls == ["all_gather"] * 2


def test_views_share_the_one_collective_of_the_group(four_ranks, ce_once):
    for result, calls in of(four_ranks, views_share_the_collective):
        torch.testing.assert_close(result, ce_once[[0, 2, 6]], rtol=1e-12, atol=0)
        assert calls == ["all_gather"]


def test_copies_share_the_group(four_ranks, ce_once):
    for results in of(four_ranks, copies):
        assert len(results) == 2 + 3 + 2 * len(COPIES)
        for result in results:
            torch.testing.assert_close(result, ce_once, rtol=1e-12, atol=0)


def test_pickling_a_group_itself_says_to_pass_a_function(four_ranks):
    for error in of(four_ranks, pickled_with_a_group):
        assert "cannot be pickled" in error
        assert "function of a module" in error


def test_metrics_of_a_collection_that_share_a_state_keep_their_groups(four_ranks):
    assert of(four_ranks, two_groups_in_a_collection) == [[140, 280]] * 4


def test_a_rank_outside_of_the_group_says_so_and_keeps_its_state(four_ranks):
    outcomes = of(four_ranks, a_group_that_some_are_not_in)
    assert [after for _, after in outcomes] == [140] * 4
    assert [count for count, _ in outcomes[:2]] == [60] * 2
    for error, _ in outcomes[2:]:
        assert "not in its `process_group`" in error


def test_a_function_that_returns_something_else_is_named(four_ranks):
    for error in of(four_ranks, a_function_that_returns_no_group):
        assert "returned 'data_parallel'" in error


def test_groups_of_one_rank_each_keep_their_own_tokens():
    for rank, (count, median, calls) in enumerate(run_function_on_ranks(groups_of_one, 2)):
        assert count == len(losses_of_part(rank))
        torch.testing.assert_close(median, exact_quantile(losses_of_part(rank), 0.5), rtol=1e-12, atol=0)
        assert calls == ["all_gather"]


def test_one_process_never_asks_for_the_group():
    def asked():
        raise AssertionError("asked")

    metric = ce_of(0, asked)
    metric(losses=losses_of_part(1))
    assert metric.compute()["count"] == 70
    assert metric.clone().compute()["count"] == 70


def test_the_group_is_no_part_of_the_states_name():
    with_group, without = PercentileCrossEntropy(process_group=everyone), PercentileCrossEntropy()
    assert list(with_group.metric_state) == list(without.metric_state)
    without.merge_state(with_group)


@pytest.mark.parametrize("wrong", ["data_parallel", 3, [0, 1]])
def test_a_group_that_is_none_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=r"`process_group` to be a ProcessGroup or a function.*get_group"):
        StreamingQuantiles(process_group=wrong)
