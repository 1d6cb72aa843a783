"""Intervals of differences beside loops in NumPy."""

import math

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce import intervals as iv
from tests.helpers.intervals_by_hand import (
    clustered,
    difference_of_means,
    difference_of_percentiles,
    record_of,
)

MANY = ("mean", "p5", "p25", "p50", "p75", "p90", "p95", "p99")
BEFORE, AFTER = record_of(*clustered(seed=1)), record_of(*clustered(seed=1, after=True))
OTHER = record_of(*clustered(seed=2, documents=70, after=True))  # of other documents


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_paired_percentiles_are_those_by_hand(p, level):
    got = iv.difference(BEFORE, AFTER, f"p{100 * p:g}", level)
    assert got.paired is True
    assert got.reason is None
    assert got.value == float(dg.quantile(AFTER[0], p)) - float(dg.quantile(BEFORE[0], p))
    assert (got.low, got.high) == pytest.approx(difference_of_percentiles(BEFORE, AFTER, p, level), rel=1e-5)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_unpaired_percentiles_are_those_by_hand(p):
    got = iv.difference(BEFORE, OTHER, f"p{100 * p:g}")
    assert got.paired is False
    assert got.reason == "not paired: their slots of documents hold other numbers of tokens"
    expected = difference_of_percentiles(BEFORE, OTHER, p, paired=False)
    assert (got.low, got.high) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("paired", [True, False])
def test_means_are_those_by_hand(paired, level):
    after = AFTER if paired else OTHER
    got = iv.difference(BEFORE, after, "mean", level)
    assert got.paired is paired
    expected = difference_of_means(BEFORE, after, level, paired)
    assert (got.low, got.high) == pytest.approx(expected, rel=1e-6)
    assert got.value == float(dg.mean(after[0])) - float(dg.mean(BEFORE[0]))


def test_several_at_once_are_those_one_by_one():
    together = iv.differences(BEFORE, AFTER, MANY)
    assert list(together) == list(MANY)
    for name in MANY:
        assert together[name] == iv.difference(BEFORE, AFTER, name)
    assert iv.differences(BEFORE, AFTER, []) == {}


def test_a_difference_is_b_less_a():
    there, back = iv.difference(BEFORE, AFTER, "p50"), iv.difference(AFTER, BEFORE, "p50")
    assert there.high < 0  # the second checkpoint's median is lower
    assert back[:3] == pytest.approx((-there.value, -there.high, -there.low), rel=1e-9)
    assert iv.difference(BEFORE, AFTER, "mean").value == -iv.difference(AFTER, BEFORE, "mean").value


def test_a_record_does_not_differ_from_itself():
    for each in iv.differences(BEFORE, BEFORE, MANY).values():
        assert each == (0, 0, 0, True, None)


def test_pairing_makes_intervals_half_as_wide_at_most():
    paired = iv.differences((*BEFORE, "a"), (*AFTER, "a"), MANY)
    unpaired = iv.differences((*BEFORE, "a"), (*AFTER, "b"), MANY)
    for name in ("mean", "p50", "p75", "p90", "p95"):
        assert paired[name].paired
        assert not unpaired[name].paired
        assert paired[name].high - paired[name].low < (unpaired[name].high - unpaired[name].low) / 2
        assert unpaired[name].reason == "not paired: the fingerprints of their data differ"


def test_the_record_with_fewer_slots_decides():
    few = record_of(*clustered(seed=3, documents=15))
    for pair in ((BEFORE, few), (few, BEFORE)):
        got = iv.difference(*pair, "p50")
        assert math.isfinite(got.value)
        assert math.isnan(got.low)
        assert got.paired is False
        assert got.reason.startswith("only 1")
        assert got.reason.endswith("of 128 slots of documents hold tokens, 20 are needed")
    some = record_of(*clustered(seed=3, documents=40))
    got = iv.difference(some, BEFORE, "mean")
    assert got.low < got.high
    assert got.reason.startswith("not paired: their slots of documents hold other numbers of tokens; only 3")


def test_without_documents_there_is_none():
    got = iv.difference(BEFORE, (AFTER[0], None), "p50")
    assert math.isfinite(got.value)
    assert math.isnan(got.low)
    assert (got.paired, got.reason) == (False, "no documents were given")


def test_infinite_losses_leave_lower_percentiles_their_interval():
    losses, documents = clustered(seed=1, after=True)
    losses[losses > torch.quantile(losses, 0.99)] = torch.inf
    found = iv.differences(BEFORE, record_of(losses, documents), ("mean", "p50", "p99"))
    assert found["p50"].low < found["p50"].high
    assert found["p50"].reason is None
    for name in ("mean", "p99"):
        assert math.isnan(found[name].low)
        assert found[name].reason == "some values are infinite"
        assert found[name].paired


def test_extremes_have_none_and_crowded_bins_are_said():
    assert math.isnan(iv.difference(BEFORE, AFTER, "p100").high)
    losses, documents = clustered(seed=1)
    crowded = record_of(1.0 + 0.1 * losses / (1 + losses), documents)
    assert "lie in one bin" in iv.difference(BEFORE, crowded, "p50").reason
    assert "lie in one bin" in iv.difference(crowded, BEFORE, "p50").reason


def test_resampled_differences_are_what_replicates_give():
    names = ["p50", "p95"]
    changes = iv.replicates(*AFTER, names) - iv.replicates(*BEFORE, names)
    share = iv.expanded(0.95, BEFORE[1], AFTER[1])
    ends = np.quantile(changes.numpy(), [(1 - share) / 2, (1 + share) / 2], axis=0)
    found = iv.differences(BEFORE, AFTER, names)
    np.testing.assert_allclose(
        [[found[name].low for name in names], [found[name].high for name in names]], ends
    )
