import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import LabelTotals, PercentileCrossEntropy
from lightning_pce.metrics import label_totals
from tests.helpers.metric_states import fed, state_of
from tests.helpers.ranks import counted_collectives, run_function_on_ranks
from tests.helpers.token_batches import V, batch, losses_of


def by_hand(*batches, vocabulary=V):
    """Tokens and sums of cross-entropy, one token after the other."""
    totals = torch.zeros(vocabulary, 2, dtype=torch.float64)
    for logits, labels in batches:
        for loss, label in zip(losses_of(logits, labels).flatten(), labels.flatten(), strict=True):
            if label >= 0:
                totals[label] += torch.stack([torch.ones(()), loss]).double()
    return totals


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------ results


def test_totals_are_those_of_a_loop():
    batches = [batch(seed) for seed in range(3)]
    close(fed(LabelTotals(V), *batches).compute(), by_hand(*batches))
    close(fed(LabelTotals(V + 5), *batches).compute(), by_hand(*batches, vocabulary=V + 5))


def test_shift_ignore_index_and_chunks():
    logits, labels = batch(ignored=0.0)
    chunks = [logits[:, :5], logits[:, 5:]]
    shifted = fed(LabelTotals(V, shift=True, ignore_index=3), (chunks, labels)).compute()
    close(shifted, by_hand((logits[:, :-1], labels[:, 1:].where(labels[:, 1:] != 3, -100))))
    every = fed(LabelTotals(V, ignore_index=None), (logits, labels)).compute()
    close(every, by_hand((logits, labels)))


def test_the_mean_is_that_of_the_percentiles_also_with_weights():
    batches = [dict(zip(("logits", "labels"), batch(seed), strict=True)) for seed in range(3)]
    weights = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    totals, percentiles = LabelTotals(V), PercentileCrossEntropy()
    for one in batches:
        totals.update(**one, weights=weights)
        percentiles.update(**one, weights=weights)
    tokens, ce = totals.compute().sum(0)
    assert float(ce / tokens) == pytest.approx(float(percentiles.compute()["mean"]), abs=2e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), data=st.data())
def test_neither_batches_nor_their_order_change_a_bit(seed, data):
    logits, labels = batch(seed, (6, 16), vocabulary=7)
    logits = 6 * logits  # losses from 1e-12 to 60 nats, whose plain sums depend on the order
    order = torch.tensor(data.draw(st.permutations(range(6))))
    cuts = sorted(data.draw(st.lists(st.integers(0, 6), max_size=3)))
    metric, *others = [fed(LabelTotals(7), (logits[rows], labels[rows])) for rows in order.tensor_split(cuts)]
    for other in others:
        metric.merge_state(other)
    assert torch.equal(state_of(metric), state_of(fed(LabelTotals(7), (logits, labels))))


def test_losses_of_another_kernel():
    logits, labels = batch()
    losses = losses_of(logits[:, :-1], labels[:, 1:])
    metric = LabelTotals(V, shift=True)
    metric.update(losses=losses, labels=labels)  # [B, T - 1] beside [B, T]
    metric.update(losses=torch.nn.functional.pad(losses, (0, 1)), labels=labels)  # the last of a row is 0
    metric.update(losses=losses.flatten(), labels=labels)
    close(metric.compute(), 3 * by_hand((logits[:, :-1], labels[:, 1:])))


def test_a_batch_that_was_scored_need_not_be_scored_again():
    logits, labels = batch()
    percentiles, metric = PercentileCrossEntropy(), LabelTotals(V)
    metric.add(percentiles.score_batch(logits, labels))
    assert torch.equal(state_of(metric), state_of(fed(LabelTotals(V), (logits, labels))))
    assert metric.update_count == 1


def test_sums_do_not_stop_at_what_float32_holds():
    metric = LabelTotals(1)
    metric.update(losses=torch.tensor([2.0**24, 1.0, 2.0**-20]), labels=torch.tensor([0, 0, 0]))
    assert metric.compute().tolist() == [[3.0, 2.0**24 + 1 + 2.0**-20]]


def test_infinite_and_nan_losses():
    metric = LabelTotals(3)
    losses = torch.tensor([1.0, math.inf, math.nan, 2.0, math.nan])
    metric.update(losses=losses, labels=torch.tensor([0, 1, 1, 2, 2]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert metric.compute().tolist() == [[1, 1], [1, math.inf], [1, 2]]
        metric.compute()
    (message,) = [str(warning.message) for warning in caught]
    assert "LabelTotals: 2 tokens had a cross-entropy that is NaN" in message


# ----------------------------------------------------------------------------------- ranks and accelerators


def test_where_looking_would_make_the_host_wait_a_foreign_label_is_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(label_totals, "may_look", lambda _: False)  # as on an accelerator
    metric = LabelTotals(3)
    metric.update(losses=torch.tensor([3.0, 2.0, 1.0]), labels=torch.tensor([1, 3, -5]))
    with pytest.warns(UserWarning, match="2 tokens were left out because their label"):
        assert metric.compute().tolist() == [[0, 0], [1, 3], [0, 0]]


def each_takes_its_rows(rank, world_size):
    """Whole rows in turn; a rank may have none."""
    logits, labels = batch(5, (7, 30))
    metric = LabelTotals(V)
    for rows in torch.arange(rank, 7, world_size).split(2):
        metric.update(logits[rows], labels[rows])
    with counted_collectives() as calls:
        totals = metric.compute()
    return {"totals": totals, "calls": calls}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_give_the_totals_of_one_to_the_bit_by_one_all_reduce(world_size):
    expected = fed(LabelTotals(V), batch(5, (7, 30))).compute()
    for outcome in run_function_on_ranks(each_takes_its_rows, world_size):
        assert torch.equal(outcome["totals"], expected)
        assert outcome["calls"] == ["all_reduce"]


# ---------------------------------------------------------------------------------------------- bad input

LOGITS, LABELS = torch.zeros(2, 3, V), torch.zeros(2, 3, dtype=torch.long)
BAD = {
    "no labels": ("labels", {"logits": LOGITS}),
    "losses without labels": ("labels", {"losses": LOGITS[..., 0]}),
    "label beyond the logits": ("labels", {"logits": LOGITS, "labels": LABELS + V}),
    "label beyond the vocabulary": ("labels", {"losses": LOGITS[..., 0], "labels": LABELS + V}),
    "negative label of a loss": ("labels", {"losses": LOGITS[..., 0], "labels": LABELS - 1}),
    "negative weights": ("weights", {"logits": LOGITS, "labels": LABELS, "weights": LABELS - 1}),
    "losses that do not fit": ("losses", {"losses": torch.ones(3), "labels": LABELS - 100}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_leaves_the_state_as_it_was(case):
    name, arguments = BAD[case]
    metric = fed(LabelTotals(V), batch())
    before = state_of(metric).clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        metric.update(**arguments)
    assert torch.equal(state_of(metric), before)


def test_a_label_beyond_the_vocabulary_is_explained():
    with pytest.raises(ValueError, match=r"\[0, 5\), for vocabulary=5, but got 6 others, from 6 to 6"):
        fed(LabelTotals(5), (LOGITS, LABELS + 6))


@pytest.mark.parametrize("vocabulary", [0, -1, 2.0, True, "3", None])
def test_an_impossible_vocabulary_is_refused(vocabulary):
    with pytest.raises(ValueError, match="`vocabulary`"):
        LabelTotals(vocabulary)


def test_unsigned_labels_that_cannot_be_ignored_are_said_once():
    metric = LabelTotals(V)
    with pytest.warns(UserWarning, match="LabelTotals: the labels are torch.uint8"):
        metric.update(LOGITS, LABELS.to(torch.uint8))
