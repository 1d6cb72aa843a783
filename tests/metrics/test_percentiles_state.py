"""The state of PercentileCrossEntropy: dtypes, devices, copies, checkpoints, merging, torch.compile."""

import warnings

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounter
from torchmetrics import SumMetric

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.casts_and_copies import CASTS, COPIES
from tests.helpers.summaries import assert_same_result, assert_summarises
from tests.helpers.token_batches import batch, counted_losses, random_losses


class OtherCrossEntropy(PercentileCrossEntropy):
    """Differs from its parent in nothing but the class."""


@pytest.mark.parametrize("cls", [PercentileCrossEntropy, StreamingQuantiles])
def test_the_state_is_one_float64_tensor_of_fixed_size(cls):
    metric = cls(compression=64)
    (state,) = metric.metric_state.values()
    assert len(metric._defaults) == 1
    assert state is metric.digest
    assert state.dtype == torch.float64
    assert state.shape == (67, 2)
    name = "losses" if cls is PercentileCrossEntropy else "values"
    metric.update(**{name: random_losses(n=5000)})
    assert metric.digest.shape == (67, 2)


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_of_the_module_never_touches_the_digest(cast):
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()
    parent = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    for round_ in range(2):  # the second works on what reset brings back
        CASTS[cast](parent)
        for seed in range(3):
            metric.update(*batch(seed))
            twin.update(*batch(seed))
            CASTS[cast](parent)
            assert metric.digest.dtype == torch.float64
            assert torch.equal(metric.digest, twin.digest), round_
        assert_same_result(metric(*batch(9)), twin(*batch(9)))
        assert_same_result(metric.compute(), twin.compute())
        metric.reset()
        twin.reset()


def from_meta_through_parent():
    with torch.device("meta"):
        parent = torch.nn.ModuleDict({"metric": PercentileCrossEntropy(), "layer": torch.nn.Linear(2, 2)})
    assert parent["metric"].digest.is_meta
    return parent.to_empty(device="cpu")["metric"]


def from_meta_directly():
    with torch.device("meta"):
        metric = PercentileCrossEntropy()
    return metric.to_empty(device="cpu")


def under_default_bfloat16():
    torch.set_default_dtype(torch.bfloat16)
    try:
        return PercentileCrossEntropy()
    finally:
        torch.set_default_dtype(torch.float32)


ORIGINS = {
    "meta, parent.to_empty": from_meta_through_parent,
    "meta, metric.to_empty": from_meta_directly,
    "cpu, metric.to_empty": lambda: PercentileCrossEntropy().to_empty(device="cpu"),
    "default dtype bfloat16": under_default_bfloat16,
    "inside no module, bfloat16": lambda: PercentileCrossEntropy().to(torch.bfloat16),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_metric_counts_the_same_wherever_it_was_made(origin):
    metric, twin = ORIGINS[origin](), PercentileCrossEntropy()
    assert metric.digest.device.type == "cpu"
    for _ in range(2):  # the second works on what reset brings back
        for seed in range(3):
            metric.update(*batch(seed))
            twin.update(*batch(seed))
        assert metric.digest.dtype == torch.float64
        assert torch.equal(metric.digest, twin.digest)
        assert_same_result(metric.compute(), twin.compute())
        metric.reset()
        twin.reset()


def test_default_dtype_bfloat16_during_update_and_compute_changes_nothing():
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()
    logits, labels = batch()
    twin.update(logits, labels, weights=labels % 5)
    torch.set_default_dtype(torch.bfloat16)
    try:
        metric.update(logits, labels, weights=labels % 5)
        result = metric.compute()
        metric.reset()
        assert metric.digest.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_result(result, twin.compute())


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("computed_before", [False, True])
def test_a_copy_has_the_same_content_and_goes_its_own_way(how, computed_before):
    metric = PercentileCrossEntropy(percentiles=(50, 99.9), ignore_index=3, shift=True, compression=64)
    metric.update(*batch(ignored=0))
    if computed_before:
        metric.compute()
    clone = COPIES[how](metric)
    assert_same_result(clone.compute(), metric.compute())
    before = metric.digest.clone()
    clone.update(*batch(1, ignored=0))
    assert torch.equal(metric.digest, before)
    metric.update(*batch(1, ignored=0))
    assert not torch.equal(metric.digest, before)
    assert_same_result(clone.compute(), metric.compute())
    clone.reset()
    assert metric.compute()["count"] > 0


def test_nothing_is_saved_with_the_module():
    metric = PercentileCrossEntropy()
    metric.update(*batch())
    assert metric.state_dict() == {}
    assert list(torch.nn.ModuleDict({"metric": metric}).state_dict()) == []
    assert list(metric.buffers()) == list(metric.parameters()) == []


@pytest.mark.parametrize("used_before", [False, True])
def test_a_persistent_metric_is_saved_and_loaded(used_before):
    metric, other = PercentileCrossEntropy(), PercentileCrossEntropy()
    metric.persistent(True)
    other.persistent(True)
    metric.update(*batch())
    if used_before:
        other.update(*batch(5))
        other.compute()
    assert len(metric.state_dict()) == 1
    other.load_state_dict(metric.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # among others, that of compute before update
        assert_same_result(other.compute(), metric.compute())
    saved = metric.digest.clone()
    other.update(*batch(1))
    assert torch.equal(metric.digest, saved)
    metric.update(*batch(1))
    assert_same_result(other.compute(), metric.compute())


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


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_with_another_compression_is_refused(strict):
    metric, other = PercentileCrossEntropy(compression=64), PercentileCrossEntropy(compression=128)
    metric.persistent(True)
    other.persistent(True)
    metric.update(*batch())
    parent = torch.nn.ModuleDict({"metric": other})
    with pytest.raises(ValueError, match=r"\(131, 2\).*\(67, 2\)"):
        parent.load_state_dict(torch.nn.ModuleDict({"metric": metric}).state_dict(), strict=strict)


def test_forward_gives_the_batch_and_accumulates_like_update():
    forwarded, updated = PercentileCrossEntropy(), PercentileCrossEntropy()
    for seed in range(3):
        result = forwarded(*batch(seed))
        assert_summarises(result, counted_losses(*batch(seed)), rtol=1e-6)
        updated.update(*batch(seed))
    assert torch.equal(forwarded.digest, updated.digest)
    assert_same_result(forwarded.compute(), updated.compute())
    assert forwarded.update_count == 3


def test_an_update_after_compute_is_seen_by_the_next_compute():
    metric = PercentileCrossEntropy()
    metric.update(losses=random_losses(0))
    metric.compute()
    metric.update(losses=random_losses(1))
    assert_summarises(metric.compute(), torch.cat([random_losses(0), random_losses(1)]))


@pytest.mark.parametrize("form", ["metric", "dict"])
def test_merge_state_adds_the_other_and_leaves_no_stale_result(form):
    metric, other = PercentileCrossEntropy(), PercentileCrossEntropy()
    metric.update(losses=random_losses(0))
    other.update(losses=random_losses(1))
    view = metric.view("count")
    assert metric.compute()["count"] == view.compute() == 100
    others = other.digest.clone()
    metric.merge_state(other if form == "metric" else other.metric_state)
    assert_summarises(metric.compute(), torch.cat([random_losses(0), random_losses(1)]))
    assert view.compute() == 200
    assert torch.equal(other.digest, others)


def test_merge_state_into_a_fresh_metric_does_not_warn_of_compute_before_update():
    metric, other = PercentileCrossEntropy(), PercentileCrossEntropy()
    other.update(losses=random_losses())
    metric.merge_state(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_summarises(metric.compute(), random_losses())


@pytest.mark.parametrize(
    "other",
    [
        PercentileCrossEntropy(percentiles=(50,)),
        PercentileCrossEntropy(compression=64),
        PercentileCrossEntropy(ignore_index=0),
        PercentileCrossEntropy(shift=True),
        OtherCrossEntropy(),
        StreamingQuantiles(),
        SumMetric(),
    ],
    ids=["percentiles", "compression", "ignore_index", "shift", "class", "StreamingQuantiles", "SumMetric"],
)
@pytest.mark.parametrize("form", ["metric", "dict"])
def test_merge_state_refuses_other_settings(other, form):
    metric = PercentileCrossEntropy()
    metric.update(losses=random_losses())
    before = metric.digest.clone()
    with pytest.raises(ValueError):
        metric.merge_state(other if form == "metric" else other.metric_state)
    assert torch.equal(metric.digest, before)
    assert metric.update_count == 1


def test_merge_state_shows_both_settings_when_it_refuses():
    metric, other = (
        PercentileCrossEntropy((50,), compression=64),
        PercentileCrossEntropy((95,), compression=128),
    )
    with pytest.raises(ValueError, match=r"50.*64.*95.*128"):
        metric.merge_state(other)


def test_digest_is_readable_at_any_time():
    metric = PercentileCrossEntropy()
    empty = metric.digest.clone()
    assert torch.equal(empty, td.empty(1024))
    metric.update(losses=random_losses(0))
    assert td.count(metric.digest) == 100
    metric.compute()
    assert td.count(metric.digest) == 100
    metric.update(losses=random_losses(1))
    assert td.count(metric.digest) == 200
    metric.reset()
    assert torch.equal(metric.digest, empty)


def test_digest_is_not_that_of_an_old_compute_after_a_bare_sync():
    metric = PercentileCrossEntropy()
    metric.update(losses=random_losses(0))
    metric.compute()
    metric.update(losses=random_losses(1))
    metric.sync(dist_sync_fn=lambda state, group=None: [state, state], distributed_available=lambda: True)
    assert td.count(metric.digest) == 400
    metric.unsync()
    assert td.count(metric.digest) in (200, 400)
    assert metric.compute()["count"] == 200


def test_reset_forgets_everything():
    metric = PercentileCrossEntropy()
    view = metric.view("count")
    metric.update(losses=random_losses(0))
    view.compute()
    metric.reset()
    assert metric.update_count == 0
    assert view.compute() == 0
    metric.update(losses=random_losses(1))
    assert_summarises(metric.compute(), random_losses(1))


@pytest.mark.parametrize("call", ["update", "forward", "update_and_mean"])
def test_what_was_made_in_inference_mode_can_be_used_in_normal_mode(call):
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()
    with torch.inference_mode():
        getattr(metric, call)(*batch(0))
        metric.compute()
    getattr(metric, call)(*batch(1))
    for seed in range(2):
        twin.update(*batch(seed))
    assert_same_result(metric.compute(), twin.compute())
    with torch.inference_mode():
        metric.reset()
    getattr(metric, call)(*batch(0))
    twin.reset()
    twin.update(*batch(0))
    assert_same_result(metric.compute(), twin.compute())


@pytest.fixture
def compiled():
    """Compile a function and count its frames."""

    def compile_(function):
        counter = CompileCounter()
        return torch.compile(function, backend=counter), counter

    torch._dynamo.reset()
    yield compile_
    torch._dynamo.reset()


def test_a_compiled_function_that_updates_is_not_compiled_again_and_again(compiled):
    metric = PercentileCrossEntropy()

    def step(logits, labels):
        logits = logits * 2
        metric.update(logits, labels)
        return logits.sum()

    step, counter = compiled(step)
    for seed in range(12):
        step(*batch(seed, ignored=0))
    assert 1 <= counter.frame_count <= 2
    assert metric.compute()["count"] == 12 * 64


@pytest.mark.parametrize("call", ["update_and_mean", "forward"])
def test_a_compiled_function_may_also_use(compiled, call):
    metric, twin = PercentileCrossEntropy(), PercentileCrossEntropy()

    def step(logits, labels):
        result = getattr(metric, call)(logits * 2, labels)
        return result if call == "update_and_mean" else result["mean"]

    step, counter = compiled(step)
    for seed in range(12):
        logits, labels = batch(seed)
        mean = step(logits, labels)
        twin.update(logits * 2, labels)
        assert mean.item() == pytest.approx(counted_losses(logits * 2, labels).mean().item(), rel=1e-5)
    assert counter.frame_count <= 2
    torch.testing.assert_close(metric.compute(), twin.compute(), rtol=1e-6, atol=1e-6)


def test_update_on_an_accelerator_reads_nothing_on_the_host():
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        metric, stream = PercentileCrossEntropy(shift=True), StreamingQuantiles()
        logits, labels = torch.empty(2, 2000, 7), torch.empty(2, 2000, dtype=torch.long)
        metric.update(logits, labels)
        metric.update(logits, labels, weights=torch.empty(2, 2000))
        metric.update(losses=torch.empty(4000), mask=torch.empty(4000, dtype=torch.bool))
        stream.update(torch.empty(5000))
    assert metric.digest.shape == stream.digest.shape == (1027, 2)
    assert metric.digest.is_meta


def test_editing_a_result_does_not_edit_the_state():
    metric = StreamingQuantiles()
    metric.update([1.0, 2.0])
    for value in metric.compute().values():
        value += 5
    assert metric.compute()["invalid"] == 0
    assert metric.compute()["count"] == 2


def test_compute_on_the_meta_device_does_not_raise():
    with torch.device("meta"):
        metric = PercentileCrossEntropy()
    assert metric.compute()["p50"].is_meta
