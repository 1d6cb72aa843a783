"""Groups and names of groups that a metric refuses."""

import pytest
import torch

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from tests.helpers.metric_states import state_of
from tests.helpers.summaries import KEYS
from tests.helpers.token_batches import GROUP_NAMES, grouped_batch, grouped_losses

LOSSES, GROUP = (each.reshape(3, 4) for each in grouped_losses(n=12))
REFUSED = {
    "none": {"losses": LOSSES},
    "one too large": {"losses": LOSSES, "group": GROUP + 1},
    "one negative": {"losses": LOSSES, "group": GROUP - 1},
    "a sequence too large": {"losses": LOSSES, "group": torch.tensor([0, 1, 2])},
    "a number too large": {"losses": LOSSES, "group": 2},
    "floats": {"losses": LOSSES, "group": GROUP.float()},
    "complex": {"losses": LOSSES, "group": GROUP.to(torch.complex64)},
    "too few": {"losses": LOSSES, "group": GROUP[:2]},
    "per position": {"losses": LOSSES, "group": torch.zeros(4, dtype=torch.long)},
    "flat": {"losses": LOSSES, "group": GROUP.flatten()},
    "another weight": {"losses": LOSSES, "group": GROUP + 1, "weights": torch.ones(3, 4)},
    "unmasked": {"losses": LOSSES, "group": GROUP + 1, "mask": torch.ones(3, 4, dtype=torch.bool)},
}


@pytest.mark.parametrize("call", ["update", "forward", "update_and_mean"])
@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_group_is_refused_by_name_and_changes_not_one_bit(case, call):
    metric = PercentileCrossEntropy(groups=GROUP_NAMES)
    metric.update(losses=LOSSES * 2, group=GROUP)
    before = state_of(metric).clone()
    with pytest.raises(ValueError, match="`group`"):
        getattr(metric, call)(**REFUSED[case])
    assert torch.equal(state_of(metric), before)
    metric.update(losses=LOSSES, group=GROUP)
    result = metric.compute()
    assert result["count"] == 24
    assert result["prompt_count"] == 2 * (GROUP == 0).sum()


@pytest.mark.parametrize("shift", [False, True])
def test_an_impossible_group_of_a_label_that_counts_is_refused(shift):
    logits, labels, group = grouped_batch(ignored=0)
    metric = PercentileCrossEntropy(groups=GROUP_NAMES, shift=shift)
    group[2, 0] = 2
    if shift:  # nothing is scored against the first label
        metric.update(logits, labels, group=group)
        assert metric.compute()["count"] == 60
    else:
        with pytest.raises(ValueError, match=r"`group`.*\[0, 2\).*prompt, completion.*got 2"):
            metric.update(logits, labels, group=group)
    group[2, 0], group[2, 15] = 0, 5
    with pytest.raises(ValueError, match=r"`group`.*got 5"):
        metric.update(logits, labels, group=group)


def test_a_group_for_a_metric_without_groups_is_refused():
    for metric, arguments in (
        (PercentileCrossEntropy(), {"losses": LOSSES}),
        (StreamingQuantiles(), {"values": LOSSES}),
    ):
        with pytest.raises(ValueError, match=r"`group`.*`groups`"):
            metric.update(**arguments, group=GROUP)
        assert metric.compute()["count"] == 0


@pytest.mark.parametrize("cls", [PercentileCrossEntropy, StreamingQuantiles])
@pytest.mark.parametrize(
    "groups",
    [
        (),
        "prompt",
        ("prompt", "prompt"),
        ("a b",),
        ("a.b",),
        ("a/b",),
        ("",),
        ("a\n",),
        ("ä",),
        (1,),
        (None,),
        ("finite",),
        ("trimmed",),
        ("a", "a_finite"),
        ("a_trimmed", "a"),
    ],
)
def test_names_that_can_not_be_told_apart_or_logged_are_refused(cls, groups):
    with pytest.raises(ValueError, match="`groups`"):
        cls(groups=groups)


def test_names_that_only_look_alike_are_taken():
    metric = StreamingQuantiles(groups=("A", "a", "p50", "count", "a_", "_", "0"))
    assert len(set(metric.keys)) == len(metric.keys) == 8 * len(KEYS)
    metric.update([1.0, 2.0], group=[2, 3])
    assert metric.compute()["p50_p50"] == 1
    assert metric.compute()["count_count"] == 1
