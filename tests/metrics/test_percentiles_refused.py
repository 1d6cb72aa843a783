"""Arguments and settings that a metric of percentiles refuses, by name and without a trace."""

import math

import pytest
import torch

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from tests.helpers.summaries import assert_same_result
from tests.helpers.token_batches import V, batch

LOGITS, LABELS, LOSSES = torch.zeros(2, 3, V), torch.ones(2, 3, dtype=torch.long), torch.ones(6)
BAD = {
    "mismatched shapes": ("labels", {"logits": LOGITS, "labels": LABELS[:, :2]}),
    "integer logits": ("logits", {"logits": LOGITS.long(), "labels": LABELS}),
    "float labels": ("labels", {"logits": LOGITS, "labels": LABELS.float()}),
    "labels beyond the vocabulary": ("labels", {"logits": LOGITS, "labels": LABELS + V - 1}),
    "negative labels": ("labels", {"logits": LOGITS, "labels": LABELS - 2}),
    "no labels": ("labels", {"logits": LOGITS}),
    "nothing": ("losses", {}),
    "losses and logits": ("losses", {"logits": LOGITS, "labels": LABELS, "losses": LOSSES}),
    "labels beside losses": ("labels", {"labels": LABELS.float(), "losses": LOSSES}),
    "mask with logits": ("mask", {"logits": LOGITS, "labels": LABELS, "mask": LABELS > 0}),
    "mean-reduced loss": ("losses", {"losses": torch.tensor(2.0)}),
    "integer losses": ("losses", {"losses": LOSSES.long()}),
    "mask of another shape": ("mask", {"losses": LOSSES, "mask": torch.ones(5, dtype=torch.bool)}),
    "mask of another dtype": ("mask", {"losses": LOSSES, "mask": torch.ones(6)}),
    "negative weights": ("weights", {"losses": LOSSES, "weights": -LOSSES}),
    "negative weights with logits": ("weights", {"logits": LOGITS, "labels": LABELS, "weights": LABELS - 2}),
    "weights that are NaN": ("weights", {"losses": LOSSES, "weights": LOSSES * math.nan}),
    "weights that are infinite": ("weights", {"losses": LOSSES, "weights": LOSSES * math.inf}),
    "weights of another shape": ("weights", {"losses": LOSSES, "weights": torch.ones(5)}),
    "weights of the logits' shape": ("weights", {"logits": LOGITS, "labels": LABELS, "weights": LOGITS}),
}


@pytest.mark.parametrize("call", ["update", "update_and_mean"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_nothing_of_it_enters(case, call):
    name, arguments = BAD[case]
    metric = PercentileCrossEntropy()
    metric.update(*batch())
    before = metric.digest.clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        getattr(metric, call)(**arguments)
    assert torch.equal(metric.digest, before)
    metric.update(*batch(1))
    twin = PercentileCrossEntropy()
    twin.update(*batch())
    twin.update(*batch(1))
    assert_same_result(metric.compute(), twin.compute())


def test_a_mean_reduced_loss_is_told_about_reduction_none():
    with pytest.raises(ValueError, match="reduction='none'"):
        PercentileCrossEntropy().update(losses=torch.tensor(2.0))


@pytest.mark.parametrize("cls", [PercentileCrossEntropy, StreamingQuantiles])
@pytest.mark.parametrize(
    "percentiles", [(-1,), (50, 100.5), (50, 50.0), (99.9, 5, 99.9), ("many",), (math.nan,)]
)
def test_impossible_percentiles_are_refused(cls, percentiles):
    with pytest.raises(ValueError, match="`percentiles`"):
        cls(percentiles=percentiles)


def test_too_few_centroids_are_refused():
    with pytest.raises(ValueError, match="`compression`"):
        PercentileCrossEntropy(compression=7)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"logits": [[0.0, 1.0]], "labels": torch.tensor([0])}, "logits"),
        ({"logits": torch.zeros(1, 2), "labels": [0]}, "labels"),
        ({"losses": [1.0, 2.0]}, "losses"),
        ({"losses": torch.ones(2), "mask": [True, False]}, "mask"),
        ({"losses": torch.ones(2), "weights": torch.ones(2, dtype=torch.complex64)}, "weights"),
    ],
)
def test_what_is_no_tensor_or_no_number_is_named(arguments, name):
    metric = PercentileCrossEntropy()
    before = metric.digest.clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        metric.update(**arguments)
    assert torch.equal(metric.digest, before)


def test_settings_and_values_of_the_wrong_kind_are_named():
    for wrong in ({"percentiles": "50"}, {"compression": 100.0}, {"compression": None}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            PercentileCrossEntropy(**wrong)
    for wrong in ("abc", None, [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="`values`"):
            StreamingQuantiles().update(wrong)
    metric = StreamingQuantiles(percentiles=(-0.0, 1e-7))
    assert metric.keys[1:3] == ("p0", "p0_0000001")
    with pytest.raises(ValueError, match="Expected a state"):
        metric.merge_state({next(iter(metric.metric_state)): torch.zeros(3, 2)})


def test_an_impossible_label_is_explained_by_vocabulary_and_shift():
    with pytest.raises(ValueError, match=r"\[0, 5\).*padded.*shifted"):
        PercentileCrossEntropy().update(torch.zeros(3, 5), torch.tensor([0, 5, -1]))
