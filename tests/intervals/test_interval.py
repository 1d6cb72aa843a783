"""Intervals of one record beside loops in NumPy, and what there is to say of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import digest as dg
from lightning_pce import intervals as iv
from tests.helpers.intervals_by_hand import clustered, mean_by_bootstrap_t, record_of, woodruff

MANY = ("mean", "p5", "p25", "p50", "p75", "p90", "p95", "p99", "p99_9")


def few(documents, tokens=30):
    """A record of so many documents in slots of their own."""
    slots, ids = set(), []
    while len(ids) < documents:
        each = len(slots) * 1000 + len(ids)
        while int(iv.slots_of(torch.tensor(each))) in slots:
            each += 1
        slots.add(int(iv.slots_of(torch.tensor(each))))
        ids.append(each)
    losses = torch.rand(documents * tokens, generator=torch.Generator().manual_seed(documents))
    return record_of(10 ** (4 * losses - 3), torch.tensor(ids).repeat(tokens))


@pytest.mark.parametrize("p", [0.01, 0.05, 0.25, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_percentiles_are_woodruffs(p, level):
    record = record_of(*clustered(seed=1))
    got = iv.interval(*record, f"p{100 * p:g}".replace(".", "_"), level)
    assert got.value == pytest.approx(float(dg.quantile(record[0], p)), rel=1e-12)
    assert (got.low, got.high) == pytest.approx(woodruff(record, p, level), rel=1e-6)
    assert got.low < got.value < got.high
    assert got.paired is None


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("documents", [40, 100, 500])
def test_the_mean_is_a_bootstrap_t(documents, level):
    record = record_of(*clustered(seed=2, documents=documents))
    got = iv.interval(*record, "mean", level)
    assert got.value == dg.mean(record[0])
    assert (got.low, got.high) == pytest.approx(mean_by_bootstrap_t(record, level), rel=1e-7)


def test_weights_count_as_repetition():
    losses, documents = clustered(seed=3, documents=60)
    times = torch.arange(len(losses)) % 3
    weighted = iv.intervals(*record_of(losses, documents, times), MANY)
    repeated = iv.intervals(
        *record_of(losses.repeat_interleave(times), documents.repeat_interleave(times)), MANY
    )
    for name in MANY:
        assert weighted[name][:3] == pytest.approx(repeated[name][:3], rel=1e-2)
    assert weighted["p50"][:3] == pytest.approx(repeated["p50"][:3], rel=1e-9)


def test_several_at_once_are_those_one_by_one():
    record = record_of(*clustered(seed=4))
    together = iv.intervals(*record, MANY)
    assert list(together) == list(MANY)
    for name in MANY:
        assert together[name] == iv.interval(*record, name)
    assert iv.intervals(*record, []) == {}


def test_nothing_to_say_of_a_good_record():
    found = iv.intervals(*record_of(*clustered(documents=400)), ("mean", "p5", "p50", "p95"))
    assert [each.reason for each in found.values()] == [None] * 4


def test_counts_of_ranks_give_the_interval_of_all():
    losses, documents = clustered(seed=5)
    digest, counts = record_of(losses, documents)
    half = len(losses) // 2
    parts = [record_of(losses[part], documents[part]) for part in (slice(half), slice(half, None))]
    joined = iv.interval(digest, parts[0][1] + parts[1][1], "p50")
    assert joined == iv.interval(digest, counts, "p50")


def test_under_20_slots_there_is_none_and_under_50_a_word():
    assert [int((few(number)[1][:, :-1].sum(-1) > 0).sum()) for number in (19, 20, 49)] == [19, 20, 49]
    for each in iv.intervals(*few(19), ("mean", "p50")).values():
        assert math.isfinite(each.value)
        assert math.isnan(each.low)
        assert math.isnan(each.high)
        assert each.reason == "only 19 of 128 slots of documents hold tokens, 20 are needed"
    for number in (20, 49):
        for each in iv.intervals(*few(number), ("mean", "p50")).values():
            assert each.low < each.value < each.high
            assert (
                each.reason == f"only {number} slots of documents hold tokens: the interval may be too narrow"
            )
    assert iv.interval(*few(50), "p50").reason is None


def test_without_tokens_or_documents_there_is_none():
    empty = iv.interval(dg.empty(), iv.empty(), "p50")
    assert math.isnan(empty.value)
    assert empty.reason == "only 0 of 128 slots of documents hold tokens, 20 are needed"
    digest, _ = record_of(*clustered())
    alone = iv.interval(digest, None, "mean")
    assert alone.value == dg.mean(digest)
    assert math.isnan(alone.high)
    assert alone.reason == iv.why_none(None) == "no documents were given"
    assert iv.why_none(record_of(*clustered())[1]) is None


def test_documents_of_other_data_give_none():
    digest, counts = record_of(*clustered())
    got = iv.interval(digest, 2 * counts, "p50")
    assert math.isnan(got.low)
    assert "not of the same data" in got.reason


def test_an_infinite_loss_leaves_percentiles_their_interval():
    losses, documents = clustered(seed=6)
    losses[:3] = torch.inf
    found = iv.intervals(*record_of(losses, documents), ("mean", "p50", "p99_9"))
    assert found["mean"].value == math.inf
    assert math.isnan(found["mean"].low)
    assert math.isnan(found["mean"].high)
    assert found["mean"].reason == "some values are infinite"
    assert found["p50"].low < found["p50"].value < found["p50"].high
    assert found["p50"].reason is None
    assert found["p99_9"].high == math.inf


def test_nan_is_left_out():
    losses, documents = clustered(seed=7)
    with_nan = torch.cat([losses, torch.full((50,), math.nan)])
    more = torch.cat([documents, documents[:50]])
    assert iv.intervals(*record_of(with_nan, more), MANY) == iv.intervals(*record_of(losses, documents), MANY)


def test_extremes_have_none_and_an_end_at_an_extreme_is_said():
    found = iv.intervals(*record_of(*clustered(seed=8)), ("p0", "p100", "p99_99"))
    for name in ("p0", "p100"):
        assert math.isfinite(found[name].value)
        assert math.isnan(found[name].low)
        assert "no error bar" in found[name].reason
    assert found["p99_99"].high == found["p100"].value
    assert found["p99_99"].reason == "the interval ends at the largest value: the data do not bound it"
    low = iv.interval(*record_of(*clustered(seed=8)), "p0_01")
    assert "ends at the smallest value" in low.reason
    assert low.low == found["p0"].value


def test_equal_values_have_an_interval_of_width_0():
    _, documents = clustered()
    for name, each in iv.intervals(*record_of(torch.full(documents.shape, 2.5), documents), MANY).items():
        assert each[:3] == pytest.approx((2.5, 2.5, 2.5), rel=1e-12), name
        assert each.reason is None or name == "p99_9"


def test_the_mean_where_a_single_slot_differs_is_by_students_t():
    record = few(30)
    counts = record[1].clone()
    tokens = counts[:, :-1].sum(-1)
    counts[:, -1] = 0.5 * tokens
    counts[int(tokens.argmax()), -1] += 40
    got = iv.interval(dg.from_values(torch.full((int(tokens.sum()),), 0.5)), counts, "mean")
    assert 0 < got.high - got.low < 1
    assert got.high - got.value == pytest.approx(got.value - got.low)
    assert got.reason.startswith("nearly all of the spread is that of a single slot")


def test_tokens_crowded_in_one_bin_are_said_unless_they_are_equal():
    losses, documents = clustered(seed=9)
    crowded = 1.0 + 0.1 * losses / (1 + losses)  # all in the bin from 0.95 to 1.21
    got = iv.interval(*record_of(crowded, documents), "p50")
    assert got.reason == "100 % of the tokens lie in one bin of the counts: the interval may be too narrow"
    equal = torch.where(torch.arange(len(losses)) % 10 < 8, 1.0, losses)
    assert iv.interval(*record_of(equal, documents), "p50")[1:] == (1.0, 1.0, None, None)
    zeros = torch.where(torch.arange(len(losses)) % 10 < 8, 1e-8 * losses, losses)
    assert iv.interval(*record_of(zeros, documents), "p50").reason is None


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(MANY), st.floats(0.1, 0.98))
def test_a_higher_level_gives_a_wider_interval(seed, name, level):
    record = record_of(*clustered(seed, documents=60))
    inner, outer = iv.interval(*record, name, level), iv.interval(*record, name, min(level + 0.015, 0.99))
    assert outer.low <= inner.low <= inner.high <= outer.high


def test_a_digest_of_few_centroids_and_one_with_replicates_are_taken():
    losses, documents = clustered(seed=10)
    counts = record_of(losses, documents)[1]
    small = iv.interval(dg.from_values(losses, compression=64), counts, "p50")
    wide = dg.add(dg.empty(replicates=2), losses, replicates=torch.ones(len(losses), 2))
    large = iv.interval(wide, counts, "p50")
    assert small.value == pytest.approx(large.value, rel=0.05)
    assert large == iv.interval(dg.from_values(losses), counts, "p50")
