"""Resamples: the same for every record, and what a statistic is in each."""

import numpy as np
import pytest
import torch

from lightning_pce import digest as dg
from lightning_pce import intervals as iv
from lightning_pce.intervals._resamples import drawn
from tests.helpers.intervals_by_hand import (
    clustered,
    record_of,
    resampled_percentile,
    t_by_integration,
    times_drawn,
)

RECORD = record_of(*clustered())


@pytest.mark.parametrize("first", [0, 1000])
def test_every_draw_is_a_hash_of_its_number(first):
    assert np.array_equal(drawn(first).numpy(), times_drawn(first))


def test_resamples_are_as_chance_would_have_them():
    times = drawn()
    assert (times.sum(1) == 128).all()
    # 1,000 draws of each slot on average, binomial: sd 32.
    assert (times.sum(0) - 1000).abs().max() < 4 * 32
    assert times.var() == pytest.approx(127 / 128, abs=0.02)
    both = (times - 1) * (drawn(1000) - 1)
    assert abs(both.mean()) < 4 / 128_000**0.5


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("first", [0, 1000])
def test_percentiles_in_resamples_are_those_by_hand(p, first):
    statistic = f"p{100 * p:g}".replace(".", "_")
    got = iv.replicates(*RECORD, [statistic], first=first)
    assert got.shape == (1000, 1)
    np.testing.assert_allclose(got[:, 0].numpy(), resampled_percentile(RECORD, p, first), rtol=1e-9)


def test_means_in_resamples_are_sums_over_numbers():
    tokens, sums = RECORD[1][:, :-1].sum(-1).numpy(), RECORD[1][:, -1].numpy()
    expected = [(times @ sums) / (times @ tokens) for times in times_drawn()]
    got = iv.replicates(*RECORD, ["p50", "mean"])
    np.testing.assert_allclose(got[:, 1].numpy(), expected, rtol=1e-12)


def test_curves_are_percentiles_side_by_side():
    u = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    curves = iv.replicate_quantiles(*RECORD, u)
    assert torch.equal(curves, iv.replicates(*RECORD, ["p5", "p50", "p95"]))
    assert (iv.replicate_quantiles(*RECORD, torch.linspace(0, 1, 199)).diff() >= 0).all()


def test_ends_of_the_curve_are_the_extremes_of_the_data_drawn():
    curves = iv.replicate_quantiles(*RECORD, torch.tensor([0.0, 1.0]))
    assert curves.min() >= dg.minimum(RECORD[0])
    assert curves.max() == dg.maximum(RECORD[0])
    assert curves[:, 1].min() < dg.maximum(RECORD[0])


def test_resamples_of_two_records_are_paired():
    losses, documents = clustered()
    changes = iv.replicates(*record_of(losses + 1, documents), ["mean"]) - iv.replicates(*RECORD, ["mean"])
    torch.testing.assert_close(changes, torch.ones_like(changes), rtol=1e-6, atol=0)


def test_an_infinite_loss_is_in_the_resamples_that_draw_it():
    losses, documents = clustered()
    losses[0] = torch.inf
    slot = int(iv.slots_of(documents[0]))
    means = iv.replicates(*record_of(losses, documents), ["mean"])[:, 0]
    assert torch.equal(means.isinf(), drawn()[:, slot] > 0)
    assert not means.isnan().any()


def test_expanded_levels_need_more_of_fewer_slots():
    counts = [iv.empty(), iv.empty()]
    counts[0][:, 3], counts[1][:25, 3] = 1.0, 1.0
    assert 0.95 < iv.expanded(0.95, counts[0]) < 0.954
    z = (128 / 127) ** 0.5 * t_by_integration(0.95, 24)
    expected = torch.erf(torch.tensor(z / 2**0.5, dtype=torch.float64)).item()
    assert iv.expanded(0.95, *counts) == iv.expanded(0.95, counts[1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("u", [torch.tensor([[0.5]]), torch.tensor([1.5]), torch.tensor([torch.nan])])
def test_curves_outside_are_refused(u):
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        iv.replicate_quantiles(*RECORD, u)
