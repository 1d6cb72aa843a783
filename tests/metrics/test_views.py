"""DigestView: one entry of a result as a Metric."""

import copy
import pickle

import pytest
import torch

from lightning_pce import DigestView, PercentileCrossEntropy
from lightning_pce import digest as td
from lightning_pce.metrics._digest_metric import DigestFunction
from tests.helpers.summaries import assert_same_result
from tests.helpers.token_batches import random_losses


def test_a_view_is_one_entry_of_the_result_of_its_parent():
    metric = PercentileCrossEntropy()
    views = {key: metric.view(key) for key in metric.keys}
    assert all(isinstance(view, DigestView) for view in views.values())
    for seed in range(3):
        metric.update(losses=random_losses(seed))
        assert_same_result({key: view.compute() for key, view in views.items()}, metric.compute())
        assert_same_result({key: view.compute() for key, view in views.items()}, metric.compute())


def test_a_view_sees_what_came_after_another_view_was_computed():
    metric = PercentileCrossEntropy()
    metric.update(losses=random_losses(0))
    metric.view("p50").compute()
    metric.update(losses=random_losses(1))
    assert metric.view("count").compute() == 200
    metric.reset()
    assert metric.view("p95").compute().isnan()


@pytest.mark.parametrize("call", ["update", "forward", "__call__"])
def test_a_view_can_not_be_updated_and_names_its_parent(call):
    metric = PercentileCrossEntropy()
    metric.update(losses=random_losses())
    with pytest.raises(RuntimeError, match="PercentileCrossEntropy"):
        getattr(metric.view("p50"), call)(losses=random_losses())
    assert metric.compute()["count"] == 100


def test_reset_of_a_view_resets_its_parent():
    metric = PercentileCrossEntropy()
    view = metric.view("p50")
    metric.update(losses=random_losses())
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
    metric.update(losses=random_losses())
    modules["view"].compute()
    copied = how(modules)
    assert copied["view"].parent is copied["metric"]
    copied["metric"].update(losses=random_losses())
    assert copied["view"].compute() == 200
    assert modules["view"].compute() == 100


def test_a_view_adds_no_submodule_and_nothing_to_the_checkpoint():
    metric = PercentileCrossEntropy()
    metric.persistent(True)
    view = metric.view("p50")
    assert list(view.named_modules()) == [("", view)]
    assert view.state_dict() == {}


@pytest.mark.parametrize("compute_with_cache", [False, True])
def test_a_loaded_or_merged_state_is_seen_by_the_next_compute_and_by_views(compute_with_cache):
    metric, other = (PercentileCrossEntropy(compute_with_cache=compute_with_cache) for _ in range(2))
    metric.persistent(True)
    metric.update(losses=random_losses(0))
    other.update(losses=random_losses(1))
    view = other.view("mean")
    assert other.compute()["mean"] == view.compute()
    other.load_state_dict(metric.state_dict())
    assert other.compute()["mean"] == view.compute() == metric.compute()["mean"]
    other.merge_state(metric)
    assert other.compute()["count"] == 200
    assert other.view("count").compute() == 200


def mean_of(digest):
    return td.mean(digest)


def test_a_function_of_the_digest_is_a_view_and_takes_part_in_the_round_of_the_others():
    metric = PercentileCrossEntropy()
    view, median = DigestFunction(metric, "again", mean_of), metric.view("p50")
    assert metric.last_result is None
    for seed in (0, 1):
        metric.update(losses=random_losses(seed))
        first = view.compute()
        result = metric.last_result
        assert median.compute() == result["p50"]
        assert metric.last_result is result  # one round for both
        assert first == result["mean"]
        assert (first.shape, first.dtype) == ((), torch.float64)
    assert view.compute() == metric.compute()["mean"]
    view.reset()
    assert metric.last_result is None
    assert view.compute().isnan()
    assert view.state_dict() == {}


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_of_a_function_of_a_digest_stay_linked_to_the_copied_metric(how):
    metric = PercentileCrossEntropy()
    modules = torch.nn.ModuleDict({"metric": metric, "view": DigestFunction(metric, "again", mean_of)})
    metric.update(losses=random_losses())
    copied = how(modules)
    copied["metric"].update(losses=random_losses() + 1)
    assert copied["view"].compute() == copied["metric"].compute()["mean"]
    assert modules["view"].compute() == metric.compute()["mean"] < copied["view"].compute()
