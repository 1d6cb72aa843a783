"""MetricCollection, Running and MetricTracker around metrics of percentiles, also while values wait."""

import copy

import torch
from torchmetrics import MetricCollection
from torchmetrics.wrappers import MetricTracker, Running

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from tests.helpers.holding import add, assert_holds, forty
from tests.helpers.metric_states import waits
from tests.helpers.summaries import KEYS, assert_summarises
from tests.helpers.token_batches import batch, random_losses


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


def test_views_of_every_member_of_a_collection_see_every_update():
    metrics = {"a": PercentileCrossEntropy(), "b": PercentileCrossEntropy()}
    collection, views = MetricCollection(metrics), [metric.view("count") for metric in metrics.values()]
    for seed in range(3):
        collection.update(losses=random_losses(seed))
        assert [float(view.compute()) for view in views] == [100 * (seed + 1)] * 2
    assert len(collection.compute_groups) == 1  # only the first member is updated
    collection.reset()
    collection.update(losses=random_losses(3))
    assert [float(view.compute()) for view in views] == [100, 100]


def test_running_covers_its_window():
    running = Running(PercentileCrossEntropy(), window=2)
    for seed in range(3):
        running.update(losses=random_losses(seed))
    assert_summarises(running.compute(), torch.cat([random_losses(1), random_losses(2)]))
    assert_summarises(running(losses=random_losses(3)), random_losses(3))
    assert_summarises(running.compute(), torch.cat([random_losses(2), random_losses(3)]))


def test_metric_tracker_keeps_one_result_per_step():
    tracker = MetricTracker(PercentileCrossEntropy(), maximize=None)  # the default since torchmetrics 1.7
    assert tracker.maximize is False
    for seed in range(3):
        tracker.increment()
        tracker.update(losses=random_losses(seed))
    result = tracker.compute_all()
    assert list(result) == KEYS
    for seed in range(3):
        assert_summarises({key: value[seed] for key, value in result.items()}, random_losses(seed))


def test_a_collection_of_metrics_that_differ_lets_each_wait():
    collection = MetricCollection({"a": StreamingQuantiles(), "b": StreamingQuantiles(compression=512)})
    for seed in range(3):
        collection.update(values=forty(seed))
    assert len(collection.compute_groups) == 2
    for metric in collection.values(copy_state=False):
        assert waits(metric)
        assert_holds(metric, 0, 1, 2)


def test_a_collection_without_compute_groups_lets_each_wait():
    collection = MetricCollection(
        {"a": StreamingQuantiles(), "b": StreamingQuantiles()}, compute_groups=False
    )
    for seed in range(3):
        collection.update(values=forty(seed))
    copied = copy.deepcopy(collection)
    collection.update(values=forty(3))
    for metric in collection.values():
        assert_holds(metric, 0, 1, 2, 3)
    for metric in copied.values():
        assert_holds(metric, 0, 1, 2)


def test_a_member_that_was_updated_alone_follows_its_collection_again():
    collection = MetricCollection({"a": StreamingQuantiles(), "b": StreamingQuantiles()})
    collection.update(values=forty(0))
    add(collection["b"], forty(1))  # and waits
    collection.update(values=forty(2))  # shares the state of the first member, as torchmetrics does
    assert_holds(collection["b"], 0, 2)
    add(collection["b"], forty(3))
    assert_holds(collection._modules["b"], 0, 2, 3)


def test_forward_of_a_collection_gives_the_batch_and_keeps_what_waits():
    collection = MetricCollection({"a": StreamingQuantiles(), "b": StreamingQuantiles()})
    collection.update(values=forty(0))
    collection.update(values=forty(1))
    result = collection(values=forty(2))
    assert result["a_count"] == result["b_count"] == 40
    for metric in collection.values():
        assert_holds(metric, 0, 1, 2)


def test_running_and_tracker_see_what_waits():
    running, tracker = Running(StreamingQuantiles(), window=2), MetricTracker(PercentileCrossEntropy())
    tracker.increment()
    for seed in range(3):
        running.update(forty(seed))
        tracker.update(losses=forty(seed))
    assert running.compute()["count"] == 80
    assert tracker.compute()["count"] == 120
    tracker.increment()
    tracker.update(losses=forty(3))
    assert tracker.compute_all()["count"].tolist() == [120, 40]
