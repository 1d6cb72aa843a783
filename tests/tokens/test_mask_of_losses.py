"""Which losses count, as labels beside them say: shifted by the step, flattened, filtered, or neither."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F

from lightning_pce import PercentileCrossEntropy
from lightning_pce.tokens.labels import pair_losses

B, T, V = 3, 12, 30
LOGITS = torch.randn(B, T, V, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
LABELS = IDS.masked_fill(torch.arange(T) < 7, -100)  # prompts are masked: 15 tokens count
SHIFTED = LABELS[:, 1:]
RIGHT = F.cross_entropy(LOGITS[:, :-1].flatten(0, 1), SHIFTED.flatten(), reduction="none", ignore_index=-100)
COUNTED = RIGHT[SHIFTED.flatten() != -100]


def mask_of(losses, labels, **settings):
    return pair_losses(losses, labels, **settings).mask


def cut():
    return RIGHT.view(B, T - 1)


def padded():
    return F.pad(cut(), (0, 1))


# How steps return the losses of the next tokens.
WAYS = {
    "cut": cut,
    "cut and flat": lambda: cut().flatten(),
    "padded": padded,
    "padded and flat": lambda: padded().flatten(),
    "filtered": lambda: COUNTED,
}


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_losses_that_the_step_shifted_find_their_labels(way, shift):
    metric = PercentileCrossEntropy((50,), shift=shift)
    metric.update(losses=WAYS[way](), labels=LABELS)
    result = metric.compute()
    assert result["count"] == len(COUNTED)
    assert result["p50"].item() == pytest.approx(COUNTED.double().quantile(0.5).item())


@pytest.mark.parametrize("flat", [False, True])
def test_losses_beside_labels_that_are_theirs_stay_there(flat):
    losses = F.cross_entropy(LOGITS.flatten(0, 1), LABELS.flatten(), reduction="none").view(B, T)
    metric = PercentileCrossEntropy((50,))
    metric.update(losses=losses.flatten() if flat else losses, labels=LABELS)
    assert metric.compute()["count"] == (LABELS != -100).sum()
    assert metric.compute()["mean"].item() == pytest.approx(losses[LABELS != -100].mean().item())


@pytest.mark.parametrize("shift", [False, True])
def test_losses_without_zeros_are_paired_as_the_settings_say(shift):
    """A kernel that gives every position some loss shows nothing."""
    found = mask_of(torch.ones(B, T), LABELS, ignore_index=-100, shift=shift)
    wanted = F.pad(LABELS[:, 1:], (0, 1), value=-100) if shift else LABELS
    assert torch.equal(found, wanted != -100)


def test_a_flattened_batch_that_was_shifted_as_one_sequence_fits():
    flat = LABELS.flatten()
    found = mask_of(torch.ones(B * T - 1), LABELS, ignore_index=-100, shift=False)
    assert torch.equal(found, flat[1:] != -100)
    one = mask_of(torch.ones(T - 1), LABELS[0], ignore_index=-100, shift=False)
    assert torch.equal(one, LABELS[0, 1:] != -100)


@pytest.mark.parametrize("ignored", [1, B])
def test_filtered_losses_all_count_even_if_as_many_as_some_shift_would_leave(ignored):
    labels = IDS.clone()
    labels.view(-1)[5 : 5 + ignored] = -100
    losses = torch.rand(B * T - ignored) + 1
    metric = PercentileCrossEntropy((50,))
    metric.update(losses=losses, labels=labels)
    assert metric.compute()["count"] == len(losses)
    assert metric.compute()["mean"].item() == pytest.approx(losses.mean().item())


def test_nothing_ignored_and_a_last_column_of_zeros_was_shifted():
    losses = F.pad(torch.rand(B, T - 1) + 1, (0, 1))
    metric = PercentileCrossEntropy((50,))
    metric.update(losses=losses, labels=IDS)
    assert metric.compute()["count"] == B * (T - 1)
    one_of_each = PercentileCrossEntropy((50,))  # labels of samples, of which the last is certain
    one_of_each.update(losses=torch.tensor([1.0, 2.0, 0.0]), labels=torch.tensor([1, 0, 1]))
    assert one_of_each.compute()["count"] == 3


@pytest.mark.parametrize(
    ("losses", "labels"),
    [((B, T - 2), LABELS), ((B * (T - 1) + 4,), LABELS), ((B, T + 4), LABELS), ((2 * B, T), LABELS)],
    ids=["cut twice", "flat", "longer", "more rows"],
)
def test_labels_that_are_ignored_and_do_not_fit_are_refused_with_the_shapes(losses, labels):
    metric = PercentileCrossEntropy((50,))
    with pytest.raises(
        ValueError, match=r"perhaps after a shift by one.*mask=labels != ignore_index"
    ) as error:
        metric.update(losses=torch.ones(losses), labels=labels)
    assert str(losses) in str(error.value)
    assert str((B, T)) in str(error.value)
    assert metric.compute()["count"] == 0


def test_labels_of_something_else_of_which_none_is_ignored_do_not_matter():
    metric = PercentileCrossEntropy((50,))
    metric.update(losses=torch.ones(B, T), labels=torch.tensor([0, 1, 1]))
    assert metric.compute()["count"] == B * T


def test_a_mask_decides_whatever_the_labels_are():
    metric = PercentileCrossEntropy((50,))
    metric.update(losses=torch.ones(B, 5), labels=LABELS, mask=torch.arange(5).expand(B, 5) < 2)
    assert metric.compute()["count"] == B * 2


@pytest.mark.parametrize("way", ["cut", "cut and flat", "padded", "padded and flat"])
def test_weights_and_groups_of_labels_move_with_them(way):
    group = (torch.arange(T) >= 9).long().expand(B, T)
    weights = torch.arange(B * T).view(B, T) % 3
    by_logits, by_losses = (
        PercentileCrossEntropy((50,), groups=("early", "late"), shift=True) for _ in range(2)
    )
    by_logits.update(LOGITS, LABELS, weights=weights, group=group)
    by_losses.update(losses=WAYS[way](), labels=LABELS, weights=weights, group=group)
    for key, value in by_logits.compute().items():
        assert by_losses.compute()[key].item() == pytest.approx(value.item(), rel=1e-6), key


def test_weights_and_groups_of_losses_stay_where_they_are():
    weights = (torch.arange(T - 1) % 2).expand(B, T - 1)
    metric = PercentileCrossEntropy((50,), groups=("a", "b"))
    metric.update(losses=cut(), labels=LABELS, weights=weights, group=weights)
    assert metric.compute()["count"] == (weights * (SHIFTED != -100)).sum()
    assert metric.compute()["a_count"] == 0


@pytest.mark.parametrize(
    ("losses", "labels"), [([[0.0], [0.0]], [[3], [4]]), ([[1.0, 2.0, 0.0]], [[3, 4, 5]])], ids=["T=1", "B=1"]
)
def test_tokens_that_are_certain_by_themselves_count(losses, labels):
    metric = PercentileCrossEntropy((50,))
    metric.update(losses=torch.tensor(losses), labels=torch.tensor(labels))
    assert metric.compute()["count"] == torch.tensor(labels).numel()


def warnings_of(*metrics):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for metric in metrics:
            metric.compute()
    return [str(each.message) for each in caught]


def test_many_zeros_without_a_mask_are_warned_of_once_and_with_one_not():
    metric, masked, few = (PercentileCrossEntropy((50,)) for _ in range(3))
    metric.update(losses=padded())
    [message] = warnings_of(metric, metric)
    assert re.search("% of the losses are exactly 0.*mask=labels", message)
    masked.update(losses=padded(), mask=padded() >= 0)
    few.update(losses=torch.arange(100.0))
    assert not warnings_of(masked, few)
