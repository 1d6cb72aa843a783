"""The name of a metric's state in a checkpoint: only settings that differ from their defaults change it."""

import pytest
import torch

from lightning_pce import BitsPerByte, PercentileCrossEntropy, StreamingQuantiles, TokenProxies

# The names that states had when every setting was in them, as written down then.
OLD_NAMES = {
    "digest_85a6e7ea": PercentileCrossEntropy,
    "digest_ef6d2879": lambda: PercentileCrossEntropy((50, 99.9), groups=("a", "b"), shift=True),
    "digest_40427ca2": lambda: StreamingQuantiles((1, 2), compression=64),
    "packed_6ced4a34": lambda: BitsPerByte([1, 2]),
    "packed_e9ca98c9": lambda: TokenProxies(last_n=7, shift=True),
    "packed_afbeadbc": lambda: TokenProxies(token_counts=[1, 2, 3]),
}
LOGITS, LABELS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 5).long()


def filled(make):
    metric = make()
    metric.persistent(True)
    if isinstance(metric, BitsPerByte):
        metric.update(torch.ones(2, 5), LABELS)
    elif isinstance(metric, TokenProxies):
        metric.update(LOGITS, LABELS)
    else:
        group = {} if metric.groups is None else {"group": LABELS}
        given = {"values": LOGITS[..., 0]} if isinstance(metric, StreamingQuantiles) else {}
        metric.update(**given, **group, **({} if given else {"logits": LOGITS, "labels": LABELS}))
    return metric


@pytest.mark.parametrize("old", OLD_NAMES)
def test_a_state_under_its_old_name_is_loaded_and_merged(old):
    make = OLD_NAMES[old]
    metric = filled(make)
    [(new, state)] = metric.state_dict().items()
    for prefix in ("", "metric."):
        other = make()
        module = torch.nn.ModuleDict({"metric": other}) if prefix else other
        module.load_state_dict({prefix + old: state}, strict=True)
        torch.testing.assert_close(other.compute(), metric.compute(), equal_nan=True, rtol=0, atol=0)
    both = filled(make)
    both.merge_state({old: state})
    twice = filled(make)
    twice.merge_state({new: state})
    torch.testing.assert_close(both.compute(), twice.compute(), equal_nan=True, rtol=0, atol=0)


def test_a_setting_at_its_default_is_not_in_the_name():
    names = {
        next(iter(make().metric_state))
        for make in (
            PercentileCrossEntropy,
            lambda: PercentileCrossEntropy((5.0, 25, 50, 75, 95, 99)),
            lambda: PercentileCrossEntropy(ignore_index=-100, shift=False, compression=1024, groups=None),
        )
    }
    assert len(names) == 1


@pytest.mark.parametrize(
    "settings",
    [{"shift": True}, {"ignore_index": 0}, {"percentiles": (50,)}, {"groups": ("a",)}, {"compression": 64}],
    ids=str,
)
def test_a_setting_that_differs_is_in_the_name(settings):
    names = [next(iter(PercentileCrossEntropy(**each).metric_state)) for each in ({}, settings)]
    assert names[0] != names[1]
    with pytest.raises(ValueError, match="same settings"):
        PercentileCrossEntropy().merge_state(PercentileCrossEntropy(**settings))
