"""Each scenario runs in all ranks of one group; the tests look at what the ranks brought home."""

import datetime
import math
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lightning_pce import PercentileCrossEntropy
from lightning_pce import digest as td
from tests.helpers.distributions import bound, ce_like, exact_quantile, worst_rank_error
from tests.helpers.metric_states import fed
from tests.helpers.ranks import counted_collectives, run_function_on_ranks
from tests.helpers.summaries import PERCENTILES
from tests.helpers.token_batches import random_losses

V = 11


def losses_of_part(rank, part, n=50):
    return random_losses(100 * rank + part, n)


def percentiles_of(*batches):
    return fed(PercentileCrossEntropy(), *({"losses": losses} for losses in batches))


def large_part(rank):
    return torch.from_numpy(ce_like([220_000, 80_000][rank], np.random.default_rng(rank)))


# -------------------------------------------------------------- scenarios, run in every rank: (rank) -> dict


def unequal_batches(rank):
    metric = percentiles_of(*(losses_of_part(rank, part, 50 + 7 * part) for part in range([3, 1, 2][rank])))
    with counted_collectives() as calls:
        result = metric.compute()
    return {"result": result, "calls": calls}


def no_update_at_all(rank):
    metric = percentiles_of(*[losses_of_part(0, 0)][rank:])
    with counted_collectives() as calls:
        result = metric.compute()
    return {"result": result, "calls": calls}


def all_ignored(rank):
    logits = torch.randn(2, 20, V, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(40).reshape(2, 20) % V
    metric = PercentileCrossEntropy()
    metric.update(logits, labels if rank == 1 else torch.full_like(labels, -100))
    return {"result": metric.compute()}


def both_empty(rank):
    metric = percentiles_of()
    first = metric.compute()
    metric.update(losses=losses_of_part(rank, 0))
    return {"result": first, "later": metric.compute()}


def large(rank):
    metric = percentiles_of(*large_part(rank).split(8192))
    return {"result": metric.compute(), "digest": metric.digest}


def update_after_compute(rank):
    metric = percentiles_of(losses_of_part(rank, 0))
    digests = [metric.digest]
    metric.compute()
    digests.append(metric.digest)
    metric.update(losses=losses_of_part(rank, 1))
    digests.append(metric.digest)
    result = metric.compute()
    digests.append(metric.digest)
    metric.reset()
    digests.append(metric.digest)
    return {"result": result, "counts": [td.count(digest).item() for digest in digests]}


def one_rank_updates_again(rank):
    metric = percentiles_of(losses_of_part(rank, 0))
    with counted_collectives() as calls:
        metric.compute()
        if rank == 1:
            metric.update(losses=losses_of_part(rank, 1))
        result = metric.compute()
    return {"result": result, "calls": calls}


def views_one_after_another(rank):
    metric = percentiles_of(losses_of_part(rank, 0))
    views = {key: metric.view(key) for key in metric.keys[:7]}
    with counted_collectives() as calls:
        result = {key: view.compute() for key, view in views.items()}
    return {"result": result, "calls": calls, "parent": metric.compute()}


def views_after_one_rank_updates_again(rank):
    metric = percentiles_of(losses_of_part(rank, 0))
    views = {key: metric.view(key) for key in metric.keys[:7]}
    with counted_collectives() as calls:
        for view in views.values():
            view.compute()
        if rank == 1:
            metric.update(losses=losses_of_part(rank, 1))
        result = {key: view.compute() for key, view in views.items()}
    return {"result": result, "calls": calls}


def bare_sync(rank):
    metric = percentiles_of(losses_of_part(rank, 0))
    metric.compute()
    metric.update(losses=losses_of_part(rank, 1))
    with counted_collectives() as calls:
        metric.sync()
        synced = td.count(metric.digest).item()
        metric.unsync()
    return {"result": metric.compute(), "calls": calls, "synced": synced}


def forward(rank):
    metric = percentiles_of()
    with counted_collectives() as calls:
        batches = [metric(losses=losses_of_part(rank, part))["mean"].item() for part in range(2)]
    return {"result": metric.compute(), "calls": calls, "batches": batches}


def an_error_inside_compute(rank):
    metric = percentiles_of(torch.tensor([math.nan]), losses_of_part(rank, 0))
    said = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metric.compute()
    except UserWarning as error:
        said.append(str(error))
    metric.update(losses=losses_of_part(rank, 1))
    return {"result": metric.compute(), "said": said}


def cast_on_one_rank(rank):
    parent = torch.nn.ModuleDict({"metric": percentiles_of()})
    if rank == 1:
        parent.to(torch.bfloat16)
    parent["metric"].update(losses=losses_of_part(rank, 0))
    return {"result": parent["metric"].compute()}


def without_sync_on_one_rank(rank):
    metric = percentiles_of(losses_of_part(rank, 0))
    alone = PercentileCrossEntropy(sync_on_compute=False)
    alone.merge_state(metric)
    with counted_collectives() as calls:
        own = alone.compute()["count"].item() if rank == 0 else 50
    return {"result": metric.compute(), "calls": calls, "own": own}


SCENARIOS = [
    unequal_batches,
    no_update_at_all,
    all_ignored,
    both_empty,
    large,
    update_after_compute,
    one_rank_updates_again,
    views_one_after_another,
    views_after_one_rank_updates_again,
    bare_sync,
    forward,
    an_error_inside_compute,
    cast_on_one_rank,
    without_sync_on_one_rank,
]


def all_scenarios(rank, _):
    return {scenario.__name__: scenario(rank) for scenario in SCENARIOS}


def unequal_batches_of_rank(rank, _):
    return unequal_batches(rank)


def compute_on_rank_0_alone(rank, _):
    metric = percentiles_of(losses_of_part(rank, 0))
    metric.process_group = dist.new_group(timeout=datetime.timedelta(seconds=2))
    said = None
    if rank == 0:
        try:
            metric.compute()
        except RuntimeError as error:
            said = str(error)
    return {"said": said, "count": td.count(metric.digest).item()}


def some_views_before_one_rank_updates_again(rank, _):
    metric = percentiles_of(losses_of_part(rank, 0))
    median, high = metric.view("p50"), metric.view("p95")
    median.compute()
    if rank == 1:
        metric.update(losses=losses_of_part(rank, 1))
    return high.compute()


# ----------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def two_ranks():
    return run_function_on_ranks(all_scenarios, 2)


def assert_all_have(ranks, scenario, values):
    """Every rank has the result of all these values together."""
    values = values.double()
    expected = {f"p{p}": exact_quantile(values, p / 100) for p in PERCENTILES} | {"mean": values.mean()}
    for outcome in ranks:
        result = outcome[scenario]["result"] if scenario else outcome["result"]
        for key, value in expected.items():
            torch.testing.assert_close(result[key], value, rtol=1e-12, atol=0, msg=key)
        if "count" in result:
            assert result["count"] == len(values)


def losses_of_all(*rank_and_part):
    return torch.cat([losses_of_part(*both) for both in rank_and_part])


def test_ranks_with_unequal_batches_give_the_percentiles_of_all_tokens_together(two_ranks):
    everything = [
        losses_of_part(0, 0, 50),
        losses_of_part(0, 1, 57),
        losses_of_part(0, 2, 64),
        losses_of_part(1, 0, 50),
    ]
    assert_all_have(two_ranks, "unequal_batches", torch.cat(everything))


def test_a_rank_without_any_update_takes_part(two_ranks):
    assert_all_have(two_ranks, "no_update_at_all", losses_of_part(0, 0))


def test_a_rank_whose_tokens_are_all_ignored_adds_nothing(two_ranks):
    logits = torch.randn(2, 20, V, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(40).reshape(2, 20) % V
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    for outcome in two_ranks:
        result = outcome["all_ignored"]["result"]
        assert result["count"] == 40
        torch.testing.assert_close(result["p5"], exact_quantile(losses, 0.05), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["mean"], losses.double().mean(), rtol=1e-5, atol=1e-6)


def test_empty_ranks_give_nan_and_a_count_of_0_and_go_on(two_ranks):
    for outcome in two_ranks:
        result = outcome["both_empty"]["result"]
        assert [result["count"], result["nonfinite"], result["invalid"]] == [0, 0, 0]
        assert all(value.isnan() for key, value in result.items() if key[0] in "pmtf")
        assert outcome["both_empty"]["later"]["count"] == 100


def test_many_tokens_keep_the_promised_rank_error_and_the_exact_count_and_mean(two_ranks):
    values = torch.cat([large_part(rank) for rank in range(2)])
    for outcome in two_ranks:
        result, q = outcome["large"]["result"], np.arange(1, 100) / 100
        assert result["count"] == len(values)
        torch.testing.assert_close(result["mean"], values.double().mean(), rtol=1e-9, atol=0)
        estimates = [result[f"p{p}"].item() for p in PERCENTILES]
        assert worst_rank_error(values, estimates, np.array(PERCENTILES) / 100) <= bound(len(values))
        merged = td.quantile(outcome["large"]["digest"], torch.from_numpy(q))
        assert worst_rank_error(values, merged, q) <= bound(len(values))


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
def test_all_ranks_have_the_same_bits(two_ranks, scenario):
    first, second = (
        torch.stack(list(outcome[scenario]["result"].values())).view(torch.int64) for outcome in two_ranks
    )
    assert torch.equal(first, second)


def test_a_compute_takes_one_collective(two_ranks):
    for scenario in ["unequal_batches", "no_update_at_all"]:
        assert [len(outcome[scenario]["calls"]) for outcome in two_ranks] == [1, 1], scenario


def test_an_update_after_compute_continues_from_what_this_rank_saw(two_ranks):
    everything = losses_of_all((0, 0), (0, 1), (1, 0), (1, 1))
    assert_all_have(two_ranks, "update_after_compute", everything)


def test_digest_is_that_of_all_ranks_after_compute_and_else_local(two_ranks):
    for outcome in two_ranks:
        assert outcome["update_after_compute"]["counts"] == [50, 100, 100, 200, 0]


def test_a_second_compute_after_one_rank_updated_again_does_not_hang(two_ranks):
    assert_all_have(two_ranks, "one_rank_updates_again", losses_of_all((0, 0), (1, 0), (1, 1)))
    assert [len(outcome["one_rank_updates_again"]["calls"]) for outcome in two_ranks] == [2, 2]


def test_seven_views_computed_one_after_another_take_one_collective(two_ranks):
    assert_all_have(two_ranks, "views_one_after_another", losses_of_all((0, 0), (1, 0)))
    for outcome in two_ranks:
        outcome = outcome["views_one_after_another"]
        assert len(outcome["calls"]) == 1
        assert len(outcome["result"]) == 7
        assert all(torch.equal(value, outcome["parent"][key]) for key, value in outcome["result"].items())


def test_views_see_that_one_rank_updated_again_and_do_not_hang(two_ranks):
    everything = losses_of_all((0, 0), (1, 0), (1, 1))
    assert_all_have(two_ranks, "views_after_one_rank_updates_again", everything)
    calls = [len(outcome["views_after_one_rank_updates_again"]["calls"]) for outcome in two_ranks]
    assert calls == [2, 2]


def test_a_bare_sync_takes_one_collective_and_can_be_undone(two_ranks):
    assert_all_have(two_ranks, "bare_sync", losses_of_all((0, 0), (0, 1), (1, 0), (1, 1)))
    for outcome in two_ranks:
        assert len(outcome["bare_sync"]["calls"]) == 1
        assert outcome["bare_sync"]["synced"] == 200


def test_forward_gives_this_ranks_batch_without_a_collective(two_ranks):
    assert_all_have(two_ranks, "forward", losses_of_all((0, 0), (0, 1), (1, 0), (1, 1)))
    for rank, outcome in enumerate(two_ranks):
        assert outcome["forward"]["calls"] == []
        expected = [losses_of_part(rank, part).double().mean().item() for part in range(2)]
        assert outcome["forward"]["batches"] == pytest.approx(expected, rel=1e-12)


def test_an_error_inside_compute_leaves_each_rank_its_own_state(two_ranks):
    everything = losses_of_all((0, 0), (0, 1), (1, 0), (1, 1))
    for outcome in two_ranks:
        assert outcome["an_error_inside_compute"]["result"]["count"] == len(everything)
        assert outcome["an_error_inside_compute"]["result"]["nonfinite"] == 2
    assert_all_have(two_ranks, "an_error_inside_compute", everything)
    assert "2 values were NaN" in two_ranks[0]["an_error_inside_compute"]["said"][0]


def test_ranks_whose_modules_have_different_dtypes_are_merged_like_any(two_ranks):
    assert_all_have(two_ranks, "cast_on_one_rank", losses_of_all((0, 0), (1, 0)))


def test_one_rank_may_compute_alone_what_it_saw_itself_without_a_collective(two_ranks):
    assert_all_have(two_ranks, "without_sync_on_one_rank", losses_of_all((0, 0), (1, 0)))
    for outcome in two_ranks:
        assert outcome["without_sync_on_one_rank"]["calls"] == []
        assert outcome["without_sync_on_one_rank"]["own"] == 50


def test_a_compute_on_rank_0_alone_waits_for_the_timeout_of_its_group_and_raises():
    first, second = run_function_on_ranks(compute_on_rank_0_alone, 2, timeout=40)
    assert "Timed out" in first["said"]
    assert first["count"] == second["count"] == 50  # each has its own state still


def test_three_ranks_give_the_percentiles_of_all_tokens_together_by_one_collective():
    ranks = run_function_on_ranks(unequal_batches_of_rank, 3)
    sizes = [50, 57, 64]
    everything = [
        losses_of_part(rank, part, sizes[part]) for rank, n in enumerate([3, 1, 2]) for part in range(n)
    ]
    assert_all_have(ranks, None, torch.cat(everything))
    bits = [torch.stack(list(outcome["result"].values())).view(torch.int64) for outcome in ranks]
    assert torch.equal(bits[0], bits[1])
    assert torch.equal(bits[0], bits[2])
    assert [len(outcome["calls"]) for outcome in ranks] == [1, 1, 1]


def test_views_of_which_only_some_were_computed_before_one_rank_updated_again_do_not_hang():
    first, second = run_function_on_ranks(some_views_before_one_rank_updates_again, 2)
    assert torch.equal(first, second)
