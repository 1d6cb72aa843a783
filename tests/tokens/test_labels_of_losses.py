"""The labels and positions of scored tokens, also where another kernel made the losses."""

import pytest
import torch

from lightning_pce.tokens.batch import score_tokens
from tests.helpers.token_batches import batch

FORMS = {
    "in place": (False, lambda losses: losses),
    "in place, flat": (False, lambda losses: losses.flatten()),
    "a last 0": (True, lambda losses: losses),
    "a last 0, flat": (True, lambda losses: losses.flatten()),
    "cut": (True, lambda losses: losses[:, :-1]),
    "cut, flat": (True, lambda losses: losses[:, :-1].flatten()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_losses_have_the_labels_and_positions_that_their_logits_have(form, ignored):
    shift, changed = FORMS[form]
    logits, labels = batch(ignored=ignored)
    whole = score_tokens(logits, labels, shift=shift)
    scored = score_tokens(losses=changed(whole.ce), labels=labels, shift=shift)
    counted = scored.weights
    assert counted.sum() == whole.weights.sum()
    assert torch.equal(scored.labels[counted], whole.labels[whole.weights])
    assert torch.equal(scored.positions[counted], whole.positions[whole.weights])
    assert (scored.labels[~counted] == -100).all()


def test_a_position_is_where_the_label_stands():
    logits, labels = batch(shape=(2, 5), ignored=0.0)
    assert score_tokens(logits, labels).positions.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert score_tokens(logits, labels, shift=True).positions[:, :-1].tolist() == [[1, 2, 3, 4]] * 2
    assert score_tokens(logits[0, 0], labels[0, 0]).positions.tolist() == 0


def test_labels_that_are_not_those_of_the_losses_are_not_known():
    scored = score_tokens(losses=torch.ones(7), labels=torch.ones(2, 5, dtype=torch.long))
    assert scored.labels is scored.positions is None
    with pytest.raises(ValueError, match=r"`labels` with the token id of each loss.*\(7,\)"):
        scored.known_labels()
