"""The state of PercentileCrossEntropy: dtypes, devices, copies, checkpoints, merging, torch.compile."""

import pytest
import torch

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.token_batches import batch, random_losses


def test_a_checkpoint_with_another_compression_is_refused_with_both_shapes():
    metric, other = PercentileCrossEntropy(compression=64), PercentileCrossEntropy(compression=128)
    metric.persistent(True)
    other.persistent(True)
    metric.update(*batch())
    parent = torch.nn.ModuleDict({"metric": other})
    with pytest.raises(ValueError, match=r"\(131, 2\).*\(67, 2\)"):
        parent.load_state_dict(torch.nn.ModuleDict({"metric": metric}).state_dict())


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
    metric.update(losses=random_losses(2, 5000))
    assert metric.digest.shape == (1027, 2)
    assert torch.equal(metric.digest, *metric.metric_state.values())
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
