"""Results that views share over two ranks: no rank enters a collective alone, and none gets an old part."""

import torch

from lightning_pce import StreamingQuantiles
from lightning_pce.metrics._views import SharedGather
from lightning_pce.metrics.weighted_mean import WeightedMean
from tests.helpers.ranks import counted_collectives, run_function_on_ranks


def forward_between_views(rank, world_size):
    metric = StreamingQuantiles((50,))
    metric.update(torch.full((3,), 1.0 + rank))
    mean, median = metric.view("mean"), metric.view("p50")
    first = mean.compute()
    if rank == 0:
        metric(torch.ones(2))
    return {"mean": first, "median": median.compute()}


def test_a_forward_on_one_rank_between_two_views_makes_none_wait():
    for notes in run_function_on_ranks(forward_between_views, 2, timeout=40):
        assert notes["mean"] == notes["median"] == 1.5


def together(rank, world_size):
    metrics = [StreamingQuantiles((50,)), WeightedMean(), StreamingQuantiles((50,), compression=64)]
    gather = SharedGather()
    for metric in metrics:
        gather.add(metric)
        metric.update(torch.full((4,), 1.0 + rank))
    views = [metric.view("mean") for metric in metrics]
    notes = {}
    with counted_collectives() as calls:
        notes["first"] = [view.compute() for view in views]
        notes["alone"] = metrics[1].compute()["mean"]  # by hand: a collective of its own
        for metric in metrics:
            metric.update(torch.full((4,), 4.0))
        notes["second"] = [view.compute() for view in views]
        gather.begin()
        metrics[2].update(torch.full((8,), 4.0))
        notes["third"] = [view.compute() for view in reversed(views)]
    return {**notes, "calls": calls}


def test_metrics_share_a_gather_and_each_round_is_of_its_own_time():
    for notes in run_function_on_ranks(together, 2, timeout=40):
        assert notes["calls"] == ["all_gather"] * 4
        assert notes["first"] == [1.5] * 3
        assert notes["alone"] == 1.5
        assert notes["second"] == [2.75] * 3
        assert notes["third"] == [3.375, 2.75, 2.75]


def moved(rank, world_size):
    metric = StreamingQuantiles((50,))
    metric.update(torch.full((3,), 1.0 + rank))
    metric.compute()
    metric.to("cpu")
    after_move = metric.digest
    metric.update(torch.ones(1))
    return {"after": after_move[:, 1].abs().sum(), "own": metric.digest[:, 1].abs().sum()}


def test_the_digest_of_all_ranks_stays_readable_where_the_metric_moves():
    for notes in run_function_on_ranks(moved, 2, timeout=40):
        assert (notes["after"], notes["own"]) == (6, 4)
