"""A state that no metric can have had is refused where it comes in, and the metric keeps its own."""

import pytest
import torch

from lightning_pce import BitsPerByte, PercentileCrossEntropy, StreamingQuantiles

VALUES = torch.rand(3000, generator=torch.Generator().manual_seed(0)) + 1
# What was done to a digest [K + 3, 2], and what is said.
DAMAGES = {
    "descending": (lambda s: s[:8].copy_(s[:8].flip(0)), "means that ascend"),
    "weight": (lambda s: s[3, 1].fill_(torch.inf), "finite weights"),
    "mean": (lambda s: s[3, 0].fill_(torch.nan), "finite means"),
    "minimum": (lambda s: s[-2, 0].fill_(1e9), "minimum not above"),
    "count": (lambda s: s[-1, 1].fill_(-1.0), "not negative"),
}


def persistent():
    metric = StreamingQuantiles((50,))
    metric.persistent(True)
    return metric


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_digest_is_refused_by_load_and_by_merge(damage):
    change, said = DAMAGES[damage]
    source, metric = persistent(), persistent()
    source.update(VALUES)
    metric.update(VALUES[:100])
    [(name, state)] = source.state_dict().items()
    change(state)
    with pytest.raises(ValueError, match=f"damaged.*{said}"):
        metric.load_state_dict({name: state})
    with pytest.raises(ValueError, match=said):
        metric.merge_state({name: state})
    assert metric.compute()["count"] == 100
    assert metric.compute()["p50"].item() == pytest.approx(VALUES[:100].double().quantile(0.5).item())


@pytest.mark.parametrize("groups", [None, ("a", "b")])
def test_every_state_that_a_metric_has_had_is_taken(groups):
    for size in (0, 1, 7, 1000, 30_000):
        source, metric = (PercentileCrossEntropy((50,), groups=groups) for _ in range(2))
        for each in (source, metric):
            each.persistent(True)
        losses = torch.rand(size, generator=torch.Generator().manual_seed(size)) * 9
        losses[::5] = 0.0
        losses[::11] = torch.inf
        losses[::13] = torch.nan
        source.update(losses=losses, **({} if groups is None else {"group": torch.arange(size) % 2}))
        metric.load_state_dict(source.state_dict())
        torch.testing.assert_close(metric.compute(), source.compute(), rtol=0, atol=0, equal_nan=True)


def test_sums_that_are_nan_are_refused():
    metric = BitsPerByte([1, 2])
    [name] = metric.metric_state
    with pytest.raises(ValueError, match="without NaN"):
        metric.load_state_dict({name: torch.full((5,), torch.nan, dtype=torch.float64)})
