"""Which two records are of the same tokens, NaN included, and what is said if they are not."""

import math

import pytest
import torch

from lightning_pce import intervals as iv
from tests.helpers.intervals_by_hand import clustered, record_of

OTHER_TOKENS = "their slots of documents hold other numbers of tokens"
OTHER_DATA = "the fingerprints of their data differ"
LOSSES, DOCUMENTS = clustered(seed=1)
LATER = clustered(seed=1, after=True)[0]


def with_nan(losses, *places):
    losses = losses.clone()
    losses[list(places)] = math.nan
    return losses


def test_the_same_tokens_are_paired_whatever_their_losses():
    assert iv.why_unpaired(record_of(LOSSES, DOCUMENTS), record_of(LATER, DOCUMENTS)) is None


def test_the_order_of_tokens_and_documents_does_not_matter():
    order = torch.randperm(len(LOSSES), generator=torch.Generator().manual_seed(0))
    shuffled = record_of(LATER[order], DOCUMENTS[order])
    assert iv.why_unpaired(record_of(LOSSES, DOCUMENTS), shuffled) is None


def test_one_token_more_or_in_another_document_is_other_data():
    record = record_of(LOSSES, DOCUMENTS)
    more = record_of(torch.cat([LATER, LATER[:1]]), torch.cat([DOCUMENTS, DOCUMENTS[:1]]))
    assert iv.why_unpaired(record, more) == OTHER_TOKENS
    moved = DOCUMENTS.clone()
    moved[0] = DOCUMENTS[-1]
    assert iv.slots_of(moved[0]) != iv.slots_of(DOCUMENTS[0])
    assert iv.why_unpaired(record, record_of(LATER, moved)) == OTHER_TOKENS


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ((), (), None),
        ((None,), (), None),
        (("x",), ("x",), None),
        (("x",), ("y",), OTHER_DATA),
        (("x",), (), OTHER_DATA),
        ((None,), ("y",), OTHER_DATA),
    ],
)
def test_fingerprints_are_equal_or_both_unknown(a, b, reason):
    record = record_of(LOSSES, DOCUMENTS)
    assert iv.why_unpaired((*record, *a), (*record, *b)) == reason


def test_both_reasons_are_given():
    a, b = record_of(LOSSES, DOCUMENTS), record_of(LATER[1:], DOCUMENTS[1:])
    assert iv.why_unpaired((*a, "x"), (*b, "y")) == f"{OTHER_TOKENS} and {OTHER_DATA}"
    assert iv.difference((*a, "x"), (*b, "y"), "p50").reason == f"not paired: {OTHER_TOKENS} and {OTHER_DATA}"


@pytest.mark.parametrize(
    ("of_a", "of_b"), [([], [0]), ([5], []), ([0, 1, 700], [1]), ([0], [0]), ([0, 2], [-1, -2, -3])]
)
def test_tokens_that_are_nan_in_one_of_them_are_the_same_tokens(of_a, of_b):
    a = record_of(with_nan(LOSSES, *of_a), DOCUMENTS)
    b = record_of(with_nan(LATER, *of_b), DOCUMENTS)
    assert iv.why_unpaired(a, b) is None
    for statistic in ("mean", "p50"):
        got = iv.difference(a, b, statistic)
        clean = iv.difference(record_of(LOSSES, DOCUMENTS), record_of(LATER, DOCUMENTS), statistic)
        assert got.paired
        assert got[1:3] == pytest.approx(clean[1:3], rel=0.2)


def test_a_token_less_is_not_explained_without_a_nan():
    a = record_of(LOSSES, DOCUMENTS)
    # As many in all, but the NaN is one more token.
    b = record_of(torch.cat([LATER[1:], torch.tensor([math.nan])]), DOCUMENTS)
    assert iv.why_unpaired(a, b) is None  # it may be that token
    more = record_of(torch.cat([LATER, torch.tensor([math.nan])]), torch.cat([DOCUMENTS, DOCUMENTS[:1]]))
    assert iv.why_unpaired(a, more) == OTHER_TOKENS


def test_nan_explains_only_as_many_tokens_as_there_are():
    # One NaN, but two tokens of a lie in other slots: the totals are equal.
    first, last = DOCUMENTS[0], DOCUMENTS[-1]
    a = record_of(LOSSES, torch.cat([DOCUMENTS[:-2], last[None], last[None]]))
    b = record_of(with_nan(LATER, 0), torch.cat([DOCUMENTS[:-2], first[None], first[None]]))
    assert iv.why_unpaired(a, b) == iv.why_unpaired(b, a) == OTHER_TOKENS


def test_weights_that_are_no_whole_numbers_may_be_rounded():
    weights = torch.rand(len(LOSSES), generator=torch.Generator().manual_seed(0)).double()
    a = record_of(LOSSES, DOCUMENTS, weights)
    order = torch.arange(len(LOSSES)).flip(0)
    b = record_of(LATER[order], DOCUMENTS[order], weights[order])
    assert iv.why_unpaired(a, b) is None
    assert iv.why_unpaired(a, record_of(LATER, DOCUMENTS, weights * 1.001)) == OTHER_TOKENS


def test_records_without_tokens_or_documents():
    empty = record_of(LOSSES[:0], DOCUMENTS[:0])
    assert iv.why_unpaired(empty, empty) is None
    assert iv.why_unpaired(empty, record_of(LOSSES, DOCUMENTS)) == OTHER_TOKENS
    assert iv.why_unpaired((empty[0], None), empty) == "no documents were given"
