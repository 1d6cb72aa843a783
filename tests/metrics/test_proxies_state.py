"""The state of TokenProxies: dtypes, copies, merging, collections, accelerators, two ranks."""

import warnings

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch._dynamo.testing import CompileCounter
from torchmetrics import MetricCollection, SumMetric

from lightning_pce import TokenProxies
from lightning_pce.tokens.statistics import token_statistics
from tests.helpers.casts_and_copies import CASTS, COPIES
from tests.helpers.metric_states import state_of
from tests.helpers.proxies_by_hand import COUNTS, V, assert_close, by_hand, proxies_of, small_batch
from tests.helpers.ranks import counted_collectives, run_function_on_ranks


def test_the_state_is_one_float64_tensor_of_fixed_size():
    metric = proxies_of(small_batch())
    assert state_of(metric).shape == (81, 4)
    assert state_of(metric).dtype == torch.float64
    assert metric.state_dict() == {}
    assert list(metric.buffers()) == list(metric.parameters()) == []


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_of_the_module_never_touches_the_state(cast):
    metric, twin = TokenProxies(token_counts=COUNTS), TokenProxies(token_counts=COUNTS)
    parent = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    for _ in range(2):  # the second works on what reset brings back
        CASTS[cast](parent)
        for seed in range(3):
            metric.update(*small_batch(seed))
            twin.update(*small_batch(seed))
            CASTS[cast](parent)
            assert state_of(metric).dtype == torch.float64
            assert torch.equal(state_of(metric), state_of(twin))
        assert_close(metric(*small_batch(9)), twin(*small_batch(9)), rtol=0, atol=0)
        metric.reset()
        twin.reset()


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_same_content_and_goes_its_own_way(how):
    settings = {"last_n": 4, "token_counts": COUNTS, "inverse": "complement"}
    metric = proxies_of(small_batch(), **settings)
    other = COPIES[how](metric)
    before = state_of(metric).clone()
    other.update(*small_batch(1))
    assert torch.equal(state_of(metric), before)
    assert torch.equal(state_of(other), state_of(proxies_of(small_batch(), small_batch(1), **settings)))


def test_forward_gives_the_batch_and_accumulates_like_update():
    forwarded = TokenProxies()
    for seed in range(3):
        assert_close(forwarded(*small_batch(seed)), by_hand(*small_batch(seed)), rtol=2e-6, atol=2e-7)
    updated = proxies_of(*(small_batch(seed) for seed in range(3)))
    assert_close(forwarded.compute(), updated.compute(), rtol=1e-12)
    assert forwarded.update_count == 3


def test_reset_forgets_everything():
    metric = proxies_of(small_batch())
    metric.compute()
    metric.reset()
    assert state_of(metric).abs().sum() == 0
    metric.update(*small_batch(1))
    assert torch.equal(state_of(metric), state_of(proxies_of(small_batch(1))))


def test_a_persistent_metric_is_saved_and_loaded_into_the_same_settings_only():
    metric, other, stranger = proxies_of(small_batch()), TokenProxies(), TokenProxies(last_n=5)
    for each in (metric, other, stranger):
        each.persistent(True)
    other.load_state_dict(metric.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # among others, that of compute before update
        assert_close(other.compute(), metric.compute(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="same settings"):
        stranger.load_state_dict(metric.state_dict())


LOGITS, LABELS = small_batch(ignored=0)
DIFFERENT = [
    {"last_n": 999},
    {"shift": True},
    {"ignore_index": 0},
    {"vocabulary": 99},
    {"inverse": "complement"},
    {"token_counts": COUNTS},
    {"gaussian_center": 0.0},
    {"gaussian_width": 2.0},
]


@pytest.mark.parametrize("settings", DIFFERENT, ids=lambda settings: next(iter(settings)))
def test_metrics_that_differ_are_merged_neither_by_hand_nor_in_a_collection(settings):
    metric, other = proxies_of(small_batch()), TokenProxies(**settings)
    with pytest.raises(ValueError, match="same settings"):
        metric.merge_state(other)
    with pytest.raises(ValueError, match="Expected a state"):
        metric.merge_state(other.metric_state)
    collection = MetricCollection({"a": TokenProxies(), "b": TokenProxies(**settings)})
    collection.update(logits=LOGITS[:, :0], labels=LABELS[:, :0])  # after which both are zeros
    collection.update(logits=LOGITS, labels=LABELS)
    assert len(collection.compute_groups) == 2
    assert torch.equal(state_of(collection["b"]), state_of(proxies_of((LOGITS, LABELS), **settings)))


def test_a_collection_may_update_equal_metrics_once():
    collection = MetricCollection({"a": TokenProxies(), "b": TokenProxies()})
    for seed in range(2):
        collection.update(*small_batch(seed))
    assert len(collection.compute_groups) == 1  # so the test above can fail
    wanted = proxies_of(small_batch(0), small_batch(1))
    assert torch.equal(state_of(collection["b"]), state_of(wanted))
    assert torch.equal(collection.compute()["b_rank_uniform"], wanted.compute()["rank_uniform"])


def test_merge_state_into_a_fresh_metric_does_not_warn_of_compute_before_update():
    metric, other = TokenProxies(), proxies_of(small_batch())
    metric.merge_state(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(metric.compute(), other.compute(), rtol=0, atol=0)


def test_merge_state_leaves_no_stale_result():
    metric = proxies_of(small_batch(), compute_with_cache=True)
    metric.compute()
    metric.merge_state(proxies_of(small_batch(1)))
    assert metric.compute()["sequences"] == 8


def test_editing_a_result_does_not_edit_the_state():
    metric = proxies_of(small_batch())
    wanted = state_of(metric).clone()
    for value in metric.compute().values():
        value += 5
    assert torch.equal(state_of(metric), wanted)


def test_merge_state_refuses_what_is_no_such_metric():
    with pytest.raises(ValueError):
        proxies_of(small_batch()).merge_state(SumMetric())


def test_what_was_made_in_inference_mode_can_be_used_in_normal_mode():
    with torch.inference_mode():
        metric = proxies_of(small_batch())
        metric(*small_batch(1))
    metric.update(*small_batch(2))
    wanted = proxies_of(*(small_batch(seed) for seed in range(3)))
    assert_close(metric.compute(), wanted.compute(), rtol=1e-12)


def test_update_keeps_no_graph_and_leaves_the_logits_alone():
    logits, labels = small_batch()
    kept = logits.clone()
    metric = proxies_of((logits.requires_grad_(), labels))
    assert not any(value.requires_grad for value in metric(logits, labels).values())
    assert not state_of(metric).requires_grad
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("settings", [{}, {"token_counts": COUNTS}], ids=["alone", "corpus"])
def test_update_on_an_accelerator_reads_nothing_on_the_host(settings):
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        metric = TokenProxies(vocabulary=V, shift=True, last_n=5, **settings)
        logits, labels = torch.empty(2, 9, V), torch.empty(2, 9, dtype=torch.long)
        metric.update(logits, labels)
        metric.update(labels=labels, statistics=token_statistics(logits, labels, shift=True))
        assert metric.compute()["ce_uniform"].is_meta
    assert state_of(metric).is_meta
    metric.to_empty(device="cpu")
    metric.reset()
    metric.update(*small_batch())
    twin = proxies_of(small_batch(), vocabulary=V, shift=True, last_n=5, **settings)
    assert torch.equal(state_of(metric), state_of(twin))


def test_a_compiled_function_that_updates_is_not_compiled_again_and_again():
    metric, counter = TokenProxies(), CompileCounter()
    torch._dynamo.reset()

    @torch.compile(backend=counter)
    def step(logits, labels):
        logits = logits * 2
        metric.update(logits, labels)
        return logits.sum()

    for seed in range(12):
        step(*small_batch(seed))
    torch._dynamo.reset()
    assert 1 <= counter.frame_count <= 2
    assert metric.compute()["sequences"] == 48


def uneven_updates(rank, _):
    metric = proxies_of(*(small_batch(seed, (2 + seed, 9)) for seed in ([0, 1, 2], [])[rank]))
    with counted_collectives() as calls:
        first = metric.compute()
    if rank == 1:  # rank 0 must not answer from a cache while rank 1 waits for it
        metric.update(*small_batch(3))
    after_one = metric.compute()
    with counted_collectives() as in_forward:
        of_batch = metric(*small_batch(5 + rank))
    with counted_collectives() as bare:
        metric.sync()
        metric.unsync()
    assert dist.get_world_size() == 2
    return {
        "first": first,
        "after_one": after_one,
        "of_batch": of_batch,
        "second": metric.compute(),
        "calls": [calls, in_forward, bare],
    }


def test_two_ranks_agree_to_the_bit_by_one_collective():
    ranks = run_function_on_ranks(uneven_updates, 2)
    batches = [small_batch(seed, (2 + seed, 9)) for seed in range(3)]
    alone = proxies_of(*batches)
    first = alone.compute()
    alone.update(*small_batch(3))
    after_one = alone.compute()
    for seed in range(5, 7):
        alone.update(*small_batch(seed))
    second = alone.compute()
    for rank, outcome in enumerate(ranks):
        assert outcome["calls"] == [["all_gather"], [], ["all_gather"]]
        assert_close(outcome["first"], first, rtol=1e-12)
        assert_close(outcome["after_one"], after_one, rtol=1e-12)
        assert_close(outcome["second"], second, rtol=1e-12)
        assert_close(outcome["of_batch"], by_hand(*small_batch(5 + rank)), rtol=2e-6, atol=2e-7)
    for when in ("first", "after_one", "second"):
        bits = [torch.stack(list(outcome[when].values())).view(torch.int64) for outcome in ranks]
        assert torch.equal(*bits)
